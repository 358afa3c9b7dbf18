//! Long contexts: a needle in a haystack, and RULER's tasks.
//!
//! Nothing here is downloaded: haystacks are generated ([`Sentences`]) or texts of the user's. Lengths are counted in the examined
//! model's tokens, through [`LanguageModel::render`]; a model that cannot tell them (one behind a server) cannot be examined.
//! Tests: `cargo test -p kanana-eval long_context`.

mod haystack;
mod needle;
pub mod niah;
pub mod ruler;
mod sentences;

use std::fmt;
use std::str::FromStr;

pub use haystack::{Haystack, split};
pub use needle::Needle;
pub use sentences::{Sentences, particle};
use serde::{Deserialize, Serialize};

use crate::lm::{LanguageModel, Prompt};
use crate::{EvalError, Result};

/// Of haystack, needle and question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// English.
    #[default]
    En,
    /// Korean.
    Ko,
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Language::En => "en",
            Language::Ko => "ko",
        })
    }
}

impl FromStr for Language {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "en" => Ok(Language::En),
            "ko" => Ok(Language::Ko),
            _ => Err("expected en or ko".into()),
        }
    }
}

/// Tokens of a text or a prompt.
pub trait CountTokens {
    /// As the model would read it.
    ///
    /// Errors: the tokens cannot be known.
    fn count(&self, prompt: &Prompt) -> Result<usize>;
}

impl<M: LanguageModel + ?Sized> CountTokens for M {
    fn count(&self, prompt: &Prompt) -> Result<usize> {
        let rendered = self.render(prompt)?.ok_or_else(|| EvalError::Needs {
            task: "a long context".into(),
            needs: "a model in this process (--model), whose tokens can be counted".into(),
        })?;
        Ok(rendered.1.len())
    }
}

/// The error of a model that cut prompts from the left: what it was asked about may have been there.
pub(crate) fn context_needed(task: &str, length: usize) -> EvalError {
    EvalError::Needs {
        task: task.into(),
        needs: format!("a context of {} tokens: --max-context", length + 1),
    }
}

/// The largest `n` up to `most` whose measure is at most `limit`; 0 where none is. The measure must not fall with `n`. It is taken
/// for few values where it grows evenly, and for about 2·log₂(most) at worst.
pub fn largest(most: usize, limit: usize, mut measure: impl FnMut(usize) -> Result<usize>) -> Result<usize> {
    let (mut low, mut high) = ((0, measure(0)?), (most + 1, usize::MAX));
    if most > 0 {
        let whole = measure(most)?;
        if whole <= limit {
            return Ok(most);
        }
        high = (most, whole);
    }
    let mut halve = false;
    while high.0 - low.0 > 1 {
        let span = high.0 - low.0;
        let (room, growth) = (limit.saturating_sub(low.1) as f64, high.1.saturating_sub(low.1).max(1) as f64);
        let guess = if halve { span / 2 } else { (span as f64 * room / growth) as usize };
        let n = low.0 + guess.clamp(1, span - 1);
        let tokens = measure(n)?;
        // A guess that moved one end only is followed by a halving.
        halve = !halve;
        if tokens <= limit { low = (n, tokens) } else { high = (n, tokens) }
    }
    Ok(low.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_that_fits() {
        let check = |most, limit, measure: fn(usize) -> usize, expected, most_calls| {
            let mut calls = 0;
            let got = largest(most, limit, |n| {
                calls += 1;
                Ok(measure(n))
            });
            assert_eq!(got.unwrap(), expected, "{most} {limit}");
            assert!(calls <= most_calls, "{calls} calls");
        };
        check(10_000, 100_000, |n| 30 + 14 * n, (100_000 - 30) / 14, 6);
        check(10_000, 100_000, |n| n * n, 316, 30);
        check(7, 100, |n| n, 7, 2);
        check(0, 100, |n| n, 0, 2);
        check(100, 5, |_| 50, 0, 20);
        check(100, 50, |n| 50 + n, 0, 9);
    }
}
