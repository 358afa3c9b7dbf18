//! Retrieval: which of many passages answers a question. The search is exact.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::{Value, json};

use super::{Embedder, dot, normalised};
use crate::metrics::Ranking;
use crate::source::field;
use crate::tasks::percent_of;
use crate::{EvalError, Outcome, Result, Sample, Source};

/// What queries are for. Source: the instruction of E5's evaluation for question answering.
const INSTRUCTION: &str = "Given a question, retrieve passages that answer the question";

/// Passages that are kept for a query.
const KEPT: usize = 100;

/// Passages that are embedded before they are searched: what is in memory at once.
const BLOCK: usize = 1024;

/// Passages, queries and judgements.
#[derive(Default)]
struct Corpus {
    /// Id and text.
    passages: Vec<(String, String)>,
    /// Id, text, and how relevant which passage is.
    queries: Vec<(String, String, BTreeMap<String, i64>)>,
}

/// The different paragraphs of a file as SQuAD publishes it, and its questions, each with its paragraph.
pub(super) fn korquad(
    embedder: &mut dyn Embedder,
    source: &Source,
    task: &str,
    limit: Option<usize>,
) -> Result<Outcome> {
    let path = source.find(task, &["korquad/KorQuAD_v1.0_dev.json"])?;
    let broken =
        |row: usize, problem: String| EvalError::Row { path: path.clone(), row: row as u64, problem };
    let value: Value = serde_json::from_str(&source.text(&path)?)
        .map_err(|error| broken(error.line(), error.to_string()))?;
    let list =
        |value: &Value, name: &str| value.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut corpus = Corpus::default();
    let mut ids: HashMap<String, String> = HashMap::new();
    for (article, value) in list(&value, "data").iter().enumerate() {
        for paragraph in list(value, "paragraphs") {
            let text = |value: &Value, name: &str| {
                let text = value.get(name).and_then(Value::as_str).map(str::to_owned);
                text.ok_or_else(|| broken(article + 1, format!("expected a string in {name:?}")))
            };
            let context = text(&paragraph, "context")?;
            let next = format!("passage-{:05}", corpus.passages.len());
            let id = ids.entry(context.clone()).or_insert_with(|| {
                corpus.passages.push((next.clone(), context));
                next
            });
            for question in list(&paragraph, "qas") {
                let judgements = BTreeMap::from([(id.clone(), 1)]);
                corpus.queries.push((text(&question, "id")?, text(&question, "question")?, judgements));
            }
        }
    }
    search(embedder, corpus, limit, &path)
}

/// `corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv`; queries that nobody judged are not asked.
pub(super) fn beir(
    embedder: &mut dyn Embedder,
    source: &Source,
    task: &str,
    limit: Option<usize>,
) -> Result<Outcome> {
    let mut corpus = Corpus::default();
    let qrels = source.find(task, &[&format!("{task}/qrels/test.tsv")])?;
    let mut judgements: HashMap<String, BTreeMap<String, i64>> = HashMap::new();
    for (index, row) in source.rows(&qrels)?.iter().enumerate() {
        let text = |name| field(&qrels, index, row, name);
        let given = text("score")?;
        let score = given.trim().parse().map_err(|_| EvalError::Row {
            path: qrels.clone(),
            row: index as u64 + 1,
            problem: format!("expected a whole number in \"score\", got {given:?}"),
        })?;
        judgements.entry(text("query-id")?.into()).or_default().insert(text("corpus-id")?.into(), score);
    }
    let either = |name: &str| {
        source.find(task, &[&format!("{task}/{name}.jsonl"), &format!("{task}/{name}.jsonl.gz")])
    };
    let path = either("corpus")?;
    for (index, row) in source.rows(&path)?.iter().enumerate() {
        let title = row.get("title").and_then(Value::as_str).unwrap_or_default();
        let text = format!("{title} {}", field(&path, index, row, "text")?).trim().to_owned();
        corpus.passages.push((field(&path, index, row, "_id")?.into(), text));
    }
    let path = either("queries")?;
    for (index, row) in source.rows(&path)?.iter().enumerate() {
        let id = field(&path, index, row, "_id")?;
        if let Some(judgements) = judgements.remove(id) {
            corpus.queries.push((id.into(), field(&path, index, row, "text")?.into(), judgements));
        }
    }
    search(embedder, corpus, limit, &qrels)
}

