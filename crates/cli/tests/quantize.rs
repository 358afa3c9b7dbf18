//! `kanana quantize`, and the folders it makes where any model could stand.
#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Checkpoint, Finished, finish, kanana};
use kanana_checkpoint::{Checkpoint as Weights, CheckpointError, SaveOptions, TensorSpec, save};
use kanana_kernels::{Cpu, Format, Kernels};
use kanana_model::{Config, optional_tensors, weight_format};
use kanana_tensor::Tensor;
use serde_json::{Value, json};

fn run(args: &[&str]) -> Finished {
    finish(kanana().args(args), b"")
}

/// `kanana quantize SOURCE DESTINATION --dtype DTYPE`, which must succeed.
fn quantize(source: &Path, destination: &Path, dtype: &str) -> Value {
    let [source, destination] = [source, destination].map(|path| path.to_str().unwrap());
    run(&["quantize", source, destination, "--dtype", dtype, "--json"]).json()
}

/// A greedy answer to token ids with the log-probabilities of many tokens, so that a last bit anywhere shows.
fn answer(model: &Path, flags: &[&str]) -> Value {
    let model = model.to_str().unwrap();
    let prompt = ["--prompt-ids", "1,7,30,2", "--max-tokens", "8", "--temperature", "0", "--ignore-eos"];
    let shown = ["--json", "--logprobs", "20", "--prompt-logprobs", "20"];
    let answer = run(&[&["generate", "--model", model], &prompt[..], &shown, flags].concat()).json();
    json!([answer["ids"], answer["logprobs"], answer["prompt_logprobs"]])
}

/// Tiny models of every family, tied and untied.
fn families() -> Vec<PathBuf> {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/goldens");
    ["llama-tied", "llama-biased-sharded", "mixtral", "qwen2-moe", "qwen3-moe-some-dense", "qwen3-tied"]
        .map(|name| goldens.join(name))
        .into()
}

#[test]
fn a_stored_model_is_the_one_that_is_quantised_while_loading() {
    let made = tempfile::tempdir().unwrap();
    for source in families() {
        for dtype in ["q8", "q4"] {
            let name = format!("{}-{dtype}", source.file_name().unwrap().display());
            let stored = made.path().join(&name);
            quantize(&source, &stored, dtype);
            let expected = answer(&source, &["--dtype", dtype]);
            assert_eq!(answer(&stored, &[]), expected, "{name}");
            assert_eq!(answer(&stored, &["--dtype", dtype, "--threads", "3"]), expected, "{name}");
            run(&["inspect", stored.to_str().unwrap()]).text();
        }
    }
}

#[test]
fn the_bytes_are_those_that_the_kernels_pack_and_the_rest_is_as_it_was() {
    let kernels = Cpu::default();
    let made = tempfile::tempdir().unwrap();
    for source in families() {
        let stored = made.path().join(source.file_name().unwrap());
        quantize(&source, &stored, "q4");
        let [before, after] = [&source, &stored].map(|path| Weights::open(path).unwrap());
        for name in after.names() {
            let tensor = before.tensor(name).unwrap();
            let info = after.get(name).unwrap();
            assert_eq!(info.shape, tensor.shape(), "{name}");
            let format = weight_format(name, Format::Q4);
            let expected = match info.packing {
                Some(packing) => {
                    assert_eq!((packing.format.as_str(), packing.version), (format.name(), 1), "{name}");
                    kernels.pack(&tensor, format).unwrap().packed().unwrap().panels
                }
                None => {
                    assert!(tensor.shape().len() == 1 || !format.is_quantised(), "{name}");
                    tensor
                }
            };
            assert_eq!(after.packed(name).unwrap().as_bytes(), expected.as_bytes(), "{name}");
        }
    }
}

