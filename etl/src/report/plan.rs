//! `etl plan`: what a run would do.

use std::collections::BTreeMap;

use comfy_table::Table;
use indicatif::HumanBytes;
use serde::Serialize;

use super::{print, print_json, table};
use crate::Failure;
use crate::books::TargetPlan;

/// What a run would do.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    pub(crate) job: String,
    pub(crate) description: String,
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) sql: String,
    pub(crate) source: PlannedSource,
    pub(crate) target_table: String,
    /// What the job says of its target, by name.
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) columns: Vec<PlannedColumn>,
    pub(crate) target: TargetPlan,
    /// Why `etl run` would refuse it at the moment, apart from the target.
    pub(crate) refused: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct PlannedSource {
    pub(crate) database: String,
    pub(crate) catalog: Option<String>,
    pub(crate) workgroup: Option<String>,
    pub(crate) output_location: Option<String>,
    pub(crate) results: &'static str,
    pub(crate) max_scanned: Option<u64>,
    pub(crate) timeout: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct PlannedColumn {
    pub(crate) source: String,
    pub(crate) name: String,
    /// Decided by Athena's type when absent.
    #[serde(rename = "type")]
    pub(crate) pg_type: Option<String>,
    /// What is done to a value.
    pub(crate) changes: Vec<String>,
    pub(crate) rules: Vec<String>,
}

impl Plan {
    /// Whether a run would be taken now.
    pub(crate) fn is_fine(&self) -> bool {
        self.refused.is_none() && !matches!(self.target, TargetPlan::Refused { .. })
    }
}

/// `etl plan`.
pub(crate) fn planned(plan: &Plan, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(plan);
    }
    print(&head(plan))?;
    if !plan.columns.is_empty() {
        print(&columns(plan).to_string())?;
    }
    print(&tail(plan))
}

fn head(plan: &Plan) -> String {
    let source = &plan.source;
    let parameters: Vec<_> = plan
        .parameters
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let mut lines = vec![
        ("job", format!("{} {}", plan.job, parameters.join(" "))),
        ("about", plan.description.clone()),
        ("database", source.database.clone()),
        ("catalog", source.catalog.clone().unwrap_or_default()),
        ("workgroup", source.workgroup.clone().unwrap_or_default()),
        ("output", source.output_location.clone().unwrap_or_default()),
        ("results", source.results.to_owned()),
        (
            "limits",
            format!(
                "stopped after {}{}",
                source.timeout,
                source
                    .max_scanned
                    .map(|bytes| format!(", or beyond {} scanned", HumanBytes(bytes)))
                    .unwrap_or_default()
            ),
        ),
        ("target", plan.target_table.clone()),
    ];
    for (name, value) in &plan.settings {
        lines.push((name, value.clone()));
    }
    let mut shown: Vec<_> = lines
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name:>13}  {}", value.trim_end()))
        .collect();
    shown.push(String::new());
    shown.extend(
        plan.sql
            .lines()
            .map(|line| format!("    {line}").trim_end().to_owned()),
    );
    shown.push(String::new());
    shown.join("\n")
}

fn columns(plan: &Plan) -> Table {
    let mut table = table(&["source", "column", "type", "changes", "rules"]);
    for column in &plan.columns {
        table.add_row([
            column.source.clone(),
            column.name.clone(),
            column
                .pg_type
                .clone()
                .unwrap_or_else(|| "by Athena's type".to_owned()),
            column.changes.join("; "),
            column.rules.join("; "),
        ]);
    }
    table
}

