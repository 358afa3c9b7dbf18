//! Means with their errors, and the metrics of the field.
//!
//! It knows no task and no unit: fractions come in and go out. Test: `cargo test -p kanana-eval metrics`.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// A mean with its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    /// The arithmetic mean.
    pub value: f64,
    /// The sample's standard deviation over √n; None below two samples. Source: `mean_stderr` of `lm_eval/api/metrics.py`.
    pub stderr: Option<f64>,
    /// Samples.
    pub n: usize,
}

/// The mean of samples; None of none.
pub fn mean(samples: &[f64]) -> Option<Mean> {
    let n = samples.len();
    if n == 0 {
        return None;
    }
    let value = samples.iter().sum::<f64>() / n as f64;
    let squares: f64 = samples.iter().map(|sample| (sample - value).powi(2)).sum();
    let stderr = (n > 1).then(|| (squares / (n - 1) as f64 / n as f64).sqrt());
    Some(Mean { value, stderr, n })
}

/// The mean over all samples of groups, each with its weight: `weight_by_size: true`. Its error is pooled from the variances
/// within the groups. None without samples. Source: `pooled_sample_stderr` of `lm_eval/api/metrics.py` (0.4.13).
pub fn micro_mean(groups: &[Mean]) -> Option<Mean> {
    let n: usize = groups.iter().map(|group| group.n).sum();
    if n == 0 {
        return None;
    }
    let value = groups.iter().map(|group| group.value * group.n as f64).sum::<f64>() / n as f64;
    let variance = |group: &Mean| {
        let size = group.n as f64;
        group.stderr.map(|stderr| (size - 1.0) * stderr * stderr * size)
    };
    let variances: Option<Vec<f64>> = groups.iter().map(variance).collect();
    let stderr = variances.filter(|_| n > groups.len()).map(|variances| {
        let pooled = variances.iter().sum::<f64>() / (n - groups.len()) as f64;
        (pooled / n as f64).sqrt()
    });
    Some(Mean { value, stderr, n })
}

/// The mean of the groups' means, each counting once. Its error is √(Σ stderr²)/k. None without groups.
/// Source: `unweighted_mean_stderr` of the same file.
pub fn macro_mean(groups: &[Mean]) -> Option<Mean> {
    let k = groups.len() as f64;
    if groups.is_empty() {
        return None;
    }
    let value = groups.iter().map(|group| group.value).sum::<f64>() / k;
    let squares: Option<Vec<f64>> =
        groups.iter().map(|group| group.stderr.map(|stderr| stderr * stderr)).collect();
    let stderr = squares.map(|squares| squares.iter().sum::<f64>().sqrt() / k);
    Some(Mean { value, stderr, n: groups.iter().map(|group| group.n).sum() })
}

/// Where a proportion lies with the confidence of `z` standard deviations (1.96 is 95 %); (0, 1) of no trial.
/// Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
pub fn wilson_interval(successes: usize, trials: usize, z: f64) -> (f64, f64) {
    if trials == 0 {
        return (0.0, 1.0);
    }
    let n = trials as f64;
    let p = successes.min(trials) as f64 / n;
    let scale = 1.0 + z * z / n;
    let centre = (p + z * z / (2.0 * n)) / scale;
    let half = z / scale * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    ((centre - half).max(0.0), (centre + half).min(1.0))
}

/// How likely one of `k` drawn out of `n` programs is right, where `correct` of them are.
/// Source: Chen et al. 2021, "Evaluating large language models trained on code", equation 1.
pub fn pass_at_k(n: usize, correct: usize, k: usize) -> f64 {
    let wrong = n.saturating_sub(correct);
    if wrong < k {
        return 1.0;
    }
    1.0 - (wrong + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>()
}

/// The cosine of the angle between two vectors; 0 where one is zero. The shorter one is taken to end in zeros.
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let norm = |vector: &[f64]| vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    let scale = norm(a) * norm(b);
    let dot: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
    if scale == 0.0 { 0.0 } else { dot / scale }
}

/// Pearson's correlation; None where it is not defined: fewer than two pairs, lengths that differ, or a constant side.
pub fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    let (mean_a, mean_b) = (mean(a)?.value, mean(b)?.value);
    if a.len() != b.len() {
        return None;
    }
    let (mut covariance, mut variance_a, mut variance_b) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        covariance += (a - mean_a) * (b - mean_b);
        variance_a += (a - mean_a).powi(2);
        variance_b += (b - mean_b).powi(2);
    }
    let scale = (variance_a * variance_b).sqrt();
    (scale > 0.0).then(|| (covariance / scale).clamp(-1.0, 1.0))
}

