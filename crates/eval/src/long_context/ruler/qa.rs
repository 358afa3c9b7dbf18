//! Questions about one or two of many paragraphs: `qa.py` of the reference. The data are the user's.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use serde_json::Value;

use super::Question;
use crate::random::PythonRandom;
use crate::{EvalError, Result, Source};

/// A question and the paragraphs that answer it.
struct Asked {
    query: String,
    answers: Vec<String>,
    /// Paragraphs that must be there.
    gold: Vec<usize>,
    /// Paragraphs about the same matter, which are taken before others.
    near: Vec<usize>,
}

/// Paragraphs with questions.
pub struct Qa {
    documents: Vec<String>,
    asked: Vec<Asked>,
}

fn broken(path: &Path, row: usize, problem: &str) -> EvalError {
    EvalError::Row { path: path.to_owned(), row: row as u64 + 1, problem: problem.into() }
}

fn list<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn string(value: &Value, name: &str) -> Option<String> {
    value.get(name).and_then(Value::as_str).map(str::to_owned)
}

impl Qa {
    /// A file as SQuAD publishes it (`data`, `paragraphs`, `qas`); KorQuAD 1.0 has the same. Questions without an answer are left
    /// out.
    pub fn squad(source: &Source, path: &Path) -> Result<Self> {
        let value: Value = serde_json::from_str(&source.text(path)?)
            .map_err(|error| broken(path, error.line(), &error.to_string()))?;
        let mut qa = Qa { documents: Vec::new(), asked: Vec::new() };
        let mut numbers: HashMap<String, usize> = HashMap::new();
        for (row, article) in list(&value, "data").iter().enumerate() {
            let mut of_article = Vec::new();
            for paragraph in list(article, "paragraphs") {
                let context = string(paragraph, "context")
                    .ok_or_else(|| broken(path, row, "expected a string in \"context\""))?;
                of_article.push((qa.number(&mut numbers, context), list(paragraph, "qas")));
            }
            for (number, questions) in &of_article {
                for question in *questions {
                    let answers: BTreeSet<String> = list(question, "answers")
                        .iter()
                        .filter_map(|answer| string(answer, "text"))
                        .collect();
                    if question.get("is_impossible") == Some(&Value::Bool(true)) || answers.is_empty() {
                        continue;
                    }
                    let query = string(question, "question");
                    qa.asked.push(Asked {
                        query: query.ok_or_else(|| broken(path, row, "expected a string in \"question\""))?,
                        answers: answers.into_iter().collect(),
                        gold: vec![*number],
                        near: of_article
                            .iter()
                            .map(|(other, _)| *other)
                            .filter(|other| other != number)
                            .collect(),
                    });
                }
            }
        }
        qa.checked(path, "expected questions at data[].paragraphs[].qas[], got none")
    }

    /// A file as HotpotQA publishes it (an array of `question`, `answer`, `context` of titles with sentences).
    pub fn hotpot(source: &Source, path: &Path) -> Result<Self> {
        let mut qa = Qa { documents: Vec::new(), asked: Vec::new() };
        let mut numbers = HashMap::new();
        for (row, entry) in source.rows(path)?.into_iter().enumerate() {
            let entry = Value::Object(entry);
            let mut gold = Vec::new();
            for part in list(&entry, "context") {
                let title = part.get(0).and_then(Value::as_str).unwrap_or_default();
                let sentences = part.get(1).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                let text: String = sentences.iter().filter_map(Value::as_str).collect();
                gold.push(qa.number(&mut numbers, format!("{title}\n{text}")));
            }
            let (query, answer) = (string(&entry, "question"), string(&entry, "answer"));
            let (Some(query), Some(answer)) = (query, answer) else {
                return Err(broken(path, row, "expected strings in \"question\" and \"answer\""));
            };
            qa.asked.push(Asked { query, answers: vec![answer], gold, near: Vec::new() });
        }
        qa.checked(path, "expected an array of questions, got none")
    }

    fn number(&mut self, numbers: &mut HashMap<String, usize>, document: String) -> usize {
        *numbers.entry(document).or_insert_with_key(|document| {
            self.documents.push(document.clone());
            self.documents.len() - 1
        })
    }

    fn checked(self, path: &Path, problem: &str) -> Result<Self> {
        if self.asked.is_empty() { Err(broken(path, 0, problem)) } else { Ok(self) }
    }

    /// Questions.
    pub fn len(&self) -> usize {
        self.asked.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// Paragraphs.
    pub fn documents(&self) -> usize {
        self.documents.len()
    }

    /// Question `index` over `size` paragraphs, or over those that answer it where they are more.
    pub(super) fn question(&self, random: &mut PythonRandom, index: usize, size: usize) -> Question {
        let asked = &self.asked[index % self.asked.len()];
        let mut chosen = asked.gold.clone();
        let room = size.saturating_sub(chosen.len());
        chosen.extend(random.sample(asked.near.len(), room).into_iter().map(|n| asked.near[n]));
        let room = size.saturating_sub(chosen.len());
        if room > 0 {
            let others: Vec<usize> =
                (0..self.documents.len()).filter(|number| !chosen.contains(number)).collect();
            chosen.extend(random.sample(others.len(), room).into_iter().map(|n| others[n]));
        }
        random.shuffle(&mut chosen);
        let documents = chosen.iter().enumerate();
        let documents: Vec<String> = documents
            .map(|(n, &number)| format!("Document {}:\n{}", n + 1, self.documents[number]))
            .collect();
        let task = "Answer the question based on the given documents. Only give me the answer and do not output any other words.";
        Question {
            input: format!(
                "{task}\n\nThe following are given documents.\n\n{}\n\n{task}\n\nQuestion: {}",
                documents.join("\n\n"),
                asked.query
            ),
            prefix: " Answer:".into(),
            answers: asked.answers.clone(),
        }
    }
}
