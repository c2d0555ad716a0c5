//! What every command prints with: tables and sheets for people, JSON for scripts, numbers, notes.

pub mod phase;
pub mod progress;
pub mod run;
#[cfg(test)]
pub(crate) mod samples;
pub mod terminal;

use std::collections::BTreeMap;
use std::ops::Range;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use indicatif::HumanCount;
use serde::Serialize;

pub use common::command::{print, print_json};
pub use terminal::Terminal;

use crate::Failure;

/// Prints a note beside the result.
pub fn note(text: &str) {
    common::command::note("etl", text);
}

/// Prints notes beside the result.
pub fn notes<'a>(texts: impl IntoIterator<Item = &'a String>) {
    for text in texts {
        note(text);
    }
}

/// Prints a result as JSON, or as the text for a person.
pub fn show<T: Serialize>(
    json: bool,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    if json {
        print_json(value)
    } else {
        print(&text(value))
    }
}

/// `12,345`.
pub fn number(rows: i64) -> String {
    HumanCount(u64::try_from(rows).unwrap_or(0)).to_string()
}

/// `1 row`, `2 rows`; `1 batch`, `2 batches`.
pub fn counted(count: i64, what: &str) -> String {
    let plural = if what.ends_with("ch") { "es" } else { "s" };
    match count {
        1 => format!("1 {what}"),
        _ => format!("{} {what}{plural}", number(count)),
    }
}

/// A collection's size as the database counts.
pub fn size<T>(items: &[T]) -> i64 {
    i64::try_from(items.len()).unwrap_or(i64::MAX)
}

/// A table without lines, whose columns in `numbers` are aligned to the right.
pub fn table<R: IntoIterator<Item: Into<Cell>>>(
    header: &[&str],
    numbers: Range<usize>,
    rows: impl IntoIterator<Item = R>,
) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for index in numbers {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// How a table becomes narrower where its lines are longer than the terminal. First there is one space between columns.
pub struct Narrow<'a> {
    /// Then this column is cut, down to `MIN_CUT` characters.
    pub cut: Option<usize>,
    /// Then these are left out, the first first.
    pub spare: &'a [usize],
}

/// What is left of a column that is cut, at least.
const MIN_CUT: usize = 6;

/// A table that breaks no value, with the column `state` in colours.
pub fn table_within(
    terminal: Terminal,
    header: &[&str],
    numbers: Range<usize>,
    rows: &[Vec<String>],
    narrow: &Narrow<'_>,
) -> Table {
    let longest = |column: usize| {
        let values = rows.iter().map(|row| row[column].as_str());
        let lengths = values.chain([header[column]]).map(|it| it.chars().count());
        lengths.max().unwrap_or_default()
    };
    let mut widths: Vec<_> = (0..header.len()).map(longest).collect();
    let mut kept: Vec<_> = (0..header.len()).collect();
    let width = terminal.width.map_or(usize::MAX, usize::from);
    let over = |kept: &[usize], widths: &[usize], spaces: usize| {
        let length: usize = kept.iter().map(|kept| widths[*kept] + spaces).sum();
        length.saturating_sub(width)
    };
    let is_tight = over(&kept, &widths, 2) > 0;
    let spaces = if is_tight { 1 } else { 2 };
    for column in narrow.spare.iter().map(Some).chain([None]) {
        let too_long = over(&kept, &widths, spaces);
        let longest = narrow.cut.map_or(0, longest);
        let cut = longest.saturating_sub(too_long).max(MIN_CUT.min(longest));
        if longest - cut >= too_long || column.is_none() {
            if let Some(column) = narrow.cut {
                widths[column] = cut;
            }
            break;
        }
        kept.retain(|kept| Some(kept) != column);
    }
    let names: Vec<_> = kept.iter().map(|kept| header[*kept]).collect();
    let cell = |row: &Vec<String>, column: usize| {
        let text = cut_to(&row[column], widths[column]);
        match header[column] {
            "state" => terminal.state_cell(text),
            _ => Cell::new(text),
        }
    };
    let rows = rows.iter();
    let rows = rows.map(|row| kept.iter().map(move |kept| cell(row, *kept)));
    let mut table = table(&names, 0..0, rows);
    table.set_content_arrangement(ContentArrangement::Disabled);
    if terminal.has_colours {
        table.enforce_styling();
    }
    for (index, kept) in kept.iter().enumerate() {
        let Some(column) = table.column_mut(index) else {
            continue;
        };
        if numbers.contains(kept) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        if is_tight {
            column.set_padding((0, 1));
        }
    }
    table
}

/// A text of at most so many characters, with an ellipsis for what is cut.
fn cut_to(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some(_) => text.chars().take(most - 1).chain(['…']).collect(),
        None => text.to_owned(),
    }
}

/// A time in one unit: `5.5 s`, `12 min`, `3 h`, `5 d`.
pub fn brief(seconds: f64) -> String {
    match seconds {
        ..60.0 => format!("{:.1} s", seconds.max(0.0)),
        ..7_200.0 => format!("{:.0} min", seconds / 60.0),
        ..172_800.0 => format!("{:.0} h", seconds / 3_600.0),
        _ => format!("{:.0} d", seconds / 86_400.0),
    }
}

/// One thing with its properties, a line each, under names that are aligned to the right.
pub struct Sheet {
    width: usize,
    lines: Vec<String>,
}

impl Sheet {
    /// An empty sheet whose names have at most `width` characters.
    pub fn new(width: usize) -> Self {
        let lines = Vec::new();
        Self { width, lines }
    }

    /// Adds a line.
    pub fn add(&mut self, name: &str, value: impl AsRef<str>) {
        // The lines of a value stay behind its name.
        let indent = format!("\n{}", " ".repeat(self.width + 2));
        let value = value.as_ref().replace('\n', &indent);
        let line = format!("{name:>0$}  {value}", self.width);
        self.lines.push(line.trim_end().to_owned());
    }

    /// Adds a line where there is a value.
    pub fn add_if(&mut self, name: &str, value: Option<impl AsRef<str>>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }

    /// The lines.
    pub fn text(&self) -> String {
        self.lines.join("\n")
    }
}

/// ` by NAME`, where it is known.
pub fn by(user: Option<&String>) -> String {
    user.map(|user| format!(" by {user}")).unwrap_or_default()
}

/// A job with the parameters of a run: `clicks from=2018-04-02`.
pub fn job(name: &str, parameters: &BTreeMap<String, String>) -> String {
    let parameters = parameters
        .iter()
        .map(|(name, value)| format!(" {name}={value}"));
    name.to_owned() + &parameters.collect::<String>()
}

/// The first characters of a text.
pub fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// A table as a terminal of this width shows it, without the spaces at the ends of its lines.
#[cfg(test)]
pub(crate) fn on_a_terminal(mut table: Table, width: u16) -> String {
    table.force_no_tty().set_width(width);
    let lines: Vec<_> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n")
}
