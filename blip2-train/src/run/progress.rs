//! What the person in front of the terminal sees: a bar on a terminal, lines elsewhere. All on stderr.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Progress of a run.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
}

impl Progress {
    /// For a run of `total` steps of which `done` are behind it.
    pub fn new(total: u64, done: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_position(done);
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} + {eta}  {msg}");
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        Self { bar, quiet: false }
    }

    /// One that shows nothing.
    pub fn hidden() -> Self {
        Self {
            bar: None,
            quiet: true,
        }
    }

    /// After every step.
    pub fn step(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    /// Numbers of a logged step.
    pub fn numbers(&self, step: u64, values: &[(String, f64)]) {
        let text: Vec<String> = values
            .iter()
            .map(|(name, value)| match value.abs() {
                small if small > 0.0 && small < 0.01 => format!("{name} {value:.2e}"),
                _ => format!("{name} {value:.4}"),
            })
            .collect();
        match &self.bar {
            _ if self.quiet => {}
            Some(bar) => bar.set_message(text.join("  ")),
            None => eprintln!("step {step}: {}", text.join("  ")),
        }
    }

    /// A line that stays.
    pub fn note(&self, text: &str) {
        match &self.bar {
            _ if self.quiet => {}
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }
}
