//! How far long work is: a bar on a terminal, a line now and then elsewhere.

use std::cell::Cell;
use std::fmt::Write;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressState, ProgressStyle};

use crate::output;

/// Between two lines where there is no terminal.
const INTERVAL: Duration = Duration::from_secs(10);

/// Between two drawings of the bar: the time left moves even when nothing is finished.
const TICK: Duration = Duration::from_millis(200);

/// Work of a known size; the bar goes away with it.
pub struct Progress {
    bar: ProgressBar,
    what: &'static str,
    started: Instant,
    told: Cell<Instant>,
    is_terminal: bool,
}

impl Progress {
    /// Of reading so many parameters.
    pub fn of_loading(parameters: u64) -> Self {
        Self::new(parameters, "loading", "{msg} {wide_bar:.cyan/dim} {percent:>3} %  {left}")
    }

    /// Of generating so many answers.
    pub fn of_answers(answers: u64) -> Self {
        Self::new(answers, "answers", "{msg} {wide_bar:.cyan/dim} {pos}/{len}  {rate}  {left}")
    }

    /// Of judging so many answers.
    pub fn of_verdicts(verdicts: u64) -> Self {
        Self::new(verdicts, "verdicts", "{msg} {wide_bar:.cyan/dim} {pos}/{len}  {rate}  {left}")
    }

    /// Of so many requests to a server.
    pub fn of_requests(requests: u64) -> Self {
        Self::new(requests, "requests", "{msg} {wide_bar:.cyan/dim} {pos}/{len}  {left}")
    }

    /// Of converting so many parameters.
    pub fn of_converting(parameters: u64) -> Self {
        Self::new(parameters, "converting", "{msg} {wide_bar:.cyan/dim} {percent:>3} %  {left}")
    }

    /// Of quantising so many bytes.
    pub fn of_quantising(bytes: u64) -> Self {
        let template = "{msg} {wide_bar:.cyan/dim} {percent:>3} %  {binary_bytes_per_sec}  {left}";
        Self::new(bytes, "quantising", template)
    }

    /// Of so many steps of training; each of them has a line of its own.
    pub fn of_steps(steps: u64) -> Self {
        Self::new(steps, "steps", "{msg} {wide_bar:.cyan/dim} {pos}/{len}  {left}")
    }

    /// Of scoring so many windows of a text.
    pub fn of_windows(windows: u64) -> Self {
        Self::new(windows, "windows", "{msg} {wide_bar:.cyan/dim} {pos}/{len}  {left}")
    }

    /// Of computing so many tokens of context.
    pub fn of_context(tokens: u64) -> Self {
        Self::new(tokens, "context", "{msg} {wide_bar:.cyan/dim} {pos}/{len}  {rate}  {left}")
    }

    fn new(steps: u64, what: &'static str, template: &str) -> Self {
        // The formatters write into a buffer of the bar's own: that does not fail.
        let rate = |state: &ProgressState, text: &mut dyn Write| {
            let _ = write!(text, "{:.1}/s", state.per_sec());
        };
        let left = |state: &ProgressState, text: &mut dyn Write| {
            let known = state.pos() > 0;
            let _ = if known { write!(text, "{:#} left", HumanDuration(state.eta())) } else { Ok(()) };
        };
        let style = ProgressStyle::with_template(template)
            .expect("the template is constant and valid: this is a bug")
            .with_key("rate", rate)
            .with_key("left", left);
        let bar = ProgressBar::new(steps).with_style(style).with_message(what);
        bar.enable_steady_tick(TICK);
        let now = Instant::now();
        let is_terminal = std::io::stderr().is_terminal();
        Progress { bar, what, started: now, told: Cell::new(now), is_terminal }
    }

    /// So much is done.
    pub fn set(&self, done: u64) {
        self.bar.set_position(done);
        if !self.is_terminal && self.told.get().elapsed() >= INTERVAL {
            self.told.set(Instant::now());
            output::note(line(self.what, done, self.bar.length().unwrap_or(done), self.started.elapsed()));
        }
    }

    /// One more is done.
    pub fn inc(&self) {
        self.set(self.bar.position() + 1);
    }

    /// Takes the bar out of the way while something is printed.
    pub fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn line(what: &str, done: u64, all: u64, elapsed: Duration) -> String {
    let left = elapsed.mul_f64((all - done.min(all)) as f64 / done.max(1) as f64);
    format!("{what}: {} %, {} left", 100 * done / all.max(1), HumanDuration(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_much_and_how_long() {
        let minute = Duration::from_secs(60);
        assert_eq!(line("answers", 25, 100, minute), "answers: 25 %, 3 minutes left");
        assert_eq!(line("answers", 0, 0, minute), "answers: 0 %, 0 seconds left");
    }
}
