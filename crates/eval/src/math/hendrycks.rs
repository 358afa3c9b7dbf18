//! The MATH paper's test of equality: both answers become a normal form of text, which is compared as text.
//!
//! It does what the reference does, faults included: an input that makes the reference raise is [`None`] here, and then the two
//! texts are compared as they are. Source: hendrycks/math 08e65fc, `modeling/math_equivalence.py`; the box is found as in
//! `modeling/dataset/util.py` with the `\boxed ` form of lm-evaluation-harness (`tasks/hendrycks_math/utils.py`, 0.4.13).
//! Test: `cargo test -p kanana-eval hendrycks`.

/// Whether two answers have one normal form; where one has none, whether they are the same text.
pub fn is_equiv(a: &str, b: &str) -> bool {
    match (strip_string(a), strip_string(b)) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// The normal form; None where the reference raises: two `\text{ `, or nothing behind a `\sqrt` or `\frac`.
pub fn strip_string(text: &str) -> Option<String> {
    let mut text = text.replace('\n', "").replace("\\!", "").replace("\\\\", "\\");
    text = text.replace("tfrac", "frac").replace("dfrac", "frac");
    text = text.replace("\\left", "").replace("\\right", "");
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "");
    text = without_units(text)?;
    text = text.replace("\\%", "").replace('%', "");
    text = text.replace(" .", " 0.").replace("{.", "{0.");
    if text.is_empty() {
        return Some(text);
    }
    if text.starts_with('.') {
        text.insert(0, '0');
    }
    // "k = 5" is 5: one equals sign, behind two characters at most.
    if let Some((name, value)) = text.split_once('=')
        && !value.contains('=')
        && name.chars().count() <= 2
    {
        text = value.to_owned();
    }
    text = braced_roots(&text)?.replace(' ', "");
    text = braced_fractions(&text)?;
    if text == "0.5" {
        text = "\\frac{1}{2}".to_owned();
    }
    Some(slash_as_fraction(text))
}

/// What stands before the one `\text{ `, which in this data set is a unit.
fn without_units(text: String) -> Option<String> {
    let mut parts = text.split("\\text{ ");
    let first = parts.next().unwrap_or_default();
    match (parts.next(), parts.next()) {
        (None, _) => Some(text),
        (Some(_), None) => Some(first.to_owned()),
        _ => None,
    }
}

/// `\sqrt3` becomes `\sqrt{3}`.
fn braced_roots(text: &str) -> Option<String> {
    let mut parts = text.split("\\sqrt");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("\\sqrt");
        let mut rest = part.chars();
        match rest.next()? {
            '{' => out.push_str(part),
            first => out.extend(["{", first.encode_utf8(&mut [0; 4]), "}", rest.as_str()]),
        }
    }
    Some(out)
}

/// `\frac12` and `\frac1{72}` get their braces; the text stays as it is where one of its fractions has only one character.
fn braced_fractions(text: &str) -> Option<String> {
    let mut parts = text.split("\\frac");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("\\frac");
        let mut rest = part.chars();
        let above = rest.next()?;
        if above == '{' {
            out.push_str(part);
            continue;
        }
        let Some(below) = rest.next() else { return Some(text.to_owned()) };
        out.extend(['{', above, '}']);
        match below {
            '{' => out.push('{'),
            below => out.extend(['{', below, '}']),
        }
        out.push_str(rest.as_str());
    }
    Some(out)
}

/// `3/4` becomes `\frac{3}{4}` where both are integers as Python prints them.
fn slash_as_fraction(text: String) -> String {
    match text.split_once('/') {
        Some((above, below)) if is_printed_integer(above) && is_printed_integer(below) => {
            format!("\\frac{{{above}}}{{{below}}}")
        }
        _ => text,
    }
}

/// Python reads no more than 4,300 digits (`sys.int_info.default_max_str_digits`).
fn is_printed_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let canonical = text == "0" || !digits.starts_with('0');
    canonical
        && !digits.is_empty()
        && digits.len() <= 4300
        && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// The last `\boxed{…}` or `\fbox{…}`, with its name and braces; of `\boxed 5`, that up to the next `$`. None without one, or
