//! Writing GGUF: what is written is what is read, each tensor in the type its format gives it; what GGUF cannot say is
//! refused; and a file that cannot be finished is not there.
#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kanana_checkpoint::gguf::{
    Export, GgmlType, GgufFile, GgufFormat, GgufSpec, MetadataValue, Tokenizing, config_json, save_gguf,
    tokenizer_config_json, tokenizer_json,
};
use kanana_checkpoint::{Checkpoint, CheckpointError, SaveOptions, TensorSpec, save};
use kanana_tensor::Tensor;
use serde_json::{Value, json};
use tempfile::TempDir;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

fn read_json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

/// A folder with such tensors, of numbers that follow from their places.
fn folder(tensors: &[(String, Vec<usize>)]) -> (TempDir, Checkpoint) {
    let dir = TempDir::new().unwrap();
    let tensors: BTreeMap<String, Tensor> = tensors
        .iter()
        .map(|(name, shape)| {
            let seed = name.len() as f32 + shape[0] as f32;
            let value = |i: usize| ((i as f32 * 0.618 + seed).sin() * 43_758.547).fract() * 0.1;
            let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
            (name.clone(), Tensor::from_slice(shape, &values).unwrap())
        })
        .collect();
    let specs: Vec<TensorSpec> = tensors.iter().map(|(name, tensor)| TensorSpec::of(name, tensor)).collect();
    save(dir.path(), &specs, |name| Ok::<_, CheckpointError>(tensors[name].clone()), &SaveOptions::default())
        .unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

/// The tensors of a model: outside of the layers, and inside each.
fn names(layers: usize, outer: &[(&str, &[usize])], inner: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
    let of_layer = |layer| {
        inner.iter().map(move |(name, shape)| (format!("model.layers.{layer}.{name}"), shape.to_vec()))
    };
    let outer = outer.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec()));
    outer.chain((0..layers).flat_map(of_layer)).collect()
}

fn config(changes: Value) -> Value {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 256,
        "num_hidden_layers": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": null,
        "vocab_size": 40, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": [2, 3],
        "attention_bias": false, "mlp_bias": false, "intermediate_size": 288,
    });
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

const ATTENTION: [(&str, &[usize]); 4] = [
    ("self_attn.q_proj.weight", &[256, 256]),
    ("self_attn.k_proj.weight", &[128, 256]),
    ("self_attn.v_proj.weight", &[128, 256]),
    ("self_attn.o_proj.weight", &[256, 256]),
];

fn dense() -> (TempDir, Checkpoint) {
    let rest: [(&str, &[usize]); 5] = [
        ("input_layernorm.weight", &[256]),
        ("mlp.gate_proj.weight", &[288, 256]),
        ("mlp.up_proj.weight", &[288, 256]),
        ("mlp.down_proj.weight", &[256, 288]),
        ("post_attention_layernorm.weight", &[256]),
    ];
    let outer: [(&str, &[usize]); 2] =
        [("model.embed_tokens.weight", &[40, 256]), ("model.norm.weight", &[256])];
    folder(&names(8, &outer, &[&ATTENTION[..], &rest].concat()))
}

fn mixture(router: &str, expert: &str, [gate, up, down]: [&str; 3]) -> (TempDir, Checkpoint) {
    let experts = (0..3).flat_map(|x| {
        [(gate, vec![32, 256]), (up, vec![32, 256]), (down, vec![256, 32])]
            .map(|(matrix, shape)| (format!("{expert}.{x}.{matrix}.weight"), shape))
    });
    let outer: [(&str, &[usize]); 3] = [
        ("model.embed_tokens.weight", &[40, 256]),
        ("model.norm.weight", &[256]),
        ("lm_head.weight", &[40, 256]),
    ];
    let mut tensors = names(1, &outer, &ATTENTION);
    tensors.push((format!("model.layers.0.{router}.weight"), vec![3, 256]));
    tensors.extend(experts.map(|(name, shape)| (format!("model.layers.0.{name}"), shape)));
    folder(&tensors)
}

fn export(
    checkpoint: &Checkpoint,
    config: &Value,
    format: GgufFormat,
    path: &Path,
) -> kanana_checkpoint::Result<()> {
    Export { checkpoint, config, tokenizing: None, name: "test", format }.write(path, &mut |_| {})
}

