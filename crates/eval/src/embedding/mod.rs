//! Texts as vectors: how similar two are, and which of many answers a question.
//!
//! Source: MTEB (Muennighoff et al. 2023), as its `STSEvaluator` and `RetrievalEvaluator` score: the main score of similarity is
//! Spearman's correlation of cosines with the gold, that of retrieval is nDCG at 10 with pytrec_eval's order of equals. Instructions
//! stand before queries and both sides of similarity, never before passages, as the family's embedding model was trained.
//! Tests: `cargo test -p kanana-eval embedding`; those on KLUE and KorQuAD need `../shared`.

mod local;
mod retrieval;
mod server;
mod sts;

pub(crate) use local::LocalEmbedder;
pub use server::Instructions;
pub(crate) use server::ServerEmbedder;

use crate::lm::LanguageModel;
use crate::{Bench, EvalError, Outcome, Protocol, Result, Source, Task};

/// What makes vectors.
pub trait Embedder {
    /// For reports.
    fn name(&self) -> &str;

    /// A vector for each text, all as long, in their order; they need not be of length one. `instruction` says what the texts are
    /// for: it is read before each and not pooled.
    fn embed(&mut self, texts: &[String], instruction: Option<&str>) -> Result<Vec<Vec<f32>>>;
}

/// Whatever answers, as an embedder.
struct Model<'a>(&'a mut dyn LanguageModel);

impl Embedder for Model<'_> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn embed(&mut self, texts: &[String], instruction: Option<&str>) -> Result<Vec<Vec<f32>>> {
        self.0.embed(texts, instruction)
    }
}

/// One of the tasks, by its name on the command line.
pub struct EmbeddingTask {
    name: String,
    protocol: Protocol,
}

impl EmbeddingTask {
    /// Errors: [`EvalError::UnknownTask`].
    pub fn new(name: &str) -> Result<Self> {
        Ok(EmbeddingTask { name: name.to_owned(), protocol: protocol(name)? })
    }
}

impl Task for EmbeddingTask {
    fn protocol(&self) -> Protocol {
        self.protocol.clone()
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<Outcome> {
        run(&mut Model(bench.model), bench.source, &self.name, bench.limit)
    }
}

/// A task by its name on the command line.
struct Known {
    protocol: Protocol,
    run: fn(&mut dyn Embedder, &Source, &str, Option<usize>) -> Result<Outcome>,
}

const KNOWN: [Known; 5] = [
    Known {
        protocol: Protocol {
            task: "klue_sts",
            id: "klue_sts/cosine-spearman/v1",
            column: None,
            source: "MTEB KLUE-STS: the dev split of KLUE-STS 1.1, labels.label",
        },
        run: sts::klue,
    },
    Known {
        protocol: Protocol {
            task: "korsts",
            id: "korsts/cosine-spearman/v1",
            column: None,
            source: "MTEB KorSTS: the test split of KorNLUDatasets",
        },
        run: sts::korsts,
    },
    Known {
        protocol: Protocol {
            task: "korquad_retrieval",
            id: "korquad_retrieval/ndcg-at-10/v1",
            column: None,
            source: "MTEB SQuADKorV1Retrieval: questions of KorQuAD 1.0 dev over its different paragraphs",
        },
        run: retrieval::korquad,
    },
    Known {
        protocol: Protocol {
            task: "sts",
            id: "sts/cosine-spearman/v1",
            column: None,
            source: "a file with sentence1, sentence2 and score: sts/NAME",
        },
        run: sts::file,
    },
    Known {
        protocol: Protocol {
            task: "beir",
            id: "beir/ndcg-at-10/v1",
            column: None,
            source: "a folder as BEIR publishes it (corpus.jsonl, queries.jsonl, qrels/test.tsv): beir/NAME",
        },
        run: retrieval::beir,
    },
];

/// The protocols of all tasks; `sts` and `beir` are called `sts/NAME` and `beir/NAME` after their files.
pub fn protocols() -> Vec<Protocol> {
    KNOWN.into_iter().map(|known| known.protocol).collect()
}

/// The protocol of a task.
///
/// Errors: [`EvalError::UnknownTask`].
pub fn protocol(task: &str) -> Result<Protocol> {
    find(task).map(|known| known.protocol)
}

/// Embeds and scores. `limit`: only the first so many pairs or queries.
///
/// Errors: [`EvalError::UnknownTask`], data that are missing or broken, an embedder that fails.
pub fn run(
    embedder: &mut dyn Embedder,
    source: &Source,
    task: &str,
    limit: Option<usize>,
) -> Result<Outcome> {
    (find(task)?.run)(embedder, source, task, limit)
}

fn find(task: &str) -> Result<Known> {
    let named = task.split_once('/').map(|(family, _)| family);
    let is = |known: &Known| match known.protocol.task {
        family @ ("sts" | "beir") => named == Some(family),
        name => name == task,
    };
    KNOWN.into_iter().find(is).ok_or_else(|| EvalError::UnknownTask { name: task.into() })
}

/// Vectors of length one; a vector of zeros stays what it is.
///
/// Errors: another number of vectors than texts, or vectors of several lengths, or of numbers that are none.
fn normalised(
    embedder: &mut dyn Embedder,
    texts: &[String],
    instruction: Option<&str>,
) -> Result<Vec<Vec<f32>>> {
    let mut vectors = embedder.embed(texts, instruction)?;
    let problem = |problem: String| EvalError::Model { model: embedder.name().into(), problem };
    if vectors.len() != texts.len() {
        return Err(problem(format!("expected {} vectors, got {}", texts.len(), vectors.len())));
    }
    let width = vectors.first().map_or(0, Vec::len);
    for vector in &mut vectors {
        if vector.len() != width {
            return Err(problem(format!("expected vectors of {width} numbers, got one of {}", vector.len())));
        }
        let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        if !length.is_finite() {
            return Err(problem("a vector holds numbers that are not finite".into()));
        }
        if length > 0.0 {
            vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
    }
    Ok(vectors)
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    // Eight sums at once, which the compiler makes one vector of.
    let mut sums = [0.0_f32; 8];
    let (chunks_a, chunks_b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = chunks_a.remainder().iter().zip(chunks_b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in chunks_a.zip(chunks_b) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
