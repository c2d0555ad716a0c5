//! A plan as people read it: the request, the columns, and what the first batch does to the target.

use comfy_table::Table;
use indicatif::DecimalBytes;

use super::{Plan, duration, timeout};
use crate::output::{self, Sheet, table};
use crate::target::TargetPlan;

pub(super) fn head(plan: &Plan) -> String {
    let source = &plan.source;
    let scanned = source
        .max_scanned
        .map(|bytes| format!(", or beyond {} scanned", DecimalBytes(bytes)));
    let results = serde_json::to_value(source.results).unwrap_or_default();
    let monthly = plan.max_scanned_per_month.map(|bytes| {
        format!(
            "; refused beyond {} scanned in a month",
            DecimalBytes(bytes)
        )
    });
    let limits = format!(
        "stopped after {}{}{}",
        timeout(source),
        scanned.unwrap_or_default(),
        monthly.unwrap_or_default()
    );
    let reuse = source
        .reuse_results
        .map(|age| format!("of an equal query within {}", duration(age)));
    let account = &source.account;
    let mut sheet = Sheet::new(13);
    sheet.add("job", output::job(&plan.job, &plan.parameters));
    for (name, value) in [
        ("about", plan.description.as_str()),
        ("database", &source.database),
        ("catalog", source.catalog.as_deref().unwrap_or_default()),
        ("workgroup", source.workgroup.as_deref().unwrap_or_default()),
        (
            "output",
            source.output_location.as_deref().unwrap_or_default(),
        ),
        ("results", results.as_str().unwrap_or_default()),
        ("reused", reuse.as_deref().unwrap_or_default()),
        ("region", account.region.as_deref().unwrap_or_default()),
        ("role", account.role_arn.as_deref().unwrap_or_default()),
        ("limits", &limits),
        ("target", &plan.target_table),
    ] {
        sheet.add_if(name, Some(value).filter(|value| !value.is_empty()));
    }
    for (name, value) in &plan.settings {
        sheet.add_if(name, Some(value).filter(|value| !value.is_empty()));
    }
    let sql = plan.sql.lines().map(|line| format!("    {line}"));
    let sql: Vec<_> = sql.map(|line| line.trim_end().to_owned()).collect();
    format!("{}\n\n{}\n", sheet.text(), sql.join("\n"))
}

pub(super) fn columns(plan: &Plan) -> Table {
    let rows = plan.columns.iter().map(|column| {
        [
            column.source.clone(),
            column.name.clone(),
            column
                .pg_type
                .clone()
                .unwrap_or_else(|| "by Athena's type".to_owned()),
            column.changes.join("; "),
            column.rules.join("; "),
        ]
    });
    table(
        &["source", "column", "type", "changes", "rules"],
        0..0,
        rows,
    )
}

pub(super) fn tail(plan: &Plan) -> String {
    let (table, job) = (&plan.target_table, &plan.job);
    let which = if plan.columns.is_empty() {
        "Every column of the query"
    } else {
        "Every other column of the query"
    };
    let mut lines = vec![
        format!(" {which} keeps its name and gets the type of its Athena type."),
        String::new(),
    ];
    if plan.connected {
        lines.clear();
    }
    let types_are_open =
        plan.columns.is_empty() || plan.columns.iter().any(|column| column.pg_type.is_none());
    match &plan.target {
        TargetPlan::Fits if types_are_open => lines.push(format!(
            "{table} exists and fits the columns that the job declares. The types of the other columns are known after the query: a column that does not fit is refused then (`extractor sample {job}` shows them before)"
        )),
        TargetPlan::Fits => lines.push(format!(
            "{table} exists and fits these columns; it does not change"
        )),
        TargetPlan::Creates { statements, with } if statements.is_empty() => {
            lines.push(format!(
                "{table} does not exist; the first batch creates it from the columns of the query's result, which are known after the query (`extractor sample {job}` shows them before). It gets:"
            ));
            lines.push(format!("    {with}"));
        }
        TargetPlan::Creates { statements, .. } => {
            let others = if plan.connected { "" } else { ", with the other columns of the query" };
            lines.push(format!(
                "{table} does not exist; the first batch creates it{others}:"
            ));
            lines.extend(indented(statements));
        }
        TargetPlan::Alters { statements } => {
            lines.push(format!("{table} exists; the first batch runs:"));
            lines.extend(indented(statements));
        }
        TargetPlan::Refused { why } => {
            let why = why.iter();
            lines.extend(why.map(|why| format!("a run would be REFUSED: {why}")));
        }
    }
    let warnings = plan.warnings.iter();
    lines.extend(warnings.map(|warning| format!("warning: {warning}")));
    lines.extend(
        plan.refused
            .iter()
            .map(|why| format!("a run would be REFUSED: {why}")),
    );
    lines.join("\n")
}

fn indented(statements: &[String]) -> impl Iterator<Item = String> {
    let lines = statements.iter().flat_map(|statement| statement.lines());
    lines.map(|line| format!("    {line}"))
}
