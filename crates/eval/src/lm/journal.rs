//! Every answer on disk, so that nothing is asked twice: not after a crash, not by the next run, not by an auditor who has no
//! network.
//!
//! A journal is JSONL, a line an answer: `{"key", "model", "kind", "request", "answer", "time"}`. The key is the SHA-256 of model,
//! kind and request, so that it does not matter which task asked. A line is written whole when its answer is there; one that a
//! crash cut short is dropped when the journal is opened.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{GenerateRequest, Generation, LanguageModel, LogLikelihood, LogLikelihoodRequest, Prompt, Take};
use crate::error::io;
use crate::{EvalError, Result};

/// The file, and what is in it.
pub struct Journal {
    path: PathBuf,
    file: File,
    answers: HashMap<String, Value>,
}

#[derive(Deserialize)]
struct Line {
    key: String,
    answer: Value,
}

impl Journal {
    /// Opens a journal, or begins one; no other process has it at the same time.
    ///
    /// Errors: a journal in use, a line that is none (other than the last).
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(io(path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let problem =
                    "another run is writing to it: wait for it, or give --out another folder".into();
                return Err(EvalError::Journal { path: path.to_owned(), problem });
            }
            Err(TryLockError::Error(error)) => return Err(io(path)(error)),
        }
        let mut journal = Journal { path: path.to_owned(), file, answers: HashMap::new() };
        journal.read()?;
        Ok(journal)
    }

    fn read(&mut self) -> Result<()> {
        let mut lines = BufReader::new(&self.file);
        let mut whole = 0;
        for number in 1u64.. {
            let mut bytes = Vec::new();
            let count = lines.read_until(b'\n', &mut bytes).map_err(io(&self.path))?;
            if count == 0 {
                break;
            }
            if bytes.last() != Some(&b'\n') {
                break; // cut short
            }
            let line: Line = serde_json::from_slice(&bytes).map_err(|error| EvalError::Journal {
                path: self.path.clone(),
                problem: format!("line {number} is no answer ({error}): mend or remove it"),
            })?;
            self.answers.insert(line.key, line.answer);
            whole += count as u64;
        }
        self.file.set_len(whole).map_err(io(&self.path))?;
        self.file.seek(SeekFrom::End(0)).map_err(io(&self.path))?;
        Ok(())
    }

    /// Answers that are there.
    pub fn len(&self) -> usize {
        self.answers.len()
    }

    /// Whether none is there.
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    fn find<A: DeserializeOwned>(&self, key: &str) -> Result<Option<A>> {
        let Some(answer) = self.answers.get(key) else { return Ok(None) };
        serde_json::from_value(answer.clone()).map(Some).map_err(|error| EvalError::Journal {
            path: self.path.clone(),
            problem: format!("the answer to {key} is damaged: {error}"),
        })
    }

    fn write(&mut self, key: String, model: &str, kind: &str, request: &Value, answer: Value) -> Result<()> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let line = json!({
            "key": key, "model": model, "kind": kind, "request": request, "answer": answer, "time": time,
        });
        // One call, so that a line is there or is cut, and never mixed with another.
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(io(&self.path))?;
        self.answers.insert(key, answer);
        Ok(())
    }
}

/// Counts of what a [`Journaled`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Requests answered from the journal.
    pub replayed: usize,
    /// Requests that were asked.
    pub asked: usize,
    /// Tokens read, of all answers whether replayed or not.
    pub prompt_tokens: usize,
    /// Tokens written, or scored.
    pub completion_tokens: usize,
}

impl Usage {
    /// What came after `before`.
    pub fn since(self, before: Usage) -> Usage {
        Usage {
            replayed: self.replayed - before.replayed,
            asked: self.asked - before.asked,
            prompt_tokens: self.prompt_tokens - before.prompt_tokens,
            completion_tokens: self.completion_tokens - before.completion_tokens,
        }
    }
}

/// Texts between two notes of progress.
const EMBEDDED_AT_ONCE: usize = 64;

/// Told after every answer: how many of this call's requests are answered, of how many.
pub type Progress<'a> = Box<dyn FnMut(usize, usize) + 'a>;

/// A language model whose answers are kept.
pub struct Journaled<'a> {
    name: String,
    /// None: only what is in the journal is answered.
    inner: Option<Box<dyn LanguageModel + 'a>>,
    journal: &'a mut Journal,
    progress: Progress<'a>,
    usage: Usage,
}

impl<'a> Journaled<'a> {
    /// Asks `inner` what the journal does not have.
    pub fn new(inner: Box<dyn LanguageModel + 'a>, journal: &'a mut Journal, progress: Progress<'a>) -> Self {
        let name = inner.name().to_owned();
        Journaled { name, inner: Some(inner), journal, progress, usage: Usage::default() }
    }

