//! `kanana eval` on the model that the program carries: what it asks, what it writes, and that a run which is killed ends as one
//! which is not.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Finished, finish, kanana};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Two subjects of MMLU with `rows` questions, and as many of GSM8K.
fn data(rows: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for split in ["mmlu/dev", "mmlu/test", "gsm8k"] {
        fs::create_dir_all(path.join(split)).unwrap();
    }
    for subject in ["astronomy", "virology"] {
        for (split, count) in [("dev", 5), ("test", rows)] {
            let mut text = "question,choice0,choice1,choice2,choice3,answer\n".to_owned();
            for n in 0..count {
                text += &format!("\"{subject}, number {n}?\",{n},two,\"three, or so\",four,{}\n", n % 4);
            }
            fs::write(path.join(format!("mmlu/{split}/{subject}_{split}.csv")), text).unwrap();
        }
    }
    for (split, count) in [("train", 20), ("test", rows)] {
        let row = |n: usize| json!({"question": format!("What is {n} + {n}?"), "answer": format!("It is.\n#### {}", 2 * n)});
        let lines: String = (0..count).map(|n| format!("{}\n", row(n))).collect();
        fs::write(path.join(format!("gsm8k/{split}.jsonl")), lines).unwrap();
    }
    folder
}

fn eval(data: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = kanana();
    command.arg("eval").arg("--data").arg(data).arg("--out").arg(out).args(more);
    command
}

fn run(data: &Path, out: &Path, more: &[&str]) -> Finished {
    finish(&mut eval(data, out, more), b"")
}

fn lines(path: PathBuf) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What must be the same of two runs: scores, groups, samples; not times.
fn result(out: &Path, tasks: &[&str]) -> (Value, Vec<Vec<Value>>) {
    let mut report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    report["date"].take();
    for task in report["tasks"].as_array_mut().unwrap() {
        for name in ["seconds", "model_usage", "judge_usage"] {
            task[name].take();
        }
    }
    (report, tasks.iter().map(|task| lines(out.join(format!("samples/{task}.jsonl")))).collect())
}

#[test]
fn a_run_leaves_a_report_samples_and_answers_and_can_be_replayed() {
    let (data, out) = (data(4), tempfile::tempdir().unwrap());
    let flags = ["--tasks", "mmlu,gsm8k", "--limit", "3"];
    let told = run(data.path(), out.path(), &flags).text().to_owned();
    assert!(told.contains("acc,macro") && told.contains("exact_match,strict-match"), "{told}");
    let first = result(out.path(), &["mmlu", "gsm8k"]);
    assert_eq!(first.0["tasks"][0]["protocol"], "mmlu/5-shot/log-likelihood/v1");
    assert_eq!(first.0["tasks"][0]["samples"], 6);
    assert_eq!(first.0["data"].as_array().unwrap().len(), 6, "every file that was read");
    assert_eq!((first.1[0].len(), first.1[1].len()), (6, 3));
    assert_eq!(lines(out.path().join("journal/model.jsonl")).len(), 6 * 4 + 3);

    let again = run(data.path(), out.path(), &[&flags[..], &["--replay", "--json"]].concat()).json();
    assert_eq!(again["tasks"][0]["model_usage"]["asked"], 0);
    assert_eq!(again["tasks"][0]["model_usage"]["replayed"], 24);
    assert_eq!(result(out.path(), &["mmlu", "gsm8k"]), first);

    let more = ["--tasks", "mmlu,gsm8k", "--limit", "4", "--replay"];
    run(data.path(), out.path(), &more).check_refused(&["8 of 32 requests are not in it", "--replay"]);
}

#[test]
fn prompts_are_shown_with_their_tokens() {
    let (data, out) = (data(4), tempfile::tempdir().unwrap());
    let shown = run(data.path(), out.path(), &["--tasks", "mmlu,gsm8k", "--show", "1"]);
    let text = shown.text();
    for part in [
        "=== mmlu/5-shot/log-likelihood/v1 0",
        "The following are multiple choice questions (with answers) about astronomy.\n\nastronomy, number 0?\nA. 0\n",
        "--- scored: \" A\"",
        "tokens: [",
        "=== gsm8k/5-shot/strict-match/v1 0",
        "stops [\"Question:\", \"</s>\", \"<|im_end|>\"]",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!out.path().join("report.json").exists());
}

#[test]
fn what_is_wrong_is_named() {
    let (data, out) = (data(2), tempfile::tempdir().unwrap());
    let check = |more: &[&str], words: &[&str]| run(data.path(), out.path(), more).check_refused(words);
    check(&["--tasks", "mmluu"], &["mmluu", "--list"]);
    check(&["--tasks", "kmmlu"], &["kmmlu/data", "--hub"]);
    check(&["--tasks", "mt_bench"], &["mtbench/question.jsonl"]);
    run(Path::new("./no/such"), out.path(), &["--tasks", "mmlu"]).check_refused(&["./no/such", "--data"]);
    fs::write(data.path().join("gsm8k/test.jsonl"), "{\"question\": \"x\"}\n").unwrap();
    check(&["--tasks", "gsm8k"], &["gsm8k/test.jsonl: row 1", "\"answer\""]);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(); // closed again
    let url = format!("http://{nobody}/v1");
    fs::write(data.path().join("gsm8k/test.jsonl"), "").unwrap();
    check(
        &["--tasks", "mmlu", "--url", &url, "--served-model", "m", "--tries", "1"],
        &[&url, "the same command goes on"],
    );
}

