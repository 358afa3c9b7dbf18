//! Prompts that no cache has seen: random token ids where a server takes them, else random words.

use anyhow::Result;
use serde_json::{Value, json};

use super::super::measure::tokens;
use super::client::{Refusal, Server};
use crate::hints::failure_of;

/// Ids below one of these are in a model's vocabulary: the first that a server takes is used.
const VOCABULARIES: [usize; 5] = [100_000, 30_000, 10_000, 1000, 250];
/// Words of the text by which tokens are counted.
const SAMPLE_WORDS: usize = 64;
/// Common enough to be a token each in most vocabularies.
const WORDS: [&str; 32] = [
    "about", "again", "before", "between", "book", "city", "day", "door", "every", "first", "four", "good",
    "green", "hand", "house", "light", "long", "many", "morning", "name", "never", "night", "open", "other",
    "people", "river", "small", "stone", "there", "time", "water", "world",
];

/// How a server takes prompts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// Token ids below a bound.
    Ids { below: usize },
    /// A text of so many tokens a word.
    Text { tokens_per_word: f64 },
}

/// Where prompts begin alike, and how long they are.
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    pub shared_prefix: usize, // tokens
    pub prompt: usize,        // tokens, behind the prefix
}

/// Between the seeds of two prompts: odd, with bits everywhere, so that words, which use few bits, differ too.
const SEED_STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// All prompts of a run; they follow from a seed.
pub struct Prompts {
    pub form: Form,
    pub lengths: Lengths,
    pub seed: u64,
}

impl Form {
    /// Finds out by asking. Cost: a few prompts of a token or of some words.
    ///
    /// Errors: the server completes neither.
    pub fn of(server: &Server, seed: u64) -> Result<Self> {
        let connection = server.connect();
        for below in VOCABULARIES {
            match connection.complete(&json!([below - 1]), 1) {
                Ok(_) => return Ok(Form::Ids { below }),
                // A bad request, or a server that does not expect ids at all; anything else is no matter of the prompt.
                Err(error) => match error.downcast_ref::<Refusal>() {
                    Some(Refusal { status: 400 | 422 | 500, .. }) => {}
                    _ => return Err(refused(error, server)),
                },
            }
        }
        let one_a_word = Form::Text { tokens_per_word: 1.0 };
        let sample = one_a_word.render(&[(seed, SAMPLE_WORDS)]);
        let answer = connection.complete(&sample, 1).map_err(|error| refused(error, server))?;
        let counted = answer.usage.map_or(SAMPLE_WORDS, |usage| usage.prompt_tokens.max(1));
        Ok(Form::Text { tokens_per_word: counted as f64 / SAMPLE_WORDS as f64 })
    }

    /// The form that both servers take.
    pub fn common(self, other: Self) -> Self {
        match (self, other) {
            (Form::Ids { below: a }, Form::Ids { below: b }) => Form::Ids { below: a.min(b) },
            (text @ Form::Text { .. }, _) | (_, text) => text,
        }
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Form::Ids { .. } => "token ids",
            Form::Text { .. } => "words",
        }
    }

    /// A prompt of parts, each of a seed and so many tokens.
    fn render(self, parts: &[(u64, usize)]) -> Value {
        match self {
            Form::Ids { below } => {
                parts.iter().flat_map(|&(seed, length)| tokens(below, seed).take(length)).collect()
            }
            Form::Text { tokens_per_word } => {
                let words = parts.iter().flat_map(|&(seed, length)| {
                    let count =
                        if length == 0 { 0.0 } else { (length as f64 / tokens_per_word).round().max(1.0) };
                    tokens(WORDS.len(), seed).take(count as usize).map(|id| WORDS[id as usize])
                });
                words.collect::<Vec<_>>().join(" ").into()
            }
        }
    }
}

fn refused(error: anyhow::Error, server: &Server) -> anyhow::Error {
    let hint = match error.downcast_ref::<Refusal>() {
        Some(Refusal { status: 401 | 403, .. }) => "give a key of the server with --api-key",
        Some(Refusal { status: 429 | 503, .. }) => {
            "run it again when the server is idle and its model is loaded"
        }
        _ => {
            "the server must stream /v1/completions, with max_tokens, temperature, ignore_eos and stream_options"
        }
    };
    failure_of(error, format_args!("{} does not complete a prompt", server.url), hint)
}

impl Prompts {
    /// Prompt `number`, which begins as all others of its `group` do, and as none of another group.
    pub fn prompt(&self, group: u64, number: u64) -> Value {
        let Prompts { form, lengths, seed } = self;
        // Prefixes count from the other end, so that no prompt is one of them.
        let step = |count: u64| (count + 1).wrapping_mul(SEED_STEP);
        let (prefix, own) = (seed.wrapping_sub(step(group)), seed.wrapping_add(step(number)));
        form.render(&[(prefix, lengths.shared_prefix), (own, lengths.prompt)])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn prompts(form: Form) -> Prompts {
        Prompts { form, lengths: Lengths { shared_prefix: 40, prompt: 20 }, seed: 7 }
    }

    #[test]
    fn ids_share_the_prefix_of_their_group_alone() {
        let prompts = prompts(Form::Ids { below: 250 });
        let ids =
            |group, number| -> Vec<u32> { serde_json::from_value(prompts.prompt(group, number)).unwrap() };
        let (a, b, c) = (ids(0, 0), ids(0, 1), ids(1, 2));
        assert_eq!((a.len(), ids(0, 0)), (60, a.clone()), "they follow from the seed");
        assert!(a.iter().all(|&id| id < 250));
        assert_eq!(a[..40], b[..40]);
        assert_ne!(a[40], b[40]);
        assert_ne!(a[..16], c[..16]);
    }

    #[test]
    fn texts_have_about_that_many_tokens() {
        let prompts = prompts(Form::Text { tokens_per_word: 2.0 });
        let text = |group, number| prompts.prompt(group, number).as_str().unwrap().to_owned();
        assert_eq!(text(0, 0).split(' ').count(), 30);
        let prefix = |text: &str| text.split(' ').take(20).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(prefix(&text(0, 0)), prefix(&text(0, 1)));
        let texts: HashSet<String> = (0..200).map(|number| text(0, number)).collect();
        assert_eq!(texts.len(), 200, "none comes twice");
    }

    #[test]
    fn two_servers_get_what_both_take() {
        let check = |a: Form, b: Form, expected: Form| {
            assert_eq!(a.common(b), expected);
            assert_eq!(b.common(a), expected);
        };
        let text = Form::Text { tokens_per_word: 1.5 };
        check(Form::Ids { below: 1000 }, Form::Ids { below: 250 }, Form::Ids { below: 250 });
        check(Form::Ids { below: 1000 }, text, text);
    }
}
