//! Whatever is wrong with a checkpoint or a request, the program says what, and what to do about it.

mod common;

use std::fs::{self, File, OpenOptions};
use std::process::Stdio;

use common::{Checkpoint, Stored, VOCAB_SIZE, finish, kanana, tokenizer};
use serde_json::json;

/// Flags of a run that would succeed on a sound checkpoint.
const RUN: &[&str] = &["--prompt-ids", "1,2", "--max-tokens", "2", "--temperature", "0"];

#[test]
fn a_sound_checkpoint_runs() {
    Checkpoint::new().run("generate", RUN).text();
}

#[test]
fn a_folder_that_is_not_there() {
    let run = finish(kanana().args(["generate", "--model", "./no/such/folder"]).args(RUN), b"");
    run.check_refused(&["./no/such/folder"]);
}

#[test]
fn a_model_that_was_never_downloaded_while_offline() {
    let home = tempfile::tempdir().unwrap();
    let run =
        finish(kanana().env("HF_HOME", home.path()).args(["generate", "--model", "o/n"]).args(RUN), b"");
    run.check_refused(&["o/n", "HF_HUB_OFFLINE"]);
}

#[test]
fn a_folder_without_weights() {
    let checkpoint = Checkpoint::new();
    fs::remove_file(checkpoint.file("model.safetensors")).unwrap();
    checkpoint.run("generate", RUN).check_refused(&["model.safetensors"]);
}

#[test]
fn a_folder_without_config() {
    let checkpoint = Checkpoint::new();
    fs::remove_file(checkpoint.file("config.json")).unwrap();
    checkpoint.run("generate", RUN).check_refused(&["config.json"]);
}

#[test]
fn a_missing_shard() {
    let checkpoint = Checkpoint::new();
    fs::rename(checkpoint.file("model.safetensors"), checkpoint.file("model-00001-of-00002.safetensors"))
        .unwrap();
    let mut map = json!({});
    for (name, _) in common::tensors() {
        map[name] = json!("model-00001-of-00002.safetensors");
    }
    map["model.norm.weight"] = json!("model-00002-of-00002.safetensors");
    checkpoint.write_json("model.safetensors.index.json", &json!({"metadata": {}, "weight_map": map}));
    checkpoint.run("generate", RUN).check_refused(&["model-00002-of-00002.safetensors", "missing"]);
}

#[test]
fn a_truncated_file() {
    let checkpoint = Checkpoint::new();
    let file = OpenOptions::new().write(true).open(checkpoint.file("model.safetensors")).unwrap();
    file.set_len(file.metadata().unwrap().len() - 10).unwrap();
    checkpoint.run("generate", RUN).check_refused(&["model.safetensors", "cut short", "model.norm.weight"]);
}

#[test]
fn a_header_that_is_larger_than_the_file() {
    let checkpoint = Checkpoint::new();
    checkpoint.write("model.safetensors", &u64::MAX.to_le_bytes());
    checkpoint.run("generate", RUN).check_refused(&["model.safetensors", "header"]);
}

#[test]
fn a_wrong_shape() {
    let checkpoint = Checkpoint::with_tensors(|tensors| {
        let tensor =
            &mut tensors.iter_mut().find(|(name, _)| name.ends_with("1.self_attn.k_proj.weight")).unwrap().1;
        tensor.shape.reverse();
    });
    checkpoint.run("generate", RUN).check_refused(&[
        "model.layers.1.self_attn.k_proj.weight",
        "[32, 16]",
        "[16, 32]",
    ]);
}

#[test]
fn a_wrong_dtype() {
    let checkpoint = Checkpoint::with_tensors(|tensors| {
        let tensor = &mut tensors.last_mut().unwrap().1;
        *tensor = Stored { dtype: "I64", shape: tensor.shape.clone(), data: tensor.data.repeat(2) };
    });
    checkpoint.run("generate", RUN).check_refused(&["model.norm.weight", "I64"]);
}

