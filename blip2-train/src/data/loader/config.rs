//! Settings of a loader.

use serde::{Deserialize, Serialize};

/// When bad samples stop the run: as soon as bad > `allowed` + `share` * seen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ErrorPolicy {
    /// Bad samples that are always tolerated.
    pub allowed: u64,
    /// Share of all samples that is tolerated on top, 0 to 1.
    pub share: f64,
}

impl Default for ErrorPolicy {
    fn default() -> Self {
        Self {
            allowed: 100,
            share: 0.01,
        }
    }
}

impl ErrorPolicy {
    /// Never stops.
    pub const LENIENT: Self = Self {
        allowed: u64::MAX,
        share: 0.0,
    };
    /// Stops at the first.
    pub const STRICT: Self = Self {
        allowed: 0,
        share: 0.0,
    };

    pub(super) fn exceeded(&self, bad: u64, seen: u64) -> bool {
        bad > self.allowed && (bad - self.allowed) as f64 > self.share * seen as f64
    }
}

/// How batches are made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoaderConfig {
    /// Samples in a batch.
    pub batch_size: u32,
    /// Leave out a last batch that is not full.
    pub drop_last: bool,
    /// Threads that decode and augment; 0 means one per processor.
    pub threads: usize,
    /// Batches prepared ahead.
    pub prefetch: u32,
    /// Tolerance for bad samples.
    pub errors: ErrorPolicy,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self {
            batch_size: 32,
            drop_last: true,
            threads: 0,
            prefetch: 4,
            errors: ErrorPolicy::default(),
        }
    }
}
