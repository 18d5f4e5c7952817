//! The samples of one data set that one process reads, in a reproducible order that can be resumed anywhere.
//!
//! Shards: the list is permuted by (seed, epoch) and dealt to `world * workers` slots; a process walks its slots in
//! turn. Each slot fills a buffer, permutes it, hands it out, then fills the next. Because a buffer is drained before
//! the next begins, a position is (where the buffer began, how many were taken), small and exact.
//! Annotation files: one permutation of all rows, dealt row by row.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::annotations::AnnotationSet;
use super::rng::KeyedRng;
use super::sample::DataError;
use super::shard::ShardSet;
pub use super::slot::{Passed, SlotCursor};
use super::slot::{Shared, Slot};

/// The data behind a source.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Data {
    /// Rows with a number each, pictures in files.
    Rows(Arc<AnnotationSet>),
    /// Shards read in sequence.
    Shards(Arc<ShardSet>),
}

/// This process among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// 0..world.
    pub rank: u32,
    /// Number of processes.
    pub world: u32,
    /// Shards a process has open at a time; more mixes better and costs memory for open files.
    pub workers: u32,
}

impl Default for Split {
    fn default() -> Self {
        Self {
            rank: 0,
            world: 1,
            workers: 1,
        }
    }
}

/// How shards are shared out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitBy {
    /// By sample when there are fewer than four shards per slot and they do not deal out evenly, else by shard.
    #[default]
    Auto,
    /// Whole shards: no byte is read twice; shares differ by up to a shard.
    Shard,
    /// Every slot walks every shard and takes each `slots`-th sample: shares differ by at most one sample.
    Sample,
}

/// The order in which samples are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Order {
    /// Keys every permutation.
    pub seed: u64,
    /// False: file order.
    pub shuffle: bool,
    /// Samples in the shuffle buffers of one process, all workers together.
    pub buffer: u32,
    /// Draw shards with replacement, without end (LAVIS' LAION pipeline), instead of each once per epoch.
    pub resample: bool,
    /// How shards are shared out.
    pub split_by: SplitBy,
}

impl Default for Order {
    fn default() -> Self {
        Self {
            seed: 42,
            shuffle: true,
            buffer: 1000,
            resample: false,
            split_by: SplitBy::Auto,
        }
    }
}

/// Position in one source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCursor {
    epoch: u64,
    turn: u32,
    handed_out: u64,
    slots: Vec<SlotCursor>,
}

/// One process' share of one data set.
pub struct SourceStream {
    data: Data,
    split: Split,
    order: Order,
    cursor: SourceCursor,
    slots: Vec<Slot>,
    list: Arc<Vec<u32>>,
}

/// 0..n in the order of (seed, epoch).
fn permutation(order: &Order, purpose: &str, epoch: u64, n: usize) -> Arc<Vec<u32>> {
    let mut list: Vec<u32> = (0..n as u32).collect();
    if order.shuffle {
        KeyedRng::numbered(order.seed, purpose, &[epoch]).shuffle(&mut list);
    }
    Arc::new(list)
}

impl SourceStream {
    /// Starts at the beginning of `epoch`.
    pub fn new(data: Data, split: Split, order: Order, epoch: u64) -> Self {
        let (order, slots) = match &data {
            Data::Rows(_) => (order, 0),
            Data::Shards(set) => resolve(set.paths.len() as u64, split, order),
        };
        let cursor = SourceCursor {
            epoch,
            turn: 0,
            handed_out: 0,
            slots: vec![SlotCursor::default(); slots as usize],
        };
        let mut stream = Self {
            data,
            split,
            order,
            cursor: cursor.clone(),
            slots: Vec::new(),
            list: Arc::default(),
        };
        stream.restore(cursor);
        stream
    }

    /// Goes to `cursor`, which must come from a stream with the same data, split and order.
    pub fn restore(&mut self, cursor: SourceCursor) {
        let (purpose, len) = match &self.data {
            Data::Rows(set) => ("rows", set.len()),
            Data::Shards(set) => ("shards", set.paths.len()),
        };
        self.list = permutation(&self.order, purpose, cursor.epoch, len);
        let (workers, world) = (cursor.slots.len() as u64, u64::from(self.split.world));
        // neighbouring shards go to different processes
        let number = |worker| worker * world + u64::from(self.split.rank);
        self.slots = (0u64..)
            .zip(&cursor.slots)
            .map(|(worker, &start)| Slot::new(start, worker, workers, number(worker), workers * world))
            .collect();
        self.cursor = cursor;
    }

