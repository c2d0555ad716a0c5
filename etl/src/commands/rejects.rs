//! `etl rejects`: the rejected rows of runs; counted and listed for people, exported for programs.

mod csv;

use std::io::{self, BufWriter, ErrorKind, Write, stdout};

use anyhow::Context;
use comfy_table::Table;

use super::Command;
use crate::Failure;
use crate::output::{note, number, print, shortened, size, table};
use crate::select::{self, Which};
use crate::store;
use ledger::{Generation, QuarantinedRow, RejectCount, RejectFilter, RunFilter, Store};

/// Show the rows that were rejected, and why.
#[derive(Debug, clap::Args)]
#[command(group = select::required(), after_help = "\
Examples:
  etl rejects clicks-20180409 --limit 5
  etl rejects --job clicks --rule none_of
  etl rejects --job clicks --state held
  etl rejects --job clicks --last --export csv > rejected.csv")]
pub struct Arguments {
    #[command(flatten)]
    pub which: Which,
    /// Only rows that broke this rule.
    #[arg(long)]
    pub rule: Option<String>,
    /// Only rows that broke a rule of this column.
    #[arg(long)]
    pub column: Option<String>,
    /// The most rows: 20 of a list, all of an export.
    #[arg(long)]
    pub limit: Option<u32>,
    /// Every row with its raw values, for another program. In CSV, NULL is an empty field and the empty string is "".
    #[arg(long, value_enum, conflicts_with = "json")]
    pub export: Option<ExportFormat>,
    /// Print JSON: one array, every row with its raw values.
    #[arg(long)]
    pub json: bool,
}

/// The format of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportFormat {
    Csv,
    Json,
}

/// Rows of a list without `--limit`.
const DEFAULT_LIMIT: u32 = 20;

/// The rejected rows of these runs: counts by column and rule, and the first rows.
pub async fn plan(
    store: &Store,
    runs: &[Generation],
    filter: RejectFilter<'_>,
    limit: u32,
) -> Result<(Vec<RejectCount>, Vec<QuarantinedRow>), Failure> {
    let counts = store.reject_counts(runs, filter).await?;
    let mut left = i64::from(limit);
    let mut rows = Vec::new();
    for run in runs {
        let keep = |row| {
            rows.push(row);
            true
        };
        store
            .each_rejected_row(run, filter, Some(left), keep)
            .await?;
        left = i64::from(limit) - size(&rows);
        if left <= 0 {
            break;
        }
    }
    Ok((counts, rows))
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let store = store::open().await?;
        let among = RunFilter {
            only_with_rejects: !self.which.last,
            limit: u32::MAX,
            ..RunFilter::default()
        };
        let runs = self.which.found(&store, among).await?;
        let runs: Vec<_> = runs.iter().map(Generation::from).collect();
        let filter = RejectFilter {
            rule: self.rule.as_deref(),
            column: self.column.as_deref(),
        };
        let limit = self.limit.map(i64::from);
        match (self.export, self.json) {
            (Some(ExportFormat::Csv), _) => {
                let columns = columns(&store, &runs, filter).await?;
                let line = |row: &QuarantinedRow| csv::row(&columns, row);
                export(
                    &store,
                    &runs,
                    filter,
                    limit,
                    [&csv::header(&columns), ""],
                    line,
                )
                .await?;
            }
            (Some(ExportFormat::Json), _) | (None, true) => {
                let mut before = "\n";
                let line = |row: &QuarantinedRow| {
                    let before = std::mem::replace(&mut before, ",\n");
                    Ok(before.to_owned() + &serde_json::to_string(row)?)
                };
                export(&store, &runs, filter, limit, ["[", "\n]\n"], line).await?;
            }
            (None, false) => {
                let limit = self.limit.unwrap_or(DEFAULT_LIMIT);
                let (counts, rows) = plan(&store, &runs, filter, limit).await?;
                self.list(&runs, &counts, &rows)?;
            }
        }
        Ok(true)
    }
}

