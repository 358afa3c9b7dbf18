//! Gradients of whole models: the tape against central differences, and against itself with blocks computed again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use kanana_kernels::{Cpu, CpuOptions, CrossEntropy, Format, Kernels, Reference, RouterLosses};
use kanana_model::{Batch, Config, LoadOptions, Random, Source};
use kanana_tensor::Tensor;
use kanana_train::{Gradients, LoraOptions, NextToken, Parameters, Pass};

const MAX_POSITIONS: usize = 16;
const SEQUENCES: [&[u32]; 3] = [&[3, 1, 4, 1, 5, 9, 2], &[6], &[5, 3, 5, 8, 9]];
const IGNORED: u32 = CrossEntropy::IGNORED;
const TARGETS: [u32; 13] = [1, 4, 1, IGNORED, 9, 2, IGNORED, IGNORED, 3, 5, 8, 9, IGNORED];

/// A tiny model whose head_dim is not hidden / heads. `extra` fields are added to its config.json.
fn config(model_type: &str, extra: &str) -> Config {
    let text = format!(
        r#"{{"model_type": "{model_type}", "vocab_size": 19, "hidden_size": 12, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 10,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 16, "hidden_act": "silu"{extra}}}"#
    );
    Config::from_json_str(&text, "config.json").unwrap()
}

