//! RULER's 13 tasks, with data that are generated here.
//!
//! Source: NVIDIA/RULER c3f5e3b4, `scripts/data/synthetic/*.py` and `constants.py` (templates, numbers of needles, hops and words,
//! tokens of an answer), and lm-evaluation-harness 0.4.13, `lm_eval/tasks/ruler`. What differs: the lists of words, and the essays,
//! which are generated sentences unless the user has a text; sizes are the largest that fit, not multiples of a step; keys are
//! distinct; every sample has its own seed. So scores are near the published ones, and not the same.

mod counting;
mod needles;
mod qa;
mod words;

pub use qa::Qa;

use super::haystack::split;
use super::{CountTokens, Language, Sentences, largest};
use crate::lm::Prompt;
use crate::random::PythonRandom;
use crate::{EvalError, Result};

/// Of the reference's generators.
const SEED: u64 = 42;

/// A task of RULER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number in a repeated noise.
    NiahSingle1,
    /// A number in essays.
    NiahSingle2,
    /// A UUID in essays.
    NiahSingle3,
    /// One of four numbers in essays.
    NiahMultiKey1,
    /// A number among needles.
    NiahMultiKey2,
    /// A UUID, by a UUID, among needles.
    NiahMultiKey3,
    /// Four numbers of one key.
    NiahMultiValue,
    /// Four numbers of four keys.
    NiahMultiQuery,
    /// Variables that are assigned to one another.
    VariableTracking,
    /// The ten words of a list that come most often.
    CommonWords,
    /// The three coded words that come most often.
    FrequentWords,
    /// Questions about one of many paragraphs (SQuAD).
    Qa1,
    /// Questions about two of many paragraphs (HotpotQA).
    Qa2,
}

impl Kind {
    /// In the reference's order.
    pub const ALL: [Kind; 13] = [
        Kind::NiahSingle1,
        Kind::NiahSingle2,
        Kind::NiahSingle3,
        Kind::NiahMultiKey1,
        Kind::NiahMultiKey2,
        Kind::NiahMultiKey3,
        Kind::NiahMultiValue,
        Kind::NiahMultiQuery,
        Kind::VariableTracking,
        Kind::CommonWords,
        Kind::FrequentWords,
        Kind::Qa1,
        Kind::Qa2,
    ];

    /// As the reference calls it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::NiahSingle1 => "niah_single_1",
            Kind::NiahSingle2 => "niah_single_2",
            Kind::NiahSingle3 => "niah_single_3",
            Kind::NiahMultiKey1 => "niah_multikey_1",
            Kind::NiahMultiKey2 => "niah_multikey_2",
            Kind::NiahMultiKey3 => "niah_multikey_3",
            Kind::NiahMultiValue => "niah_multivalue",
            Kind::NiahMultiQuery => "niah_multiquery",
            Kind::VariableTracking => "vt",
            Kind::CommonWords => "cwe",
            Kind::FrequentWords => "fwe",
            Kind::Qa1 => "qa_1",
            Kind::Qa2 => "qa_2",
        }
    }

    /// Tokens of an answer.
    pub fn max_tokens(self) -> usize {
        match self {
            Kind::VariableTracking => 30,
            Kind::CommonWords => 120,
            Kind::FrequentWords => 50,
            Kind::Qa1 | Kind::Qa2 => 32,
            _ => 128,
        }
    }

    /// How good a response is, from 0 to 1: the part of the answers that it contains, whatever the case of letters; of questions
    /// about paragraphs, whether it contains one of them. Source: `string_match_all` and `string_match_part` of
    /// `scripts/eval/synthetic/constants.py`.
    pub fn score(self, response: &str, answers: &[String]) -> f64 {
        let response = response.to_lowercase();
        let found = answers.iter().filter(|answer| response.contains(&answer.to_lowercase())).count();
        match self {
            Kind::Qa1 | Kind::Qa2 => f64::from(found > 0),
            _ => found as f64 / answers.len().max(1) as f64,
        }
    }
}

/// What samples are made of.
pub struct Materials {
    /// Sentences, each with the space before it.
    essay: Vec<String>,
    /// Paragraphs and questions of SQuAD.
    pub squad: Option<Qa>,
    /// Of HotpotQA.
    pub hotpot: Option<Qa>,
}

impl Materials {
    /// `essay`: a text, or generated sentences; `longest`: tokens that it must have at least.
    pub fn new(essay: Option<&str>, longest: usize, squad: Option<Qa>, hotpot: Option<Qa>) -> Self {
        // No sentence has fewer than four tokens.
        let count = (longest / 4).max(8);
        let sentences = essay.map(split).filter(|sentences| !sentences.is_empty());
        let essay = match sentences {
            Some(sentences) => sentences.into_iter().cycle().take(count).collect(),
            None => Sentences::new(Language::En, SEED).take(count).collect(),
        };
        Materials { essay, squad, hotpot }
    }
}