impl Arguments {
    fn list(
        &self,
        runs: &[Generation],
        counts: &[RejectCount],
        rows: &[QuarantinedRow],
    ) -> Result<(), Failure> {
        let are_several = !self.which.is_one();
        if counts.is_empty() {
            let whose = match (runs, &self.which.job) {
                ([run], _) => run.run_id.clone(),
                (_, Some(job)) => format!("the job {job}"),
                _ => "these runs".to_owned(),
            };
            let is_filtered = self.rule.is_some() || self.column.is_some();
            let by = if is_filtered {
                " by that rule or in that column"
            } else {
                ""
            };
            return print(&format!("no row of {whose} was rejected{by}"));
        }
        print(&summary(are_several, counts).to_string())?;
        if !rows.is_empty() {
            print(&format!("\n{}", list(are_several, rows)))?;
        }
        let all: i64 = counts.iter().map(|count| count.rows).sum();
        if all > size(rows) {
            note(&format!(
                "these are the first {} of {}; --limit lists more, --rule and --column filter, --export csv or json writes all",
                rows.len(),
                number(all)
            ));
        }
        Ok(())
    }
}

fn summary(are_several: bool, counts: &[RejectCount]) -> Table {
    let header = ["column", "rule", "rows", "runs"];
    let width = if are_several { 4 } else { 3 };
    let rows = counts.iter().map(|count| {
        let row = [
            count.column_name.clone().unwrap_or_default(),
            count.rule.clone(),
            number(count.rows),
            number(count.runs),
        ];
        row.into_iter().take(width)
    });
    table(&header[..width], 2..4, rows)
}

fn list(are_several: bool, rows: &[QuarantinedRow]) -> Table {
    let header = ["run", "row", "column", "rule", "reason", "raw values"];
    // Of one run, its name is not repeated.
    let first = usize::from(!are_several);
    let rows = rows.iter().map(|row| {
        let raw = row.raw.as_ref().map_or("pruned", |raw| raw.0.get());
        let row = [
            row.run_id.clone(),
            number(row.row_number),
            row.column_name.clone().unwrap_or_default(),
            row.rule.clone(),
            row.reason.clone(),
            shortened(raw, 200),
        ];
        row.into_iter().skip(first)
    });
    table(&header[first..], 1 - first..2 - first, rows)
}

/// The columns of the raw values in their order, of all runs.
async fn columns(
    store: &Store,
    runs: &[Generation],
    filter: RejectFilter<'_>,
) -> Result<Vec<String>, Failure> {
    let mut columns: Vec<String> = Vec::new();
    for run in runs {
        for sample in store.reject_samples(run, filter).await? {
            for (name, _) in csv::values(&sample)? {
                if !columns.contains(&name) {
                    columns.push(name);
                }
            }
        }
    }
    Ok(columns)
}

/// Writes the rows between a beginning and an end, as they come from the database. A reader that closed the pipe is not an
/// error.
async fn export(
    store: &Store,
    runs: &[Generation],
    filter: RejectFilter<'_>,
    limit: Option<i64>,
    [beginning, end]: [&str; 2],
    mut line: impl FnMut(&QuarantinedRow) -> anyhow::Result<String>,
) -> Result<(), Failure> {
    let export = async {
        let mut out = BufWriter::new(stdout());
        let mut left = limit;
        out.write_all(beginning.as_bytes())?;
        for run in runs {
            let (mut written, mut rows) = (Ok(()), 0);
            let write = |row| {
                written = line(&row).and_then(|line| Ok(out.write_all(line.as_bytes())?));
                rows += 1;
                written.is_ok()
            };
            store.each_rejected_row(run, filter, left, write).await?;
            written?;
            left = left.map(|left| left - rows);
        }
        out.write_all(end.as_bytes())?;
        anyhow::Ok(out.flush()?)
    };
    match export.await {
        Err(error)
            if error
                .downcast_ref()
                .is_some_and(|error: &io::Error| error.kind() == ErrorKind::BrokenPipe) =>
        {
            Ok(())
        }
        written => Ok(written.context("cannot export the rejected rows")?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::on_a_terminal;

    fn row(number: i64, column: Option<&str>, raw: Option<&str>) -> QuarantinedRow {
        QuarantinedRow {
            run_id: "daily-2018-04-02".into(),
            generation: 0,
            first_row: 6_588,
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
    fn rejects_of_a_run_and_of_a_job_on_a_terminal() {
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
        for are_several in [false, true] {
            shown.push(on_a_terminal(summary(are_several, &counts), 110));
            shown.push(on_a_terminal(list(are_several, &rows), 110));
        }
        insta::assert_snapshot!(shown.join("\n\n"));
    }
}
