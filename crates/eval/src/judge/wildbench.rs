//! WildBench v2, WB-Score: 1,024 conversations of users, the last answer of each scored from 1 to 10 with a checklist.
//!
//! Source: Lin et al. (2024), WildBench; allenai/WildBench d6b8dcaf (`src/eval.py`, `src/view_wb_eval.py`,
//! `evaluation/eval_template.score.v2.md`).

use std::path::Path;

use kanana_data::read::Row;
use kanana_tokenizer::Message;
use serde_json::Value;

use super::{fill, question};
use crate::lm::GenerateRequest;
use crate::source::field;
use crate::{EvalError, Result};

/// Tokens of an answer.
pub const ANSWER_TOKENS: usize = 4096;

/// Tokens of a verdict.
const VERDICT_TOKENS: usize = 1024;

/// The groups of tasks with what they weigh.
pub const GROUPS: [(&str, f64); 5] = [
    ("Creative Tasks", 0.5),
    ("Planning & Reasoning", 1.25),
    ("Math & Data Analysis", 1.0),
    ("Information/Advice seeking", 0.75),
    ("Coding & Debugging", 1.25),
];

/// The group of a tag. Recalled from the reference, not checked against it: the tags are not in its repository.
fn group(tag: &str) -> Option<&'static str> {
    let index = match tag {
        "Creative Writing" | "Editing" | "Brainstorming" | "Role playing" | "Others" => 0,
        "Reasoning" | "Planning" => 1,
        "Math" | "Data Analysis" => 2,
        "Information seeking" | "Advice seeking" => 3,
        "Coding & Debugging" | "Coding" => 4,
        _ => return None,
    };
    Some(GROUPS[index].0)
}

/// A conversation that ends with the user's question.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// Unique.
    pub id: String,
    /// Whole.
    pub messages: Vec<Message>,
    /// What the judge looks for.
    pub checklist: Vec<String>,
    /// The groups of its tags, of which a group may come twice; empty where the data have no tags.
    pub groups: Vec<&'static str>,
}

impl Conversation {
    /// A row of the data set `allenai/WildBench` (v2): `session_id` or `id`, `conversation_input`, `checklist`, `primary_tag`,
    /// `secondary_tags`.
    ///
    /// Errors: a field is missing, the conversation does not end with its user, a tag is unknown.
    pub fn read(path: &Path, index: usize, row: &Row) -> Result<Self> {
        let wrong =
            |problem: String| EvalError::Row { path: path.to_owned(), row: index as u64 + 1, problem };
        let list = |name: &str| row.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let message = |message: &Value| {
            let part = |name: &str| message.get(name).and_then(Value::as_str);
            match (part("role"), part("content")) {
                (Some(role), Some(content)) => Ok(Message::new(role, content)),
                _ => Err(wrong("expected \"role\" and \"content\" in \"conversation_input\"".into())),
            }
        };
        let messages: Vec<Message> = list("conversation_input").iter().map(message).collect::<Result<_>>()?;
        if messages.last().is_none_or(|message| message.role() != "user") {
            return Err(wrong("expected \"conversation_input\" to end with a message of the user".into()));
        }
        let tags = row.get("primary_tag").and_then(Value::as_str).into_iter();
        let tags = tags.chain(list("secondary_tags").iter().filter_map(Value::as_str));
        let known =
            |tag: &str| group(tag).ok_or_else(|| wrong(format!("expected a tag of WildBench, got {tag:?}")));
        let id = field(path, index, row, "session_id").or_else(|_| field(path, index, row, "id"))?;
        Ok(Conversation {
            id: id.to_owned(),
            messages,
            checklist: list("checklist").iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            groups: tags.map(known).collect::<Result<_>>()?,
        })
    }
}

/// What the judge is asked about an answer.
pub fn request(template: &str, asked: &Conversation, answer: &str) -> GenerateRequest {
    let (last, before) =
        asked.messages.split_last().map_or((None, &[][..]), |(last, before)| (Some(last), before));
    let turn = |message: &Message| {
        let role = if message.role() == "user" { "USER" } else { "ASSISTANT" };
        format!("{role}: {}\n\n", message.text().unwrap_or_default())
    };
    let history: String = before.iter().map(turn).collect();
    let checklist: String = asked.checklist.iter().map(|item| format!("- {item}\n")).collect();
    let values = [
        ("{$history}", history.as_str()),
        ("{$user_query}", last.and_then(Message::text).unwrap_or_default()),
        ("{$model_output}", answer),
        ("{$checklist}", &checklist),
    ];
    GenerateRequest { json: true, ..question("", fill(template, &values), VERDICT_TOKENS) }
}

