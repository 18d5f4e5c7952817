//! Progress on standard error: a bar with the time left on a terminal, a line now and then elsewhere.

use crate::say::say;
use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Between two lines where there is no terminal.
const EVERY: Duration = Duration::from_secs(30);

/// See the module documentation.
pub struct Meter {
    what: &'static str,
    bar: Option<ProgressBar>,
    quiet: bool,
    total: u64,
    done: Cell<u64>,
    start: Instant,
    last: Cell<Instant>,
}

impl Meter {
    /// For `total` steps.
    pub fn new(what: &'static str, total: u64, quiet: bool) -> Self {
        let terminal = !quiet && std::io::stderr().is_terminal();
        let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}, {per_sec}, {eta} left");
        let bar = terminal.then(|| {
            ProgressBar::new(total)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
                .with_message(what)
        });
        let start = Instant::now();
        Self {
            what,
            bar,
            quiet,
            total,
            done: Cell::new(0),
            start,
            last: Cell::new(start),
        }
    }

    /// `n` more are done.
    pub fn add(&self, n: usize) {
        self.reach(self.done.get() + n as u64);
    }

    /// `done` are done, by whichever process.
    pub fn reach(&self, done: u64) {
        self.done.set(done);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if !self.quiet && self.last.get().elapsed() >= EVERY {
            self.last.set(Instant::now());
            say(self.line());
        }
    }

    fn line(&self) -> String {
        let (done, seconds) = (self.done.get(), self.start.elapsed().as_secs_f64());
        let rate = done as f64 / seconds.max(1e-9);
        let left = Duration::from_secs_f64((self.total.saturating_sub(done)) as f64 / rate.max(1e-9));
        format!(
            "{} {done}/{}, {rate:.1}/s, {} left",
            self.what,
            self.total,
            HumanDuration(left)
        )
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