/// The names are the same, and the values nearly so: root mean square error over root mean square.
#[track_caller]
fn check_close(path: &Path, folder: &Checkpoint, tolerance: f64) {
    let file = Checkpoint::open(path).unwrap();
    assert!(file.names().eq(folder.names()));
    for name in folder.names() {
        let (got, expected) = (file.tensor(name).unwrap(), folder.tensor(name).unwrap());
        assert_eq!(got.shape(), expected.shape(), "{name}");
        let (got, expected) = (got.to_f32_vec().unwrap(), expected.to_f32_vec().unwrap());
        let square = |x: f32| f64::from(x) * f64::from(x);
        let noise: f64 = got.iter().zip(&expected).map(|(a, b)| square(a - b)).sum();
        let error = (noise / expected.iter().map(|&x| square(x)).sum::<f64>()).sqrt();
        assert!(error <= tolerance, "{name}: {error}");
    }
}

#[test]
fn a_folder_becomes_a_file_and_is_found_in_it_again() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("out.gguf");
    let checkpoint = Checkpoint::open(golden("llama")).unwrap();
    let (config, tokenizer) = (read_json("llama/config.json"), read_json("llama/tokenizer.json"));
    let named = read_json("llama/tokenizer_config.json");
    let tokenizing = Some(Tokenizing { tokenizer: &tokenizer, config: &named });
    let mut progress = Vec::new();
    Export { checkpoint: &checkpoint, config: &config, tokenizing, name: "tiny", format: GgufFormat::F32 }
        .write(&path, &mut |done| progress.push(done))
        .unwrap();

    check_close(&path, &checkpoint, 0.0);
    let parameters: usize = checkpoint.names().map(|name| checkpoint.tensor(name).unwrap().len()).sum();
    assert_eq!((progress.len(), progress.last()), (checkpoint.names().len(), Some(&(parameters as u64))));
    assert!(progress.is_sorted());
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(config_json(&file).unwrap(), config);
    assert_eq!(tokenizer_config_json(&file).unwrap(), named);
    let read = tokenizer_json(&file).unwrap().unwrap();
    for field in ["added_tokens", "normalizer", "pre_tokenizer", "post_processor", "model"] {
        assert_eq!(read[field], tokenizer[field], "{field}");
    }
    // What another writer made of the same model is said here too.
    let other = GgufFile::open(golden("llama.gguf")).unwrap();
    for key in other.metadata().keys() {
        assert!(file.metadata().contains(key), "{key}");
    }
    let types = |file: &GgufFile| file.header().tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(types(&file), types(&other));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn every_format_gives_its_types() {
    let (_dir, checkpoint) = dense();
    let out = TempDir::new().unwrap();
    for (format, tolerance, [embedding, q, v, down]) in [
        (GgufFormat::F32, 0.0, [GgmlType::F32; 4]),
        (GgufFormat::F16, 4e-4, [GgmlType::F16; 4]),
        (GgufFormat::BF16, 3e-3, [GgmlType::BF16; 4]),
        (GgufFormat::Q8_0, 8e-3, [GgmlType::Q8_0; 4]),
        // Rows of 288 are no whole number of blocks of 256.
        (GgufFormat::Q6_K, 0.03, [GgmlType::Q6_K, GgmlType::Q6_K, GgmlType::Q6_K, GgmlType::Q8_0]),
        (GgufFormat::Q4_K_S, 0.1, [GgmlType::Q6_K, GgmlType::Q4_K, GgmlType::Q4_K, GgmlType::Q5_0]),
        (GgufFormat::Q4_K_M, 0.1, [GgmlType::Q6_K, GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::Q8_0]),
        (GgufFormat::Q4_0, 0.1, [GgmlType::Q6_K, GgmlType::Q4_0, GgmlType::Q4_0, GgmlType::Q4_0]),
    ] {
        let path = out.path().join(format!("{}.gguf", format.name()));
        export(&checkpoint, &config(json!({})), format, &path).unwrap();
        check_close(&path, &checkpoint, tolerance);
        let file = GgufFile::open(&path).unwrap();
        let ggml_type = |name: &str| file.header().tensors[name].ggml_type;
        let got = ["token_embd", "blk.0.attn_q", "blk.7.attn_v", "blk.7.ffn_down"];
        assert_eq!(
            got.map(|name| ggml_type(&format!("{name}.weight"))),
            [embedding, q, v, down],
            "{}",
            format.name()
        );
        assert_eq!(ggml_type("blk.0.attn_norm.weight"), GgmlType::F32);
        if format == GgufFormat::Q4_K_M {
            let (less, more) = (ggml_type("blk.2.attn_v.weight"), ggml_type("blk.1.ffn_down.weight"));
            assert_eq!((less, more), (GgmlType::Q4_K, GgmlType::Q5_0));
        }
        assert_eq!(config_json(&file).unwrap(), config(json!({})));
    }
}

