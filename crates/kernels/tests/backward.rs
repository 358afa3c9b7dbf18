//! Every gradient on every implementation that this machine can run against the reference, on any number of threads; and
//! the reference against central differences in f64 (`tests/gradients.rs`).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Inputs, fresh_seed, u32s};
use kanana_kernels::runtime::Isa;
use kanana_kernels::{
    AttentionCall, Cpu, CpuOptions, CrossEntropy, Format, Gate, Kernels, KeyValues, Reference, Result,
    RouterLosses, RouterOptions, Spans,
};
use kanana_tensor::{DType, Tensor};

type Run = Box<dyn Fn(&dyn Kernels) -> Result<Vec<Tensor>>>;

/// Name, tolerance as a share of the largest element, the call.
fn cases(seed: u64) -> Vec<(String, f32, Run)> {
    let mut inputs = Inputs(seed);
    let mut cases: Vec<(String, f32, Run)> = Vec::new();
    for (t, n, k) in [(1, 1, 1), (2, 17, 5), (7, 33, 16), (40, 70, 37), (130, 16, 200), (1100, 20, 18)] {
        let (dy, x, base) = (inputs.tensor(&[t, n]), inputs.tensor(&[t, k]), inputs.tensor(&[n, k]));
        let w = inputs.tensor(&[n, k]);
        for (format, tolerance) in [(Format::F32, 1e-5), (Format::BF16, 2e-2)] {
            let (dy, x, base) = (dy.clone(), x.clone(), base.clone());
            cases.push((
                format!("linear_backward_weight {format} {t}x{n}x{k}"),
                tolerance,
                Box::new(move |kernels| {
                    Ok(vec![kernels.linear_backward_weight(base.clone(), &dy, &x, format)?])
                }),
            ));
        }
        for format in Format::ALL {
            let (dy, w) = (dy.clone(), w.clone());
            let tolerance = if format == Format::F32 { 1e-5 } else { 2e-2 };
            cases.push((
                format!("transposed {format} {t}x{n}x{k}"),
                tolerance,
                Box::new(move |kernels| {
                    let turned = kernels.transposed(&kernels.pack(&w, format)?)?;
                    Ok(vec![kernels.linear(&dy, &turned)?])
                }),
            ));
        }
        let (a, b, c) = (dy.clone(), w.clone(), x.clone());
        cases.push((
            format!("transpose {t}x{n}x{k}"),
            0.0,
            Box::new(move |kernels| {
                Ok(vec![kernels.transpose(&a)?, kernels.transpose(&b)?, kernels.transpose(&c)?])
            }),
        ));
        let (x, dy, weight) = (inputs.tensor(&[t, k]), inputs.tensor(&[t, k]), inputs.tensor(&[k]));
        let (gate, bias_like) = (inputs.tensor(&[t, 1]), inputs.tensor(&[t, k]));
        let (x2, dy2) = (x.clone(), dy.clone());
        cases.push((
            format!("rms_norm_backward {t}x{k}"),
            // Of a single element nothing is left but rounding.
            if k == 1 { 1e-3 } else { 1e-5 },
            Box::new(move |kernels| {
                let (dx, dw) = kernels.rms_norm_backward(&x, &weight, 1e-5, &dy)?;
                Ok(vec![dx, dw])
            }),
        ));
        cases.push((
            format!("elementwise {t}x{k}"),
            1e-5,
            Box::new(move |kernels| {
                let (dgate, dup) = kernels.silu_mul_backward(&x2, &bias_like, &dy2)?;
                let (dx, dg) = kernels.sigmoid_gate_backward(&x2, &gate, &dy2)?;
                Ok(vec![dgate, dup, dx, dg, kernels.sum_rows(&x2)?, kernels.dot_rows(&x2, &dy2)?])
            }),
        ));
    }
    for (t, v) in [(1, 1), (3, 17), (5, 300)] {
        for (label_smoothing, z_loss) in [(0.0, 0.0), (0.1, 1e-2)] {
            let logits = inputs.tensor(&[t, v]);
            let mut targets = inputs.ids(t, v).as_slice::<u32>().unwrap().to_vec();
            targets[t / 2] = if t > 1 { CrossEntropy::IGNORED } else { 0 };
            let options = CrossEntropy { scale: 0.25, label_smoothing, z_loss };
            cases.push((
                format!("cross_entropy {t}x{v} {label_smoothing} {z_loss}"),
                1e-5,
                Box::new(move |kernels| {
                    let (losses, gradient) =
                        kernels.cross_entropy(logits.clone(), &u32s(&targets), options)?;
                    Ok(vec![losses, gradient])
                }),
            ));
        }
    }
    for gate in [Gate::Softmax, Gate::Sigmoid] {
        for renormalise in [false, true] {
            let (logits, dweights) = (inputs.tensor(&[6, 5]), inputs.tensor(&[6, 2]));
            let options = RouterOptions { gate, top_k: 2, renormalise, scale: 1.5 };
            cases.push((
                format!("route_backward {gate:?} {renormalise}"),
                1e-5,
                Box::new(move |kernels| {
                    let routing = kernels.route(&logits, None, options)?;
                    let losses = RouterLosses { load_balance: 0.3, z_loss: 0.2 };
                    Ok(vec![kernels.route_backward(&logits, &routing, options, &dweights, losses)?])
                }),
            ));
        }
    }
    for (lengths, heads, kv_heads, width) in [
        (&[1u32][..], 1, 1, 1),
        (&[5, 1, 9], 4, 2, 6),
        (&[64, 65], 3, 1, 16),
        (&[200], 2, 2, 24),
        (&[70, 0, 130], 6, 2, 40),
    ] {
        for causal in [true, false] {
            for dtype in [DType::F32, DType::BF16] {
                let t: u32 = lengths.iter().sum();
                let mut starts = vec![0];
                lengths.iter().for_each(|n| starts.push(starts[starts.len() - 1] + n));
                let q = inputs.tensor(&[t as usize, heads, width]);
                let (k, v) = (
                    inputs.tensor(&[t as usize, kv_heads, width]),
                    inputs.tensor(&[t as usize, kv_heads, width]),
                );
                let dy = inputs.tensor(&[t as usize, heads, width]);
                let spans = Spans { query_starts: u32s(&starts), context_lens: u32s(lengths), causal };
                cases.push((
                    format!(
                        "attention_backward {lengths:?} {heads}/{kv_heads}x{width} causal {causal} {dtype}"
                    ),
                    2e-5,
                    Box::new(move |kernels| {
                        let (k, v) = (Reference.cast(&k, dtype)?, Reference.cast(&v, dtype)?);
                        // The same result of the forward pass for all: it is an argument here.
                        let kv = KeyValues::Packed { k: &k, v: &v };
                        let y = Reference.attention(&q, kv, &spans, 0.3)?;
                        let call = AttentionCall { q: &q, k: &k, v: &v, spans: &spans, scale: 0.3 };
                        Ok(kernels.attention_backward(call, &y, &dy)?.into())
                    }),
                ));
            }
        }
    }
    cases
}

