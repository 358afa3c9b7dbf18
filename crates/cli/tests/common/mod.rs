//! Tiny checkpoints made on the spot, and the program run on them.
#![allow(dead_code)] // Every test file uses some of it.
#![allow(clippy::unwrap_used)] // Helpers of tests, which clippy.toml exempts only inside of test functions.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// How Llama 3 cuts words: one of the ways that GGUF has a name for.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

pub const VOCAB_SIZE: usize = 272;
pub const BOS: u32 = 256;
pub const EOS: u32 = 258;

/// A folder with a random Llama checkpoint and a byte-level tokenizer.
pub struct Checkpoint {
    folder: TempDir,
}

/// A tensor as the file stores it.
#[derive(Clone)]
pub struct Stored {
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

impl Stored {
    pub fn f32(shape: &[usize], values: impl Iterator<Item = f32>) -> Self {
        let count = shape.iter().product();
        let data: Vec<u8> = values.take(count).flat_map(f32::to_le_bytes).collect();
        assert_eq!(data.len(), count * 4);
        Stored { dtype: "F32", shape: shape.to_vec(), data }
    }
}

/// A generator of numbers that look random and are the same every time.
fn noise(mut state: u64) -> impl Iterator<Item = f32> {
    std::iter::from_fn(move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        Some(((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.4)
    })
}

pub fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 56,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
        "vocab_size": VOCAB_SIZE, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "rope_scaling": null, "hidden_act": "silu", "tie_word_embeddings": true, "attention_bias": false,
        "mlp_bias": false, "bos_token_id": BOS, "eos_token_id": EOS, "torch_dtype": "float32"
    })
}

pub fn tensors() -> Vec<(String, Stored)> {
    let (hidden, ffn, queries, keys) = (32, 56, 48, 16);
    let mut tensors = vec![("model.embed_tokens.weight".to_string(), vec![VOCAB_SIZE, hidden])];
    for layer in 0..2 {
        let shapes = [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![queries, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, queries]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![ffn, hidden]),
            ("mlp.up_proj", vec![ffn, hidden]),
            ("mlp.down_proj", vec![hidden, ffn]),
        ];
        tensors.extend(shapes.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    tensors.push(("model.norm.weight".to_string(), vec![hidden]));
    let stored = tensors.into_iter().enumerate().map(|(seed, (name, shape))| {
        let norm = shape.len() == 1;
        let values = noise(seed as u64 + 1).map(move |x| if norm { 1.0 + x } else { x });
        (name, Stored::f32(&shape, values))
    });
    stored.collect()
}

/// A safetensors file: the length of the header, the header, the data.
pub fn safetensors(tensors: &[(String, Stored)]) -> Vec<u8> {
    let mut header = Map::new();
    let mut end = 0;
    for (name, tensor) in tensors {
        let begin = end;
        end += tensor.data.len();
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]});
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string().into_bytes();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    tensors.iter().for_each(|(_, tensor)| file.extend(&tensor.data));
    file
}

/// A tokenizer without merges: a token is a byte, ids 256 to 260 are special.
pub fn tokenizer() -> Value {
    // The GPT-2 alphabet: printable bytes stand for themselves, the others are shifted to 256 and up.
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut shifted = 256;
    let mut vocab = Map::new();
    for byte in 0..256u32 {
        let code = if printable(byte) { byte } else { shifted };
        shifted += u32::from(!printable(byte));
        vocab.insert(char::from_u32(code).unwrap().to_string(), json!(byte));
    }
    let names =
        ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"];
    let added: Vec<Value> = names
        .iter()
        .enumerate()
        .map(|(index, name)| {
            json!({"id": 256 + index, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": names[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {names[0]: {"id": names[0], "ids": [256], "tokens": [names[0]]}}
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
                  "vocab": vocab, "merges": []}
    })
}

impl Checkpoint {
    /// Everything a model folder holds.
    pub fn new() -> Self {
        let checkpoint = Self::without_tokenizer();
        checkpoint.write_json("tokenizer.json", &tokenizer());
        checkpoint.write_json(
            "tokenizer_config.json",
            &json!({"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
        );
        checkpoint
    }

    /// Configuration and weights only.
    pub fn without_tokenizer() -> Self {
        let checkpoint = Checkpoint { folder: TempDir::new().unwrap() };
        checkpoint.write_json("config.json", &config());
        checkpoint.write("model.safetensors", &safetensors(&tensors()));
        checkpoint
    }

    /// The same with some fields of the configuration changed.
    pub fn with_config(changes: Value) -> Self {
        let checkpoint = Self::new();
        let mut config = config();
        for (name, value) in changes.as_object().unwrap() {
            config[name] = value.clone();
        }
        checkpoint.write_json("config.json", &config);
        checkpoint
    }

    /// The same with other tensors.
    pub fn with_tensors(change: impl FnOnce(&mut Vec<(String, Stored)>)) -> Self {
        let checkpoint = Self::new();
        let mut tensors = tensors();
        change(&mut tensors);
        checkpoint.write("model.safetensors", &safetensors(&tensors));
        checkpoint
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.file(name), bytes).unwrap();
    }

    pub fn write_json(&self, name: &str, value: &Value) {
        self.write(name, value.to_string().as_bytes());
    }

    /// `kanana COMMAND --model FOLDER ARGS`.
    pub fn command(&self, command: &str, args: &[&str]) -> Command {
        let mut program = kanana();
        program.arg(command).arg("--model").arg(self.path()).args(args);
        program
    }

    /// Runs `kanana COMMAND --model FOLDER ARGS` with nothing on standard input.
    pub fn run(&self, command: &str, args: &[&str]) -> Finished {
        finish(&mut self.command(command, args), b"")
    }

    /// `kanana generate --json` of token ids, which must succeed.
    pub fn generate(&self, args: &[&str]) -> Value {
        let args = [&["--json", "--temperature", "0"], args].concat();
        self.run("generate", &args).json()
    }
}

/// The program, away from the user's own settings.
pub fn kanana() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kanana"));
    command.env_remove("KANANA_LOG").env("NO_COLOR", "1").env("HF_HUB_OFFLINE", "1");
    command
}

/// What the program said and how it ended.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command with this on standard input.
pub fn finish(command: &mut Command, input: &[u8]) -> Finished {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that refuses its flags does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input);
    Finished::from(child.wait_with_output().unwrap())
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Finished {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Finished {
    /// Standard output of a run that must have succeeded.
    pub fn text(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        &self.stdout
    }

    /// The same as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(self.text()).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The same as one JSON value a line.
    pub fn json_lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The run failed with exit code 1, nothing on standard output, and an error and a hint that say these words.
    #[track_caller]
    pub fn check_refused(&self, words: &[&str]) {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        assert!(self.stderr.contains("error: ") && self.stderr.contains("\n\nhint: "), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in: {}", self.stderr);
        }
    }
}

/// The ids of an answer.
pub fn ids(answer: &Value) -> Vec<u64> {
    answer["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}
