//! LogicKor: 42 Korean questions of two turns in 6 categories, each turn scored from 0 to 10 by a judge.
//!
//! Source: LogicKor 11c3a84f (`evaluator.py`, `score.py`). It has no licence, so neither its questions nor its judge's
//! instructions are here: both are files that a user has, and without instructions ours stand in.

use std::path::Path;
use std::sync::LazyLock;

use kanana_data::read::Row;
use serde_json::Value;

use super::question;
use crate::extract::PythonRegex;
use crate::lm::GenerateRequest;
use crate::source::field;
use crate::{EvalError, Result};

/// Tokens of an answer.
pub const ANSWER_TOKENS: usize = 4096;

/// How often a judge is asked before its verdict counts as 0.
pub const TRIES: u64 = 5;

/// Tokens of a verdict: the reference sets no limit.
const VERDICT_TOKENS: usize = 4096;

/// A question.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Unique.
    pub id: String,
    /// 추론, 수학, 글쓰기, 코딩, 이해, 문법.
    pub category: String,
    /// The second follows the answer to the first.
    pub questions: [String; 2],
    /// What the judge reads beside the answers, where there is something.
    pub references: [Option<String>; 2],
}

impl Question {
    /// A row of `questions.jsonl`: `id`, `category`, `questions`, `references`.
    ///
    /// Errors: a field is missing or not what it should be.
    pub fn read(path: &Path, index: usize, row: &Row) -> Result<Self> {
        let list = |name: &str| row.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let [Value::String(first), Value::String(second), ..] = list("questions") else {
            let problem = "expected two strings in \"questions\"".into();
            return Err(EvalError::Row { path: path.to_owned(), row: index as u64 + 1, problem });
        };
        let reference = |turn: usize| {
            let text = list("references").get(turn).and_then(Value::as_str);
            text.filter(|text| !text.is_empty()).map(str::to_owned)
        };
        Ok(Question {
            id: row
                .get("id")
                .map_or_else(|| index.to_string(), |id| id.to_string().trim_matches('"').to_owned()),
            category: field(path, index, row, "category")?.to_owned(),
            questions: [first.clone(), second.clone()],
            references: [reference(0), reference(1)],
        })
    }
}

/// What the judge is told about the first turn, and about the second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instructions {
    /// Its system messages.
    pub turns: [String; 2],
    /// The first line of what it is asked.
    pub lead: String,
}

impl Default for Instructions {
    /// Ours.
    fn default() -> Self {
        let common = "당신은 한국어 답변을 채점하는 심사위원입니다. 답변이 정확한지, 추론이 맞는지, 질문이 요구한 내용과 형식을 \
                      빠짐없이 지켰는지, 자연스러운 한국어인지 살펴 0점에서 10점까지 매기십시오. 참고 자료가 있으면 정답의 \
                      기준으로 삼으십시오.";
        let form = "먼저 '평가:' 다음에 근거를 짧게 적고, 마지막 줄에 '점수:' 다음에 숫자만 적으십시오.";
        Instructions {
            turns: [
                format!("{common}\n{form}"),
                format!(
                    "{common}\n앞의 대화는 맥락으로만 읽고, 후속 질문에 대한 답변을 채점하십시오.\n{form}"
                ),
            ],
            lead: "다음 대화의 답변을 위의 기준으로 평가하십시오.".into(),
        }
    }
}

/// What the judge is asked about a turn (0 or 1); `attempt` makes a question that was asked before a new one.
pub fn request(
    instructions: &Instructions,
    asked: &Question,
    turn: usize,
    answers: [&str; 2],
    attempt: u64,
) -> GenerateRequest {
    let mut text = instructions.lead.clone();
    for (index, answer) in answers.iter().enumerate().take(turn + 1) {
        let heading = if index == 0 { "Question" } else { "Follow-up Question." };
        text += &format!("\n\n**{heading}**\n{}", asked.questions[index]);
        if let Some(reference) = &asked.references[index] {
            text += &format!("\n\n**Additional Reference**\n{reference}");
        }
        text += &format!("\n\n**Model's Response**\n{answer}");
    }
    text += "\n\n[[대화 종료. 평가 시작.]]";
    GenerateRequest { seed: attempt, ..question(&instructions.turns[turn.min(1)], text, VERDICT_TOKENS) }
}

/// The score in a verdict: the first `점수: 8.5`, asterisks aside.
pub fn score(verdict: &str) -> Option<f64> {
    static PATTERN: LazyLock<PythonRegex> = LazyLock::new(|| PythonRegex::fixed(r"점수:\s*(\d+(\.\d+)?)"));
    let verdict = verdict.replace('*', "");
    PATTERN.find_all(&verdict).first()?.first()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::script::transcript;
    use crate::test_data::golden_rows;

    #[test]
    fn scores_are_those_of_the_reference() {
        let Some(rows) = golden_rows("golden_misc/judge_parse.jsonl") else { return };
        let rows: Vec<_> = rows.iter().filter(|row| row["bench"] == "logickor").collect();
        for row in &rows {
            assert_eq!(score(row["judgment"].as_str().unwrap()), row["score"].as_f64(), "{row:?}");
        }
        assert_eq!(rows.len(), 7);
    }

    #[test]
    fn what_the_judge_reads() {
        let row = serde_json::json!({"id": 1, "category": "수학", "questions": ["가", "나"], "references": ["참고", null]});
        let asked = Question::read(Path::new("t"), 0, row.as_object().unwrap()).unwrap();
        let instructions = Instructions { turns: ["하나".into(), "둘".into()], lead: "시작".into() };
        let read = |turn| transcript(&request(&instructions, &asked, turn, ["답1", "답2"], 0).prompt);
        let first = "시작\n\n**Question**\n가\n\n**Additional Reference**\n참고\n\n**Model's Response**\n답1";
        let end = "\n\n[[대화 종료. 평가 시작.]]";
        assert_eq!(read(0), format!("system: 하나\nuser: {first}{end}"));
        let second = "\n\n**Follow-up Question.**\n나\n\n**Model's Response**\n답2";
        assert_eq!(read(1), format!("system: 둘\nuser: {first}{second}{end}"));
    }
}
