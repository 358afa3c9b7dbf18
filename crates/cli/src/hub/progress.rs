//! What a person sees of a download: a bar for each file in progress on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};

use super::client::RemoteFile;

/// The time between two lines where there is no terminal.
const INTERVAL: Duration = Duration::from_secs(10);

/// The progress of one pull.
pub struct Progress {
    view: View,
    total: AtomicU64, // bytes
    done: AtomicU64,  // bytes
}

enum View {
    Bars(MultiProgress),
    Lines(Mutex<Lines>),
}

struct Lines {
    started: Instant,
    printed: Instant,
    done_at_start: Option<u64>, // bytes that were there already
}

impl Progress {
    /// On standard error: bars on a terminal, lines elsewhere.
    pub fn on_stderr() -> Self {
        let now = Instant::now();
        let view = match std::io::stderr().is_terminal() {
            true => View::Bars(MultiProgress::new()),
            false => View::Lines(Mutex::new(Lines { started: now, printed: now, done_at_start: None })),
        };
        Progress { view, total: AtomicU64::new(0), done: AtomicU64::new(0) }
    }

    /// So many bytes are missing or half fetched.
    pub(super) fn begin(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        if let (View::Lines(_), 1..) = (&self.view, total) {
            eprintln!("fetching {}", BinaryBytes(total));
        }
    }

    /// A file is about to be fetched.
    pub(super) fn file(&self, file: &RemoteFile) -> FileProgress<'_> {
        let bar = match &self.view {
            View::Bars(bars) => Some(bars.add(bar(file))),
            _ => None,
        };
        FileProgress { whole: self, bar, reached: AtomicU64::new(0) }
    }

    fn change(&self, from: u64, to: u64) {
        let done = match to.checked_sub(from) {
            Some(more) => self.done.fetch_add(more, Ordering::Relaxed) + more,
            None => self.done.fetch_sub(from - to, Ordering::Relaxed) - (from - to),
        };
        let View::Lines(lines) = &self.view else { return };
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *lines.done_at_start.get_or_insert(done);
        if lines.printed.elapsed() >= INTERVAL {
            lines.printed = Instant::now();
            let total = self.total.load(Ordering::Relaxed);
            eprintln!(
                "{}",
                line(done, total, done.saturating_sub(before) as f64 / lines.started.elapsed().as_secs_f64())
            );
        }
    }
}

/// `rate` is in bytes per second.
fn line(done: u64, total: u64, rate: f64) -> String {
    let left = Duration::from_secs_f64(((total.saturating_sub(done)) as f64 / rate.max(1.0)).min(1e9));
    let percent = 100.0 * done as f64 / total.max(1) as f64;
    let (done, total, rate) = (BinaryBytes(done), BinaryBytes(total), BinaryBytes(rate as u64));
    format!("fetched {done} of {total} ({percent:.0} %), {rate}/s, {} left", HumanDuration(left))
}

fn bar(file: &RemoteFile) -> ProgressBar {
    let known = "{msg:32!} {bar:24} {binary_bytes:>11} of {binary_total_bytes:<11} {binary_bytes_per_sec:>12} {eta:>4}";
    let unknown = "{msg:32!} {spinner} {binary_bytes:>11} {binary_bytes_per_sec:>12}";
    let template = if file.size.is_some() { known } else { unknown };
    let style = ProgressStyle::with_template(template).expect("the template is well formed: this is a bug");
    let bar = file.size.map_or_else(ProgressBar::no_length, ProgressBar::new);
    bar.with_style(style).with_message(file.name.clone())
}

/// The progress of one file.
pub(super) struct FileProgress<'a> {
    whole: &'a Progress,
    bar: Option<ProgressBar>,
    reached: AtomicU64,
}

impl FileProgress<'_> {
    /// So many bytes of the file are there.
    pub(super) fn set(&self, bytes: u64) {
        self.whole.change(self.reached.swap(bytes, Ordering::Relaxed), bytes);
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        }
    }
}

impl Drop for FileProgress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_rate_and_time_left() {
        let line = line(1 << 30, 4 << 30, (3 << 20) as f64);
        assert_eq!(line, "fetched 1.00 GiB of 4.00 GiB (25 %), 3.00 MiB/s, 17 minutes left");
    }
}
