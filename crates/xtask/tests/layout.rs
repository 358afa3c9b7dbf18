//! The laws of ARCHITECTURE.md hold for this workspace: part of every `cargo test`.

use std::path::Path;

#[test]
fn the_workspace_keeps_the_laws() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let violations = xtask::layout::check(root).unwrap();
    let report: String = violations.iter().map(|violation| format!("{violation}\n")).collect();
    assert!(violations.is_empty(), "{} violations of the layout:\n{report}", violations.len());
}
