//! A really trained model generates the text it is known to generate. Needs the shared data, skipped without.

mod common;

use std::path::{Path, PathBuf};

use common::{finish, kanana};
use serde_json::Value;

fn stories() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/checkpoints/stories260K");
    if !folder.is_dir() {
        eprintln!("skipped: no shared data");
        return None;
    }
    Some(folder)
}

const RUN: &[&str] = &["--prompt-ids", "1", "--max-tokens", "230", "--temperature", "0", "--dtype", "f32"];

#[test]
fn stories260k_tells_its_story_at_every_thread_count() {
    let Some(folder) = stories() else { return };
    let golden = std::fs::read_to_string(folder.join("greedy.json")).unwrap();
    let golden: Value = serde_json::from_str(&golden).unwrap();
    let golden = golden["greedy"].as_array().unwrap();
    for threads in ["1", "2", "3"] {
        let mut command = kanana();
        command.args(["generate", "--model"]).arg(&folder).args(RUN).args(["--threads", threads, "--json"]);
        let answer = finish(&mut command, b"").json();
        let all = [&answer["prompt_ids"], &answer["ids"]].map(|ids| ids.as_array().unwrap().clone()).concat();
        assert_eq!(&all, golden, "{threads} threads");
        assert_eq!(answer["finish_reason"], "length");
    }
}

#[test]
fn without_a_tokenizer_the_text_is_the_ids() {
    let Some(folder) = stories() else { return };
    let run = finish(
        kanana().args(["generate", "--model"]).arg(&folder).args([
            "--prompt-ids",
            "1",
            "--max-tokens",
            "4",
            "--temperature",
            "0",
        ]),
        b"",
    );
    assert_eq!(run.text(), "403 407 261 378\n");
}