    /// Position after the last sample handed out.
    pub fn cursor(&self) -> SourceCursor {
        SourceCursor {
            slots: self.slots.iter().map(Slot::cursor).collect(),
            ..self.cursor
        }
    }

    /// Goes to the beginning of `epoch`.
    pub fn start_epoch(&mut self, epoch: u64) {
        let slots = vec![SlotCursor::default(); self.slots.len()];
        self.restore(SourceCursor {
            epoch,
            turn: 0,
            handed_out: 0,
            slots,
        });
    }

    /// Epoch in work.
    pub fn epoch(&self) -> u64 {
        self.cursor.epoch
    }

    /// True when a shard is standard input.
    pub fn reads_stdin(&self) -> bool {
        matches!(&self.data, Data::Shards(set) if set.paths.iter().any(|p| p.as_os_str() == "-"))
    }

    /// Samples handed out in this epoch.
    pub fn handed_out(&self) -> u64 {
        self.cursor.handed_out
    }

    /// Samples of this process in an epoch; an estimate for shards, `None` where not known.
    pub fn share(&self) -> Option<u64> {
        let world = u64::from(self.split.world);
        match &self.data {
            Data::Rows(set) => Some((set.len() as u64 + world - 1 - u64::from(self.split.rank)) / world),
            Data::Shards(set) => set.samples.map(|n| n.div_ceil(world)),
        }
    }

    /// The next sample of this epoch; `None` at its end.
    pub fn next_sample(&mut self) -> Result<Option<Passed>, DataError> {
        let passed = match &self.data {
            Data::Rows(set) => {
                let place = self.cursor.handed_out * u64::from(self.split.world) + u64::from(self.split.rank);
                let row = self
                    .list
                    .get(place as usize)
                    .and_then(|&row| set.sample(row as usize));
                row.map(|sample| Passed {
                    pass: self.cursor.epoch,
                    sample,
                })
            }
            Data::Shards(set) => {
                let mut found = None;
                let count = self.slots.len() as u32;
                for step in 0..count {
                    let at = (self.cursor.turn + step) % count;
                    let shared = Shared {
                        set,
                        order: &self.order,
                        list: &self.list,
                        epoch: self.cursor.epoch,
                    };
                    if let Some(passed) = self.slots[at as usize].next_sample(&shared)? {
                        self.cursor.turn = (at + 1) % count;
                        found = Some(passed);
                        break;
                    }
                }
                found
            }
        };
        self.cursor.handed_out += u64::from(passed.is_some());
        Ok(passed)
    }
}

