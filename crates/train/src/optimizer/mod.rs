//! From gradients to steps: clipping, decay, AdamW, and Muon for the matrices of the layers.

mod moment;
mod muon;

use std::collections::BTreeMap;

use kanana_kernels::Kernels;
use kanana_tensor::{DType, Tensor, bf16};
pub use moment::MomentFormat;
use moment::{Chance, Moment};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Result, TrainError};

/// How parameters are updated.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerOptions {
    /// What updates the matrices of the layers; AdamW updates the rest.
    pub algorithm: Algorithm,
    /// The peak of AdamW's learning rate.
    pub learning_rate: f32,
    /// Decay of the running means of gradients and of their squares.
    pub betas: [f32; 2],
    /// Added to the root of the mean square.
    pub eps: f32,
    /// Pulls matrices of the layers to zero; never norms, biases, the embedding or the output matrix.
    pub weight_decay: f32,
    /// Decay is not multiplied with the learning rate, only with the schedule: `w -= weight_decay · factor · w`. Source:
    /// Loshchilov and Hutter 2019, arXiv 1711.05101; the Kanana report, A.3, has 1e-4.
    pub independent_decay: bool,
    /// Gradients are scaled down to this norm; 0: never.
    pub clip_norm: f32,
    /// The peak of Muon's learning rate.
    pub muon_learning_rate: f32,
    /// Decay of Muon's running sum of gradients.
    pub muon_momentum: f32,
    /// How running means and sums are stored between steps.
    pub state: MomentFormat,
}

impl Default for OptimizerOptions {
    fn default() -> Self {
        OptimizerOptions {
            algorithm: Algorithm::AdamW,
            learning_rate: 3e-4,
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.1,
            independent_decay: false,
            clip_norm: 1.0,
            muon_learning_rate: 0.02,
            muon_momentum: 0.95,
            state: MomentFormat::F32,
        }
    }
}

/// Optimisers of the matrices of the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Adam with decoupled decay. Source: Loshchilov and Hutter 2019, arXiv 1711.05101.
    AdamW,
    /// Momentum, made orthogonal. Source: Jordan et al. 2024, "Muon"; the scale is `sqrt(max(1, rows / columns))`.
    Muon,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// The norm of all gradients, before clipping.
    pub grad_norm: f64,
    /// Whether parameters were updated: not where a gradient is not finite.
    pub updated: bool,
}

/// Running means, by parameter.
pub struct Optimizer {
    options: OptimizerOptions,
    /// What rounding follows from.
    seed: u64,
    /// Updates done.
    steps: u64,
    /// `{name}.exp_avg`, `{name}.exp_avg_sq`, `{name}.momentum`.
    state: BTreeMap<String, Tensor>,
}

/// Elements that one thread updates or sums at a time. Fixed, so that sums have one order.
const CHUNK: usize = 1 << 16;

const EXP_AVG: &str = "exp_avg";
const EXP_AVG_SQ: &str = "exp_avg_sq";
const MOMENTUM: &str = "momentum";

impl Optimizer {
    /// One that has seen nothing. What is rounded follows from the seed.
    pub fn new(options: OptimizerOptions, seed: u64) -> Self {
        Optimizer::restored(options, seed, 0, BTreeMap::new())
    }

    /// One that goes on: [`Optimizer::state`] and [`Optimizer::steps`] of another.
    pub fn restored(
        options: OptimizerOptions,
        seed: u64,
        steps: u64,
        state: BTreeMap<String, Tensor>,
    ) -> Self {
        Optimizer { options, seed, steps, state }
    }

    /// Everything it remembers but [`Optimizer::steps`], by name.
    pub fn state(&self) -> &BTreeMap<String, Tensor> {
        &self.state
    }

