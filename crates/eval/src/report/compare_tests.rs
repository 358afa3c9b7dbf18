use serde_json::json;

use super::super::tests::{proportion, run, task};
use super::*;

fn entry(name: &str, tasks: Vec<TaskReport>) -> Entry {
    Entry { name: name.into(), run: run(name, tasks), folder: None }
}

fn with_samples(name: &str, scores: &[f64]) -> (tempfile::TempDir, Entry) {
    let folder = tempfile::tempdir().unwrap();
    let hits = scores.iter().sum::<f64>() as usize;
    let run = run(name, vec![task("gsm8k", proportion(hits, scores.len()))]);
    std::fs::write(folder.path().join("report.json"), serde_json::to_vec(&run).unwrap()).unwrap();
    std::fs::create_dir(folder.path().join("samples")).unwrap();
    let lines = scores.iter().enumerate().map(|(id, score)| {
        json!({"id": id.to_string(), "scores": [["acc", score]], "detail": {"q": "x"}}).to_string() + "\n"
    });
    std::fs::write(folder.path().join("samples/gsm8k.jsonl"), lines.collect::<String>()).unwrap();
    let entry = Entry::open(folder.path()).unwrap();
    (folder, entry)
}

#[test]
fn unpaired_differences_need_more_than_both_errors() {
    let check = |hits: usize, expected: bool| {
        let (a, b) = (proportion(500, 1000), proportion(hits, 1000));
        let (a, b) = (entry("a", vec![task("gsm8k", a)]), entry("b", vec![task("gsm8k", b)]));
        let difference = Difference::between(&a, &b, "gsm8k").unwrap().unwrap();
        assert_eq!(difference.is_significant(), expected, "{difference:?}");
    };
    // 1.96·√2·1.58 = 4.38 points.
    check(543, false);
    check(545, true);
    check(455, true);
}

#[test]
fn paired_differences_see_more() {
    let one: Vec<f64> = (0..200).map(|i| f64::from(i % 2 == 0)).collect();
    // Ten questions more, and none less.
    let two: Vec<f64> = (0..200).map(|i| f64::from(i % 2 == 0 || i < 20)).collect();
    let ((_keep, a), (_also, b)) = (with_samples("a", &one), with_samples("b", &two));
    let difference = Difference::between(&a, &b, "gsm8k").unwrap().unwrap();
    let paired = difference.paired.unwrap();
    assert_eq!((paired.gained, paired.lost), (10, 0));
    assert!((paired.p - 2.0 / 1024.0).abs() < 1e-12);
    assert!((difference.value.unwrap() - 5.0).abs() < 1e-9);
    // √(0.05·0.95/199) in per cent, times 1.96.
    assert!((paired.margin - 3.0281).abs() < 1e-3, "{}", paired.margin);
    assert!(difference.margin.unwrap() > 5.0 && difference.is_significant());
}

#[test]
fn what_cannot_be_compared_says_why() {
    let check = |change: &dyn Fn(&mut Entry), expected: &str| {
        let a = entry("a", vec![task("gsm8k", proportion(50, 100))]);
        let mut b = entry("b", vec![task("gsm8k", proportion(99, 100))]);
        change(&mut b);
        let difference = Difference::between(&a, &b, "gsm8k").unwrap().unwrap();
        let reason = difference.reason.clone().unwrap_or_default();
        assert!(reason.contains(expected), "{reason}");
        assert_eq!(difference.is_significant(), expected.is_empty());
    };
    check(&|_| {}, "");
    check(&|b| b.run.tasks[0].protocol = "gsm8k/8-shot/v2".into(), "protocols differ");
    check(&|b| drop(b.run.settings.insert("limit".into(), "100".into())), "limits differ: none and 100");
    check(&|b| b.run.tasks[0].samples = 7, "numbers of questions differ: 100 and 7");
    check(&|b| b.run.tasks[0].metrics.clear(), "no metric");
    check(&|b| b.run.tasks[0].metrics[0].name = "f1".into(), "metrics differ");
    let judged = |b: &mut Entry| {
        b.run.tasks[0].judge_usage.prompt_tokens = 9;
        b.run.judge = Some("other".into());
    };
    check(&judged, "judges differ: none and other");
    let a = entry("a", vec![task("gsm8k", proportion(1, 2))]);
    assert_eq!(Difference::between(&a, &entry("b", vec![]), "gsm8k").unwrap(), None);
}

#[test]
fn other_data_are_found_by_their_checksums() {
    let (a, mut b) = (entry("a", vec![]), entry("b", vec![]));
    assert_eq!(other_data(&a, &b), Vec::<String>::new());
    b.run.data[0].sha256 = "other".into();
    assert_eq!(other_data(&a, &b), [a.run.data[0].path.clone()]);
}

#[test]
fn the_sign_test_is_exact() {
    let check = |gained, lost, expected: f64| {
        let ratio = sign_test(gained, lost) / expected;
        assert!((ratio - 1.0).abs() < 1e-9, "{gained} {lost}: {ratio}");
    };
    // scipy.stats.binomtest(k, n).pvalue
    check(0, 0, 1.0);
    check(5, 5, 1.0);
    check(1, 9, 0.021484375);
    check(60, 40, 0.05688793364098089);
    check(6000, 5000, 1.5489950994864605e-21);
}

#[test]
fn samples_that_do_not_fit_are_not_paired_and_broken_ones_are_errors() {
    let ((_keep, a), (also, b)) = (with_samples("a", &[1.0, 0.0, 1.0]), with_samples("b", &[1.0, 1.0, 1.0]));
    let file = also.path().join("samples/gsm8k.jsonl");
    let paired =
        || Difference::between(&a, &b, "gsm8k").map(|difference| difference.unwrap().paired.is_some());
    assert!(paired().unwrap());
    std::fs::write(&file, r#"{"id": "x", "scores": [["acc", 1.0]]}"#).unwrap();
    assert!(!paired().unwrap());
    std::fs::write(&file, "{\"id\": 1}\n").unwrap();
    assert!(paired().unwrap_err().to_string().contains("row 1"));
    std::fs::remove_file(&file).unwrap();
    assert!(!paired().unwrap());
}

#[test]
fn what_is_no_report_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let check = |text: Option<&str>, expected: &str| {
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let error = Entry::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("report.json") && error.contains(expected), "{error}");
    };
    check(None, "");
    check(Some("[]"), "not a report of a run");
    let mut run = serde_json::to_value(run("a", vec![])).unwrap();
    run["version"] = json!(2);
    check(Some(&run.to_string()), "got version 2");
}
