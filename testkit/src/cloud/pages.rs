//! GetQueryResults: pages of up to 1,000 rows, of which the first page's first is the header of a SELECT.

use serde_json::{Value, json};

use super::answer::{Answer, QueryState};
use super::csv::Row;
use super::fault::{Answered, invalid, not_found};
use super::result::{Column, ResultSet};
use super::state::State;

const LONGEST_PAGE: u64 = 1_000;

pub(crate) fn results(state: &mut State, request: &Value) -> Answered {
    let id = request["QueryExecutionId"].as_str().unwrap_or_default();
    let execution = state.execution(id).ok_or_else(|| not_found(id))?;
    match execution.state {
        QueryState::Succeeded => {}
        unfinished @ (QueryState::Queued | QueryState::Running) => {
            return Err(invalid(format!(
                "Query has not yet finished. Current state: {}",
                unfinished.name()
            )));
        }
        ended => {
            return Err(invalid(format!(
                "Query did not finish successfully. Final query state: {}",
                ended.name()
            )));
        }
    }
    let most = request
        .get("MaxResults")
        .and_then(Value::as_u64)
        .unwrap_or(LONGEST_PAGE);
    if !(1..=LONGEST_PAGE).contains(&most) {
        return Err(invalid(format!(
            "MaxResults {most} is not between 1 and {LONGEST_PAGE}"
        )));
    }
    let start = match request["NextToken"].as_str() {
        None => None,
        Some(token) => {
            Some(read_token(token, id).ok_or_else(|| invalid("NextToken is not valid"))?)
        }
    };
    Ok(page(&execution.answer, id, start, most))
}

/// Opaque to the client, and good for one execution only.
fn write_token(id: &str, row: u64) -> String {
    format!("token/{id}/{row}")
}

fn read_token(token: &str, id: &str) -> Option<u64> {
    token
        .strip_prefix("token/")?
        .strip_prefix(id)?
        .strip_prefix('/')?
        .parse()
        .ok()
}

/// The page that begins with row `start`, or the first one, whose first row is the header.
fn page(answer: &Answer, id: &str, start: Option<u64>, most: u64) -> Value {
    let result = &answer.result;
    let header = (start.is_none() && answer.header).then(|| header(result));
    let count = most - u64::from(header.is_some());
    let first = start.unwrap_or(0);
    let rows: Vec<Value> = header
        .into_iter()
        .chain(result.range(first, count))
        .map(|r| row_json(&r))
        .collect();
    let next = first + count;
    let more = next < result.rows() || (answer.empty_last_page && first < result.rows());
    let mut page = json!({
        "UpdateCount": 0,
        "ResultSet": {
            "Rows": rows,
            "ResultSetMetadata": { "ColumnInfo": result.columns.iter().map(column_json).collect::<Vec<_>>() },
        },
    });
    if more {
        page["NextToken"] = json!(write_token(id, next.min(result.rows())));
    }
    page
}

fn header(result: &ResultSet) -> Row {
    result
        .columns
        .iter()
        .map(|c| Some(c.name.clone()))
        .collect()
}

/// NULL is a datum without a `VarCharValue`.
fn row_json(row: &Row) -> Value {
    let data = row.iter().map(|value| match value {
        Some(text) => json!({ "VarCharValue": text }),
        None => json!({}),
    });
    json!({ "Data": data.collect::<Vec<_>>() })
}

fn column_json(column: &Column) -> Value {
    json!({
        "CatalogName": "hive",
        "SchemaName": "",
        "TableName": "",
        "Name": column.name,
        "Label": column.name,
        "Type": column.type_name,
        "Precision": column.precision,
        "Scale": column.scale,
        "Nullable": "UNKNOWN",
        "CaseSensitive": matches!(column.type_name.as_str(), "varchar" | "char"),
    })
}
