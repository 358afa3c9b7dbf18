//! RULER: 13 synthetic tasks at lengths of the context. See [`crate::long_context::ruler`] for the data.

use std::path::PathBuf;

use serde_json::json;

use super::percent_of;
use crate::lm::{GenerateRequest, Generation};
use crate::long_context::context_needed;
use crate::long_context::ruler::{Generator, Kind, Materials, Qa, Question};
use crate::{Bench, EvalError, Invalid, Metric, Outcome, Protocol, Result, Sample, Source, Task, metrics};

/// Requests that are in memory at once: one of 128K tokens takes half a megabyte, several times.
const AT_ONCE: usize = 50;

/// The tasks at some lengths.
#[derive(Clone, Debug)]
pub struct Ruler {
    /// Units: tokens, prompt and answer together.
    pub lengths: Vec<usize>,
    /// Of each task at each length.
    pub samples: usize,
    /// Through the chat template, the answer begun.
    pub chat: bool,
}

impl Ruler {
    /// 500 samples at 4096 tokens, as the reference's first length.
    pub fn new(chat: bool) -> Self {
        Ruler { lengths: vec![4096], samples: 500, chat }
    }
}

impl Task for Ruler {
    fn protocol(&self) -> Protocol {
        let source = "NVIDIA/RULER c3f5e3b4; own words and haystacks";
        if self.chat {
            Protocol { task: "ruler_chat", id: "ruler_chat/0-shot/string-match/v1", column: None, source }
        } else {
            Protocol { task: "ruler", id: "ruler/0-shot/string-match/v1", column: None, source }
        }
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<Outcome> {
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        let (materials, mut notes) = materials(bench.source, longest)?;
        let mut samples: Vec<Sample> = Vec::new();
        for &length in &self.lengths {
            for kind in Kind::ALL {
                let missing = match kind {
                    Kind::Qa1 => materials.squad.is_none(),
                    Kind::Qa2 => materials.hotpot.is_none(),
                    _ => false,
                };
                if !missing {
                    let done = samples.len();
                    self.run_kind(bench, &materials, (kind, length), &mut samples)?;
                    let left_out = bench
                        .limit
                        .unwrap_or(usize::MAX)
                        .min(self.samples)
                        .saturating_sub(samples.len() - done);
                    if left_out > 0 {
                        notes.push(format!(
                            "{}/{length}: {left_out} samples fewer, as there are no more that fit",
                            kind.name()
                        ));
                    }
                }
            }
        }
        Ok(outcome(&self.lengths, samples, notes))
    }
}

impl Ruler {
    fn run_kind(
        &self,
        bench: &mut Bench<'_>,
        materials: &Materials,
        (kind, length): (Kind, usize),
        samples: &mut Vec<Sample>,
    ) -> Result<()> {
        let generator = Generator::new((kind, length), self.chat, materials, bench.model)?;
        let count = bench.limit.unwrap_or(usize::MAX).min(self.samples).min(generator.available());
        let mut index = 0;
        while index < count {
            let mut asked: Vec<(usize, Question, usize)> = Vec::new();
            while index < count && asked.len() < AT_ONCE {
                let sample = generator.sample(index, bench.model)?;
                asked.extend(sample.map(|(question, tokens)| (index, question, tokens)));
                index += 1;
            }
            let request = |(_, question, _): &(usize, Question, usize)| {
                GenerateRequest::greedy(question.prompt(self.chat), kind.max_tokens())
            };
            let requests: Vec<GenerateRequest> = asked.iter().map(request).collect();
            let answers = bench.generate(&requests)?;
            if asked.iter().zip(&answers).any(|((_, _, tokens), answer)| answer.prompt_tokens < *tokens) {
                return Err(context_needed(self.protocol().task, length));
            }
            let sample = |((index, question, _), answer): (&(usize, Question, usize), &Generation)| Sample {
                id: format!("{}/{length}/{index}", kind.name()),
                group: Some(format!("{}/{length}", kind.name())),
                scores: vec![("string_match".into(), kind.score(&answer.text, &question.answers))],
                // An answer of these tasks ends at its limit as a rule.
                invalid: Invalid::of(answer).filter(|reason| *reason != Invalid::Truncated),
                detail: json!({ "prefix": question.prefix, "answers": question.answers, "response": answer.text,
                    "prompt_tokens": answer.prompt_tokens }),
            };
            samples.extend(asked.iter().zip(&answers).map(sample));
        }
        Ok(())
    }
}

/// What the user has of essays and questions; the rest is generated or left out.
fn materials(source: &Source, longest: usize) -> Result<(Materials, Vec<String>)> {
    let mut notes = Vec::new();
    let mut find = |paths: &[&str], absent: &str| -> Result<Option<PathBuf>> {
        match source.find("ruler", paths) {
            Ok(path) => Ok(Some(path)),
            Err(EvalError::NoData { .. }) => {
                notes.push(absent.to_owned());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    };
    let essay =
        find(&["ruler/essay.txt"], "essays are generated sentences: ruler/essay.txt would be used instead")?;
    let squad = find(
        &["ruler/squad.json", "squad/dev-v2.0.json", "squad/dev-v1.1.json"],
        "qa_1 is left out: it needs squad/dev-v2.0.json, as SQuAD publishes it",
    )?;
    let hotpot = find(
        &["ruler/hotpotqa.json", "hotpotqa/hotpot_dev_distractor_v1.json"],
        "qa_2 is left out: it needs hotpotqa/hotpot_dev_distractor_v1.json, as HotpotQA publishes it",
    )?;
    let essay = essay.map(|path| source.text(&path)).transpose()?;
    let squad = squad.map(|path| Qa::squad(source, &path)).transpose()?;
    let hotpot = hotpot.map(|path| Qa::hotpot(source, &path)).transpose()?;
    Ok((Materials::new(essay.as_deref(), longest, squad, hotpot), notes))
}

/// The mean over tasks at each length, and first of all over lengths.
fn outcome(lengths: &[usize], samples: Vec<Sample>, notes: Vec<String>) -> Outcome {
    let mut groups: Vec<(String, Vec<Metric>)> = Vec::new();
    let mut metrics: Vec<Metric> = Vec::new();
    let mut means = Vec::new();
    for length in lengths {
        let mut of_length = Vec::new();
        for kind in Kind::ALL {
            let name = format!("{}/{length}", kind.name());
            let members = samples.iter().filter(|sample| sample.group.as_ref() == Some(&name));
            let scores: Vec<f64> = members.map(|sample| sample.scores[0].1).collect();
            of_length.extend(metrics::mean(&scores));
            groups.extend(percent_of("string_match", scores).map(|metric| (name, vec![metric])));
        }
        if let Some(mean) = metrics::macro_mean(&of_length) {
            metrics.push(super::percent(&format!("string_match,{length}"), mean));
            means.push(mean);
        }
    }
    let headline = metrics::macro_mean(&means).map(|mean| super::percent("string_match", mean));
    Outcome { metrics: headline.into_iter().chain(metrics).collect(), groups, samples, notes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::{Ended, LanguageModel, LogLikelihood, LogLikelihoodRequest, Prompt, Take};

    /// Says again all that it reads, and so every answer.
    struct Parrot;

    impl LanguageModel for Parrot {
        fn name(&self) -> &str {
            "parrot"
        }

        fn log_likelihoods(&mut self, _: &[LogLikelihoodRequest], _: Take<'_, LogLikelihood>) -> Result<()> {
            unreachable!()
        }

        fn rolling_log_likelihoods(&mut self, _: &[String], _: Take<'_, LogLikelihood>) -> Result<()> {
            unreachable!()
        }

        fn generate(&mut self, requests: &[GenerateRequest], take: Take<'_, Generation>) -> Result<()> {
            assert!(requests.len() <= AT_ONCE);
            for (index, request) in requests.iter().enumerate() {
                let (text, tokens) = self.render(&request.prompt)?.unwrap();
                assert!(tokens.len() + request.max_tokens <= 1500);
                let answer = Generation {
                    text,
                    tool_calls: vec![],
                    ended: Ended::Length,
                    prompt_tokens: tokens.len(),
                    completion_tokens: 1,
                };
                take(index, answer)?;
            }
            Ok(())
        }

        fn render(&self, prompt: &Prompt) -> Result<Option<(String, Vec<u32>)>> {
            let text = match prompt {
                Prompt::Text(text) => text.clone(),
                Prompt::Chat { messages, .. } => {
                    messages.iter().filter_map(|message| message.text()).collect()
                }
            };
            let count = text.split_whitespace().count() as u32;
            Ok(Some((text, (0..count).collect())))
        }
    }

    #[test]
    fn a_perfect_reader_scores_100() {
        let folder = tempfile::tempdir().unwrap();
        let source = Source::new(folder.path());
        for chat in [false, true] {
            let mut parrot = Parrot;
            let mut bench =
                Bench { model: &mut parrot, judge: None, sandbox: None, source: &source, limit: None };
            let task = Ruler { lengths: vec![900, 1500], samples: 60, chat };
            let outcome = task.run(&mut bench).unwrap();
            assert_eq!(outcome.samples.len(), 11 * 2 * 60);
            assert_eq!(outcome.groups.len(), 22);
            let names: Vec<&str> = outcome.metrics.iter().map(|metric| metric.name.as_str()).collect();
            assert_eq!(names, ["string_match", "string_match,900", "string_match,1500"]);
            assert!(outcome.metrics.iter().all(|metric| metric.value == 100.0));
            assert_eq!(outcome.notes.len(), 3, "{:?}", outcome.notes);
        }
    }

    #[test]
    fn a_limit_is_of_each_task() {
        let folder = tempfile::tempdir().unwrap();
        let source = Source::new(folder.path());
        let mut parrot = Parrot;
        let mut bench =
            Bench { model: &mut parrot, judge: None, sandbox: None, source: &source, limit: Some(2) };
        let outcome = Ruler { lengths: vec![900], ..Ruler::new(false) }.run(&mut bench).unwrap();
        assert_eq!(outcome.samples.len(), 22);
    }
}
