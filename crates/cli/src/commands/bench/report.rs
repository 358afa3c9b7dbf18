//! From stopwatch readings to shares of the machine.

use kanana_kernels::{Format, KvFormat};
use kanana_model::{Config, cost};
use serde_json::{Value, json};

use super::machine::Machine;
use super::measure::{Case, Figures};
use super::peers::{Peer, PeerRates, Peers};
use crate::output::{Align, Style, Table, bytes, count};

/// The medians of one case on so many threads.
pub struct Run {
    pub threads: usize,
    pub case: Case,
    pub figures: Figures,
    /// Of every file that was compared with.
    pub peers: Vec<PeerRates>,
}

/// All that was measured.
pub struct Report<'a> {
    pub model: String,
    pub config: &'a Config,
    pub format: Format,
    pub kv_format: KvFormat,
    pub isa: &'static str,
    pub repeat: usize,
    /// The keys and values of the depths are random, not computed.
    pub fill_depth: bool,
    pub peak_memory: Option<u64>, // bytes
    pub machine: Vec<Machine>,
    pub runs: Vec<Run>,
    pub peers: Option<Peers>,
}

/// Rates of one run, and what share of the machine's limits they are.
struct Rates {
    prefill_tokens_per_s: f64,
    prefill_flops_per_s: f64,
    prefill_share: f64,
    decode_tokens_per_s: f64,
    step_bytes: StepBytes,
    decode_bytes_per_s: f64,
    decode_share: f64,
}