/// The score in a verdict: `"score"` of the object, a number or a string of one, from 1 to 10.
pub fn score(verdict: &str) -> Option<f64> {
    let verdict: Value = serde_json::from_str(verdict.trim()).ok()?;
    let score = verdict.get("score")?;
    let number = score.as_f64().or_else(|| score.as_str()?.trim().parse().ok())?;
    (1.0..=10.0).contains(&number).then_some(number)
}

/// A mean score so that a fair answer, 5, is 0: from -8 to 10.
pub fn adjusted(mean: f64) -> f64 {
    (mean - 5.0) * 2.0
}

/// The weighted mean over groups, by name.
///
/// Of groups that are not there, neither value nor weight counts. None without any.
pub fn task_macro(groups: &[(&str, f64)]) -> Option<f64> {
    let weighted = groups.iter().filter_map(|&(name, value)| {
        let &(_, weight) = GROUPS.iter().find(|(group, _)| *group == name)?;
        Some((weight * value, weight))
    });
    let (sum, weights) =
        weighted.fold((0.0, 0.0), |(sum, weights), (value, weight)| (sum + value, weights + weight));
    (weights > 0.0).then(|| sum / weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::average;
    use crate::judge::script::transcript;
    use crate::test_data::golden_value;

    #[test]
    fn published_verdicts_give_the_published_score() {
        let Some(rows) = golden_value("wildbench/gemma-2b-it.score.v2.0625.gpt-4o-2024-05-13.json.gz") else {
            return;
        };
        let rows = rows.as_array().unwrap();
        let scores = rows.iter().map(|row| score(&row["parsed_result"].to_string()).unwrap());
        let mean = average("", scores);
        assert_eq!((mean.n, format!("{:.6}", mean.value)), (1021, "4.737512".into()));
        assert_eq!(format!("{:.6}", adjusted(mean.value)), "-0.524976");
    }

    #[test]
    fn published_groups_give_the_published_macro_means() {
        let Some(board) = golden_value("wildbench/leaderboard_score.json") else { return };
        let mut checked = 0;
        for (model, entry) in board.as_object().unwrap() {
            let groups = entry["task_categorized_scores"].as_object().unwrap();
            let groups: Vec<(&str, f64)> =
                groups.iter().map(|(name, value)| (name.as_str(), value.as_f64().unwrap())).collect();
            let expected = entry["task_macro_score"].as_f64().unwrap();
            assert!((task_macro(&groups).unwrap() - expected).abs() < 1e-9, "{model}");
            checked += 1;
        }
        assert!(checked > 20, "{checked}");
    }

    #[test]
    fn scores_of_verdicts() {
        #[track_caller]
        fn check(verdict: &str, expected: Option<f64>) {
            assert_eq!(score(verdict), expected, "{verdict}");
        }
        check(r#"{"score": "7"}"#, Some(7.0));
        check(r#" {"score": 8.5, "strengths": ""} "#, Some(8.5));
        check(r#"{"score": "[7]"}"#, None);
        check(r#"{"score": 0}"#, None);
        check("score: 7", None);
        check(r#"{"strengths": "#, None);
    }

    #[test]
    fn what_the_judge_reads() {
        let row = serde_json::json!({"session_id": "a", "primary_tag": "Math", "secondary_tags": ["Data Analysis", "Planning"],
            "conversation_input": [{"role": "user", "content": "one {$checklist}"}, {"role": "assistant", "content": "two"},
                {"role": "user", "content": "three"}], "checklist": ["x?", "y?"]});
        let asked = Conversation::read(Path::new("t"), 0, row.as_object().unwrap()).unwrap();
        assert_eq!(asked.groups, ["Math & Data Analysis", "Math & Data Analysis", "Planning & Reasoning"]);
        let request = request("{$history}|{$user_query}|{$model_output}|{$checklist}", &asked, "four");
        assert_eq!(
            transcript(&request.prompt),
            "user: USER: one {$checklist}\n\nASSISTANT: two\n\n|three|four|- x?\n- y?\n"
        );
        assert!(request.json);
    }
}
