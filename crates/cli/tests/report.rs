//! `kanana report`: runs beside one another and beside the published tables.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Finished, finish, kanana};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder of runs.
struct Runs {
    folder: TempDir,
}

impl Runs {
    fn new() -> Self {
        Runs { folder: tempfile::tempdir().unwrap() }
    }

    /// A run of 200 questions, the first `hits` of which are right.
    fn add(&self, name: &str, hits: usize, settings: Value) -> String {
        let share = hits as f64 / 200.0;
        let stderr = 100.0 * (share * (1.0 - share) / 199.0).sqrt();
        let usage = json!({"replayed": 0, "asked": 200, "prompt_tokens": 4321, "completion_tokens": 200});
        let none = json!({"replayed": 0, "asked": 0, "prompt_tokens": 0, "completion_tokens": 0});
        let run = json!({
            "version": 1, "model": format!("model-{name}"), "judge": null, "date": "2026-01-02T03:04:05Z",
            "program": "kanana", "hardware": "a processor", "settings": settings, "data": [],
            "tasks": [{
                "task": "mmlu", "protocol": "mmlu/5-shot/log-likelihood/v1", "source": "a page", "column": "MMLU",
                "metrics": [{"name": "acc", "value": 100.0 * share, "stderr": stderr, "n": 200}],
                "groups": [], "samples": 200, "invalid": {"unparsed": 4}, "notes": [],
                "model_usage": usage, "judge_usage": none, "seconds": 61.0
            }]
        });
        let folder = self.path(name);
        fs::create_dir_all(folder.join("samples")).unwrap();
        fs::write(folder.join("report.json"), run.to_string()).unwrap();
        let line = |id: usize| {
            let sample = json!({"id": id.to_string(), "scores": [["acc", f64::from(u8::from(id < hits))]], "detail": null});
            format!("{sample}\n")
        };
        fs::write(folder.join("samples/mmlu.jsonl"), (0..200).map(line).collect::<String>()).unwrap();
        folder.to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn report(args: &[&str]) -> Finished {
    finish(kanana().arg("report").args(args), b"")
}

#[test]
fn one_run_stands_beside_the_published_tables() {
    let runs = Runs::new();
    let found = report(&[&runs.add("base", 100, json!({}))]);
    for words in ["50.00 ± 6.95", "4 (2.0 %): unparsed 4", "1 min 01 s", "Kanana-1.5-8B", "64.24", "f064aae"]
    {
        assert!(found.text().contains(words), "{words:?} is not in:\n{}", found.stdout);
    }
    assert!(!report(&[&runs.add("base", 100, json!({})), "--against", "none"]).text().contains("Kanana"));
}

#[test]
fn two_runs_are_compared_question_by_question() {
    let runs = Runs::new();
    let (before, after) = (runs.add("before", 100, json!({})), runs.add("after", 110, json!({})));
    let found = report(&[&before, &after, "--json"]).json();
    let difference = &found["differences"][0];
    assert!((difference["value"].as_f64().unwrap() - 5.0).abs() < 1e-9, "{difference}");
    assert_eq!((&difference["paired"]["gained"], &difference["paired"]["lost"]), (&json!(10), &json!(0)));
    assert_eq!(difference["marked"], true);
    let limited = runs.add("limited", 150, json!({"limit": "200"}));
    let found = report(&[&before, &limited]);
    assert!(found.text().contains("not comparable") && found.stdout.contains("limits differ: none and 200"));
}

#[test]
fn files_are_written() {
    let runs = Runs::new();
    let base = runs.add("base", 100, json!({"parameters": "2000000000"}));
    let [page, text, chart] =
        ["r.html", "r.md", "c.svg"].map(|name| runs.path(name).to_str().unwrap().to_owned());
    let args = [&base, "--html", &page, "--markdown", &text, "--plot", &chart, "--tokens", "base=3e12"];
    let found = report(&args);
    assert_eq!(found.text().lines().count(), 3);
    let [page, text, chart] = [page, text, chart].map(|path| fs::read_to_string(path).unwrap());
    assert!(page.contains("Kanana-Flag-32.5B") && page.contains("</html>"));
    assert!(text.contains("| `mmlu` |"));
    assert!(chart.contains(">base</text>") && chart.contains("10²³"));
}

#[test]
fn what_cannot_be_done_says_what_to_do() {
    let runs = Runs::new();
    let base = runs.add("base", 100, json!({}));
    report(&[runs.path("nowhere").to_str().unwrap()]).check_refused(&["nowhere", "hint:", "kanana eval"]);
    fs::create_dir(runs.path("odd")).unwrap();
    fs::write(runs.path("odd/report.json"), "{}").unwrap();
    report(&[runs.path("odd").to_str().unwrap()]).check_refused(&["not a report", "hint:"]);
    report(&[&base, "--flops", "base=6e21"]).check_refused(&["chart", "--plot"]);
    report(&[&base, "--plot", "x.svg", "--flops", "other=6e21"])
        .check_refused(&["\"other\"", "the runs are base"]);
    report(&[&base, "--plot", "x.svg", "--tokens", "base=3e12"])
        .check_refused(&["parameters", "--flops base=N"]);
}
