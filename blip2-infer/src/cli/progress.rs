//! Progress on stderr; hidden with `--quiet` and where stderr is not a terminal.

use std::io::IsTerminal;

use blip2_model::weights::hub;
use indicatif::{ProgressBar, ProgressStyle};

fn bar(total: u64, quiet: bool, template: &str) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style)
}

/// Pictures done, speed and time left.
pub(super) fn pictures(total: usize, quiet: bool) -> ProgressBar {
    let hidden = quiet || total < 2;
    bar(
        total as u64,
        hidden,
        "{bar:40} {pos}/{len} pictures, {per_sec}, {eta} left",
    )
}

/// Downloads of a model's files.
pub(super) struct Downloads {
    quiet: bool,
    bar: ProgressBar,
}

impl Downloads {
    pub fn new(quiet: bool) -> Self {
        Self {
            quiet,
            bar: ProgressBar::hidden(),
        }
    }
}

impl hub::Progress for Downloads {
    fn begin(&mut self, file: &str, total: u64) {
        self.bar = bar(
            total,
            self.quiet,
            "{msg:32} {bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left",
        );
        self.bar.set_message(file.to_string());
        if !self.quiet && self.bar.is_hidden() {
            eprintln!("downloading {file} ({})", super::output::bytes(total));
        }
    }

    fn advance(&mut self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn finish(&mut self) {
        self.bar.finish_and_clear();
    }
}
