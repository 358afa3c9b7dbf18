//! `kanana bench`: at a depth, beside llama-bench, the limits of the machine, the choice of an instruction set, and
//! servers under load.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use common::{Checkpoint, Finished, finish, kanana};
use serde_json::{Value, json};

fn run(args: &[&str]) -> Finished {
    finish(kanana().args(args), b"")
}

/// `kanana bench --json`, quickly.
fn bench(args: &[&str]) -> Value {
    let flags = ["bench", "--json", "--prefill", "20", "--decode", "4", "--repeat", "2", "--threads", "2"];
    run(&[&flags, args].concat()).json()
}

#[test]
fn a_depth_is_computed_or_filled() {
    let flags = ["--random", "tiny", "--dtype", "bf16", "--batch", "2", "--depth", "0,100"];
    for (more, context) in [(&[][..], "computed"), (&["--fill-depth"][..], "random")] {
        let report = bench(&[&flags, more].concat());
        let runs = report["runs"].as_array().unwrap();
        assert_eq!((&runs[0]["depth"], &runs[0]["depth_context"]), (&json!(0), &json!(null)));
        assert_eq!((&runs[1]["depth"], &runs[1]["depth_context"]), (&json!(112), &json!(context)));
        // 2 for keys and values, 3 layers, 2 heads of 16, 2 bytes; behind depth, prompt and half of the steps.
        for (run, depth) in runs.iter().zip([0.0, 112.0]) {
            assert_eq!(run["kv_bytes_per_step"], json!((depth + 20.0 + 2.0) * 2.0 * 384.0));
            assert!(run["prefill_tokens_per_s"].as_f64().unwrap() > 0.0, "{run}");
        }
    }
}

#[test]
fn a_depth_goes_as_far_as_the_stretched_context() {
    let stretched = Checkpoint::with_config(json!({"max_position_embeddings": 32768}));
    let quick = ["--prefill", "20", "--decode", "4", "--repeat", "1", "--threads", "2"];
    let deep = ["--depth", "131040", "--fill-depth"];
    stretched.run("bench", &[&quick[..], &deep].concat()).check_refused(&["131066", "32768", "--yarn"]);
    let found = stretched.run("bench", &[&quick[..], &deep, &["--yarn"]].concat());
    assert!(found.text().contains("131040") && found.stdout.contains("random keys"), "{}", found.stdout);
}

#[test]
fn filling_needs_a_depth() {
    let found = run(&["bench", "--random", "tiny", "--fill-depth"]);
    assert_eq!(found.code, Some(2), "{found:?}");
    assert!(found.stderr.contains("--depth"), "{}", found.stderr);
}

#[test]
fn limits_are_measured_and_explained() {
    let report = run(&["bench", "limits", "--threads", "1,2", "--json"]).json();
    let machine = report["machine"].as_array().unwrap();
    assert_eq!(machine.len(), 2);
    for limits in machine {
        assert!(limits["read_bandwidth_bytes_per_s"].as_f64().unwrap() > 1e8, "{limits}");
        for unit in limits["units"].as_array().unwrap() {
            assert!(unit["l1_operations_per_s"].as_f64().unwrap() > 1e7, "{unit}");
            assert!(unit["registers_operations_per_s"].as_f64().unwrap() > 1e7, "{unit}");
        }
        let dtypes: Vec<_> =
            limits["at_most"].as_array().unwrap().iter().map(|bound| &bound["dtype"]).collect();
        assert_eq!(dtypes, ["f32", "bf16", "q8", "q4"]);
    }
    let table = run(&["bench", "limits", "--threads", "1"]);
    for words in ["GB/s", "f32 vectors", "nano-2.1b on 1 thread, at most", "decode tok/s"] {
        assert!(table.text().contains(words), "{words:?} is not in:\n{}", table.stdout);
    }
    assert!(run(&["bench", "limits", "--help"]).text().contains("Examples:"));
}

