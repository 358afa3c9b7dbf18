//! From times of pieces to rates and percentiles.

use serde_json::{Value, json};

use super::client::{Answer, Server, Usage};
use super::clients::Outcome;
use super::plural;
use super::prompts::Prompts;
use crate::output::{Align, Style, Table};

/// All that was measured.
pub struct Report {
    pub requests_per_client: usize,
    pub max_tokens: usize,
    pub prompts: Prompts,
    /// The server, and the one that it is compared with.
    pub subjects: Vec<Subject>,
}

/// A server and its figures at every number of clients.
pub struct Subject {
    pub url: String,
    pub model: String,
    pub runs: Vec<Figures>,
}

/// A server's figures at one number of clients. A percentile of nothing is NaN, which is null in JSON.
pub struct Figures {
    pub clients: usize,
    pub answers: usize,
    pub errors: Vec<String>,
    pub seconds: f64,
    pub generated_tokens: usize,
    pub prompt_tokens: usize,
    pub cached_tokens: Option<usize>, // of the prompts, where the server tells
    pub pieces: usize,
    pub ttft_s: Percentiles,
    pub between_tokens_s: Percentiles,
    pub miss_s: Option<f64>,
}

/// The middle, and what one in a hundred exceeds.
#[derive(Clone, Copy, Debug)]
pub struct Percentiles {
    pub p50: f64,
    pub p99: f64,
}

impl Percentiles {
    /// By nearest rank: every one is a time that was measured.
    fn of(times: impl Iterator<Item = f64>) -> Self {
        let mut times: Vec<f64> = times.collect();
        times.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100);
            times.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
        };
        Percentiles { p50: at(50), p99: at(99) }
    }
}

impl Subject {
    /// Nothing is measured yet.
    pub fn of(server: &Server) -> Self {
        Subject { url: server.url.clone(), model: server.model.clone(), runs: Vec::new() }
    }
}

impl Figures {
    /// What an outcome amounts to. A server that does not count its tokens is taken to send each as a piece.
    pub fn of(outcome: &Outcome) -> Self {
        let answers = &outcome.answers;
        let usages = || answers.iter().filter_map(|answer| answer.usage);
        let generated =
            |answer: &Answer| answer.usage.map_or(answer.pieces.len(), |usage| usage.completion_tokens);
        let cached = |usage: Usage| usage.prompt_tokens_details.and_then(|details| details.cached_tokens);
        Figures {
            clients: outcome.clients,
            answers: answers.len(),
            errors: outcome.errors.clone(),
            seconds: outcome.seconds,
            generated_tokens: answers.iter().map(generated).sum(),
            prompt_tokens: usages().map(|usage| usage.prompt_tokens).sum(),
            cached_tokens: usages().filter_map(cached).reduce(|a, b| a + b),
            pieces: answers.iter().map(|answer| answer.pieces.len()).sum(),
            ttft_s: Percentiles::of(answers.iter().map(Answer::ttft_s)),
            between_tokens_s: Percentiles::of(answers.iter().flat_map(Answer::gaps_s)),
            miss_s: outcome.miss_s,
        }
    }

    fn tokens_per_s(&self) -> f64 {
        self.generated_tokens as f64 / self.seconds
    }

    fn prompt_tokens_per_s(&self) -> f64 {
        self.prompt_tokens as f64 / self.seconds
    }

    /// How many times as fast the first token is there when the prefix was.
    fn prefix_ratio(&self) -> Option<f64> {
        self.miss_s.map(|miss_s| miss_s / self.ttft_s.p50)
    }

    fn to_json(&self, fewest: &Figures) -> Value {
        let mut json = json!({
            "clients": self.clients,
            "answers": self.answers,
            "errors": self.errors.len(),
            "seconds": self.seconds,
            "generated_tokens": self.generated_tokens,
            "prompt_tokens": self.prompt_tokens,
            "cached_prompt_tokens": self.cached_tokens,
            "tokens_per_s": self.tokens_per_s(),
            "tokens_per_s_ratio": self.tokens_per_s() / fewest.tokens_per_s(),
            "prompt_tokens_per_s": self.prompt_tokens_per_s(),
            "ttft_p50_s": self.ttft_s.p50,
            "ttft_p99_s": self.ttft_s.p99,
            "between_tokens_p50_s": self.between_tokens_s.p50,
            "between_tokens_p99_s": self.between_tokens_s.p99,
            "tokens_per_piece": self.generated_tokens as f64 / self.pieces as f64,
        });
        if let Some(miss_s) = self.miss_s {
            json["ttft_miss_s"] = json!(miss_s);
            json["ttft_hit_p50_s"] = json!(self.ttft_s.p50);
            json["ttft_miss_over_hit"] = json!(self.prefix_ratio());
        }
        json
    }
}

/// How many times as fast one server is as another at the same number of clients.
struct Ratios {
    clients: usize,
    tokens: f64,
    prompt_tokens: f64,
    ttft: f64,
    between_tokens: f64,
}

