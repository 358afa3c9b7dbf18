//! One file for each family of tasks, and the suites of the published tables.

mod choice;
mod code;
mod cot;
mod functionchat;
mod gsm8k;
mod haerae;
mod ifeval;
mod kmmlu;
mod logickor;
mod math;
mod mmlu;
mod mt_bench;
pub mod ruler;
mod wildbench;

use crate::code::plus::Dataset;
use crate::embedding::EmbeddingTask;
use crate::judge::functionchat::Rule;
use crate::metrics::{self, Mean};
use crate::{Metric, Result, Sample, Task};

/// All tasks, in the order of the published tables' columns, base before instruct.
pub fn all() -> Vec<Box<dyn Task>> {
    vec![
        Box::new(mmlu::Mmlu),
        Box::new(kmmlu::Kmmlu),
        Box::new(haerae::HaeRae),
        Box::new(code::HumanEval),
        Box::new(code::Mbpp),
        Box::new(gsm8k::Base),
        Box::new(ruler::Ruler::new(false)),
        Box::new(mt_bench::MtBench::English),
        Box::new(logickor::LogicKor),
        Box::new(mt_bench::MtBench::Korean),
        Box::new(wildbench::WildBench),
        Box::new(ifeval::IfEval),
        Box::new(code::Plus(Dataset::HumanEval)),
        Box::new(code::Plus(Dataset::Mbpp)),
        Box::new(gsm8k::Cot),
        Box::new(math::Math),
        Box::new(cot::Cot::MMLU),
        Box::new(cot::Cot::KMMLU),
        Box::new(cot::Cot::HAERAE),
        Box::new(ruler::Ruler::new(true)),
        Box::new(functionchat::FunctionChat { rule: Rule::December2024 }),
    ]
}

/// Suites by name: the columns of the published tables.
pub const SUITES: &[(&str, &[&str])] = &[
    ("base", &["mmlu", "kmmlu", "haerae", "humaneval", "mbpp", "gsm8k"]),
    (
        "instruct",
        &[
            "mt_bench",
            "logickor",
            "komt_bench",
            "wildbench",
            "ifeval",
            "humaneval_plus",
            "mbpp_plus",
            "gsm8k_cot",
            "math",
            "mmlu_cot",
            "kmmlu_cot",
            "haerae_cot",
            "functionchat",
        ],
    ),
];

/// The tasks of these names, without repetition, in this order.
///
/// Errors: [`EvalError::UnknownTask`].
pub fn find(names: &[String]) -> Result<Vec<Box<dyn Task>>> {
    let mut found: Vec<Box<dyn Task>> = Vec::new();
    for name in names {
        if found.iter().any(|task| task.protocol().task == name) {
            continue;
        }
        let task = all().into_iter().find(|task| task.protocol().task == name);
        found.push(match task {
            Some(task) => task,
            None => Box::new(EmbeddingTask::new(name)?),
        });
    }
    Ok(found)
}

/// A mean of fractions as a number of the tables, in per cent.
pub(crate) fn percent(name: &str, mean: Mean) -> Metric {
    Metric {
        name: name.into(),
        value: 100.0 * mean.value,
        stderr: mean.stderr.map(|stderr| 100.0 * stderr),
        n: mean.n,
    }
}

/// The mean of some samples in per cent; of none, nothing.
pub(crate) fn percent_of(name: &str, samples: impl IntoIterator<Item = f64>) -> Option<Metric> {
    let samples: Vec<f64> = samples.into_iter().collect();
    metrics::mean(&samples).map(|mean| percent(name, mean))
}

/// The scores of each group, by its name.
pub(crate) fn groups(samples: &[Sample]) -> Vec<(String, Vec<Metric>)> {
    let mut names: Vec<&String> = samples.iter().filter_map(|sample| sample.group.as_ref()).collect();
    names.sort();
    names.dedup();
    let of = |name: &String| {
        let members = samples.iter().filter(|sample| sample.group.as_ref() == Some(name));
        (name.clone(), gsm8k::outcome(members.cloned().collect()).metrics)
    };
    names.into_iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_protocols_are_unique() {
        let mut seen = std::collections::HashSet::new();
        for task in all() {
            let protocol = task.protocol();
            assert!(seen.insert(protocol.task), "{}", protocol.task);
            assert!(seen.insert(protocol.id), "{}", protocol.id);
            assert!(protocol.id.starts_with(&format!("{}/", protocol.task)), "{}", protocol.id);
        }
    }
}