#[test]
fn a_missing_tensor() {
    let checkpoint =
        Checkpoint::with_tensors(|tensors| tensors.retain(|(name, _)| name != "model.norm.weight"));
    checkpoint.run("generate", RUN).check_refused(&["model.norm.weight", "missing"]);
}

#[test]
fn an_extra_tensor() {
    let checkpoint = Checkpoint::with_tensors(|tensors| {
        let extra = tensors.last().unwrap().1.clone();
        tensors.push(("model.layers.0.self_attn.q_norm.weight".to_string(), extra));
    });
    checkpoint.run("generate", RUN).check_refused(&["model.layers.0.self_attn.q_norm.weight"]);
}

#[test]
fn pickled_weights_are_never_opened() {
    let checkpoint = Checkpoint::new();
    fs::rename(checkpoint.file("model.safetensors"), checkpoint.file("pytorch_model.bin")).unwrap();
    checkpoint.run("generate", RUN).check_refused(&["pickle"]);
}

#[test]
fn an_unknown_rope_type() {
    let scaling = json!({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}});
    Checkpoint::with_config(scaling).run("generate", RUN).check_refused(&["rope_type", "spiral"]);
}

#[test]
fn an_unknown_activation() {
    Checkpoint::with_config(json!({"hidden_act": "relu7"}))
        .run("generate", RUN)
        .check_refused(&["hidden_act", "relu7"]);
}

#[test]
fn a_field_that_would_change_the_mathematics() {
    let changed = json!({"logit_softcapping": 30.0});
    Checkpoint::with_config(changed).run("generate", RUN).check_refused(&["logit_softcapping"]);
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_embedding() {
    let checkpoint = Checkpoint::new();
    let mut larger = tokenizer();
    larger["model"]["vocab"]["beyond"] = json!(VOCAB_SIZE);
    checkpoint.write_json("tokenizer.json", &larger);
    checkpoint.run("generate", RUN).check_refused(&["tokenizer", "272"]);
}

#[test]
fn a_broken_tokenizer() {
    let checkpoint = Checkpoint::new();
    checkpoint.write("tokenizer.json", b"{\"version\": ");
    checkpoint.run("generate", RUN).check_refused(&["tokenizer.json"]);
}

#[test]
fn text_without_a_tokenizer() {
    let checkpoint = Checkpoint::without_tokenizer();
    checkpoint.run("generate", &["--prompt", "안녕"]).check_refused(&["tokenizer.json", "--prompt-ids"]);
    checkpoint.run("chat", &[]).check_refused(&["tokenizer.json"]);
}

#[test]
fn an_empty_prompt() {
    let checkpoint = Checkpoint::new();
    checkpoint.run("generate", &["--prompt", ""]).check_refused(&["empty"]);
    checkpoint.run("generate", &["--prompt-ids", " "]).check_refused(&["empty"]);
    checkpoint.run("generate", &[]).check_refused(&["empty"]); // nothing on standard input
}

#[test]
fn a_prompt_longer_than_the_context() {
    let ids = vec!["7"; 300].join(",");
    let checkpoint = Checkpoint::new();
    checkpoint.run("generate", &["--prompt-ids", &ids]).check_refused(&["300", "256"]);
    checkpoint
        .run("generate", &["--prompt-ids", "1,2,3,4,5", "--max-context", "5"])
        .check_refused(&["5", "--max-context"]);
}

#[test]
fn a_context_longer_than_the_model_was_made_for() {
    Checkpoint::new()
        .run("generate", &[RUN, &["--max-context", "257"]].concat())
        .check_refused(&["257", "256"]);
}

#[test]
fn a_token_beyond_the_vocabulary() {
    Checkpoint::new().run("generate", &["--prompt-ids", "1,272"]).check_refused(&["272"]);
}

#[test]
fn input_that_is_not_utf8() {
    let checkpoint = Checkpoint::new();
    let cp949 = b"\xb0\xa1\xb3\xaa"; // 가나
    checkpoint.write("prompt.txt", cp949);
    let file = checkpoint.file("prompt.txt");
    checkpoint.run("generate", &["--file", file.to_str().unwrap()]).check_refused(&[
        "prompt.txt",
        "UTF-8",
        "iconv",
    ]);
    finish(&mut checkpoint.command("generate", &[]), cp949).check_refused(&["standard input", "UTF-8"]);
    finish(&mut checkpoint.command("tokenize", &[]), cp949).check_refused(&["standard input", "UTF-8"]);
    finish(&mut checkpoint.command("chat", &[]), cp949).check_refused(&["line 1", "UTF-8"]);
}

#[test]
fn a_template_that_raises() {
    let checkpoint = Checkpoint::new();
    checkpoint.write("chat_template.jinja", b"{{ raise_exception('no chat today') }}");
    let run = checkpoint.run("generate", &["--chat", "--prompt", "hi"]);
    run.check_refused(&["no chat today"]);
}

#[test]
fn a_template_that_never_ends() {
    let checkpoint = Checkpoint::new();
    let endless = b"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    checkpoint.write("chat_template.jinja", endless);
    checkpoint.run("generate", &["--chat", "--prompt", "hi"]).check_refused(&["template"]);
}

#[test]
fn weights_that_are_not_numbers() {
    let checkpoint = Checkpoint::with_tensors(|tensors| {
        let norm = &mut tensors.last_mut().unwrap().1;
        *norm = Stored::f32(&norm.shape.clone(), std::iter::repeat(f32::NAN));
    });
    checkpoint.run("generate", RUN).check_refused(&["not finite"]);
}

#[test]
fn not_enough_memory_is_said_before_loading() {
    // The header promises more than the file holds would be an error of the file: so the limit is low instead.
    let checkpoint = Checkpoint::new();
    let run = checkpoint.run("generate", &[RUN, &["--memory-limit", "20KiB", "--dtype", "f32"]].concat());
    run.check_refused(&["20.00 KiB", "weights", "f32", "q4", "smaller model"]);
}

#[test]
fn a_full_disk() {
    let Ok(full) = File::options().write(true).open("/dev/full") else {
        eprintln!("skipped: no /dev/full");
        return;
    };
    let checkpoint = Checkpoint::new();
    let output =
        checkpoint.command("generate", RUN).stdout(Stdio::from(full)).stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("standard output") && error.contains("hint: free some space"), "{error}");
}

