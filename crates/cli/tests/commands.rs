//! The commands that look: `inspect`, `tokenize`, `bench`, `completions`, `--help`.

mod common;

use common::{Checkpoint, finish, kanana};
use serde_json::json;

fn run(args: &[&str]) -> common::Finished {
    finish(kanana().args(args), b"")
}

#[test]
fn presets_are_as_large_as_published() {
    let check = |name: &str, total: u64, active: u64| {
        let found = run(&["inspect", name, "--json"]).json();
        let round = |field: &str| (found["parameters"][field].as_f64().unwrap() / 1e6).round() as u64;
        assert_eq!((round("total"), round("active")), (total, active), "{name}");
    };
    check("nano-2.1b", 2087, 2087);
    check("1.5-8b", 8030, 8030);
    check("essence-9.8b", 9775, 9775);
    check("1.5-15.7b-a3b", 15696, 3013);
}

#[test]
fn inspect_tells_a_person_what_matters() {
    let found = run(&["inspect", "1.5-8b", "--yarn"]);
    for words in ["confirmed", "8.030 B", "131072 tokens", "YaRN by 4.4 of 32768", "1.148160", "bf16", "f32"]
    {
        assert!(found.text().contains(words), "{words:?} is not in:\n{}", found.stdout);
    }
    assert!(!found.stdout.contains('\x1b'), "no colours where nobody looks");
}

#[test]
fn inspect_finds_what_is_wrong_with_the_tensors() {
    let sound = Checkpoint::new();
    let path = sound.path().to_str().unwrap();
    assert!(run(&["inspect", path]).text().contains("all there"));
    let broken = Checkpoint::with_tensors(|tensors| {
        tensors.retain(|(name, _)| name != "model.layers.0.mlp.up_proj.weight");
        tensors[0].1.shape.reverse();
        let extra = tensors[1].1.clone();
        tensors.push(("model.extra.weight".into(), extra));
    });
    let found = run(&["inspect", broken.path().to_str().unwrap(), "--json"]);
    assert_eq!(found.code, Some(1));
    let files = serde_json::from_str::<serde_json::Value>(&found.stdout).unwrap()["files"].take();
    assert_eq!(files["missing"], json!(["model.layers.0.mlp.up_proj.weight"]));
    assert_eq!(files["extra"], json!(["model.extra.weight"]));
    assert_eq!(files["misshapen"][0]["name"], "model.embed_tokens.weight");
}

#[test]
fn an_unknown_model_lists_the_presets() {
    run(&["inspect", "nano-2b"]).check_refused(&["nano-2b", "nano-2.1b", "1.5-15.7b-a3b"]);
    run(&["bench", "--random", "nano-2b"]).check_refused(&["nano-2.1b"]);
}

#[test]
fn tokens_of_a_text_and_back() {
    let checkpoint = Checkpoint::new();
    let tokens = checkpoint.run("tokenize", &["가a", "--json"]).json();
    assert_eq!(tokens["ids"], json!([256, 234, 176, 128, 97]));
    assert_eq!((&tokens["count"], &tokens["bytes"]), (&json!(5), &json!(4)));
    let back = checkpoint.run("tokenize", &["--decode", "256, 234 176,128 97"]);
    assert_eq!(back.text(), "<|begin_of_text|>가a\n");
    let plain = checkpoint.run("tokenize", &["--plain", "<|eot_id|>", "--json"]).json();
    assert_eq!(plain["count"], 10);
    let table = checkpoint.run("tokenize", &["a"]);
    assert_eq!(table.text(), "  256  <|begin_of_text|>\n   97  \"a\"                61\n");
    assert!(table.stderr.starts_with("2 tokens, 1 bytes"), "{}", table.stderr);
}

#[test]
fn a_conversation_is_rendered_and_counted() {
    let checkpoint = Checkpoint::new();
    checkpoint.write_json("messages.json", &json!({"messages": [{"role": "user", "content": "안녕"}]}));
    let file = checkpoint.file("messages.json");
    let rendered = checkpoint.run("tokenize", &["--chat", file.to_str().unwrap(), "--render"]);
    let expected = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n안녕<|eot_id|>\
                    <|start_header_id|>assistant<|end_header_id|>\n\n";
    assert_eq!(rendered.text(), expected);
    let tokens = checkpoint.run("tokenize", &["--chat", file.to_str().unwrap(), "--json"]).json();
    let generated = checkpoint.generate(&["--chat", "--prompt", "안녕", "--max-tokens", "1"]);
    assert_eq!(tokens["ids"], generated["prompt_ids"]);
}

