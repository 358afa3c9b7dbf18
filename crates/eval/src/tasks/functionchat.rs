//! FunctionChat-Bench: calls of functions in Korean conversations, compared and, where they differ, judged.

use std::collections::{BTreeMap, HashMap};

use serde_json::json;

use crate::judge::average;
use crate::judge::functionchat::{Rule, Set, Turn, located, verdict};
use crate::{Bench, Invalid, Metric, Outcome, Protocol, Result, Sample, Task};

/// The task.
pub struct FunctionChat {
    /// How arguments are compared.
    pub rule: Rule,
}

const TASK: &str = "functionchat";

impl Task for FunctionChat {
    fn protocol(&self) -> Protocol {
        Protocol {
            task: TASK,
            id: match self.rule {
                Rule::December2024 => "functionchat/2024-12/v1",
                Rule::Version2 => "functionchat/2.0.0/v1",
            },
            column: Some("FunctionChatBench"),
            source: "kakao/FunctionChat-Bench cb32af37; the mean of three scores rounded to 0.1 is inferred from published tables",
        }
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<Outcome> {
        let system = bench.source.text(&bench.source.find(TASK, &["functionchat/system_prompt.txt"])?)?;
        let mut turns = Vec::new();
        for set in Set::ALL {
            let path = bench.source.find(TASK, &[set.file()])?;
            let mut of_set = Vec::new();
            for (index, row) in bench.source.rows(&path)?.iter().enumerate() {
                of_set.extend(set.turns(row, system.trim_end()).map_err(located(&path, index))?);
            }
            turns.extend(bench.limited(of_set));
        }
        let mut rubrics: HashMap<&str, String> = HashMap::new();
        for turn in &turns {
            if !rubrics.contains_key(turn.kind.as_str()) {
                let file = format!("functionchat/rubric_{}.txt", turn.kind);
                rubrics.insert(&turn.kind, bench.source.text(&bench.source.find(TASK, &[&file])?)?);
            }
        }
        let answers = bench.generate(&turns.iter().map(Turn::request).collect::<Vec<_>>())?;
        let exact: Vec<bool> =
            turns.iter().zip(&answers).map(|(turn, answer)| turn.is_exact(answer, self.rule)).collect();
        let open: Vec<usize> = (0..turns.len()).filter(|&index| !exact[index]).collect();
        let question =
            |&index: &usize| turns[index].question(&rubrics[turns[index].kind.as_str()], &answers[index]);
        let questions: Vec<_> = open.iter().map(question).collect();
        let judged: HashMap<usize, String> = open
            .into_iter()
            .zip(bench.judge(TASK, &questions)?.into_iter().map(|verdict| verdict.text))
            .collect();
        let sample = |(index, turn): (usize, &Turn)| {
            let said = judged.get(&index);
            let passed = said.map_or(Some(true), |said| verdict(said));
            let answer = &answers[index];
            Sample {
                id: turn.id.clone(),
                group: Some(format!("{}/{}", turn.set.name(), turn.group)),
                scores: vec![("pass".into(), f64::from(passed == Some(true)))],
                invalid: if passed.is_none() { Some(Invalid::Unjudged) } else { Invalid::of(answer) },
                detail: json!({
                    "messages": turn.messages.iter().map(|message| message.fields()).collect::<Vec<_>>(),
                    "expected": turn.truth, "response": answer.text, "tool_calls": answer.tool_calls,
                    "exact": exact[index], "verdict": said,
                }),
            }
        };
        Ok(outcome(&turns, turns.iter().enumerate().map(sample).collect()))
    }
}

fn outcome(turns: &[Turn], samples: Vec<Sample>) -> Outcome {
    let percent = |sample: &Sample| 100.0 * sample.scores[0].1;
    let of = |set: Set| {
        let members = turns.iter().zip(&samples).filter(|(turn, _)| turn.set == set);
        average(set.name(), members.map(|(_, sample)| percent(sample)))
    };
    let sets = Set::ALL.map(of);
    let rounded = sets.iter().map(|set| (set.value * 10.0).round() / 10.0).sum::<f64>() / sets.len() as f64;
    let headline = Metric { name: "mean_of_rounded".into(), value: rounded, stderr: None, n: samples.len() };
    let mut groups: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for sample in &samples {
        groups.entry(sample.group.clone().unwrap_or_default()).or_default().push(percent(sample));
    }
    let lost = samples.iter().filter(|sample| sample.invalid == Some(Invalid::Unjudged)).count();
    let note = format!("{lost} of {} verdicts say neither pass nor fail and count as fail", samples.len());
    let metrics = [headline].into_iter().chain(sets).chain([average("micro", samples.iter().map(percent))]);
    Outcome {
        metrics: metrics.collect(),
        groups: groups.into_iter().map(|(name, passed)| (name, vec![average("pass", passed)])).collect(),
        notes: if lost > 0 { vec![note] } else { Vec::new() },
        samples,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Source;
    use crate::judge::script::{Script, called, said, transcript};
    use crate::lm::Prompt;

    #[test]
    fn calls_are_compared_and_the_rest_is_judged() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("functionchat")).unwrap();
        let write = |name: &str, text: String| {
            fs::write(folder.path().join("functionchat").join(name), text).unwrap()
        };
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
        let truth = json!({"role": "assistant", "content": null, "tool_calls": [{"id": "x", "type": "function",
            "function": {"name": "f", "arguments": "{\"a\": \"서 울\", \"n\": 3}"}}]});
        let dialog = json!({"tools": [tool], "turns": [
            {"serial_num": 1, "query": [{"role": "user", "content": "call"}], "ground_truth": truth,
                "type_of_output": "call", "acceptable_arguments": "{\"n\": 3.0}"},
            {"serial_num": 2, "query": [{"role": "user", "content": "ask"}], "ground_truth": {"role": "assistant", "content": "?"},
                "type_of_output": "slot", "acceptable_arguments": null},
        ]});
        let single = json!({"query": [{"serial_num": 1, "content": "one"}],
            "ground_truth": [{"serial_num": 1, "content": "{\"name\": \"f\", \"arguments\": \"{}\"}"}],
            "acceptable_arguments": [{"serial_num": 1, "content": null}],
            "tools": [{"type": "exact", "content": [tool]}]});
        let decision = json!({"serial_num": 1, "category": "REJECT", "input_messages": [{"role": "user", "content": "no"}],
            "input_tools": [tool], "type_of_output": "relevance", "ground_truth": {"role": "assistant", "content": "no"},
            "acceptable_arguments": null});
        write("FunctionChat-Dialog.jsonl", dialog.to_string());
        write("FunctionChat-Singlecall.jsonl", single.to_string());
        write("FunctionChat-CallDecision.jsonl", decision.to_string());
        write("system_prompt.txt", "sys\n".into());
        for kind in ["call", "slot", "relevance"] {
            write(
                &format!("rubric_{kind}.txt"),
                format!("{kind} {{ground_truth}} {{acceptable_arguments}} {{response}}"),
            );
        }
        let source = Source::new(folder.path());
        let mut model = Script::new(|asked: &str| match asked.rsplit(' ').next().unwrap() {
            "call" => called("f", "{\"a\": \"서울\"}"),
            "one" => called("f", "{}"),
            _ => said("answer"),
        });
        let mut judge = Script::new(|asked: &str| match asked.split(' ').nth(1).unwrap() {
            "slot" => said("이유\npass\npass"),
            "relevance" => said("모르겠다"),
            _ => said("fail"),
        });
        let mut bench =
            Bench { model: &mut model, judge: Some(&mut judge), sandbox: None, source: &source, limit: None };
        let outcome = FunctionChat { rule: Rule::December2024 }.run(&mut bench).unwrap();
        let values: Vec<f64> = outcome.metrics.iter().map(|metric| metric.value).collect();
        assert_eq!(values, [50.0, 50.0, 100.0, 0.0, 50.0]);
        assert_eq!(outcome.samples[3].invalid, Some(Invalid::Unjudged));
        assert_eq!(judge.asked.len(), 3);
        let asked = transcript(&judge.asked[0].prompt);
        assert_eq!(
            asked,
            "user: call {\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{\"type\": \"function\", \
            \"function\": {\"name\": \"f\", \"arguments\": \"{\\\"a\\\": \\\"서 울\\\", \\\"n\\\": 3}\"}}]} {\"n\": 3.0} \
            {\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{\"type\": \"function\", \"function\": {\"name\": \"f\", \
            \"arguments\": \"{\\\"a\\\": \\\"서울\\\"}\"}}]}"
        );
        let Prompt::Chat { tools, messages, .. } = &model.asked[0].prompt else { panic!("a conversation") };
        assert_eq!((tools.len(), messages[0].text()), (1, Some("sys")));
        let mut bench =
            Bench { judge: Some(&mut judge), model: &mut model, sandbox: None, source: &source, limit: None };
        let outcome = FunctionChat { rule: Rule::Version2 }.run(&mut bench).unwrap();
        assert_eq!(outcome.metrics[1].value, 100.0);
    }
}
