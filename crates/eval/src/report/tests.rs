use std::collections::BTreeMap;

use super::*;

/// A run of some tasks.
pub fn run(model: &str, tasks: Vec<TaskReport>) -> Run {
    Run {
        version: 1,
        model: model.into(),
        judge: None,
        date: "2026-01-02T03:04:05Z".into(),
        program: "kanana 0.1.0".into(),
        hardware: "a processor".into(),
        settings: BTreeMap::new(),
        data: vec![FileRecord { path: "gsm8k/test.jsonl".into(), bytes: 12_345, sha256: "ab12".into() }],
        tasks,
        skipped: Vec::new(),
    }
}

/// A task with one metric.
pub fn task(name: &str, metric: Metric) -> TaskReport {
    let usage = Usage { asked: 100, prompt_tokens: 54_321, completion_tokens: 1_234, ..Usage::default() };
    TaskReport {
        task: name.into(),
        protocol: format!("{name}/5-shot/v1"),
        source: "a page".into(),
        column: Some(name.split('_').next().unwrap().to_uppercase()),
        samples: metric.n,
        groups: vec![("기하 | geometry".into(), vec![metric.clone()])],
        metrics: vec![metric],
        invalid: BTreeMap::from([(Invalid::Unparsed, 2)]),
        notes: vec!["<b>a note</b>".into()],
        model_usage: usage,
        judge_usage: Usage::default(),
        seconds: 75.0,
    }
}

/// So many right answers.
pub fn proportion(hits: usize, n: usize) -> Metric {
    let share = hits as f64 / n as f64;
    let stderr = 100.0 * (share * (1.0 - share) / (n as f64 - 1.0)).sqrt();
    Metric { name: "acc".into(), value: 100.0 * share, stderr: Some(stderr), n }
}

fn entry(name: &str, tasks: Vec<TaskReport>) -> Entry {
    Entry { name: name.into(), run: run(name, tasks), folder: None }
}

fn sound(text: &str, wanted: &[&str]) {
    for wanted in wanted {
        assert!(text.contains(wanted), "{wanted:?} is not in\n{text}");
    }
}

#[test]
fn markdown_says_what_a_run_found() {
    let mut run =
        run("나의 <모델>", vec![task("gsm8k", proportion(50, 100)), task("mmlu_cot", proportion(99, 100))]);
    run.skipped.push(("mt_bench".into(), "needs a judge".into()));
    let text = markdown(&run);
    sound(
        &text,
        &[
            "# 나의 &lt;모델>",
            "| `gsm8k` | `acc` | 50.00 ± 9.85 | 100 | 2 (2.0 %): unparsed 2 | 54,321 | 1,234 | 1 min 15 s | `gsm8k/5-shot/v1` |",
            // Base and instruct tables are apart.
            "## Beside the published base models",
            "| Kanana-1.5-8B | 63.53 |",
            "## Beside the published instruct models",
            "| Kanana-1.5-8B† | 68.82 |",
            "99.00 (94.55–99.82)",
            "<details><summary>gsm8k: 1 metrics, 1 groups</summary>",
            "| 기하 \\| geometry | 100 | 50.00 ± 9.85 |",
            "- &lt;b>a note&lt;/b>",
            "mt_bench: needs a judge",
            "| `gsm8k/test.jsonl` | 12,345 | `ab12` |",
        ],
    );
    assert_eq!(text.matches("<details>").count(), text.matches("</details>").count());
}

#[test]
fn html_is_one_page_that_escapes() {
    let mut run = run(
        "<script>alert(1)</script>",
        vec![task("gsm8k", proportion(50, 100)), task("ifeval", proportion(3, 10))],
    );
    run.settings.insert("a\"b".into(), "<img src=x onerror=y>".into());
    let page = html(&run);
    sound(
        &page,
        &[
            "&lt;script&gt;",
            "&lt;img src=x",
            "prefers-color-scheme: dark",
            "Noto Sans KR",
            "기하 | geometry",
            "width=device-width",
        ],
    );
    for forbidden in ["<script", "<img", "<b>", "src=\"", "href=", "@import", "url("] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    // A chart for each kind: what was published of GSM8K and of IFEval, each model once.
    assert_eq!(page.matches("<svg").count(), 2);
    assert_eq!(page.matches("class=\"mark\"").count(), 10 + 10);
    assert_eq!(page.matches("class=\"whisker\"").count(), 2);
}

#[test]
fn several_runs_are_compared_with_the_first() {
    let (a, b) = (task("gsm8k", proportion(500, 1000)), task("gsm8k", proportion(600, 1000)));
    let mut other = task("mmlu", proportion(5, 10));
    let mmlu = other.clone();
    other.protocol = "mmlu/0-shot/v2".into();
    let report = Report::new(vec![entry("run", vec![a, mmlu]), entry("run", vec![b, other])], true).unwrap();
    assert_eq!(report.title(), "run · run (2)");
    let text = report.markdown();
    sound(
        &text,
        &[
            "> **Warning**: run (2) cannot be compared with run in mmlu: protocols differ: mmlu/5-shot/v1 and mmlu/0-shot/v2",
            "| `gsm8k` | run (2) | +10.00 | 4.34 | ▲ higher |",
            "| `mmlu` | run (2) | – | – | not comparable |",
            "| **run (2)** | **60.00** | **50.00** |",
        ],
    );
    let json = report.json();
    assert_eq!(json["differences"][0]["marked"], true);
    assert_eq!(json["tasks"][0]["scores"][1]["value"], 60.0);
    assert_eq!(json["tasks"][1]["published"][0]["model"], "Kanana-Flag-1.5-32.5B");
    assert_eq!(json["warnings"].as_array().unwrap().len(), 1);
}

#[test]
fn other_data_leave_no_marks() {
    let [a, mut b] =
        [500, 600].map(|hits| entry(&hits.to_string(), vec![task("gsm8k", proportion(hits, 1000))]));
    b.run.data[0].sha256 = "else".into();
    let text = Report::new(vec![a, b], true).unwrap().markdown();
    sound(&text, &["500 and 600 read different data (gsm8k/test.jsonl)", "+10.00"]);
    assert!(!text.contains("▲ higher"));
}

#[test]
fn nothing_published_where_nobody_asks() {
    let report = Report::new(vec![entry("run", vec![task("gsm8k", proportion(1, 2))])], false).unwrap();
    assert!(!report.markdown().contains("published base"));
    assert!(!report.html().contains("class=\"mark\""));
    assert_eq!(report.json()["tasks"][0]["published"].as_array().unwrap().len(), 0);
}

#[test]
fn empty_and_odd_runs_are_reports() {
    let odd = Metric { name: "acc".into(), value: f64::NAN, stderr: None, n: 0 };
    let mut bare = task("perplexity", odd);
    bare.column = None;
    let mut without = bare.clone();
    without.task = "x".into();
    without.metrics.clear();
    without.groups.clear();
    for run in [run("", vec![]), run("odd", vec![bare, without])] {
        sound(&html(&run), &["</html>"]);
        sound(&markdown(&run), &["## Scores"]);
        assert!(!table(&run).is_empty());
    }
}
