//! Semantic textual similarity: pairs of sentences with a gold score.

use std::path::Path;

use kanana_data::read::Row;
use serde_json::{Value, json};

use super::{Embedder, dot, normalised};
use crate::source::field;
use crate::{EvalError, Metric, Outcome, Result, Sample, Source, metrics};

/// What both sentences are for. Source: the instruction of E5's evaluation for STS (`mteb_evaluation` of intfloat/e5-mistral).
const INSTRUCTION: &str = "Retrieve semantically similar text.";

struct Pair {
    id: String,
    group: Option<String>,
    sentences: [String; 2],
    gold: f64,
}

/// The KLUE-STS file as published: `labels.label` is the gold.
pub(super) fn klue(
    embedder: &mut dyn Embedder,
    source: &Source,
    task: &str,
    limit: Option<usize>,
) -> Result<Outcome> {
    let path = source.find(
        task,
        &[
            "klue_sts/klue-sts-v1.1_dev.json",
            "klue_sts/sts/validation-00000-of-00001.parquet",
            "klue_sts/validation.jsonl",
        ],
    )?;
    let gold = |row: &Row| row.get("labels").and_then(|labels| labels.get("label")).cloned();
    score(embedder, &pairs(source, &path, gold)?, limit)
}

/// The TSV file of KorNLUDatasets as published.
pub(super) fn korsts(
    embedder: &mut dyn Embedder,
    source: &Source,
    task: &str,
    limit: Option<usize>,
) -> Result<Outcome> {
    let path = source.find(task, &["korsts/sts-test.tsv", "korsts/test.jsonl"])?;
    score(embedder, &pairs(source, &path, |row| row.get("score").cloned())?, limit)
}

/// `sts/NAME.jsonl`, `.tsv` or `.csv`.
pub(super) fn file(
    embedder: &mut dyn Embedder,
    source: &Source,
    task: &str,
    limit: Option<usize>,
) -> Result<Outcome> {
    let names = [".jsonl", ".json", ".tsv", ".csv", ".parquet"].map(|ending| format!("{task}{ending}"));
    let path = source.find(task, &names.each_ref().map(String::as_str))?;
    let gold = |row: &Row| row.get("score").or_else(|| row.get("label")).cloned();
    score(embedder, &pairs(source, &path, gold)?, limit)
}

fn pairs(source: &Source, path: &Path, gold: impl Fn(&Row) -> Option<Value>) -> Result<Vec<Pair>> {
    let pair = |(index, row): (usize, &Row)| {
        let text = |name| field(path, index, row, name).map(str::to_owned);
        let given = gold(row).unwrap_or(Value::Null);
        let number = given.as_f64().or_else(|| given.as_str()?.trim().parse().ok());
        let problem = || EvalError::Row {
            path: path.to_owned(),
            row: index as u64 + 1,
            problem: format!("expected a number as the score, got {given}"),
        };
        let name = |name: &str| row.get(name).and_then(Value::as_str).map(str::to_owned);
        Ok(Pair {
            id: name("guid").unwrap_or_else(|| index.to_string()),
            group: name("genre").or_else(|| name("source")),
            sentences: [text("sentence1")?, text("sentence2")?],
            gold: number.filter(|number| number.is_finite()).ok_or_else(problem)?,
        })
    };
    source.rows(path)?.iter().enumerate().map(pair).collect()
}

fn score(embedder: &mut dyn Embedder, pairs: &[Pair], limit: Option<usize>) -> Result<Outcome> {
    let pairs = &pairs[..pairs.len().min(limit.unwrap_or(usize::MAX))];
    let texts: Vec<String> = pairs.iter().flat_map(|pair| pair.sentences.clone()).collect();
    let vectors = normalised(embedder, &texts, Some(INSTRUCTION))?;
    let cosines: Vec<f64> = vectors.chunks_exact(2).map(|pair| f64::from(dot(&pair[0], &pair[1]))).collect();
    let correlations = |members: &[usize]| -> Vec<Metric> {
        let gold: Vec<f64> = members.iter().map(|&n| pairs[n].gold).collect();
        let cosines: Vec<f64> = members.iter().map(|&n| cosines[n]).collect();
        let both = [
            ("cosine_spearman", metrics::spearman(&cosines, &gold)),
            ("cosine_pearson", metrics::pearson(&cosines, &gold)),
        ];
        let metric = |(name, value): (&str, Option<f64>)| {
            Some(Metric { name: name.into(), value: 100.0 * value?, stderr: None, n: members.len() })
        };
        both.into_iter().filter_map(metric).collect()
    };
    let all: Vec<usize> = (0..pairs.len()).collect();
    let mut names: Vec<&String> = pairs.iter().filter_map(|pair| pair.group.as_ref()).collect();
    names.sort();
    names.dedup();
    let group = |name: &&String| {
        let members: Vec<usize> =
            all.iter().copied().filter(|&n| pairs[n].group.as_ref() == Some(*name)).collect();
        ((*name).clone(), correlations(&members))
    };
    let sample = |(pair, cosine): (&Pair, &f64)| Sample {
        id: pair.id.clone(),
        group: pair.group.clone(),
        scores: vec![("cosine".into(), *cosine)],
        invalid: None,
        detail: json!({ "sentence1": pair.sentences[0], "sentence2": pair.sentences[1], "gold": pair.gold }),
    };
    Ok(Outcome {
        metrics: correlations(&all),
        groups: names.iter().map(group).collect(),
        samples: pairs.iter().zip(&cosines).map(sample).collect(),
        notes: vec![format!("both sentences are embedded with the instruction {INSTRUCTION:?}")],
    })
}
