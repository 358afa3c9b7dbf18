//! Whether an output is right: by equality, by tolerance, or by a rule of its task.
//!
//! Source: evalplus 0.3.1, `evalplus/eval/__init__.py` (`unsafe_execute`) and `evalplus/eval/_special_oracle.py`. Two differences are
//! on purpose: the rules see the arguments as they were before the candidate could change them, and values are compared outside
//! its process.

use super::object::{Int, Object, all_close, is_floats};
use super::{Dataset, Problem};

/// What is compared of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Value,
    /// The set of its items: the order is free.
    Set,
    /// Whether there is one.
    NotNone,
}

impl Shape {
    pub(super) fn of(dataset: Dataset, entry_point: &str) -> Self {
        match (dataset, entry_point) {
            (
                Dataset::Mbpp,
                "similar_elements"
                | "find_char_long"
                | "common_in_nested_lists"
                | "extract_singly"
                | "larg_nnum"
                | "intersection_array"
                | "find_dissimilar"
                | "Diff",
            ) => Shape::Set,
            (Dataset::Mbpp, "check_str" | "text_match_three" | "text_starta_endb") => Shape::NotNone,
            _ => Shape::Value,
        }
    }

    /// As `objects.py` calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Shape::Value => "value",
            Shape::Set => "set",
            Shape::NotNone => "not_none",
        }
    }
}

/// A rule beside equality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Mbpp/164: anything is right.
    Anything,
    /// Mbpp/295: zero is right, too.
    Zero,
    /// Mbpp/581: the height may be that of the pyramid.
    Pyramid,
    /// Mbpp/558: the shorter number may have zeros before it.
    Digits,
    /// HumanEval/32: what makes the polynomial vanish, and nothing else.
    Root,
}

/// The judge of one task's outputs, in their order.
#[derive(Debug)]
pub(super) struct Oracle {
    rule: Option<Rule>,
    /// Grows with the first expected float, and stays.
    atol: f64,
}

impl Oracle {
    pub(super) fn new(dataset: Dataset, problem: &Problem) -> Self {
        let rule = match (dataset, &*problem.entry_point) {
            (Dataset::Mbpp, "are_equivalent") => Some(Rule::Anything),
            (Dataset::Mbpp, "sum_div") => Some(Rule::Zero),
            (Dataset::Mbpp, "surface_Area") => Some(Rule::Pyramid),
            (Dataset::Mbpp, "digit_distance_nums") => Some(Rule::Digits),
            (Dataset::HumanEval, "find_zero") => Some(Rule::Root),
            _ => None,
        };
        Oracle { rule, atol: problem.atol }
    }

    /// Values that are equal are right, whatever the arguments.
    pub(super) fn is_plain(&self) -> bool {
        self.rule != Some(Rule::Root)
    }

    /// Whether an expected value could bring a tolerance that is not there yet.
    pub(super) fn heeds(&self, expected: &str) -> bool {
        self.atol == 0.0 && expected.contains(['.', 'e', 'f', 'n'])
    }

    pub(super) fn heed(&mut self, expected: &Object) {
        if self.atol == 0.0 && is_floats(expected) {
            self.atol = 1e-6;
        }
    }

    pub(super) fn is_right(&mut self, arguments: &[Object], out: &Object, expected: &Object) -> bool {
        let exact = match self.rule {
            Some(Rule::Root) => return root(arguments, out).is_some_and(|value| value <= self.atol),
            Some(Rule::Anything) => true,
            Some(Rule::Zero) => out.equals(expected) || out.equals(&Object::Int(Int::Small(0))),
            Some(Rule::Pyramid) => {
                out.equals(expected) || pyramid(arguments, out).is_some_and(|off| off <= self.atol)
            }
            Some(Rule::Digits) => {
                out.equals(expected) || digits(arguments).is_some_and(|sum| out.equals(&sum))
            }
            None => out.equals(expected),
        };
        self.heed(expected);
        exact || self.atol != 0.0 && out.same_type(expected) && all_close(out, expected, self.atol)
    }
}

/// |Σ xsᵢ·outⁱ|; none where Python would raise.
fn root(arguments: &[Object], out: &Object) -> Option<f64> {
    let out = out.number()?;
    let coefficients =
        arguments.first()?.sequence()?.iter().map(Object::number).collect::<Option<Vec<_>>>()?;
    let terms =
        coefficients.iter().enumerate().map(|(power, coefficient)| coefficient * out.powf(power as f64));
    let sum = terms.sum::<f64>();
    (!sum.is_nan()).then_some(sum.abs())
}

