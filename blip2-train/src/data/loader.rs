//! Batches of prepared samples from a mixture, each with the exact position to resume from.
//!
//! Order and contents depend on the mixture, the preparation and the seed, never on the number of threads.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::mixture::{Cursor, Draw, Mixture, MixtureConfig, Source, Start};
use super::pipeline::{Capacity, Item, Pipeline, Work};
use super::prepare::{Example, Preparation};
use super::sample::{DataError, Skipped};

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

    fn exceeded(&self, bad: u64, seen: u64) -> bool {
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

/// Position between two batches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoaderCursor {
    mixture: Cursor,
    /// Samples after that position that are in batches already given out (pure batches fill at different speeds).
    passed_over: Vec<u64>,
    seen: u64,
    bad: u64,
}

impl LoaderCursor {
    /// Epoch of the next sample.
    pub fn epoch(&self) -> u64 {
        self.mixture.epoch()
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

/// Samples looked at so far, and the bad ones by [`super::sample::Problem::kind`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Samples looked at, since the very start (carried through cursors).
    pub seen: u64,
    /// Bad ones among them.
    pub bad: u64,
    /// Bad ones of this run by kind.
    pub kinds: BTreeMap<&'static str, u64>,
}

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
    counts: Counts,
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
        if !(0.0..=1.0).contains(&config.errors.share) {
            let value = config.errors.share.to_string();
            return Err(DataError::Setting {
                field: "share of bad samples",
                value,
                remedy: "0 to 1",
            });
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
        let (start, passed_over, seen, bad) = match start {
            LoaderStart::Epoch(epoch) => (Start::Epoch(epoch), Vec::new(), 0, 0),
            LoaderStart::After(c) => (Start::At(c.mixture), c.passed_over, c.seen, c.bad),
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
            counts: Counts {
                seen,
                bad,
                kinds: BTreeMap::new(),
            },
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

    /// Samples seen and skipped so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
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
        self.counts.seen += 1;
        match outcome {
            Ok(example) => {
                let pool = if self.pools.len() > 1 { source as usize } else { 0 };
                self.pools[pool].push(Pending {
                    number,
                    before,
                    example,
                });
                Ok((self.pools[pool].len() >= self.config.batch_size as usize).then_some(pool))
            }
            Err(skipped) => {
                self.counts.bad += 1;
                *self.counts.kinds.entry(skipped.problem.kind()).or_default() += 1;
                let (bad, seen, policy) = (self.counts.bad, self.counts.seen, self.config.errors);
                if policy.exceeded(bad, seen) {
                    let limit = format!("{} and {} % of all", policy.allowed, policy.share * 100.0);
                    return Err(DataError::TooManyBad {
                        bad,
                        seen,
                        limit,
                        last: Box::new(skipped),
                    });
                }
                self.skipped.push(skipped);
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
        let seen = self.counts.seen - pending.len() as u64;
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
            seen,
            bad: self.counts.bad,
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
mod tests {
    use super::super::augment::Transform;
    use super::super::stream::{Data, Order, Split};
    use super::super::testing::picture_shards;
    use super::*;
    use proptest::prelude::*;

    /// (pictures' bytes, captions) of a batch, enough to compare.
    fn digest(batch: &Batch) -> Vec<(String, u64)> {
        let sum = |e: &Example| {
            e.image
                .as_raw()
                .iter()
                .enumerate()
                .map(|(i, &v)| i as u64 * u64::from(v))
                .sum()
        };
        batch
            .examples
            .iter()
            .map(|e| (e.caption.clone(), sum(e)))
            .collect()
    }

    fn sources(dirs: &mut Vec<tempfile::TempDir>, sizes: &[&[usize]], ratio: Option<f64>) -> Vec<Source> {
        sizes
            .iter()
            .enumerate()
            .map(|(i, sizes)| {
                let (dir, set) = picture_shards(sizes, i);
                dirs.push(dir);
                Source {
                    name: format!("s{i}"),
                    data: Data::Shards(Arc::new(set)),
                    ratio,
                }
            })
            .collect()
    }

    fn preparation() -> Preparation {
        Preparation {
            transform: Transform::named("blip_image_train", 16).unwrap(),
            ..Preparation::default()
        }
    }

    #[test]
    fn results_do_not_depend_on_threads_and_bad_samples_are_counted() {
        let mut dirs = Vec::new();
        let sources = sources(&mut dirs, &[&[20, 20, 11]], None);
        let run = |threads| {
            let config = LoaderConfig {
                batch_size: 8,
                threads,
                drop_last: false,
                ..LoaderConfig::default()
            };
            let mixture = MixtureConfig {
                split: Split {
                    workers: 2,
                    ..Split::default()
                },
                ..MixtureConfig::default()
            };
            let mut loader =
                Loader::new(&sources, &[preparation()], mixture, config, LoaderStart::Epoch(3)).unwrap();
            assert_eq!(loader.batches_per_epoch(), Some(7));
            let batches: Vec<Batch> = loader.by_ref().map(|b| b.unwrap()).collect();
            let names: Vec<String> = batches
                .iter()
                .flat_map(|b| &b.skipped)
                .map(|s| s.key.clone())
                .collect();
            (
                batches.iter().map(digest).collect::<Vec<_>>(),
                names,
                loader.counts().clone(),
            )
        };
        let (batches, names, counts) = run(1);
        // every tenth picture is damaged
        assert_eq!((counts.seen, counts.bad, counts.kinds["decode"]), (51, 5, 5));
        assert_eq!(names.len(), 5);
        assert_eq!(
            batches.iter().map(Vec::len).collect::<Vec<_>>(),
            [8, 8, 8, 8, 8, 6]
        );
        for threads in [2, 7] {
            assert_eq!(run(threads), (batches.clone(), names.clone(), counts.clone()));
        }
    }

    #[test]
    fn too_many_bad_samples_stop_the_run() {
        let mut dirs = Vec::new();
        let sources = sources(&mut dirs, &[&[40]], None);
        let run = |errors| {
            let config = LoaderConfig {
                batch_size: 4,
                errors,
                ..LoaderConfig::default()
            };
            let order = Order {
                shuffle: false,
                ..Order::default()
            };
            let mixture = MixtureConfig {
                order,
                ..MixtureConfig::default()
            };
            Loader::new(&sources, &[preparation()], mixture, config, LoaderStart::Epoch(0))
                .unwrap()
                .collect::<Vec<_>>()
        };
        let strict = run(ErrorPolicy {
            allowed: 1,
            share: 0.0,
        });
        match strict.last() {
            Some(Err(DataError::TooManyBad { bad: 2, last, .. })) => assert_eq!(last.key, "s0-19"),
            other => panic!("{other:?}"),
        }
        assert!(
            run(ErrorPolicy {
                allowed: 0,
                share: 0.11
            })
            .iter()
            .all(Result::is_ok)
        );
        assert!(
            run(ErrorPolicy {
                allowed: 0,
                share: 0.05
            })
            .iter()
            .any(Result::is_err)
        );
        assert!(run(ErrorPolicy::LENIENT).iter().all(Result::is_ok));
    }

    #[test]
    fn settings_are_checked() {
        let mut dirs = Vec::new();
        let sources = sources(&mut dirs, &[&[2], &[2]], Some(1.0));
        let new = |preparations: &[Preparation], config, draw| {
            let mixture = MixtureConfig {
                draw,
                ..MixtureConfig::default()
            };
            Loader::new(&sources, preparations, mixture, config, LoaderStart::Epoch(0)).err()
        };
        let good = LoaderConfig::default();
        let p = preparation;
        assert!(new(&[p()], good, Draw::Sample).is_none());
        assert!(new(&[p(), p()], good, Draw::Batch(32)).is_none());
        assert!(new(&[p(), p(), p()], good, Draw::Sample).is_some());
        assert!(new(&[p()], good, Draw::Batch(5)).is_some());
        assert!(
            new(
                &[p()],
                LoaderConfig {
                    batch_size: 0,
                    ..good
                },
                Draw::Sample
            )
            .is_some()
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn resume_after_any_batch_is_exact(
            stop in 1usize..12, pure in any::<bool>(), batch_size in 1u32..6, repeat in any::<bool>(),
            threads in 1usize..4, drop_last in any::<bool>(),
        ) {
            let mut dirs = Vec::new();
            let sources = sources(&mut dirs, &[&[9, 12, 7], &[13, 4]], pure.then_some(1.0));
            let mixture = MixtureConfig {
                order: Order { buffer: 6, ..Order::default() },
                split: Split { workers: 2, ..Split::default() },
                draw: if pure { Draw::Batch(batch_size) } else { Draw::Sample },
                repeat,
            };
            let config =
                LoaderConfig { batch_size, threads, drop_last, errors: ErrorPolicy::LENIENT, ..LoaderConfig::default() };
            let run = |start, n: usize| -> Vec<Batch> {
                let loader = Loader::new(&sources, &[preparation()], mixture, config, start).unwrap();
                loader.take(n).map(|b| b.unwrap()).collect()
            };
            let whole = run(LoaderStart::Epoch(0), 30);
            let stop = stop.min(whole.len());
            let saved = serde_json::to_string(&whole[stop - 1].cursor).unwrap();
            let rest = run(LoaderStart::After(serde_json::from_str(&saved).unwrap()), 30 - stop);
            prop_assert_eq!(rest.len(), whole.len() - stop);
            for (a, b) in rest.iter().zip(&whole[stop..]) {
                prop_assert_eq!(digest(a), digest(b));
                prop_assert_eq!((a.cursor.seen, a.cursor.bad), (b.cursor.seen, b.cursor.bad));
            }
            if pure {
                for b in &whole {
                    prop_assert!(b.examples.iter().all(|e| e.source == b.examples[0].source));
                }
            }
            if !repeat && !drop_last {
                let mut all: Vec<_> = whole.iter().flat_map(digest).map(|d| d.0).collect();
                all.sort();
                all.dedup();
                prop_assert!(whole.len() == 30 || all.len() == 28 - 2 + 17 - 1); // every tenth of each set is bad
            }
        }
    }
}