/// A question with what belongs in its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// All of the text.
    pub input: String,
    /// The beginning of the answer, with the space before it.
    pub prefix: String,
    /// What is to be found.
    pub answers: Vec<String>,
}

impl Question {
    /// For a base model the text goes on with the beginning of the answer; for an instruct model the user says the text, and the
    /// answer is begun.
    pub fn prompt(&self, chat: bool) -> Prompt {
        match chat {
            false => Prompt::Text(format!("{}{}", self.input, self.prefix)),
            true => Prompt::Chat {
                messages: vec![kanana_tokenizer::Message::user(&self.input)],
                tools: Vec::new(),
                prefill: Some(self.prefix.trim().to_owned()),
            },
        }
    }
}

/// Samples of one task at one length.
pub struct Generator<'a> {
    kind: Kind,
    length: usize,
    chat: bool,
    materials: &'a Materials,
    /// Units of haystack that fit: sentences, lines, words or paragraphs.
    size: usize,
}

impl<'a> Generator<'a> {
    /// Finds the size. `length`: tokens of prompt and answer together.
    ///
    /// Errors: [`EvalError::TooShort`]; a model whose tokens cannot be counted.
    pub fn new(
        (kind, length): (Kind, usize),
        chat: bool,
        materials: &'a Materials,
        model: &(impl CountTokens + ?Sized),
    ) -> Result<Self> {
        let mut generator = Generator { kind, length, chat, materials, size: 0 };
        let (least, most) = generator.bounds();
        let first = generator.tokens(&generator.question(0, least), model)?;
        if first > length {
            return Err(EvalError::TooShort { task: format!("ruler {}", kind.name()), length, least: first });
        }
        let measure = |more| generator.tokens(&generator.question(0, least + more), model);
        let more = largest(most.saturating_sub(least), length, measure)?;
        generator.size = least + more;
        Ok(generator)
    }

    /// Sample `index` with the tokens of its prompt; None where it does not fit, however small it is made.
    pub fn sample(
        &self,
        index: usize,
        model: &(impl CountTokens + ?Sized),
    ) -> Result<Option<(Question, usize)>> {
        let (least, _) = self.bounds();
        let mut size = self.size;
        loop {
            let question = self.question(index, size);
            let tokens = self.tokens(&question, model)?;
            if tokens <= self.length {
                return Ok(Some((question, tokens - self.kind.max_tokens())));
            }
            if size <= least {
                return Ok(None);
            }
            // By as much as it is too long, and by one unit at least.
            let excess = (size as f64 * (tokens - self.length) as f64 / tokens as f64).ceil() as usize;
            size = size.saturating_sub(excess.max(1)).max(least);
        }
    }

    /// How many samples there are, where not any number can be made.
    pub fn available(&self) -> usize {
        self.qa().map_or(usize::MAX, Qa::len)
    }

    fn qa(&self) -> Option<&'a Qa> {
        match self.kind {
            Kind::Qa1 => self.materials.squad.as_ref(),
            Kind::Qa2 => self.materials.hotpot.as_ref(),
            _ => None,
        }
    }

    /// Tokens of prompt and answer.
    fn tokens(&self, question: &Question, model: &(impl CountTokens + ?Sized)) -> Result<usize> {
        Ok(model.count(&question.prompt(self.chat))? + self.kind.max_tokens())
    }

    /// The least units that a question can have, and the most that could fit.
    fn bounds(&self) -> (usize, usize) {
        match self.kind {
            Kind::NiahSingle1 | Kind::NiahMultiKey2 | Kind::NiahMultiKey3 => (1, self.length / 4),
            Kind::VariableTracking => (6, self.length / 4),
            Kind::CommonWords => (11, self.length),
            Kind::FrequentWords => (100, self.length),
            Kind::Qa1 | Kind::Qa2 => (1, self.qa().map_or(1, Qa::documents)),
            _ => (4, self.materials.essay.len()),
        }
    }

    fn question(&self, index: usize, size: usize) -> Question {
        let mut random = PythonRandom::new(SEED + ((index as u64) << 32));
        let random = &mut random;
        match self.kind {
            Kind::VariableTracking => counting::variables(random, size, self.length < 2048),
            Kind::CommonWords => counting::common_words(random, size, self.length < 4096),
            Kind::FrequentWords => counting::frequent_words(random, size, self.length / 50),
            Kind::Qa1 | Kind::Qa2 => match self.qa() {
                Some(qa) => qa.question(random, index, size),
                None => Question { input: String::new(), prefix: String::new(), answers: Vec::new() },
            },
            kind => needles::question(random, kind, &self.materials.essay, size),
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