    /// Updates done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Updates every parameter that has a gradient. `factor` is the schedule's share of the peak learning rates.
    ///
    /// Shapes: gradients have the shapes of their parameters, f32 in host memory, which this is the only handle of.
    /// Errors: a gradient without a parameter, or of another size than it or than what is remembered of it. Then, and when a
    /// gradient is not finite, nothing changes.
    /// Cost: AdamW reads 16 and writes 12 bytes for each parameter, with a state in bf16 12 and 8. Same bits on any number
    /// of threads.
    pub fn step(
        &mut self,
        kernels: &dyn Kernels,
        parameters: &mut BTreeMap<String, Tensor>,
        gradients: &BTreeMap<String, Tensor>,
        factor: f32,
    ) -> Result<Outcome> {
        let mut squares = 0.0;
        for (name, gradient) in gradients {
            self.check(name, parameters, gradient)?;
            squares += sum_of_squares(gradient.as_slice::<f32>()?);
        }
        let grad_norm = squares.sqrt();
        if !grad_norm.is_finite() {
            return Ok(Outcome { grad_norm, updated: false });
        }
        let clip = f64::from(self.options.clip_norm);
        let scale = if clip > 0.0 { (clip / (grad_norm + 1e-6)).min(1.0) as f32 } else { 1.0 };
        self.steps += 1;
        for (name, gradient) in gradients {
            let parameter = parameters.get_mut(name).expect("checked above: this is a bug");
            let of_layer = is_matrix_of_layer(name, parameter);
            let orthogonal = self.is_orthogonal(name, parameter);
            let rate = factor
                * if orthogonal { self.options.muon_learning_rate } else { self.options.learning_rate };
            let decay = match of_layer {
                true if self.options.independent_decay => self.options.weight_decay * factor,
                true => self.options.weight_decay * rate,
                false => 0.0,
            };
            if orthogonal {
                let mut momentum = self.take(name, MOMENTUM, parameter);
                let (factors, chance) = ((scale, self.options.muon_momentum), self.chance(name));
                let direction = match self.options.state {
                    MomentFormat::F32 => {
                        muon::direction::<f32>(kernels, gradient, &mut momentum, factors, chance)
                    }
                    MomentFormat::Bf16 => {
                        muon::direction::<bf16>(kernels, gradient, &mut momentum, factors, chance)
                    }
                }?;
                self.state.insert(format!("{name}.{MOMENTUM}"), momentum);
                let direction = direction.as_slice::<f32>()?;
                for (w, d) in parameter.as_mut_slice::<f32>()?.iter_mut().zip(direction) {
                    *w -= rate * d + decay * *w;
                }
            } else {
                let factors = (scale, rate, decay);
                match self.options.state {
                    MomentFormat::F32 => self.adamw::<f32>(name, parameter, gradient, factors)?,
                    MomentFormat::Bf16 => self.adamw::<bf16>(name, parameter, gradient, factors)?,
                }
            }
        }
        Ok(Outcome { grad_norm, updated: true })
    }

    /// Bytes of all that will be remembered of these parameters.
    pub fn state_bytes(&self, parameters: &BTreeMap<String, Tensor>) -> u64 {
        let of = |(name, parameter): (&String, &Tensor)| {
            let remembered = if self.is_orthogonal(name, parameter) { 1 } else { 2 };
            (remembered * parameter.len() * self.options.state.dtype().size()) as u64
        };
        parameters.iter().map(of).sum()
    }

    /// Whether Muon updates it.
    fn is_orthogonal(&self, name: &str, parameter: &Tensor) -> bool {
        // A router is a classifier over experts, not a map of the hidden space.
        self.options.algorithm == Algorithm::Muon && is_matrix_of_layer(name, parameter) && !is_router(name)
    }

    fn chance(&self, name: &str) -> Chance {
        Chance::new(self.seed, self.steps, name)
    }

