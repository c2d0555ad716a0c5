//! What `etl doctor` found.

use serde::Serialize;

use super::{print, print_json};
use crate::Failure;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Level {
    Fine,
    Warning,
    Wrong,
    /// It cannot be known from here.
    Unknown,
}

/// A line of the examination.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Finding {
    level: Level,
    what: &'static str,
    /// With the remedy, unless it is fine.
    text: String,
}

impl Finding {
    pub(crate) fn fine(what: &'static str, text: impl Into<String>) -> Self {
        Self::new(Level::Fine, what, text)
    }

    pub(crate) fn warning(what: &'static str, text: impl Into<String>) -> Self {
        Self::new(Level::Warning, what, text)
    }

    pub(crate) fn wrong(what: &'static str, text: impl Into<String>) -> Self {
        Self::new(Level::Wrong, what, text)
    }

    pub(crate) fn unknown(what: &'static str, text: impl Into<String>) -> Self {
        Self::new(Level::Unknown, what, text)
    }

    fn new(level: Level, what: &'static str, text: impl Into<String>) -> Self {
        Self {
            level,
            what,
            text: text.into(),
        }
    }

    pub(crate) fn is_wrong(&self) -> bool {
        self.level == Level::Wrong
    }
}

/// `etl doctor`.
pub(crate) fn examined(findings: &[Finding], json: bool) -> Result<(), Failure> {
    if json {
        print_json(&findings)
    } else {
        print(&lines(findings))
    }
}

fn lines(findings: &[Finding]) -> String {
    let lines: Vec<_> = findings
        .iter()
        .map(|finding| {
            let level = match finding.level {
                Level::Fine => "ok",
                Level::Warning => "warning",
                Level::Wrong => "WRONG",
                Level::Unknown => "unknown",
            };
            format!("{level:<8} {:<17} {}", finding.what, finding.text)
        })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_each() {
        let findings = [
            Finding::fine("database", "PostgreSQL 15.18, as the role etl"),
            Finding::warning("extractor", "none takes from etl.extract; start one"),
            Finding::wrong("migrations", "schema etl is missing; run `loader migrate`"),
            Finding::unknown("consumer timeout", "AMQP does not tell it"),
        ];
        insta::assert_snapshot!(format!(
            "{}\n{}",
            lines(&findings),
            serde_json::to_string_pretty(&findings).unwrap()
        ));
    }
}
