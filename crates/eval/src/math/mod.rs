//! Reads the answers of GSM8K and MATH and says whether they are right.
//!
//! - [`gsm8k`]: the number in an answer, as lm-evaluation-harness reads it.
//! - [`hendrycks`]: the MATH paper's comparison of texts, exactly.
//! - [`minerva`]: Minerva's normal form, exactly.
//! - [`extract`] and [`equal`]: our own verifier. It reads LaTeX and plain text into a tree and compares what they say: numbers
//!   exactly, expressions where their variables have random values, lists without order. The reference that it is held against
//!   is Math-Verify (5d148cfa); where it differs the tests say why.
//!
//! It refuses to call a computer algebra system, and no input takes long: texts, nesting, numbers and lists are bounded.
//! Test: `cargo test -p kanana-eval math`.

mod answer;
mod compare;
mod expression;
pub mod gsm8k;
pub mod hendrycks;
pub mod minerva;
mod parse;
#[cfg(test)]
mod tests;
mod token;

use std::sync::LazyLock;

use fancy_regex::Regex;

pub use answer::extract;
use expression::Expr;

/// By which rule an answer was found equal, or why it was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Rule {
    /// The same text but for spaces and markup.
    Text,
    /// Numbers of one value.
    Number,
    /// Expressions that agree wherever they were tried.
    Expression,
    /// Equations or inequalities up to a factor.
    Relation,
    /// Intervals, or unions of them.
    Interval,
    /// Item by item.
    Tuple,
    /// The same items in any order.
    List,
    /// Cell by cell.
    Matrix,
    /// Both were read, and say different things.
    Different,
    /// One could not be read, and the texts differ.
    Unparsed,
}

/// Whether an answer is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// It is.
    pub equal: bool,
    /// How that was found.
    pub rule: Rule,
}

/// Longer answers are compared as text only. Units: bytes.
const MAX_LENGTH: usize = 2_000;

static THOUSANDS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
        .expect("a pattern of the program compiles: this is a bug")
});

/// Whether an answer says what the gold answer says. Not symmetric where their forms differ: a bare value is right where the
/// gold answer is `x = …`, a list without brackets where it is a tuple.
pub fn equal(gold: &str, answer: &str) -> Verdict {
    let verdict = |equal, rule| Verdict { equal, rule };
    if gold.len().max(answer.len()) > MAX_LENGTH {
        let same = gold.trim() == answer.trim();
        return verdict(same, if same { Rule::Text } else { Rule::Unparsed });
    }
    let text = token::compact(gold);
    if !text.is_empty() && text == token::compact(answer) {
        return verdict(true, Rule::Text);
    }
    let (golds, answers) = (readings(gold), readings(answer));
    if golds.is_empty() || answers.is_empty() {
        return verdict(false, Rule::Unparsed);
    }
    let mut pairs = golds.iter().flat_map(|gold| answers.iter().map(move |answer| (gold, answer)));
    match pairs.find_map(|(gold, answer)| compare::same(gold, answer)) {
        Some(rule) => verdict(true, rule),
        None => verdict(false, Rule::Different),
    }
}

/// What a text may mean: a comma between digits separates thousands, or items.
fn readings(text: &str) -> Vec<Expr> {
    let joined = THOUSANDS.replace_all(text, |found: &fancy_regex::Captures<'_, str>| {
        found.get(0).map_or(String::new(), |number| number.as_str().replace(',', ""))
    });
    let with_commas = if joined == text { None } else { parse::parse(text) };
    parse::parse(&joined).into_iter().chain(with_commas).collect()
}