#[test]
fn mixtures_are_stacked_and_unstacked() {
    let out = TempDir::new().unwrap();
    let shared = json!({"num_hidden_layers": 1, "tie_word_embeddings": false, "num_experts_per_tok": 2});
    let check = |(_dir, checkpoint): (TempDir, Checkpoint), changes: Value, drop_fields: &[&str]| {
        let mut config = config(shared.clone());
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        drop_fields.iter().for_each(|field| drop(config.as_object_mut().unwrap().remove(*field)));
        let path = out.path().join(format!("{}.gguf", config["model_type"].as_str().unwrap()));
        export(&checkpoint, &config, GgufFormat::Q8_0, &path).unwrap();
        check_close(&path, &checkpoint, 8e-3);
        let file = GgufFile::open(&path).unwrap();
        assert_eq!(config_json(&file).unwrap(), config);
        assert_eq!(file.header().tensors["blk.0.ffn_down_exps.weight"].shape, [3, 256, 32]);
        assert_eq!(file.header().tensors["blk.0.ffn_gate_inp.weight"].ggml_type, GgmlType::F32);
    };
    check(
        mixture("block_sparse_moe.gate", "block_sparse_moe.experts", ["w1", "w3", "w2"]),
        json!({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 3}),
        &["attention_bias", "mlp_bias"],
    );
    check(
        mixture("mlp.gate", "mlp.experts", ["gate_proj", "up_proj", "down_proj"]),
        json!({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 3,
               "moe_intermediate_size": 32, "norm_topk_prob": true}),
        &["mlp_bias"],
    );
}

#[test]
fn rope_scalings_are_found_again() {
    let (_dir, checkpoint) = dense();
    let out = TempDir::new().unwrap();
    let yarn = json!({"rope_type": "yarn", "factor": 4.4, "original_max_position_embeddings": 32768, "beta_fast": 64.0,
                      "beta_slow": 2.0, "truncate": true, "attention_factor": 0.1 * 4.4f64.ln() + 1.0});
    let mut cold = yarn.clone();
    cold["attention_factor"] = 1.0.into();
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 8192});
    for (i, scaling) in
        [json!({"rope_type": "linear", "factor": 2.5}), yarn, cold, llama3].into_iter().enumerate()
    {
        let path = out.path().join(format!("{i}.gguf"));
        export(&checkpoint, &config(json!({"rope_scaling": scaling})), GgufFormat::BF16, &path).unwrap();
        let mut read = config_json(&GgufFile::open(&path).unwrap()).unwrap()["rope_scaling"].take();
        // A product of two f32: equal to seven digits.
        if let (Some(got), Some(expected)) =
            (read["attention_factor"].as_f64(), scaling["attention_factor"].as_f64())
        {
            assert!((got - expected).abs() < 1e-6, "{got} {expected}");
            read["attention_factor"] = expected.into();
        }
        assert_eq!(read, scaling);
    }
}

