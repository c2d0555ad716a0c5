//! The settings, from the environment.

use std::path::PathBuf;

use serde_json::{Value, json};

pub(crate) struct Settings {
    pub(crate) parts: Vec<String>,
    /// The sizes of the contest.
    pub(crate) rows: Vec<u64>,
    pub(crate) repeats: usize,
    /// Rows for each stage alone, for the replicas and for the rules.
    pub(crate) stage_rows: u64,
    pub(crate) growth: Vec<u64>,
    pub(crate) dir: PathBuf,
}

impl Settings {
    pub(crate) fn read() -> Self {
        let dir: PathBuf = variable("BENCH_DIR", ".local/bench").into();
        std::fs::create_dir_all(&dir)
            .unwrap_or_else(|e| panic!("cannot make the folder {}: {e}", dir.display()));
        let parts = variable("BENCH_PARTS", "contest small replicas stages rules growth");
        Self {
            parts: parts.split_whitespace().map(str::to_owned).collect(),
            rows: numbers("BENCH_ROWS", "1000000 5000000"),
            repeats: one("BENCH_REPEATS", "5"),
            stage_rows: one("BENCH_STAGE_ROWS", "1000000"),
            growth: numbers("BENCH_GROWTH", "100000 300000 1000000 3000000 10000000"),
            dir,
        }
    }

    pub(crate) fn shown(&self) -> Value {
        json!({
            "rows": self.rows, "repeats": self.repeats, "stage_rows": self.stage_rows, "growth": self.growth,
        })
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the settings of this program, which is no service"
)]
fn variable(name: &str, default: &str) -> String {
    std::env::var(name)
        .ok()
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| default.to_owned())
}

fn numbers<T: std::str::FromStr>(name: &str, default: &str) -> Vec<T> {
    let text = variable(name, default);
    let number = |word: &str| {
        word.parse()
            .unwrap_or_else(|_| panic!("{name}: {word} is not a number"))
    };
    text.split_whitespace().map(number).collect()
}

fn one<T: std::str::FromStr>(name: &str, default: &str) -> T {
    numbers(name, default)
        .pop()
        .unwrap_or_else(|| panic!("{name} is empty"))
}
