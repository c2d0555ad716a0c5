//! Every test that the documentation names exists.

use std::fs;
use std::path::Path;

#[test]
fn every_test_named_in_reliability_md_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let (mut file, mut named, mut missing) = (String::new(), 0, Vec::new());
    // Text between two backticks; `::name` is a test of the last named file.
    for code in page.split('`').skip(1).step_by(2) {
        let Some((place, test)) = code.split_once("::") else {
            continue;
        };
        if !place.is_empty() {
            place.clone_into(&mut file);
        }
        named += 1;
        let source = fs::read_to_string(root.join(&file)).unwrap_or_default();
        if !source.contains(&format!("fn {test}(")) {
            missing.push(format!("{file}::{test}"));
        }
    }
    assert!(named > 40, "only {named} tests are named");
    assert!(
        missing.is_empty(),
        "docs/reliability.md names tests that do not exist: {missing:?}"
    );
}