#[test]
fn the_instruction_set_can_be_lowered() {
    let with = |isa: &str, args: &[&str]| finish(kanana().env("KANANA_ISA", isa).args(args), b"");
    let tiny = ["bench", "--random", "tiny", "--json", "--prefill", "9", "--decode", "2", "--repeat", "1"];
    let available = run(&["bench", "limits", "--threads", "1", "--json"]).json()["instruction_sets"].take();
    for isa in available.as_array().unwrap() {
        let report = with(isa.as_str().unwrap(), &[&tiny[..], &["--dtype", "bf16"]].concat()).json();
        assert_eq!(report["instruction_set"], *isa);
        let expected = match isa.as_str().unwrap() {
            "amx" => "bf16 tiles",
            "avx512bf16" => "bf16 vectors",
            _ => "f32 vectors",
        };
        assert_eq!(report["machine"][0]["arithmetic_unit"], expected);
    }
    with("avx1024", &tiny).check_refused(&["KANANA_ISA", "avx1024", "portable"]);
    with("avx1024", &["inspect", "tiny"]).check_refused(&["KANANA_ISA"]);
    assert!(run(&["--help"]).text().contains("KANANA_ISA"));
}

#[cfg(unix)]
mod beside_llama_bench {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};

    use tempfile::TempDir;

    use super::*;

    /// Keeps what it was asked, and answers 2 tokens per second if the model is there.
    const ANSWERING: &str = r#"#!/bin/sh
[ "$1" = --help ] && exit 0
echo "$*" >> "$(dirname "$0")/log"
while [ $# -gt 0 ]; do
    case "$1" in -m) m=$2;; -p) p=$2;; -n) n=$2;; -d) d=$2;; -t) t=$2;; esac
    shift 2