impl Report<'_> {
    fn rates(&self, run: &Run) -> Rates {
        let Run { case, figures, .. } = run;
        let tokens = (case.prefill * case.batch) as f64;
        let prefill_flops_per_s = prefill_flops(self.config, case) / figures.prefill_s;
        let step_bytes = step_bytes(self.config, self.format, self.kv_format, case);
        let decode_bytes_per_s = step_bytes.total() / figures.step_s;
        let machine = self.machine.iter().find(|machine| machine.threads == run.threads);
        let share =
            |rate: f64, limit: fn(&Machine) -> f64| machine.map_or(f64::NAN, |machine| rate / limit(machine));
        Rates {
            prefill_tokens_per_s: tokens / figures.prefill_s,
            prefill_flops_per_s,
            prefill_share: share(prefill_flops_per_s, |machine| machine.peak.reachable()),
            decode_tokens_per_s: case.batch as f64 / figures.step_s,
            step_bytes,
            decode_bytes_per_s,
            decode_share: share(decode_bytes_per_s, |machine| machine.read_bandwidth),
        }
    }

    /// Where the keys and values of the depths come from.
    fn depth_context(&self) -> &'static str {
        if self.fill_depth { "random" } else { "computed" }
    }

    /// Every number with its unit in its name.
    pub fn to_json(&self) -> Value {
        let machine = self.machine.iter().map(|machine| {
            json!({"threads": machine.threads, "read_bandwidth_bytes_per_s": machine.read_bandwidth,
                   "arithmetic_unit": machine.peak.unit.name(),
                   "arithmetic_peak_flops_per_s": machine.peak.reachable()})
        });
        let runs = self.runs.iter().map(|run| {
            let rates = self.rates(run);
            json!({
                "threads": run.threads,
                "batch": run.case.batch,
                "depth": run.case.depth,
                "depth_context": if run.case.depth > 0 { Some(self.depth_context()) } else { None },
                "prefill": run.case.prefill,
                "decode": run.case.decode,
                "prefill_tokens_per_s": rates.prefill_tokens_per_s,
                "ttft_s": run.figures.first_token_s,
                "prefill_flops_per_s": rates.prefill_flops_per_s,
                "prefill_share_of_arithmetic_peak": rates.prefill_share,
                "decode_tokens_per_s": rates.decode_tokens_per_s,
                "decode_step_s": run.figures.step_s,
                "weight_bytes_per_step": rates.step_bytes.weights,
                "kv_bytes_per_step": rates.step_bytes.cache,
                "decode_bytes_per_s": rates.decode_bytes_per_s,
                "decode_share_of_read_bandwidth": rates.decode_share,
            })
        });
        let mut report = json!({
            "model": self.model,
            "parameters": cost::parameters(self.config).total,
            "dtype": self.format.name(),
            "kv_dtype": self.kv_format.name(),
            "weight_bytes": cost::weight_bytes(self.config, self.format),
            "instruction_set": self.isa,
            "repeat": self.repeat,
            "peak_memory_bytes": self.peak_memory,
            "machine": machine.collect::<Vec<_>>(),
            "runs": runs.collect::<Vec<_>>(),
        });
        if let Some(peers) = &self.peers {
            report["compared_with"] = self.peers_to_json(peers);
        }
        report
    }

    fn peers_to_json(&self, peers: &Peers) -> Value {
        let models = peers.peers.iter().enumerate().map(|(i, peer)| {
            let runs = self.runs.iter().map(|run| {
                let (rates, theirs) = (self.rates(run), run.peers[i]);
                json!({
                    "threads": run.threads,
                    "depth": run.case.depth,
                    "prefill": run.case.prefill,
                    "decode": run.case.decode,
                    "prefill_tokens_per_s": theirs.prefill,
                    "decode_tokens_per_s": theirs.decode,
                    "prefill_ratio": rates.prefill_tokens_per_s / theirs.prefill,
                    "decode_ratio": rates.decode_tokens_per_s / theirs.decode,
                })
            });
            json!({"weights": peer.name, "file_bytes": peer.bytes, "peak_memory_bytes": peer.peak_memory,
                   "runs": runs.collect::<Vec<_>>()})
        });
        json!({"program": peers.bench.program(), "build": peers.build, "models": models.collect::<Vec<_>>()})
    }

    /// Tables, and what their columns mean.
    pub fn to_text(&self) -> String {
        let style = Style::stdout();
        let (bold, dim, reset) = (style.bold(), style.dim(), style.reset());
        let mut text = format!(
            "{bold}{}{reset}  {} parameters, {} of weights in {}, {}\n\n",
            self.model,
            count(cost::parameters(self.config).total),
            bytes(cost::weight_bytes(self.config, self.format)),
            self.format,
            self.isa,
        );
        let mut table = Table::new(&[Align::Right; 11]);
        table.row([
            "threads",
            "batch",
            "depth",
            "prompt",
            "prefill tok/s",
            "of peak",
            "TTFT",
            "decode tok/s",
            "step",
            "KV read",
            "of bandwidth",
        ]);
        for run in &self.runs {
            let rates = self.rates(run);
            table.row([
                run.threads.to_string(),
                run.case.batch.to_string(),
                run.case.depth.to_string(),
                run.case.prefill.to_string(),
                format!("{:.1}", rates.prefill_tokens_per_s),
                format!("{:.0} %", 100.0 * rates.prefill_share),
                format!("{:.3} s", run.figures.first_token_s),
                format!("{:.2}", rates.decode_tokens_per_s),
                format!("{:.1} ms", 1000.0 * run.figures.step_s),
                bytes(rates.step_bytes.cache as u64),
                format!("{:.0} %", 100.0 * rates.decode_share),
            ]);
        }
        text += &table.render();
        text.push('\n');
        for machine in &self.machine {
            text += &format!(
                "{dim}  {} threads: {:.1} GB/s read, {:.0} G/s in {}{reset}\n",
                machine.threads,
                machine.read_bandwidth / 1e9,
                machine.peak.reachable() / 1e9,
                machine.peak.unit.name(),
            );
        }
        let peak = self.peak_memory.map_or_else(|| "unknown".into(), bytes);
        text += &format!(
            "{dim}  peak memory {peak}; medians of {}{reset}\n\
             {dim}  of peak: operations of the prompts / time / measured rate of the unit with numbers at hand{reset}\n\
             {dim}  of bandwidth: weights, keys and values read in a step / time / measured read bandwidth{reset}\n",
            self.repeat
        );
        if self.runs.iter().any(|run| run.case.depth > 0) {
            let source = match self.fill_depth {
                true => "random keys and values in the cache, not computed",
                false => "tokens computed before the clock started",
            };
            text += &format!("{dim}  depth: {source}{reset}\n");
        }
        if let Some(peers) = &self.peers {
            text += &self.peers_to_text(peers);
        }
        text
    }

    fn peers_to_text(&self, peers: &Peers) -> String {
        let style = Style::stdout();
        let (dim, reset) = (style.dim(), style.reset());
        let mut text = format!(
            "\nllama.cpp {}, the same weights in turns; how many times as fast kanana is\n\n",
            peers.build
        );
        let mut table = Table::new(&[
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Left,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Right,
        ]);
        table.row([
            "threads",
            "depth",
            "prompt",
            "weights",
            "size",
            "memory",
            "prefill tok/s",
            "kanana",
            "decode tok/s",
            "kanana",
        ]);
        for run in &self.runs {
            let ours = self.rates(run);
            for (Peer { name, bytes: size, peak_memory, .. }, theirs) in peers.peers.iter().zip(&run.peers) {
                table.row([
                    run.threads.to_string(),
                    run.case.depth.to_string(),
                    run.case.prefill.to_string(),
                    name.clone(),
                    bytes(*size),
                    peak_memory.map_or_else(|| "unknown".into(), bytes),
                    format!("{:.1}", theirs.prefill),
                    format!("{:.2} x", ours.prefill_tokens_per_s / theirs.prefill),
                    format!("{:.2}", theirs.decode),
                    format!("{:.2} x", ours.decode_tokens_per_s / theirs.decode),
                ]);
            }
        }
        text += &table.render();
        text += &format!("\n{dim}  {}; it computes its depth{reset}\n", peers.bench.program().display());
        text
    }
}