impl Ratios {
    fn of(one: &Figures, other: &Figures) -> Self {
        Ratios {
            clients: one.clients,
            tokens: one.tokens_per_s() / other.tokens_per_s(),
            prompt_tokens: one.prompt_tokens_per_s() / other.prompt_tokens_per_s(),
            ttft: other.ttft_s.p50 / one.ttft_s.p50,
            between_tokens: other.between_tokens_s.p50 / one.between_tokens_s.p50,
        }
    }
}

impl Report {
    /// At every number of clients, where there are two servers.
    fn ratios(&self) -> Option<impl Iterator<Item = Ratios>> {
        let [one, other] = &self.subjects[..] else { return None };
        Some(one.runs.iter().zip(&other.runs).map(|(one, other)| Ratios::of(one, other)))
    }

    /// Every number with its unit in its name.
    pub fn to_json(&self) -> Value {
        let servers = self.subjects.iter().map(|subject| {
            let runs = subject.runs.iter().map(|run| run.to_json(fewest_clients(&subject.runs)));
            json!({"url": subject.url, "model": subject.model, "runs": runs.collect::<Vec<_>>()})
        });
        let mut report = json!({
            "prompt_tokens": self.prompts.lengths.prompt,
            "shared_prefix": self.prompts.lengths.shared_prefix,
            "prompt_form": self.prompts.form.name(),
            "max_tokens": self.max_tokens,
            "requests_per_client": self.requests_per_client,
            "seed": self.prompts.seed,
            "servers": servers.collect::<Vec<_>>(),
        });
        if let Some(ratios) = self.ratios() {
            let ratios = ratios.map(|ratios| {
                json!({"clients": ratios.clients, "tokens_per_s_ratio": ratios.tokens,
                       "prompt_tokens_per_s_ratio": ratios.prompt_tokens, "ttft_p50_ratio": ratios.ttft,
                       "between_tokens_p50_ratio": ratios.between_tokens})
            });
            report["ratios"] = ratios.collect();
        }
        report
    }

    /// Tables, and what their columns mean.
    pub fn to_text(&self) -> String {
        let style = Style::stdout();
        let (bold, dim, reset) = (style.bold(), style.dim(), style.reset());
        let mut text = String::new();
        for subject in &self.subjects {
            text += &format!(
                "{bold}{}{reset}  {}\n\n{}\n",
                subject.url,
                subject.model,
                rates_table(&subject.runs)
            );
            if self.prompts.lengths.shared_prefix > 0 {
                text += &format!("{}\n", prefix_table(&subject.runs));
            }
        }
        if let (Some(ratios), [one, other]) = (self.ratios(), &self.subjects[..]) {
            text += &format!("how many times as fast {} is as {}\n\n", one.url, other.url);
            text += &format!("{}\n", ratios_table(ratios));
        }
        for note in self.notes() {
            text += &format!("{dim}  {note}{reset}\n");
        }
        text
    }

    fn notes(&self) -> Vec<String> {
        let Prompts { form, lengths, seed } = &self.prompts;
        let mut notes = vec![
            format!(
                "prompts of {} random {}, seed {seed}; {} token{} generated for each, {} request{} a client",
                lengths.prompt,
                form.name(),
                self.max_tokens,
                plural(self.max_tokens),
                self.requests_per_client,
                plural(self.requests_per_client)
            ),
            "tok/s: of all clients, from the first request to the last answer; prompts with what a cache had"
                .into(),
            "TTFT: from sending a request to its first piece of text; between tokens: from piece to piece"
                .into(),
        ];
        if lengths.shared_prefix > 0 {
            notes.push(format!(
                "miss: a prompt sent alone, the first with these {} tokens before it; hit: median of all others",
                lengths.shared_prefix
            ));
        }
        let runs = || self.subjects.iter().flat_map(|subject| &subject.runs);
        if lengths.shared_prefix == 0 && runs().any(|run| run.cached_tokens > Some(0)) {
            notes.push(
                "a server had some of the prompts in its cache: give no --seed, and each server once".into(),
            );
        }
        if runs().any(|run| run.generated_tokens != run.answers * self.max_tokens) {
            notes.push(format!("not all answers have {} tokens: the rates count what came", self.max_tokens));
        }
        if runs().any(|run| run.generated_tokens as f64 > 1.05 * run.pieces as f64) {
            notes.push("some pieces hold several tokens: between tokens tells of pieces".into());
        }
        notes
    }
}

/// What the throughput of more clients is compared with.
///
/// Panics: of no runs; the flag has a default and takes at least one number.
fn fewest_clients(runs: &[Figures]) -> &Figures {
    runs.iter().min_by_key(|run| run.clients).expect("there is a run: this is a bug")
}

