//! From values to places, and the values that are written beside an axis.

/// Where values of a range lie along a line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Axis {
    /// The lowest value.
    pub from: f64,
    /// The highest.
    pub to: f64,
    /// Equal distances are equal ratios.
    pub log: bool,
}

impl Axis {
    /// An axis over some values; those that are not finite, or on a logarithmic axis not above zero, do not count.
    pub fn over(values: impl Iterator<Item = f64>, log: bool) -> Self {
        let mut axis = Axis { from: f64::INFINITY, to: f64::NEG_INFINITY, log };
        for value in values.filter(|value| value.is_finite() && (!log || *value > 0.0)) {
            axis.from = axis.from.min(value);
            axis.to = axis.to.max(value);
        }
        match () {
            () if axis.from > axis.to => Axis { from: if log { 1.0 } else { 0.0 }, to: 10.0, log },
            () if axis.from == axis.to && log => Axis { from: axis.from / 2.0, to: axis.to * 2.0, log },
            () if axis.from == axis.to => Axis { from: axis.from - 0.5, to: axis.to + 0.5, log },
            () => axis,
        }
    }

    /// Whether a value has a place.
    pub fn takes(&self, value: f64) -> bool {
        value.is_finite() && (!self.log || value > 0.0)
    }

    /// The share of the way from the lowest to the highest.
    pub fn place(&self, value: f64) -> f64 {
        let on = |x: f64| if self.log { x.ln() } else { x };
        (on(value) - on(self.from)) / (on(self.to) - on(self.from))
    }
}

/// Round values along an axis, about so many, with what is written beside each.
pub fn ticks(axis: &Axis, about: usize) -> Vec<(f64, String)> {
    if axis.log && axis.to / axis.from >= 8.0 {
        let decades = axis.from.log10().floor() as i32..=axis.to.log10().ceil() as i32;
        let digits: &[f64] = if axis.to / axis.from > 1e4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        return decades
            .flat_map(|decade| digits.iter().map(move |digit| digit * 10f64.powi(decade)))
            .filter(|value| (axis.from..=axis.to).contains(value))
            .map(|value| (value, written(value, value)))
            .collect();
    }
    let raw = (axis.to - axis.from) / about.max(1) as f64;
    let magnitude = 10f64.powf(raw.log10().floor());
    let step =
        [1.0, 2.0, 2.5, 5.0, 10.0].map(|digit| digit * magnitude).into_iter().find(|step| *step >= raw);
    let step = step.unwrap_or(raw);
    let first = (axis.from / step).ceil() as i64;
    let last = (axis.to / step).floor() as i64;
    (first..=last).map(|i| (i as f64 * step, written(i as f64 * step, step))).collect()
}

/// A value with as many digits as steps of this size need; thousands and more are shortened.
fn written(value: f64, step: f64) -> String {
    if value.abs() >= 1e15 {
        return power_of_ten(value);
    }
    for (unit, suffix) in [(1e9, "B"), (1e6, "M"), (1e3, "k")] {
        if value.abs() >= unit && step >= unit / 1000.0 {
            let digits = if step >= unit { 0 } else { (unit / step).log10().ceil() as usize };
            let text = format!("{:.digits$}", value / unit);
            let text =
                if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
            return format!("{text}{suffix}");
        }
    }
    if value != 0.0 && step < 1e-3 {
        return format!("{value:.1e}");
    }
    let digits = if step >= 1.0 { 0 } else { (-step.log10()).ceil() as usize };
    format!("{value:.digits$}")
}

/// `5e21` → `5·10²¹`.
fn power_of_ten(value: f64) -> String {
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, ""));
    let raised = |digit: char| digit.to_digit(10).and_then(|digit| "⁰¹²³⁴⁵⁶⁷⁸⁹".chars().nth(digit as usize));
    let power: String = exponent.chars().filter_map(raised).collect();
    // Sums of steps are not exact.
    let digits = digits.parse().map_or_else(|_| digits.to_owned(), |digits: f64| format!("{digits:.2}"));
    match digits.trim_end_matches('0').trim_end_matches('.') {
        "1" => format!("10{power}"),
        digits => format!("{digits}·10{power}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(from: f64, to: f64, log: bool, expected: &[&str]) {
        let texts: Vec<String> = ticks(&Axis { from, to, log }, 5).into_iter().map(|tick| tick.1).collect();
        assert_eq!(texts, expected, "{from} to {to}");
    }

    #[test]
    fn ticks_are_round() {
        check(0.0, 10.0, false, &["0", "2", "4", "6", "8", "10"]);
        check(0.0, 3200.0, false, &["0", "1k", "2k", "3k"]);
        check(2.31, 2.52, false, &["2.35", "2.40", "2.45", "2.50"]);
        check(-1.0, 1.0, false, &["-1.0", "-0.5", "0.0", "0.5", "1.0"]);
        check(1.0, 1000.0, true, &["1", "2", "5", "10", "20", "50", "100", "200", "500", "1k"]);
        check(1e21, 1.2e22, true, &["10²¹", "2·10²¹", "5·10²¹", "10²²"]);
        check(0.0, 0.0004, false, &["0.0000", "1.0e-4", "2.0e-4", "3.0e-4", "4.0e-4"]);
    }

    #[test]
    fn places_are_shares_of_the_way() {
        let axis = Axis { from: 1.0, to: 100.0, log: true };
        assert!((axis.place(10.0) - 0.5).abs() < 1e-12);
        assert_eq!(
            Axis::over([f64::NAN, 3.0, -1.0].into_iter(), false),
            Axis { from: -1.0, to: 3.0, log: false }
        );
        assert_eq!(Axis::over([0.0, 3.0, 9.0].into_iter(), true), Axis { from: 3.0, to: 9.0, log: true });
        assert_eq!(Axis::over([2.0].into_iter(), false), Axis { from: 1.5, to: 2.5, log: false });
    }
}