/// FLOPs of all prompts: every token sees the depth and half of its prompt on average, and only the last one needs logits.
pub fn prefill_flops(config: &Config, case: &Case) -> f64 {
    let head = 2.0 * config.vocab_size as f64 * config.hidden_size as f64;
    let per_token = cost::flops_per_token(config, case.depth + case.prefill / 2) as f64 - head;
    case.batch as f64 * (case.prefill as f64 * per_token + head)
}

/// Bytes that a step of decoding reads.
#[derive(Clone, Copy, Debug)]
pub struct StepBytes {
    pub weights: f64,
    pub cache: f64, // keys and values
}

impl StepBytes {
    pub fn total(self) -> f64 {
        self.weights + self.cache
    }
}

/// What a step of decoding reads: the weights once, and every sequence's keys and values, half-way through.
///
/// In a mixture, `batch` tokens that choose independently meet `1 - (1 - A/X)^batch` of the experts.
pub fn step_bytes(config: &Config, format: Format, kv_format: KvFormat, case: &Case) -> StepBytes {
    let counts = cost::parameters(config);
    let alone = cost::decode_bytes_per_token(config, format, 0) as f64;
    let idle = format.bytes(counts.total - counts.active) as f64;
    let experts = config.mixture.as_ref().map_or(0.0, |mixture| {
        let chosen = mixture.num_experts_per_tok as f64 / mixture.num_experts as f64;
        // `idle` is what one token leaves out: the share 1 - chosen of the experts.
        let met = 1.0 - (1.0 - chosen).powi(case.batch as i32);
        if chosen < 1.0 { idle * (met - chosen) / (1.0 - chosen) } else { 0.0 }
    });
    let positions = (case.decode_context() * case.batch) as f64;
    let cache = cost::kv_bytes_per_token(config, kv_format) as f64 * positions;
    StepBytes { weights: alone + experts, cache }
}

#[cfg(test)]
mod tests {
    use kanana_model::preset;

    use super::*;

    #[test]
    fn a_dense_step_reads_every_weight_once() {
        let config = preset("nano-2.1b").unwrap().config;
        let case = Case { depth: 400, prefill: 600, decode: 0, batch: 4 };
        let expected = 2.087e9 * 2.0 + 4.0 * 1000.0 * 131_072.0;
        assert!(
            (step_bytes(&config, Format::BF16, KvFormat::BF16, &case).total() / expected - 1.0).abs() < 1e-3
        );
    }

    #[test]
    fn a_large_batch_meets_every_expert() {
        let config = preset("1.5-15.7b-a3b").unwrap().config;
        let read = |batch| {
            step_bytes(
                &config,
                Format::BF16,
                KvFormat::BF16,
                &Case { depth: 0, prefill: 0, decode: 0, batch },
            )
            .total()
        };
        let embedding = 128_256.0 * 2048.0 * 2.0; // of which one row is read
        let counts = cost::parameters(&config);
        assert!((read(1) / (counts.active as f64 * 2.0 - embedding) - 1.0).abs() < 1e-3);
        assert!((read(200) / (counts.total as f64 * 2.0 - embedding) - 1.0).abs() < 1e-3);
    }

    #[test]
    fn prefill_counts_the_head_once_a_prompt() {
        let config = preset("nano-2.1b").unwrap().config;
        let one = prefill_flops(&config, &Case { depth: 0, prefill: 1, decode: 0, batch: 1 });
        assert!((one / cost::flops_per_token(&config, 0) as f64 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn attention_grows_with_the_depth() {
        let config = preset("nano-2.1b").unwrap().config;
        let flops = |depth| prefill_flops(&config, &Case { depth, prefill: 2, decode: 0, batch: 1 });
        // 4 FLOPs for each of 24 heads of 128, in 32 layers, for two tokens.
        assert_eq!(flops(1000) - flops(0), 2.0 * 1000.0 * 4.0 * 24.0 * 128.0 * 32.0);
    }
}
