//! What Prometheus scrapes, under vLLM's names where vLLM has one.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::models::Model;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByModel {
    model_name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    model_name: String,
    finished_reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStatus {
    path: String,
    status: u16,
}

type Seconds = Family<ByModel, Histogram, fn() -> Histogram>;
type Level = Family<ByModel, Gauge<f64, std::sync::atomic::AtomicU64>>;
type Count = Family<ByModel, Counter>;

/// All counters of the process: one server runs in it.
struct Metrics {
    registry: Registry,
    running: Level,
    waiting: Level,
    kv_cache_usage: Level,
    prefix_queries: Count,
    prefix_hits: Count,
    preemptions: Count,
    prompt_tokens: Count,
    generation_tokens: Count,
    success: Family<ByReason, Counter>,
    aborted: Count,
    time_to_first_token: Seconds,
    inter_token_latency: Seconds,
    request_latency: Seconds,
    http: Family<ByStatus, Counter>,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

fn seconds() -> Histogram {
    let edges =
        [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
    Histogram::new(edges)
}

impl Metrics {
    fn new() -> Self {
        let mut registry = Registry::default();
        fn add<M: EncodeMetric + Clone + Send + Sync + std::fmt::Debug + 'static>(
            registry: &mut Registry,
            name: &str,
            help: &str,
            metric: M,
        ) -> M {
            registry.register(name, help, metric.clone());
            metric
        }
        let timer = || Seconds::new_with_constructor(seconds as fn() -> Histogram);
        let r = &mut registry;
        Metrics {
            running: add(r, "vllm:num_requests_running", "Sequences that hold KV blocks", Level::default()),
            waiting: add(r, "vllm:num_requests_waiting", "Sequences that wait for a place", Level::default()),
            kv_cache_usage: add(
                r,
                "vllm:kv_cache_usage_perc",
                "Share of the KV blocks in use",
                Level::default(),
            ),
            prefix_queries: add(
                r,
                "vllm:prefix_cache_queries",
                "Tokens looked up in the prefix cache",
                Count::default(),
            ),
            prefix_hits: add(r, "vllm:prefix_cache_hits", "Tokens found there", Count::default()),
            preemptions: add(
                r,
                "vllm:num_preemptions",
                "Sequences that gave up their blocks",
                Count::default(),
            ),
            prompt_tokens: add(r, "vllm:prompt_tokens", "Tokens of prompts", Count::default()),
            generation_tokens: add(r, "vllm:generation_tokens", "Tokens generated", Count::default()),
            success: add(r, "vllm:request_success", "Answers that ended, by the reason", Family::default()),
            aborted: add(
                r,
                "kanana:request_aborted",
                "Answers whose client went away, or that failed",
                Count::default(),
            ),
            time_to_first_token: add(
                r,
                "vllm:time_to_first_token_seconds",
                "From the request to its first token",
                timer(),
            ),
            inter_token_latency: add(
                r,
                "vllm:inter_token_latency_seconds",
                "Between two tokens of an answer",
                timer(),
            ),
            request_latency: add(
                r,
                "vllm:e2e_request_latency_seconds",
                "From the request to the end of its answer",
                timer(),
            ),
            http: add(r, "kanana:http_responses", "Responses by path and status", Family::default()),
            registry,
        }
    }
}

/// Everything, in the text format of OpenMetrics.
pub fn render(models: &[Arc<Model>]) -> String {
    // Two at once would both raise a counter by what is missing.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let metrics = &*METRICS;
    for model in models {
        let (label, stats) = (ByModel { model_name: model.id.clone() }, model.handle.stats());
        metrics.running.get_or_create(&label).set(stats.running as f64);
        metrics.waiting.get_or_create(&label).set(stats.waiting as f64);
        let used = (stats.num_blocks - stats.free_blocks) as f64 / stats.num_blocks.max(1) as f64;
        metrics.kv_cache_usage.get_or_create(&label).set(used);
        let raise = |family: &Count, to: u64| {
            let counter = family.get_or_create(&label);
            counter.inc_by(to.saturating_sub(counter.get()));
        };
        raise(&metrics.prefix_queries, stats.looked_up_tokens);
        raise(&metrics.prefix_hits, stats.cached_tokens);
        raise(&metrics.preemptions, stats.preemptions);
    }
    let mut text = String::new();
    match encode(&mut text, &metrics.registry) {
        Ok(()) => text,
        Err(error) => format!("# {error}\n"),
    }
}

/// Counts a response.
pub fn count_response(path: &str, status: u16) {
    METRICS.http.get_or_create(&ByStatus { path: path.to_owned(), status }).inc();
}

/// Watches one answer.
pub struct Observer {
    label: ByModel,
    started: Instant,
    last: Option<Instant>,
    ended: bool,
}

impl Observer {
    /// The request has come.
    pub fn start(model: &str, prompt_tokens: usize) -> Self {
        let label = ByModel { model_name: model.to_owned() };
        METRICS.prompt_tokens.get_or_create(&label).inc_by(prompt_tokens as u64);
        Observer { label, started: Instant::now(), last: None, ended: false }
    }

    /// Tokens have come.
    pub fn step(&mut self, tokens: usize) {
        if tokens == 0 {
            return;
        }
        let now = Instant::now();
        METRICS.generation_tokens.get_or_create(&self.label).inc_by(tokens as u64);
        let (timer, since) = match self.last {
            None => (&METRICS.time_to_first_token, self.started),
            Some(last) => (&METRICS.inter_token_latency, last),
        };
        timer.get_or_create(&self.label).observe(elapsed(since, now));
        self.last = Some(now);
    }

    /// The answer is whole.
    pub fn finish(&mut self, finished_reason: &'static str) {
        self.ended = true;
        let model_name = self.label.model_name.clone();
        METRICS.success.get_or_create(&ByReason { model_name, finished_reason }).inc();
        METRICS.request_latency.get_or_create(&self.label).observe(elapsed(self.started, Instant::now()));
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        if !self.ended {
            METRICS.aborted.get_or_create(&self.label).inc();
        }
    }
}

fn elapsed(from: Instant, to: Instant) -> f64 {
    to.checked_duration_since(from).unwrap_or(Duration::ZERO).as_secs_f64()
}
