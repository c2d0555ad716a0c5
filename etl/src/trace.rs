//! `etl trace`: from rows of a target table to their batches, runs, queries and results.

use std::collections::BTreeSet;

use crate::books::Books;
use crate::cli::TraceArguments;
use crate::{Failure, report};

/// Runs `etl trace`: true when there is a row, and the books know each that there is.
pub(crate) async fn run(arguments: &TraceArguments) -> Result<bool, Failure> {
    let books = Books::open().await?;
    let table = arguments
        .table
        .split_once('.')
        .unwrap_or(("public", &arguments.table));
    let rows = books
        .traced_rows(table, &arguments.condition, arguments.limit)
        .await?;
    let batches: BTreeSet<i64> = rows.iter().filter_map(|row| row.batch).collect();
    let batches: Vec<i64> = batches.into_iter().collect();
    let origins = books.origins(&batches).await?;
    report::trace(&rows, &origins, arguments.limit, arguments.json)?;
    let known = |row: &crate::books::TracedRow| {
        origins
            .iter()
            .any(|origin| Some(origin.batch) == row.batch && origin.first_row.is_some())
    };
    Ok(!rows.is_empty() && rows.iter().all(known))
}
