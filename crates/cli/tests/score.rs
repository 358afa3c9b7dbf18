//! `kanana perplexity` and `kanana compare` on a tiny checkpoint.

mod common;

use common::{Checkpoint, finish, kanana};

const TEXT: &str = "옛날 옛적에 한 아이가 살았습니다.\nOnce upon a time there was a child.\n";

fn run(args: &[&str], input: &str) -> common::Finished {
    finish(kanana().args(args), input.as_bytes())
}

#[test]
fn every_token_is_predicted_once_whatever_the_window() {
    let checkpoint = Checkpoint::new();
    let path = checkpoint.path().to_str().unwrap();
    let score = |window: &str| {
        run(&["perplexity", "--model", path, "--file", "-", "--window", window, "--json"], TEXT).json()
    };
    let (narrow, wide) = (score("10"), score("200"));
    // A token is a byte here.
    assert_eq!(
        (narrow["tokens"].as_u64(), narrow["bytes"].as_u64()),
        (Some(TEXT.len() as u64), Some(TEXT.len() as u64))
    );
    assert_eq!((narrow["windows"].as_u64(), wide["windows"].as_u64()), (Some(9), Some(1)));
    let (nats, bits) = (wide["nats"].as_f64().unwrap(), wide["bits_per_byte"].as_f64().unwrap());
    assert!((bits - nats / 2f64.ln() / TEXT.len() as f64).abs() < 1e-9);
    let perplexity = wide["perplexity"].as_f64().unwrap();
    assert!((perplexity.ln() * TEXT.len() as f64 / nats - 1.0).abs() < 1e-9);
    // Random weights know little: about one in the whole vocabulary.
    assert!((100.0..1000.0).contains(&perplexity), "{perplexity}");
    assert_ne!(narrow["nats"], wide["nats"], "a longer window sees more");
}

#[test]
fn a_model_is_itself_and_nearly_so_in_fewer_bits() {
    let checkpoint = Checkpoint::new();
    let path = checkpoint.path().to_str().unwrap();
    let kl = |format: &str| {
        let found = run(&["compare", path, "--dtype-b", format, "--file", "-", "--json"], TEXT).json();
        (found["kl_mean"].as_f64().unwrap(), found["top1_agreement"].as_f64().unwrap())
    };
    assert_eq!(kl("f32"), (0.0, 1.0));
    let (bf16, q8, q4) = (kl("bf16").0, kl("q8").0, kl("q4").0);
    assert!(0.0 < bf16 && bf16 < q4 && 0.0 < q8 && q8 < q4 && q4 < 0.1, "{bf16} {q8} {q4}");
}

#[test]
fn every_kind_of_model_stands_on_either_side() {
    let checkpoint = Checkpoint::new();
    let path = |name: &str| checkpoint.file(name).to_str().unwrap().to_owned();
    let (folder, stored, file) = (path(""), path("stored"), path("q8_0.gguf"));
    run(&["quantize", &folder, &stored, "--dtype", "q8"], "").text();
    run(&["convert", &folder, &file, "--dtype", "q8_0"], "").text();
    for (a, b) in [(&folder, &stored), (&stored, &file), (&file, &folder), (&stored, &folder)] {
        let found = run(&["compare", a, b, "--file", "-", "--json"], TEXT).json();
        let number = |key: &str| found[key].as_f64().unwrap();
        assert!(0.0 < number("kl_mean") && number("kl_mean") < 1e-3, "{a} {b}: {found}");
        assert!(number("kl_mean") <= number("kl_p99_9"), "{a} {b}: {found}");
        assert!(number("top1_agreement") > 0.9, "{a} {b}: {found}");
        assert!((number("perplexity_ratio") - 1.0).abs() < 0.01, "{a} {b}: {found}");
        let shown = run(&["compare", a, b, "--file", "-"], TEXT);
        for row in ["KL, mean", "KL, 99.9th percentile", "same likeliest token", "perplexity of B", "ratio"] {
            assert!(shown.text().contains(row), "{row:?} is not in:\n{}", shown.stdout);
        }
    }
    let itself = run(&["compare", &folder, &stored, "--dtype", "q8", "--file", "-", "--json"], TEXT).json();
    assert_eq!((itself["kl_mean"].as_f64(), itself["kl_p99_9"].as_f64()), (Some(0.0), Some(0.0)));
    for model in [&stored, &file] {
        let scored = run(&["perplexity", "--model", model, "--file", "-", "--json"], TEXT).json();
        assert_eq!(scored["tokens"].as_u64(), Some(TEXT.len() as u64), "{model}");
    }
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let checkpoint = Checkpoint::new();
    let path = checkpoint.path().to_str().unwrap();
    run(&["perplexity", "--model", path, "--file", "-"], "").check_refused(&["empty"]);
    run(&["perplexity", "--model", path, "--file", "-", "--window", "256"], TEXT)
        .check_refused(&["--window", "256"]);
    run(&["perplexity", "--model", path, "--file", "/nowhere.txt"], "").check_refused(&["/nowhere.txt"]);
    let ids = checkpoint.path().join("ids.txt");
    std::fs::write(&ids, "1 2 300").unwrap();
    run(&["perplexity", "--model", path, "--ids", ids.to_str().unwrap()], "").check_refused(&["300", "272"]);
    let bare = Checkpoint::without_tokenizer();
    let bare_path = bare.path().to_str().unwrap();
    run(&["perplexity", "--model", bare_path, "--file", "-"], TEXT).check_refused(&["tokenizer.json"]);
    std::fs::write(&ids, "1 2 3 4").unwrap();
    let scored =
        run(&["perplexity", "--model", bare_path, "--ids", ids.to_str().unwrap(), "--json"], "").json();
    assert_eq!(scored["tokens"], 4);
}