fn families() -> Vec<(&'static str, Config)> {
    vec![
        ("dense", config("llama", r#", "tie_word_embeddings": false, "attention_bias": true"#)),
        ("tied", config("llama", r#", "tie_word_embeddings": true"#)),
        ("normed", config("qwen3", r#", "tie_word_embeddings": false"#)),
        (
            "mixture",
            config(
                "mixtral",
                r#", "num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": false"#,
            ),
        ),
    ]
}

/// Loss and gradients by name.
fn gradients(
    kernels: &dyn Kernels,
    config: &Config,
    parameters: &Parameters,
    format: Format,
    checkpointing: bool,
) -> (f64, Vec<(String, Vec<f32>)>) {
    let options = LoadOptions { format, max_positions: MAX_POSITIONS };
    let built = parameters.build(kernels, config, &options).unwrap();
    let scale = 1.0 / TARGETS.iter().filter(|&&y| y != IGNORED).count() as f32;
    let options = CrossEntropy { scale, label_smoothing: 0.1, z_loss: 1e-3 };
    let mut objective = NextToken::new(&TARGETS, options);
    let mut sums = Gradients::default();
    let pass = Pass {
        kernels,
        model: &built.model,
        parameters: &built.learnt,
        checkpointing,
        chunk: 4,
        router_losses: RouterLosses::default(),
    };
    pass.run(&Batch::packed(&SEQUENCES, true), &mut objective, &mut sums).unwrap();
    let mut named: Vec<(String, Vec<f32>)> = built
        .names
        .iter()
        .filter_map(|(&of, name)| Some((name.clone(), sums.take(of)?.as_slice::<f32>().unwrap().to_vec())))
        .collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    (objective.loss * f64::from(scale), named)
}

/// Larger weights than a run starts from, so that nothing is almost linear.
fn parameters(config: &Config) -> Parameters {
    let mut parameters = Parameters::random(config, 7).unwrap();
    for (name, tensor) in &mut parameters.learnt {
        let values = tensor.as_mut_slice::<f32>().unwrap();
        match name.contains("norm") || name.contains("bias") {
            true => values.iter_mut().enumerate().for_each(|(i, x)| *x += 0.1 * (i as f32).sin()),
            false => values.iter_mut().for_each(|x| *x *= 12.0),
        }
    }
    parameters
}

#[test]
fn every_gradient_is_a_central_difference() {
    for (family, config) in families() {
        let mut parameters = parameters(&config);
        let kernels = Cpu::default();
        let (_, analytic) = gradients(&kernels, &config, &parameters, Format::F32, false);
        assert_eq!(analytic.len(), parameters.learnt.len(), "{family}: a gradient for every parameter");
        for (name, gradient) in analytic {
            let largest = gradient.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            // A few elements of each, the largest among them.
            let at_largest = gradient.iter().position(|x| x.abs() == largest).unwrap();
            for i in [0, gradient.len() / 2, gradient.len() - 1, at_largest] {
                let mut loss_at = |offset: f32| {
                    let tensor = parameters.learnt.get_mut(&name).unwrap();
                    let mut values = tensor.as_slice::<f32>().unwrap().to_vec();
                    let before = values[i];
                    values[i] += offset;
                    *tensor = Tensor::from_slice(tensor.shape(), &values).unwrap();
                    let (loss, _) = gradients(&kernels, &config, &parameters, Format::F32, true);
                    values[i] = before;
                    let tensor = parameters.learnt.get_mut(&name).unwrap();
                    *tensor = Tensor::from_slice(tensor.shape(), &values).unwrap();
                    loss
                };
                let step = 4e-3;
                let difference = (loss_at(step) - loss_at(-step)) / f64::from(2.0 * step);
                let error = (difference - f64::from(gradient[i])).abs();
                assert!(
                    error < 2e-3 * f64::from(largest) + 2e-4,
                    "{family} {name}[{i}]: difference {difference}, gradient {}",
                    gradient[i]
                );
            }
        }
    }
}

#[test]
fn blocks_computed_again_give_the_same_bits_on_any_number_of_threads() {
    for (family, config) in families() {
        let parameters = parameters(&config);
        for format in [Format::F32, Format::BF16] {
            let run = |threads, checkpointing| {
                let kernels = Cpu::new(CpuOptions { threads: Some(threads), isa: None });
                gradients(&kernels, &config, &parameters, format, checkpointing)
            };
            let plain = run(1, false);
            assert_eq!(plain, run(1, true), "{family} {format}: checkpointed");
            assert_eq!(plain, run(3, false), "{family} {format}: three threads");
        }
    }
}

#[test]
fn fast_kernels_give_the_gradients_of_the_reference() {
    for (family, config) in families() {
        let parameters = parameters(&config);
        let (loss, fast) = gradients(&Cpu::default(), &config, &parameters, Format::F32, false);
        let (expected_loss, expected) = gradients(&Reference, &config, &parameters, Format::F32, false);
        assert!((loss - expected_loss).abs() < 1e-5, "{family}: {loss}, {expected_loss}");
        for ((name, fast), (_, expected)) in fast.iter().zip(&expected) {
            let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            let error = fast.iter().zip(expected).fold(0f32, |error, (a, b)| error.max((a - b).abs()));
            assert!(error <= 2e-4 * largest, "{family} {name}: {error} of {largest}");
        }
    }
}

/// Adapters that do something: their second factors are not zero.
fn adapted(config: &Config, kernels: &dyn Kernels, format: Format) -> (Random, Parameters) {
    let lora = LoraOptions {
        rank: 3,
        alpha: 6.0,
        rank_stabilised: false,
        targets: LoraOptions::TARGETS.map(str::to_owned).to_vec(),
    };
    let base = Random::new(11, format);
    let mut parameters = Parameters::adapted(&base, config, kernels, format, lora, 5).unwrap();
    for (i, (name, tensor)) in parameters.learnt.iter_mut().enumerate() {
        if name.ends_with("lora_b") {
            let values = tensor.as_mut_slice::<f32>().unwrap();
            values.iter_mut().enumerate().for_each(|(j, x)| *x = 0.3 * ((i * 31 + j) as f32).sin());
        }
    }
    (base, parameters)
}

#[test]
fn adapters_have_gradients_and_merged_they_are_the_same_model() {
    for (family, config) in families().into_iter().filter(|(family, _)| *family != "mixture") {
        let kernels = Cpu::default();
        let (base, mut parameters) = adapted(&config, &kernels, Format::F32);
        assert_eq!(
            parameters.learnt.len(),
            2 * 2 * 7,
            "{family}: two factors for seven projections of two layers"
        );
        let (_, analytic) = gradients(&kernels, &config, &parameters, Format::F32, false);
        assert_eq!(
            analytic.len(),
            parameters.learnt.len(),
            "{family}: nothing that is frozen has a gradient"
        );
        let (_, checkpointed) = gradients(&kernels, &config, &parameters, Format::F32, true);
        assert_eq!(analytic, checkpointed, "{family}");
        for (name, gradient) in &analytic {
            let mut loss_at = |offset: f32| {
                let tensor = parameters.learnt.get_mut(name).unwrap();
                tensor.as_mut_slice::<f32>().unwrap()[0] += offset;
                gradients(&kernels, &config, &parameters, Format::F32, true).0
            };
            let (above, below) = (loss_at(4e-3), loss_at(-8e-3));
            loss_at(4e-3);
            let difference = (above - below) / 8e-3;
            let largest = gradient.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            let error = (difference - f64::from(gradient[0])).abs();
            assert!(
                error < 5e-3 * f64::from(largest) + 2e-4,
                "{family} {name}: {difference}, {}",
                gradient[0]
            );
        }

        let options = LoadOptions { format: Format::F32, max_positions: MAX_POSITIONS };
        let merged = parameters.merged(&base, &config, &kernels).unwrap();
        let merged = Parameters::continued(&Merged(merged), &config).unwrap();
        let logits = |parameters: &Parameters| {
            let built = parameters.build(&kernels, &config, &options).unwrap();
            let hidden = built.model.forward(&kernels, &Batch::packed(&SEQUENCES, true), None).unwrap();
            built.model.logits(&kernels, &hidden).unwrap().to_f32_vec().unwrap()
        };
        let (beside, within) = (logits(&parameters), logits(&merged));
        let largest = beside.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        for (a, b) in beside.iter().zip(&within) {
            assert!((a - b).abs() < 1e-5 * largest, "{family}: {a} beside the weights, {b} within");
        }
    }
}

/// Tensors at hand.
struct Merged(BTreeMap<String, Tensor>);

impl Source for Merged {
    fn tensor(&self, name: &str, _shape: &[usize]) -> kanana_model::Result<Tensor> {
        Ok(self.0[name].clone())
    }
}