/// The distance to the surface of a square pyramid whose height is that of its apex, rounded half to even.
fn pyramid(arguments: &[Object], out: &Object) -> Option<f64> {
    let [edge, height] = arguments else { return None };
    let (edge, height) = (edge.number()?, height.number()?);
    let slant = ((edge / 2.0).powi(2) + height.powi(2)).sqrt();
    let surface = edge.powi(2) + 4.0 * (edge * slant) / 2.0;
    Some((out.number()? - surface.round_ties_even()).abs())
}

/// The sum of the differences of digits, the shorter number filled with zeros; none for a number with a sign.
fn digits(arguments: &[Object]) -> Option<Object> {
    let [Object::Int(Int::Small(one)), Object::Int(Int::Small(two))] = arguments else { return None };
    let (one, two) = (one.to_string(), two.to_string());
    let width = one.len().max(two.len());
    let digits = |text: String| {
        format!("{text:0>width$}").chars().map(|digit| digit.to_digit(10)).collect::<Option<Vec<_>>>()
    };
    let (one, two) = (digits(one)?, digits(two)?);
    let sum: u32 = one.iter().zip(&two).map(|(one, two)| one.abs_diff(*two)).sum();
    Some(Object::Int(Int::Small(i64::from(sum))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(json: &str) -> Vec<Object> {
        let values: Vec<serde_json::Value> = serde_json::from_str(json).unwrap();
        values.iter().map(|value| Object::read(value).unwrap()).collect()
    }

    #[track_caller]
    fn check(dataset: Dataset, entry_point: &str, json: &str, expected: bool) {
        let problem = Problem { entry_point: entry_point.into(), ..Problem::default() };
        let problem = if entry_point == "find_zero" { Problem { atol: 1e-4, ..problem } } else { problem };
        let mut values = objects(json);
        let (wanted, out) = (values.pop().unwrap(), values.pop().unwrap());
        assert_eq!(
            Oracle::new(dataset, &problem).is_right(&values, &out, &wanted),
            expected,
            "{entry_point} {json}"
        );
    }

    #[test]
    fn tasks_with_rules_of_their_own() {
        let mbpp = Dataset::Mbpp;
        check(mbpp, "are_equivalent", r#"[1, 2, ["o","Anything"], true]"#, true);
        check(mbpp, "sum_div", "[8, false, 7]", true);
        check(mbpp, "sum_div", "[8, 6, 7]", false);
        check(mbpp, "surface_Area", "[3, 4, 35, 33]", true);
        check(mbpp, "surface_Area", "[3, 4, 34, 33]", false);
        check(mbpp, "digit_distance_nums", "[1, 256, 12, 0]", true);
        check(mbpp, "digit_distance_nums", "[-1, 256, 12, 0]", false);
        let zero = r#"[["l",-2,1], ["f","2.00001"], ["f","2.0"]]"#;
        check(Dataset::HumanEval, "find_zero", zero, true);
        check(Dataset::HumanEval, "find_zero", &zero.replace("2.00001", "2.1"), false);
        check(Dataset::HumanEval, "find_zero", &zero.replace("2.00001", "nan"), false);
        check(Dataset::HumanEval, "find_zero", r#"[["l",-2,1], "2", ["f","2.0"]]"#, false);
        check(mbpp, "find_zero", &zero.replace("2.00001", "2.1"), false);
        check(mbpp, "other", "[0, 7]", false);
    }

    #[test]
    fn a_tolerance_comes_with_the_first_float_and_stays() {
        let mut oracle = Oracle::new(Dataset::Mbpp, &Problem::default());
        let [whole, float, near, many] =
            &objects(r#"[1, ["f","1.0"], ["f","1.00000001"], ["l",["f","1.00000001"]]]"#)[..]
        else {
            panic!()
        };
        let near_in_list = objects(r#"[["l",1]]"#).remove(0);
        assert!(!oracle.is_right(&[], many, &near_in_list), "none yet");
        assert!(!oracle.is_right(&[], near, whole), "expected is no float");
        assert!(oracle.is_right(&[], near, float));
        assert!(oracle.is_right(&[], many, &near_in_list), "since then there is one");
        assert!(!oracle.is_right(&[], near, whole), "of another type");
        assert!(oracle.is_right(&[], float, whole), "equal, of whatever type");
    }
}
