//! What a command finds that checks what the programs need: a line each, or JSON.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::command::{Failure, print, print_json};

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Ok,
    Warning,
    Wrong,
    /// The check is not possible from here, or was not made.
    Unknown,
}

/// A check and its result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finding {
    pub level: Level,
    pub what: Cow<'static, str>,
    /// With the remedy, where `remedy` does not have it.
    pub text: String,
    /// The IAM action that is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// What was found so far.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    /// Adds a finding, to which its action and its remedy may be added.
    pub fn add(
        &mut self,
        level: Level,
        what: impl Into<Cow<'static, str>>,
        text: impl Into<String>,
    ) -> &mut Finding {
        self.0.push_mut(Finding {
            level,
            what: what.into(),
            text: text.into(),
            action: None,
            remedy: None,
        })
    }

    /// A check that is fine, or wrong with the remedy.
    pub fn check(
        &mut self,
        what: impl Into<Cow<'static, str>>,
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

    pub fn fine(&mut self, what: impl Into<Cow<'static, str>>, text: impl Into<String>) {
        self.add(Level::Ok, what, text);
    }

    pub fn warning(&mut self, what: impl Into<Cow<'static, str>>, text: impl Into<String>) {
        self.add(Level::Warning, what, text);
    }

    pub fn wrong(&mut self, what: impl Into<Cow<'static, str>>, text: impl Into<String>) {
        self.add(Level::Wrong, what, text);
    }

    /// Prints the findings. True when nothing is wrong.
    pub fn report(&self, json: bool) -> Result<bool, Failure> {
        if json {
            print_json(self)?;
        } else {
            print(&self.lines())?;
        }
        Ok(self.is_fine())
    }

    /// Whether nothing is wrong: what cannot be checked is not.
    pub fn is_fine(&self) -> bool {
        self.0.iter().all(|one| one.level != Level::Wrong)
    }

    /// Adds what another command found about a thing, under the name of the thing.
    pub fn extend(&mut self, what: &str, others: Self) {
        self.0.extend(others.0.into_iter().map(|one| Finding {
            text: format!("{}: {}", one.what, one.text),
            what: what.to_owned().into(),
            ..one
        }));
    }

    fn lines(&self) -> String {
        let width = self.0.iter().map(|one| one.what.len()).max();
        let width = width.unwrap_or_default();
        let lines = self.0.iter().map(|one| {
            let level = match one.level {
                Level::Ok => "ok",
                Level::Warning => "warning",
                Level::Wrong => "WRONG",
                Level::Unknown => "unknown",
            };
            let remedy = one.remedy.iter().map(|remedy| format!("; {remedy}"));
            let remedy = remedy.collect::<String>();
            format!("{level:<7}  {:<width$}  {}{remedy}", one.what, one.text)
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_a_line_and_an_object() {
        let mut findings = Findings::default();
        findings.fine("database", "PostgreSQL 15.18, as the role etl");
        findings.warning("extractor", "etl.extract has no consumer; start one");
        findings.check("migrations", false, "fine", "schema etl is missing");
        findings.0[2].remedy = Some("run `loader migrate`".to_owned());
        findings.add(Level::Unknown, "consumer timeout", "AMQP does not tell it");
        assert_eq!(
            findings.lines().split('\n').collect::<Vec<_>>(),
            [
                "ok       database          PostgreSQL 15.18, as the role etl",
                "warning  extractor         etl.extract has no consumer; start one",
                "WRONG    migrations        schema etl is missing; run `loader migrate`",
                "unknown  consumer timeout  AMQP does not tell it",
            ]
        );
        assert_eq!(
            serde_json::to_value(&findings.0[1..3]).unwrap(),
            serde_json::json!([
                { "level": "warning", "what": "extractor", "text": "etl.extract has no consumer; start one" },
                { "level": "wrong", "what": "migrations", "text": "schema etl is missing", "remedy": "run `loader migrate`" },
            ])
        );
        assert_eq!(
            serde_json::to_value(&findings).unwrap()[3]["level"],
            "unknown"
        );
    }
}
