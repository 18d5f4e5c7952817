//! Ctrl-C (and termination): the first finishes the step and saves, the second ends the process at once.

use crate::say::say;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A signal so soon after the first belongs to it: a terminal tells every process of a launcher, which tells them again.
const ECHO: Duration = Duration::from_secs(1);

/// A request to stop, shared between signal handler and loop.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// One that only [`Interrupt::request`] sets.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that Ctrl-C and termination signals set. At most one per process.
    pub fn on_signals() -> Result<Self, ctrlc::Error> {
        let interrupt = Self::new();
        let flag = interrupt.clone();
        let mut first: Option<Instant> = None;
        ctrlc::set_handler(move || {
            if flag.0.swap(true, Ordering::SeqCst) {
                if first.is_some_and(|first| first.elapsed() < ECHO) {
                    return;
                }
                std::process::exit(130);
            }
            first = Some(Instant::now());
            say("stopping after this step; press Ctrl-C again to stop at once without saving");
        })?;
        Ok(interrupt)
    }

    /// Asks the loop to stop after its step.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether somebody asked.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