/// where its braces do not close.
pub fn last_boxed(text: &str) -> Option<&str> {
    if let Some((at, form)) = text.rmatch_indices("\\boxed ").next() {
        let rest = &text[at + form.len()..];
        let end = rest.find('$').unwrap_or(rest.len());
        return Some(&text[at..at + form.len() + end]);
    }
    let start = text.rfind("\\boxed").or_else(|| text.rfind("\\fbox"))?;
    let mut open = 0_usize;
    for (at, byte) in text.bytes().enumerate().skip(start) {
        match byte {
            b'{' => open += 1,
            // The reference counts below zero, and never comes back to it.
            b'}' if open == 0 => return None,
            b'}' => {
                open -= 1;
                if open == 0 {
                    return Some(&text[start..=at]);
                }
            }
            _ => {}
        }
    }
    None
}

/// What is in a box that [`last_boxed`] found; None where the reference raises (`\fbox`, or something between name and brace).
pub fn remove_boxed(text: &str) -> Option<&str> {
    match text.strip_prefix("\\boxed ") {
        Some(inner) => Some(inner),
        None => text.strip_prefix("\\boxed{")?.strip_suffix('}'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::golden_rows;

    fn check(text: &str, expected: Option<&str>) {
        assert_eq!(strip_string(text).as_deref(), expected, "{text:?}");
    }

    #[test]
    fn normal_forms() {
        check("\\dfrac 12", Some("\\frac{1}{2}"));
        check("\\frac1{72}", Some("\\frac{1}{72}"));
        check("\\frac{72}1", Some("\\frac{72}1"));
        check("\\frac1", Some("\\frac1"));
        check("k = 3/4", Some("\\frac{3}{4}"));
        check("xyz=3/4", Some("xyz=3/4"));
        check("03/4", Some("03/4"));
        check("x/2", Some("x/2"));
        check("\\sqrt3 + .5", Some("\\sqrt{3}+0.5"));
        check(".5", Some("\\frac{1}{2}"));
        check("5\\text{ cm}", Some("5"));
        check("5\\text{ cm} or 2\\text{ in}", None);
        check("\\sqrt", None);
        check("2\\frac", None);
        check("", Some(""));
    }

    #[test]
    fn what_has_no_normal_form_is_compared_as_it_is() {
        assert!(is_equiv("\\sqrt", "\\sqrt"));
        assert!(!is_equiv("\\sqrt ", "\\sqrt"));
        assert!(is_equiv("0.5", "\\tfrac12"));
    }

    #[test]
    fn boxes() {
        let check =
            |text, expected| assert_eq!(last_boxed(text).and_then(remove_boxed), expected, "{text:?}");
        check("so $\\boxed{1}$ or $\\boxed{\\frac{1}{2}}$.", Some("\\frac{1}{2}"));
        check("$\\boxed 7$ and $\\boxed{8}$", Some("7"));
        check("\\fbox{3}", None);
        check("\\boxed{3", None);
        check("\\boxed}{3}", None);
        check("none", None);
        assert_eq!(last_boxed("\\fbox{3}"), Some("\\fbox{3}"));
    }

    #[test]
    fn pairs_are_judged_as_by_the_reference() {
        let Some(rows) = golden_rows("math/golden_math_pairs.jsonl") else { return };
        for (index, row) in rows.iter().enumerate() {
            let text = |name: &str| row[name].as_str().unwrap();
            for side in ["gold", "pred"] {
                let expected = row[&format!("hendrycks_strip_{side}")].as_str();
                assert_eq!(strip_string(text(side)).as_deref(), expected, "row {index}");
            }
            let same = is_equiv(text("gold"), text("pred"));
            assert_eq!(same, row["hendrycks_is_equiv"], "row {index}");
        }
        println!("{} pairs", rows.len());
    }

    #[test]
    fn responses_are_judged_as_by_the_reference() {
        let Some(rows) = golden_rows("math/golden_math_scorers.jsonl") else { return };
        for row in &rows {
            let boxed = last_boxed(row["response"].as_str().unwrap()).and_then(remove_boxed);
            assert_eq!(boxed, row["boxed"].as_str(), "{} {}", row["idx"], row["j"]);
            let same = boxed.is_some_and(|boxed| is_equiv(row["gt"].as_str().unwrap(), boxed));
            assert_eq!(same, row["hendrycks_is_equiv"], "{} {}", row["idx"], row["j"]);
        }
        println!("{} responses", rows.len());
    }
}