/// The best passages of a query so far, best first: of two with one score the greater id, as pytrec_eval orders them.
struct Best<'c>(Vec<(f32, &'c str)>);

impl<'c> Best<'c> {
    fn offer(&mut self, score: f32, id: &'c str) {
        let before = |&(other, name): &(f32, &str)| other > score || (other == score && name > id);
        let place = self.0.partition_point(before);
        if place < KEPT {
            self.0.insert(place, (score, id));
            self.0.truncate(KEPT);
        }
    }
}

fn search(embedder: &mut dyn Embedder, corpus: Corpus, limit: Option<usize>, path: &Path) -> Result<Outcome> {
    let Corpus { passages, mut queries } = corpus;
    queries.truncate(limit.unwrap_or(usize::MAX));
    if queries.is_empty() || passages.is_empty() {
        let problem = format!("expected queries and passages, got {} and {}", queries.len(), passages.len());
        return Err(EvalError::Row { path: path.to_owned(), row: 1, problem });
    }
    let texts: Vec<String> = queries.iter().map(|(_, text, _)| text.clone()).collect();
    let query_vectors = normalised(embedder, &texts, Some(INSTRUCTION))?;
    let mut best: Vec<Best<'_>> = queries.iter().map(|_| Best(Vec::new())).collect();
    for block in passages.chunks(BLOCK) {
        let texts: Vec<String> = block.iter().map(|(_, text)| text.clone()).collect();
        let vectors = normalised(embedder, &texts, None)?;
        if vectors.first().map(Vec::len) != query_vectors.first().map(Vec::len) {
            let problem = "queries and passages have vectors of different lengths".into();
            return Err(EvalError::Model { model: embedder.name().into(), problem });
        }
        for (query, best) in query_vectors.iter().zip(&mut best) {
            for (vector, (id, _)) in vectors.iter().zip(block) {
                best.offer(dot(query, vector), id);
            }
        }
    }
    let sample = |((id, text, judgements), best): (&(String, String, BTreeMap<String, i64>), &Best<'_>)| {
        let scores = best.0.iter().map(|(score, id)| ((*id).to_owned(), f64::from(*score))).collect();
        let ranking = Ranking::new(judgements, &scores);
        let measures = [
            ("ndcg_at_10", ranking.ndcg(10)),
            ("recall_at_10", ranking.recall(10)),
            ("recall_at_100", ranking.recall(KEPT)),
            ("mrr_at_100", ranking.reciprocal_rank()),
        ];
        let first: Vec<&str> = best.0.iter().take(10).map(|(_, id)| *id).collect();
        Sample {
            id: id.clone(),
            group: None,
            scores: measures.map(|(name, value)| (name.to_owned(), value)).to_vec(),
            invalid: None,
            detail: json!({ "query": text, "first": first, "relevant": judgements }),
        }
    };
    let samples: Vec<Sample> = queries.iter().zip(&best).map(sample).collect();
    let names: Vec<String> = samples[0].scores.iter().map(|(name, _)| name.clone()).collect();
    let metric =
        |(n, name): (usize, &String)| percent_of(name, samples.iter().map(|sample| sample.scores[n].1));
    Ok(Outcome {
        metrics: names.iter().enumerate().filter_map(metric).collect(),
        groups: Vec::new(),
        notes: vec![
            format!("{} passages; the search is exact", passages.len()),
            format!("queries are embedded with the instruction {INSTRUCTION:?}, passages with none"),
        ],
        samples,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_are_ordered_as_pytrec_eval_orders_them() {
        let mut best = Best(Vec::new());
        [(0.5, "a"), (0.7, "b"), (0.5, "c"), (0.7, "a")]
            .iter()
            .for_each(|&(score, id)| best.offer(score, id));
        assert_eq!(best.0, [(0.7, "b"), (0.7, "a"), (0.5, "c"), (0.5, "a")]);
        let ids: Vec<String> = (0..300).map(|n| format!("{n:03}")).collect();
        ids.iter().for_each(|id| best.offer(0.6, id));
        assert_eq!((best.0.len(), best.0[2].1, best.0[99].1), (KEPT, "299", "202"));
    }
}
