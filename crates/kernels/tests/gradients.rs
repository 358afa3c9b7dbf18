//! The gradients of the reference against central differences.
//!
//! Each forward pass is written down again as its definition, in f64: differences of f32 results are mostly rounding.
//! `tests/backward.rs` compares every other implementation with the reference. To add an op: state it in f64 and
//! [`check`] its gradients. `cargo test -p kanana-kernels --test gradients`

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Inputs, fresh_seed, u32s};
use kanana_kernels::{
    AttentionCall, CrossEntropy, Format, Gate, Kernels, KeyValues, Reference, RopeTable, RouterLosses,
    RouterOptions, Spans,
};
use kanana_tensor::{DType, Tensor};

/// Runs a check on a fixed seed and on a fresh one, which is printed with a failure.
fn on_seeds(run: impl Fn(&mut Inputs)) {
    for seed in [1, fresh_seed()] {
        println!("seed {seed}");
        run(&mut Inputs(seed));
    }
}

fn ones(count: usize) -> Tensor {
    Tensor::from_slice(&[count], &vec![1f32; count]).unwrap()
}

fn wide(tensor: &Tensor) -> Vec<f64> {
    tensor.to_f32_vec().unwrap().into_iter().map(f64::from).collect()
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

fn log_sum_exp(x: &[f64]) -> f64 {
    let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + x.iter().map(|x| (x - largest).exp()).sum::<f64>().ln()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Compares the gradient of the scalar `loss` by each of the inputs with central differences, within a share of the
/// largest element.
fn check_loss<const I: usize>(
    name: &str,
    inputs: [&Tensor; I],
    gradients: [&Tensor; I],
    loss: impl Fn(&[Vec<f64>; I]) -> f64,
) {
    const STEP: f64 = 1e-4;
    const TOLERANCE: f64 = 1e-5;
    let mut values = inputs.map(wide);
    for (i, gradient) in gradients.into_iter().enumerate() {
        assert_eq!(gradient.shape(), inputs[i].shape(), "{name}: gradient of input {i}");
        let expected: Vec<f64> = (0..values[i].len())
            .map(|at| {
                let mut moved = |by: f64| {
                    let before = values[i][at];
                    values[i][at] = before + by;
                    let loss = loss(&values);
                    values[i][at] = before;
                    loss
                };
                (moved(STEP) - moved(-STEP)) / (2.0 * STEP)
            })
            .collect();
        let largest = expected.iter().fold(1e-2, |largest: f64, x| largest.max(x.abs()));
        for (at, (got, expected)) in wide(gradient).into_iter().zip(expected).enumerate() {
            assert!(
                (got - expected).abs() <= TOLERANCE * largest,
                "{name}: gradient of input {i} at {at}: {got}, expected {expected}"
            );
        }
    }
}

/// [`check_loss`] of the dot product of an op's result and `dy`.
fn check<const I: usize>(
    name: &str,
    inputs: [&Tensor; I],
    gradients: [&Tensor; I],
    dy: &Tensor,
    forward: impl Fn(&[Vec<f64>; I]) -> Vec<f64>,
) {
    let dy = wide(dy);
    check_loss(name, inputs, gradients, |inputs| {
        let y = forward(inputs);
        assert_eq!(y.len(), dy.len(), "{name}: the definition's result");
        dot(&y, &dy)
    });
}

#[test]
fn elementwise() {
    on_seeds(|inputs| {
        let (t, d) = (5, 7);
        let [x, y, dy] = [0; 3].map(|_| inputs.tensor(&[t, d]));
        let (bias, gate) = (inputs.tensor(&[d]), inputs.tensor(&[t, 1]));

        check("add", [&x, &y], [&dy, &dy], &dy, |[x, y]| x.iter().zip(y).map(|(x, y)| x + y).collect());

        let dx = Reference.scale(&dy, -1.7).unwrap();
        check("scale", [&x], [&dx], &dy, |[x]| x.iter().map(|x| x * f64::from(-1.7f32)).collect());

        let dbias = Reference.sum_rows(&dy).unwrap();
        check("add_bias", [&x, &bias], [&dy, &dbias], &dy, |[x, bias]| {
            x.iter().enumerate().map(|(i, x)| x + bias[i % d]).collect()
        });

        let (dgate, dup) = Reference.silu_mul_backward(&x, &y, &dy).unwrap();
        check("silu_mul", [&x, &y], [&dgate, &dup], &dy, |[gate, up]| {
            gate.iter().zip(up).map(|(gate, up)| gate * sigmoid(*gate) * up).collect()
        });

        let (dx, dgate) = Reference.sigmoid_gate_backward(&x, &gate, &dy).unwrap();
        check("sigmoid_gate", [&x, &gate], [&dx, &dgate], &dy, |[x, gate]| {
            x.iter().enumerate().map(|(i, x)| x * sigmoid(gate[i / d])).collect()
        });
    });
}

#[test]
fn rms_norm() {
    on_seeds(|inputs| {
        for shape in [&[6, 9][..], &[3, 2, 4]] {
            let (x, dy) = (inputs.tensor(shape), inputs.tensor(shape));
            let width = shape[shape.len() - 1];
            let weight = inputs.tensor(&[width]);
            let eps = 1e-2;
            let (dx, dweight) = Reference.rms_norm_backward(&x, &weight, eps, &dy).unwrap();
            check("rms_norm", [&x, &weight], [&dx, &dweight], &dy, |[x, weight]| {
                x.chunks(width)
                    .flat_map(|row| {
                        let root = (dot(row, row) / width as f64 + f64::from(eps)).sqrt();
                        row.iter().zip(weight).map(move |(x, weight)| x / root * weight)
                    })
                    .collect()
            });
        }
    });
}

#[test]
fn rope() {
    on_seeds(|inputs| {
        let (heads, half) = (2, 3);
        let positions = [4, 0, 2, 2];
        let shape = [positions.len(), heads, 2 * half];
        let (x, dy) = (inputs.tensor(&shape), inputs.tensor(&shape));
        let angles = inputs.tensor(&[5, half]).to_f32_vec().unwrap();
        // With an attention factor, as YaRN has one.
        let table = |of: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().map(|&angle| 1.3 * of(angle)).collect();
            Tensor::from_slice(&[5, half], &values).unwrap()
        };
        let (cos, sin) = (table(f32::cos), table(f32::sin));
        let back = RopeTable { cos: cos.clone(), sin: Reference.scale(&sin, -1.0).unwrap() };
        let dx = Reference.rope(&dy, &back, &u32s(&positions)).unwrap();
        let (cos, sin) = (wide(&cos), wide(&sin));
        check("rope", [&x], [&dx], &dy, |[x]| {
            let mut y = x.clone();
            for (i, row) in y.chunks_mut(2 * half).enumerate() {
                let at = positions[i / heads] as usize * half;
                for j in 0..half {
                    let (a, b) = (row[j], row[j + half]);
                    row[j] = a * cos[at + j] - b * sin[at + j];
                    row[j + half] = b * cos[at + j] + a * sin[at + j];
                }
            }
            y
        });
    });
}

#[test]
fn rows() {
    on_seeds(|inputs| {
        let (t, d) = (4, 3);
        let indices = [2, 0, 2, 3, 2];
        let (ids, one) = (u32s(&indices), ones(indices.len()));
        let base = inputs.tensor(&[t, d]);
        let (x, weights) = (inputs.tensor(&[indices.len(), d]), inputs.tensor(&[indices.len()]));

        // A table of embeddings is read as `gather_rows` reads: the same gradient.
        let dy = inputs.tensor(&[indices.len(), d]);
        let zeros = Tensor::zeros(&[t, d], DType::F32);
        let dx = Reference.scatter_add_rows(zeros.clone(), &dy, &ids, &one).unwrap();
        check("gather_rows, embedding", [&base], [&dx], &dy, |[base]| {
            indices.iter().flat_map(|&i| base[i as usize * d..][..d].to_vec()).collect()
        });

        let dy = inputs.tensor(&[t, d]);
        let gathered = Reference.gather_rows(&dy, &ids).unwrap();
        let order = u32s(&[0, 1, 2, 3, 4]);
        let zeros = Tensor::zeros(&[indices.len(), d], DType::F32);
        let dx = Reference.scatter_add_rows(zeros, &gathered, &order, &weights).unwrap();
        let dweights = Reference.dot_rows(&gathered, &x).unwrap();
        check("scatter_add_rows", [&base, &x, &weights], [&dy, &dx, &dweights], &dy, |[base, x, weights]| {
            let mut y = base.clone();
            for (r, &index) in indices.iter().enumerate() {
                (0..d).for_each(|i| y[index as usize * d + i] += x[r * d + i] * weights[r]);
            }
            y
        });
    });
}

#[test]
fn linear() {
    on_seeds(|inputs| {
        let (t, n, k) = (4, 5, 3);
        let (x, w, dy) = (inputs.tensor(&[t, k]), inputs.tensor(&[n, k]), inputs.tensor(&[t, n]));
        let packed = Reference.pack(&w, Format::F32).unwrap();
        let dx = Reference.linear(&dy, &Reference.transposed(&packed).unwrap()).unwrap();
        let zeros = Tensor::zeros(&[n, k], DType::F32);
        let dw = Reference.linear_backward_weight(zeros, &dy, &x, Format::F32).unwrap();
        check("linear", [&x, &w], [&dx, &dw], &dy, |[x, w]| {
            x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| dot(x, w))).collect()
        });
    });
}

