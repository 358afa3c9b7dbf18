//! MT-Bench and KoMT-Bench: 80 questions of two turns, rated by a judge.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::json;

use crate::ifeval::language;
use crate::judge::mt_bench::{ANSWER_TOKENS, Question, Templates, penalised, rating, references};
use crate::judge::{TwoTurns, average, invalid, two_turns};
use crate::lm::Generation;
use crate::{Bench, EvalError, Metric, Outcome, Protocol, Result, Sample, Task};

/// The task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MtBench {
    /// MT-Bench.
    English,
    /// KoMT-Bench.
    Korean,
}

/// The names of scores.
const SCORE: &str = "score";
const PENALISED: &str = "score,penalised";

impl Task for MtBench {
    fn protocol(&self) -> Protocol {
        match self {
            MtBench::English => Protocol {
                task: "mt_bench",
                id: "mt_bench/single/v1",
                column: Some("MT-Bench"),
                source: "FastChat 0e6d3e4b, fastchat/llm_judge, mode single",
            },
            MtBench::Korean => Protocol {
                task: "komt_bench",
                id: "komt_bench/single/penalised/v1",
                column: Some("KoMT-Bench"),
                source: "KoMT-Bench 56d4f3af: FastChat's llm_judge in Korean, with the square root for other languages",
            },
        }
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<Outcome> {
        let task = self.protocol().task;
        let [questions, templates, folder] = self.files();
        let path = bench.source.find(task, &[questions])?;
        let rows = bench.limited(bench.source.rows(&path)?);
        let questions: Vec<Question> = rows
            .iter()
            .enumerate()
            .map(|(index, row)| Question::read(&path, index, row))
            .collect::<Result<_>>()?;
        let path = bench.source.find(task, &[templates])?;
        let templates = Templates::read(&path, &bench.source.rows(&path)?)?;
        let path = self.reference_file(bench, folder)?;
        let references = references(&path, &bench.source.rows(&path)?)?;

        let asked = |one: &Question| TwoTurns { questions: one.turns.clone(), temperature: one.temperature };
        let answers = two_turns(bench, &questions.iter().map(asked).collect::<Vec<_>>(), ANSWER_TOKENS)?;
        let mut requests = Vec::new();
        for (asked, answers) in questions.iter().zip(&answers) {
            let reference = match (asked.needs_reference(), references.get(&asked.id)) {
                (false, _) => None,
                (true, None) => return Err(missing(task, path, asked.id)),
                (true, found) => found,
            };
            for turn in 0..2 {
                requests.push(templates.request(
                    asked,
                    turn,
                    [&answers[0].text, &answers[1].text],
                    reference,
                ));
            }
        }
        let verdicts = bench.judge(task, &requests)?;
        Ok(self.outcome(&questions, &answers, &verdicts))
    }
}

fn missing(task: &str, file: PathBuf, question: u64) -> EvalError {
    let expected = vec![format!("a reference answer to question {question}")];
    EvalError::NoData { task: task.into(), folder: file, expected }
}

impl MtBench {
    /// Questions, templates of the judge, the folder of reference answers.
    fn files(self) -> [&'static str; 3] {
        match self {
            MtBench::English => {
                ["mtbench/question.jsonl", "mtbench/judge_prompts.jsonl", "mtbench/reference_answer"]
            }
            MtBench::Korean => [
                "komtbench/question_ko.jsonl",
                "komtbench/judge_prompts_ko.jsonl",
                "komtbench/reference_answer_ko",
            ],
        }
    }

    /// The file of reference answers, whatever it is called: FastChat wants the judge's name for it, to no purpose.
    fn reference_file(self, bench: &Bench<'_>, folder: &str) -> Result<PathBuf> {
        let (task, usual) = (self.protocol().task, format!("{folder}/gpt-4.jsonl"));
        bench.source.find(task, &[&usual]).or_else(|error| {
            let path = bench.source.find(task, &[folder])?;
            bench.source.folder(&path, ".jsonl")?.into_iter().next().ok_or(error)
        })
    }

