//! Trains a tiny model for 1,000 steps and leaves what `goldens/torch_curve.py` needs to train it too: the checkpoint that
//! both start from, the rows of every step, and the losses.
//!
//! `cargo run --release -p kanana-train --example curve -- FOLDER`

#![allow(clippy::unwrap_used, reason = "an example fails by panicking")]

use std::path::Path;

use kanana_data::{Mixture, ShardWriter, Shards, Source, Tokens};
use kanana_kernels::{Cpu, CpuOptions};
use kanana_train::{Recipe, Trainer};

const STEPS: usize = 1000;
const ROWS: usize = 8;
const LENGTH: usize = 64;
const VOCABULARY: u64 = 512;

const CONFIG: &str = r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 512, "hidden_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "intermediate_size": 160,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64, "hidden_act": "silu",
    "tie_word_embeddings": true, "torch_dtype": "float32"}"#;

const RECIPE: &str = r#"
seed = 7
output = "run"
[model]
config = "config.json"
tokenizer = "tokenizer"
precision = "f32"
[step]
sequence_length = 64
batch_tokens = 520
micro_batch_tokens = 520
[optimizer]
learning_rate = 3e-3
[schedule]
shape = "cosine"

final_factor = 0.1
[[stage]]
name = "chains"
steps = 1000
[[stage.source]]
shards = "chains"
max_epochs = 1.01
"#;

/// A number that follows from others. (SplitMix64.)
fn mixed(seed: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A chain in which two tokens together decide among four that may follow, one likelier than the next.
fn chain(document: u64) -> Vec<u32> {
    let mut ids = vec![mixed(document) % VOCABULARY, mixed(document ^ 99) % VOCABULARY];
    while ids.len() < LENGTH + 1 {
        let (a, b) = (ids[ids.len() - 2] % 4, ids[ids.len() - 1]);
        let choice = (mixed(document * 1000 + ids.len() as u64) % 16).leading_zeros() - 60;
        ids.push(mixed(b * 64 + a * 8 + u64::from(choice)) % VOCABULARY);
    }
    ids.into_iter().map(|id| id as u32).collect()
}

fn main() {
    let folder = std::env::args().nth(1).expect("usage: curve FOLDER");
    let root = Path::new(&folder);
    std::fs::create_dir_all(root.join("tokenizer")).unwrap();
    std::fs::write(root.join("tokenizer/tokenizer.json"), "{}").unwrap();
    std::fs::write(root.join("config.json"), CONFIG).unwrap();
    std::fs::write(root.join("recipe.toml"), RECIPE).unwrap();
    let shards = root.join("chains");
    let mut writer = ShardWriter::create(&shards, &root.join("tokenizer"), VOCABULARY as usize).unwrap();
    for document in 0..(STEPS * ROWS) as u64 {
        let ids = chain(document);
        let learnt = (0..ids.len()).map(|j| j > 0).collect();
        writer.push(&Tokens { ids, learnt }, document, 65).unwrap();
    }
    writer.finish().unwrap();

    let kernels = Cpu::new(CpuOptions::default());
    let recipe = Recipe::from_file(&root.join("recipe.toml")).unwrap();
    let mut trainer = Trainer::new(recipe.clone(), &kernels, None).unwrap();
    println!("{}", trainer.save().unwrap().display());

    // The rows as the trainer will read them: the same mixture, from its beginning.
    let source = Source { shards: Shards::open(&shards).unwrap(), weight: 1.0, max_epochs: 1.01 };
    let mut mixture = Mixture::new("chains", vec![source], 520_000, recipe.seed ^ 1 << 48, false).unwrap();
    let mut rows = Vec::new();
    for _ in 0..STEPS {
        let pieces = mixture.next(520, LENGTH).unwrap();
        assert_eq!(pieces.len(), ROWS);
        for piece in pieces {
            rows.extend(piece.ids.iter().chain(&piece.targets[LENGTH - 1..]).flat_map(|id| id.to_le_bytes()));
        }
    }
    std::fs::write(root.join("rows.u32"), rows).unwrap();

    let mut lines = String::new();
    while !trainer.is_done() {
        lines += &(serde_json::to_string(&trainer.step().unwrap()).unwrap() + "\n");
    }
    std::fs::write(root.join("metrics.jsonl"), lines).unwrap();
}