/// A mixture that has what DeepSeek-V3 adds to the scores of its routers: it is used, and it comes along.
#[test]
fn the_bias_of_a_router_is_kept_as_it_is() {
    let plain = families().swap_remove(2);
    let made = tempfile::tempdir().unwrap();
    let [source, stored, folder] = ["source", "stored", "folder"].map(|name| made.path().join(name));
    let before = Weights::open(&plain).unwrap();
    let config = Config::from_dir(&plain).unwrap();
    let mut tensors: BTreeMap<String, Tensor> =
        before.names().map(|name| (name.to_owned(), before.tensor(name).unwrap())).collect();
    for (i, (name, shape)) in optional_tensors(&config).into_iter().enumerate() {
        let values: Vec<f32> = (0..shape[0]).map(|x| 0.3001 * ((x + i) % 3) as f32).collect();
        tensors.insert(name, Tensor::from_slice(&shape, &values).unwrap());
    }
    let specs: Vec<TensorSpec> = tensors.iter().map(|(name, x)| TensorSpec::of(name, x)).collect();
    let fetch = |name: &str| Ok::<_, CheckpointError>(tensors[name].clone());
    save(&source, &specs, fetch, &SaveOptions::default()).unwrap();
    fs::copy(plain.join("config.json"), source.join("config.json")).unwrap();

    assert_ne!(answer(&source, &["--dtype", "f32"]), answer(&plain, &["--dtype", "f32"]));
    quantize(&source, &stored, "q8");
    assert_eq!(answer(&stored, &[]), answer(&source, &["--dtype", "q8"]));
    let [source, folder] = [&source, &folder].map(|path| path.to_str().unwrap());
    run(&["convert", source, folder, "--dtype", "bf16"]).text();
    for there in [stored.as_path(), Path::new(folder)] {
        let weights = Weights::open(there).unwrap();
        for (name, _) in optional_tensors(&config) {
            let bias = weights.tensor(&name).unwrap();
            assert_eq!(bias.as_slice::<f32>().unwrap(), tensors[&name].as_slice::<f32>().unwrap(), "{name}");
        }
    }
    let file = made.path().join("file.gguf");
    run(&["convert", source, file.to_str().unwrap()]).check_refused(&["e_score_correction_bias", "no place"]);
}

#[test]
fn everything_beside_the_weights_comes_along() {
    let checkpoint = Checkpoint::with_config(json!({"unsloth_version": "kept"}));
    checkpoint.write_json("generation_config.json", &json!({"temperature": 0.5}));
    checkpoint.write("chat_template.jinja", b"{{ messages[0].content }}");
    checkpoint.write("LICENSE", b"all rights");
    checkpoint.write("training_args.bin", b"\x80\x02");
    let stored = checkpoint.file("stored");
    let told = quantize(checkpoint.path(), &stored, "q8");
    assert!(told["bytes_after"].as_u64() < told["bytes_before"].as_u64(), "{told}");
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
        "LICENSE",
    ] {
        assert_eq!(fs::read(stored.join(name)).unwrap(), fs::read(checkpoint.file(name)).unwrap(), "{name}");
    }
    assert!(!stored.join("training_args.bin").exists());
    let read = |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let mut config = read(stored.join("config.json"));
    let added = config.as_object_mut().unwrap().remove("quantization_config").unwrap();
    assert_eq!(added, json!({"quant_method": "kanana", "format": "q8", "version": 1}));
    assert_eq!(config, read(checkpoint.file("config.json")));

    let text =
        ["generate", "--model", stored.to_str().unwrap(), "--prompt", "옛날 옛적에", "--max-tokens", "4"];
    run(&text).text();
    let found = run(&["inspect", stored.to_str().unwrap()]);
    for words in ["F32, q8", "quantised", "bits a weight", "all there"] {
        assert!(found.text().contains(words), "{words:?} is not in:\n{}", found.stdout);
    }
}

#[test]
fn a_gguf_file_is_a_source_unless_it_is_quantised() {
    let checkpoint = Checkpoint::new();
    let folder = checkpoint.path().to_str().unwrap();
    let (plain, quantised) = (checkpoint.file("plain.gguf"), checkpoint.file("quantised.gguf"));
    run(&["convert", folder, plain.to_str().unwrap()]).text();
    run(&["convert", folder, quantised.to_str().unwrap(), "--dtype", "q8_0"]).text();
    let stored = checkpoint.file("stored");
    quantize(&plain, &stored, "q4");
    assert_eq!(answer(&stored, &[]), answer(checkpoint.path(), &["--dtype", "q4"]));
    assert!(stored.join("tokenizer.json").exists());
    let refused = |source: &Path| {
        let [source, new] = [source, &checkpoint.file("new")].map(|path| path.to_str().unwrap().to_owned());
        run(&["quantize", &source, &new, "--dtype", "q8"]).check_refused(&["quantised already", "made from"]);
        assert!(!checkpoint.file("new").exists());
    };
    refused(&quantised);
    refused(&stored);
}

