//! Losses and gradients of PyTorch on tiny random models of every family.
//!
//! The files under `tests/goldens` are made by `goldens/make_training.py`, which says what is in them; the models are
//! those of the crate `model`. `cargo test -p kanana-train --test golden -- --nocapture` prints the worst errors.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kanana_checkpoint::{Checkpoint, parse_header};
use kanana_kernels::{Cpu, CpuOptions, CrossEntropy, Format, Kernels, Reference, RouterLosses};
use kanana_model::{Batch, Config, LoadOptions};
use kanana_tensor::Tensor;
use kanana_train::{Algorithm, Gradients, NextToken, Optimizer, OptimizerOptions, Parameters, Pass};
use serde_json::Value;

/// Largest error of a loss, and of a gradient as a share of its largest element.
const TOLERANCE: f64 = 1e-4;

/// One model, its batch, and what PyTorch computes with them.
struct Golden {
    name: String,
    config: Config,
    parameters: Parameters,
    sequences: Vec<Vec<u32>>,
    targets: Vec<u32>,
    expected: Value,
    /// By objective and parameter.
    gradients: BTreeMap<String, Vec<f32>>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

fn goldens() -> Vec<Golden> {
    let paths = std::fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    paths.sort();
    assert_eq!(paths.len(), 8, "files in {}", root().display());
    paths.iter().map(|path| Golden::read(path)).collect()
}

impl Golden {
    fn read(path: &Path) -> Self {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/goldens").join(&name);
        let config = Config::from_dir(&model).unwrap();
        let expected: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let targets: Vec<Vec<i64>> = serde_json::from_value(expected["targets"].clone()).unwrap();
        let target = |y: i64| u32::try_from(y).unwrap_or(CrossEntropy::IGNORED);
        Golden {
            parameters: Parameters::continued(&Checkpoint::open(&model).unwrap(), &config).unwrap(),
            config,
            sequences: serde_json::from_value(expected["sequences"].clone()).unwrap(),
            targets: targets.into_iter().flatten().map(target).collect(),
            gradients: read_f32(&path.with_extension("safetensors")),
            expected,
            name,
        }
    }

    /// The loss of the tokens and the gradients of everything, under the options of one objective.
    fn run(&self, kernels: &dyn Kernels, options: &Value) -> (f64, BTreeMap<String, Vec<f32>>) {
        let option = |name: &str| options[name].as_f64().unwrap_or_default() as f32;
        let scale = 1.0 / self.targets.iter().filter(|&&y| y != CrossEntropy::IGNORED).count() as f32;
        let cross_entropy =
            CrossEntropy { scale, label_smoothing: option("label_smoothing"), z_loss: option("z_loss") };
        let load = LoadOptions { format: Format::F32, max_positions: 32 };
        let built = self.parameters.build(kernels, &self.config, &load).unwrap();
        let (mut objective, mut sums) = (NextToken::new(&self.targets, cross_entropy), Gradients::default());
        let pass = Pass {
            kernels,
            model: &built.model,
            parameters: &built.learnt,
            checkpointing: false,
            chunk: 10,
            router_losses: RouterLosses {
                load_balance: option("load_balance"),
                z_loss: option("router_z_loss"),
            },
        };
        let sequences: Vec<&[u32]> = self.sequences.iter().map(|ids| &ids[..]).collect();
        pass.run(&Batch::packed(&sequences, true), &mut objective, &mut sums).unwrap();
        let gradient = |of| sums.get(of).unwrap().as_slice::<f32>().unwrap().to_vec();
        let gradients = built.names.iter().map(|(&of, name)| (name.clone(), gradient(of))).collect();
        (objective.loss * f64::from(scale), gradients)
    }