#[track_caller]
fn refuse(checkpoint: &Checkpoint, changes: Value, format: GgufFormat, expected: &str) {
    let out = TempDir::new().unwrap();
    let path = out.path().join("out.gguf");
    let error = export(checkpoint, &config(changes), format, &path).unwrap_err().to_string();
    assert!(error.contains("out.gguf: ") && error.contains(expected), "{error:?} does not say {expected:?}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0, "nothing is left");
}

#[test]
fn what_gguf_cannot_say_is_refused() {
    let (_dir, checkpoint) = dense();
    let dense = |changes: Value, expected: &str| refuse(&checkpoint, changes, GgufFormat::Q8_0, expected);
    dense(json!({"model_type": "mamba"}), "cannot express model_type = \"mamba\"");
    dense(
        json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
        "linear, yarn and llama3 scaling",
    );
    dense(json!({"head_dim": null}), "cannot express head_dim = null");
    dense(json!({"num_attention_heads": 3}), "expected rows for 3 heads");
    dense(json!({"eos_token_id": [4, 5, 6, 7]}), "the ends of a text, of a turn and of a message");
    let moe = json!({"model_type": "qwen3_moe", "num_experts": 3, "num_experts_per_tok": 1, "norm_topk_prob": false});
    dense(moe, "cannot express norm_topk_prob = false");

    let (_dir, checkpoint) = folder(&names(0, &[("visual.weight", &[4, 4])], &[]));
    refuse(&checkpoint, json!({}), GgufFormat::F32, "tensor \"visual.weight\" has no place in a GGUF file");
    let names = names(1, &[("model.layers.0.block_sparse_moe.experts.1.w1.weight", &[4, 4])], &[]);
    let (_dir, checkpoint) = folder(&names);
    let moe = json!({"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1});
    refuse(&checkpoint, moe, GgufFormat::F32, "although other experts of that layer are there");
}

#[test]
fn quantising_twice_is_refused() {
    let (_dir, checkpoint) = dense();
    let out = TempDir::new().unwrap();
    let path = out.path().join("once.gguf");
    export(&checkpoint, &config(json!({})), GgufFormat::Q4_K_M, &path).unwrap();
    let once = Checkpoint::open(&path).unwrap();
    refuse(&once, json!({}), GgufFormat::Q8_0, "and quantising it again would add error to error");
}

#[test]
fn a_file_of_halves_can_be_quantised() {
    let (_dir, checkpoint) = dense();
    let out = TempDir::new().unwrap();
    let (halves, small) = (out.path().join("halves.gguf"), out.path().join("small.gguf"));
    export(&checkpoint, &config(json!({})), GgufFormat::F16, &halves).unwrap();
    export(&Checkpoint::open(&halves).unwrap(), &config(json!({})), GgufFormat::Q8_0, &small).unwrap();
    check_close(&small, &checkpoint, 8e-3);
}

#[test]
fn nothing_is_overwritten() {
    let (_dir, checkpoint) = dense();
    let out = TempDir::new().unwrap();
    let path = out.path().join("out.gguf");
    std::fs::write(&path, "mine").unwrap();
    let error = export(&checkpoint, &config(json!({})), GgufFormat::F32, &path).unwrap_err().to_string();
    assert!(error.contains("out.gguf: a checkpoint is already there"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}

/// One tensor `w` of 32 values, all but the first 0.
#[track_caller]
fn write_one(name: &str, ggml_type: GgmlType, first: f32, given: usize) -> Result<Vec<f32>, String> {
    let out = TempDir::new().unwrap();
    let path = out.path().join("out.gguf");
    let spec = GgufSpec { name: name.to_owned(), ggml_type, shape: vec![32] };
    let mut values = vec![0.0; given];
    values[0] = first;
    let metadata = [
        ("general.architecture", MetadataValue::Text("llama".into())),
        ("llama.attention.head_count", MetadataValue::U32(1)),
    ];
    let written =
        save_gguf(&path, &metadata.map(|(key, value)| (key.to_owned(), value)), &[spec], |_, sink| {
            values.chunks(32).try_for_each(&mut *sink)
        });
    match written {
        Ok(()) => Ok(Checkpoint::open(&path).unwrap().tensor(name).unwrap().to_f32_vec().unwrap()),
        Err(error) => {
            assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0, "nothing is left");
            Err(CheckpointError::to_string(&error))
        }
    }
}

#[test]
fn values_that_a_type_cannot_hold_are_refused() {
    assert_eq!(write_one("w", GgmlType::F32, 1e30, 32).unwrap()[0], 1e30);
    assert!(write_one("w", GgmlType::BF16, f32::NAN, 32).unwrap()[0].is_nan());
    for (ggml_type, value) in
        [(GgmlType::F16, 1e5), (GgmlType::Q8_0, f32::NAN), (GgmlType::Q4_0, f32::INFINITY)]
    {
        let error = write_one("w", ggml_type, value, 32).unwrap_err();
        assert!(
            error.contains(&format!("tensor \"w\" holds {value}, which {ggml_type} cannot store")),
            "{error}"
        );
    }
}

#[test]
fn announcements_are_kept() {
    let check = |result: Result<Vec<f32>, String>, expected: &str| {
        let error = result.unwrap_err();
        assert!(error.contains(expected), "{error}");
    };
    check(write_one("w", GgmlType::F32, 1.0, 24), "announced with 32 values and came with 24");
    check(write_one("w", GgmlType::F32, 1.0, 40), "announced with 32 values and came with 40");
    check(write_one("w", GgmlType::Q4_K, 1.0, 32), "has rows of 32, expected a multiple of 256");
    check(write_one("w", GgmlType::Q5_K, 1.0, 32), "cannot be written as Q5_K");
    check(write_one(&"w".repeat(64), GgmlType::F32, 1.0, 32), "more than 63 bytes");
}
