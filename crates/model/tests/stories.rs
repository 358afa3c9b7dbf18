//! A really trained checkpoint generates the text it is known to generate, id by id.
//!
//! The checkpoint is not part of this project: where `<workspace>/../shared` does not have it, the test says so.
//! `cargo test -p kanana-model --test stories`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use kanana_checkpoint::Checkpoint;
use kanana_kernels::{Cpu, CpuOptions, Format, Kernels, Reference};
use kanana_model::{Config, LoadOptions, Transformer};

#[test]
fn stories260k_continues_as_published() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/checkpoints/stories260K");
    if !dir.exists() {
        println!("skipped: no shared data");
        return;
    }
    let greedy = std::fs::read_to_string(dir.join("greedy.json")).unwrap();
    let greedy: serde_json::Value = serde_json::from_str(&greedy).unwrap();
    let ids = |key: &str| serde_json::from_value::<Vec<u32>>(greedy[key].clone()).unwrap();
    let (prompt, published) = (ids("prompt"), ids("greedy"));
    assert_eq!(published.len(), 231, "the prompt and 230 more");

    let check = |kernels: &dyn Kernels, what: &str| {
        assert_eq!(continuation(kernels, &dir, &prompt, published.len()), published, "{what}");
    };
    check(&Reference, "Reference");
    for threads in [1, 2, 3] {
        check(
            &Cpu::new(CpuOptions { threads: Some(threads), ..CpuOptions::default() }),
            &format!("Cpu, {threads} threads"),
        );
    }
}

/// The prompt and its greedy continuation, `length` ids together.
fn continuation(kernels: &dyn Kernels, dir: &Path, prompt: &[u32], length: usize) -> Vec<u32> {
    let config = Config::from_dir(dir).unwrap();
    let options = LoadOptions { format: Format::F32, max_positions: length };
    let model = Transformer::load(&Checkpoint::open(dir).unwrap(), &config, kernels, &options).unwrap();
    let positions: Vec<u32> = (0..prompt.len() as u32).collect();
    let continued = common::continue_greedily(&model, kernels, prompt, &positions, length - prompt.len());
    [prompt, &continued].concat()
}
