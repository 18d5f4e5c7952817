//! Samples and shards that were passed over, held against the limits.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::batch::{Counts, LoaderCursor};
use super::config::ErrorPolicy;
use crate::data::mixture::Source;
use crate::data::sample::{DataError, Skipped};
use crate::data::stream::Data;

/// How often all shards may be lost one after another without a sample between them, when shards are drawn at random
/// or read again and again: a set without any readable shard must not be read for ever.
const ROUNDS: u64 = 4;

/// What one process has seen of its data sets, good and bad.
pub(crate) struct Tally {
    policy: ErrorPolicy,
    counts: Counts,
    /// Shards met by this process since it started.
    met: HashSet<Arc<str>>,
    /// Shards that were met before the position it started from.
    before: u64,
    /// Shards there are.
    total: u64,
    lost: BTreeSet<String>,
    /// Losses since the last sample.
    barren: u64,
}

impl Tally {
    /// Of these sources; `from` is the position to go on from.
    pub fn new(
        policy: ErrorPolicy,
        sources: &[Source],
        from: Option<&LoaderCursor>,
    ) -> Result<Self, DataError> {
        policy.check()?;
        let shards = |source: &Source| match &source.data {
            Data::Rows(_) => 1,
            Data::Shards(set) => set.paths.len() as u64,
        };
        let lost = from.map(|cursor| cursor.lost.clone()).unwrap_or_default();
        let before = from.map_or(0, |cursor| cursor.shards);
        Ok(Self {
            policy,
            counts: Counts {
                seen: from.map_or(0, |cursor| cursor.seen),
                bad: from.map_or(0, |cursor| cursor.bad),
                kinds: BTreeMap::new(),
                shards: before,
                lost: lost.len() as u64,
            },
            met: HashSet::new(),
            before,
            total: sources.iter().map(shards).sum(),
            lost,
            barren: 0,
        })
    }

    /// Samples and shards so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Names of the lost shards.
    pub fn lost(&self) -> &BTreeSet<String> {
        &self.lost
    }

    /// A sample that is good, from `shard`.
    pub fn good(&mut self, shard: &Arc<str>) {
        self.counts.seen += 1;
        self.meet(shard);
        self.barren = 0;
    }

    /// A sample or a shard that is passed over; gives it back to be logged.
    ///
    /// # Errors
    /// [`DataError::TooManyBad`] or [`DataError::TooManyLost`] when it is the one too many.
    pub fn skipped(&mut self, skipped: Skipped) -> Result<Skipped, DataError> {
        self.meet(&skipped.shard);
        if skipped.problem.loses_shard() {
            return self.lose(skipped);
        }
        self.barren = 0;
        self.counts.seen += 1;
        self.counts.bad += 1;
        *self.counts.kinds.entry(skipped.problem.kind()).or_default() += 1;
        let (bad, seen, policy) = (self.counts.bad, self.counts.seen, self.policy);
        if !policy.exceeded(bad, seen) {
            return Ok(skipped);
        }
        Err(DataError::TooManyBad {
            bad,
            seen,
            limit: format!("{} and {} % of all", policy.allowed, policy.share * 100.0),
            last: Box::new(skipped),
        })
    }

    /// A shard is lost once, however often it is met.
    fn lose(&mut self, skipped: Skipped) -> Result<Skipped, DataError> {
        self.barren += 1;
        if !self.lost.contains(&*skipped.shard) {
            self.lost.insert(skipped.shard.to_string());
        }
        self.counts.lost = self.lost.len() as u64;
        let (lost, seen, policy) = (self.counts.lost, self.counts.shards, self.policy);
        let nothing_left = self.barren > ROUNDS * self.total.max(1);
        if !policy.too_many_lost(lost, seen) && !nothing_left {
            return Ok(skipped);
        }
        Err(DataError::TooManyLost {
            lost,
            seen,
            limit: match nothing_left {
                true => "some must be readable".into(),
                false => format!(
                    "{} or {} % of all, whichever is more",
                    policy.lost_shards,
                    policy.lost_share * 100.0
                ),
            },
            last: Box::new(skipped),
        })
    }

    fn meet(&mut self, shard: &Arc<str>) {
        if !self.met.contains(shard) {
            self.met.insert(shard.clone());
            // after a resumption some are met again
            self.counts.shards = (self.before + self.met.len() as u64).min(self.total);
        }
    }
}