/// Spearman's rank correlation: Pearson's of the ranks, equal values sharing the mean of theirs.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    pearson(&ranks(a), &ranks(b))
}

/// From 1.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        // Compared as numbers: -0 and 0 are equal.
        let same = |&&index: &&usize| values[index] == values[order[start]];
        let end = start + order[start..].iter().take_while(same).count().max(1);
        let rank = (start + 1 + end) as f64 / 2.0;
        for &index in &order[start..end] {
            ranks[index] = rank;
        }
        start = end;
    }
    ranks
}

/// One query's ranking against its judgements. Source: trec_eval 9 (`m_ndcg_cut.c`, `m_map_cut.c`, `form_res_rels.c`), which
/// pytrec_eval 0.5 calls.
pub struct Ranking {
    /// The judgement of each retrieved document, best first; 0 where there is none.
    gains: Vec<i64>,
    /// All judgements above 0, highest first.
    ideal: Vec<i64>,
}

impl Ranking {
    /// `judgements`: how relevant a document is; 0 and less is not. `scores`: what was retrieved, higher first. Scores are
    /// compared as 32-bit numbers, and equal ones put the document whose id is greater first.
    pub fn new(judgements: &BTreeMap<String, i64>, scores: &BTreeMap<String, f64>) -> Self {
        let mut order: Vec<(f32, &String)> = scores.iter().map(|(id, &score)| (score as f32, id)).collect();
        order.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then_with(|| b.1.cmp(a.1)));
        let gains = order.iter().map(|(_, id)| judgements.get(*id).copied().unwrap_or(0).max(0)).collect();
        let mut ideal: Vec<i64> = judgements.values().copied().filter(|&gain| gain > 0).collect();
        ideal.sort_unstable_by(|a, b| b.cmp(a));
        Ranking { gains, ideal }
    }

    /// Normalised discounted cumulative gain of the first `k`: the gain is the judgement, the discount log₂(rank + 1). 0 where
    /// nothing is relevant.
    pub fn ndcg(&self, k: usize) -> f64 {
        let dcg = |gains: &[i64]| -> f64 {
            let term = |(index, &gain): (usize, &i64)| gain as f64 / (index as f64 + 2.0).log2();
            gains.iter().take(k).enumerate().map(term).sum()
        };
        let ideal = dcg(&self.ideal);
        if ideal == 0.0 { 0.0 } else { dcg(&self.gains) / ideal }
    }

    /// The part of the relevant documents that is among the first `k`.
    pub fn recall(&self, k: usize) -> f64 {
        self.found(k) as f64 / self.ideal.len().max(1) as f64
    }

    /// The part of the first `k` that is relevant.
    pub fn precision(&self, k: usize) -> f64 {
        self.found(k) as f64 / k.max(1) as f64
    }

    /// The mean, over the relevant documents, of the precision at their ranks; those behind `k` count 0 (`map_cut`).
    pub fn average_precision(&self, k: usize) -> f64 {
        let relevant = self.gains.iter().take(k).enumerate().filter(|(_, gain)| **gain > 0);
        let sum: f64 =
            relevant.enumerate().map(|(found, (index, _))| (found + 1) as f64 / (index + 1) as f64).sum();
        sum / self.ideal.len().max(1) as f64
    }

    /// One over the rank of the first relevant document; 0 without one.
    pub fn reciprocal_rank(&self) -> f64 {
        self.gains.iter().position(|&gain| gain > 0).map_or(0.0, |index| 1.0 / (index + 1) as f64)
    }

    fn found(&self, k: usize) -> usize {
        self.gains.iter().take(k).filter(|gain| **gain > 0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{golden_rows, golden_value};
    use serde_json::Value;

    fn close(got: f64, expected: f64, tolerance: f64, what: &str) {
        assert!((got - expected).abs() <= tolerance, "{what}: expected {expected}, got {got}");
    }

    fn numbers(value: &Value) -> Vec<f64> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    }

    #[test]
    fn pass_at_k_is_the_references() {
        let Some(rows) = golden_rows("golden_misc/pass_at_k.jsonl") else { return };
        for row in &rows {
            let field = |name: &str| row[name].as_u64().unwrap() as usize;
            let expected = row["pass_at_k"].as_f64().unwrap();
            close(pass_at_k(field("n"), field("c"), field("k")), expected, 1e-14, &format!("{row:?}"));
        }
        println!("{} rows", rows.len());
    }

    #[test]
    fn correlations_are_scipys() {
        let Some(golden) = golden_value("golden_misc/sts_spearman.json") else { return };
        let vectors = |name: &str| golden[name].as_array().unwrap().iter().map(numbers).collect::<Vec<_>>();
        let (first, second) = (vectors("emb1"), vectors("emb2"));
        let cosines: Vec<f64> = first.iter().zip(&second).map(|(a, b)| cosine(a, b)).collect();
        for (index, (got, expected)) in cosines.iter().zip(numbers(&golden["cosine"])).enumerate() {
            close(*got, expected, 1e-12, &format!("cosine {index}"));
        }
        let gold = numbers(&golden["gold"]);
        let expected = |name: &str| golden[name].as_f64().unwrap();
        close(spearman(&cosines, &gold).unwrap(), expected("cosine_spearman"), 1e-12, "spearman");
        close(pearson(&cosines, &gold).unwrap(), expected("cosine_pearson"), 1e-12, "pearson");
    }

    #[test]
    fn rankings_are_trec_evals() {
        let Some(golden) = golden_value("golden_misc/retrieval_pytrec.json") else { return };
        let mut measures = 0;
        let mut ndcg = Vec::new();
        for (query, expected) in golden["pytrec_eval"].as_object().unwrap() {
            let judgements = serde_json::from_value(golden["qrels"][query].clone()).unwrap();
            let scores = serde_json::from_value(golden["run"][query].clone()).unwrap();
            let ranking = Ranking::new(&judgements, &scores);
            for (measure, expected) in expected.as_object().unwrap() {
                let (name, k) = measure.rsplit_once('_').unwrap();
                let k = k.parse().unwrap_or(0);
                let got = match name {
                    "ndcg_cut" => ranking.ndcg(k),
                    "recall" => ranking.recall(k),
                    "P" => ranking.precision(k),
                    "map_cut" => ranking.average_precision(k),
                    "recip" => ranking.reciprocal_rank(),
                    other => panic!("no measure {other}"),
                };
                close(got, expected.as_f64().unwrap(), 1e-12, &format!("{query} {measure}"));
                measures += 1;
            }
            ndcg.push(ranking.ndcg(10));
        }
        close(mean(&ndcg).unwrap().value, golden["mean_ndcg_cut_10"].as_f64().unwrap(), 1e-12, "mean");
        println!("{measures} measures");
    }

    #[test]
    fn errors_of_means() {
        let samples = [1.0, 0.0, 1.0, 1.0];
        let whole = mean(&samples).unwrap();
        close(whole.value, 0.75, 0.0, "mean");
        close(whole.stderr.unwrap(), 0.25, 1e-15, "stderr");
        assert_eq!(mean(&[]), None);
        assert_eq!(mean(&[2.0]).unwrap().stderr, None);
        let groups = [whole, mean(&[0.0, 1.0]).unwrap()];
        let micro = micro_mean(&groups).unwrap();
        close(micro.value, 4.0 / 6.0, 1e-15, "micro");
        // (3·0.25²·4 + 1·0.5²·2) / (6 - 2) / 6, under a root
        close(micro.stderr.unwrap(), (1.25_f64 / 24.0).sqrt(), 1e-15, "pooled");
        let balanced = macro_mean(&groups).unwrap();
        close(balanced.value, 0.625, 1e-15, "macro");
        close(balanced.stderr.unwrap(), 0.3125_f64.sqrt() / 2.0, 1e-15, "unweighted");
    }

    #[test]
    fn proportions_have_intervals() {
        // Newcombe 1998, table I: 81 of 263.
        let (low, high) = wilson_interval(81, 263, 1.959_964);
        close(low, 0.2553, 5e-5, "low");
        close(high, 0.3662, 5e-5, "high");
        assert_eq!(wilson_interval(0, 0, 1.96), (0.0, 1.0));
        assert_eq!(wilson_interval(0, 9, 1.96).0, 0.0);
        assert!(wilson_interval(9, 9, 1.96).1 > 1.0 - 1e-12);
    }

    #[test]
    fn equal_values_share_ranks() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [3.5, 1.0, 3.5, 2.0]);
        assert_eq!(ranks(&[f64::NAN, 1.0]).len(), 2);
        assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(pearson(&[1.0], &[1.0, 2.0]), None);
    }
}
