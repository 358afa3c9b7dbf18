//! Training compute against MMLU, as the family's README draws it.

use kanana_plot::{Group, Point, ScatterChart};

use super::number;
use super::published::{Kind, score};
use crate::Metric;

/// A model whose training is published.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trained {
    /// As the published tables of base models write it.
    pub model: &'static str,
    /// Floating-point operations of its training.
    pub flops: f64,
    /// How that is known.
    pub source: &'static str,
}

/// Every base model of which tokens and parameters, or the operations themselves, are published. The models of Kanana 1.5 are
/// not among them: they continue other models, and how long in all is not published.
pub const TRAINED: [Trained; 5] = [
    Trained {
        model: "Kanana-Nano-2.1B",
        flops: 3.78e21,
        source: "6·2.1e9·0.3e12 (arXiv 2502.18934): the student alone, not its teacher",
    },
    Trained { model: "Kanana-8B", flops: 1.44e23, source: "6·8e9·3e12 (arXiv 2502.18934)" },
    Trained {
        model: "Kanana-Essence-9.8B",
        flops: 1.56e23,
        source: "6·(8e9·3e12 + 9.8e9·0.2e12) (arXiv 2502.18934): depth up-scaled",
    },
    Trained {
        model: "Kanana-Flag-32.5B",
        flops: 5.21e23,
        source: "6·(26.8e9·3e12 + 32.5e9·0.2e12) (arXiv 2502.18934): depth up-scaled",
    },
    Trained { model: "Llama-3.1-8B", flops: 7.2e23, source: "arXiv 2502.18934, which compares with it" },
];

/// The usual estimate of a training's operations. Source: Kaplan et al. 2020, "Scaling laws for neural language models", 2.1.
pub fn six_nd(parameters: f64, tokens: f64) -> f64 {
    6.0 * parameters * tokens
}

/// The published models, and some runs: name, operations, MMLU.
pub fn chart(runs: &[(String, f64, Metric)]) -> ScatterChart {
    let published = |family: bool| {
        let of_kind = TRAINED.iter().filter(move |trained| trained.model.starts_with("Kanana") == family);
        let point = |trained: &Trained| {
            let y = score(Kind::Base, trained.model, "MMLU")?;
            Some(Point { x: trained.flops, y, name: trained.model.to_owned(), interval: None })
        };
        of_kind.filter_map(point).collect()
    };
    let own = |(name, flops, metric): &(String, f64, Metric)| Point {
        x: *flops,
        y: metric.value,
        name: name.clone(),
        interval: number::interval(metric),
    };
    ScatterChart {
        title: "Training compute against MMLU".to_owned(),
        subtitle: "base models, 5-shot; published figures, and 95 % intervals of own runs".to_owned(),
        x_label: "training FLOPs (6ND; of distilled models the student alone)".to_owned(),
        y_label: "MMLU, %".to_owned(),
        log_x: true,
        groups: vec![
            Group { name: "Kanana".to_owned(), points: published(true) },
            Group { name: "other models".to_owned(), points: published(false) },
            Group { name: "own runs".to_owned(), points: runs.iter().map(own).collect() },
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_compute_is_six_nd() {
        let check = |model: &str, parts: &[(f64, f64)]| {
            let trained = TRAINED.iter().find(|trained| trained.model == model).unwrap();
            let flops: f64 = parts.iter().map(|&(parameters, tokens)| six_nd(parameters, tokens)).sum();
            assert!((trained.flops / flops - 1.0).abs() < 2e-3, "{model}: {flops:e}");
        };
        check("Kanana-Nano-2.1B", &[(2.1e9, 0.3e12)]);
        check("Kanana-8B", &[(8e9, 3e12)]);
        check("Kanana-Essence-9.8B", &[(8e9, 3e12), (9.8e9, 0.2e12)]);
        check("Kanana-Flag-32.5B", &[(26.8e9, 3e12), (32.5e9, 0.2e12)]);
    }

    #[test]
    fn every_point_has_a_published_score() {
        let own = Metric { name: "acc".into(), value: 30.0, stderr: Some(1.0), n: 100 };
        let chart = chart(&[("mine".into(), 1e20, own)]);
        assert_eq!(chart.groups.iter().map(|group| group.points.len()).collect::<Vec<_>>(), [4, 1, 1]);
        assert_eq!(chart.groups[0].points[0].y, 54.83);
        assert_eq!(chart.groups[1].points[0].y, 65.18);
        assert!(chart.groups[2].points[0].interval.is_some());
    }
}
