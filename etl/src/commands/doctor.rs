//! `etl doctor`: checks everything that a run needs, a line each with the remedy.

mod broker;
mod database;
mod jobs;

use serde::Serialize;

use super::Command;
use crate::Failure;
use crate::output::show;

/// Check the broker, the database, the queues and the jobs: a line each, with the remedy.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: etl doctor")]
pub struct Arguments {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Ok,
    Warning,
    Wrong,
    /// The check is not possible from here.
    Unknown,
}

/// A check and its result.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    pub level: Level,
    pub what: &'static str,
    /// With the remedy, unless it is fine.
    pub text: String,
}

/// What was found so far.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, what: &'static str, text: impl Into<String>) {
        let text = text.into();
        self.0.push(Finding { level, what, text });
    }

    /// A check that is fine, or wrong with the remedy.
    fn check(
        &mut self,
        what: &'static str,
        is_fine: bool,
        fine: impl Into<String>,
        wrong: impl Into<String>,
    ) {
        if is_fine {
            self.fine(what, fine);
        } else {
            self.wrong(what, wrong);
        }
    }

    fn fine(&mut self, what: &'static str, text: impl Into<String>) {
        self.add(Level::Ok, what, text);
    }

    fn warning(&mut self, what: &'static str, text: impl Into<String>) {
        self.add(Level::Warning, what, text);
    }

    fn wrong(&mut self, what: &'static str, text: impl Into<String>) {
        self.add(Level::Wrong, what, text);
    }
}

/// Checks everything. What cannot be checked is not wrong.
pub async fn plan() -> Vec<Finding> {
    let mut findings = Findings::default();
    let store = database::examine(&mut findings).await;
    broker::examine(&mut findings).await;
    jobs::examine(store.as_ref(), &mut findings).await;
    findings.0
}

impl Command for Arguments {
    /// True when nothing is wrong.
    async fn run(self) -> Result<bool, Failure> {
        let findings = plan().await;
        show(self.json, &findings, |findings| lines(findings))?;
        Ok(findings.iter().all(|one| one.level != Level::Wrong))
    }
}

fn lines(findings: &[Finding]) -> String {
    let lines = findings.iter().map(|finding| {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Wrong => "WRONG",
            Level::Unknown => "unknown",
        };
        format!("{level:<8} {:<17} {}", finding.what, finding.text)
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_a_line() {
        let mut findings = Findings::default();
        findings.fine("database", "PostgreSQL 15.18, as the role etl");
        findings.warning("extractor", "etl.extract has no consumer; start one");
        findings.wrong("migrations", "schema etl is missing; run `loader migrate`");
        findings.add(Level::Unknown, "consumer timeout", "AMQP does not tell it");
        insta::assert_snapshot!(format!(
            "{}\n{}",
            lines(&findings.0),
            serde_json::to_string_pretty(&findings.0).unwrap()
        ));
    }
}
