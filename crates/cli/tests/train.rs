//! From texts to a model that runs: the commands of training, one after the other, and interrupted.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const CONFIG: &str = r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 320, "hidden_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 40,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64, "hidden_act": "silu",
    "tie_word_embeddings": true}"#;

const RECIPE: &str = r#"
output = "run"
[model]
config = "config.json"
tokenizer = "tokenizer"
[step]
sequence_length = 32
batch_tokens = 256
micro_batch_tokens = 128
[optimizer]
learning_rate = 1e-2
[schedule]
shape = "cosine"
[[stage]]
name = "texts"
steps = 12
[[stage.source]]
shards = "shards"
max_epochs = 20
[[evaluation]]
name = "ko"
shards = "held-out"
[report]
evaluate_every = 6
sample_every = 6
prompts = ["고양이가"]
[checkpoints]
every = 4
"#;

fn kanana(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kanana"));
    command.current_dir(folder).args(arguments).env("NO_COLOR", "1");
    command.output().unwrap()
}

/// Standard output of a command that succeeds.
fn ok(folder: &Path, arguments: &[&str]) -> String {
    let output = kanana(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What a command that fails says.
fn error(folder: &Path, arguments: &[&str], expected: &str) {
    let output = kanana(folder, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert!(stderr.contains(expected) && stderr.contains("hint:"), "{arguments:?}: {stderr}");
}

/// A folder with texts, a tokenizer, shards and a recipe.
fn prepared() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path();
    let line = |i: usize| {
        let (who, what) = (["고양이", "강아지", "토끼"][i % 3], ["물을", "밥을", "책을"][i / 3 % 3]);
        serde_json::json!({"text": format!("{who}가 {what} {i}번 봅니다. The cat sees {i} books.")})
            .to_string()
            + "\n"
    };
    fs::write(folder.join("texts.jsonl"), (0..200).map(line).collect::<String>()).unwrap();
    fs::write(folder.join("config.json"), CONFIG).unwrap();
    fs::write(folder.join("recipe.toml"), RECIPE).unwrap();
    let told = ok(
        folder,
        &["tokenizer", "train", "--input", "texts.jsonl", "--vocab-size", "320", "--out", "tokenizer"],
    );
    assert!(told.contains("bytes per token"), "{told}");
    let told = ok(
        folder,
        &[
            "data",
            "shard",
            "--tokenizer",
            "tokenizer",
            "--input",
            "texts.jsonl",
            "--out",
            "shards",
            "--held-out",
            "held-out",
            "--every",
            "20",
        ],
    );
    assert!(told.contains("held-out: "), "{told}");
    root
}

/// The loss of every step.
fn losses(folder: &Path, run: &str) -> Vec<(u64, f64)> {
    let text = fs::read_to_string(folder.join(run).join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter_map(|line| Some((line["step"].as_u64()?, line["loss"].as_f64()?))).collect()
}

#[test]
fn a_run_that_is_killed_and_resumed_is_the_straight_run() {
    let root = prepared();
    let folder = root.path();
    let place = ok(folder, &["train", "recipe.toml", "--threads", "2"]);
    assert!(place.trim().ends_with("step-00000012"), "{place}");
    let straight = losses(folder, "run");
    assert_eq!(straight.len(), 12);
    assert!(straight[11].1 < straight[0].1 - 0.5, "it learns: {straight:?}");

    // Stopped by itself, then killed by force in the middle of the rest.
    fs::write(folder.join("again.toml"), RECIPE.replace("\"run\"", "\"again\"")).unwrap();
    ok(folder, &["train", "again.toml", "--stop-after", "3"]);
    let mut killed = Command::new(env!("CARGO_BIN_EXE_kanana"))
        .current_dir(folder)
        .args(["train", "again.toml", "--resume"])
        .spawn()
        .unwrap();
    let began = std::time::Instant::now();
    while losses(folder, "again").len() < 6 && began.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    ok(folder, &["train", "again.toml", "--resume", "--threads", "1"]);
    assert_eq!(losses(folder, "again"), straight);
    let weights = |run: &str| fs::read(folder.join(run).join("step-00000012/model.safetensors")).unwrap();
    assert!(weights("run") == weights("again"), "the same weights, bit by bit");

    // What was trained runs, and its curves are drawn.
    let model = "run/step-00000012";
    let text = ok(
        folder,
        &["generate", "--model", model, "--prompt", "고양이가", "--temperature", "0", "--max-tokens", "8"],
    );
    assert!(!text.trim().is_empty());
    let drawn = ok(
        folder,
        &[
            "plot",
            "run",
            "again",
            "--metric",
            "loss,eval.ko.bits_per_byte",
            "--title",
            "손실",
            "--out",
            "curves",
        ],
    );
    assert_eq!(drawn.lines().collect::<Vec<_>>(), ["curves.svg", "curves.png"]);
    assert!(fs::read_to_string(folder.join("curves.svg")).unwrap().contains("손실"));
    error(folder, &["plot", "run", "--metric", "los"], "no run has a metric \"los\"");
}

/// More steps, each saved and kept, than any disk holds.
#[cfg(unix)]
#[test]
fn checkpoints_that_do_not_fit_are_refused_before_the_first_step() {
    let root = prepared();
    let folder = root.path();
    let recipe = RECIPE
        .replace("steps = 12", "steps = 1000000000000")
        .replace("max_epochs = 20", "max_epochs = 1e15")
        .replace("every = 4", "every = 1\nkeep = 1000000000000");
    fs::write(folder.join("large.toml"), recipe).unwrap();
    error(folder, &["train", "large.toml"], "run: the checkpoints of this run need ");
    assert!(!folder.join("run/metrics.jsonl").exists(), "nothing was begun");
}

#[test]
fn what_is_wrong_is_said_before_work_begins() {
    let root = prepared();
    let folder = root.path();
    error(folder, &["train", "recipe.toml", "--resume"], "no checkpoint to resume from");
    fs::write(folder.join("bad.toml"), RECIPE.replace("steps = 12", "stepz = 12")).unwrap();
    error(folder, &["train", "bad.toml"], "did you mean \"steps\"?");
    fs::write(folder.join("bad.toml"), RECIPE.replace("max_epochs = 20", "max_epochs = 0.1")).unwrap();
    error(folder, &["train", "bad.toml"], "max_epochs is 0.1");
    fs::write(folder.join("bad.toml"), RECIPE.replace("\"held-out\"", "\"shards\"")).unwrap();
    error(folder, &["train", "bad.toml"], "are in the evaluation texts too");
    let shard = ["data", "shard", "--tokenizer", "tokenizer", "--input", "texts.jsonl", "--out"];
    error(folder, &[&shard[..], &["shards"]].concat(), "it is there already");
    error(folder, &[&shard[..], &["new", "--field", "txt"]].concat(), "did you mean \"text\"?");
    error(
        folder,
        &[&shard[..], &["new", "--prompt", "{a", "--response", "b"]].concat(),
        "a brace is not closed",
    );
    assert!(!folder.join("new").exists(), "nothing is left of a shard that failed");
}
