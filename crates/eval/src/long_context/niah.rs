//! A needle in a haystack: every length of context, every depth of the needle.
//!
//! Two forms. `retrieval`, for base models: the text ends with the beginning of the needle's sentence, and goes on with its answer.
//! `question`, for instruct models: a conversation. Source: LLMTest_NeedleInAHaystack 7b90d285
//! (`needlehaystack/llm_needle_haystack_tester.py`, `providers/openai.py`, `evaluators/openai.py`); grids and forms as in the
//! family's published plots. Where it differs: sentences are not cut, context and question are one message of the user, and the
//! score is the recall of the answer's words, unless there is a judge.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use kanana_tokenizer::Message;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::haystack::{Haystack, split};
use super::{CountTokens, Language, Needle, Sentences, context_needed, largest};
use crate::lm::{GenerateRequest, Generation, LanguageModel, Prompt};
use crate::metrics;
use crate::random::PythonRandom;
use crate::{Bench, EvalError, Invalid, Metric, Outcome, Protocol, Result, Sample, Source, Task};

/// Tokens that question and answer have of a length, where a fifth of it is not less.
const BUFFER: usize = 200;

/// Tokens of an answer, by form. 300 is the reference's.
const MAX_TOKENS: [usize; 2] = [64, 300];

/// How the needle is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// The needle's sentence is begun, and the model goes on.
    #[default]
    Retrieval,
    /// The user asks.
    Question,
}

impl FromStr for Form {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "retrieval" => Ok(Form::Retrieval),
            "question" => Ok(Form::Question),
            _ => Err("expected retrieval (base models) or question (instruct models)".into()),
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Form::Retrieval => "retrieval",
            Form::Question => "question",
        })
    }
}

/// The test.
#[derive(Clone, Debug)]
pub struct Niah {
    /// Of haystack, needle and question.
    pub language: Language,
    /// How the needle is asked for.
    pub form: Form,
    /// Units: tokens, of everything with the answer.
    pub lengths: Vec<usize>,
    /// Where the needle is. Units: per cent of the haystack's tokens.
    pub depths: Vec<u32>,
    /// Sentences like the needle in the haystack, of which one is asked for; 1 is the needle alone.
    pub needles: usize,
    /// Another needle for every cell, rather than the well-known one.
    pub drawn: bool,
    /// Of haystack and drawn needles.
    pub seed: u64,
    /// Texts to make the haystack of, one behind the other and from the start again; none: generated sentences.
    pub haystack: Vec<PathBuf>,
}

/// The lengths of a published plot: `32k` or `128k`.
pub fn grid(name: &str) -> Option<Vec<usize>> {
    match name {
        "32k" => Some((1..=32).map(|thousands| 1000 * thousands).collect()),
        "128k" => {
            Some((0..15).map(|step| (1000.0 + 127_000.0 * f64::from(step) / 14.0).round() as usize).collect())
        }
        _ => None,
    }
}

/// The depths of the published plots.
pub fn depths() -> Vec<u32> {
    (0..15).map(|step| (100.0 * f64::from(step) / 14.0).round() as u32).collect()
}

/// A length as the label of a column: thousands are cut, as the published plots do.
pub fn label(length: usize) -> String {
    if length < 10_000 { length.to_string() } else { format!("{}K", length / 1000) }
}

/// What became of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Units: tokens.
    pub length: usize,
    /// Units: per cent.
    pub depth: u32,
    /// 0 to 10: the judge's rating, or else ten times the recall.
    pub score: f64,
    /// The part of the answer's words that came.
    pub recall: f64,
    /// The answer came word for word.
    pub contained: bool,
    /// The judge's rating, 1 to 10; none where nobody judges or the verdict cannot be read.
    pub judge: Option<f64>,
    /// Tokens of the prompt.
    pub tokens: usize,
    /// What was hidden.
    pub needle: String,
    /// What came.
    pub response: String,
}

/// A length and a depth.
struct Cell {
    length: usize,
    depth: u32,
    needle: Needle,
    request: GenerateRequest,
    tokens: usize,
}

impl Niah {
    /// What is asked of a context.
    fn prompt(&self, context: &str, needle: &Needle) -> Prompt {
        let (system, rest) = match self.language {
            Language::En => (
                "You are a helpful AI bot that answers questions for a user. Keep your response short and direct",
                "Don't give information outside the document or repeat your findings",
            ),
            Language::Ko => (
                "당신은 사용자의 질문에 답하는 친절한 AI입니다. 짧고 분명하게 답하세요.",
                "문서에 없는 내용을 말하거나 같은 말을 되풀이하지 마세요.",
            ),
        };
        match self.form {
            Form::Retrieval => Prompt::Text(format!("{context}\n\n{}", needle.beginning)),
            Form::Question => Prompt::chat(vec![
                Message::system(system),
                Message::user(format!("{context}\n\n{} {rest}", needle.question)),
            ]),
        }
    }

