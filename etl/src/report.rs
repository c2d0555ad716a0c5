//! What `etl` prints: tables for people, JSON for scripts, both on standard output.

mod dead;
mod reconcile;
mod rejects;
mod run;
mod runs;

use std::io::{Write, stdout};

use anyhow::Context;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::HumanCount;
use serde::Serialize;

pub(crate) use dead::{dead_letter, dead_letters, nothing_missing, replayed, restored};
pub(crate) use reconcile::reconcile;
pub(crate) use rejects::rejects;
pub(crate) use run::{outcome, requested, status};
pub(crate) use runs::runs;

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

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(&serde_json::to_string_pretty(value).context("cannot write JSON")?)
}

fn number(rows: i64) -> String {
    HumanCount(u64::try_from(rows).unwrap_or(0)).to_string()
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