#[test]
fn a_stored_model_stands_wherever_a_model_does() {
    let checkpoint = Checkpoint::new();
    let stored = checkpoint.file("stored");
    quantize(checkpoint.path(), &stored, "q4");
    let [original, stored] = [checkpoint.path(), &stored].map(|path| path.to_str().unwrap());
    finish(kanana().args(["chat", "--model", stored, "--max-tokens", "3"]), b"hello\n").text();
    run(&["tokenize", "--model", stored, "hello"]).text();
    let bench = ["--prefill", "10", "--decode", "2", "--repeat", "1", "--threads", "1", "--json"];
    assert_eq!(run(&[&["bench", "--model", stored], &bench[..]].concat()).json()["dtype"], "q4");
    // A draft of another format changes the speed and nothing else.
    for (model, draft) in [(original, stored), (stored, original), (stored, stored)] {
        let plain = ["generate", "--model", model, "--prompt-ids", "1,2,3", "--max-tokens", "9", "--json"];
        let draft = format!("draft:{draft}");
        let [ids, drafted] = [&[][..], &["--speculate", &draft]]
            .map(|flags| run(&[&plain[..], &["--temperature", "0"], flags].concat()).json()["ids"].take());
        assert_eq!(ids, drafted, "{model} with {draft}");
    }
}

#[test]
fn a_source_that_cannot_be_read_leaves_nothing() {
    let checkpoint = Checkpoint::with_tensors(|tensors| tensors[7].1.dtype = "I32");
    let new = checkpoint.file("new");
    run(&["quantize", checkpoint.path().to_str().unwrap(), new.to_str().unwrap(), "--dtype", "q4"])
        .check_refused(&["I32", "expected F32"]);
    assert!(!new.exists());
}

#[test]
fn nothing_is_overwritten() {
    let checkpoint = Checkpoint::new();
    let folder = checkpoint.path().to_str().unwrap();
    let [there, file, empty] = ["there", "file", "empty"].map(|name| checkpoint.file(name));
    fs::create_dir(&there).unwrap();
    fs::write(there.join("mine.txt"), "mine").unwrap();
    fs::write(&file, "mine").unwrap();
    for path in [&there, &file, &checkpoint.path().to_owned()] {
        run(&["quantize", folder, path.to_str().unwrap(), "--dtype", "q4"])
            .check_refused(&["is there already", "another destination"]);
    }
    assert_eq!(fs::read_dir(&there).unwrap().count(), 1);
    fs::create_dir(&empty).unwrap();
    quantize(checkpoint.path(), &empty, "q4");
}

