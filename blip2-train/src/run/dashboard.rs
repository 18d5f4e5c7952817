//! burn-train's terminal dashboard over a run of ours: curves of every number, training beside validation, progress and
//! time left. `q` asks to stop (the step is finished and saved, as with Ctrl-C), or to end at once without saving.
//!
//! Its drawing thread polls without rest (burn-train 0.21, `renderer/tui/renderer.rs`), which takes one core: on a CPU
//! the plain progress bar is the better choice.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn_train::Interrupter;
use burn_train::metric::{
    MetricAttributes, MetricDefinition, MetricEntry, MetricId, NumericAttributes, NumericEntry,
    SerializedEntry,
};
use burn_train::renderer::tui::TuiMetricsRendererWrapper;
use burn_train::renderer::{
    MetricState, MetricsRenderer, MetricsRendererTraining, ProgressType, TrainingProgress,
};

use super::Interrupt;
use super::progress::{Split, short};

/// The dashboard of one run.
pub struct Dashboard {
    screen: Mutex<Screen>,
    stop: Interrupter,
    interrupt: Interrupt,
    total: u64,
}

struct Screen {
    renderer: Option<TuiMetricsRendererWrapper>,
    known: BTreeSet<String>,
    notes: Vec<String>,
}

impl std::fmt::Debug for Dashboard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dashboard")
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

impl Dashboard {
    /// Takes the terminal over until it is dropped.
    pub fn open(total: u64, interrupt: Interrupt) -> Self {
        let stop = Interrupter::new();
        let renderer = TuiMetricsRendererWrapper::new(stop.clone(), None);
        Self {
            screen: Mutex::new(Screen {
                renderer: Some(renderer),
                known: BTreeSet::new(),
                notes: Vec::new(),
            }),
            stop,
            interrupt,
            total,
        }
    }

    /// After every step.
    pub fn step(&self, done: u64) {
        self.draw(|screen| screen.progress(done, self.total));
        if self.stop.should_stop() {
            self.interrupt.request();
        }
    }

    /// Numbers of a logged step or of a validation.
    pub fn numbers(&self, split: Split, values: &[(String, f64)]) {
        self.draw(|screen| {
            for (name, value) in values {
                screen.number(split, name, *value);
            }
        });
    }

    /// Lines are kept until the terminal is free again.
    pub fn note(&self, text: &str) {
        self.screen().notes.push(text.to_owned());
    }

    fn screen(&self) -> MutexGuard<'_, Screen> {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// burn-train panics in the caller where the person has asked to end at once.
    fn draw(&self, act: impl FnOnce(&mut Screen)) {
        let mut screen = self.screen();
        if catch_unwind(AssertUnwindSafe(|| act(&mut screen))).is_err() {
            std::process::exit(130);
        }
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        let mut screen = self.screen();
        drop(screen.renderer.take()); // gives the terminal back
        for note in &screen.notes {
            eprintln!("{note}");
        }
    }
}

impl Screen {
    fn progress(&mut self, done: u64, total: u64) {
        let at = burn::data::dataloader::Progress::new(done as usize, total as usize);
        let item = TrainingProgress {
            progress: None,
            global_progress: at.clone(),
            iteration: Some(done as usize),
        };
        let shown = vec![ProgressType::Detailed {
            tag: "Step".into(),
            progress: at,
        }];
        if let Some(renderer) = &mut self.renderer {
            renderer.render_train(item, shown);
        }
    }

    fn number(&mut self, split: Split, name: &str, value: f64) {
        let Some(renderer) = &mut self.renderer else {
            return;
        };
        let metric_id = MetricId::new(Arc::new(name.to_owned()));
        if self.known.insert(name.to_owned()) {
            renderer.register_metric(MetricDefinition {
                metric_id: metric_id.clone(),
                name: name.to_owned(),
                description: None,
                attributes: MetricAttributes::Numeric(NumericAttributes {
                    unit: None,
                    higher_is_better: false,
                }),
            });
        }
        let text = SerializedEntry::new(short(value), value.to_string());
        let state = MetricState::Numeric(MetricEntry::new(metric_id, text), NumericEntry::Value(value));
        match split {
            Split::Train => renderer.update_train(state),
            Split::Validation => renderer.update_valid(state),
        }
    }
}
