//! MT-Bench and its Korean translation KoMT-Bench: two turns, each rated from 1 to 10 by a judge.
//!
//! Source: Zheng et al. (2023), Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena; FastChat 0e6d3e4b
//! (`fastchat/llm_judge/{common,gen_model_answer,gen_judgment,show_result}.py`, mode single); KoMT-Bench 56d4f3af (`detector.py`).

use std::collections::HashMap;
use std::path::Path;
use std::sync::LazyLock;

use kanana_data::read::Row;
use serde_json::Value;

use super::{fill, question};
use crate::extract::PythonRegex;
use crate::lm::GenerateRequest;
use crate::source::field;
use crate::{EvalError, Result};

/// Tokens of an answer.
pub const ANSWER_TOKENS: usize = 1024;

/// Tokens of a verdict.
const VERDICT_TOKENS: usize = 2048;

/// Categories whose answers are judged beside a reference answer.
const WITH_REFERENCE: [&str; 3] = ["math", "reasoning", "coding"];

/// Questions of KoMT-Bench that may be answered in another language.
const ANY_LANGUAGE: [u64; 2] = [138, 140];

/// A question.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// 81 to 160.
    pub id: u64,
    /// `writing`, `roleplay`, `reasoning`, `math`, `coding`, `extraction`, `stem`, `humanities`.
    pub category: String,
    /// The second follows the answer to the first.
    pub turns: [String; 2],
    /// Of the answers.
    pub temperature: f64,
}

impl Question {
    /// A row of `question.jsonl`: `question_id`, `category`, `turns`; `required_temperature` overrides the category's.
    ///
    /// Errors: a field is missing or not what it should be.
    pub fn read(path: &Path, index: usize, row: &Row) -> Result<Self> {
        let category = field(path, index, row, "category")?.to_owned();
        let required = row.get("required_temperature").and_then(Value::as_f64);
        Ok(Question {
            id: id(path, index, row)?,
            turns: pair(path, index, row.get("turns"), "turns")?,
            temperature: required.unwrap_or_else(|| temperature(&category)),
            category,
        })
    }

    /// The judge needs a reference answer.
    pub fn needs_reference(&self) -> bool {
        WITH_REFERENCE.contains(&self.category.as_str())
    }
}

/// The temperature of answers.
fn temperature(category: &str) -> f64 {
    match category {
        "extraction" | "math" | "coding" | "reasoning" => 0.0,
        "stem" | "humanities" => 0.1,
        _ => 0.7,
    }
}

fn id(path: &Path, index: usize, row: &Row) -> Result<u64> {
    row.get("question_id").and_then(Value::as_u64).ok_or_else(|| {
        wrong(path, index, format!("expected a number in \"question_id\", got {:?}", row.get("question_id")))
    })
}

fn pair(path: &Path, index: usize, value: Option<&Value>, name: &str) -> Result<[String; 2]> {
    let texts = value.and_then(Value::as_array).map(Vec::as_slice);
    match texts {
        Some([Value::String(first), Value::String(second), ..]) => Ok([first.clone(), second.clone()]),
        _ => Err(wrong(path, index, format!("expected two strings in {name:?}"))),
    }
}

fn wrong(path: &Path, index: usize, problem: String) -> EvalError {
    EvalError::Row { path: path.to_owned(), row: index as u64 + 1, problem }
}

/// Reference answers by question, whoever wrote them: rows of `reference_answer/….jsonl`.
///
/// Errors: a row is not what it should be.
pub fn references(path: &Path, rows: &[Row]) -> Result<HashMap<u64, [String; 2]>> {
    let answer = |(index, row): (usize, &Row)| {
        let turns = row.get("choices").and_then(|choices| choices.get(0)?.get("turns"));
        Ok((id(path, index, row)?, pair(path, index, turns, "choices[0].turns")?))
    };
    rows.iter().enumerate().map(answer).collect()
}

/// What the judge is asked with.
#[derive(Debug)]
pub struct Templates {
    /// First turn, second turn; each without and with a reference answer.
    templates: [[Template; 2]; 2],
}

#[derive(Debug)]
struct Template {
    system: String,
    user: String,
}

impl Templates {
    /// From the rows of `judge_prompts.jsonl`: those called `single-v1` and the like.
    ///
    /// Errors: one of them is missing.
    pub fn read(path: &Path, rows: &[Row]) -> Result<Self> {
        let template = |name: &str| {
            let found =
                rows.iter().enumerate().find(|(_, row)| row.get("name").is_some_and(|got| got == name));
            let (index, row) = found
                .ok_or_else(|| wrong(path, rows.len(), format!("expected a template called {name:?}")))?;
            Ok::<_, EvalError>(Template {
                system: field(path, index, row, "system_prompt")?.to_owned(),
                user: field(path, index, row, "prompt_template")?.to_owned(),
            })
        };
        Ok(Templates {
            templates: [
                [template("single-v1")?, template("single-math-v1")?],
                [template("single-v1-multi-turn")?, template("single-math-v1-multi-turn")?],
            ],
        })
    }

