//! `extractor sample`: a few rows of a job's result, with their types, and what the job's rules
//! would say. Athena is asked with a LIMIT around the job's own query; nothing is loaded.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use comfy_table::{ContentArrangement, Table, presets};
use common::Rows;
use common::job::Job;
use common::message::{BatchId, RawBatch, RejectedRow, RunId};
use common::schema::{self, Origin, ResultColumn};
use serde::Serialize;
use transformer::{Plan, check_job, transform};

use super::{Failure, SampleArguments, fresh_name, note, print, print_json, read_job};
use crate::athena::{PageRow, Query};
use crate::aws::{self, AwsError, Patience};
use crate::query::{self, Started};
use crate::session::Clients;
use crate::settings::Settings;

/// More of a value is not shown in a table.
const SHOWN: usize = 60;

/// What was found out.
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
    /// By the row's place in `rows`, from 0.
    rejected: Vec<RejectedRow>,
}

/// A column of the target.
#[derive(Debug, Serialize)]
struct Column {
    /// None for one that the job fills by itself.
    source: Option<String>,
    athena_type: Option<String>,
    name: String,
    pg_type: String,
}

pub(super) async fn run(arguments: SampleArguments) -> Result<bool, Failure> {
    let misuse = |error: anyhow::Error| {
        Failure::Misuse(error.context(format!("cannot sample the job {}", arguments.job)))
    };
    let job = read_job(&arguments.job)?;
    let set: BTreeMap<_, _> = arguments.set.iter().cloned().collect();
    if set.len() < arguments.set.len() {
        return Err(misuse(anyhow!("a parameter is set twice")));
    }
    let request = job.request(&set).map_err(|error| misuse(error.into()))?;
    let asked = Job {
        spec: request.spec.asked_at(jiff::Timestamp::now()),
        ..job
    };
    check_job(&asked.spec).map_err(|error| misuse(error.into()))?;
    let sql = limited(&request.sql, arguments.rows);
    let settings: Settings =
        common::settings::load().map_err(|error| Failure::Misuse(error.into()))?;
    let config = aws::configure(Patience::Command)
        .await
        .map_err(|error| Failure::Untrue(error.into()))?;
    let clients = Clients::of(&config, &settings);
    let sample = ask(&clients, asked, sql, arguments.rows).await?;
    if arguments.json {
        print_json(&sample)?;
    } else {
        show(&sample, arguments.rows)?;
    }
    Ok(true)
}

/// The query with at most so many rows. On lines of its own, since it may end in a comment.
fn limited(sql: &str, rows: u32) -> String {
    let sql = sql.trim_end().trim_end_matches(';');
    format!("SELECT * FROM (\n{sql}\n) LIMIT {rows}")
}

async fn ask(clients: &Clients, job: Job, sql: String, rows: u32) -> Result<Sample, Failure> {
    let run = fresh_name("sample")?;
    let query = Query {
        run: &run,
        sql: &sql,
        source: &job.source,
        attempt: 1,
    };
    let id = clients.athena.start(query).await.map_err(hinted)?;
    note(&format!(
        "asked Athena (query {id}) for {rows} rows with a LIMIT, which does not bound what it scans"
    ));
    // Whoever loses his patience does not pay for the rest.
    let bytes_scanned = tokio::select! {
        ended = ended(clients, &job, &id) => ended?,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.context("cannot listen for an interrupt")?;
            clients.athena.stop(&id).await.map_err(hinted)?;
            return Err(anyhow!("interrupted; the query {id} was stopped").into());
        }
    };
    let page = clients.athena.page(&id, None).await.map_err(hinted)?;
    let columns = page.columns.clone();
    let mut values = Rows::new(columns.len());
    // The first row is the names.
    for row in page.rows().skip(1).map(PageRow::values) {
        if row.len() != columns.len() {
            return Err(anyhow!(
                "Athena gave a row of {} values for {} columns",
                row.len(),
                columns.len()
            )
            .into());
        }
        values.push(row);
    }
    judged(job, sql, &run, id, bytes_scanned, columns, values)
}

/// Waits for the query, within the job's limits: the bytes that it scanned.
async fn ended(clients: &Clients, job: &Job, id: &str) -> Result<u64, Failure> {
    let started = Started::now(id, &job.source);
    match query::wait_to_the_end(&clients.athena, started)
        .await
        .map_err(hinted)?
    {
        Ok(execution) => Ok(execution.bytes_scanned),
        Err(reason) => Err(anyhow!(reason).into()),
    }
}

/// Puts the rows through the job as a transformer would.
fn judged(
    job: Job,
    sql: String,
    run: &RunId,
    query_execution_id: String,
    bytes_scanned: u64,
    columns: Vec<ResultColumn>,
    rows: Rows,
) -> Result<Sample, Failure> {
    let cannot = || format!("the result of the job {} cannot be loaded", job.spec.name);
    let resolved =
        schema::resolve(&job.spec.columns, &columns, &job.spec.target.key).with_context(cannot)?;
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
            run: run.clone(),
            generation: 0,
            seq: 0,
        },
        first_row: 0,
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

fn hinted(error: AwsError) -> Failure {
    let hint = error.hint();
    let error = anyhow::Error::from(error);
    Failure::Untrue(match hint {
        Some(hint) => error.context(hint),
        None => error,
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

/// A value in a table: NULL is told from the empty string, and nothing breaks the line.
fn shown(value: Option<&str>) -> String {
    match value {
        None => "NULL".to_owned(),
        Some("") => "''".to_owned(),
        Some(text) => {
            let mut shown: String = text.chars().take(SHOWN).collect();
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
    fn a_limit_goes_around_any_query() {
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
    fn null_and_the_empty_string_are_shown_as_two_things() {
        assert_eq!(shown(None), "NULL");
        assert_eq!(shown(Some("")), "''");
        assert_eq!(shown(Some("a\nb")), "a b");
        assert_eq!(shown(Some(&"é".repeat(61))), "é".repeat(60) + "...");
    }
}
