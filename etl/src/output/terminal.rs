//! What the terminal takes: its width, and colours where it has them. JSON has none.

use std::io::stdout;

use anstream::AutoStream;
use clap::ColorChoice;
use clap::builder::styling::AnsiColor;
use comfy_table::{Cell, Color, Table};

/// Standard output, as far as texts for people depend on it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terminal {
    /// None where the output is no terminal.
    pub width: Option<u16>,
    pub has_colours: bool,
}

/// Sets when there are colours, for the whole process. With `auto`, a terminal has them unless `NO_COLOR` is set.
pub fn choose(choice: ColorChoice) {
    match choice {
        ColorChoice::Auto => anstream::ColorChoice::Auto,
        ColorChoice::Always => anstream::ColorChoice::Always,
        ColorChoice::Never => anstream::ColorChoice::Never,
    }
    .write_global();
}

impl Terminal {
    pub fn of_stdout() -> Self {
        Self {
            width: Table::new().width(),
            has_colours: AutoStream::choice(&stdout()) != anstream::ColorChoice::Never,
        }
    }

    /// The name of a state in its colour.
    pub fn state(self, text: &str) -> String {
        match colour(text).filter(|_| self.has_colours) {
            Some((colour, _)) => {
                let style = colour.on_default();
                format!("{style}{text}{style:#}")
            }
            None => text.to_owned(),
        }
    }

    /// The same as a cell of a table.
    pub(super) fn state_cell(self, text: String) -> Cell {
        match colour(&text).filter(|_| self.has_colours) {
            Some((_, colour)) => Cell::new(text).fg(colour),
            None => Cell::new(text),
        }
    }
}

/// The colour of a state of a run: green is good, red needs a person, and yellow waits for one.
fn colour(state: &str) -> Option<(AnsiColor, Color)> {
    let red = (AnsiColor::Red, Color::DarkRed);
    let grey = (AnsiColor::BrightBlack, Color::DarkGrey);
    match state.split_once(", ").unwrap_or((state, "")) {
        (_, "blocked" | "not balanced") | ("failed", _) => Some(red),
        ("completed", _) => Some((AnsiColor::Green, Color::DarkGreen)),
        ("held", _) => Some((AnsiColor::Yellow, Color::DarkYellow)),
        ("running", _) => Some((AnsiColor::Cyan, Color::DarkCyan)),
        ("cancelled" | "superseded", _) => Some(grey),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_colours_where_the_terminal_has() {
        let (plain, mut coloured) = (Terminal::default(), Terminal::default());
        coloured.has_colours = true;
        assert_eq!(plain.state("failed"), "failed");
        for (state, code) in [
            ("completed", 32),
            ("completed, not balanced", 31),
            ("failed", 31),
            ("running, blocked", 31),
            ("held", 33),
            ("running", 36),
            ("cancelled", 90),
        ] {
            let shown = coloured.state(state);
            assert_eq!(shown, format!("\x1b[{code}m{state}\x1b[0m"));
        }
        assert_eq!(coloured.state("requested"), "requested");
    }
}
