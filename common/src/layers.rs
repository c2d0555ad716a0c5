//! The order of the crate's modules, and the test that keeps it.

use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};

/// The modules, the lowest first. Each names only modules before it.
const ORDER: [&str; 20] = [
    "backoff",
    "secret",
    "http",
    "reason",
    "shell",
    "nearest",
    "schema",
    "canonical",
    "rows",
    "job",
    "message",
    "queue",
    "settings",
    "stack",
    "telemetry",
    "lifecycle",
    "failpoint",
    "service",
    "command",
    "findings",
];

fn place(module: &str) -> usize {
    let place = ORDER.iter().position(|known| *known == module);
    place.unwrap_or_else(|| panic!("{module} has no place in ORDER (common/src/layers.rs)"))
}

/// The Rust files of a module: `module.rs` and everything below `module/`.
fn files(path: PathBuf, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        let entries = read_dir(path).unwrap();
        entries.for_each(|entry| files(entry.unwrap().path(), found));
    } else if path.extension().is_some_and(|end| end == "rs") && path.exists() {
        found.push(path);
    }
}

#[test]
fn no_module_names_a_later_one() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lib = read_to_string(src.join("lib.rs")).unwrap();
    let modules = lib.lines().filter_map(|line| line.strip_prefix("pub mod "));
    for module in modules.map(|name| name.trim_end_matches(';')) {
        let mut found = Vec::new();
        files(src.join(format!("{module}.rs")), &mut found);
        files(src.join(module), &mut found);
        for file in found {
            let text = read_to_string(&file).unwrap();
            for path in text.split("crate::").skip(1) {
                let named = path
                    .split(|c: char| !c.is_alphanumeric() && c != '_')
                    .next();
                let named = named.unwrap_or_default();
                assert!(
                    place(named) <= place(module),
                    "{} names {named}, which is above {module}",
                    file.display()
                );
            }
        }
    }
}