fn tail(plan: &Plan) -> String {
    let mut lines = vec![
        if plan.columns.is_empty() {
            " Every column of the query keeps its name and gets the type of its Athena type."
        } else {
            " What else the query returns keeps its name and gets the type of its Athena type."
        }
        .to_owned(),
        String::new(),
    ];
    match &plan.target {
        TargetPlan::Fits
            if plan.columns.iter().any(|column| column.pg_type.is_none())
                || plan.columns.is_empty() =>
        {
            lines.push(format!(
                "{} is there, and nothing speaks against what the job declares. The types of the other columns are known once the query ran: what does not fit is refused then (`extractor sample {}` shows them before)",
                plan.target_table, plan.job
            ));
        }
        TargetPlan::Fits => lines.push(format!(
            "{} is there and takes these columns; nothing is changed in it",
            plan.target_table
        )),
        TargetPlan::Creates { statements, with } if statements.is_empty() => {
            lines.push(format!(
                "{} is not there; the first batch creates it from the columns of the query's result, which are known once the query ran (`extractor sample {}` shows them before). It gets:",
                plan.target_table, plan.job
            ));
            lines.push(format!("    {with}"));
        }
        TargetPlan::Creates { statements, .. } => {
            lines.push(format!(
                "{} is not there; the first batch creates it, with whatever columns the query has besides:",
                plan.target_table
            ));
            lines.extend(indented(statements));
        }
        TargetPlan::Alters { statements } => {
            lines.push(format!(
                "{} is there; the first batch runs:",
                plan.target_table
            ));
            lines.extend(indented(statements));
        }
        TargetPlan::Refused { why } => lines.push(format!("a run would be REFUSED: {why}")),
    }
    if let Some(why) = &plan.refused {
        lines.push(format!("a run would be REFUSED: {why}"));
    }
    lines.join("\n")
}

fn indented(statements: &[String]) -> impl Iterator<Item = String> {
    statements
        .iter()
        .flat_map(|statement| statement.lines())
        .map(|line| format!("    {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::on_a_terminal;

    fn plan(target: TargetPlan) -> Plan {
        Plan {
            job: "clicks".into(),
            description: "Clicks of a range of days".into(),
            parameters: [("from".into(), "2018-04-02".into())].into(),
            sql: "SELECT *\nFROM clicks\nWHERE dt >= DATE '2018-04-02'".into(),
            source: PlannedSource {
                database: "netflix".into(),
                catalog: None,
                workgroup: Some("etl".into()),
                output_location: None,
                results: "auto",
                max_scanned: Some(10_000_000_000),
                timeout: "30m".into(),
            },
            target_table: "public.clicks".into(),
            settings: vec![
                ("mode".into(), "upsert".into()),
                ("key".into(), "country_code, date".into()),
            ],
            columns: vec![
                PlannedColumn {
                    source: "server_request_country_code".into(),
                    name: "country_code".into(),
                    pg_type: Some("character(2)".into()),
                    changes: vec!["trim".into()],
                    rules: vec!["not_empty".into(), "none_of = [\"A1\",\"A2\"]".into()],
                },
                PlannedColumn {
                    source: "dt".into(),
                    name: "dt".into(),
                    pg_type: None,
                    changes: vec![],
                    rules: vec![],
                },
            ],
            target,
            refused: None,
        }
    }

    #[test]
    fn on_a_terminal_with_what_becomes_of_the_target() {
        let creates = plan(TargetPlan::Creates {
            statements: vec!["CREATE TABLE \"public\".\"clicks\" (\n    \"dt\" text\n)".into()],
            with: "\"dt\" text, a column for each other one of the query's result".into(),
        });
        let mut shown = vec![
            head(&creates),
            on_a_terminal(columns(&creates), 100),
            tail(&creates),
        ];
        for target in [
            TargetPlan::Creates {
                statements: vec![],
                with: "a column for each one of the query's result, \"_batch\" bigint NOT NULL, PRIMARY KEY (\"country_code\", \"date\")".into(),
            },
            TargetPlan::Fits,
            TargetPlan::Alters {
                statements: vec![
                    "ALTER TABLE \"public\".\"clicks\" ADD COLUMN \"n\" bigint".into(),
                ],
            },
            TargetPlan::Refused {
                why: "it is a view; name a table".into(),
            },
        ] {
            shown.push(tail(&plan(target)));
        }
        insta::assert_snapshot!(shown.join("\n"));
    }

    #[test]
    fn as_json() {
        let plan = plan(TargetPlan::Fits);
        insta::assert_snapshot!(serde_json::to_string_pretty(&plan).unwrap());
    }
}
