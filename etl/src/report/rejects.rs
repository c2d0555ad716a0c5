//! `etl rejects`: the quarantine, for people.

use super::{align_numbers, note, number, print, shortened, table};
use crate::Failure;
use crate::books::{RejectCount, RejectedRow};

/// How many rows broke which rule, and the first of them. `whose`: a run, or a job.
pub(crate) fn rejects(
    whose: &str,
    is_job: bool,
    counts: &[RejectCount],
    rows: &[RejectedRow],
) -> Result<(), Failure> {
    if counts.is_empty() {
        return print(&format!("no row of {whose} was rejected"));
    }
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
    print(&summary.to_string())?;
    if !rows.is_empty() {
        print("")?;
        list(is_job, rows)?;
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

fn list(is_job: bool, rows: &[RejectedRow]) -> Result<(), Failure> {
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
    print(&listed.to_string())
}
