//! `etl plan`: what a run would do. Reads the database, and writes and sends nothing.

mod sheet;

use std::collections::BTreeMap;
use std::time::Duration;

use common::command::assignment;
use common::job::{ColumnSpec, Job, Request, Rule, Source, Target};
use common::schema::TargetColumn;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::Command;
use crate::Failure;
use crate::extractor::Extractor;
use crate::jobs::{Jobs, checkable, reading_on};
use crate::output::{print, print_json};
use crate::query_columns::QueryColumns;
use crate::request::limits;
use crate::store;
use crate::target::{self, TargetPlan};
use ledger::Store;
use sheet::{columns, head, tail};

/// Show what a run would do: the SQL, the columns, the DDL.
///
/// Writes nothing and sends nothing.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  etl plan most_visited_url --set from=2018-04-02\n  etl plan most_visited_url --connected"
)]
pub struct Arguments {
    /// The job: the name of a file in `ETL_JOBS`, without .toml.
    pub job: String,
    /// Set a parameter of the job; the others have their defaults.
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    pub set: Vec<(String, String)>,
    /// Also ask Athena for the query's columns; runs the query with a LIMIT of 0, which scans nothing.
    #[arg(long)]
    pub connected: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What a run would do.
#[derive(Debug, Serialize)]
pub struct Plan {
    pub job: String,
    pub description: String,
    pub parameters: BTreeMap<String, String>,
    pub sql: String,
    #[serde(serialize_with = "source_json")]
    pub source: Source,
    /// The bytes that the job's queries may scan in a month.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_scanned_per_month: Option<u64>,
    pub target_table: String,
    /// The target's settings in the job, by name.
    pub settings: Vec<(String, String)>,
    /// Those that the job names; all of them if Athena was asked.
    pub columns: Vec<PlannedColumn>,
    /// Athena was asked for the query's columns.
    pub connected: bool,
    pub target: TargetPlan,
    /// The roles of loaders that the target was examined for.
    pub roles: Vec<String>,
    /// What is no reason to refuse the run.
    pub warnings: Vec<String>,
    /// Why `etl run` would refuse the run now, apart from the target.
    pub refused: Option<String>,
}

/// A column that the job names.
#[derive(Debug, Serialize)]
pub struct PlannedColumn {
    pub source: String,
    pub name: String,
    /// Absent where Athena's type decides.
    #[serde(rename = "type")]
    pub pg_type: Option<String>,
    /// What is done to a value before it is checked.
    pub changes: Vec<String>,
    pub rules: Vec<String>,
}

impl Plan {
    /// Whether a run would be accepted now.
    pub fn is_accepted(&self) -> bool {
        self.refused.is_none() && !matches!(self.target, TargetPlan::Refused { .. })
    }
}

/// The source with its timeout as the job writes it.
fn source_json<S: Serializer>(source: &Source, serializer: S) -> Result<S::Ok, S::Error> {
    let mut json = serde_json::to_value(source).map_err(serde::ser::Error::custom)?;
    json["timeout"] = timeout(source).into();
    if let Some(age) = source.reuse_results {
        json["reuse_results"] = duration(age).into();
    }
    json.serialize(serializer)
}

fn timeout(source: &Source) -> String {
    duration(source.timeout)
}

fn duration(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

/// What a run of this job would do, with the columns of its query if Athena was asked. A setting that `etl run` refuses is an
/// error.
pub async fn plan(
    store: &Store,
    jobs: &Jobs,
    job: Job,
    request: Request,
    asked: Option<&[TargetColumn]>,
) -> Result<Plan, Failure> {
    limits()?;
    let spec = checkable(&request);
    let examined = match asked {
        Some(all) => target::plan_all(store, &spec, all, &jobs.schemas).await?,
        None => target::plan(store, &spec, &jobs.schemas).await?,
    };
    let over_limit = store.over_monthly_limit(&job).await?;
    let conflict = store.conflicting_run(&job, &request, false).await?;
    let reader = match &request.read_on {
        Some(read_on) => match store
            .check_watermark(&job, read_on, &request.parameters)
            .await
        {
            Err(ledger::Error::NotAllowed(why)) => Some(why),
            checked => checked.map(|()| None)?,
        },
        None => None,
    };
    let (schema, table) = job.spec.target.schema_and_table();
    Ok(Plan {
        target_table: format!("{schema}.{table}"),
        settings: settings(&request.spec.target),
        columns: columns_of(&request.spec.columns, asked.unwrap_or_default()),
        connected: asked.is_some(),
        target: examined.plan,
        roles: examined.roles,
        warnings: examined
            .role_note
            .into_iter()
            .chain(examined.warnings)
            .collect(),
        refused: over_limit
            .or(reader)
            .or(conflict.map(|conflict| conflict.sentence())),
        job: job.spec.name,
        description: job.description,
        parameters: request.parameters,
        sql: request.sql,
        source: job.source,
        max_scanned_per_month: job.max_scanned_per_month,
    })
}

/// The columns that the job names, and the others of the query.
fn columns_of(named: &[ColumnSpec], asked: &[TargetColumn]) -> Vec<PlannedColumn> {
    let mut columns: Vec<_> = named.iter().map(column).collect();
    for found in asked {
        let pg_type = Some(found.pg_type.to_string());
        match columns.iter_mut().find(|column| column.name == found.name) {
            Some(column) => column.pg_type = pg_type,
            None => columns.push(PlannedColumn {
                source: found.name.clone(),
                name: found.name.clone(),
                pg_type,
                changes: Vec::new(),
                rules: Vec::new(),
            }),
        }
    }
    columns
}

fn column(spec: &ColumnSpec) -> PlannedColumn {
    let source = match (&spec.source, &spec.parameter, &spec.constant) {
        (Some(source), ..) => source.clone(),
        (None, Some(parameter), _) => format!("(parameter {parameter})"),
        (None, None, Some(_)) if !spec.requested_at => "(constant)".to_owned(),
        (None, None, _) => "(time of the request)".to_owned(),
    };
    PlannedColumn {
        source,
        name: spec.target_name().to_owned(),
        pg_type: spec.declared_type().map(|pg_type| pg_type.to_string()),
        changes: entries(
            spec,
            &[
                "source",
                "name",
                "type",
                "rules",
                "parameter",
                "requested_at",
            ],
        ),
        rules: spec.rules.iter().map(rule).collect(),
    }
}

/// A rule as the job writes it, without the braces: `none_of = ["A1", "A2"]`.
fn rule(rule: &Rule) -> String {
    entries(rule, &[]).join(", ")
}

/// The entries of a TOML table as the job writes them, without those that are shown elsewhere.
fn entries(of: &impl Serialize, shown: &[&str]) -> Vec<String> {
    let Ok(Value::Object(entries)) = serde_json::to_value(of) else {
        return Vec::new();
    };
    let entries = entries
        .iter()
        .filter(|(name, _)| !shown.contains(&name.as_str()));
    let entries = entries.map(|(name, value)| match value {
        Value::Bool(true) => name.clone(),
        value => format!("{name} = {value}"),
    });
    entries.collect()
}

/// All settings of the job's target but the table, as the job writes them.
fn settings(target: &Target) -> Vec<(String, String)> {
    let text = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let mut settings = Vec::new();
    let Ok(Value::Object(entries)) = serde_json::to_value(target) else {
        return settings;
    };
    for (name, value) in entries {
        let value = match (name.as_str(), &value) {
            ("table", _) | (_, Value::Null) => continue,
            ("replace_where", _) => target
                .replace_where
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            (_, Value::Array(items)) => items.iter().map(text).collect::<Vec<_>>().join(", "),
            (_, value) => text(value),
        };
        settings.push((name, value));
    }
    settings
}

impl Command for Arguments {
    /// True when a run would be accepted.
    async fn run(self) -> Result<bool, Failure> {
        let jobs = Jobs::load()?;
        let job = jobs.read(&self.job)?;
        let store = store::open().await?;
        let request = reading_on(&store, &job, &self.set, None).await?;
        let asked = if self.connected {
            let (extractor, spec) = (Extractor::find()?, checkable(&request));
            let columns = QueryColumns::ask(&extractor, &jobs, &job, &request.parameters, &spec);
            Some(columns.await?.target)
        } else {
            None
        };
        let plan = plan(&store, &jobs, job, request, asked.as_deref()).await?;
        if self.json {
            print_json(&plan)?;
        } else {
            print(&head(&plan))?;
            if !plan.columns.is_empty() {
                print(&columns(&plan).to_string())?;
            }
            print(&tail(&plan))?;
        }
        Ok(plan.is_accepted())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::on_a_terminal;
    use common::job::Results;

    fn plan(target: TargetPlan) -> Plan {
        Plan {
            job: "clicks".into(),
            description: "Clicks of a range of days".into(),
            parameters: [("from".into(), "2018-04-02".into())].into(),
            sql: "SELECT *\nFROM clicks\nWHERE dt >= DATE '2018-04-02'".into(),
            source: Source {
                database: "netflix".into(),
                catalog: None,
                workgroup: Some("etl".into()),
                output_location: None,
                results: Results::Auto,
                max_scanned: Some(10_000_000_000),
                timeout: Duration::from_mins(30),
                ..Source::default()
            },
            max_scanned_per_month: None,
            target_table: "public.clicks".into(),
            settings: vec![
                ("mode".into(), "upsert".into()),
                ("key".into(), "country_code, date".into()),
            ],
            connected: false,
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
            roles: vec!["etl_loader".into()],
            warnings: vec![],
            refused: None,
        }
    }

    #[test]
    fn plan_shows_the_change_of_the_target() {
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
                why: vec!["it is a view; name a table".into()],
            },
        ] {
            shown.push(tail(&plan(target)));
        }
        insta::assert_snapshot!(shown.join("\n"));
    }

    #[test]
    fn plan_as_json() {
        let plan = plan(TargetPlan::Fits);
        insta::assert_snapshot!(serde_json::to_string_pretty(&plan).unwrap());
    }
}
