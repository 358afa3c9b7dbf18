//! `kanana convert`, and GGUF files where a folder could stand.

mod common;

use common::{Checkpoint, finish, kanana};

fn run(args: &[&str]) -> common::Finished {
    finish(kanana().args(args), b"")
}

fn generate(model: &str, dtype: &str) -> serde_json::Value {
    let flags =
        ["--prompt", "옛날 옛적에", "--max-tokens", "12", "--temperature", "0", "--dtype", dtype, "--json"];
    run(&[&["generate", "--model", model], &flags[..]].concat()).json()["ids"].take()
}

#[test]
fn a_model_survives_the_way_there_and_back() {
    let checkpoint = Checkpoint::new();
    let folder = checkpoint.path().to_str().unwrap();
    let there = checkpoint.path().join("there.gguf");
    let back = checkpoint.path().join("back");
    let (there, back) = (there.to_str().unwrap(), back.to_str().unwrap());
    assert_eq!(run(&["convert", folder, there]).text().trim(), there);
    run(&["convert", there, back, "--json"]).json();
    let expected = generate(folder, "f32");
    assert_eq!(generate(there, "f32"), expected, "the file runs as it stands, tokenizer and all");
    assert_eq!(generate(back, "f32"), expected);
}

#[test]
fn quantised_files_run_and_are_looked_at() {
    let checkpoint = Checkpoint::new();
    let folder = checkpoint.path().to_str().unwrap();
    for dtype in ["q8_0", "q4_0"] {
        let file = checkpoint.path().join(format!("{dtype}.gguf"));
        let file = file.to_str().unwrap();
        run(&["convert", folder, file, "--dtype", dtype]).text();
        assert_eq!(generate(file, "auto").as_array().unwrap().len(), 12);
        assert!(run(&["inspect", file]).text().contains("256 tokens"), "the context is told");
        run(&["convert", file, &format!("{file}.again.gguf"), "--dtype", "q4_0"])
            .check_refused(&["quantised"]);
    }
}

#[test]
fn what_cannot_be_converted_is_refused() {
    let checkpoint = Checkpoint::new();
    let folder = checkpoint.path().to_str().unwrap();
    run(&["convert", folder, "/nowhere/x.gguf"]).check_refused(&["/nowhere"]);
    let target = checkpoint.path().join("new");
    run(&["convert", folder, target.to_str().unwrap(), "--dtype", "q4_0"]).check_refused(&[".gguf"]);
    let broken = checkpoint.path().join("broken.gguf");
    std::fs::write(&broken, b"GGUF\x03\x00\x00\x00").unwrap();
    run(&["inspect", broken.to_str().unwrap()]).check_refused(&["broken.gguf"]);
}