    /// The request, whose answer has what the prompt leaves of the length, and the prompt's tokens.
    fn request(
        &self,
        prompt: Prompt,
        length: usize,
        model: &dyn LanguageModel,
    ) -> Result<(GenerateRequest, usize)> {
        let tokens = model.count(&prompt)?;
        let room = length.saturating_sub(tokens).clamp(1, MAX_TOKENS[self.form as usize]);
        let request = GenerateRequest::greedy(prompt, room);
        Ok(match self.form {
            Form::Retrieval => (request.until(&["\n"]), tokens),
            Form::Question => (request, tokens),
        })
    }

    /// The needle that is asked for, and those beside it.
    fn needles(&self, length: usize, depth: u32) -> Vec<Needle> {
        let mut random = PythonRandom::new(self.seed ^ ((length as u64) << 8) ^ u64::from(depth));
        let mut needles = Vec::new();
        if !self.drawn {
            needles.push(Needle::classic(self.language));
        }
        while needles.len() < self.needles.max(1) {
            needles.push(Needle::drawn(self.language, &mut random, &needles));
        }
        needles
    }

    fn haystack(&self, source: &Source, model: &dyn LanguageModel) -> Result<Haystack> {
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        if self.haystack.is_empty() {
            return Haystack::new(Sentences::new(self.language, self.seed), longest, model);
        }
        let mut sentences = Vec::new();
        for path in &self.haystack {
            let of_file = split(&source.text(path)?);
            if of_file.is_empty() {
                let problem = "expected a text for the haystack, got an empty file".into();
                return Err(EvalError::Row { path: path.clone(), row: 1, problem });
            }
            let apart = if sentences.is_empty() { "" } else { "\n\n" };
            sentences.extend(
                of_file
                    .into_iter()
                    .enumerate()
                    .map(|(n, text)| if n == 0 { apart.to_owned() + &text } else { text }),
            );
        }
        // A text that begins again does so behind a space.
        let first = sentences[0].clone();
        let again = std::iter::once(format!("\n\n{first}")).chain(sentences[1..].to_vec()).cycle();
        Haystack::new(sentences.into_iter().chain(again), longest, model)
    }

    /// All cells, a length after the other.
    fn cells(&self, source: &Source, model: &dyn LanguageModel) -> Result<Vec<Cell>> {
        let haystack = self.haystack(source, model)?;
        let mut cells = Vec::new();
        for &length in &self.lengths {
            let mut sentences = None;
            for &depth in &self.depths {
                let needles = self.needles(length, depth);
                let hidden = |needle: &Needle| format!("\n{}\n", needle.sentence());
                if sentences.is_none() || self.drawn {
                    let frame = model.count(&self.prompt("", &needles[0]))?;
                    let answer = model.count(&Prompt::Text(needles[0].answer.clone()))?;
                    let buffer = BUFFER.min(length / 5).max(frame + answer + 8);
                    let limit = (length + frame).saturating_sub(buffer);
                    let end: String = needles.iter().map(hidden).collect();
                    let measure =
                        |n| model.count(&self.prompt(&haystack.text(n, &[(n, end.clone())]), &needles[0]));
                    let least = measure(0)?;
                    if least > limit {
                        let least = least + buffer - frame;
                        return Err(EvalError::TooShort { task: self.protocol().task.into(), length, least });
                    }
                    sentences = Some(largest(haystack.len(), limit, measure)?);
                }
                let count = sentences.unwrap_or_default();
                let place = |(n, needle): (usize, &Needle)| {
                    // The others are spread evenly, from the needle round to it.
                    let around = f64::from(depth) + 100.0 * n as f64 / needles.len() as f64;
                    let percent = if n == 0 { around } else { around % 100.0 };
                    (haystack.place(count, percent), hidden(needle))
                };
                let mut insertions: Vec<(usize, String)> = needles.iter().enumerate().map(place).collect();
                insertions.sort_by_key(|(place, _)| *place);
                let prompt = self.prompt(&haystack.text(count, &insertions), &needles[0]);
                let (request, tokens) = self.request(prompt, length, model)?;
                let needle = needles.into_iter().next().unwrap_or_else(|| Needle::classic(self.language));
                cells.push(Cell { length, depth, needle, request, tokens });
            }
        }
        Ok(cells)
    }
}

