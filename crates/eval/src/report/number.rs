//! Numbers as people read them.

use std::collections::BTreeMap;

use crate::metrics::wilson_interval;
use crate::{Invalid, Metric};

/// Standard deviations on either side of a mean between which 95 % lie.
pub const Z95: f64 = 1.96;

/// Where the value of a metric lies with a confidence of 95 %: a normal interval; Wilson's where a proportion is so near 0 or
/// 100 % that a normal one is wrong. None without a standard error.
pub fn interval(metric: &Metric) -> Option<(f64, f64)> {
    let (value, stderr) = (metric.value, metric.stderr.filter(|stderr| stderr.is_finite())?);
    if let Some(hits) = near_an_end(metric, stderr) {
        let (low, high) = wilson_interval(hits, metric.n, Z95);
        return Some((100.0 * low, 100.0 * high));
    }
    Some((value - Z95 * stderr, value + Z95 * stderr))
}

/// The number of right answers, where the metric is a proportion in per cent with fewer than ten answers of one sort. What
/// tells a proportion is its standard error, which follows from it: √(p(1-p)/(n-1)).
fn near_an_end(metric: &Metric, stderr: f64) -> Option<usize> {
    let (share, n) = (metric.value / 100.0, metric.n as f64);
    let hits = (share * n).round();
    let binomial = 100.0 * (share * (1.0 - share) / (n - 1.0)).sqrt();
    let proportion = metric.n > 1 && (share * n - hits).abs() < 1e-3 && (binomial - stderr).abs() < 1e-3;
    (proportion && hits.min(n - hits) < 10.0).then_some(hits as usize)
}

/// `64.24 ± 0.77`, or `100.00 (96.30–100.00)` where the interval is not even.
pub fn score(metric: &Metric) -> String {
    match interval(metric) {
        Some((low, high)) if (high + low - 2.0 * metric.value).abs() < 1e-6 => {
            format!("{:.2} ± {:.2}", metric.value, high - metric.value)
        }
        Some((low, high)) => format!("{:.2} ({low:.2}–{high:.2})", metric.value),
        None => format!("{:.2}", metric.value),
    }
}

/// `+1.20`, `−0.30`.
pub fn signed(value: f64) -> String {
    let text = format!("{value:+.2}");
    text.replace('-', "−")
}

/// `14,042`.
pub fn thousands(n: impl Into<u64>) -> String {
    let digits = n.into().to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `0.4 s`, `3 min 12 s`, `2 h 05 min`.
pub fn seconds(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// `5 of 200 (2.5 %): unparsed 3, truncated 2`.
pub fn invalid(counts: &BTreeMap<Invalid, usize>, samples: usize) -> String {
    let total: usize = counts.values().sum();
    if total == 0 {
        return "0".to_owned();
    }
    let rate = 100.0 * total as f64 / samples.max(1) as f64;
    let reasons: Vec<String> =
        counts.iter().map(|(reason, count)| format!("{} {count}", name(*reason))).collect();
    format!("{total} ({rate:.1} %): {}", reasons.join(", "))
}

fn name(reason: Invalid) -> &'static str {
    match reason {
        Invalid::Unparsed => "unparsed",
        Invalid::Empty => "empty",
        Invalid::Truncated => "truncated",
        Invalid::TooLong => "too long for the context",
        Invalid::Refused => "refused",
        Invalid::Unjudged => "unjudged",
        Invalid::OutOfTime => "out of time",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proportion(hits: usize, n: usize) -> Metric {
        let share = hits as f64 / n as f64;
        let stderr = 100.0 * (share * (1.0 - share) / (n as f64 - 1.0)).sqrt();
        Metric { name: "acc".into(), value: 100.0 * share, stderr: Some(stderr), n }
    }

    #[test]
    fn intervals_are_those_of_their_kind() {
        let check = |metric: &Metric, expected: &str| assert_eq!(score(metric), expected);
        check(&proportion(50, 101), "49.50 ± 9.80");
        // Wilson 1927: at 0 of 100 the upper end is z²/(n + z²).
        check(&proportion(0, 100), "0.00 (0.00–3.70)");
        check(&proportion(100, 100), "100.00 (96.30–100.00)");
        check(&proportion(95, 100), "95.00 (88.82–97.85)");
        // Ten points on a scale of 0 to 10 are no proportion.
        check(&Metric { name: "score".into(), value: 7.5, stderr: Some(0.2), n: 80 }, "7.50 ± 0.39");
        check(&Metric { name: "score".into(), value: 7.5, stderr: None, n: 80 }, "7.50");
        check(&Metric { name: "score".into(), value: 7.5, stderr: Some(f64::NAN), n: 0 }, "7.50");
    }

    #[test]
    fn counts_and_times() {
        let check = |n: u64, expected: &str| assert_eq!(thousands(n), expected);
        check(0, "0");
        check(999, "999");
        check(14_042, "14,042");
        check(1_234_567, "1,234,567");
        let check = |time: f64, expected: &str| assert_eq!(seconds(time), expected);
        check(0.44, "0.4 s");
        check(192.0, "3 min 12 s");
        check(7_500.0, "2 h 05 min");
        assert_eq!((signed(1.2), signed(-0.3)), ("+1.20".into(), "−0.30".into()));
    }

    #[test]
    fn invalid_answers_have_reasons_and_a_rate() {
        let counts = BTreeMap::from([(Invalid::Unparsed, 3), (Invalid::OutOfTime, 2)]);
        assert_eq!(invalid(&counts, 200), "5 (2.5 %): unparsed 3, out of time 2");
        assert_eq!(invalid(&BTreeMap::new(), 0), "0");
    }
}