    /// Everything that could end a step half way.
    fn check(&self, name: &str, parameters: &mut BTreeMap<String, Tensor>, gradient: &Tensor) -> Result<()> {
        let parameter =
            parameters.get_mut(name).ok_or_else(|| TrainError::UnknownParameter { name: name.to_owned() })?;
        parameter.as_mut_slice::<f32>()?;
        let remembered = [EXP_AVG, EXP_AVG_SQ, MOMENTUM]
            .map(|what| (what, self.state.get(&format!("{name}.{what}"))))
            .into_iter()
            .filter_map(|(what, tensor)| Some((what, tensor?)));
        for (what, tensor) in [("gradient", gradient)].into_iter().chain(remembered) {
            let dtype = if what == "gradient" { DType::F32 } else { self.options.state.dtype() };
            if tensor.shape() != parameter.shape() || tensor.dtype() != dtype {
                return Err(TrainError::Misfit {
                    parameter: name.to_owned(),
                    what,
                    expected: format!("{dtype} {:?}", parameter.shape()),
                    got: format!("{} {:?}", tensor.dtype(), tensor.shape()),
                });
            }
        }
        Ok(())
    }

    fn adamw<M: Moment>(
        &mut self,
        name: &str,
        parameter: &mut Tensor,
        gradient: &Tensor,
        (scale, rate, decay): (f32, f32, f32),
    ) -> Result<()> {
        let [beta1, beta2] = self.options.betas;
        let eps = self.options.eps;
        let bias = |beta: f32| (1.0 - f64::from(beta).powf(self.steps as f64)) as f32;
        let (bias1, bias2) = (bias(beta1), bias(beta2));
        let (mut mean, mut square) =
            (self.take(name, EXP_AVG, parameter), self.take(name, EXP_AVG_SQ, parameter));
        {
            let chance = self.chance(name);
            let (m, v) = (mean.as_mut_slice::<M>()?, square.as_mut_slice::<M>()?);
            let (w, g) = (parameter.as_mut_slice::<f32>()?, gradient.as_slice::<f32>()?);
            let chunks = w.par_chunks_mut(CHUNK).zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK));
            chunks.zip(g.par_chunks(CHUNK)).enumerate().for_each(|(chunk, (((w, m), v), g))| {
                for (i, (((w, m), v), g)) in w.iter_mut().zip(m).zip(v).zip(g).enumerate() {
                    let g = g * scale;
                    let mean = beta1 * m.widen() + (1.0 - beta1) * g;
                    let square = beta2 * v.widen() + (1.0 - beta2) * g * g;
                    *w -= rate * (mean / bias1) / ((square / bias2).sqrt() + eps) + decay * *w;
                    let [of_mean, of_square] = chance.at(chunk * CHUNK + i);
                    (*m, *v) = (M::round(mean, of_mean), M::round(square, of_square));
                }
            });
        }
        self.state.insert(format!("{name}.{EXP_AVG}"), mean);
        self.state.insert(format!("{name}.{EXP_AVG_SQ}"), square);
        Ok(())
    }

    /// What is remembered of a parameter, taken out so that this is its only handle; zeros at first.
    fn take(&mut self, name: &str, what: &str, parameter: &Tensor) -> Tensor {
        let state = self.state.remove(&format!("{name}.{what}"));
        state.unwrap_or_else(|| Tensor::zeros(parameter.shape(), self.options.state.dtype()))
    }
}

/// In f64, in an order that depends on the length alone. Not finite exactly where an element is not.
fn sum_of_squares(values: &[f32]) -> f64 {
    const LANES: usize = 8;
    let of_chunk = |chunk: &[f32]| {
        let mut lanes = [0f64; LANES];
        for block in chunk.chunks(LANES) {
            lanes.iter_mut().zip(block).for_each(|(lane, &x)| *lane += f64::from(x) * f64::from(x));
        }
        lanes.iter().sum::<f64>()
    };
    values.par_chunks(CHUNK).map(of_chunk).collect::<Vec<_>>().iter().sum()
}

fn is_matrix_of_layer(name: &str, parameter: &Tensor) -> bool {
    name.starts_with("model.layers.") && parameter.shape().len() == 2
}

