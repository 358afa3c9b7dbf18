//! IFEval: 541 prompts with instructions that a program checks.

use serde_json::json;

use crate::ifeval::{Checker, Prompt, Verdict};
use crate::judge::average;
use crate::lm::{GenerateRequest, Generation, Prompt as Asked};
use crate::{Bench, Invalid, Metric, Outcome, Protocol, Result, Sample, Task};

/// Tokens of an answer. Source: `ifeval.yaml` of lm-evaluation-harness 0.4.13.
const MAX_TOKENS: usize = 1280;

/// The task.
pub struct IfEval;

impl Task for IfEval {
    fn protocol(&self) -> Protocol {
        Protocol {
            task: "ifeval",
            id: "ifeval/0-shot/strict-mean/v1",
            column: Some("IFEval"),
            source: "lm-evaluation-harness 0.4.13, lm_eval/tasks/ifeval; the mean of prompt and instruction level strict accuracy",
        }
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<Outcome> {
        let files = ["input_data.jsonl", "ifeval_input_data.jsonl", "mifeval_en_input_data.jsonl"]
            .map(|name| format!("ifeval/{name}"));
        let path = bench.source.find("ifeval", &files.each_ref().map(String::as_str))?;
        let rows = bench.limited(bench.source.rows(&path)?);
        let rows: Vec<Prompt> = rows
            .iter()
            .enumerate()
            .map(|(index, row)| Prompt::read(&path, index, row))
            .collect::<Result<_>>()?;
        let (checker, note) = Checker::load(bench.source)?;
        let ask = |row: &Prompt| GenerateRequest::greedy(Asked::user(&row.prompt), MAX_TOKENS);
        let answers = bench.generate(&rows.iter().map(ask).collect::<Vec<_>>())?;
        let verdict = |(row, answer): (&Prompt, &Generation)| checker.check(row, &answer.text);
        let verdicts: Vec<Verdict> = rows.iter().zip(&answers).map(verdict).collect();
        Ok(outcome(&rows, &answers, &verdicts, note))
    }
}

fn outcome(rows: &[Prompt], answers: &[Generation], verdicts: &[Verdict], note: Option<String>) -> Outcome {
    let all = |list: &[bool]| list.iter().all(|&followed| followed);
    let prompts = |name: &str, pick: fn(&Verdict) -> &[bool]| {
        accuracy(name, true, verdicts.iter().map(|verdict| all(pick(verdict))))
    };
    let instructions = |name: &str, pick: fn(&Verdict) -> &[bool]| {
        accuracy(name, false, verdicts.iter().flat_map(pick).copied())
    };
    let strict: fn(&Verdict) -> &[bool] = |verdict| &verdict.strict;
    let loose: fn(&Verdict) -> &[bool] = |verdict| &verdict.loose;
    let levels = [
        prompts("prompt_level_strict_acc", strict),
        instructions("inst_level_strict_acc", strict),
        prompts("prompt_level_loose_acc", loose),
        instructions("inst_level_loose_acc", loose),
    ];
    let headline = Metric {
        name: "strict_acc_mean".into(),
        value: (levels[0].value + levels[1].value) / 2.0,
        stderr: None,
        n: rows.len(),
    };
    let sample = |((row, answer), verdict): ((&Prompt, &Generation), &Verdict)| {
        let instructions: Vec<_> =
            row.instructions.iter().zip(verdict.strict.iter().zip(&verdict.loose)).collect();
        let instructions = instructions.iter().map(
            |(instruction, (strict, loose))| json!({"id": instruction.id, "strict": strict, "loose": loose}),
        );
        Sample {
            id: row.key.clone(),
            group: None,
            scores: vec![
                (levels[0].name.clone(), f64::from(all(&verdict.strict))),
                (levels[2].name.clone(), f64::from(all(&verdict.loose))),
            ],
            invalid: Invalid::of(answer),
            detail: json!({
                "prompt": row.prompt, "response": answer.text, "instructions": instructions.collect::<Vec<_>>(),
            }),
        }
    };
    let mut notes: Vec<String> = note.into_iter().collect();
    notes.push(
        "languages are told by another detector than the reference's langdetect, which is random itself"
            .into(),
    );
    let random = rows.iter().filter(|row| row.random_in_reference().next().is_some());
    let random: Vec<&str> = random.map(|row| row.key.as_str()).collect();
    if !random.is_empty() {
        notes.push(format!(
            "rows {} demand characters that are no letters: they are counted, where the reference draws a letter at random",
            random.join(", ")
        ));
    }
    Outcome {
        samples: rows.iter().zip(answers).zip(verdicts).map(sample).collect(),
        groups: groups(rows, verdicts),
        metrics: std::iter::once(headline).chain(levels).collect(),
        notes,
    }
}

/// Both accuracies of every kind of instruction, by its name.
fn groups(rows: &[Prompt], verdicts: &[Verdict]) -> Vec<(String, Vec<Metric>)> {
    let each = || {
        let of_row = |(row, verdict): (&'_ Prompt, &'_ Verdict)| {
            let both = verdict.strict.iter().zip(&verdict.loose);
            row.instructions
                .iter()
                .zip(both)
                .map(|(one, (&strict, &loose))| (one.id.clone(), strict, loose))
                .collect::<Vec<_>>()
        };
        rows.iter().zip(verdicts).flat_map(of_row)
    };
    let mut ids: Vec<String> = each().map(|(id, ..)| id).collect();
    ids.sort();
    ids.dedup();
    let of_id = |id: String| {
        let of = || each().filter(|(one, ..)| *one == id);
        let strict = accuracy("inst_level_strict_acc", false, of().map(|(_, strict, _)| strict));
        let loose = accuracy("inst_level_loose_acc", false, of().map(|(_, _, loose)| loose));
        (id.clone(), vec![strict, loose])
    };
    ids.into_iter().map(of_id).collect()
}

/// Per cent; with the standard error of a mean where the samples are independent of each other.
fn accuracy(name: &str, independent: bool, right: impl Iterator<Item = bool>) -> Metric {
    let metric = average(name, right.map(|right| 100.0 * f64::from(right)));
    Metric { stderr: metric.stderr.filter(|_| independent), ..metric }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::Ended;

    fn generation(text: &str, ended: Ended) -> Generation {
        Generation {
            text: text.into(),
            tool_calls: Vec::new(),
            ended,
            prompt_tokens: 1,
            completion_tokens: 1,
        }
    }

    #[test]
    fn accuracies_of_prompts_and_instructions() {
        let rows = [
            json!({"key": 1, "prompt": "p", "instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {}]}),
            json!({"key": 2, "prompt": "q", "instruction_id_list": ["keywords:letter_frequency"],
                "kwargs": [{"letter": "#", "let_frequency": 2, "let_relation": "at least"}]}),
        ];
        let read = |(index, row): (usize, &serde_json::Value)| {
            Prompt::read(std::path::Path::new("t.jsonl"), index, row.as_object().unwrap()).unwrap()
        };
        let rows: Vec<Prompt> = rows.iter().enumerate().map(read).collect();
        let answers = [generation("a, b", Ended::Length), generation("", Ended::Stop)];
        let checker = Checker::new(crate::ifeval::Punkt::without_training());
        let verdicts: Vec<Verdict> =
            rows.iter().zip(["\"a b\"", "# *"]).map(|(row, text)| checker.check(row, text)).collect();
        let outcome = outcome(&rows, &answers, &verdicts, Some("note".into()));
        let values: Vec<f64> =
            outcome.metrics.iter().map(|metric| (metric.value * 10.0).round() / 10.0).collect();
        assert_eq!(values, [58.3, 50.0, 66.7, 50.0, 66.7]);
        assert_eq!(
            outcome.samples.iter().map(|sample| sample.invalid).collect::<Vec<_>>(),
            [Some(Invalid::Truncated), Some(Invalid::Empty)]
        );
        assert_eq!(outcome.groups.len(), 3);
        assert!(outcome.notes[2].starts_with("rows 2 demand"), "{:?}", outcome.notes);
    }
}