/// Fixes what [`SplitBy::Auto`] means here and how many slots this process has.
fn resolve(shards: u64, split: Split, order: Order) -> (Order, u32) {
    let world = u64::from(split.world);
    let workers = u64::from(split.workers).clamp(1, (shards / world).max(1));
    let slots = world * workers;
    let split_by = match order.split_by {
        SplitBy::Auto if !order.resample && !shards.is_multiple_of(slots) && shards < 4 * slots => {
            SplitBy::Sample
        }
        SplitBy::Auto => SplitBy::Shard,
        given => given,
    };
    // dealing by sample, a second worker would only read everything once more
    let workers = if split_by == SplitBy::Sample && !order.resample {
        1
    } else {
        workers
    };
    (Order { split_by, ..order }, workers as u32)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{numbered_shards, rows};
    use super::*;
    use proptest::prelude::*;

    fn keys(stream: &mut SourceStream, n: usize) -> Vec<String> {
        let next = || {
            stream
                .next_sample()
                .unwrap()
                .map(|p| p.sample.unwrap().captions[0].clone())
        };
        std::iter::from_fn(next).take(n).collect()
    }

    #[test]
    fn epochs_differ_seeds_differ_and_both_repeat() {
        let (_dir, set) = numbered_shards(&[10, 10, 10, 10], false);
        let data = Data::Shards(Arc::new(set));
        let run = |seed, epoch| {
            let order = Order {
                seed,
                buffer: 8,
                ..Order::default()
            };
            keys(
                &mut SourceStream::new(data.clone(), Split::default(), order, epoch),
                99,
            )
        };
        assert_eq!(run(1, 0), run(1, 0));
        assert_ne!(run(1, 0), run(1, 1));
        assert_ne!(run(1, 0), run(2, 0));
        let plain = Order {
            shuffle: false,
            ..Order::default()
        };
        let all = keys(&mut SourceStream::new(data, Split::default(), plain, 0), 99);
        assert_eq!(all, (0..40).map(|i| i.to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn resampling_draws_with_replacement_without_end() {
        let (_dir, set) = numbered_shards(&[3, 3, 3], false);
        let order = Order {
            resample: true,
            buffer: 4,
            ..Order::default()
        };
        let mut stream = SourceStream::new(Data::Shards(Arc::new(set)), Split::default(), order, 0);
        let drawn = keys(&mut stream, 300);
        let mut counts = [0; 9];
        drawn
            .iter()
            .for_each(|k| counts[k.parse::<usize>().unwrap()] += 1);
        // 100 shards drawn from 3: each 33 +- 3 sigma
        assert!(counts.iter().all(|c| (19..=48).contains(c)), "{counts:?}");
        let (_dir, set) = numbered_shards(&[0, 0], false);
        assert!(
            keys(
                &mut SourceStream::new(Data::Shards(Arc::new(set)), Split::default(), order, 0),
                1
            )
            .is_empty()
        );
    }

    #[test]
    fn a_shard_that_vanishes_costs_only_its_samples() {
        let (dir, set) = numbered_shards(&[2, 2, 2], false);
        std::fs::remove_file(dir.path().join("1.tar")).unwrap();
        let order = Order {
            shuffle: false,
            ..Order::default()
        };
        let mut stream = SourceStream::new(Data::Shards(Arc::new(set)), Split::default(), order, 0);
        let mut got = Vec::new();
        while let Some(passed) = stream.next_sample().unwrap() {
            got.push(
                passed
                    .sample
                    .map(|s| s.captions[0].clone())
                    .map_err(|s| s.problem.kind()),
            );
        }
        let ok = |s: &str| Ok(s.to_owned());
        assert_eq!(got, [ok("0"), ok("1"), Err("io"), ok("4"), ok("5")]);
    }

    #[test]
    fn every_process_that_walks_a_lost_shard_hears_of_it() {
        let (dir, set) = numbered_shards(&[4, 4, 4], false);
        std::fs::write(dir.path().join("1.tar"), [7; 2000]).unwrap();
        std::fs::remove_file(dir.path().join("2.tar")).unwrap();
        let order = Order {
            split_by: SplitBy::Sample,
            ..Order::default()
        };
        let data = Data::Shards(Arc::new(set));
        let mut good = Vec::new();
        for rank in 0..3 {
            let split = Split {
                rank,
                world: 3,
                workers: 1,
            };
            let mut stream = SourceStream::new(data.clone(), split, order, 0);
            let mut lost = 0;
            while let Some(passed) = stream.next_sample().unwrap() {
                match passed.sample {
                    Ok(sample) => good.push(sample.captions[0].clone()),
                    Err(skipped) => lost += u32::from(skipped.problem.loses_shard()),
                }
            }
            assert_eq!(lost, 2, "rank {rank}");
        }
        good.sort();
        assert_eq!(good, ["0", "1", "2", "3"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// N ranks x M workers x any stop point: each sample exactly once, and resuming changes nothing.
        #[test]
        fn every_sample_once_and_resume_is_exact(
            sizes in prop::collection::vec(0usize..12, 1..9), gzip in any::<bool>(), shuffle in any::<bool>(),
            world in 1u32..5, workers in 1u32..4, buffer in 1u32..20, epoch in 0u64..3,
            split_by in prop::sample::select(vec![SplitBy::Auto, SplitBy::Shard, SplitBy::Sample]),
            stop in 0usize..40, indexed in any::<bool>(),
        ) {
            let total: usize = sizes.iter().sum();
            let (_dir, set) = numbered_shards(&sizes, gzip);
            let data = if indexed { Data::Rows(rows(total)) } else { Data::Shards(Arc::new(set)) };
            let order = Order { shuffle, buffer, split_by, seed: u64::from(buffer), resample: false };
            let mut seen = vec![0; total];
            let mut shares = Vec::new();
            for rank in 0..world {
                let split = Split { rank, world, workers };
                let whole = keys(&mut SourceStream::new(data.clone(), split, order, epoch), usize::MAX);
                let mut first = SourceStream::new(data.clone(), split, order, epoch);
                let mut got = keys(&mut first, stop);
                let saved = serde_json::to_string(&first.cursor()).unwrap();
                let mut second = SourceStream::new(data.clone(), split, order, 99);
                second.restore(serde_json::from_str(&saved).unwrap());
                got.extend(keys(&mut second, usize::MAX));
                prop_assert_eq!(&got, &whole, "rank {}", rank);
                prop_assert_eq!(second.handed_out(), whole.len() as u64);
                whole.iter().for_each(|k| seen[k.parse::<usize>().unwrap()] += 1);
                shares.push(whole.len());
            }
            prop_assert!(seen.iter().all(|&n| n == 1), "{:?}", seen);
            if indexed || split_by == SplitBy::Sample {
                prop_assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
            }
        }
    }
}
