//! A server in this process, with a small random model behind it that speaks bytes.

#![allow(dead_code, reason = "each test binary uses its part of this")]

#[path = "../../../engine/tests/world/dice.rs"]
pub mod dice;
pub mod http;

use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http::{Reply, Stream};
use kanana_engine::{Engine, EngineOptions, Pooling, SamplingParams};
use kanana_kernels::{Cpu, CpuOptions, Format, KvFormat};
use kanana_model::{Config, LoadOptions, Transformer};
use kanana_serve::{AppOptions, Capacity, Loaded, ModelSpec, ServeError, ServeOptions, serve_until};
use kanana_tokenizer::tools::ToolFormat;
use kanana_tokenizer::train::{CHAT_TEMPLATE, SPECIALS, TrainOptions, tokenizer_config};
use kanana_tokenizer::{ChatTemplate, Tokenizer, tiktoken};
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// Tokens of prompt and answer together.
pub const CONTEXT: usize = 512;

/// Tokens of more than a byte.
const LONGER: [&str; 12] =
    ["{\"", "\":", ", ", "true", "null", "ab", "abab", "가", "\"}", "123", "\n\n", "  "];

/// The end of a turn, which the random model likes no better than any other token.
pub const EOT: u32 = (256 + LONGER.len() + 6) as u32;

/// A turn and its tools in few words.
const TEMPLATE: &str = "{{- bos_token }}{%- if tools %}{%- for tool in tools %}{{ tool.function.name }} {% endfor %}{%- endif %}\
{%- for message in messages %}\
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>' + (message['content'] or '') + '<|eot_id|>' }}\
{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>' }}{%- endif %}";

/// A reply that takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// 256 bytes, [`LONGER`], control tokens.
fn tokenizer() -> Tokenizer {
    let bytes = (0..=255).map(|byte| vec![byte]);
    let longer = LONGER.iter().map(|text| text.as_bytes().to_vec());
    let ranks: Vec<Vec<u8>> = bytes.chain(longer).collect();
    let specials = SPECIALS.map(str::to_owned);
    let json = tiktoken::to_tokenizer_json(&ranks, &specials, tiktoken::LLAMA3_SPLIT);
    let config = tokenizer_config(&TrainOptions::new(ranks.len() + specials.len()), CHAT_TEMPLATE);
    Tokenizer::from_json_with_config(&json, &config).unwrap()
}

fn model() -> (Arc<Transformer>, Arc<Cpu>) {
    let config = json!({
        "model_type": "llama", "hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 12, "intermediate_size": 52, "vocab_size": 280,
        "rms_norm_eps": 1e-5, "max_position_embeddings": CONTEXT, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "hidden_act": "silu", "bos_token_id": EOT - 6, "eos_token_id": EOT,
    });
    let kernels = Arc::new(Cpu::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }));
    let config = Config::from_json_str(&config.to_string(), "tiny").unwrap();
    let options = LoadOptions { format: Format::F32, max_positions: CONTEXT };
    let model = Transformer::random(&config, &*kernels, &options, 11).unwrap();
    (Arc::new(model.with_kv_format(KvFormat::F32)), kernels)
}

fn load(options: EngineOptions) -> (Engine, Loaded) {
    let (model, kernels) = model();
    let tokenizer = tokenizer();
    let template = ChatTemplate::from_source("tiny", TEMPLATE)
        .unwrap()
        .with_special_tokens(tokenizer.special_tokens().clone());
    let loaded = Loaded {
        tokenizer,
        template,
        defaults: SamplingParams { max_tokens: Some(16), ..SamplingParams::default() },
        ends_of_turn: vec![EOT],
        max_context: CONTEXT,
        vocab_size: 280,
        tool_format: Some(ToolFormat::Kanana),
        pooling: Pooling::Mean,
    };
    (Engine::new(model, kernels, options).unwrap(), loaded)
}

/// What a test may want otherwise.
pub struct Setup {
    pub engine: EngineOptions,
    pub serve: ServeOptions,
}

