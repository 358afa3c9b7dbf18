//! Minerva's normal form of an answer: tables of what is replaced and removed, then a few regular expressions.
//!
//! It is text to text, faults included. The reference then asks sympy whether the difference of two forms is 0, which is not
//! done here: [`super::equal`] does better. Source: Lewkowycz et al. 2022, appendix D, as corrected in
//! `lm_eval/tasks/minerva_math/utils.py` (lm-evaluation-harness 0.4.13). Test: `cargo test -p kanana-eval minerva`.

use std::sync::LazyLock;

use crate::extract::PythonRegex;

const SUBSTITUTIONS: [(&str, &str); 10] = [
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
];

#[rustfmt::skip]
const REMOVED: [&str; 40] = [
    "square", "ways", "integers", "dollars", "mph", "inches", "ft", "hours", "km", "units", "\\ldots", "sue", "points",
    "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals", "edges", "students",
    "childrentickets", "multiples", "\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}",
    "\\text{}", "\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}",
];
const REMOVED_LAST: [&str; 2] = ["\"", "\\dots"];

static COMMAND: LazyLock<PythonRegex> = LazyLock::new(|| PythonRegex::fixed(r"\\[a-zA-Z]+"));
static THOUSANDS: LazyLock<PythonRegex> = LazyLock::new(|| PythonRegex::fixed(r"^-?\d{1,3}(,\d{3})+\Z"));
/// Words of [`REMOVED`] that stand alone.
static WORDS: LazyLock<Vec<PythonRegex>> = LazyLock::new(|| {
    REMOVED
        .iter()
        .filter(|word| is_word(word))
        .map(|word| PythonRegex::fixed(&format!(r"(?<!\\)\b{word}\b")))
        .collect()
});
/// In order, with what takes the place of a match: text, and between two `#` the number of a group.
static SHORTHANDS: LazyLock<Vec<(PythonRegex, &str)>> = LazyLock::new(|| {
    let table = [
        (r"(.*?)(\$)(.*?)(\$)(.*)", "$#3#$"),
        (r"(\\text\{)(.*?)(\})", "#2#"),
        (r"(\\textbf\{)(.*?)(\})", "#2#"),
        (r"(\\overline\{)(.*?)(\})", "#2#"),
        (r"(\\boxed\{)(.*)(\})", "#2#"),
        (r"(frac)([^{])(.)", "frac{#2#}{#3#}"),
        (r"(sqrt)(\[[^\]]*\])(\w)", "#1##2#{#3#}"),
        (r"(sqrt)(?!\[)([^{])", "sqrt{#2#}"),
    ];
    table.into_iter().map(|(pattern, form)| (PythonRegex::fixed(pattern), form)).collect()
});

fn is_word(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphabetic())
}

/// The normal form (`normalize_final_answer`).
pub fn normalize(answer: &str) -> String {
    let mut text = answer.rsplit('=').next().unwrap_or_default().to_owned();
    for word in WORDS.iter() {
        text = word.replace_all(&text, "");
    }
    for (before, after) in SUBSTITUTIONS {
        text = text.replace(before, after);
    }
    for part in REMOVED.into_iter().chain(REMOVED_LAST) {
        text = if is_word(part) { outside_commands(&text, part) } else { text.replace(part, "") };
    }
    for (pattern, form) in SHORTHANDS.iter() {
        text = pattern.replace_with(&text, |group| {
            let parts = form.split('#').enumerate();
            parts
                .map(|(at, part)| if at % 2 == 1 { group(part.parse().unwrap_or(0)) } else { part })
                .collect()
        });
    }
    text = text.replace('$', "");
    if THOUSANDS.is_match(&text) { text.replace(',', "") } else { text }
}

/// Without a unit that is glued to something: `\left` keeps its "ft".
fn outside_commands(text: &str, unit: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    for command in COMMAND.find_all(text).into_iter().flatten() {
        let Some((before, after)) = rest.split_once(&command) else { break };
        out.extend([before.replace(unit, ""), command]);
        rest = after;
    }
    out + &rest.replace(unit, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::golden_rows;

    fn check(answer: &str, expected: &str) {
        assert_eq!(normalize(answer), expected, "{answer:?}");
    }

    #[test]
    fn normal_forms() {
        check("x = 2\\pi cm", "2\\pi");
        check("\\left(3 ft\\right)", "\\left(3\\right)");
        check("the area is $\\frac12$ units", "\\frac{1}{2}");
        check("\\sqrt[3]8 + \\sqrt2", "\\sqrt[3]{8}+\\sqrt{2}");
        check("1,234,567", "1234567");
        check("0,1", "0,1");
        check("\\text{#1#}", "#1#");
        check("", "");
    }

    #[test]
    fn forms_are_the_references() {
        let files = ["math/golden_math_pairs.jsonl", "math/golden_math_scorers.jsonl"];
        let names = [("gold", "pred"), ("gt", "boxed")];
        for (file, (gold, answer)) in files.into_iter().zip(names) {
            let Some(rows) = golden_rows(file) else { return };
            let mut forms = 0;
            for (index, row) in rows.iter().enumerate() {
                let recorded = [(gold, if gold == "gt" { "gt" } else { "gold" }), (answer, "pred")];
                for (field, form) in recorded {
                    let Some(text) = row[field].as_str() else { continue };
                    assert_eq!(normalize(text), row[&format!("minerva_norm_{form}")], "{file} row {index}");
                    forms += 1;
                }
            }
            println!("{file}: {forms} forms");
        }
    }
}
