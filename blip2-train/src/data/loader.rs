//! Batches of prepared samples from a mixture, each with the exact position to resume from.
//!
//! Order and contents depend on the mixture, the preparation and the seed, never on the number of threads.

mod batch;
mod config;
mod tally;

use std::sync::Arc;

use super::mixture::{Cursor, Draw, Mixture, MixtureConfig, Source, Start};
use super::pipeline::{Capacity, Item, Pipeline, Work};
use super::prepare::{Example, Preparation};
use super::sample::{DataError, Skipped};
pub use batch::{Batch, Counts, LoaderCursor, LoaderStart};
pub use config::{ErrorPolicy, LoaderConfig};
pub(crate) use tally::Tally;

struct Pending {
    number: u64,
    before: Arc<Cursor>,
    example: Example,
}

/// An iterator over batches.
pub struct Loader {
    items: Pipeline<Example>,
    config: LoaderConfig,
    /// One, or one per source when batches are pure.
    pools: Vec<Vec<Pending>>,
    after: Arc<Cursor>,
    taken: u64,
    tally: Tally,
    skipped: Vec<Skipped>,
    share: Option<u64>,
    ended: bool,
}

impl Loader {
    /// Starts the threads. `preparations` holds one entry for all sources or one for each.
    pub fn new(
        sources: &[Source],
        preparations: &[Preparation],
        mixture: MixtureConfig,
        config: LoaderConfig,
        start: LoaderStart,
    ) -> Result<Self, DataError> {
        let bad = |field, value: usize, remedy| {
            Err(DataError::Setting {
                field,
                value: value.to_string(),
                remedy,
            })
        };
        if config.batch_size == 0 {
            return bad("batch size", 0, "at least 1");
        }
        if ![1, sources.len()].contains(&preparations.len()) {
            return bad(
                "number of preparations",
                preparations.len(),
                "one for all data sets or one for each",
            );
        }
        if matches!(mixture.draw, Draw::Batch(size) if size != config.batch_size) {
            return bad(
                "batch size",
                config.batch_size as usize,
                "the mixture draws batches of another size",
            );
        }
        preparations.iter().try_for_each(|p| p.transform.check())?;
        let pools = if matches!(mixture.draw, Draw::Batch(_)) {
            sources.len()
        } else {
            1
        };
        let from = match &start {
            LoaderStart::Epoch(_) => None,
            LoaderStart::After(cursor) => Some(cursor),
        };
        let tally = Tally::new(config.errors, sources, from)?;
        let (start, passed_over) = match start {
            LoaderStart::Epoch(epoch) => (Start::Epoch(epoch), Vec::new()),
            LoaderStart::After(cursor) => (Start::At(cursor.mixture), cursor.passed_over),
        };
        let stream = Mixture::new(sources, mixture, start)?;
        let (after, share) = (Arc::new(stream.cursor()), stream.share());
        let threads = match config.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            given => given,
        };
        let in_flight = config.batch_size as usize * (config.prefetch.max(1) as usize) + threads;
        let (preparations, seed) = (preparations.to_vec(), mixture.order.seed);
        let work: Work<Example> = Arc::new(move |source, pass, sample| {
            let preparation = preparations.get(source as usize).unwrap_or(&preparations[0]);
            preparation.run(seed, source, pass, sample)
        });
        Ok(Self {
            items: Pipeline::new(stream, passed_over, Capacity { threads, in_flight }, work),
            config,
            pools: (0..pools).map(|_| Vec::new()).collect(),
            after,
            taken: 0,
            tally,
            skipped: Vec::new(),
            share,
            ended: false,
        })
    }

    /// Batches of an epoch for this process, where sizes are known; skipped samples make it fewer.
    pub fn batches_per_epoch(&self) -> Option<u64> {
        let size = u64::from(self.config.batch_size);
        self.share.map(|n| {
            if self.config.drop_last {
                n / size
            } else {
                n.div_ceil(size)
            }
        })
    }

    /// Samples seen and skipped so far, shards seen and lost.
    pub fn counts(&self) -> &Counts {
        self.tally.counts()
    }

    /// Skipped samples not yet handed over with a batch (after the last one).
    pub fn take_skipped(&mut self) -> Vec<Skipped> {
        std::mem::take(&mut self.skipped)
    }

    fn next_batch(&mut self) -> Result<Option<Batch>, DataError> {
        let size = self.config.batch_size as usize;
        while !self.ended {
            let Some(item) = self.items.next().transpose()? else {
                self.ended = true;
                break;
            };
            if let Some(full) = self.take(item)? {
                return Ok(Some(self.batch(full)));
            }
        }
        let left = self
            .pools
            .iter()
            .position(|p| !p.is_empty() && (!self.config.drop_last || p.len() >= size));
        Ok(left.map(|pool| self.batch(pool)))
    }

    /// Takes an item in; gives the pool that became full.
    fn take(&mut self, item: Item<Example>) -> Result<Option<usize>, DataError> {
        let Item {
            number,
            source,
            before,
            after,
            outcome,
        } = item;
        self.after = after;
        self.taken = number + 1;
        match outcome {
            Ok(example) => {
                self.tally.good(&example.shard);
                let pool = if self.pools.len() > 1 { source as usize } else { 0 };
                self.pools[pool].push(Pending {
                    number,
                    before,
                    example,
                });
                Ok((self.pools[pool].len() >= self.config.batch_size as usize).then_some(pool))
            }
            Err(skipped) => {
                self.skipped.push(self.tally.skipped(skipped)?);
                Ok(None)
            }
        }
    }

    fn batch(&mut self, pool: usize) -> Batch {
        let examples = std::mem::take(&mut self.pools[pool])
            .into_iter()
            .map(|p| p.example)
            .collect();
        Batch {
            examples,
            skipped: self.take_skipped(),
            cursor: self.cursor(),
        }
    }

    /// The position from which the samples still pending come again and those handed out do not.
    fn cursor(&self) -> LoaderCursor {
        let mut pending: Vec<&Pending> = self.pools.iter().flatten().collect();
        pending.sort_by_key(|p| p.number);
        let counts = self.tally.counts();
        let (mixture, passed_over) = match pending.first() {
            None => (&self.after, Vec::new()),
            Some(oldest) => {
                let waits = |n: &u64| pending.binary_search_by_key(n, |p| p.number).is_ok();
                let gone = (oldest.number..self.taken).filter(|n| !waits(n));
                (&oldest.before, gone.map(|n| n - oldest.number).collect())
            }
        };
        LoaderCursor {
            mixture: Cursor::clone(mixture),
            passed_over,
            seen: counts.seen - pending.len() as u64,
            bad: counts.bad,
            shards: counts.shards,
            lost: self.tally.lost().clone(),
        }
    }
}

impl Iterator for Loader {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let result = self.next_batch();
        if result.is_err() {
            self.ended = true;
            self.pools.iter_mut().for_each(Vec::clear);
        }
        result.transpose()
    }
}

#[cfg(test)]
mod tests;
