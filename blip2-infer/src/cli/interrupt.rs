//! Ctrl-C (and termination): the first lets the verb finish what is under way and write it, the second ends the
//! process at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};

/// A request to stop, shared between signal handler and loop.
#[derive(Clone, Debug, Default)]
pub(super) struct Interrupt {
    requested: Arc<AtomicBool>,
    /// Nothing is under way: the first signal ends the process.
    idle: Arc<AtomicBool>,
}

impl Interrupt {
    /// One that Ctrl-C and termination signals set; at most one per process.
    pub fn on_signals() -> Result<Self> {
        let interrupt = Self::default();
        let Self { requested, idle } = interrupt.clone();
        ctrlc::set_handler(move || {
            if requested.swap(true, Ordering::SeqCst) || idle.load(Ordering::SeqCst) {
                std::process::exit(130);
            }
            eprintln!("finishing what is under way; press Ctrl-C again to stop at once");
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(interrupt)
    }

    /// Whether somebody asked.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// Says whether the verb waits for its user.
    pub fn set_idle(&self, idle: bool) {
        self.idle.store(idle, Ordering::SeqCst);
    }
}