done
[ "$(head -c 4 "$m")" = GGUF ] || { echo "error: failed to load model '$m'" >&2; exit 1; }
cat <<END
[
  {
    "build_commit": "0c1e570",
    "build_number": 1,
    "cpu_info": "AMD EPYC",
    "model_type": "llama 8B Q4_0",
    "n_threads": $t,
    "n_prompt": $p,
    "n_gen": $n,
    "n_depth": ${d:-0},
    "avg_ns": 6217519894,
    "avg_ts": 2.000000,
    "samples_ts": [ 2.0 ]
  }
]
END
"#;

    /// A folder with a program of that name.
    fn program(script: &str) -> (TempDir, PathBuf) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("llama-bench");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        (folder, path)
    }

    fn compare(program: &Path, args: &[&str]) -> Finished {
        let flags = ["bench", "--prefill", "20", "--decode", "4", "--repeat", "2", "--threads", "1"];
        run(&[&flags, args, &["--compare", program.to_str().unwrap()]].concat())
    }

    #[test]
    fn both_run_in_turns_on_the_same_weights() {
        let (folder, path) = program(ANSWERING);
        let report = compare(&path, &["--random", "tiny", "--dtype", "q4", "--depth", "32", "--json"]).json();
        let compared = &report["compared_with"];
        assert_eq!(compared["build"], "0c1e570 (1)");
        let models = compared["models"].as_array().unwrap();
        let names: Vec<_> = models.iter().map(|model| &model["weights"]).collect();
        assert_eq!(names, ["Q4_0", "Q4_K_M"]);
        let (ours, theirs) = (&report["runs"][0], &models[1]["runs"][0]);
        let rate = |run: &Value, field: &str| run[field].as_f64().unwrap();
        for what in ["prefill", "decode"] {
            let ratio = rate(ours, &format!("{what}_tokens_per_s")) / 2.0;
            assert!((rate(theirs, &format!("{what}_ratio")) / ratio - 1.0).abs() < 1e-9, "{compared}");
        }

        let log = fs::read_to_string(folder.path().join("log")).unwrap();
        let calls: Vec<Vec<&str>> = log.lines().map(|line| line.split(' ').collect()).collect();
        let asked: Vec<String> = calls.iter().map(|call| call[2..].join(" ")).collect();
        let prefill = "-t 1 -p 20 -n 0 -d 32 -r 1 -o json";
        let decode = "-t 1 -p 0 -n 4 -d 52 -r 1 -o json";
        assert_eq!(asked, [prefill, decode].repeat(4), "two rounds of two files");
        let file = |i: usize| Path::new(calls[i][1]).file_name().unwrap().to_str().unwrap();
        assert_eq!([0, 2, 4, 6].map(file), ["Q4_0.gguf", "Q4_K_M.gguf", "Q4_0.gguf", "Q4_K_M.gguf"]);
        assert!(!Path::new(calls[0][1]).parent().unwrap().exists(), "the files are temporary");
    }

    #[test]
    fn a_folder_and_a_file_are_compared_too() {
        let (folder, path) = program(ANSWERING);
        let checkpoint = Checkpoint::new();
        let model = checkpoint.path().to_str().unwrap();
        let table = compare(&path, &["--model", model]);
        for words in ["llama.cpp 0c1e570 (1)", "F32", "2.00", "x"] {
            assert!(table.text().contains(words), "{words:?} is not in:\n{}", table.stdout);
        }
        let file = checkpoint.file("tiny.gguf");
        let file = file.to_str().unwrap();
        run(&["convert", model, file]).text();
        let report = compare(&path, &["--model", file, "--json"]).json();
        assert_eq!(report["compared_with"]["models"][0]["weights"], "tiny.gguf");
        let log = fs::read_to_string(folder.path().join("log")).unwrap();
        assert!(log.lines().last().unwrap().starts_with(&format!("-m {file} ")), "{log}");
        assert!(Path::new(file).exists(), "a file that was given stays");
    }

    #[test]
    fn it_is_found_on_the_path() {
        let (folder, _path) = program(ANSWERING);
        let found = |path: std::ffi::OsString| {
            let flags = ["bench", "--random", "tiny", "--repeat", "1", "--decode", "2", "--prefill", "9"];
            finish(kanana().args(flags).args(["--compare", "llama-bench"]).env("PATH", path), b"")
        };
        let path = std::env::join_paths(
            [folder.path().to_path_buf()]
                .into_iter()
                .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
        );
        assert!(found(path.unwrap()).text().contains("llama.cpp"));
        found("/nowhere".into()).check_refused(&["llama-bench: no such program", "--target llama-bench"]);
    }

    #[test]
    fn what_it_does_wrong_is_told() {
        let tiny = ["--random", "tiny", "--dtype", "q8"];
        let check = |script: &str, words: &[&str]| {
            let (_folder, path) = program(script);
            compare(&path, &tiny).check_refused(words);
        };
        check(
            "#!/bin/sh\necho 'libllama.so: not found' >&2\nexit 127\n",
            &["libllama.so", "LD_LIBRARY_PATH"],
        );
        check("#!/bin/sh\necho 'no JSON here'\n", &["no JSON here", "2025"]);
        check("#!/bin/sh\necho '[]'\n", &["does not understand", "n_depth"]);
        let failing = "#!/bin/sh\n[ $1 = --help ] && exit 0\necho 'error: invalid parameter' >&2\nexit 1\n";
        check(failing, &["-r 1 -o json failed", "invalid parameter", "by hand"]);
        check("#!/nowhere/sh\n", &["cannot start", "build llama.cpp"]);
        let (_folder, path) = program(ANSWERING);
        compare(&path, &["--random", "tiny", "--batch", "2"]).check_refused(&["one sequence", "--batch"]);
        compare(Path::new("/nowhere/llama-bench"), &tiny).check_refused(&["no such program"]);
    }
}

mod under_load {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::process::{Child, Stdio};
    use std::thread;

    use super::*;

    /// `kanana serve` with pico on a free port, until it is dropped.
    struct Serving {
        child: Child,
        url: String,
    }

    impl Serving {
        fn start(args: &[&str]) -> Self {
            let mut child = kanana()
                .args(["serve", "--port", "0", "--threads", "1"])
                .args(args)
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
            let url = lines.find_map(|line| Some(line.split_once(" at ")?.1.to_owned())).unwrap();
            // A pipe that nobody reads would stop the server.
            thread::spawn(move || lines.for_each(drop));
            Serving { child, url }
        }