    fn check(&self, kernels: &dyn Kernels, what: &str) {
        for (objective, options) in self.expected["objectives"].as_object().unwrap() {
            let what = format!("{} {objective} {what}", self.name);
            let (loss, gradients) = self.run(kernels, options);
            let expected = options["expected"]["loss"].as_f64().unwrap();
            assert!((loss / expected - 1.0).abs() <= TOLERANCE, "{what}: loss {loss}, expected {expected}");
            let prefix = format!("{objective}.");
            let expected: Vec<(&str, &Vec<f32>)> = self
                .gradients
                .iter()
                .filter_map(|(name, g)| Some((name.strip_prefix(&prefix)?, g)))
                .collect();
            assert_eq!(expected.len(), gradients.len(), "{what}: a gradient for every parameter");
            let mut worst = (0.0, "");
            for (name, expected) in expected {
                let error = relative_error(&gradients[name], expected);
                assert!(error <= TOLERANCE, "{what}: the gradient of {name} is {error:.1e} off");
                if error > worst.0 {
                    worst = (error, name);
                }
            }
            println!("{what}: worst {:.1e} in {}", worst.0, worst.1);
        }
    }
}

impl Golden {
    /// Ten steps of every optimiser on the same batch.
    fn check_runs(mut self) {
        let kernels = Cpu::default();
        for (run, options) in self.expected["runs"].as_object().unwrap().clone() {
            let number = |value: &Value| value.as_f64().unwrap() as f32;
            let numbers =
                |value: &Value| -> Vec<f32> { value.as_array().unwrap().iter().map(number).collect() };
            let betas = numbers(&options["betas"]);
            let mut chosen = OptimizerOptions {
                learning_rate: number(&options["learning_rate"]),
                betas: [betas[0], betas[1]],
                eps: number(&options["eps"]),
                weight_decay: number(&options["weight_decay"]),
                clip_norm: number(&options["clip_norm"]),
                independent_decay: run == "adamw_independent",
                ..OptimizerOptions::default()
            };
            if run == "muon" {
                chosen.algorithm = Algorithm::Muon;
                chosen.muon_learning_rate = number(&options["muon_learning_rate"]);
                chosen.muon_momentum = number(&options["momentum"]);
            }
            let start: BTreeMap<String, Tensor> = self.parameters.learnt.clone();
            let copy = |tensor: &Tensor| {
                Tensor::from_slice(tensor.shape(), tensor.as_slice::<f32>().unwrap()).unwrap()
            };
            self.parameters.learnt =
                start.iter().map(|(name, tensor)| (name.clone(), copy(tensor))).collect();
            let mut optimizer = Optimizer::new(chosen, 0);
            let expected = |what: &str| numbers(&options["expected"][what]);
            let (losses, norms) = (expected("losses"), expected("grad_norms"));
            for (step, factor) in numbers(&options["factors"]).into_iter().enumerate() {
                let (loss, gradients) = self.run(&kernels, &Value::Null);
                let shaped = gradients.into_iter().map(|(name, values)| {
                    let shape = self.parameters.learnt[&name].shape().to_vec();
                    (name, Tensor::from_slice(&shape, &values).unwrap())
                });
                let shaped = shaped.collect();
                let outcome = optimizer.step(&kernels, &mut self.parameters.learnt, &shaped, factor).unwrap();
                for (what, got, expected) in
                    [("loss", loss, losses[step]), ("gradient norm", outcome.grad_norm, norms[step])]
                {
                    // What a change of the weights by a millionth does to these lists, several times over.
                    let error = (got / f64::from(expected) - 1.0).abs();
                    assert!(
                        error <= 2e-3,
                        "{} {run} step {step}: {what} {got}, expected {expected}",
                        self.name
                    );
                }
            }
            self.parameters.learnt = start;
        }
    }
}

fn read_f32(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let header = parse_header(path, &bytes, bytes.len() as u64).unwrap();
    let values = |data: &[u8]| data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    header.tensors.into_iter().map(|(name, entry)| (name, values(&bytes[entry.bytes]))).collect()
}

/// `max |got - expected| / max |expected|`; infinite when something is not a number.
fn relative_error(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len(), "number of elements");
    let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
    let off = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
    f64::from(off.fold(0f32, |m, x| if x.is_nan() { f32::INFINITY } else { m.max(x) }) / largest)
}

#[test]
fn losses_and_gradients_by_the_reference() {
    goldens().iter().for_each(|golden| golden.check(&Reference, "Reference"));
}

#[test]
fn losses_and_gradients_on_three_threads() {
    let cpu = Cpu::new(CpuOptions { threads: Some(3), ..CpuOptions::default() });
    goldens().iter().for_each(|golden| golden.check(&cpu, "Cpu"));
}

#[test]
fn ten_steps_of_every_optimiser() {
    goldens().into_iter().for_each(Golden::check_runs);
}