/// Attention over packed sequences, as [`Kernels::attention`] defines it.
struct Attention<'a> {
    lengths: &'a [usize],
    heads: usize,
    kv_heads: usize,
    width: usize,
    causal: bool,
    scale: f64,
}

impl Attention<'_> {
    fn forward(&self, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
        let Attention { heads, kv_heads, width, .. } = *self;
        let mut y = vec![0.0; q.len()];
        let mut first = 0;
        for &length in self.lengths {
            for query in 0..length {
                for head in 0..heads {
                    let at = ((first + query) * heads + head) * width;
                    let place = |key: usize| ((first + key) * kv_heads + head / (heads / kv_heads)) * width;
                    let seen = if self.causal { query + 1 } else { length };
                    let scores: Vec<f64> = (0..seen)
                        .map(|key| self.scale * dot(&q[at..][..width], &k[place(key)..][..width]))
                        .collect();
                    let lse = log_sum_exp(&scores);
                    for (key, score) in scores.iter().enumerate() {
                        let p = (score - lse).exp();
                        (0..width).for_each(|i| y[at + i] += p * v[place(key) + i]);
                    }
                }
            }
            first += length;
        }
        y
    }
}

#[test]
fn attention() {
    on_seeds(|inputs| {
        for (lengths, heads, kv_heads, width) in
            [(&[1usize][..], 1, 1, 2), (&[7], 2, 2, 5), (&[3, 1, 0, 5], 4, 2, 3), (&[6, 2], 3, 1, 4)]
        {
            for causal in [true, false] {
                let tokens: usize = lengths.iter().sum();
                let q = inputs.tensor(&[tokens, heads, width]);
                let [k, v] = [0; 2].map(|_| inputs.tensor(&[tokens, kv_heads, width]));
                let dy = inputs.tensor(&[tokens, heads, width]);
                let mut starts = vec![0];
                lengths.iter().for_each(|&n| starts.push(starts[starts.len() - 1] + n as u32));
                let context_lens: Vec<u32> = lengths.iter().map(|&n| n as u32).collect();
                let spans = Spans { query_starts: u32s(&starts), context_lens: u32s(&context_lens), causal };
                let scale = 0.3f32;
                let y = Reference.attention(&q, KeyValues::Packed { k: &k, v: &v }, &spans, scale).unwrap();
                let call = AttentionCall { q: &q, k: &k, v: &v, spans: &spans, scale };
                let [dq, dk, dv] = Reference.attention_backward(call, &y, &dy).unwrap();
                let definition =
                    Attention { lengths, heads, kv_heads, width, causal, scale: f64::from(scale) };
                let name = format!("attention {lengths:?} {heads}/{kv_heads}x{width} causal {causal}");
                check(&name, [&q, &k, &v], [&dq, &dk, &dv], &dy, |[q, k, v]| definition.forward(q, k, v));
            }
        }
    });
}

