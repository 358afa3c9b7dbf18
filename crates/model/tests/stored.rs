//! A checkpoint of packed matrices is the model that is quantised while it is loaded, bit for bit, on every machine.
//!
//! `cargo test -p kanana-model --test stored`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kanana_checkpoint::{Checkpoint, CheckpointError, Packing, SaveOptions, TensorSpec, save};
use kanana_kernels::{Cpu, Format, Kernels, Packed, Reference};
use kanana_model::{
    Batch, Config, LoadOptions, ModelError, Transformer, check_stored, numbers, weight_format,
};
use kanana_tensor::Tensor;

const QUANTISED: [Format; 2] = [Format::Q8, Format::Q4];

fn golden(name: &str) -> (Checkpoint, Config) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name);
    (Checkpoint::open(&dir).unwrap(), Config::from_dir(&dir).unwrap())
}

/// The checkpoint with its matrices packed, in a folder of its own.
fn stored(source: &Checkpoint, format: Format, dir: &Path) -> Checkpoint {
    let kernels = Cpu::default();
    let mut metadata = BTreeMap::new();
    let tensors = source.names().map(|name| {
        let tensor = source.tensor(name).unwrap();
        let format = weight_format(name, format);
        if tensor.shape().len() == 1 || !format.is_quantised() {
            return (name.to_owned(), tensor);
        }
        let packed = kernels.pack(&tensor, format).unwrap().packed().unwrap();
        let shape = [packed.out_features, packed.in_features];
        let packing = Packing { format: format.name().to_owned(), version: Packed::VERSION, shape };
        metadata.insert(name.to_owned(), packing.to_string());
        (name.to_owned(), packed.panels)
    });
    let tensors: BTreeMap<String, Tensor> = tensors.collect();
    let specs: Vec<TensorSpec> = tensors.iter().map(|(name, tensor)| TensorSpec::of(name, tensor)).collect();
    let options = SaveOptions { metadata, max_shard_bytes: Some(20_000) };
    let files: Vec<PathBuf> =
        save(dir, &specs, |name| Ok::<_, CheckpointError>(tensors[name].clone()), &options).unwrap();
    assert!(files.len() > 1, "shards");
    Checkpoint::open(dir).unwrap()
}

fn load(
    checkpoint: &Checkpoint,
    config: &Config,
    kernels: &dyn Kernels,
    format: Format,
) -> kanana_model::Result<Transformer> {
    Transformer::load(checkpoint, config, kernels, &LoadOptions { format, max_positions: 16 })
}

fn logits(model: &Transformer, kernels: &dyn Kernels) -> Vec<u32> {
    let hidden = model.forward(kernels, &Batch::packed(&[&[1, 5, 3, 9, 2]], true), None).unwrap();
    let logits = model.logits(kernels, &hidden).unwrap().to_f32_vec().unwrap();
    logits.into_iter().map(f32::to_bits).collect()
}

#[test]
fn stored_and_quantised_while_loading_are_one_model() {
    let implementations: [&dyn Kernels; 2] = [&Reference, &Cpu::default()];
    for name in ["llama-biased", "llama-tied", "mixtral", "qwen2-moe", "qwen3-moe"] {
        let (source, config) = golden(name);
        for format in QUANTISED {
            let dir = tempfile::tempdir().unwrap();
            let stored = stored(&source, format, dir.path());
            check_stored(&stored, &Config { quantization: Some(format), ..config.clone() }).unwrap();
            for kernels in implementations {
                let expected = logits(&load(&source, &config, kernels, format).unwrap(), kernels);
                let got = logits(&load(&stored, &config, kernels, format).unwrap(), kernels);
                assert!(got == expected, "{name} {format}");
            }
        }
    }
}

#[test]
fn what_is_stored_is_not_quantised_again() {
    let (source, config) = golden("llama-tied");
    let dir = tempfile::tempdir().unwrap();
    let stored = stored(&source, Format::Q8, dir.path());
    for format in [Format::F32, Format::BF16, Format::Q4] {
        let error = load(&stored, &config, &Cpu::default(), format).err().unwrap();
        assert!(matches!(error, ModelError::Requantised { from: Format::Q8, .. }), "{format}: {error}");
        assert!(error.hint().unwrap().contains("load it in q8"));
    }
    // What config.json says and what the files hold must agree.
    let error = check_stored(&stored, &config).unwrap_err();
    assert!(error.to_string().contains("stored as q8"), "{error}");
    let quantised = Config { quantization: Some(Format::Q8), ..config.clone() };
    let error = check_stored(&source, &quantised).unwrap_err();
    assert!(error.to_string().contains("model.embed_tokens.weight"), "{error}");
}

#[test]
fn numbers_are_those_of_the_codes() {
    let (source, _) = golden("llama-tied");
    let dir = tempfile::tempdir().unwrap();
    let stored = stored(&source, Format::Q4, dir.path());
    for name in source.names() {
        let [exact, fast, oracle] = [
            source.tensor(name).unwrap(),
            numbers(&stored, &Cpu::default(), name).unwrap(),
            numbers(&stored, &Reference, name).unwrap(),
        ]
        .map(|tensor| tensor.to_f32_vec().unwrap());
        assert_eq!(fast, oracle, "{name}");
        let largest = exact.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let off = exact.iter().zip(&fast).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(off < largest / 6.0, "{name}: {off} of {largest}");
    }
}