fn is_router(name: &str) -> bool {
    name.ends_with(".gate.weight") || name.ends_with(".shared_expert_gate.weight")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use kanana_kernels::Reference;

    const MATRIX: &str = "model.layers.0.mlp.up_proj.weight";

    fn one(name: &str, shape: &[usize], values: &[f32]) -> BTreeMap<String, Tensor> {
        [(name.to_owned(), Tensor::from_slice(shape, values).unwrap())].into()
    }

    /// Two steps of one weight of 1.0 with gradients 0.5 and -0.25, by hand.
    fn check(name: &str, options: OptimizerOptions, expected: f32) {
        let mut parameters = one(name, &[1, 1], &[1.0]);
        let mut optimizer = Optimizer::new(options, 1);
        for gradient in [0.5, -0.25] {
            optimizer.step(&Reference, &mut parameters, &one(name, &[1, 1], &[gradient]), 0.5).unwrap();
        }
        let got = parameters[name].as_slice::<f32>().unwrap()[0];
        assert!((got - expected).abs() < 1e-6, "{name}: {got}, expected {expected}");
    }

    #[test]
    fn adamw_by_hand() {
        let options = OptimizerOptions { learning_rate: 0.1, clip_norm: 0.0, ..OptimizerOptions::default() };
        // First: m/b = 0.5, v/b = 0.25, so 0.05 · (1 + 0.1). Second: m = 0.02, v = 0.015, over 0.19 and 0.0975.
        let first = 1.0 - 0.05 - 0.005;
        let second = 0.05 * (0.02 / 0.19) / (0.015f32 / 0.0975).sqrt();
        check(MATRIX, options, first - second - 0.005 * first);
        check("model.embed_tokens.weight", options, 0.95 - second);
        let options = OptimizerOptions { independent_decay: true, weight_decay: 0.2, ..options };
        let first = 1.0 - 0.05 - 0.1;
        check(MATRIX, options, first - second - 0.1 * first);
    }

    #[test]
    fn gradients_that_are_not_finite_change_nothing() {
        let mut optimizer = Optimizer::new(OptimizerOptions::default(), 1);
        let mut parameters = one(MATRIX, &[1, 2], &[1.0, 2.0]);
        let outcome = optimizer
            .step(&Reference, &mut parameters, &one(MATRIX, &[1, 2], &[f32::NAN, 0.0]), 1.0)
            .unwrap();
        assert!(!outcome.updated);
        assert_eq!(
            (parameters[MATRIX].as_slice::<f32>().unwrap(), optimizer.steps()),
            (&[1.0f32, 2.0][..], 0)
        );
        assert!(optimizer.state().is_empty());
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        const NORM: &str = "a.norm.weight";
        let check = |gradients: BTreeMap<String, Tensor>, expected: &str| {
            let mut parameters = one(NORM, &[1], &[1.0]);
            parameters.extend(one(MATRIX, &[1, 2], &[1.0, 1.0]));
            let mut optimizer = Optimizer::new(OptimizerOptions::default(), 1);
            let error = optimizer.step(&Reference, &mut parameters, &gradients, 1.0).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!((parameters[NORM].as_slice::<f32>().unwrap(), optimizer.steps()), (&[1.0][..], 0));
        };
        let mut gradients = one(NORM, &[1], &[1.0]);
        gradients.extend(one(MATRIX, &[1], &[1.0]));
        check(gradients, "its gradient should be f32 [1, 2], got f32 [1]");
        let mut gradients = one(NORM, &[1], &[1.0]);
        gradients.extend(one("other", &[1], &[1.0]));
        check(gradients, "there is no parameter other");
    }

    /// Bitwise, over a matrix of more than one chunk.
    #[test]
    fn threads_do_not_matter() {
        let values: Vec<f32> = (0..2 * CHUNK + 3).map(|i| (i as f32).sin()).collect();
        let run = |state: MomentFormat, threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut parameters = one(MATRIX, &[1, values.len()], &values);
            let gradients = one(MATRIX, &[1, values.len()], &values);
            let options = OptimizerOptions { state, ..OptimizerOptions::default() };
            let mut optimizer = Optimizer::new(options, 1);
            let mut step = || optimizer.step(&Reference, &mut parameters, &gradients, 1.0);
            pool.install(&mut step).unwrap();
            // The second step reads what the first one rounded.
            let outcome = pool.install(&mut step).unwrap();
            let w = parameters[MATRIX].as_slice::<f32>().unwrap();
            (outcome.grad_norm.to_bits(), w.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
        };
        for state in [MomentFormat::F32, MomentFormat::Bf16] {
            assert!(run(state, 1) == run(state, 3), "{state:?}");
        }
    }

    #[test]
    fn a_restored_optimizer_goes_on_bit_by_bit() {
        for (algorithm, state) in [
            (Algorithm::AdamW, MomentFormat::F32),
            (Algorithm::Muon, MomentFormat::F32),
            (Algorithm::AdamW, MomentFormat::Bf16),
            (Algorithm::Muon, MomentFormat::Bf16),
        ] {
            let options = OptimizerOptions { algorithm, state, ..OptimizerOptions::default() };
            let gradient = |i: usize| one(MATRIX, &[2, 3], &[0.1, -0.2, 0.3, 0.5 * i as f32, 0.25, -0.125]);
            let mut straight = one(MATRIX, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            let mut optimizer = Optimizer::new(options, 1);
            optimizer.step(&Reference, &mut straight, &gradient(0), 1.0).unwrap();
            let mut resumed = one(MATRIX, &[2, 3], straight[MATRIX].as_slice::<f32>().unwrap());
            let bytes: usize = optimizer.state().values().map(Tensor::bytes).sum();
            assert_eq!(optimizer.state_bytes(&straight), bytes as u64, "{algorithm:?} {state:?}");
            // Copies: a tensor with two handles cannot be written to.
            let saved = optimizer.state().iter().map(|(name, tensor)| {
                let copy = match state {
                    MomentFormat::F32 => {
                        Tensor::from_slice(tensor.shape(), tensor.as_slice::<f32>().unwrap())
                    }
                    MomentFormat::Bf16 => {
                        Tensor::from_slice(tensor.shape(), tensor.as_slice::<bf16>().unwrap())
                    }
                };
                (name.clone(), copy.unwrap())
            });
            let mut restored = Optimizer::restored(options, 1, optimizer.steps(), saved.collect());
            optimizer.step(&Reference, &mut straight, &gradient(1), 0.7).unwrap();
            restored.step(&Reference, &mut resumed, &gradient(1), 0.7).unwrap();
            assert_eq!(
                straight[MATRIX].as_slice::<f32>().unwrap(),
                resumed[MATRIX].as_slice::<f32>().unwrap(),
                "{algorithm:?} {state:?}"
            );
        }
    }

    #[test]
    fn muon_steps_are_nearly_orthogonal() {
        let options = OptimizerOptions {
            algorithm: Algorithm::Muon,
            muon_learning_rate: 1.0,
            weight_decay: 0.0,
            ..OptimizerOptions::default()
        };
        let mut parameters = one(MATRIX, &[3, 2], &[0.0; 6]);
        let gradient = one(MATRIX, &[3, 2], &[3.0, 3.5, -2.0, -1.0, 1.0, 1.5]);
        Optimizer::new(options, 1).step(&Reference, &mut parameters, &gradient, 1.0).unwrap();
        let w = parameters[MATRIX].as_slice::<f32>().unwrap();
        let column = |i: usize| [w[i], w[i + 2], w[i + 4]];
        let dot = |a: [f32; 3], b: [f32; 3]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        // Singular values of 0.7 to 1.2 times the scale, which is the root of 3 / 2.
        for i in 0..2 {
            let length = dot(column(i), column(i)).sqrt() / 1.5f32.sqrt();
            assert!((0.6..1.3).contains(&length), "{length}");
        }
        // Two columns that point almost the same way come apart: a cosine of 0.97 before.
        assert!(dot(column(0), column(1)).abs() < 0.5 * 1.5);
    }
}
