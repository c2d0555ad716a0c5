//! `etl plan`: what a run would do. Asks the database, and writes and sends nothing.

use common::job::{ColumnSpec, Job, Results, Rule, Target};
use serde_json::Value;

use crate::Failure;
use crate::books::Books;
use crate::cli::PlanArguments;
use crate::jobs::{Jobs, checkable, filled_in};
use crate::report::{self, Plan, PlannedColumn, PlannedSource};

/// `etl plan`: true when a run would be taken.
pub(crate) async fn plan(arguments: &PlanArguments) -> Result<bool, Failure> {
    let jobs = Jobs::load()?;
    let job = jobs.read(&arguments.job)?;
    let request = filled_in(&job, &arguments.set)?;
    let books = Books::open().await?;
    let spec = checkable(&request);
    let target = books.plan_target(&spec, &jobs.schemas).await?;
    let rival = books.rival(&job, &request, false).await?;
    let plan = Plan {
        source: source(&job),
        columns: request.spec.columns.iter().map(column).collect(),
        refused: rival.map(|rival| rival.sentence()),
        settings: settings(&request.spec.target),
        target_table: qualified(&job),
        target,
        job: job.spec.name,
        description: job.description,
        parameters: request.parameters,
        sql: request.sql,
    };
    report::planned(&plan, arguments.json)?;
    Ok(plan.is_fine())
}

fn qualified(job: &Job) -> String {
    let (schema, table) = job.spec.target.schema_and_table();
    format!("{schema}.{table}")
}

fn source(job: &Job) -> PlannedSource {
    let source = &job.source;
    PlannedSource {
        database: source.database.clone(),
        catalog: source.catalog.clone(),
        workgroup: source.workgroup.clone(),
        output_location: source.output_location.clone(),
        results: match source.results {
            Results::Auto => "auto",
            Results::S3 => "s3",
            Results::Api => "api",
        },
        max_scanned: source.max_scanned,
        timeout: humantime::format_duration(source.timeout).to_string(),
    }
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
        changes: changes(spec),
        rules: spec.rules.iter().map(rule).collect(),
    }
}

/// What is done to a value before it is checked, or takes its place.
fn changes(spec: &ColumnSpec) -> Vec<String> {
    let Ok(Value::Object(mut settings)) = serde_json::to_value(spec) else {
        return Vec::new();
    };
    for told in [
        "source",
        "name",
        "type",
        "rules",
        "parameter",
        "requested_at",
    ] {
        settings.remove(told);
    }
    settings.iter().map(setting).collect()
}

fn setting((name, value): (&String, &Value)) -> String {
    match value {
        Value::Bool(true) => name.clone(),
        value => format!("{name} = {value}"),
    }
}

/// As it stands in the job, without the braces: `none_of = ["A1", "A2"]`.
fn rule(rule: &Rule) -> String {
    match serde_json::to_value(rule) {
        Ok(Value::Object(entries)) => entries.iter().map(setting).collect::<Vec<_>>().join(", "),
        _ => format!("{rule:?}"),
    }
}

/// All that the job says of its target, as it says it: `mode`, `key`, `publish` and the rest.
fn settings(target: &Target) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    if let Ok(Value::Object(entries)) = serde_json::to_value(target) {
        for (name, value) in entries {
            match value {
                Value::Null => {}
                _ if name == "table" => {}
                _ if name == "replace_where" => {
                    let window = target.replace_where.as_ref().map(ToString::to_string);
                    settings.push((name, window.unwrap_or_default()));
                }
                Value::String(text) => settings.push((name, text)),
                Value::Array(items) => {
                    let items: Vec<_> = items
                        .iter()
                        .map(|item| {
                            item.as_str()
                                .map_or_else(|| item.to_string(), str::to_owned)
                        })
                        .collect();
                    settings.push((name, items.join(", ")));
                }
                value => settings.push((name, value.to_string())),
            }
        }
    }
    settings
}