/// Kills a run when its journal has grown by `answers` lines.
fn kill_after(command: &mut Command, journal: &Path, answers: usize) {
    let count = || fs::read_to_string(journal).unwrap_or_default().lines().count();
    let (before, started) = (count(), Instant::now());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while count() < before + answers {
        assert!(started.elapsed() < Duration::from_secs(300), "{} answers", count());
        if child.try_wait().unwrap().is_some() {
            return; // it was faster
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

fn check_no_request_twice(journal: PathBuf) {
    let keys: Vec<String> =
        lines(journal).iter().map(|line| line["key"].as_str().unwrap().to_owned()).collect();
    assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
}

#[test]
fn a_killed_run_ends_as_one_that_was_not() {
    let (data, whole, killed) = (data(12), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let flags = ["--tasks", "mmlu,gsm8k"];
    run(data.path(), whole.path(), &flags).text();
    let journal = killed.path().join("journal/model.jsonl");
    kill_after(&mut eval(data.path(), killed.path(), &flags), &journal, 9);
    kill_after(&mut eval(data.path(), killed.path(), &flags), &journal, 50);
    run(data.path(), killed.path(), &flags).text();
    assert_eq!(result(killed.path(), &["mmlu", "gsm8k"]), result(whole.path(), &["mmlu", "gsm8k"]));
    check_no_request_twice(journal);
}

const TEMPLATE: &str = "\
{% for tool in tools or [] %}{{ tool.function.name }}: <function=NAME>{...}</function>\n{% endfor %}\
{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}\
{% if add_generation_prompt %}[assistant] {% endif %}";

/// `kanana serve` on a free port, ended with the value.
struct Served {
    child: Child,
    url: String,
}

impl Served {
    /// With a template that shows functions, which pico's own does not.
    fn start(folder: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = kanana();
        let template = folder.join("template.jinja");
        fs::write(&template, TEMPLATE).unwrap();
        command
            .args(["serve", "--port", &port.to_string(), "--chat-template"])
            .arg(template)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let served = Served { child: command.spawn().unwrap(), url: format!("http://127.0.0.1:{port}/v1") };
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < Duration::from_secs(120), "the server does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        served
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A judge whose verdict follows from what it is asked, in a form that every benchmark reads. It lives as long as the test.
fn scripted_judge() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || judge(stream));
        }
    });
    url
}

fn judge(mut stream: TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        match line.split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().ok()?;
            }
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let request: Value = serde_json::from_slice(&body).ok()?;
    let rating = 1 + body.iter().map(|&byte| u64::from(byte)).sum::<u64>() % 10;
    let text = match request["response_format"]["type"].as_str() {
        Some("json_object") => {
            json!({"strengths": "s", "weaknesses": "w", "score": rating.to_string()}).to_string()
        }
        _ => format!("Rating: [[{rating}]]\n점수: {rating}\n{}", if rating > 5 { "pass" } else { "fail" }),
    };
    let answer = json!({
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    })
    .to_string();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
    write!(stream, "{head}Content-Length: {}\r\n\r\n{answer}", answer.len()).ok()
}

/// The instruct suite against a server, with a judge, killed twice on the way: the same as undisturbed. On real data.
#[test]
fn the_instruct_suite_against_a_server_and_a_judge() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/eval/data");
    if !data.exists() {
        return println!("skipped: no shared data");
    }
    let folder = tempfile::tempdir().unwrap();
    let (served, judge) = (Served::start(folder.path()), scripted_judge());
    let extra = r#"{"max_tokens": 24}"#; // pico has nothing to say that is worth the wait
    let flags = [
        "--suite",
        "instruct",
        "--limit",
        "2",
        "--url",
        &served.url,
        "--served-model",
        "pico",
        "--extra",
        extra,
        "--judge-url",
        &judge,
        "--judge-model",
        "script",
    ];
    let (whole, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    run(&data, whole.path(), &flags).text();
    let [model, verdicts] =
        ["model", "judge"].map(|name| killed.path().join(format!("journal/{name}.jsonl")));
    kill_after(&mut eval(&data, killed.path(), &flags), &model, 3);
    kill_after(&mut eval(&data, killed.path(), &flags), &verdicts, 2);
    run(&data, killed.path(), &flags).text();
    let tasks = [
        "mt_bench",
        "komt_bench",
        "ifeval",
        "humaneval_plus",
        "mbpp_plus",
        "gsm8k_cot",
        "mmlu_cot",
        "functionchat",
    ];
    let (a, b) = (result(killed.path(), &tasks), result(whole.path(), &tasks));
    assert_eq!(a, b);
    let done: Vec<&str> =
        a.0["tasks"].as_array().unwrap().iter().filter_map(|task| task["task"].as_str()).collect();
    assert!(tasks.iter().all(|task| done.contains(task)), "{done:?}");
    for journal in [model, verdicts] {
        check_no_request_twice(journal);
    }
}