#[test]
fn a_bench_reports_rates_and_shares() {
    let flags =
        ["--prefill", "20,70", "--decode", "3", "--batch", "1,2", "--threads", "1,2", "--repeat", "1"];
    let report = run(&[&["bench", "--random", "tiny", "--json"], &flags[..]].concat()).json();
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 8);
    for run in runs {
        for field in
            ["prefill_tokens_per_s", "ttft_s", "decode_tokens_per_s", "decode_share_of_read_bandwidth"]
        {
            assert!(run[field].as_f64().unwrap() > 0.0, "{field} in {run}");
        }
    }
    assert_eq!(report["machine"].as_array().unwrap().len(), 2);
    let checkpoint = Checkpoint::new();
    let table =
        checkpoint.run("bench", &["--prefill", "10", "--decode", "2", "--repeat", "1", "--threads", "1"]);
    assert!(table.text().contains("of bandwidth"), "{}", table.stdout);
}

#[test]
fn a_bench_that_cannot_fit_is_refused() {
    run(&["bench", "--random", "nano-2.1b", "--memory-limit", "1GiB"])
        .check_refused(&["1.00 GiB", "weights"]);
    run(&["bench", "--random", "tiny", "--prefill", "600"]).check_refused(&["512", "--prefill"]);
}

#[test]
fn every_shell_gets_completions() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(run(&["completions", shell]).text().contains("generate"), "{shell}");
    }
}

#[test]
fn help_goes_to_standard_output() {
    assert!(run(&["--help"]).text().contains("kanana chat --model"));
    for command in ["chat", "generate", "inspect", "tokenize", "pull", "bench", "quantize", "completions"] {
        assert!(run(&[command, "--help"]).text().contains("Examples:"), "{command}");
    }
}

#[test]
fn what_tokenize_cannot_use_is_refused() {
    let checkpoint = Checkpoint::new();
    checkpoint.run("tokenize", &["--render", "a"]).check_refused(&["--render", "--chat FILE"]);
    checkpoint.run("tokenize", &["--system", "b", "a"]).check_refused(&["--system", "--chat FILE"]);
    checkpoint.run("tokenize", &["--decode", "97 270"]).check_refused(&["no token 270"]);
    checkpoint.write("no.json", b"{");
    let file = checkpoint.file("no.json");
    checkpoint.run("tokenize", &["--chat", file.to_str().unwrap()]).check_refused(&["not JSON", "messages"]);
    let flags = ["--chat", file.to_str().unwrap(), "--chat-template", "/nowhere"];
    checkpoint.run("tokenize", &flags).check_refused(&["/nowhere", "check the path"]);
}

#[test]
fn inspect_finds_what_is_wrong_with_the_tokenizer() {
    let inspect = |checkpoint: &Checkpoint| run(&["inspect", checkpoint.path().to_str().unwrap(), "--json"]);
    let found = inspect(&Checkpoint::new()).json()["tokenizer"].take();
    assert_eq!((&found["tokens"], &found["embedding_rows"]), (&json!(261), &json!(272)));
    let broken = Checkpoint::new();
    broken.write("tokenizer.json", b"{}");
    let found = inspect(&broken);
    assert_eq!(found.code, Some(1));
    assert!(found.stdout.contains(r#""tokenizer":{"error":"#), "{}", found.stdout);
}

#[test]
fn the_published_scaling_is_for_models_of_32k() {
    run(&["inspect", "nano-2.1b", "--yarn"]).check_refused(&["8192", "32768", "--rope-scaling FILE"]);
}

#[test]
fn the_log_tells_what_was_loaded() {
    let checkpoint = Checkpoint::new();
    let log = |filter: &str| {
        let flags = ["--prompt-ids", "1", "--max-tokens", "1", "--threads", "1"];
        finish(checkpoint.command("generate", &flags).env("KANANA_LOG", filter), b"").stderr
    };
    assert!(log("debug").contains("threads=1"), "{}", log("debug"));
    assert_eq!(log("off"), "");
}

#[test]
fn a_file_is_no_model() {
    let checkpoint = Checkpoint::new();
    let file = checkpoint.file("model.safetensors");
    run(&["inspect", file.to_str().unwrap()]).check_refused(&["is a file", "give the folder"]);
    checkpoint.run("generate", &["--file", "."]).check_refused(&["give a file"]);
}