impl Task for Niah {
    fn protocol(&self) -> Protocol {
        let id = match (self.form, self.language) {
            (Form::Retrieval, Language::En) => "niah/retrieval/en/v1",
            (Form::Retrieval, Language::Ko) => "niah/retrieval/ko/v1",
            (Form::Question, Language::En) => "niah/question/en/v1",
            (Form::Question, Language::Ko) => "niah/question/ko/v1",
        };
        let source = "LLMTest_NeedleInAHaystack 7b90d285; recall of the answer's words (ROUGE-1), or a judge";
        Protocol { task: "niah", id, column: None, source }
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<Outcome> {
        let cells = bench.limited(self.cells(bench.source, bench.model)?);
        let requests: Vec<GenerateRequest> = cells.iter().map(|cell| cell.request.clone()).collect();
        let answers = bench.generate(&requests)?;
        drop(requests);
        if let Some((cell, _)) =
            cells.iter().zip(&answers).find(|(cell, answer)| answer.prompt_tokens < cell.tokens)
        {
            return Err(context_needed("niah", cell.length));
        }
        let row = |(cell, answer): (&Cell, &Generation)| {
            let response = answer.text.trim().to_owned();
            let recall = cell.needle.recall(&response);
            Row {
                length: cell.length,
                depth: cell.depth,
                score: 10.0 * recall,
                recall,
                contained: cell.needle.is_contained(&response),
                judge: None,
                tokens: answer.prompt_tokens,
                needle: cell.needle.sentence(),
                response,
            }
        };
        let mut rows: Vec<Row> = cells.iter().zip(&answers).map(row).collect();
        let judged = bench.judge.is_some();
        if judged {
            let asked =
                cells.iter().zip(&rows).map(|(cell, row)| verdict_request(&cell.needle, &row.response));
            let verdicts = bench.judge("niah", &asked.collect::<Vec<_>>())?;
            for (row, verdict) in rows.iter_mut().zip(&verdicts) {
                row.judge = rating(&verdict.text);
                row.score = row.judge.unwrap_or(0.0);
            }
        }
        let invalid = |(row, answer): (&Row, &Generation)| match row.judge {
            None if judged => Some(Invalid::Unjudged),
            // An answer that goes on behind the needle is none the worse.
            _ => Invalid::of(answer).filter(|reason| *reason != Invalid::Truncated || row.recall < 1.0),
        };
        let invalid: Vec<Option<Invalid>> = rows.iter().zip(&answers).map(invalid).collect();
        Ok(outcome(&rows, &invalid))
    }
}

/// Means over all cells and over those of each length.
fn outcome(rows: &[Row], invalid: &[Option<Invalid>]) -> Outcome {
    let metrics = |rows: &[&Row]| -> Vec<Metric> {
        let metric = |name: &str, of: fn(&Row) -> f64| {
            let mean = metrics::mean(&rows.iter().map(|row| of(row)).collect::<Vec<_>>())?;
            Some(Metric { name: name.into(), value: mean.value, stderr: mean.stderr, n: mean.n })
        };
        let score = metric("score", |row| row.score);
        score.into_iter().chain(metric("contained", |row| 100.0 * f64::from(row.contained))).collect()
    };
    let mut lengths: Vec<usize> = rows.iter().map(|row| row.length).collect();
    lengths.dedup();
    let group = |length: &usize| {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.length == *length).collect();
        (length.to_string(), metrics(&rows))
    };
    let sample = |(row, invalid): (&Row, &Option<Invalid>)| Sample {
        id: format!("{}/{}", row.length, row.depth),
        group: Some(row.length.to_string()),
        scores: vec![("score".into(), row.score), ("contained".into(), f64::from(row.contained))],
        invalid: *invalid,
        detail: serde_json::to_value(row).unwrap_or_else(|error| json!({ "error": error.to_string() })),
    };
    Outcome {
        metrics: metrics(&rows.iter().collect::<Vec<_>>()),
        groups: lengths.iter().map(group).collect(),
        samples: rows.iter().zip(invalid).map(sample).collect(),
        notes: vec!["score is 0 to 10; the haystack's sentences are not cut, so that a prompt is up to a sentence shorter".into()],
    }
}

/// What a judge is asked. Source of the scale: `evaluators/openai.py` of the reference.
fn verdict_request(needle: &Needle, response: &str) -> GenerateRequest {
    let text = format!(
        "Rate how well an answer agrees with the correct one.\n\n\
         1: it has nothing to do with the correct answer.\n\
         3: it is about the same thing, but says something else.\n\
         5: it is partly right, and much of it is missing or wrong.\n\
         7: it is right, and something small is missing.\n\
         10: it is right and complete.\n\n\
         [Question]\n{}\n\n[Correct answer]\n{}\n\n[Answer]\n{response}\n\n\
         Compare the two in a sentence, then give the rating in double square brackets, such as [[5]].",
        needle.question,
        needle.sentence(),
    );
    GenerateRequest::greedy(Prompt::user(text), 300)
}

/// The last number from 1 to 10 in double square brackets.
fn rating(text: &str) -> Option<f64> {
    let parts = text.rsplit("[[").filter_map(|part| part.split_once("]]"));
    let mut ratings = parts.filter_map(|(number, _)| number.trim().parse::<f64>().ok());
    ratings.find(|rating| (1.0..=10.0).contains(rating))
}

#[cfg(test)]
#[path = "niah_tests.rs"]
mod tests;
