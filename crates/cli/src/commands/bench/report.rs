//! From stopwatch readings to shares of the machine.

use kanana_kernels::{Format, KvFormat};
use kanana_model::{Config, cost};
use serde_json::{Value, json};

use super::Machine;
use super::measure::{Case, Figures};
use crate::output::{Align, Style, Table, bytes, count};

/// The medians of one case on so many threads.
pub struct Run {
    pub threads: usize,
    pub case: Case,
    pub figures: Figures,
}

/// All that was measured.
pub struct Report<'a> {
    pub model: String,
    pub config: &'a Config,
    pub format: Format,
    pub kv_format: KvFormat,
    pub isa: &'static str,
    pub repeat: usize,
    pub peak_memory: Option<u64>, // bytes
    pub machine: Vec<Machine>,
    pub runs: Vec<Run>,
}

/// Rates of one run, and what share of the machine's limits they are.
struct Rates {
    prefill_tokens_per_s: f64,
    prefill_flops_per_s: f64,
    prefill_share: f64,
    decode_tokens_per_s: f64,
    decode_bytes_per_s: f64,
    decode_share: f64,
}

impl Report<'_> {
    fn rates(&self, run: &Run) -> Rates {
        let Run { case, figures, .. } = run;
        let tokens = (case.prefill * case.batch) as f64;
        let prefill_flops_per_s = prefill_flops(self.config, case) / figures.prefill_s;
        let decode_bytes_per_s = step_bytes(self.config, self.format, self.kv_format, case) / figures.step_s;
        let machine = self.machine.iter().find(|machine| machine.threads == run.threads);
        let share =
            |rate: f64, limit: fn(&Machine) -> f64| machine.map_or(f64::NAN, |machine| rate / limit(machine));
        Rates {
            prefill_tokens_per_s: tokens / figures.prefill_s,
            prefill_flops_per_s,
            prefill_share: share(prefill_flops_per_s, |machine| machine.arithmetic_peak),
            decode_tokens_per_s: case.batch as f64 / figures.step_s,
            decode_bytes_per_s,
            decode_share: share(decode_bytes_per_s, |machine| machine.read_bandwidth),
        }
    }

    /// Every number with its unit in its name.
    pub fn to_json(&self) -> Value {
        let machine = self.machine.iter().map(|machine| {
            json!({"threads": machine.threads, "read_bandwidth_bytes_per_s": machine.read_bandwidth,
                   "arithmetic_peak_flops_per_s": machine.arithmetic_peak})
        });
        let runs = self.runs.iter().map(|run| {
            let rates = self.rates(run);
            json!({
                "threads": run.threads,
                "batch": run.case.batch,
                "prefill": run.case.prefill,
                "decode": run.case.decode,
                "prefill_tokens_per_s": rates.prefill_tokens_per_s,
                "ttft_s": run.figures.first_token_s,
                "prefill_flops_per_s": rates.prefill_flops_per_s,
                "prefill_share_of_arithmetic_peak": rates.prefill_share,
                "decode_tokens_per_s": rates.decode_tokens_per_s,
                "decode_step_s": run.figures.step_s,
                "decode_bytes_per_s": rates.decode_bytes_per_s,
                "decode_share_of_read_bandwidth": rates.decode_share,
            })
        });
        json!({
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
        })
    }

    /// A table, and what its columns mean.
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
        let mut table = Table::new(&[Align::Right; 9]);
        table.row([
            "threads",
            "batch",
            "prompt",
            "prefill tok/s",
            "of peak",
            "TTFT",
            "decode tok/s",
            "step",
            "of bandwidth",
        ]);
        for run in &self.runs {
            let rates = self.rates(run);
            table.row([
                run.threads.to_string(),
                run.case.batch.to_string(),
                run.case.prefill.to_string(),
                format!("{:.1}", rates.prefill_tokens_per_s),
                format!("{:.0} %", 100.0 * rates.prefill_share),
                format!("{:.3} s", run.figures.first_token_s),
                format!("{:.2}", rates.decode_tokens_per_s),
                format!("{:.1} ms", 1000.0 * run.figures.step_s),
                format!("{:.0} %", 100.0 * rates.decode_share),
            ]);
        }
        text += &table.render();
        text.push('\n');
        for machine in &self.machine {
            text += &format!(
                "{dim}  {} threads: {:.1} GB/s read, {:.0} GFLOP/s{reset}\n",
                machine.threads,
                machine.read_bandwidth / 1e9,
                machine.arithmetic_peak / 1e9
            );
        }
        let peak = self.peak_memory.map_or_else(|| "unknown".into(), bytes);
        text += &format!(
            "{dim}  peak memory {peak}; medians of {}{reset}\n\
             {dim}  of peak: FLOPs of the prompts / time / measured rate of products of numbers at hand{reset}\n\
             {dim}  of bandwidth: weights, keys and values read in a step / time / measured read bandwidth{reset}\n",
            self.repeat
        );
        text
    }
}