#[test]
fn gradients_match_the_reference_bit_by_bit_on_any_number_of_threads() {
    for seed in [1, fresh_seed()] {
        for (name, tolerance, run) in cases(seed) {
            let expected = run(&Reference).unwrap();
            for isa in Isa::available() {
                let on = |threads| {
                    let cpu = Cpu::new(CpuOptions { threads: Some(threads), isa: Some(isa) });
                    let tensors = run(&cpu).unwrap();
                    tensors.iter().map(|t| t.to_f32_vec().unwrap()).collect::<Vec<_>>()
                };
                let one = on(1);
                for (i, (got, expected)) in one.iter().zip(&expected).enumerate() {
                    let expected = expected.to_f32_vec().unwrap();
                    let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
                    for (got, expected) in got.iter().zip(&expected) {
                        assert!(
                            (got - expected).abs() <= tolerance * largest.max(1e-3),
                            "{name} [{i}] on {}, seed {seed}: {got}, expected {expected}",
                            isa.name()
                        );
                    }
                }
                let bits = |tensors: &[Vec<f32>]| -> Vec<u32> {
                    tensors.iter().flatten().map(|x| x.to_bits()).collect()
                };
                assert_eq!(bits(&one), bits(&on(3)), "{name} on {}, seed {seed}: three threads", isa.name());
            }
        }
    }
}
