//! LogicKor: 42 questions of two turns in Korean, scored by a judge. The questions are a file that the user has.

use std::collections::BTreeMap;

use serde_json::json;

use crate::judge::logickor::{ANSWER_TOKENS, Instructions, Question, TRIES, request, score};
use crate::judge::{TwoTurns, average, invalid, two_turns};
use crate::lm::Generation;
use crate::{Bench, Metric, Outcome, Protocol, Result, Sample, Source, Task};

/// The task.
pub struct LogicKor;

const TASK: &str = "logickor";

/// Instructions of the judge, first and second turn, and the first line of what it is asked.
const FILES: [&str; 3] = ["logickor/judge_single.txt", "logickor/judge_multi.txt", "logickor/judge_lead.txt"];

impl Task for LogicKor {
    fn protocol(&self) -> Protocol {
        Protocol {
            task: TASK,
            id: "logickor/default/v1",
            column: Some("LogicKor"),
            source: "LogicKor 11c3a84f, evaluator.py and score.py, strategy default",
        }
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<Outcome> {
        let path = bench.source.find(TASK, &["logickor/questions.jsonl"])?;
        let rows = bench.limited(bench.source.rows(&path)?);
        let questions: Vec<Question> = rows
            .iter()
            .enumerate()
            .map(|(index, row)| Question::read(&path, index, row))
            .collect::<Result<_>>()?;
        let (instructions, note) = instructions(bench.source)?;
        let asked = |one: &Question| TwoTurns { questions: one.questions.clone(), temperature: 0.0 };
        let answers = two_turns(bench, &questions.iter().map(asked).collect::<Vec<_>>(), ANSWER_TOKENS)?;
        let verdicts = verdicts(bench, &instructions, &questions, &answers)?;
        Ok(outcome(&questions, &answers, &verdicts, note))
    }
}

/// The user's instructions of the judge, or ours with a note.
fn instructions(source: &Source) -> Result<(Instructions, Option<String>)> {
    let read = |file: &str| match source.find(TASK, &[file]) {
        Ok(path) => source.text(&path).map(|text| Some(text.trim_end().to_owned())),
        Err(_) => Ok(None),
    };
    let default = Instructions::default();
    let [single, multi, lead] = [read(FILES[0])?, read(FILES[1])?, read(FILES[2])?];
    let absent: Vec<&str> = FILES
        .into_iter()
        .zip([&single, &multi, &lead])
        .filter(|(_, text)| text.is_none())
        .map(|(file, _)| file)
        .collect();
    let note = (!absent.is_empty()).then(|| {
        format!(
            "the judge's instructions are in part this program's own, because {} is absent: scores do not compare with \
             published ones",
            absent.join(" and ")
        )
    });
    let [own_single, own_multi] = default.turns;
    let turns = [single.unwrap_or(own_single), multi.unwrap_or(own_multi)];
    Ok((Instructions { turns, lead: lead.unwrap_or(default.lead) }, note))
}

/// A verdict for each turn, asked for again where no score is found in it.
fn verdicts(
    bench: &mut Bench<'_>,
    instructions: &Instructions,
    questions: &[Question],
    answers: &[[Generation; 2]],
) -> Result<Vec<Generation>> {
    let ask = |index: usize, attempt: u64| {
        let [first, second] = &answers[index / 2];
        request(instructions, &questions[index / 2], index % 2, [&first.text, &second.text], attempt)
    };
    let all: Vec<_> = (0..2 * questions.len()).map(|index| ask(index, 0)).collect();
    let mut verdicts = bench.judge(TASK, &all)?;
    for attempt in 1..TRIES {
        let open: Vec<usize> =
            (0..verdicts.len()).filter(|&index| score(&verdicts[index].text).is_none()).collect();
        if open.is_empty() {
            break;
        }
        let again: Vec<_> = open.iter().map(|&index| ask(index, attempt)).collect();
        for (index, verdict) in open.into_iter().zip(bench.judge(TASK, &again)?) {
            verdicts[index] = verdict;
        }
    }
    Ok(verdicts)
}

fn outcome(
    questions: &[Question],
    answers: &[[Generation; 2]],
    verdicts: &[Generation],
    note: Option<String>,
) -> Outcome {
    let mut samples = Vec::new();
    let mut turns: [Vec<f64>; 2] = Default::default();
    let mut categories: BTreeMap<&str, [Vec<f64>; 2]> = BTreeMap::new();
    for (index, verdict) in verdicts.iter().enumerate() {
        let (asked, turn) = (&questions[index / 2], index % 2);
        let answer = &answers[index / 2][turn];
        let found = score(&verdict.text);
        // The reference gives up with 0.
        let counted = found.unwrap_or(0.0);
        turns[turn].push(counted);
        categories.entry(&asked.category).or_default()[turn].push(counted);
        samples.push(Sample {
            id: format!("{}/{}", asked.id, turn + 1),
            group: Some(asked.category.clone()),
            scores: vec![("score".into(), counted)],
            invalid: invalid(answer, found),
            detail: json!({
                "question": asked.questions[turn], "reference": asked.references[turn], "response": answer.text,
                "verdict": verdict.text,
            }),
        });
    }
    let lost = samples.iter().filter(|sample| sample.invalid == Some(crate::Invalid::Unjudged)).count();
    let lost = (lost > 0).then(|| {
        format!(
            "{lost} of {} verdicts gave no score in {TRIES} tries and count 0, as in the reference",
            samples.len()
        )
    });
    Outcome {
        metrics: three(&turns),
        groups: categories.iter().map(|(name, turns)| ((*name).to_owned(), three(turns))).collect(),
        samples,
        notes: note.into_iter().chain(lost).collect(),
    }
}

/// Both turns, the first, the second.
fn three(turns: &[Vec<f64>; 2]) -> Vec<Metric> {
    let [single, multi] = [("single_turn", &turns[0]), ("multi_turn", &turns[1])]
        .map(|(name, scores)| average(name, scores.iter().copied()));
    let overall = Metric {
        name: "overall".into(),
        value: (single.value + multi.value) / 2.0,
        stderr: None,
        n: single.n + multi.n,
    };
    vec![overall, single, multi]
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Invalid;
    use crate::judge::script::{Script, said};

    #[test]
    fn verdicts_are_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("logickor")).unwrap();
        let rows = [
            json!({"id": 1, "category": "수학", "questions": ["가", "나"], "references": ["참고", null]}),
            json!({"id": 2, "category": "문법", "questions": ["third", "fourth"], "references": [null, null]}),
        ];
        let rows: String = rows.iter().map(|row| format!("{row}\n")).collect();
        fs::write(folder.path().join("logickor/questions.jsonl"), rows).unwrap();
        fs::write(folder.path().join("logickor/judge_single.txt"), "채점\n").unwrap();
        let source = Source::new(folder.path());
        let mut model = Script::new(|_: &str| said("답"));
        let mut asked = 0;
        let mut judge = Script::new(|prompt: &str| {
            asked += 1;
            match (prompt.contains("third"), prompt.contains("fourth")) {
                (true, true) => said("모르겠다"),
                (true, false) if asked < 6 => said("점수 없음"),
                _ => said("**점수**: 8"),
            }
        });
        let mut bench =
            Bench { model: &mut model, judge: Some(&mut judge), sandbox: None, source: &source, limit: None };
        let outcome = LogicKor.run(&mut bench).unwrap();
        let found: Vec<_> =
            outcome.metrics.iter().map(|metric| (metric.name.as_str(), metric.value)).collect();
        assert_eq!(found, [("overall", 6.0), ("single_turn", 8.0), ("multi_turn", 4.0)]);
        assert_eq!(outcome.samples[3].invalid, Some(Invalid::Unjudged));
        assert_eq!(outcome.notes.len(), 2);
        assert!(
            outcome.notes[0].contains("judge_multi.txt and logickor/judge_lead.txt"),
            "{:?}",
            outcome.notes
        );
        assert!(outcome.notes[1].starts_with("1 of 4"), "{:?}", outcome.notes);
        let seeds: Vec<u64> = judge.asked.iter().map(|request| request.seed).collect();
        assert_eq!(seeds, [0, 0, 0, 0, 1, 1, 2, 2, 3, 4]);
    }
}