/// FLOPs of all prompts: every token sees half of its prompt on average, and only the last one needs logits.
fn prefill_flops(config: &Config, case: &Case) -> f64 {
    let head = 2.0 * config.vocab_size as f64 * config.hidden_size as f64;
    let per_token = cost::flops_per_token(config, case.prefill / 2) as f64 - head;
    case.batch as f64 * (case.prefill as f64 * per_token + head)
}

/// Bytes that a step of decoding reads: the weights once, and every sequence's keys and values, half-way through.
///
/// In a mixture, `batch` tokens that choose independently meet `1 - (1 - A/X)^batch` of the experts.
fn step_bytes(config: &Config, format: Format, kv_format: KvFormat, case: &Case) -> f64 {
    let counts = cost::parameters(config);
    let alone = cost::decode_bytes_per_token(config, format, 0) as f64;
    let idle = format.bytes(counts.total - counts.active) as f64;
    let experts = config.mixture.as_ref().map_or(0.0, |mixture| {
        let chosen = mixture.num_experts_per_tok as f64 / mixture.num_experts as f64;
        // `idle` is what one token leaves out: the share 1 - chosen of the experts.
        let met = 1.0 - (1.0 - chosen).powi(case.batch as i32);
        if chosen < 1.0 { idle * (met - chosen) / (1.0 - chosen) } else { 0.0 }
    });
    let context = (case.prefill + case.decode / 2) as f64;
    let cache = cost::kv_bytes_per_token(config, kv_format) as f64 * context * case.batch as f64;
    alone + experts + cache
}

#[cfg(test)]
mod tests {
    use kanana_model::preset;

    use super::*;

    #[test]
    fn a_dense_step_reads_every_weight_once() {
        let config = preset("nano-2.1b").unwrap().config;
        let case = Case { prefill: 1000, decode: 0, batch: 4 };
        let expected = 2.087e9 * 2.0 + 4.0 * 1000.0 * 131_072.0;
        assert!((step_bytes(&config, Format::BF16, KvFormat::BF16, &case) / expected - 1.0).abs() < 1e-3);
    }

    #[test]
    fn a_large_batch_meets_every_expert() {
        let config = preset("1.5-15.7b-a3b").unwrap().config;
        let read =
            |batch| step_bytes(&config, Format::BF16, KvFormat::BF16, &Case { prefill: 0, decode: 0, batch });
        let embedding = 128_256.0 * 2048.0 * 2.0; // of which one row is read
        let counts = cost::parameters(&config);
        assert!((read(1) / (counts.active as f64 * 2.0 - embedding) - 1.0).abs() < 1e-3);
        assert!((read(200) / (counts.total as f64 * 2.0 - embedding) - 1.0).abs() < 1e-3);
    }

    #[test]
    fn prefill_counts_the_head_once_a_prompt() {
        let config = preset("nano-2.1b").unwrap().config;
        let one = prefill_flops(&config, &Case { prefill: 1, decode: 0, batch: 1 });
        assert!((one / cost::flops_per_token(&config, 0) as f64 - 1.0).abs() < 1e-9);
    }
}