    /// Answers from the journal alone; a request that is not there is an error.
    pub fn replay(name: &str, journal: &'a mut Journal, progress: Progress<'a>) -> Self {
        Journaled { name: name.to_owned(), inner: None, journal, progress, usage: Usage::default() }
    }

    /// What was done so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Answers of one kind: those that are known, then the rest through `ask`, each request once however often it comes.
    fn answer<R: Serialize + Clone, A: Serialize + DeserializeOwned + Clone>(
        &mut self,
        (kind, requests): (&str, &[R]),
        take: Take<'_, A>,
        tokens: impl Fn(&A) -> (usize, usize),
        ask: impl FnOnce(&mut dyn LanguageModel, &[R], Take<'_, A>) -> Result<()>,
    ) -> Result<()> {
        let total = requests.len();
        let mut done = 0;
        let mut missing: Vec<R> = Vec::new();
        let mut waiting: Vec<(String, Value, Vec<usize>)> = Vec::new();
        let mut place: HashMap<String, usize> = HashMap::new();
        let Journaled { name, inner, journal, progress, usage } = self;
        for (index, request) in requests.iter().enumerate() {
            let value = serde_json::to_value(request).expect("requests are plain values: this is a bug");
            let key = key(name, kind, &value);
            if let Some(&place) = place.get(&key) {
                waiting[place].2.push(index);
            } else if let Some(answer) = journal.find::<A>(&key)? {
                let (read, written) = tokens(&answer);
                usage.prompt_tokens += read;
                usage.completion_tokens += written;
                usage.replayed += 1;
                take(index, answer)?;
                done += 1;
            } else {
                place.insert(key.clone(), waiting.len());
                missing.push(request.clone());
                waiting.push((key, value, vec![index]));
            }
        }
        progress(done, total);
        if missing.is_empty() {
            return Ok(());
        }
        let Some(inner) = inner else {
            let problem = format!(
                "{} of {total} requests are not in it, and a replay asks nobody: run without --replay",
                missing.len()
            );
            return Err(EvalError::Journal { path: journal.path.clone(), problem });
        };
        ask(&mut **inner, &missing, &mut |index, answer| {
            let (key, request, indices) = &waiting[index];
            let value = serde_json::to_value(&answer).expect("answers are plain values: this is a bug");
            journal.write(key.clone(), name, kind, request, value)?;
            let (read, written) = tokens(&answer);
            usage.prompt_tokens += read;
            usage.completion_tokens += written;
            usage.asked += 1;
            for &index in indices {
                take(index, answer.clone())?;
                done += 1;
            }
            progress(done, total);
            Ok(())
        })
    }
}

fn key(model: &str, kind: &str, request: &Value) -> String {
    let mut digest = Sha256::new();
    for part in [model, "\n", kind, "\n", &request.to_string()] {
        digest.update(part.as_bytes());
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn of_scores(answer: &LogLikelihood) -> (usize, usize) {
    (answer.context_tokens, answer.continuation_tokens)
}

impl LanguageModel for Journaled<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn log_likelihoods(
        &mut self,
        requests: &[LogLikelihoodRequest],
        take: Take<'_, LogLikelihood>,
    ) -> Result<()> {
        self.answer(("log_likelihood", requests), take, of_scores, |inner, requests, take| {
            inner.log_likelihoods(requests, take)
        })
    }

    fn rolling_log_likelihoods(&mut self, texts: &[String], take: Take<'_, LogLikelihood>) -> Result<()> {
        self.answer(("rolling", texts), take, of_scores, |inner, texts, take| {
            inner.rolling_log_likelihoods(texts, take)
        })
    }

    fn generate(&mut self, requests: &[GenerateRequest], take: Take<'_, Generation>) -> Result<()> {
        let tokens = |answer: &Generation| (answer.prompt_tokens, answer.completion_tokens);
        self.answer(("generate", requests), take, tokens, |inner, requests, take| {
            inner.generate(requests, take)
        })
    }

    /// Vectors are not kept: they are many numbers, and made again in less time than they take to read.
    fn embed(&mut self, texts: &[String], instruction: Option<&str>) -> Result<Vec<Vec<f32>>> {
        match &mut self.inner {
            Some(inner) => {
                let mut vectors = Vec::with_capacity(texts.len());
                for part in texts.chunks(EMBEDDED_AT_ONCE) {
                    vectors.extend(inner.embed(part, instruction)?);
                    (self.progress)(vectors.len(), texts.len());
                }
                Ok(vectors)
            }
            None => Err(EvalError::Journal {
                path: self.journal.path.clone(),
                problem: "vectors are not kept: run without --replay".into(),
            }),
        }
    }

    fn render(&self, prompt: &Prompt) -> Result<Option<(String, Vec<u32>)>> {
        match &self.inner {
            Some(inner) => inner.render(prompt),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::lm::Ended;

    /// Answers with the prompt, and fails after so many answers.
    struct Echo {
        left: usize,
        asked: usize,
    }

    impl LanguageModel for Echo {
        fn name(&self) -> &str {
            "echo"
        }

        fn log_likelihoods(&mut self, _: &[LogLikelihoodRequest], _: Take<'_, LogLikelihood>) -> Result<()> {
            unreachable!()
        }

        fn rolling_log_likelihoods(&mut self, _: &[String], _: Take<'_, LogLikelihood>) -> Result<()> {
            unreachable!()
        }

        fn generate(&mut self, requests: &[GenerateRequest], take: Take<'_, Generation>) -> Result<()> {
            for (index, request) in requests.iter().enumerate().rev() {
                self.left = self.left.checked_sub(1).ok_or(EvalError::Stopped)?;
                self.asked += 1;
                let Prompt::Text(text) = &request.prompt else { unreachable!() };
                let text = text.to_uppercase();
                take(
                    index,
                    Generation {
                        text,
                        tool_calls: vec![],
                        ended: Ended::Stop,
                        prompt_tokens: 1,
                        completion_tokens: 2,
                    },
                )?;
            }
            Ok(())
        }
    }

    fn requests(texts: &[&str]) -> Vec<GenerateRequest> {
        texts.iter().map(|&text| GenerateRequest::greedy(Prompt::Text(text.into()), 5)).collect()
    }

    fn run(path: &Path, left: usize, texts: &[&str]) -> (Vec<Option<String>>, usize, Result<()>) {
        let (mut echo, mut journal) = (Echo { left, asked: 0 }, Journal::open(path).unwrap());
        let mut answers = vec![None; texts.len()];
        let mut last = (0, 0);
        let mut model =
            Journaled::new(Box::new(&mut echo), &mut journal, Box::new(|done, of| last = (done, of)));
        let outcome = model.generate(&requests(texts), &mut |index, answer| {
            answers[index] = Some(answer.text);
            Ok(())
        });
        drop(model);
        assert_eq!(last, (answers.iter().flatten().count(), texts.len()));
        (answers, echo.asked, outcome)
    }

    #[test]
    fn nothing_is_asked_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        let (answers, asked, outcome) = run(&path, 2, &["a", "b", "c", "b"]);
        assert!(matches!(outcome, Err(EvalError::Stopped)));
        assert_eq!((asked, answers[2].as_deref(), answers[0].as_deref()), (2, Some("C"), None));
        let (answers, asked, outcome) = run(&path, 9, &["a", "b", "c", "b"]);
        outcome.unwrap();
        assert_eq!(asked, 1, "b and c were known");
        assert_eq!(answers, ["A", "B", "C", "B"].map(|text| Some(text.to_owned())));
        let (_, asked, _) = run(&path, 9, &["b", "d"]);
        assert_eq!(asked, 1);
    }

    #[test]
    fn a_line_cut_short_is_asked_again_and_a_bad_line_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        run(&path, 9, &["a", "b"]).2.unwrap();
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 7]).unwrap();
        assert_eq!(run(&path, 9, &["a", "b"]).1, 1);
        assert_eq!(Journal::open(&path).unwrap().len(), 2);
        fs::write(&path, "no\n").unwrap();
        let error = Journal::open(&path).err().unwrap().to_string();
        assert!(error.contains("line 1 is no answer"), "{error}");
    }

    #[test]
    fn a_replay_asks_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        run(&path, 9, &["a"]).2.unwrap();
        let mut journal = Journal::open(&path).unwrap();
        let mut model = Journaled::replay("echo", &mut journal, Box::new(|_, _| {}));
        model.generate(&requests(&["a"]), &mut |_, _| Ok(())).unwrap();
        assert_eq!(model.usage(), Usage { replayed: 1, asked: 0, prompt_tokens: 1, completion_tokens: 2 });
        let error = model.generate(&requests(&["a", "z"]), &mut |_, _| Ok(())).unwrap_err().to_string();
        assert!(error.contains("1 of 2 requests are not in it"), "{error}");
    }

    #[test]
    fn one_run_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        let _held = Journal::open(&path).unwrap();
        assert!(Journal::open(&path).err().unwrap().to_string().contains("another run"));
    }
}