#[test]
fn a_reader_that_goes_away() {
    let checkpoint = Checkpoint::new();
    let mut child = checkpoint
        .command("generate", &["--prompt-ids", "1", "--max-tokens", "200", "--ignore-eos"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !error.contains("error"), "{error}");
}

#[test]
fn a_bad_line_in_a_file_of_prompts() {
    let checkpoint = Checkpoint::new();
    checkpoint.write("prompts.jsonl", b"{\"prompt\": \"a\"}\n\n{\"promt\": \"b\"}\n");
    let file = checkpoint.file("prompts.jsonl");
    checkpoint
        .run("generate", &["--prompts", file.to_str().unwrap()])
        .check_refused(&["prompts.jsonl:3", "promt"]);
}

#[test]
fn flags_that_contradict_each_other_are_usage_errors() {
    let check = |args: &[&str]| assert_eq!(finish(kanana().args(args), b"").code, Some(2), "{args:?}");
    check(&[]);
    check(&["generate", "--model", "m", "--prompt", "a", "--prompt-ids", "1"]);
    check(&["generate", "--model", "m", "--top-p", "1.5"]);
    check(&["generate", "--model", "m", "--temperature", "-1"]);
    check(&["generate", "--model", "m", "--threads", "0"]);
    check(&["generate", "--model", "m", "--yarn", "--rope-scaling", "f"]);
    check(&["bench"]);
    check(&["bench", "--random", "nano-2.1b", "--model", "m"]);
    check(&["generate", "--model", "m", "--dtype", "f64"]);
}
