//! WildBench v2, WB-Score: 1,024 conversations of users, the last answer scored by a judge with a checklist.

use serde_json::json;

use crate::judge::wildbench::{ANSWER_TOKENS, Conversation, GROUPS, adjusted, request, score, task_macro};
use crate::judge::{average, invalid};
use crate::lm::{GenerateRequest, Generation, Prompt};
use crate::{Bench, Invalid, Metric, Outcome, Protocol, Result, Sample, Task};

/// The task.
pub struct WildBench;

const TASK: &str = "wildbench";

impl Task for WildBench {
    fn protocol(&self) -> Protocol {
        Protocol {
            task: TASK,
            id: "wildbench/v2/wb-score/v1",
            column: Some("WildBench"),
            source: "allenai/WildBench d6b8dcaf, eval_template.score.v2.md and the leaderboard's task macro",
        }
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<Outcome> {
        let files =
            ["wildbench/test.jsonl", "wildbench/test.parquet", "wildbench/v2/test-00000-of-00001.parquet"];
        let path = bench.source.find(TASK, &files)?;
        let rows = bench.limited(bench.source.rows(&path)?);
        let conversations: Vec<Conversation> = rows
            .iter()
            .enumerate()
            .map(|(index, row)| Conversation::read(&path, index, row))
            .collect::<Result<_>>()?;
        let template =
            bench.source.text(&bench.source.find(TASK, &["wildbench/eval_template.score.v2.md"])?)?;
        let ask =
            |one: &Conversation| GenerateRequest::greedy(Prompt::chat(one.messages.clone()), ANSWER_TOKENS);
        let answers = bench.generate(&conversations.iter().map(ask).collect::<Vec<_>>())?;
        let written = |answer: &Generation| !answer.text.trim().is_empty();
        let requests = conversations.iter().zip(&answers).filter(|(_, answer)| written(answer));
        let requests: Vec<_> = requests.map(|(one, answer)| request(&template, one, &answer.text)).collect();
        let mut judged = bench.judge(TASK, &requests)?.into_iter();
        let verdicts: Vec<Option<Generation>> =
            answers.iter().map(|answer| if written(answer) { judged.next() } else { None }).collect();
        Ok(outcome(&conversations, &answers, &verdicts))
    }
}

/// `verdicts` has nothing for an empty answer, which counts 1 unseen.
fn outcome(
    conversations: &[Conversation],
    answers: &[Generation],
    verdicts: &[Option<Generation>],
) -> Outcome {
    let scores: Vec<Option<f64>> = verdicts
        .iter()
        .map(|verdict| verdict.as_ref().map_or(Some(1.0), |verdict| score(&verdict.text)))
        .collect();
    let all = average("score", scores.iter().flatten().copied());
    let mean_adjusted = Metric { name: "adjusted".into(), value: adjusted(all.value), ..all.clone() };
    let of_group = |name: &'static str| {
        let member = conversations.iter().zip(&scores).flat_map(|(one, score)| {
            // A conversation counts once for each of its tags.
            let times = one.groups.iter().filter(|&&group| group == name).count();
            score.iter().copied().cycle().take(if score.is_some() { times } else { 0 })
        });
        let score = average("score", member);
        let adjusted =
            Metric { name: "adjusted".into(), value: adjusted(score.value), stderr: None, ..score.clone() };
        (name, score, adjusted)
    };
    let groups: Vec<_> =
        GROUPS.iter().map(|(name, _)| of_group(name)).filter(|(_, score, _)| score.n > 0).collect();
    let values: Vec<(&str, f64)> = groups.iter().map(|(name, _, adjusted)| (*name, adjusted.value)).collect();
    let mut notes = Vec::new();
    let mut metrics = Vec::new();
    match task_macro(&values) {
        Some(value) => {
            let metric = |name: &str, value: f64| Metric { name: name.into(), value, stderr: None, n: all.n };
            metrics.extend([metric("task_macro,x10", 10.0 * value), metric("task_macro", value)]);
            notes.push(
                "task_macro,x10 is ten times the leaderboard's task macro, for tables of percentages".into(),
            );
        }
        None => {
            notes.push("no conversation has tags: the task macro of the leaderboard cannot be made".into())
        }
    }
    metrics.extend([mean_adjusted, all]);
    let lost = scores.iter().filter(|score| score.is_none()).count();
    if lost > 0 {
        notes.push(format!(
            "{lost} of {} verdicts gave no score and are left out, as in the reference",
            scores.len()
        ));
    }
    let empty = verdicts.iter().filter(|verdict| verdict.is_none()).count();
    if empty > 0 {
        notes.push(format!(
            "{empty} of {} answers are empty and count 1 without a judge, as in the reference",
            scores.len()
        ));
    }
    let sample = |(index, one): (usize, &Conversation)| Sample {
        id: one.id.clone(),
        group: one.groups.first().map(|&group| group.to_owned()),
        scores: scores[index].map(|score| ("score".to_owned(), score)).into_iter().collect(),
        invalid: match &verdicts[index] {
            None => Invalid::of(&answers[index]).or(Some(Invalid::Empty)),
            Some(_) => invalid(&answers[index], scores[index]),
        },
        detail: json!({
            "messages": one.messages.iter().map(|message| message.fields()).collect::<Vec<_>>(), "checklist": one.checklist,
            "response": answers[index].text, "verdict": verdicts[index].as_ref().map(|verdict| &verdict.text),
        }),
    };
    Outcome {
        metrics,
        groups: groups
            .into_iter()
            .map(|(name, score, adjusted)| (name.to_owned(), vec![adjusted, score]))
            .collect(),
        samples: conversations.iter().enumerate().map(sample).collect(),
        notes,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Source;
    use crate::judge::script::{Script, said};

    #[test]
    fn groups_weigh_and_empty_answers_count_one() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("wildbench")).unwrap();
        let row = |id: &str, tag: &str, more: &[&str]| {
            json!({"session_id": id, "primary_tag": tag, "secondary_tags": more, "checklist": ["?"],
                "conversation_input": [{"role": "user", "content": id}]})
        };
        let rows = [
            row("nine", "Math", &["Data Analysis", "Planning"]),
            row("empty", "Math", &[]),
            row("five", "Creative Writing", &[]),
            row("broken", "Editing", &[]),
        ];
        let rows: String = rows.iter().map(|row| format!("{row}\n")).collect();
        fs::write(folder.path().join("wildbench/test.jsonl"), rows).unwrap();
        fs::write(folder.path().join("wildbench/eval_template.score.v2.md"), "{$user_query}={$model_output}")
            .unwrap();
        let source = Source::new(folder.path());
        let mut model = Script::new(|asked: &str| said(if asked.contains("empty") { " " } else { "answer" }));
        let mut judge = Script::new(|asked: &str| match asked {
            "user: nine=answer" => said("{\"score\": \"9\"}"),
            "user: five=answer" => said("{\"score\": 5}"),
            _ => said("{"),
        });
        let mut bench =
            Bench { model: &mut model, judge: Some(&mut judge), sandbox: None, source: &source, limit: None };
        let outcome = WildBench.run(&mut bench).unwrap();
        let value = |name: &str| outcome.metrics.iter().find(|metric| metric.name == name).unwrap().value;
        assert_eq!(value("score"), 5.0);
        assert_eq!(value("adjusted"), 0.0);
        // Math (9, 9, 1): 6.33, adjusted 2.67; planning 9: 8; creative 5: 0.
        let expected = (8.0 / 3.0 + 1.25 * 8.0) / (1.0 + 1.25 + 0.5);
        assert!((value("task_macro") - expected).abs() < 1e-12);
        assert_eq!(outcome.metrics[0].name, "task_macro,x10");
        let invalid: Vec<_> = outcome.samples.iter().map(|sample| sample.invalid).collect();
        assert_eq!(invalid, [None, Some(Invalid::Empty), None, Some(Invalid::Unjudged)]);
        assert_eq!(outcome.notes.len(), 3);
    }
}
