//! What `etl` prints: tables for people, JSON for scripts, both on standard output.

mod backfill;
mod dead;
mod decision;
mod doctor;
mod plan;
mod prune;
mod reconcile;
mod rejects;
mod replay;
mod run;
mod runs;
#[cfg(test)]
mod samples;
mod status;
mod trace;

use std::io::{Write, stdout};

use anyhow::Context;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::HumanCount;
use serde::Serialize;

pub(crate) use backfill::{WindowReport, backfilled};
pub(crate) use dead::{
    DroppedLetter, UndroppedLetter, dead_letter, dead_letters, dropped, dropped_many, one_of_many,
    replayed,
};
pub(crate) use decision::{approved, cancelled, discarded};
pub(crate) use doctor::{Finding, examined};
pub(crate) use plan::{Plan, PlannedColumn, PlannedSource, planned};
pub(crate) use prune::pruned;
pub(crate) use reconcile::{FEW, reconcile};
pub(crate) use rejects::rejects;
pub(crate) use replay::{Sent, nothing_to_replay, replayed_run};
pub(crate) use run::{outcome, requested};
pub(crate) use runs::runs;
pub(crate) use status::{Price, Status, status, watched};
pub(crate) use trace::trace;

use crate::Failure;

/// A remark to the user, beside the result.
#[expect(clippy::print_stderr, reason = "a command talks to its user")]
pub(crate) fn note(text: &str) {
    eprintln!("etl: {text}");
}

/// A result. A reader that went away (`| head`) is not an error.
fn print(text: &str) -> Result<(), Failure> {
    match writeln!(stdout().lock(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::from(error).context("cannot print").into())
        }
        _ => Ok(()),
    }
}

/// The completions for a shell, from the command's own definition.
pub(crate) fn completion(
    shell: clap_complete::Shell,
    command: &mut clap::Command,
) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "etl", &mut script);
    print(String::from_utf8_lossy(&script).trim_end())
}

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(&serde_json::to_string_pretty(value).context("cannot write JSON")?)
}

fn number(rows: i64) -> String {
    HumanCount(u64::try_from(rows).unwrap_or(0)).to_string()
}

/// `1 run`, `2 runs`.
fn counted(count: i64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{} {what}s", number(count)),
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    table
}

fn align_numbers(table: &mut Table, columns: std::ops::Range<usize>) {
    for index in columns {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// A table as a terminal of this width shows it, without the spaces at the ends of its lines.
#[cfg(test)]
fn on_a_terminal(mut table: Table, width: u16) -> String {
    table.force_no_tty().set_width(width);
    let lines: Vec<_> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n")
}