/// Whatever the moment: the folder is the whole model, or no model.
#[test]
fn a_run_that_is_killed_leaves_nothing_that_looks_whole() {
    let checkpoint = Checkpoint::new();
    let expected = answer(checkpoint.path(), &["--dtype", "q4"]);
    for delay in [0, 1, 2, 4, 8, 16, 64] {
        let stored = checkpoint.file(&format!("stored-{delay}"));
        let mut child = kanana()
            .arg("quantize")
            .args([checkpoint.path(), &stored])
            .args(["--dtype", "q4"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        // It may have ended by itself.
        let _ = child.kill();
        child.wait().unwrap();
        let generate = ["generate", "--prompt-ids", "1", "--max-tokens", "1", "--model"];
        let outcome = run(&[&generate[..], &[stored.to_str().unwrap()]].concat());
        match outcome.code {
            Some(0) => assert_eq!(answer(&stored, &[]), expected, "after {delay} ms"),
            _ => outcome.check_refused(&[]),
        }
    }
}

#[test]
fn a_stored_format_is_not_changed_on_the_way() {
    let checkpoint = Checkpoint::new();
    let stored = checkpoint.file("stored");
    quantize(checkpoint.path(), &stored, "q4");
    let stored = stored.to_str().unwrap();
    for dtype in ["q8", "bf16", "f32"] {
        run(&["generate", "--model", stored, "--prompt-ids", "1", "--dtype", dtype]).check_refused(&[
            "stored in q4",
            &format!("leave out --dtype {dtype}"),
            "kanana convert",
        ]);
    }
    let ids = checkpoint.file("ids.txt");
    fs::write(&ids, "1 2 3").unwrap();
    let ids = ids.to_str().unwrap();
    run(&["compare", stored, "--dtype-b", "f32", "--ids", ids]).check_refused(&["stored in q4"]);
    run(&["bench", "--model", stored, "--dtype", "q8"]).check_refused(&["stored in q4"]);
}

#[test]
fn a_stored_model_unpacks_into_numbers() {
    let checkpoint = Checkpoint::new();
    let [stored, unpacked] = ["stored", "unpacked"].map(|name| checkpoint.file(name));
    quantize(checkpoint.path(), &stored, "q4");
    let [from, to] = [&stored, &unpacked].map(|path| path.to_str().unwrap());
    run(&["convert", from, to, "--dtype", "f32"]).text();
    assert!(run(&["inspect", to]).text().contains("all there"));
    fs::write(checkpoint.file("ids.txt"), (3..200).map(|id| format!("{id} ")).collect::<String>()).unwrap();
    let ids = checkpoint.file("ids.txt");
    let kl = |a: &str, b: &str| {
        let found = run(&["compare", a, b, "--ids", ids.to_str().unwrap(), "--json"]).json();
        found["kl_mean"].as_f64().unwrap()
    };
    // Only the rounding of inputs to 8 bits is between the two; between stored and original is that of the weights too.
    let (same, other) = (kl(to, from), kl(checkpoint.path().to_str().unwrap(), from));
    assert!(same < other / 10.0, "{same} {other}");
    run(&["convert", from, &format!("{to}.gguf")]).check_refused(&["quantised", "folder"]);
}

/// The header of a stored model with a change, in as many bytes as before.
fn alter(stored: &Path, change: impl Fn(&mut Value)) {
    let file = stored.join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (text, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let mut header: Value = serde_json::from_slice(text).unwrap();
    change(&mut header);
    let text = header.to_string().into_bytes();
    fs::write(&file, [&(text.len() as u64).to_le_bytes()[..], &text, data].concat()).unwrap();
}

#[test]
fn broken_stored_models_are_refused_by_name() {
    const NAME: &str = "model.layers.1.mlp.up_proj.weight";
    let checkpoint = Checkpoint::new();
    let check = |case: &str, change: &dyn Fn(&Path), expected: &[&str]| {
        let stored = checkpoint.file(case);
        quantize(checkpoint.path(), &stored, "q4");
        change(&stored);
        let model = stored.to_str().unwrap();
        run(&["generate", "--model", model, "--prompt-ids", "1"]).check_refused(expected);
        run(&["convert", model, &format!("{model}-unpacked"), "--dtype", "f32"]).check_refused(expected);
        assert_eq!(run(&["inspect", model]).code, Some(1), "{case}");
    };
    let line = |case: &str, text: &str, expected: &[&str]| {
        let named = [&[NAME, "model.safetensors"], expected].concat();
        check(case, &|stored| alter(stored, |header| header["__metadata__"][NAME] = text.into()), &named);
    };
    line("version", "kanana q4 v2 56x32", &["q4 in version 2", "version 1", "kanana quantize"]);
    line("unknown", "kanana q3 v1 56x32", &["q3 in version 1"]);
    line("other", "kanana q8 v1 56x32", &["56x32", "bytes of shape"]);
    line("larger", "kanana q4 v1 88x32", &["[88, 32]", "[56, 32]"]);
    line("same-panels", "kanana q4 v1 57x32", &["[57, 32]", "[56, 32]"]);
    line("endless", "kanana q4 v1 18446744073709551615x18446744073709551615", &["18446744073709551615"]);
    line("garbled", "kanana q4 v1", &["kanana q4 v1", "expected such as", "kanana quantize"]);
    line("foreign", "made by somebody", &["has shape [4, 576]", "[56, 32]"]);
    let swap = |header: &mut Value| header[NAME]["shape"].as_array_mut().unwrap().reverse();
    check(
        "swapped",
        &|stored| alter(stored, swap),
        &[NAME, "model.safetensors", "bytes of shape", "q4 v1 56x32"],
    );
    let signed = |header: &mut Value| header[NAME]["dtype"] = "I8".into();
    check("dtype", &|stored| alter(stored, signed), &[NAME, "model.safetensors", "I8", "expected U8"]);
    let cut = |stored: &Path| {
        let file = fs::File::options().write(true).open(stored.join("model.safetensors")).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    };
    check("cut", &cut, &["model.safetensors", "cut short inside tensor"]);

    let config = |case: &str, object: Value, expected: &[&str]| {
        let change = |stored: &Path| {
            let path = stored.join("config.json");
            let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            config["quantization_config"] = object.clone();
            fs::write(path, config.to_string()).unwrap();
        };
        let stored = checkpoint.file(case);
        quantize(checkpoint.path(), &stored, "q4");
        change(&stored);
        run(&["generate", "--model", stored.to_str().unwrap(), "--prompt-ids", "1"]).check_refused(expected);
    };
    config("no-object", Value::Null, &["model.embed_tokens.weight", "stored as q8", "config.json"]);
    let object =
        |format: &str, version: u64| json!({"quant_method": "kanana", "format": format, "version": version});
    config("other-object", object("q8", 1), &["q_proj", "stored as q4", "expected q8"]);
    config("later", object("q4", 2), &["quantization_config.version", "is 2, expected 1"]);
    let unpacked = Checkpoint::with_config(json!({"quantization_config": object("q4", 1)}));
    unpacked.run("generate", &["--prompt-ids", "1"]).check_refused(&["stored as F32", "expected q8"]);
    config("strange", object("q2", 1), &["quantization_config.format", "q8"]);
    config("foreign-object", json!({"quant_method": "awq"}), &["quantization_config.quant_method", "awq"]);
}