    fn outcome(
        self,
        questions: &[Question],
        answers: &[[Generation; 2]],
        verdicts: &[Generation],
    ) -> Outcome {
        let mut samples = Vec::new();
        for (index, verdict) in verdicts.iter().enumerate() {
            let (asked, turn) = (&questions[index / 2], index % 2);
            let answer = &answers[index / 2][turn];
            let score = rating(&verdict.text);
            let told = language::detect(&answer.text);
            let mut scores: Vec<(String, f64)> =
                score.map(|score| (SCORE.into(), score)).into_iter().collect();
            if let (MtBench::Korean, Some(score)) = (self, score) {
                scores.push((PENALISED.into(), penalised(score, told, asked.id)));
            }
            samples.push(Sample {
                id: format!("{}/{}", asked.id, turn + 1),
                group: Some(asked.category.clone()),
                scores,
                invalid: invalid(answer, score),
                detail: json!({
                    "question": asked.turns[turn], "response": answer.text, "verdict": verdict.text, "language": told,
                }),
            });
        }
        let names: &[&str] = match self {
            MtBench::English => &[SCORE],
            MtBench::Korean => &[PENALISED, SCORE],
        };
        let mut metrics: Vec<Metric> = names.iter().map(|name| of(&samples, name, name, |_| true)).collect();
        for turn in [1, 2] {
            let title = format!("{},turn_{turn}", names[0]);
            metrics.push(of(&samples, names[0], &title, |index| index % 2 + 1 == turn));
        }
        let categories: BTreeSet<&str> = questions.iter().map(|asked| asked.category.as_str()).collect();
        let of_category = |category: &str| {
            let member = |index: usize| questions[index / 2].category == category;
            let values = names.iter().map(|name| of(&samples, name, name, member)).collect();
            (category.to_owned(), values)
        };
        let groups = categories.into_iter().map(of_category).collect();
        let mut notes = Vec::new();
        let unjudged = samples.iter().filter(|sample| sample.scores.is_empty()).count();
        if unjudged > 0 {
            notes.push(format!(
                "{unjudged} of {} verdicts gave no rating; as in the reference, the means leave them out",
                samples.len()
            ));
        }
        if self == MtBench::Korean {
            notes.push(format!(
                "{PENALISED}: the square root of the score where an answer is not in Korean, as the authors' detector.py has it; \
                 {SCORE}: without. The language is told by another detector than theirs"
            ));
        }
        Outcome { metrics, groups, samples, notes }
    }
}

/// The mean of a score over the samples at some indices that have it.
fn of(samples: &[Sample], score: &str, title: &str, member: impl Fn(usize) -> bool) -> Metric {
    let scores = samples.iter().enumerate().filter(|(index, _)| member(*index)).filter_map(|(_, sample)| {
        sample.scores.iter().find(|(name, _)| name == score).map(|&(_, value)| value)
    });
    average(title, scores)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::judge::script::{Script, said, transcript};
    use crate::{Invalid, Source};

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, rows: &[serde_json::Value]| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
        };
        write(
            "komtbench/question_ko.jsonl",
            &[
                json!({"question_id": 1, "category": "writing", "turns": ["q1", "q2"]}),
                json!({"question_id": 138, "category": "math", "turns": ["q3", "q4"]}),
            ],
        );
        write(
            "komtbench/judge_prompts_ko.jsonl",
            &[
                json!({"name": "single-v1", "system_prompt": "s", "prompt_template": "1 {question} {answer}"}),
                json!({"name": "single-math-v1", "system_prompt": "s", "prompt_template": "2 {question} {ref_answer_1} {answer}"}),
                json!({"name": "single-v1-multi-turn", "system_prompt": "", "prompt_template": "3 {question_1} {answer_1} {question_2} {answer_2}"}),
                json!({"name": "single-math-v1-multi-turn", "system_prompt": "s", "prompt_template": "4 {ref_answer_1} {ref_answer_2} {answer_2}"}),
            ],
        );
        write(
            "komtbench/reference_answer_ko/other-judge.jsonl",
            &[json!({"question_id": 138, "choices": [{"turns": ["r1", "r2"]}]})],
        );
        folder
    }

    #[test]
    fn two_turns_are_asked_and_judged() {
        let folder = folder();
        let source = Source::new(folder.path());
        let mut model = Script::new(|asked: &str| match asked {
            "user: q1" => said("안녕하세요 반갑습니다"),
            "user: q1\nassistant: 안녕하세요 반갑습니다\nuser: q2" => {
                said("Hello, this is an answer in English.")
            }
            "user: q3" => said("This answer is in English, which is allowed here."),
            _ => said(""),
        });
        let mut judge = Script::new(|asked: &str| {
            match asked.rsplit("user: ").next().unwrap().split(' ').next().unwrap() {
                "1" => said("점수: [[8]]"),
                "2" => said("점수: [[4]]"),
                "3" => said("[[9]]"),
                _ => said("no rating"),
            }
        });
        let mut bench =
            Bench { model: &mut model, judge: Some(&mut judge), sandbox: None, source: &source, limit: None };
        let outcome = MtBench::Korean.run(&mut bench).unwrap();
        let found: Vec<_> =
            outcome.metrics.iter().map(|metric| (metric.name.as_str(), metric.value, metric.n)).collect();
        assert_eq!(
            found,
            [
                ("score,penalised", 5.0, 3),
                ("score", 7.0, 3),
                ("score,penalised,turn_1", 6.0, 2),
                ("score,penalised,turn_2", 3.0, 1),
            ]
        );
        assert_eq!(
            outcome.groups.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            ["math", "writing"]
        );
        let invalid: Vec<_> = outcome.samples.iter().map(|sample| sample.invalid).collect();
        assert_eq!(invalid, [None, None, None, Some(Invalid::Unjudged)]);
        assert!(outcome.notes[0].starts_with("1 of 4 verdicts"), "{:?}", outcome.notes);
        let asked: Vec<String> = judge.asked.iter().map(|request| transcript(&request.prompt)).collect();
        assert_eq!(asked[1], "user: 3 q1 안녕하세요 반갑습니다 q2 Hello, this is an answer in English.");
        assert_eq!(asked[3], "system: s\nuser: 4 r1 r2 ");
        assert_eq!(
            model.asked.iter().map(|request| request.temperature).collect::<Vec<_>>(),
            [0.7, 0.0, 0.7, 0.0]
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = folder();
        let source = Source::new(folder.path());
        let mut model = Script::new(|_: &str| said("x"));
        let mut bench =
            Bench { model: &mut model, judge: None, sandbox: None, source: &source, limit: Some(1) };
        let error = MtBench::Korean.run(&mut bench).unwrap_err().to_string();
        assert!(error.starts_with("komt_bench needs a judge"), "{error}");
        let error = MtBench::English.run(&mut bench).unwrap_err().to_string();
        assert!(error.contains("mtbench/question.jsonl"), "{error}");
    }
}
