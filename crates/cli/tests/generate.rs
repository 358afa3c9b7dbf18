//! `kanana generate` and `kanana chat` on a tiny checkpoint.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Checkpoint, EOS, finish, ids};
use serde_json::{Value, json};

/// What the terminal does when Ctrl-C is pressed.
fn press_ctrl_c(child: &Child) {
    let kill = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().is_ok_and(|status| status.success()));
}

#[test]
fn json_says_what_was_asked_and_what_came() {
    let checkpoint = Checkpoint::new();
    let answer =
        checkpoint.generate(&["--prompt", "가", "--max-tokens", "5", "--ignore-eos", "--logprobs", "2"]);
    assert_eq!(answer["prompt_ids"], json!([256, 234, 176, 128])); // 가 is EA B0 80
    assert_eq!(ids(&answer).len(), 5);
    assert_eq!(answer["finish_reason"], "length");
    assert_eq!(answer["usage"], json!({"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}));
    let logprobs = answer["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), 5);
    for (entry, id) in logprobs.iter().zip(ids(&answer)) {
        assert_eq!(entry["id"], id);
        assert_eq!(entry["top"][0]["id"], id, "greedy takes the likeliest");
        assert!(entry["logprob"].as_f64().unwrap() <= 0.0);
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let checkpoint = Checkpoint::new();
    for dtype in ["f32", "bf16", "q8", "q4"] {
        let flags = [
            "--prompt-ids",
            "1 2 3",
            "--max-tokens",
            "40",
            "--ignore-eos",
            "--dtype",
            dtype,
            "--logprobs",
            "3",
        ];
        let run = |threads| {
            let mut answer = checkpoint.generate(&[&flags[..], &["--threads", threads]].concat());
            answer["timings"].take();
            answer
        };
        assert_eq!(run("1"), run("2"), "{dtype}");
    }
}

#[test]
fn speculation_changes_nothing_but_the_speed() {
    let checkpoint = Checkpoint::new();
    let itself = format!("draft:{}", checkpoint.path().display());
    for temperature in ["0", "1.2"] {
        let flags =
            ["--prompt", "가나다 가나다 가나다 가나", "--max-tokens", "60", "--ignore-eos", "--seed", "5"];
        let run = |speculate: &str| {
            let flags =
                [&flags[..], &["--temperature", temperature, "--speculate", speculate, "--json"]].concat();
            let run = checkpoint.run("generate", &flags);
            (ids(&run.json()), run.stderr)
        };
        let (expected, quiet) = run("off");
        assert!(!quiet.contains("speculation"));
        for speculate in ["lookup", "lookup:3", itself.as_str()] {
            let (got, told) = run(speculate);
            assert_eq!(got, expected, "{speculate} at {temperature}");
            assert!(told.contains("accepted in a step"), "{speculate}: {told}");
        }
    }
    let refused = checkpoint.run("generate", &["--prompt", "a", "--speculate", "magic"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("draft:MODEL"), "{}", refused.stderr);
}

#[test]
fn streamed_text_is_the_text() {
    let checkpoint = Checkpoint::new();
    let flags =
        ["--prompt", "옛날", "--max-tokens", "60", "--temperature", "1.5", "--seed", "3", "--ignore-eos"];
    let streamed = checkpoint.run("generate", &flags);
    let whole = checkpoint.run("generate", &[&flags[..], &["--json"]].concat()).json();
    assert_eq!(streamed.text(), format!("{}\n", whole["text"].as_str().unwrap()));
    assert_eq!(whole["seed"], 3);
}

#[test]
fn the_seed_decides_what_is_sampled() {
    let checkpoint = Checkpoint::new();
    let sample = |seed: &str| {
        let flags =
            ["--prompt-ids", "1", "--max-tokens", "20", "--temperature", "2", "--seed", seed, "--ignore-eos"];
        ids(&checkpoint.run("generate", &[&flags[..], &["--json"]].concat()).json())
    };
    assert_eq!(sample("1"), sample("1"));
    assert_ne!(sample("1"), sample("2"));
}

#[test]
fn every_way_to_give_a_prompt_gives_the_same() {
    let checkpoint = Checkpoint::new();
    checkpoint.write("prompt.txt", "나무".as_bytes());
    let file = checkpoint.file("prompt.txt");
    let flags = ["--max-tokens", "8", "--temperature", "0", "--json"];
    let run = |more: &[&str], input: &[u8]| {
        ids(&finish(&mut checkpoint.command("generate", &[&flags[..], more].concat()), input).json())
    };
    let expected = run(&["--prompt", "나무"], b"");
    assert_eq!(run(&["--file", file.to_str().unwrap()], b""), expected);
    assert_eq!(run(&[], "나무".as_bytes()), expected);
    assert_eq!(run(&["--prompt", "-"], "나무".as_bytes()), expected);
    assert_eq!(run(&["--prompt-ids", "256,235,130,152,235,172,180"], b""), expected);
}

#[test]
fn a_file_of_prompts_is_answered_in_its_order() {
    let checkpoint = Checkpoint::new();
    let lines = [
        json!({"id": "first", "prompt_ids": vec![5; 90]}),
        json!("나무"),
        json!({"messages": [{"role": "user", "content": "안녕"}], "id": 3}),
        json!({"prompt": "끝"}),
    ];
    let text: Vec<String> = lines.iter().map(Value::to_string).collect();
    checkpoint.write("prompts.jsonl", text.join("\n").as_bytes());
    let file = checkpoint.file("prompts.jsonl");
    let flags = ["--max-tokens", "12", "--temperature", "0"];
    let run = checkpoint.run("generate", &[&flags[..], &["--prompts", file.to_str().unwrap()]].concat());
    let answers = run.json_lines();
    assert_eq!(answers.len(), 4);
    assert_eq!((&answers[0]["id"], &answers[2]["id"]), (&json!("first"), &json!(3)));
    assert_eq!(answers[1].get("id"), None);
    // Batched or alone, the answer is the same.
    assert_eq!(answers[1]["ids"], checkpoint.generate(&["--prompt", "나무", "--max-tokens", "12"])["ids"]);
    let chat = checkpoint.generate(&["--chat", "--prompt", "안녕", "--max-tokens", "12"]);
    assert_eq!((&answers[2]["prompt_ids"], &answers[2]["ids"]), (&chat["prompt_ids"], &chat["ids"]));
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let checkpoint = Checkpoint::new();
    let flags = [
        "--prompt-ids",
        "1",
        "--max-tokens",
        "60",
        "--temperature",
        "3",
        "--seed",
        "5",
        "--ignore-eos",
        "--json",
    ];
    let whole = checkpoint.run("generate", &flags).json();
    let text = whole["text"].as_str().unwrap();
    let (at, stop) = text.char_indices().find(|(at, c)| *at > 3 && c.is_ascii_alphanumeric()).unwrap();
    let stop = stop.to_string();
    let cut = checkpoint.run("generate", &[&flags[..], &["--stop", &stop]].concat()).json();
    let first = text.find(&stop).unwrap();
    assert!(first <= at);
    assert_eq!(cut["text"], text[..first]);
    assert_eq!(cut["finish_reason"], "stop");
}

#[test]
fn flags_reach_the_sampler() {
    let checkpoint = Checkpoint::new();
    let run =
        |more: &[&str]| checkpoint.generate(&[&["--prompt-ids", "1", "--max-tokens", "6"], more].concat());
    assert_eq!(ids(&run(&["--logit-bias", "65=1000", "--ignore-eos"])), [65; 6]);
    let eos = format!("{EOS}=1000");
    let ended = run(&["--logit-bias", &eos]);
    assert_eq!((ids(&ended), &ended["finish_reason"]), (vec![u64::from(EOS)], &json!("stop")));
    assert_eq!(ended["text"], "", "control tokens are left out");
    assert_eq!(run(&["--logit-bias", &eos, "--special"])["text"], "<|eot_id|>");
    let later = run(&["--logit-bias", &eos, "--min-tokens", "3"]);
    assert_eq!(ids(&later).len(), 4);
    let stopped = run(&["--logit-bias", "65=1000", "--stop-token-id", "65"]);
    assert_eq!(ids(&stopped), [65]);
    let scored = run(&["--prompt-logprobs", "1"]);
    assert_eq!(scored["prompt_logprobs"], json!([null]));
}

#[test]
fn generation_config_decides_where_flags_are_silent() {
    let checkpoint = Checkpoint::new();
    checkpoint.write_json(
        "generation_config.json",
        &json!({"do_sample": false, "max_new_tokens": 3, "eos_token_id": 257}),
    );
    let answer =
        checkpoint.run("generate", &["--prompt-ids", "1", "--json", "--logit-bias", "65=1000"]).json();
    assert_eq!(ids(&answer), [65; 3]);
    let answer =
        checkpoint.run("generate", &["--prompt-ids", "1", "--json", "--logit-bias", "257=1000"]).json();
    assert_eq!(answer["finish_reason"], "stop");
}

#[test]
fn ctrl_c_ends_the_run_with_what_there_is() {
    let checkpoint = Checkpoint::with_config(json!({"max_position_embeddings": 1 << 20}));
    let flags = [
        "--prompt-ids",
        "1",
        "--ignore-eos",
        "--temperature",
        "0",
        "--logit-bias",
        "65=1000",
        "--max-tokens",
        "500000",
    ];
    let mut child = checkpoint
        .command("generate", &flags)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut start = [0; 4];
    stdout.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"AAAA");
    press_ctrl_c(&child);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with('\n') && rest.trim_end().bytes().all(|byte| byte == b'A'), "the line is ended");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn ctrl_c_before_the_first_token_ends_the_program() {
    let checkpoint = Checkpoint::new();
    let mut child =
        checkpoint.command("chat", &[]).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    press_ctrl_c(&child);
    assert_eq!(child.wait().unwrap().code(), None, "killed by the signal, as any program that waits");
}

#[test]
fn chat_from_a_pipe_answers_every_line() {
    let checkpoint = Checkpoint::new();
    let saved = checkpoint.file("talk.json");
    let input = format!("안녕\n/stats\n여러 \\\n줄\n/save {}\n/reset\n안녕\n", saved.display());
    let flags = ["--max-tokens", "6", "--temperature", "0", "--system", "짧게."];
    let run = finish(&mut checkpoint.command("chat", &flags), input.as_bytes());
    let talk: Value = serde_json::from_str(&std::fs::read_to_string(&saved).unwrap()).unwrap();
    let messages = talk["messages"].as_array().unwrap();
    let roles: Vec<&str> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
    assert_eq!(messages[3]["content"], "여러 \n줄");
    let (first, second) =
        (messages[2]["content"].as_str().unwrap(), messages[4]["content"].as_str().unwrap());
    assert_eq!(
        run.text(),
        format!("{first}\n{second}\n{first}\n"),
        "after /reset the answer is the first again"
    );
    assert!(run.stderr.contains("prefix cache"), "{}", run.stderr);
}

#[test]
fn a_second_turn_computes_only_what_is_new() {
    let checkpoint = Checkpoint::new();
    let long = "a".repeat(60);
    let input = format!("{long}\n{long}\n/stats\n");
    let run = finish(
        &mut checkpoint.command("chat", &["--max-tokens", "4", "--temperature", "0"]),
        input.as_bytes(),
    );
    run.text();
    let line = run.stderr.lines().find(|line| line.contains("last prompt")).unwrap();
    let cached: usize = line.split_whitespace().rev().find_map(|word| word.parse().ok()).unwrap();
    assert!(cached >= 64, "{line}");
}

#[test]
fn a_full_context_is_said_or_made_room_in() {
    let checkpoint = Checkpoint::new();
    let input = format!("{}\n{}\n", "a".repeat(120), "b".repeat(120));
    let flags = ["--max-tokens", "4", "--temperature", "0"];
    let run = finish(&mut checkpoint.command("chat", &flags), input.as_bytes());
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("the context is full") && run.stderr.contains("/reset"), "{}", run.stderr);
    let run =
        finish(&mut checkpoint.command("chat", &[&flags[..], &["--drop-oldest"]].concat()), input.as_bytes());
    run.text();
    assert!(run.stderr.contains("forgotten"), "{}", run.stderr);
}

#[test]
fn answers_stream_before_they_end() {
    let checkpoint = Checkpoint::with_config(json!({"max_position_embeddings": 1 << 20}));
    let flags = ["--temperature", "0", "--ignore-eos", "--logit-bias", "10=1000", "--max-tokens", "500000"];
    let mut command = checkpoint.command("chat", &flags);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"hi\n").unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap(); // token 10 is a newline: half a million of them follow
    assert_eq!(line, "\n");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn flags_that_nothing_would_read_are_refused() {
    let checkpoint = Checkpoint::new();
    checkpoint.write("one.jsonl", br#"{"messages": [{"role": "user", "content": "a"}]}"#);
    let file = checkpoint.file("one.jsonl");
    let (text, chat) = (["--prompt", "a"], ["--prompts", file.to_str().unwrap()]);
    for flag in [["--system", "b"], ["--tools", "/nowhere"], ["--chat-template", "/nowhere"]] {
        let flags = [&text[..], &flag].concat();
        checkpoint.run("generate", &flags).check_refused(&[flag[0], "--chat"]);
    }
    let flags = [&chat[..], &["--system", "b", "--max-tokens", "1", "--logprobs", "1"]].concat();
    assert_eq!(checkpoint.run("generate", &flags).json_lines().len(), 1);
    let flags = [&text[..], &["--prompt-logprobs", "1"]].concat();
    checkpoint.run("generate", &flags).check_refused(&["--json"]);
}

#[test]
fn a_conversation_ends_with_its_turn_whatever_config_json_says() {
    let checkpoint = Checkpoint::with_config(json!({"eos_token_id": 257}));
    checkpoint.write("one.jsonl", br#"{"messages": [{"role": "user", "content": "a"}]}"#);
    let file = checkpoint.file("one.jsonl");
    let flags = ["--prompts", file.to_str().unwrap(), "--temperature", "0", "--logit-bias"];
    let answer = checkpoint.run("generate", &[&flags[..], &[&format!("{EOS}=1000")]].concat()).json();
    assert_eq!((ids(&answer), &answer["finish_reason"]), (vec![u64::from(EOS)], &json!("stop")));
}

#[test]
fn a_wrong_id_in_a_file_of_prompts_is_located() {
    let checkpoint = Checkpoint::new();
    checkpoint.write("ids.jsonl", b"{\"prompt_ids\": [1]}\n{\"prompt_ids\": [1, 272]}\n");
    let file = checkpoint.file("ids.jsonl");
    let answer = checkpoint.run("generate", &["--prompts", file.to_str().unwrap()]);
    answer.check_refused(&["ids.jsonl:2", "272", "vocabulary"]);
}

#[test]
fn a_conversation_that_drops_its_beginning_leaves_room_for_answers() {
    let checkpoint = Checkpoint::new();
    let flags = ["--max-context", "128", "--drop-oldest", "--logit-bias", &format!("{}=1000", b'a')];
    // Answers of 20 tokens: without room some of them would be cut to what happens to be left.
    let flags = [&flags[..], &["--max-tokens", "20"]].concat();
    let talk = finish(&mut checkpoint.command("chat", &flags), "b\n".repeat(12).as_bytes());
    assert_eq!(talk.text(), format!("{}\n", "a".repeat(20)).repeat(12));
    assert!(talk.stderr.contains("forgotten"), "{}", talk.stderr);
}

#[test]
fn stats_after_a_reset_tell_of_an_empty_context() {
    let checkpoint = Checkpoint::new();
    let input = b"a\n/stats\n/reset\n/stats\n";
    let talk = finish(&mut checkpoint.command("chat", &["--max-tokens", "3"]), input);
    let used: Vec<&str> = talk.stderr.lines().filter(|line| line.contains("tokens used")).collect();
    assert!(
        matches!(used[..], [before, after] if !before.contains(" 0 of") && after.contains(" 0 of")),
        "{used:?}"
    );
}
