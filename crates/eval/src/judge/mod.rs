//! Answers that another model judges: what the judge is asked, how its verdict is read, what becomes of the verdicts.
//!
//! Templates of judges are files of the data, because they belong to their authors. No verdict is dropped in silence: a task says
//! how many could not be read, and what they count. Tests: `cargo test -p kanana-eval judge`.

pub mod functionchat;
pub mod logickor;
pub mod mt_bench;
#[cfg(test)]
pub(crate) mod script;
pub mod wildbench;

use kanana_tokenizer::Message;

use crate::lm::{GenerateRequest, Generation, Prompt};
use crate::metrics::mean;
use crate::{Bench, Invalid, Metric, Result};

/// Two questions, the second of which follows the answer to the first.
pub(crate) struct TwoTurns {
    pub(crate) questions: [String; 2],
    pub(crate) temperature: f64,
}

/// Asks the first questions, then the second ones after the answers.
pub(crate) fn two_turns(
    bench: &mut Bench<'_>,
    conversations: &[TwoTurns],
    max_tokens: usize,
) -> Result<Vec<[Generation; 2]>> {
    let ask = |one: &TwoTurns, messages| GenerateRequest {
        temperature: one.temperature,
        ..GenerateRequest::greedy(Prompt::chat(messages), max_tokens)
    };
    let first = |one: &TwoTurns| ask(one, vec![Message::user(&one.questions[0])]);
    let firsts = bench.generate(&conversations.iter().map(first).collect::<Vec<_>>())?;
    let second = |(one, answer): (&TwoTurns, &Generation)| {
        let [question, next] = &one.questions;
        ask(one, vec![Message::user(question), Message::assistant(&answer.text), Message::user(next)])
    };
    let seconds = bench.generate(&conversations.iter().zip(&firsts).map(second).collect::<Vec<_>>())?;
    Ok(firsts.into_iter().zip(seconds).map(|(first, second)| [first, second]).collect())
}

/// A question to a judge; an empty `system` is left out.
pub(crate) fn question(system: &str, user: String, max_tokens: usize) -> GenerateRequest {
    let system = (!system.is_empty()).then(|| Message::system(system));
    let messages = system.into_iter().chain([Message::user(user)]).collect();
    GenerateRequest::greedy(Prompt::chat(messages), max_tokens)
}

/// The template with values in the place of names. Values are not searched for names in their turn.
pub(crate) fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut filled = String::new();
    let mut rest = template;
    // The name that stands first.
    while let Some((at, name, value)) = values
        .iter()
        .filter_map(|&(name, value)| Some((rest.find(name)?, name, value)))
        .min_by_key(|found| found.0)
    {
        filled.push_str(&rest[..at]);
        filled.push_str(value);
        rest = &rest[at + name.len()..];
    }
    filled + rest
}

/// What is to be said of an answer that got this score.
pub(crate) fn invalid(answer: &Generation, score: Option<f64>) -> Option<Invalid> {
    if score.is_none() { Some(Invalid::Unjudged) } else { Invalid::of(answer) }
}

/// The mean of scores; 0 of none, with `n` 0.
pub(crate) fn average(name: &str, scores: impl IntoIterator<Item = f64>) -> Metric {
    let scores: Vec<f64> = scores.into_iter().collect();
    let mean = mean(&scores);
    Metric {
        name: name.into(),
        value: mean.map_or(0.0, |mean| mean.value),
        stderr: mean.and_then(|mean| mean.stderr),
        n: scores.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_not_templates() {
        assert_eq!(fill("{a}-{b}-{a}-{c}", &[("{a}", "{b}"), ("{b}", "x")]), "{b}-x-{b}-{c}");
        assert_eq!(fill("", &[("{a}", "x")]), "");
    }
}
