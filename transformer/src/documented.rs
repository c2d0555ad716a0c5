//! For tests: compares the generated parts of `docs/types.md` with the code.

use std::path::Path;

/// Panics unless the document has exactly `wanted` between its markers `<!-- NAME: begin -->` and
/// `<!-- NAME: end -->`, and then writes the corrected document to `target/types-NAME.md`.
pub(crate) fn assert_documented(name: &str, wanted: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let document = std::fs::read_to_string(root.join("docs/types.md")).unwrap();
    let (begin, end) = (
        format!("<!-- {name}: begin -->\n"),
        format!("<!-- {name}: end -->\n"),
    );
    let (before, rest) = document.split_once(&begin).unwrap();
    let (written, after) = rest.split_once(&end).unwrap();
    if written != wanted {
        let corrected = root.join(format!("target/types-{name}.md"));
        std::fs::write(&corrected, format!("{before}{begin}{wanted}{end}{after}")).unwrap();
        panic!(
            "docs/types.md differs from the code; see what changed, then copy {} over it",
            corrected.display()
        );
    }
}