/// A running server, which goes down when it is dropped.
pub struct Server {
    pub address: SocketAddr,
    /// The name of its model, which no other server of this process has.
    pub model: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Server {
    /// A server that `change` sets up.
    pub fn start(change: impl FnOnce(&mut Setup)) -> Server {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let mut setup = Setup {
            engine: EngineOptions { num_blocks: 1024, ..EngineOptions::for_context(CONTEXT, KvFormat::F32) },
            serve: ServeOptions {
                address: ([127, 0, 0, 1], 0).into(),
                tls: None,
                api_keys: Vec::new(),
                api_key_file: None,
                max_connections: 512,
                idle_timeout: Duration::from_secs(60),
                capacity: Capacity { requests: 256, memory: None, pause: Duration::from_millis(200) },
                app: AppOptions {
                    request_timeout: Duration::from_secs(60),
                    body_timeout: Duration::from_secs(10),
                    max_body: 1 << 20,
                    cors_origins: Vec::new(),
                    log_prompts: false,
                },
                grace: Duration::from_secs(10),
            },
        };
        change(&mut setup);
        let id = format!("tiny-{}", COUNT.fetch_add(1, Ordering::SeqCst));
        let Setup { engine, serve } = setup;
        let spec =
            ModelSpec { id: id.clone(), bytes: 1 << 20, load: Box::new(move || Ok(load(engine.clone()))) };
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let until = async move { drop(stopped.await) };
            serve_until(vec![spec], serve, |address| tell.send(address).unwrap(), until)
        });
        let address = told.recv().expect("the server does not listen");
        Server { address, model: id, stop: Some(stop), thread: Some(thread) }
    }

    /// Tells the server to end, and does not wait.
    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits for its end.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }

    /// A connection.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends these bytes and reads the reply.
    pub fn exchange(&self, request: &[u8]) -> Reply {
        let mut stream = self.connect();
        // A server that refuses a long body closes before it has read it.
        drop(stream.write_all(request));
        Reply::read(&mut BufReader::new(stream)).unwrap_or_else(|error| {
            panic!("{error}: {}", String::from_utf8_lossy(&request[..request.len().min(2000)]))
        })
    }

    pub fn get(&self, path: &str) -> Reply {
        self.exchange(&http::request("GET", path, &[("connection", "close")], b""))
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.exchange(&http::post(path, body.to_string().as_bytes()))
    }

    /// The answer to a request that is in order.
    pub fn ask(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body);
        assert_eq!(reply.status, 200, "{body}: {}", reply.text());
        reply.json()
    }

    /// An answer that comes as events.
    pub fn stream(&self, path: &str, body: &Value) -> Stream {
        let mut stream = self.connect();
        stream.write_all(&http::post(path, body.to_string().as_bytes())).unwrap();
        Stream::begin(stream)
    }

    /// A figure of its model at `/metrics`; 0 before it is first counted.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let of_model = format!("model_name=\"{}\"", self.model);
        let begins = |line: &&str| line.split('{').next() == Some(name) && line.contains(&of_model);
        let found = text.lines().find(begins).and_then(|line| line.rsplit(' ').next());
        found.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Nothing runs, nothing waits, no block is held: now, or soon.
    #[track_caller]
    pub fn rests(&self) {
        let levels = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"];
        let begun = Instant::now();
        // What was sent before this is with the engine when this is answered, and its figures are not of yesterday.
        let last = json!({"prompt": "x", "max_tokens": 1});
        while self.post("/v1/completions", &last).status == 429 {
            assert!(begun.elapsed() < PATIENCE, "the queue stays full");
            std::thread::sleep(Duration::from_millis(20));
        }
        while levels.iter().any(|level| self.metric(level) != 0.0) {
            assert!(begun.elapsed() < PATIENCE, "{}", self.get("/metrics").text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if !std::thread::panicking() {
            self.join();
        }
    }
}

/// A number from the environment, for runs that are longer than the usual one.
pub fn count(variable: &str, usual: usize) -> usize {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}

/// Does `work` for every index on so many threads.
pub fn in_threads(threads: usize, count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(count) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    if index >= count {
                        return;
                    }
                    work(index);
                }
            });
        }
    });
}
