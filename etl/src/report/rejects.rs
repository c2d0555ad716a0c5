//! `etl rejects`: the quarantine.

use super::{align_numbers, note, number, print, print_json, shortened, table};
use crate::Failure;
use crate::books::{Books, RejectedRow, Run};

/// `etl rejects RUN`.
pub(crate) async fn rejects(
    books: &Books,
    run: &Run,
    limit: u32,
    json: bool,
) -> Result<(), Failure> {
    if json {
        return print_json(&books.rejected_rows(run, None).await?);
    }
    let counts = books.reject_counts(run).await?;
    if counts.is_empty() {
        return print(&format!("no row of {} was rejected", run.run_id));
    }
    let mut summary = table(&["column", "rule", "rows"]);
    for count in &counts {
        summary.add_row([
            count.column_name.clone().unwrap_or_default(),
            count.rule.clone(),
            number(count.rows),
        ]);
    }
    align_numbers(&mut summary, 2..3);
    print(&summary.to_string())?;
    let mut listed = table(&["row", "column", "rule", "reason", "raw values"]);
    for row in books.rejected_rows(run, Some(limit)).await? {
        let RejectedRow {
            row_number,
            column_name,
            rule,
            reason,
            raw,
            ..
        } = row;
        let raw = raw.map_or_else(|| "pruned".to_owned(), |raw| raw.0.get().to_owned());
        listed.add_row([
            number(row_number),
            column_name.unwrap_or_default(),
            rule,
            reason,
            shortened(&raw, 200),
        ]);
    }
    print(&listed.to_string())?;
    if run.rows_rejected > i64::from(limit) {
        note(&format!(
            "the first {limit} of {}; --limit shows more, --json all",
            number(run.rows_rejected)
        ));
    }
    Ok(())
}
