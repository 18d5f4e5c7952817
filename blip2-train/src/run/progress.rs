//! What the person in front of the terminal sees: a bar on a terminal, lines elsewhere, or the dashboard. All but the
//! dashboard on stderr.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::Interrupt;
#[cfg(feature = "dashboard")]
use super::dashboard::Dashboard;
use crate::say::say;

/// How much a run shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Nothing.
    Nothing,
    /// A bar on a terminal, lines elsewhere.
    Progress,
    /// The full-screen dashboard of burn-train.
    Dashboard,
}

/// What numbers are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// A training step.
    Train,
    /// A validation.
    Validation,
}

#[derive(Debug)]
enum Face {
    Hidden,
    Lines,
    Bar(ProgressBar),
    #[cfg(feature = "dashboard")]
    Dashboard(Dashboard),
}

/// Progress of a run.
#[derive(Debug)]
pub struct Progress {
    face: Face,
}

impl Progress {
    /// For a run of `total` steps. A stop that is asked for in the dashboard goes to `interrupt`. Without a terminal on
    /// stdout, or in a build without the feature, the dashboard is ordinary progress.
    pub fn new(show: Show, total: u64, interrupt: &Interrupt) -> Self {
        #[cfg(feature = "dashboard")]
        if show == Show::Dashboard && std::io::stdout().is_terminal() {
            let face = Face::Dashboard(Dashboard::open(total, interrupt.clone()));
            return Self { face };
        }
        let _ = interrupt;
        let face = match show {
            Show::Nothing => Face::Hidden,
            _ if !std::io::stderr().is_terminal() => Face::Lines,
            _ => {
                let bar = ProgressBar::new(total);
                let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} + {eta}  {msg}");
                if let Ok(style) = style {
                    bar.set_style(style);
                }
                bar.enable_steady_tick(Duration::from_millis(500));
                Face::Bar(bar)
            }
        };
        Self { face }
    }

    /// One that shows nothing.
    pub fn hidden() -> Self {
        Self { face: Face::Hidden }
    }

    /// After every step.
    pub fn step(&self, done: u64) {
        match &self.face {
            Face::Hidden | Face::Lines => {}
            Face::Bar(bar) => bar.set_position(done),
            #[cfg(feature = "dashboard")]
            Face::Dashboard(dashboard) => dashboard.step(done),
        }
    }

    /// Numbers of a logged step or of a validation.
    pub fn numbers(&self, step: u64, split: Split, values: &[(String, f64)]) {
        let text = || {
            let text: Vec<String> = values
                .iter()
                .map(|(name, value)| format!("{name} {}", short(*value)))
                .collect();
            text.join("  ")
        };
        match (&self.face, split) {
            (Face::Hidden, _) => {}
            #[cfg(feature = "dashboard")]
            (Face::Dashboard(dashboard), _) => dashboard.numbers(split, values),
            (Face::Bar(bar), Split::Train) => bar.set_message(text()),
            (Face::Lines, Split::Train) => say(format_args!("step {step}: {}", text())),
            (_, Split::Validation) => self.note(&format!("validation after step {step}: {}", text())),
        }
    }

    /// A line that stays.
    pub fn note(&self, text: &str) {
        match &self.face {
            Face::Hidden => {}
            Face::Lines => say(text),
            Face::Bar(bar) => bar.println(text),
            #[cfg(feature = "dashboard")]
            Face::Dashboard(dashboard) => dashboard.note(text),
        }
    }
}

/// Four decimals, or an exponent where they would show nothing.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        small if small > 0.0 && small < 0.01 => format!("{value:.2e}"),
        _ => format!("{value:.4}"),
    }
}