/// Weights of the chosen experts, and both losses that keep experts in use: their definitions for one batch of logits.
struct Router {
    options: RouterOptions,
    experts: usize,
    /// `[T][A]`: choices stay as they are while logits move by less than they differ.
    chosen: Vec<u32>,
}

impl Router {
    fn scores(&self, logits: &[f64]) -> Vec<f64> {
        match self.options.gate {
            Gate::Softmax => {
                let lse = log_sum_exp(logits);
                logits.iter().map(|x| (x - lse).exp()).collect()
            }
            Gate::Sigmoid => logits.iter().map(|&x| sigmoid(x)).collect(),
        }
    }

    fn weights(&self, logits: &[f64]) -> Vec<f64> {
        let RouterOptions { top_k, renormalise, scale, .. } = self.options;
        let tokens = logits.chunks(self.experts).zip(self.chosen.chunks(top_k));
        tokens
            .flat_map(|(logits, chosen)| {
                let scores = self.scores(logits);
                let weights: Vec<f64> = chosen.iter().map(|&e| scores[e as usize]).collect();
                let divisor = if renormalise { weights.iter().sum() } else { 1.0 };
                weights.into_iter().map(move |w| f64::from(scale) * w / divisor)
            })
            .collect()
    }

    fn load_balance(&self, logits: &[f64]) -> f64 {
        let tokens = (logits.len() / self.experts) as f64;
        let mut loss = 0.0;
        for e in 0..self.experts {
            let load = self.chosen.iter().filter(|&&chosen| chosen as usize == e).count() as f64;
            let share = load / self.chosen.len() as f64;
            let mean = logits
                .chunks(self.experts)
                .map(|logits| {
                    let scores = self.scores(logits);
                    scores[e] / scores.iter().sum::<f64>()
                })
                .sum::<f64>()
                / tokens;
            loss += self.experts as f64 * share * mean;
        }
        loss
    }

