//! `etl rejects`: the quarantine, for people.

use comfy_table::Table;

use super::{align_numbers, note, number, print, shortened, table};
use crate::Failure;
use crate::books::{RejectCount, RejectedRow};

/// How many rows broke which rule, and the first of them. `whose`: a run, or a job.
pub(crate) fn rejects(
    whose: &str,
    is_job: bool,
    is_filtered: bool,
    counts: &[RejectCount],
    rows: &[RejectedRow],
) -> Result<(), Failure> {
    if counts.is_empty() {
        let by_what = if is_filtered {
            " by that rule or in that column"
        } else {
            ""
        };
        return print(&format!("no row of {whose} was rejected{by_what}"));
    }
    print(&summary(is_job, counts).to_string())?;
    if !rows.is_empty() {
        print(&format!("\n{}", list(is_job, rows)))?;
    }
    let all: i64 = counts.iter().map(|count| count.rows).sum();
    if all > i64::try_from(rows.len()).unwrap_or(i64::MAX) {
        note(&format!(
            "the first {} of {}; --limit shows more, --rule and --column choose, --export csv or json gives all",
            rows.len(),
            number(all)
        ));
    }
    Ok(())
}

fn summary(is_job: bool, counts: &[RejectCount]) -> Table {
    let mut header = vec!["column", "rule", "rows"];
    header.extend(is_job.then_some("runs"));
    let mut summary = table(&header);
    for count in counts {
        let mut line = vec![
            count.column_name.clone().unwrap_or_default(),
            count.rule.clone(),
            number(count.rows),
        ];
        line.extend(is_job.then(|| number(count.runs)));
        summary.add_row(line);
    }
    align_numbers(&mut summary, 2..4);
    summary
}

fn list(is_job: bool, rows: &[RejectedRow]) -> Table {
    let mut header: Vec<_> = is_job.then_some("run").into_iter().collect();
    header.extend(["row", "column", "rule", "reason", "raw values"]);
    let mut listed = table(&header);
    for row in rows {
        let raw = row.raw.as_ref().map_or("pruned", |raw| raw.0.get());
        let mut line: Vec<_> = is_job.then(|| row.run_id.clone()).into_iter().collect();
        line.extend([
            number(row.row_number),
            row.column_name.clone().unwrap_or_default(),
            row.rule.clone(),
            row.reason.clone(),
            shortened(raw, 200),
        ]);
        listed.add_row(line);
    }
    align_numbers(&mut listed, usize::from(is_job)..usize::from(is_job) + 1);
    listed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::on_a_terminal;

    fn row(number: i64, column: Option<&str>, raw: Option<&str>) -> RejectedRow {
        RejectedRow {
            run_id: "daily-2018-04-02".into(),
            generation: 0,
            seq: 3,
            row_number: number,
            column_name: column.map(Into::into),
            rule: if column.is_some() {
                "not_empty"
            } else {
                "postgres"
            }
            .into(),
            reason: "the value is empty, and one is required".into(),
            raw: raw.map(|raw| sqlx::types::Json(raw_value(raw))),
        }
    }

    fn raw_value(json: &str) -> Box<serde_json::value::RawValue> {
        serde_json::value::RawValue::from_string(json.to_owned()).unwrap()
    }

    #[test]
    fn on_a_terminal_of_a_run_and_of_a_job() {
        let count = |column: Option<&str>, rows| RejectCount {
            column_name: column.map(Into::into),
            rule: if column.is_some() {
                "not_empty"
            } else {
                "postgres"
            }
            .into(),
            rows,
            runs: 2,
        };
        let counts = [count(Some("country_code"), 1_690), count(None, 3)];
        let rows = [
            row(
                7,
                Some("country_code"),
                Some(r#"{"country_code":"","url":"https://example.org/","visits":null}"#),
            ),
            row(12_007, None, None),
        ];
        let mut shown = Vec::new();
        for is_job in [false, true] {
            shown.push(on_a_terminal(summary(is_job, &counts), 110));
            shown.push(on_a_terminal(list(is_job, &rows), 110));
        }
        insta::assert_snapshot!(shown.join("\n\n"));
    }
}
