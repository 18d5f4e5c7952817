//! One worker's part of a sharded source: the shards dealt to it, read through a buffer that is filled, permuted and
//! drained.

use serde::{Deserialize, Serialize};

use super::rng::KeyedRng;
use super::sample::{DataError, Problem, Sample, Skipped};
use super::shard::{ShardReader, ShardSet};
use super::stream::{Order, SplitBy};

/// Position of one slot: the start of its buffer and how far the buffer is drained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotCursor {
    /// Place of the shard in this slot's list.
    shard: u64,
    /// Byte offset or row in that shard.
    offset: u64,
    /// Samples of this epoch before that place (dealing by sample counts them).
    ordinal: u64,
    /// Number of the buffer in this epoch.
    window: u64,
    /// Samples handed out of the buffer.
    taken: u64,
}

/// A sample and the pass over the data it belongs to.
#[derive(Debug)]
pub struct Passed {
    /// Epoch, or number of the shard draw when resampling; keys the augmentation.
    pub pass: u64,
    /// The sample, or why it is none.
    pub sample: Result<Sample, Skipped>,
}

/// What the slots of a source have in common.
pub(super) struct Shared<'a> {
    pub set: &'a ShardSet,
    pub order: &'a Order,
    pub list: &'a [u32],
    pub epoch: u64,
}

/// One worker's part of a source.
pub(super) struct Slot {
    number: u64,
    slots: u64,
    worker: u64,
    workers: u64,
    start: SlotCursor,
    next: SlotCursor,
    window: Vec<Option<Passed>>,
    filled: bool,
    reader: Option<ShardReader>,
}

impl Slot {
    /// Worker `worker` of the `workers` of this process, number `number` of `slots` over all processes.
    pub fn new(start: SlotCursor, worker: u64, workers: u64, number: u64, slots: u64) -> Self {
        let (window, filled, reader) = (Vec::new(), false, None);
        Self {
            number,
            slots,
            worker,
            workers,
            start,
            next: start,
            window,
            filled,
            reader,
        }
    }

    pub fn next_sample(&mut self, shared: &Shared) -> Result<Option<Passed>, DataError> {
        if !self.filled {
            self.fill(shared)?;
        }
        if self.start.taken == self.window.len() as u64 && !self.window.is_empty() {
            self.start = self.next;
            self.fill(shared)?;
        }
        let Some(entry) = self.window.get_mut(self.start.taken as usize) else {
            return Ok(None);
        };
        let passed = entry.take();
        self.start.taken += 1;
        Ok(passed)
    }

    /// Reads the buffer that starts at `self.start` and leaves its end in `self.next`.
    fn fill(&mut self, shared: &Shared) -> Result<(), DataError> {
        self.window.clear();
        self.filled = true;
        let mut at = SlotCursor {
            taken: 0,
            ..self.start
        };
        let size = self.window_size(shared.order);
        let mut barren = 0; // shards in a row without a sample; drawing from empty ones would never end
        while (self.window.len() as u64) < size && barren <= 4 * shared.list.len() {
            let Some(shard) = self.shard_at(shared, at.shard) else {
                break;
            };
            let by_sample = shared.order.split_by == SplitBy::Sample && !shared.order.resample;
            let wanted = !by_sample || at.ordinal % self.slots == self.number;
            let got = match &mut self.reader {
                Some(reader) => reader.next_sample(wanted),
                closed => match shared.set.open(shard, at.offset) {
                    Ok(reader) => closed.insert(reader).next_sample(wanted),
                    // A shard that vanished costs its samples, not the run. Standard input is read once or never,
                    // and a shard of another make than the configuration says is one of many.
                    Err(error) if error.ends_reading() => return Err(error),
                    Err(error) => {
                        self.push(Some(Err(unreadable(shared.set, shard, error))), shared, &at);
                        at = SlotCursor {
                            shard: at.shard + 1,
                            offset: 0,
                            ordinal: at.ordinal + 1,
                            ..at
                        };
                        continue;
                    }
                },
            };
            match got {
                None => {
                    self.reader = None;
                    barren += 1;
                    at = SlotCursor {
                        shard: at.shard + 1,
                        offset: 0,
                        ..at
                    };
                }
                Some(sample) => {
                    self.push(sample.transpose(), shared, &at);
                    barren = 0;
                    at.ordinal += 1;
                    at.offset = self.reader.as_ref().map_or(0, ShardReader::position);
                }
            }
        }
        self.next = SlotCursor {
            window: at.window + 1,
            ..at
        };
        if shared.order.shuffle {
            let key = [shared.epoch, self.number, self.start.window];
            KeyedRng::numbered(shared.order.seed, "buffer", &key).shuffle(&mut self.window);
        }
        // a restored position: what was handed out before is read again and dropped
        let drop = (self.start.taken as usize).min(self.window.len());
        self.window[..drop].iter_mut().for_each(|entry| *entry = None);
        Ok(())
    }

    fn push(&mut self, sample: Option<Result<Sample, Skipped>>, shared: &Shared, at: &SlotCursor) {
        let pass = if shared.order.resample {
            at.shard * self.slots + self.number
        } else {
            shared.epoch
        };
        self.window
            .extend(sample.map(|sample| Some(Passed { pass, sample })));
    }

    fn shard_at(&self, shared: &Shared, place: u64) -> Option<usize> {
        if shared.order.resample {
            let n = shared.list.len() as u64;
            if n == 0 {
                return None;
            }
            let key = [shared.epoch, self.number, place];
            return Some(KeyedRng::numbered(shared.order.seed, "resample", &key).below(n) as usize);
        }
        let place = match shared.order.split_by {
            SplitBy::Sample => place,
            _ => place * self.slots + self.number,
        };
        shared.list.get(place as usize).map(|&shard| shard as usize)
    }

    /// The first buffers are of different sizes so that the workers do not all refill at once.
    fn window_size(&self, order: &Order) -> u64 {
        if !order.shuffle {
            return 1;
        }
        let full = u64::from(order.buffer).div_ceil(self.workers).max(1);
        if self.start.window == 0 {
            (full * (self.worker + 1)).div_ceil(self.workers)
        } else {
            full
        }
    }

    /// A drained buffer need not be read again.
    pub fn cursor(&self) -> SlotCursor {
        let drained = self.filled && !self.window.is_empty() && self.start.taken == self.window.len() as u64;
        if drained { self.next } else { self.start }
    }
}

fn unreadable(set: &ShardSet, shard: usize, error: DataError) -> Skipped {
    let problem = match error {
        DataError::Io { source, .. } => Problem::io(source),
        #[cfg(feature = "parquet")]
        DataError::Parquet { source, .. } => Problem::io(std::io::Error::other(source)), // the path is the shard's
        other => Problem::io(std::io::Error::other(other)),
    };
    Skipped {
        shard: set.paths[shard].to_string_lossy().into(),
        key: String::new(),
        problem,
    }
}