    fn z_loss(&self, logits: &[f64]) -> f64 {
        let rows = logits.chunks(self.experts);
        let tokens = rows.len() as f64;
        rows.map(|logits| log_sum_exp(logits).powi(2)).sum::<f64>() / tokens
    }
}

#[test]
fn route() {
    on_seeds(|inputs| {
        let (tokens, experts, top_k) = (6, 5, 2);
        for gate in [Gate::Softmax, Gate::Sigmoid] {
            for renormalise in [false, true] {
                for (load_balance, z_loss) in [(0.0, 0.0), (0.5, 0.0), (0.0, 0.25), (0.5, 0.25)] {
                    let logits = inputs.tensor(&[tokens, experts]);
                    let dweights = inputs.tensor(&[tokens, top_k]);
                    // Of the choice, which the gradient takes as it is.
                    let bias = inputs.tensor(&[experts]);
                    let options = RouterOptions { gate, top_k, renormalise, scale: 1.5 };
                    let routing = Reference.route(&logits, Some(&bias), options).unwrap();
                    let losses = RouterLosses { load_balance, z_loss };
                    let dlogits =
                        Reference.route_backward(&logits, &routing, options, &dweights, losses).unwrap();
                    let chosen = routing.experts.as_slice::<u32>().unwrap().to_vec();
                    let (router, dweights) = (Router { options, experts, chosen }, wide(&dweights));
                    let name = format!("route {gate:?} {renormalise} {load_balance} {z_loss}");
                    check_loss(&name, [&logits], [&dlogits], |[logits]| {
                        dot(&router.weights(logits), &dweights)
                            + f64::from(load_balance) * router.load_balance(logits)
                            + f64::from(z_loss) * router.z_loss(logits)
                    });
                }
            }
        }
    });
}

#[test]
fn cross_entropy() {
    on_seeds(|inputs| {
        let (tokens, vocabulary) = (4, 7);
        for (label_smoothing, z_loss) in [(0.0, 0.0), (0.125, 0.0), (0.0, 0.25), (0.125, 0.25)] {
            let logits = inputs.tensor(&[tokens, vocabulary]);
            let targets = [3, CrossEntropy::IGNORED, 0, 6];
            let options = CrossEntropy { scale: 0.5, label_smoothing, z_loss };
            let (losses, dlogits) =
                Reference.cross_entropy(logits.clone(), &u32s(&targets), options).unwrap();
            let (smoothing, z_loss) = (f64::from(label_smoothing), f64::from(z_loss));
            let losses_of = |logits: &[f64]| -> Vec<f64> {
                let rows = logits.chunks(vocabulary).zip(targets);
                rows.map(|(z, target)| {
                    if target == CrossEntropy::IGNORED {
                        return 0.0;
                    }
                    // Cross-entropy with a distribution: -Σ q log p.
                    let lse = log_sum_exp(z);
                    let nats = |v: usize| lse - z[v];
                    let spread: f64 = (0..vocabulary).map(nats).sum::<f64>() / vocabulary as f64;
                    (1.0 - smoothing) * nats(target as usize) + smoothing * spread + z_loss * lse * lse
                })
                .collect()
            };
            let name = format!("cross_entropy {label_smoothing} {z_loss}");
            for (got, expected) in wide(&losses).into_iter().zip(losses_of(&wide(&logits))) {
                assert!(
                    (got - expected).abs() <= 1e-6 * (1.0 + expected),
                    "{name}: {got}, expected {expected}"
                );
            }
            check_loss(&name, [&logits], [&dlogits], |[logits]| 0.5 * losses_of(logits).iter().sum::<f64>());
        }
    });
}