    /// What the judge is asked about a turn (0 or 1).
    pub fn request(
        &self,
        asked: &Question,
        turn: usize,
        answers: [&str; 2],
        reference: Option<&[String; 2]>,
    ) -> GenerateRequest {
        let template = &self.templates[turn.min(1)][usize::from(reference.is_some())];
        let [first, second] = &asked.turns;
        let nothing = [String::new(), String::new()];
        let [reference_1, reference_2] = reference.unwrap_or(&nothing);
        let values = [
            ("{question}", first.as_str()),
            ("{answer}", answers[0]),
            ("{question_1}", first),
            ("{question_2}", second),
            ("{answer_1}", answers[0]),
            ("{answer_2}", answers[1]),
            ("{ref_answer_1}", reference_1),
            ("{ref_answer_2}", reference_2),
        ];
        question(&template.system, fill(&template.user, &values), VERDICT_TOKENS)
    }
}

/// The rating in a verdict: the first `[[8.5]]`, otherwise the first `[8.5]`, which may well be a citation. None where the
/// reference says -1, and for `[[08]]`, on which it breaks.
pub fn rating(verdict: &str) -> Option<f64> {
    static PATTERNS: LazyLock<[PythonRegex; 2]> =
        LazyLock::new(|| [r"\[\[(\d+\.?\d*)\]\]", r"\[(\d+\.?\d*)\]"].map(PythonRegex::fixed));
    let found = PATTERNS.iter().find_map(|pattern| pattern.find_all(verdict).into_iter().flatten().next())?;
    // To Python an integer does not begin with 0, unless it is 0.
    let integer = !found.contains('.');
    if integer && found.starts_with('0') && found.contains(|digit| digit != '0') {
        return None;
    }
    found.parse().ok()
}

/// KoMT-Bench's score of an answer that is not in Korean: the square root. `language` is None where none can be told, which
/// counts as another.
pub fn penalised(score: f64, language: Option<&str>, question: u64) -> f64 {
    let korean = language == Some("ko") || ANY_LANGUAGE.contains(&question);
    if korean { score } else { score.sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::average;
    use crate::test_data::golden_rows;

    #[test]
    fn ratings_are_those_of_the_reference() {
        let Some(rows) = golden_rows("golden_misc/judge_parse.jsonl") else { return };
        let rows: Vec<_> = rows.iter().filter(|row| row["bench"] == "mt_bench").collect();
        for row in &rows {
            // -1 and an exception of the reference are both no rating.
            let expected = row["score"].as_f64().filter(|&score| score >= 0.0);
            assert_eq!(rating(row["judgment"].as_str().unwrap()), expected, "{row:?}");
        }
        assert_eq!(rows.len(), 15);
    }

    #[test]
    fn the_penalty_is_that_of_the_reference() {
        let Some(rows) = golden_rows("golden_misc/komt_penalty.jsonl") else { return };
        for row in &rows {
            let score = row["score"].as_f64().filter(|&score| score >= 0.0);
            let got = score.map(|score| {
                penalised(score, row["top_lang"].as_str(), row["question_id"].as_u64().unwrap())
            });
            assert_eq!(got.unwrap_or(-1.0), row["final"].as_f64().unwrap(), "{row:?}");
        }
        assert_eq!(rows.len(), 7);
    }

    /// The authors' verdicts: read again, averaged again; and their prompts are our templates.
    #[test]
    fn published_verdicts_give_the_published_means() {
        let (Some(verdicts), Some(templates), Some(questions)) = (
            golden_rows("komtbench/gpt-4_single_final.jsonl"),
            golden_rows("komtbench/judge_prompts_ko.jsonl"),
            golden_rows("komtbench/question_ko.jsonl"),
        ) else {
            return;
        };
        let path = Path::new("t.jsonl");
        let templates = Templates::read(path, &templates).unwrap();
        let categories: HashMap<u64, Question> = questions
            .iter()
            .enumerate()
            .map(|(index, row)| Question::read(path, index, row).unwrap())
            .map(|question| (question.id, question))
            .collect();
        let mut scores = [Vec::new(), Vec::new()];
        for row in &verdicts {
            let score = rating(row["judgment"].as_str().unwrap()).unwrap();
            assert_eq!(Some(score), row["score"].as_f64(), "{row:?}");
            let turn = row["turn"].as_u64().unwrap() as usize - 1;
            scores[turn].push(score);
            let question = &categories[&row["question_id"].as_u64().unwrap()];
            let template = &templates.templates[turn][usize::from(question.needs_reference())].user;
            let (start, end) = (template.split('{').next().unwrap(), template.rsplit('}').next().unwrap());
            let prompt = row["user_prompt"].as_str().unwrap();
            assert!(prompt.starts_with(start) && prompt.ends_with(end), "{prompt}");
        }
        let mean = |scores: &[f64]| average("", scores.iter().copied()).value;
        assert_eq!([mean(&scores[0]), mean(&scores[1]), mean(&scores.concat())], [9.625, 9.6, 9.6125]);
    }
}
