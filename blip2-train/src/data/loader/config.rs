//! Settings of a loader.

use serde::{Deserialize, Serialize};

use crate::data::sample::DataError;

/// When bad samples and lost shards stop the run: as soon as bad > `allowed` + `share` * seen, or lost > `lost_shards`
/// and lost > `lost_share` * shards seen. Each process counts what it meets itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ErrorPolicy {
    /// Bad samples that are always tolerated.
    pub allowed: u64,
    /// Share of all samples that is tolerated on top, 0 to 1.
    pub share: f64,
    /// Shards that may be lost whatever their share: not to be opened, no shards at all, or broken off. Their samples
    /// are unknown, so they are no bad samples and have limits of their own.
    pub lost_shards: u64,
    /// Share of the shards that may be lost, 0 to 1, where that is more.
    pub lost_share: f64,
}

impl Default for ErrorPolicy {
    fn default() -> Self {
        Self {
            allowed: 100,
            share: 0.01,
            lost_shards: 1,
            lost_share: 0.01,
        }
    }
}

impl ErrorPolicy {
    /// Never stops.
    pub const LENIENT: Self = Self {
        allowed: u64::MAX,
        share: 0.0,
        lost_shards: u64::MAX,
        lost_share: 0.0,
    };
    /// Stops at the first.
    pub const STRICT: Self = Self {
        allowed: 0,
        share: 0.0,
        lost_shards: 0,
        lost_share: 0.0,
    };

    pub(super) fn exceeded(&self, bad: u64, seen: u64) -> bool {
        bad > self.allowed && (bad - self.allowed) as f64 > self.share * seen as f64
    }

    pub(super) fn too_many_lost(&self, lost: u64, seen: u64) -> bool {
        lost > self.lost_shards && lost as f64 > self.lost_share * seen as f64
    }

    pub(super) fn check(&self) -> Result<(), DataError> {
        let shares = [
            ("share of bad samples", self.share),
            ("share of lost shards", self.lost_share),
        ];
        match shares.iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            None => Ok(()),
            Some((field, share)) => Err(DataError::Setting {
                field,
                value: share.to_string(),
                remedy: "0 to 1",
            }),
        }
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
