//! The models that the program carries: they answer with no download, from any folder.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::process::{Command, Stdio};

fn kanana(cache: &std::path::Path, arguments: &[&str], input: &str) -> (String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kanana"));
    command.args(arguments).env("XDG_CACHE_HOME", cache).env("NO_COLOR", "1");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    (stdout, stderr)
}

#[test]
fn chat_answers_in_both_languages_without_a_model() {
    let cache = tempfile::tempdir().unwrap();
    let ask = |question: &str| kanana(cache.path(), &["chat", "--temperature", "0"], question);
    let (answer, told) = ask("안녕하세요\n");
    assert!(answer.contains("안녕하세요! 무엇을 도와드릴까요?"), "{answer}");
    assert!(told.contains("pico is a very small model"), "{told}");
    assert!(ask("Who are you?\n").0.contains("I am pico"));
    // Written once, whole, under a name of its own.
    let folders: Vec<_> = std::fs::read_dir(cache.path().join("kanana")).unwrap().collect();
    assert_eq!(folders.len(), 1);
}

#[test]
fn the_base_model_goes_on_with_a_text() {
    let cache = tempfile::tempdir().unwrap();
    let arguments = [
        "generate",
        "--model",
        "pico-base",
        "--prompt",
        "파이썬은",
        "--max-tokens",
        "5",
        "--temperature",
        "0",
    ];
    assert!(!kanana(cache.path(), &arguments, "").0.trim().is_empty());
}
