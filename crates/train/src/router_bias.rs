//! Loads of experts made even without a loss: the bias that a router adds to its scores to choose.
//!
//! An expert that got more than the mean of a step becomes a little less likely, one that got less a little more; no
//! gradient is disturbed. Source: Wang et al. 2024, arXiv 2408.15664, algorithm 1; DeepSeek-AI 2024, arXiv 2412.19437,
//! section 2.1.2. Tests: `cargo test -p kanana-train router_bias`.

use std::collections::BTreeMap;

use kanana_tensor::Tensor;

use crate::Result;

/// The loads of the experts of a step, by the name of their router's bias.
pub(crate) type Loads = BTreeMap<String, Vec<u64>>;

/// `b_e += rate · sign(mean load - load_e)` for every router.
///
/// Errors: a bias that is not the only handle on its memory.
pub(crate) fn update(parameters: &mut BTreeMap<String, Tensor>, loads: &Loads, rate: f32) -> Result<()> {
    for (name, loads) in loads {
        let Some(bias) = parameters.get_mut(name) else { continue };
        let (all, count) = (loads.iter().sum::<u64>(), loads.len() as u64);
        for (bias, load) in bias.as_mut_slice::<f32>()?.iter_mut().zip(loads) {
            // In whole numbers: a load that is the mean leaves its bias as it is.
            *bias += match all.cmp(&(load * count)) {
                std::cmp::Ordering::Greater => rate,
                std::cmp::Ordering::Equal => 0.0,
                std::cmp::Ordering::Less => -rate,
            };
        }
    }
    Ok(())
}

/// MaxVio: how far the largest load is above the mean, as a share of it, on average over the routers; none without a
/// bias. 0: all loads are equal. Source: Wang et al. 2024, arXiv 2408.15664, section 4.1.
pub(crate) fn max_violation(loads: &Loads) -> Option<f64> {
    let of_router = |loads: &Vec<u64>| {
        let mean = loads.iter().sum::<u64>() as f64 / loads.len() as f64;
        loads.iter().max().map_or(0.0, |&largest| largest as f64 / mean - 1.0)
    };
    let sum: f64 = loads.values().map(of_router).sum();
    (!loads.is_empty()).then(|| sum / loads.len() as f64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use kanana_kernels::{Gate, Kernels, Reference, RouterOptions};

    const NAME: &str = "model.layers.0.mlp.gate.e_score_correction_bias";

    fn loads(loads: &[u64]) -> Loads {
        [(NAME.to_owned(), loads.to_vec())].into()
    }

    #[test]
    fn experts_above_the_mean_fall_and_those_below_rise() {
        let check = |of: &[u64], violation: f64, expected: &[f32]| {
            let zeros = Tensor::from_slice(&[of.len()], &vec![0f32; of.len()]).unwrap();
            let mut parameters = [(NAME.to_owned(), zeros)].into();
            update(&mut parameters, &loads(of), 0.5).unwrap();
            assert_eq!(parameters[NAME].as_slice::<f32>().unwrap(), expected, "{of:?}");
            assert_eq!(max_violation(&loads(of)), Some(violation), "{of:?}");
        };
        check(&[4, 4, 4], 0.0, &[0.0, 0.0, 0.0]);
        check(&[9, 3, 0], 1.25, &[-0.5, 0.5, 0.5]);
        check(&[8, 4, 0], 1.0, &[-0.5, 0.0, 0.5]);
        assert_eq!(max_violation(&Loads::new()), None);
    }

    /// A router that much prefers one expert and shuns another: fixed logits, fifty updates.
    #[test]
    fn a_skewed_router_becomes_even() {
        let (tokens, experts, top_k) = (256, 8, 2);
        let skew = [2.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0, -2.0];
        let logits: Vec<f32> = (0..tokens * experts)
            .map(|i| skew[i % experts] + ((i * i) as f32 * 0.7).sin() + ((i * 31) as f32).cos())
            .collect();
        let logits = Tensor::from_slice(&[tokens, experts], &logits).unwrap();
        for gate in [Gate::Sigmoid, Gate::Softmax] {
            let options = RouterOptions { gate, top_k, renormalise: true, scale: 1.0 };
            let mut parameters: BTreeMap<_, _> =
                [(NAME.to_owned(), Tensor::from_slice(&[experts], &[0f32; 8]).unwrap())].into();
            let mut violations = Vec::new();
            for _ in 0..=50 {
                let routing = Reference.route(&logits, Some(&parameters[NAME]), options).unwrap();
                let mut counts = vec![0; experts];
                routing.experts.as_slice::<u32>().unwrap().iter().for_each(|&e| counts[e as usize] += 1);
                violations.push(max_violation(&loads(&counts)).unwrap());
                update(&mut parameters, &loads(&counts), 0.01).unwrap();
            }
            assert!(violations[0] > 1.0, "{gate:?} is skewed at first: {violations:?}");
            // With the same tokens at every step, the last expert over the edge goes to and fro.
            let last = violations[41..].iter().sum::<f64>() / 10.0;
            assert!(last < 0.2 * violations[0], "{gate:?} is even at the end: {violations:?}");
        }
    }
}