        fn load(&self, args: &[&str]) -> Finished {
            load(&self.url, args)
        }
    }

    impl Drop for Serving {
        fn drop(&mut self) {
            self.child.kill().and_then(|()| self.child.wait()).unwrap();
        }
    }

    /// A server that answers each request, told by its first line and its body, with a status and a body.
    fn answering(answer: impl Fn(&str, &str) -> (u16, String) + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                let head: Vec<String> =
                    stream.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
                let length = head.iter().find_map(|line| {
                    line.to_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok()
                });
                let mut body = vec![0; length.unwrap_or(0)];
                stream.read_exact(&mut body).unwrap();
                let (status, body) = answer(&head[0], &String::from_utf8(body).unwrap());
                let length = body.len();
                let head = format!("HTTP/1.1 {status} S\r\nconnection: close\r\ncontent-length: {length}");
                write!(stream.get_mut(), "{head}\r\n\r\n{body}").unwrap();
            }
        });
        url
    }

    fn models() -> (u16, String) {
        (200, r#"{"object": "list", "data": [{"id": "one"}, {"id": "two"}]}"#.to_owned())
    }

    /// `kanana bench load`, quickly.
    fn load(url: &str, args: &[&str]) -> Finished {
        let flags = ["bench", "load", url, "--prompt-tokens", "20", "--max-tokens", "5"];
        run(&[&flags, args].concat())
    }

    #[test]
    fn tokens_are_counted_and_timed() {
        let server = Serving::start(&[]);
        let found = server.load(&["--clients", "3,1", "--json", "--seed", "7"]);
        let report = found.json();
        assert_eq!((&report["prompt_form"], &report["seed"]), (&json!("token ids"), &json!(7)));
        assert_eq!(report["servers"][0]["model"], "pico");
        let runs = report["servers"][0]["runs"].as_array().unwrap();
        for (run, clients) in runs.iter().zip([3, 1]) {
            let counted =
                ["clients", "answers", "errors", "prompt_tokens", "generated_tokens"].map(|name| &run[name]);
            let expected = [clients, 2 * clients, 0, 2 * clients * 20, 2 * clients * 5].map(Value::from);
            assert_eq!(counted, [0, 1, 2, 3, 4].map(|i| &expected[i]));
            let number = |name: &str| run[name].as_f64().unwrap_or_else(|| panic!("{name}: {run}"));
            assert!(
                (number("tokens_per_s") * number("seconds") / number("generated_tokens") - 1.0).abs() < 1e-9
            );
            assert!(0.0 < number("ttft_p50_s") && number("ttft_p50_s") <= number("ttft_p99_s"), "{run}");
            assert!(number("ttft_p99_s") < number("seconds"), "{run}");
            assert!(number("between_tokens_p50_s") <= number("between_tokens_p99_s"), "{run}");
            assert_eq!(run["cached_prompt_tokens"], 0, "no two prompts are alike");
        }
        assert_eq!(runs[1]["tokens_per_s_ratio"], 1.0);
        assert!(
            found.stderr.contains("3 clients") && found.stderr.contains("1 client\n"),
            "{}",
            found.stderr
        );
    }

    #[test]
    fn servers_are_compared_and_prefixes_shared() {
        let (one, other) = (Serving::start(&[]), Serving::start(&["--api-key", "k"]));
        let both = ["--clients", "1", "--shared-prefix", "64", "--compare", &other.url];
        one.load(&both).check_refused(&[&other.url, "401", "--api-key"]);
        let both = [&both[..], &["--api-key", "k"]].concat();
        let report = one.load(&[&both[..], &["--json"]].concat()).json();
        let rate = |server: usize| report["servers"][server]["runs"][0]["tokens_per_s"].as_f64().unwrap();
        assert_eq!(report["ratios"][0]["tokens_per_s_ratio"], json!(rate(0) / rate(1)));
        for server in report["servers"].as_array().unwrap() {
            let run = &server["runs"][0];
            assert_eq!(
                (&run["prompt_tokens"], &run["cached_prompt_tokens"]),
                (&json!(2 * 84), &json!(2 * 64))
            );
            let ratio = run["ttft_miss_s"].as_f64().unwrap() / run["ttft_p50_s"].as_f64().unwrap();
            assert_eq!(run["ttft_miss_over_hit"], json!(ratio));
        }
        let twice = one.load(&["--clients", "1", "--compare", &one.url]);
        assert!(twice.text().contains("some of the prompts in its cache"), "{}", twice.stdout);
        let table = one.load(&both);
        for words in
            ["pico", "prompt tok/s", "TTFT p50", "TTFT miss", "how many times as fast", "20 random token ids"]
        {
            assert!(table.text().contains(words), "{words:?} is not in:\n{}", table.stdout);
        }
    }

    #[test]
    fn what_a_server_refuses_is_told_once() {
        let server = Serving::start(&[]);
        let found = run(&["bench", "load", &server.url, "--prompt-tokens", "9000", "--clients", "1,2"]);
        found.check_refused(&["every request to", "status 400", "9000", "--prompt-tokens"]);
        assert_eq!(
            found.stderr.matches("status 400").count(),
            2,
            "as it comes and at the end: {}",
            found.stderr
        );
        server.load(&["--model", "nano"]).check_refused(&["no model \"nano\"", "pico"]);
    }

    #[test]
    fn a_server_that_takes_only_text_gets_words() {
        let url = answering(|request, body| {
            if request.starts_with("GET /v1/models ") {
                return models();
            }
            let body: Value = serde_json::from_str(body).unwrap();
            let Some(text) = body["prompt"].as_str() else { return (400, "a text, please".to_owned()) };
            let piece = json!({"choices": [{"text": "x", "finish_reason": null}]});
            let usage = json!({"prompt_tokens": 2 * text.split(' ').count(), "completion_tokens": 3});
            let usage = json!({"choices": [], "usage": usage});
            let events = format!("data: {piece}\n\ndata: {piece}\n\ndata: {usage}\n\ndata: [DONE]\n\n");
            (200, events)
        });
        let report = load(&url, &["--clients", "1,2", "--model", "two", "--json"]).json();
        assert_eq!(
            (&report["prompt_form"], &report["servers"][0]["model"]),
            (&json!("words"), &json!("two"))
        );
        let run = &report["servers"][0]["runs"][1];
        let counted = [&run["prompt_tokens"], &run["generated_tokens"], &run["cached_prompt_tokens"]];
        assert_eq!(counted, [&json!(4 * 20), &json!(4 * 3), &Value::Null]);
        assert_eq!(run["tokens_per_piece"], 1.5);
        let table = load(&url, &["--clients", "1"]);
        for words in ["not all answers have 5 tokens", "some pieces hold several"] {
            assert!(table.text().contains(words), "{words:?} is not in:\n{}", table.stdout);
        }
    }

    #[test]
    fn what_is_no_server_is_refused() {
        let check = |url: &str, words: &[&str]| load(url, &["--clients", "1"]).check_refused(words);
        let refusing = |status: u16, body: &'static str| {
            answering(move |request, _| match request.starts_with("GET") && status != 503 {
                true => models(),
                false => (status, body.to_owned()),
            })
        };
        check("localhost:8000", &["not the address", "http://HOST:PORT"]);
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        check(&format!("http://{free}"), &["cannot reach", "kanana serve"]);
        let page = answering(|_, _| (200, "<h1>It works!</h1>".to_owned()));
        check(&page, &["not an OpenAI server", "It works!", "llama-server"]);
        check(&refusing(503, r#"{"error": {"message": "Loading model"}}"#), &["503: Loading model", "wait"]);
        check(&refusing(404, "no such page"), &["does not complete", "404: no such page", "/v1/completions"]);
        check(&refusing(200, "<h1>It works!</h1>"), &["does not complete", "without an answer"]);
    }

    #[test]
    fn help_has_examples() {
        let help = run(&["bench", "load", "--help"]);
        for words in ["kanana bench load http://", "--compare", "--shared-prefix", "llama-server"] {
            assert!(help.text().contains(words), "{words:?} is not in:\n{}", help.stdout);
        }
    }
}
