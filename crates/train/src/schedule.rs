//! How the learning rate goes over a run.

use serde::{Deserialize, Serialize};

/// A warm-up from zero, then one of the field's shapes, as a share of the peak.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The shape after the warm-up.
    pub shape: Shape,
    /// Steps of a linear rise from zero.
    #[serde(default)]
    pub warmup_steps: u64,
    /// The share of the peak at the end; the multi-step schedule has its own.
    #[serde(default)]
    pub final_factor: f32,
    /// Of [`Shape::WarmupStableDecay`]: the share of all steps, at the end, over which the rate falls.
    #[serde(default = "default_decay")]
    pub decay: f32,
}

fn default_decay() -> f32 {
    0.2
}

/// Shapes of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// The peak, to the end.
    Constant,
    /// A straight line to the final factor.
    Linear,
    /// Half a cosine to the final factor.
    Cosine,
    /// The peak, then a straight line to the final factor. Source: Hu et al. 2024 (MiniCPM), arXiv 2404.06395, section 4.
    WarmupStableDecay,
    /// The peak, 31.6 % of it from 80 % of the steps on, 10 % from 90 %. Source: DeepSeek LLM, arXiv 2401.02954, section 2.3.
    MultiStep,
}

impl Schedule {
    /// The share of the peak at a step, counted from 0, of `total`.
    pub fn factor(&self, step: u64, total: u64) -> f32 {
        if step < self.warmup_steps {
            return (step + 1) as f32 / (self.warmup_steps + 1) as f32;
        }
        let progress = |from: f64| {
            let left = (total as f64 - from).max(1.0);
            ((step as f64 - from) / left).clamp(0.0, 1.0) as f32
        };
        let done = progress(self.warmup_steps as f64);
        let fall = |share: f32| self.final_factor + (1.0 - self.final_factor) * share;
        match self.shape {
            Shape::Constant => 1.0,
            Shape::Linear => fall(1.0 - done),
            Shape::Cosine => fall(0.5 + 0.5 * (std::f32::consts::PI * done).cos()),
            Shape::WarmupStableDecay => {
                let start = total as f64 * (1.0 - f64::from(self.decay));
                fall(1.0 - progress(start.max(self.warmup_steps as f64)))
            }
            Shape::MultiStep => match step as f64 / total.max(1) as f64 {
                share if share >= 0.9 => 0.1,
                share if share >= 0.8 => 0.316,
                _ => 1.0,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(shape: Shape, step: u64, expected: f32) {
        let schedule = Schedule { shape, warmup_steps: 10, final_factor: 0.1, decay: 0.2 };
        let got = schedule.factor(step, 110);
        assert!((got - expected).abs() < 1e-6, "{shape:?} at {step}: {got}, expected {expected}");
    }

    #[test]
    fn shapes_have_their_corners() {
        for shape in
            [Shape::Constant, Shape::Linear, Shape::Cosine, Shape::WarmupStableDecay, Shape::MultiStep]
        {
            check(shape, 0, 1.0 / 11.0);
            check(shape, 9, 10.0 / 11.0);
            check(shape, 10, 1.0);
        }
        check(Shape::Constant, 109, 1.0);
        check(Shape::Linear, 60, 0.55);
        check(Shape::Linear, 110, 0.1);
        check(Shape::Cosine, 60, 0.55);
        check(Shape::Cosine, 110, 0.1);
        check(Shape::WarmupStableDecay, 88, 1.0);
        check(Shape::WarmupStableDecay, 99, 0.55);
        check(Shape::WarmupStableDecay, 110, 0.1);
        check(Shape::MultiStep, 87, 1.0);
        check(Shape::MultiStep, 88, 0.316);
        check(Shape::MultiStep, 99, 0.1);
    }
}
