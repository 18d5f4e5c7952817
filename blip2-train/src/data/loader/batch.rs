//! What a loader gives out: batches, positions, counts.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::data::mixture::Cursor;
use crate::data::prepare::Example;
use crate::data::sample::Skipped;

/// Position between two batches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoaderCursor {
    pub(super) mixture: Cursor,
    /// Samples after that position that are in batches already given out (pure batches fill at different speeds).
    pub(super) passed_over: Vec<u64>,
    pub(super) seen: u64,
    pub(super) bad: u64,
    /// Shards met before that position.
    #[serde(default)]
    pub(super) shards: u64,
    /// Those of them that were lost.
    #[serde(default)]
    pub(super) lost: BTreeSet<String>,
}

impl LoaderCursor {
    /// Epoch of the next sample.
    pub fn epoch(&self) -> u64 {
        self.mixture.epoch()
    }

    /// Bad samples of this process before this position, since the very start.
    pub fn bad(&self) -> u64 {
        self.bad
    }

    /// Shards that this process lost before this position, since the very start.
    pub fn lost(&self) -> &BTreeSet<String> {
        &self.lost
    }
}

/// Where a loader begins.
#[derive(Clone, Debug)]
pub enum LoaderStart {
    /// The first batch of an epoch.
    Epoch(u64),
    /// After the batch that gave this cursor.
    After(LoaderCursor),
}

/// Samples that go through the model together.
#[derive(Debug)]
pub struct Batch {
    /// Prepared samples, B of them.
    pub examples: Vec<Example>,
    /// Samples passed over since the batch before; to be logged.
    pub skipped: Vec<Skipped>,
    /// Position after this batch.
    pub cursor: LoaderCursor,
}

impl Batch {
    /// All pictures in one buffer `[B, height, width, 3]`, 8-bit, with (height, width); `None` if sizes differ.
    pub fn pixels(&self) -> Option<(Vec<u8>, (u32, u32))> {
        let (width, height) = self.examples.first()?.image.dimensions();
        let mut out = Vec::with_capacity(self.examples.len() * (width * height * 3) as usize);
        for example in &self.examples {
            if example.image.dimensions() != (width, height) {
                return None;
            }
            out.extend_from_slice(example.image.as_raw());
        }
        Some((out, (height, width)))
    }
}

/// Samples looked at so far, and the bad ones by [`Problem::kind`](crate::data::sample::Problem::kind).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Samples looked at, since the very start (carried through cursors).
    pub seen: u64,
    /// Bad ones among them.
    pub bad: u64,
    /// Bad ones of this run by kind.
    pub kinds: BTreeMap<&'static str, u64>,
    /// Shards met, since the very start.
    pub shards: u64,
    /// Shards among them that cannot be read to their end; their samples are not counted.
    pub lost: u64,
}
