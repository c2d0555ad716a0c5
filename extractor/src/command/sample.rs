//! `extractor sample`: a few rows of a job's result, with their types and what the job's rules would reject. The query is the
//! job's own with a LIMIT around it; nothing is loaded.

use std::sync::Arc;

use anyhow::{Context, anyhow};
use comfy_table::{ContentArrangement, Table, presets};
use common::Rows;
use common::command::{Failure, assignment, assignments, note, print, print_json};
use common::job::{Job, Origin, resolve};
use common::message::{BatchId, RawBatch, RejectedRow};
use common::schema::ResultColumn;
use serde::Serialize;
use transformer::{Plan, check_job, transform};

use super::{clients, fresh_name, hinted, read_job, to_the_end};
use crate::session::Clients;

/// Query a few rows of a job: their types, and what the rules would reject.
///
/// Nothing is loaded. Athena charges for what it scans, which a LIMIT does not bound.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  extractor sample most_visited_url --rows 5\n  extractor sample most_visited_url --set from=2018-04-03 --json"
)]
pub struct Arguments {
    /// The job: the name of a file in `ETL_JOBS`, without .toml.
    job: String,
    /// How many rows.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=MAX_ROWS))]
    rows: u32,
    /// Set a parameter of the job; the others have their defaults.
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    set: Vec<(String, String)>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The most rows of a sample: those of one page of `GetQueryResults`, without its header.
const MAX_ROWS: i64 = 999;

/// Characters of a value that a table shows.
const MAX_CHARACTERS: usize = 60;

/// A sample of a result.
#[derive(Debug, Serialize)]
struct Sample {
    job: String,
    sql: String,
    query_execution_id: String,
    bytes_scanned: u64,
    columns: Vec<Column>,
    /// The names of the result's columns.
    header: Vec<String>,
    /// Values as Athena gave them, in the result's order.
    rows: Vec<Vec<Option<String>>>,
    /// By the index of the row in `rows`, from 0.
    rejected: Vec<RejectedRow>,
}

/// A column of the target.
#[derive(Debug, Serialize)]
struct Column {
    /// None for a column that the job fills in.
    source: Option<String>,
    athena_type: Option<String>,
    name: String,
    pg_type: String,
}

pub(super) async fn run(arguments: Arguments) -> Result<bool, Failure> {
    let job = read_job(&arguments.job)?;
    let (set, now) = (assignments(&arguments.set)?, jiff::Timestamp::now());
    let filled_in = || -> anyhow::Result<_> {
        let request = job.request(&job.resolve(&set, None, now))?;
        let spec = request.spec.with_requested_at(now);
        check_job(&spec)?;
        Ok((spec, limited(&request.sql, arguments.rows)))
    };
    let (spec, sql) = filled_in()
        .with_context(|| format!("cannot sample the job {}", arguments.job))
        .map_err(Failure::Usage)?;
    let job = Job { spec, ..job };
    let clients = clients(&job.source).await?;
    let sample = query(&clients, job, sql, arguments.rows).await?;
    if arguments.json {
        print_json(&sample)?;
    } else {
        show(&sample, arguments.rows)?;
    }
    Ok(true)
}

/// The query with at most so many rows. On lines of its own, since it may end in a comment.
pub(super) fn limited(sql: &str, rows: u32) -> String {
    let sql = sql.trim_end().trim_end_matches(';');
    format!("SELECT * FROM (\n{sql}\n) LIMIT {rows}")
}

async fn query(clients: &Clients, job: Job, sql: String, rows: u32) -> Result<Sample, Failure> {
    let limit = format!("the query has a LIMIT of {rows} rows, which does not bound what it scans");
    note("extractor", &limit);
    let (id, bytes_scanned) = to_the_end(clients, &job.source, &sql, "sample").await?;
    let page = clients.athena.page(&id, None).await.map_err(hinted)?;
    let columns = page.columns.clone();
    let mut values = Rows::new(columns.len());
    // The first row is the names.
    for row in page.rows().skip(1) {
        if row.len() != columns.len() {
            return Err(anyhow!(
                "Athena returned a row of {} values for {} columns",
                row.len(),
                columns.len()
            )
            .into());
        }
        values.push(row);
    }
    transformed(job, sql, id, bytes_scanned, columns, values)
}

/// Transforms the rows as a transformer does.
fn transformed(
    job: Job,
    sql: String,
    query_execution_id: String,
    bytes_scanned: u64,
    columns: Vec<ResultColumn>,
    rows: Rows,
) -> Result<Sample, Failure> {
    let cannot = || format!("cannot load the result of the job {}", job.spec.name);
    let resolved =
        resolve(&job.spec.columns, &columns, &job.spec.target.key).with_context(cannot)?;
    let plan = Plan::new(&job.spec, &columns).with_context(cannot)?;
    let shown = resolved.into_iter().map(|column| {
        let source = match column.origin {
            Origin::Result { position, .. } => columns.get(position),
            Origin::Job(_) => None,
        };
        Column {
            source: source.map(|source| source.name.clone()),
            athena_type: source.map(|source| source.type_name.clone()),
            name: column.target.name,
            pg_type: column.target.pg_type.to_string(),
        }
    });
    let shown = shown.collect();
    let header = columns.iter().map(|column| column.name.clone()).collect();
    let name = job.spec.name.clone();
    let values = rows.iter().map(|row| row.to_vec()).collect();
    let batch = RawBatch {
        id: BatchId {
            run: fresh_name("sample")?,
            generation: 0,
            first_row: 0,
        },
        is_bulk: false,
        result_id: query_execution_id.clone(),
        job: Arc::new(job.spec),
        columns: Arc::new(columns),
        rows,
    };
    let rejected = transform(&plan, batch).rejected;
    Ok(Sample {
        job: name,
        sql,
        query_execution_id,
        bytes_scanned,
        columns: shown,
        header,
        rows: values,
        rejected,
    })
}

fn show(sample: &Sample, asked: u32) -> Result<(), Failure> {
    print(&sample.sql)?;
    print("")?;
    let mut table = plain(&["column", "Postgres type", "from", "Athena type"]);
    for column in &sample.columns {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        table.add_row([
            column.name.clone(),
            column.pg_type.clone(),
            text(&column.source),
            text(&column.athena_type),
        ]);
    }
    print(&format!("{table}\n"))?;
    let names: Vec<_> = sample.header.iter().map(String::as_str).collect();
    let mut table = plain(&names);
    for row in &sample.rows {
        table.add_row(row.iter().map(|value| shown(value.as_deref())));
    }
    print(&format!("{table}\n"))?;
    for row in &sample.rejected {
        let column = row.reject.column.as_deref().unwrap_or("-");
        let (rule, reason) = (&row.reject.rule, &row.reject.reason);
        print(&format!(
            "row {}: rejected by {rule} of {column}: {reason}",
            row.row + 1
        ))?;
    }
    let (found, rejected) = (sample.rows.len(), sample.rejected.len());
    print(&format!(
        "{found} rows of at most {asked}, {rejected} of them would be rejected; Athena scanned {} bytes (query {})",
        sample.bytes_scanned, sample.query_execution_id
    ))
}

fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    table
}

/// A value in a table, on one line: NULL differs from the empty string.
fn shown(value: Option<&str>) -> String {
    match value {
        None => "NULL".to_owned(),
        Some("") => "''".to_owned(),
        Some(text) => {
            let mut shown: String = text.chars().take(MAX_CHARACTERS).collect();
            if shown.len() < text.len() {
                shown.push_str("...");
            }
            shown.replace(char::is_control, " ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_goes_around_any_query() {
        assert_eq!(
            limited("SELECT a FROM t -- all;\n", 3),
            "SELECT * FROM (\nSELECT a FROM t -- all\n) LIMIT 3"
        );
        assert_eq!(
            limited("SELECT 1 ;\n", 1),
            "SELECT * FROM (\nSELECT 1 \n) LIMIT 1"
        );
    }

    #[test]
    fn null_differs_from_the_empty_string() {
        assert_eq!(shown(None), "NULL");
        assert_eq!(shown(Some("")), "''");
        assert_eq!(shown(Some("a\nb")), "a b");
        assert_eq!(shown(Some(&"é".repeat(61))), "é".repeat(60) + "...");
    }
}
