//! Where data sets lie on the Hub, in the formats that tasks read. Files alone: whoever fetches them says so to the person.

use crate::Task;

/// A data set on the Hub.
pub struct Dataset {
    /// Its folder below the folder of data, which is the first part of the paths that tasks look for.
    pub name: &'static str,
    /// `OWNER/NAME`.
    pub repository: &'static str,
    /// Patterns of the files that are read.
    pub files: &'static [&'static str],
    /// The tasks that read it.
    pub tasks: &'static [&'static str],
}

/// All that are known. The others (MT-Bench, KoMT-Bench, WildBench, FunctionChat-Bench, HumanEval+ and MBPP+) are published in
/// repositories of code.
pub const ALL: &[Dataset] = &[
    Dataset {
        name: "mmlu",
        repository: "cais/mmlu",
        files: &["all/test-*.parquet", "all/dev-*.parquet"],
        tasks: &["mmlu", "mmlu_cot"],
    },
    Dataset {
        name: "kmmlu",
        repository: "HAERAE-HUB/KMMLU",
        files: &["data/*-test.csv", "data/*-dev.csv"],
        tasks: &["kmmlu", "kmmlu_cot"],
    },
    Dataset {
        name: "haerae",
        repository: "HAERAE-HUB/HAE_RAE_BENCH_1.1",
        files: &["*.parquet", "*.csv", "*.jsonl"],
        tasks: &["haerae", "haerae_cot"],
    },
    Dataset {
        name: "gsm8k",
        repository: "openai/gsm8k",
        files: &["main/*.parquet"],
        tasks: &["gsm8k", "gsm8k_cot"],
    },
    Dataset {
        name: "humaneval",
        repository: "openai/openai_humaneval",
        files: &["openai_humaneval/*.parquet"],
        tasks: &["humaneval"],
    },
    Dataset {
        name: "mbpp",
        repository: "google-research-datasets/mbpp",
        files: &["full/*.parquet"],
        tasks: &["mbpp"],
    },
    Dataset { name: "ifeval", repository: "google/IFEval", files: &["*.jsonl"], tasks: &["ifeval"] },
    Dataset {
        name: "math",
        repository: "EleutherAI/hendrycks_math",
        files: &["*/test-*.parquet"],
        tasks: &["math"],
    },
];

/// Those that some tasks read.
pub fn of(tasks: &[Box<dyn Task>]) -> Vec<&'static Dataset> {
    let reads = |set: &&Dataset| tasks.iter().any(|task| set.tasks.contains(&task.protocol().task));
    ALL.iter().filter(reads).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks;

    #[test]
    fn every_reader_is_a_task() {
        for name in ALL.iter().flat_map(|set| set.tasks) {
            assert!(tasks::all().iter().any(|task| task.protocol().task == *name), "{name}");
        }
        let chosen = tasks::find(&["mmlu".into(), "gsm8k".into()]).unwrap();
        assert_eq!(of(&chosen).iter().map(|set| set.name).collect::<Vec<_>>(), ["mmlu", "gsm8k"]);
    }
}
