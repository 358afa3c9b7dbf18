//! Golden files for tests.

use std::path::Path;

use kanana_data::read::Row;

use crate::Source;

/// The rows of a golden file below `shared/eval/data`; None, and a line that says so, where it is not there.
pub(crate) fn golden_rows(path: &str) -> Option<Vec<Row>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/eval/data");
    let file = root.join(path);
    if !file.exists() {
        println!("skipped: no shared data ({path})");
        return None;
    }
    Some(Source::new(root).rows(&file).unwrap())
}

/// A golden file that is one JSON value, maybe compressed.
pub(crate) fn golden_value(path: &str) -> Option<serde_json::Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/eval/data").join(path);
    if !file.exists() {
        println!("skipped: no shared data ({path})");
        return None;
    }
    let bytes = std::fs::read(file).unwrap();
    if path.ends_with(".gz") {
        return Some(serde_json::from_reader(flate2::read::GzDecoder::new(&bytes[..])).unwrap());
    }
    Some(serde_json::from_slice(&bytes).unwrap())
}
