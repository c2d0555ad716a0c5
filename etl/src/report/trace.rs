//! `etl trace`.

use serde_json::json;

use super::{note, number, print, print_json, shortened};
use crate::Failure;
use crate::books::{Origin, TracedRow};

/// The rows of each batch, and where that came from.
pub(crate) fn trace(
    rows: &[TracedRow],
    origins: &[Origin],
    limit: u32,
    json: bool,
) -> Result<(), Failure> {
    if rows.len() >= limit as usize {
        note(&format!(
            "the first {limit} rows; there may be more, --limit looks at more"
        ));
    }
    if json {
        return print_json(&json!({ "rows": rows, "origins": origins }));
    }
    if rows.is_empty() {
        note("no row meets the condition");
    }
    for origin in origins {
        let of_it: Vec<_> = rows
            .iter()
            .filter(|row| row.batch == Some(origin.batch))
            .collect();
        print(&described(origin, &of_it))?;
    }
    let others = rows
        .iter()
        .filter(|row| !origins.iter().any(|origin| Some(origin.batch) == row.batch));
    let others = others.count();
    if others > 0 {
        note(&format!(
            "{others} of the rows were written by nothing that these books know"
        ));
    }
    Ok(())
}

fn described(origin: &Origin, rows: &[&TracedRow]) -> String {
    let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
    let place = match (origin.first_row, origin.rows_extracted) {
        (Some(first), Some(count)) => format!(
            "{} of the run: rows {} to {} of the result, loaded {}",
            origin.seq,
            number(first),
            number(first + count - 1),
            or_unknown(&origin.loaded_at)
        ),
        _ => format!(
            "{} of the run, which is not in its ledger: a replay is under way, or somebody wrote the row",
            origin.seq
        ),
    };
    let parameters: Vec<_> = origin
        .parameters
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let by = origin
        .requested_by
        .as_ref()
        .map(|user| format!(" by {user}"))
        .unwrap_or_default();
    let mut lines: Vec<(&str, String)> = rows
        .iter()
        .map(|row| ("row", shortened(row.row.0.get(), 300)))
        .collect();
    lines.extend([
        ("batch", place),
        (
            "run",
            format!(
                "{} (number {}, generation {}, {})",
                origin.run_id, origin.run_no, origin.generation, origin.state
            ),
        ),
        ("requested", format!("{}{by}", origin.requested_at)),
        ("job", format!("{} {}", origin.job, parameters.join(" "))),
        ("query", or_unknown(&origin.query_execution_id)),
        ("result", or_unknown(&origin.result_id)),
        (
            "object",
            origin.result_location.clone().unwrap_or_else(|| {
                "none that is known: read as pages, or by an older version".to_owned()
            }),
        ),
        ("sql", origin.sql.replace('\n', "\n            ")),
    ]);
    let lines: Vec<_> = lines
        .iter()
        .map(|(name, value)| format!("{name:>10}  {}", value.trim_end()))
        .collect();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<TracedRow> {
        let raw = r#"{"url":"https://example.org/","country_code":"CH","_batch":117440515}"#;
        let raw = serde_json::value::RawValue::from_string(raw.to_owned()).unwrap();
        vec![TracedRow {
            batch: Some(117_440_515),
            row: sqlx::types::Json(raw),
        }]
    }

    fn origin() -> Origin {
        Origin {
            batch: 117_440_515,
            run_id: "daily-2018-04-02".into(),
            run_no: 7,
            seq: 3,
            generation: 1,
            job: "clicks".into(),
            state: "completed".into(),
            requested_by: Some("ana".into()),
            requested_at: "2018-04-03T02:00:00.000Z".into(),
            first_row: Some(6_588),
            rows_extracted: Some(2_196),
            loaded_at: Some("2018-04-03T02:00:09.120Z".into()),
            query_execution_id: Some("4bcb4933-3458-4a18-8ecc-9a59b114d0c5".into()),
            result_id: Some(
                "4bcb4933-3458-4a18-8ecc-9a59b114d0c5:\"9b2cf535f27731c974343645a3985328\"".into(),
            ),
            result_location: Some("s3://results/4bcb4933-3458-4a18-8ecc-9a59b114d0c5.csv".into()),
            parameters: [("from".to_owned(), "2018-04-02".to_owned())].into(),
            sql: "SELECT url, country_code\nFROM clicks\nWHERE date = DATE '2018-04-02'\n".into(),
        }
    }

    #[test]
    fn on_a_terminal_and_as_json() {
        let (rows, origin) = (rows(), origin());
        // While a replay is under way, and of a run that was read as pages.
        let unproven = Origin {
            first_row: None,
            rows_extracted: None,
            loaded_at: None,
            requested_by: None,
            result_location: None,
            ..origin.clone()
        };
        let of_it: Vec<_> = rows.iter().collect();
        let json = json!({ "rows": rows, "origins": [&origin] });
        insta::assert_snapshot!(format!(
            "{}\n{}\n{}",
            described(&origin, &of_it),
            described(&unproven, &[]),
            serde_json::to_string_pretty(&json).unwrap()
        ));
    }
}
