//! `etl rejects`: the quarantine of a run, or of all runs of a job; grouped and listed for people, as a
//! whole for other programs.

mod csv;

use std::io::{BufWriter, ErrorKind, Stdout, Write, stdout};

use anyhow::{Context, anyhow};
use futures::TryStreamExt;

use crate::books::{Books, Generation, RejectFilter, RejectedRow};
use crate::cli::{ExportFormat, RejectsArguments};
use crate::{Failure, report};

/// How many rows are listed when nobody says.
const LISTED: u32 = 20;

/// Runs `etl rejects`.
pub(crate) async fn run(arguments: &RejectsArguments) -> Result<bool, Failure> {
    let books = Books::open().await?;
    let runs = match (&arguments.run, &arguments.job) {
        (Some(run), _) => vec![Generation::from(&books.find(run).await?)],
        (None, Some(job)) => books.runs_with_rejects(job).await?,
        (None, None) => Vec::new(),
    };
    let filter = RejectFilter {
        rule: arguments.rule.as_deref(),
        column: arguments.column.as_deref(),
    };
    let limit = arguments.limit.map(i64::from);
    match (arguments.export, arguments.json) {
        (Some(ExportFormat::Csv), _) => {
            let mut sheet = csv::Sheet::new(columns(&books, &runs, filter).await?);
            let header = sheet.header().to_owned();
            let write = |out: &mut Output, row: &RejectedRow| out.write(sheet.line(row)?);
            export(&books, &runs, filter, limit, [&header, ""], write).await?;
        }
        (Some(ExportFormat::Json), _) | (None, true) => {
            let mut before = "\n";
            let write = |out: &mut Output, row: &RejectedRow| {
                out.write(std::mem::replace(&mut before, ",\n"))?;
                out.write(&serde_json::to_string(row).context("cannot write JSON")?)
            };
            export(&books, &runs, filter, limit, ["[", "\n]\n"], write).await?;
        }
        (None, false) => list(&books, arguments, &runs, filter).await?,
    }
    Ok(true)
}

/// Counts by column and rule, and the first rows.
async fn list(
    books: &Books,
    arguments: &RejectsArguments,
    runs: &[Generation],
    filter: RejectFilter<'_>,
) -> Result<(), Failure> {
    let whose = match (&arguments.job, runs) {
        (Some(job), _) => format!("the job {job}"),
        (None, [run]) => run.run_id.clone(),
        (None, _) => String::new(),
    };
    let counts = books.reject_counts(runs, filter).await?;
    let mut left = i64::from(arguments.limit.unwrap_or(LISTED));
    let mut rows = Vec::new();
    for run in runs {
        let found: Vec<_> = books
            .rejected_rows(run, filter, Some(left))
            .try_collect()
            .await
            .context("cannot read the rejected rows")?;
        left -= i64::try_from(found.len()).unwrap_or(i64::MAX);
        rows.extend(found);
        if left <= 0 {
            break;
        }
    }
    let is_filtered = filter.rule.is_some() || filter.column.is_some();
    report::rejects(&whose, arguments.job.is_some(), is_filtered, &counts, &rows)
}

/// Every column of the raw values, in their order; of several runs those that one has and another
/// has not, too.
async fn columns(
    books: &Books,
    runs: &[Generation],
    filter: RejectFilter<'_>,
) -> Result<Vec<String>, Failure> {
    let mut columns: Vec<String> = Vec::new();
    for run in runs {
        for sample in books.reject_samples(run, filter).await? {
            for (name, _) in csv::values(&sample)? {
                if !columns.contains(&name) {
                    columns.push(name);
                }
            }
        }
    }
    Ok(columns)
}

/// Writes every row between a beginning and an end, one after the other as they come.
async fn export(
    books: &Books,
    runs: &[Generation],
    filter: RejectFilter<'_>,
    limit: Option<i64>,
    [beginning, end]: [&str; 2],
    mut write: impl FnMut(&mut Output, &RejectedRow) -> anyhow::Result<()>,
) -> Result<(), Failure> {
    let mut out = Output(Some(BufWriter::new(stdout())));
    let mut left = limit;
    out.write(beginning)?;
    for run in runs {
        if left.is_some_and(|left| left <= 0) || out.0.is_none() {
            break;
        }
        let mut rows = std::pin::pin!(books.rejected_rows(run, filter, left));
        while let Some(row) = rows
            .try_next()
            .await
            .context("cannot read the rejected rows")?
        {
            write(&mut out, &row)?;
            left = left.map(|left| left - 1);
            if out.0.is_none() {
                break;
            }
        }
    }
    out.write(end)?;
    Ok(out.flush()?)
}

/// Standard output; nothing once its reader went away, which is no error.
struct Output(Option<BufWriter<Stdout>>);

impl Output {
    fn write(&mut self, text: &str) -> anyhow::Result<()> {
        let written = self.0.as_mut().map(|out| out.write_all(text.as_bytes()));
        self.settle(written)
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        let flushed = self.0.as_mut().map(Write::flush);
        self.settle(flushed)
    }

    fn settle(&mut self, done: Option<std::io::Result<()>>) -> anyhow::Result<()> {
        match done {
            None | Some(Ok(())) => Ok(()),
            Some(Err(error)) if error.kind() == ErrorKind::BrokenPipe => {
                // What is in the buffer cannot be written any more, and dropping it would try.
                if let Some(out) = self.0.take() {
                    drop(out.into_parts());
                }
                Ok(())
            }
            Some(Err(error)) => Err(anyhow!(error).context("cannot print")),
        }
    }
}