fn rates_table(runs: &[Figures]) -> String {
    let fewest = fewest_clients(runs);
    let mut table = Table::new(&[Align::Right; 9]);
    let ratio = format!("over {}", fewest.clients);
    table.row([
        "clients",
        "tok/s",
        &ratio,
        "prompt tok/s",
        "TTFT p50",
        "p99",
        "between tokens p50",
        "p99",
        "errors",
    ]);
    for run in runs {
        table.row([
            run.clients.to_string(),
            format!("{:.1}", run.tokens_per_s()),
            times(run.tokens_per_s() / fewest.tokens_per_s()),
            format!("{:.1}", run.prompt_tokens_per_s()),
            time(run.ttft_s.p50),
            time(run.ttft_s.p99),
            time(run.between_tokens_s.p50),
            time(run.between_tokens_s.p99),
            run.errors.len().to_string(),
        ]);
    }
    table.render()
}

fn prefix_table(runs: &[Figures]) -> String {
    let mut table = Table::new(&[Align::Right; 4]);
    table.row(["clients", "TTFT miss", "hit", "miss over hit"]);
    for run in runs {
        table.row([
            run.clients.to_string(),
            time(run.miss_s.unwrap_or(f64::NAN)),
            time(run.ttft_s.p50),
            times(run.prefix_ratio().unwrap_or(f64::NAN)),
        ]);
    }
    table.render()
}

fn ratios_table(ratios: impl Iterator<Item = Ratios>) -> String {
    let mut table = Table::new(&[Align::Right; 5]);
    table.row(["clients", "tok/s", "prompt tok/s", "TTFT p50", "between tokens p50"]);
    for ratios in ratios {
        let numbers = [ratios.tokens, ratios.prompt_tokens, ratios.ttft, ratios.between_tokens];
        table.row([ratios.clients.to_string()].into_iter().chain(numbers.map(times)));
    }
    table.render()
}

fn times(ratio: f64) -> String {
    if ratio.is_finite() { format!("{ratio:.2} x") } else { "-".into() }
}

fn time(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() => "-".into(),
        s if s < 1.0 => format!("{:.1} ms", 1000.0 * s),
        s => format!("{s:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// An answer whose pieces come at these milliseconds.
    fn answer(started: Instant, pieces: &[u64], tokens: usize) -> Answer {
        let at = |&ms: &u64| started + Duration::from_millis(ms);
        let pieces: Vec<Instant> = pieces.iter().map(at).collect();
        let usage = Usage { prompt_tokens: 10, completion_tokens: tokens, prompt_tokens_details: None };
        Answer { started, pieces, usage: Some(usage) }
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found}, expected {expected}");
    }

    #[test]
    fn percentiles_are_of_nearest_rank() {
        let check = |times: &[f64], p50: f64, p99: f64| {
            let found = Percentiles::of(times.iter().copied());
            assert_eq!((found.p50, found.p99), (p50, p99), "{times:?}");
        };
        check(&[3.0], 3.0, 3.0);
        check(&[4.0, 1.0, 3.0, 2.0], 2.0, 4.0);
        check(&(1..=200).map(f64::from).collect::<Vec<_>>(), 100.0, 198.0);
        assert!(Percentiles::of(std::iter::empty()).p50.is_nan());
    }

    #[test]
    fn rates_are_of_all_clients_together() {
        let started = Instant::now();
        let answers = vec![answer(started, &[100, 150, 200], 3), answer(started, &[300, 310, 500], 4)];
        let errors = vec!["status 500".to_owned()];
        let outcome = Outcome { clients: 2, answers, errors, seconds: 0.5, miss_s: Some(0.4) };
        let figures = Figures::of(&outcome);
        close(figures.tokens_per_s(), 14.0);
        close(figures.prompt_tokens_per_s(), 40.0);
        close(figures.ttft_s.p50, 0.1);
        close(figures.ttft_s.p99, 0.3);
        close(figures.between_tokens_s.p50, 0.05);
        close(figures.between_tokens_s.p99, 0.19);
        close(figures.prefix_ratio().unwrap(), 4.0);
        let json = figures.to_json(&figures);
        assert_eq!((&json["errors"], &json["tokens_per_s_ratio"]), (&json!(1), &json!(1.0)));
    }

    #[test]
    fn nothing_answered_is_no_number() {
        let outcome = Outcome { clients: 1, answers: vec![], errors: vec![], seconds: 0.0, miss_s: None };
        let figures = Figures::of(&outcome);
        assert_eq!(figures.to_json(&figures)["ttft_p50_s"], Value::Null);
        assert!(rates_table(&[figures]).contains('-'));
    }

    #[test]
    fn ratios_are_above_one_for_the_faster() {
        let started = Instant::now();
        let of = |pieces: &[u64], seconds| {
            let answers = vec![answer(started, pieces, 2)];
            Figures::of(&Outcome { clients: 1, answers, errors: vec![], seconds, miss_s: None })
        };
        let ratios = Ratios::of(&of(&[100, 200], 0.2), &of(&[200, 500], 0.5));
        close(ratios.tokens, 2.5);
        close(ratios.prompt_tokens, 2.5);
        close(ratios.ttft, 2.0);
        close(ratios.between_tokens, 3.0);
    }
}
