//! Several data sets as one stream (section 6.7 of the format notes).
//!
//! Without ratios the next source is drawn in proportion to what it still has to give, which is a uniform shuffle of
//! the concatenation (LAVIS' map-style sets). With ratios it is drawn by them, for each sample or for each batch
//! (LAVIS' multi-loader draws whole batches). Draws are keyed by (seed, rank, epoch, draw number): every process has
//! its own sequence.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::rng::KeyedRng;
use super::sample::{DataError, Sample, Skipped};
use super::stream::{Data, Order, SourceCursor, SourceStream, Split};

/// One data set of a mixture.
#[derive(Clone, Debug)]
pub struct Source {
    /// Name for logs.
    pub name: String,
    /// Its samples.
    pub data: Data,
    /// Relative frequency; for all sources or for none.
    pub ratio: Option<f64>,
}

/// What a draw decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Draw {
    /// The source of one sample: batches are mixed.
    #[default]
    Sample,
    /// The source of one batch of this many samples: batches are pure.
    Batch(u32),
}

/// How a mixture is read.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixtureConfig {
    /// Order of every source.
    pub order: Order,
    /// This process.
    pub split: Split,
    /// Grain of the mixture.
    pub draw: Draw,
    /// True: go on for ever (training by steps). False: every sample once, then the end.
    pub repeat: bool,
}

impl Default for MixtureConfig {
    fn default() -> Self {
        Self {
            order: Order::default(),
            split: Split::default(),
            draw: Draw::Sample,
            repeat: false,
        }
    }
}

/// Where to begin.
#[derive(Clone, Debug)]
pub enum Start {
    /// At the first sample of an epoch; fits any number of processes.
    Epoch(u64),
    /// Exactly where a [`Cursor`] was taken.
    At(Cursor),
}

/// A position in a mixture, as small as a few numbers per worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Digest of everything the order depends on but the process.
    setup: String,
    rank: u32,
    world: u32,
    epoch: u64,
    draws: u64,
    /// Source of the batch being drawn and samples still to come from it.
    current: u32,
    left: u32,
    done: Vec<bool>,
    sources: Vec<SourceCursor>,
}

impl Cursor {
    /// Epoch of the next sample.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
}

/// A sample with its origin.
#[derive(Debug)]
pub struct Drawn {
    /// Index of the source.
    pub source: u32,
    /// Keys the augmentation: epoch of that source, or number of the shard draw when resampling.
    pub pass: u64,
    /// The sample, or why it is none.
    pub sample: Result<Sample, Skipped>,
}

/// The mixture as one process reads it.
pub struct Mixture {
    config: MixtureConfig,
    setup: String,
    names: Vec<String>,
    ratios: Option<Vec<f64>>,
    streams: Vec<SourceStream>,
    done: Vec<bool>,
    epoch: u64,
    draws: u64,
    current: u32,
    left: u32,
}

impl Mixture {
    /// Checks the settings and goes to `start`.
    pub fn new(sources: &[Source], config: MixtureConfig, start: Start) -> Result<Self, DataError> {
        check(&config)?;
        let ratios = ratios(sources, &config)?;
        let epoch = match &start {
            Start::Epoch(epoch) => *epoch,
            Start::At(cursor) => cursor.epoch,
        };
        let streams: Vec<SourceStream> = (0u64..)
            .zip(sources)
            .map(|(i, s)| {
                // sets with equally many shards must not be permuted alike
                let seed = KeyedRng::numbered(config.order.seed, "source", &[i]).below(u64::MAX);
                SourceStream::new(
                    s.data.clone(),
                    config.split,
                    Order { seed, ..config.order },
                    epoch,
                )
            })
            .collect();
        let mut mixture = Self {
            setup: setup(sources, &config, ratios.as_deref()),
            names: sources.iter().map(|s| s.name.clone()).collect(),
            config,
            ratios,
            done: vec![false; streams.len()],
            streams,
            epoch,
            draws: 0,
            current: 0,
            left: 0,
        };
        if let Start::At(cursor) = start {
            mixture.restore(cursor)?;
        }
        Ok(mixture)
    }

    fn restore(&mut self, cursor: Cursor) -> Result<(), DataError> {
        let Split { rank, world, .. } = self.config.split;
        let differ = |field, saved: String, now: String| Err(DataError::CursorMismatch { field, saved, now });
        if cursor.world != world {
            return differ("number of processes", cursor.world.to_string(), world.to_string());
        }
        if cursor.rank != rank {
            return differ("rank", cursor.rank.to_string(), rank.to_string());
        }
        let sizes = [cursor.sources.len(), cursor.done.len()];
        let fits = sizes == [self.streams.len(); 2] && (cursor.current as usize) < self.streams.len();
        if cursor.setup != self.setup || !fits {
            return differ(
                "data set list, seed, ratios or buffer",
                cursor.setup,
                self.setup.clone(),
            );
        }
        for (stream, position) in self.streams.iter_mut().zip(cursor.sources) {
            stream.restore(position);
        }
        (self.epoch, self.draws, self.current, self.left) =
            (cursor.epoch, cursor.draws, cursor.current, cursor.left);
        self.done = cursor.done;
        Ok(())
    }

    /// Position after the last sample drawn.
    pub fn cursor(&self) -> Cursor {
        Cursor {
            setup: self.setup.clone(),
            rank: self.config.split.rank,
            world: self.config.split.world,
            epoch: self.epoch,
            draws: self.draws,
            current: self.current,
            left: self.left,
            done: self.done.clone(),
            sources: self.streams.iter().map(SourceStream::cursor).collect(),
        }
    }

    /// Epoch of the next sample.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// True when a shard is standard input.
    pub fn reads_stdin(&self) -> bool {
        self.streams.iter().any(SourceStream::reads_stdin)
    }

    /// Samples of this process in an epoch, where every source knows.
    pub fn share(&self) -> Option<u64> {
        self.streams.iter().map(SourceStream::share).sum()
    }

    /// The next sample; `None` at the end of the epoch unless the mixture repeats.
    pub fn next_sample(&mut self) -> Result<Option<Drawn>, DataError> {
        let mut empty = 0; // epochs begun in a row without a sample
        loop {
            if self.left == 0 || self.done[self.current as usize] {
                match self.draw() {
                    Some(source) => {
                        self.current = source;
                        self.left = match self.config.draw {
                            Draw::Sample => 1,
                            Draw::Batch(size) => size,
                        };
                    }
                    None if self.config.repeat && empty == 0 => {
                        empty += 1;
                        self.start_epoch(self.epoch + 1);
                        continue;
                    }
                    None if self.config.repeat => return Err(self.empty(0)),
                    None => return Ok(None),
                }
            }
            let at = self.current as usize;
            if let Some(passed) = self.streams[at].next_sample()? {
                self.left -= 1;
                return Ok(Some(Drawn {
                    source: self.current,
                    pass: passed.pass,
                    sample: passed.sample,
                }));
            }
            if self.config.repeat && self.ratios.is_some() {
                if self.streams[at].handed_out() == 0 {
                    return Err(self.empty(at));
                }
                // each set has epochs of its own; the mixture's is that of the first
                let next = self.streams[at].epoch() + 1;
                self.streams[at].start_epoch(next);
                self.epoch = self.streams[0].epoch();
            } else {
                self.done[at] = true;
            }
        }
    }

    fn empty(&self, source: usize) -> DataError {
        let Split { rank, world, .. } = self.config.split;
        DataError::Empty {
            source_name: self.names.get(source).cloned().unwrap_or_default(),
            rank,
            world,
        }
    }

    fn start_epoch(&mut self, epoch: u64) {
        (self.epoch, self.draws, self.left) = (epoch, 0, 0);
        self.done.fill(false);
        self.streams.iter_mut().for_each(|s| s.start_epoch(epoch));
    }

    fn draw(&mut self) -> Option<u32> {
        let open = |i: usize| !self.done[i];
        let weights: Vec<f64> = match &self.ratios {
            Some(ratios) => ratios
                .iter()
                .enumerate()
                .map(|(i, &r)| if open(i) { r } else { 0.0 })
                .collect(),
            None => (0..self.streams.len())
                .map(|i| {
                    let stream = &self.streams[i];
                    // an estimate may run out early; the stream itself says when it ends
                    let left = stream
                        .share()
                        .unwrap_or(1)
                        .saturating_sub(stream.handed_out())
                        .max(1);
                    if open(i) { left as f64 } else { 0.0 }
                })
                .collect(),
        };
        let key = [u64::from(self.config.split.rank), self.epoch, self.draws];
        self.draws += 1;
        KeyedRng::numbered(self.config.order.seed, "draw", &key)
            .weighted(&weights)
            .map(|i| i as u32)
    }
}

fn check(config: &MixtureConfig) -> Result<(), DataError> {
    let Split { rank, world, workers } = config.split;
    let bad = |field, value: u32, remedy| {
        Err(DataError::Setting {
            field,
            value: value.to_string(),
            remedy,
        })
    };
    match config.draw {
        _ if rank >= world => bad("rank", rank, "must be below the number of processes"),
        _ if workers == 0 => bad("workers", workers, "at least 1"),
        Draw::Batch(0) => bad("batch size", 0, "at least 1"),
        _ => Ok(()),
    }
}

fn ratios(sources: &[Source], config: &MixtureConfig) -> Result<Option<Vec<f64>>, DataError> {
    let bad = |reason| Err(DataError::Ratios { reason });
    let given: Vec<f64> = sources.iter().filter_map(|s| s.ratio).collect();
    let sized = sources.iter().all(|s| match &s.data {
        Data::Rows(_) => true,
        Data::Shards(set) => set.samples.is_some() && !config.order.resample,
    });
    match (given.len(), sources.len()) {
        (_, 0) => bad("the mixture has no data set"),
        (0, 1) => Ok(None),
        (0, n) if matches!(config.draw, Draw::Batch(_)) => Ok(Some(vec![1.0; n])), // as LAVIS without ratios
        (0, _) if sized => Ok(None),
        (0, _) => {
            bad("shards of unknown size are mixed: give every data set a ratio, or the number of its samples")
        }
        (g, n) if g < n => bad("give a ratio to every data set or to none"),
        _ if given.iter().any(|r| !r.is_finite() || *r <= 0.0) => {
            bad("every ratio must be a positive number")
        }
        _ => Ok(Some(given)),
    }
}

/// File names without folders: data may move, its order may not change.
fn setup(sources: &[Source], config: &MixtureConfig, ratios: Option<&[f64]>) -> String {
    let mut hash = Sha256::new();
    let name = |path: &std::path::Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
    for source in sources {
        hash.update(match &source.data {
            Data::Rows(set) => format!("rows {} {:?}\n", set.len(), name(set.shard().as_ref().as_ref())),
            Data::Shards(set) => {
                format!(
                    "shards {:?} {:?}\n",
                    set.samples,
                    set.paths.iter().map(|p| name(p)).collect::<Vec<_>>()
                )
            }
        });
    }
    let Split { workers, .. } = config.split;
    hash.update(format!(
        "{workers} {:?} {:?} {} {ratios:?}",
        config.order, config.draw, config.repeat
    ));
    hash.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::testing::{numbered_shards, rows};
    use super::*;
    use proptest::prelude::*;

    fn source(name: &str, data: Data, ratio: Option<f64>) -> Source {
        Source {
            name: name.into(),
            data,
            ratio,
        }
    }

    fn take(mixture: &mut Mixture, n: usize) -> Vec<(u32, String)> {
        let next = || {
            mixture
                .next_sample()
                .unwrap()
                .map(|d| (d.source, d.sample.unwrap().captions[0].clone()))
        };
        std::iter::from_fn(next).take(n).collect()
    }

    #[test]
    fn ratios_are_kept_for_samples_and_batches() {
        let sources = [
            source("a", Data::Rows(rows(7)), Some(3.0)),
            source("b", Data::Rows(rows(50)), Some(1.0)),
        ];
        for draw in [Draw::Sample, Draw::Batch(8)] {
            let config = MixtureConfig {
                draw,
                repeat: true,
                ..MixtureConfig::default()
            };
            let drawn = take(
                &mut Mixture::new(&sources, config, Start::Epoch(0)).unwrap(),
                8000,
            );
            let first = drawn.iter().filter(|d| d.0 == 0).count();
            // 1000 draws of batches: 750 +- 3 sigma of 13.7, times 8; sampling by sample lies well inside
            assert!((5670..=6330).contains(&first), "{draw:?} {first}");
            if let Draw::Batch(n) = draw {
                assert!(drawn.chunks(n as usize).all(|c| c.iter().all(|d| d.0 == c[0].0)));
            }
        }
    }

    #[test]
    fn without_ratios_it_is_a_uniform_shuffle_of_all() {
        let sources = [
            source("a", Data::Rows(rows(300)), None),
            source("b", Data::Rows(rows(100)), None),
        ];
        let drawn = take(
            &mut Mixture::new(&sources, MixtureConfig::default(), Start::Epoch(0)).unwrap(),
            usize::MAX,
        );
        assert_eq!(drawn.len(), 400);
        for half in drawn.chunks(200) {
            let first = half.iter().filter(|d| d.0 == 0).count();
            assert!((135..=165).contains(&first), "{first}"); // hypergeometric, 150 +- 15 is about 4 sigma
        }
    }

    #[test]
    fn settings_are_checked() {
        let rows = Data::Rows(rows(3));
        let (_dir, mut set) = numbered_shards(&[2, 2], false);
        set.samples = None;
        let shards = Data::Shards(Arc::new(set));
        let new = |sources: &[Source], config| Mixture::new(sources, config, Start::Epoch(0)).err();
        let default = MixtureConfig::default();
        assert!(matches!(new(&[], default), Some(DataError::Ratios { .. })));
        let mixed = |a, b| [source("a", rows.clone(), a), source("b", shards.clone(), b)];
        assert!(matches!(
            new(&mixed(None, None), default),
            Some(DataError::Ratios { .. })
        ));
        assert!(matches!(
            new(&mixed(Some(1.0), None), default),
            Some(DataError::Ratios { .. })
        ));
        assert!(matches!(
            new(&mixed(Some(1.0), Some(-1.0)), default),
            Some(DataError::Ratios { .. })
        ));
        assert!(new(&mixed(Some(1.0), Some(2.0)), default).is_none());
        assert!(
            new(
                &mixed(None, None),
                MixtureConfig {
                    draw: Draw::Batch(2),
                    ..default
                }
            )
            .is_none()
        );
        let split = Split {
            rank: 2,
            world: 2,
            workers: 1,
        };
        assert!(matches!(
            new(&mixed(Some(1.0), Some(1.0)), MixtureConfig { split, ..default }),
            Some(DataError::Setting { .. })
        ));

        let one = [source("a", rows.clone(), None)];
        let cursor = Mixture::new(&one, default, Start::Epoch(0)).unwrap().cursor();
        let other = MixtureConfig {
            order: Order {
                seed: 7,
                ..Order::default()
            },
            ..default
        };
        let error = Mixture::new(&one, other, Start::At(cursor)).err();
        assert!(matches!(error, Some(DataError::CursorMismatch { .. })));
        // forced whole shards and more processes than shards: an endless run must say so rather than spin
        let split = Split {
            rank: 3,
            world: 4,
            workers: 1,
        };
        let order = Order {
            split_by: super::super::stream::SplitBy::Shard,
            ..Order::default()
        };
        let config = MixtureConfig {
            split,
            order,
            repeat: true,
            ..default
        };
        for ratio in [None, Some(1.0)] {
            let mut mixture =
                Mixture::new(&[source("b", shards.clone(), ratio)], config, Start::Epoch(0)).unwrap();
            let error = mixture.next_sample().err();
            assert!(matches!(error, Some(DataError::Empty { .. })), "{error:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn once_per_epoch_over_ranks_and_exact_resume(
            sizes in prop::collection::vec(1usize..8, 1..6), n_rows in 1usize..30, world in 1u32..4, workers in 1u32..3,
            batch in prop::option::of(1u32..5), ratio in prop::option::of(0.1f64..5.0), stop in 0usize..60,
            repeat in any::<bool>(),
        ) {
            let (_dir, set) = numbered_shards(&sizes, false);
            let total: usize = sizes.iter().sum();
            let sources = [
                source("shards", Data::Shards(Arc::new(set)), ratio),
                source("rows", Data::Rows(rows(n_rows)), ratio.map(|_| 1.0)),
            ];
            let mut seen = [vec![0; total], vec![0; n_rows]];
            for rank in 0..world {
                let config = MixtureConfig {
                    order: Order { buffer: 5, split_by: super::super::stream::SplitBy::Sample, ..Order::default() },
                    split: Split { rank, world, workers },
                    draw: batch.map_or(Draw::Sample, Draw::Batch),
                    repeat,
                };
                prop_assume!(!repeat || (total as u32 >= world && n_rows as u32 >= world));
                let limit = if repeat { 150 } else { usize::MAX };
                let whole = take(&mut Mixture::new(&sources, config, Start::Epoch(1)).unwrap(), limit);
                let mut first = Mixture::new(&sources, config, Start::Epoch(1)).unwrap();
                let mut got = take(&mut first, stop);
                let saved = serde_json::to_string(&first.cursor()).unwrap();
                let start = Start::At(serde_json::from_str(&saved).unwrap());
                let mut second = Mixture::new(&sources, config, start).unwrap();
                got.extend(take(&mut second, limit - got.len().min(limit)));
                prop_assert_eq!(&got, &whole);
                whole.iter().for_each(|(s, k)| seen[*s as usize][k.parse::<usize>().unwrap()] += 1);
            }
            if !repeat {
                prop_assert!(seen.iter().flatten().all(|&n| n == 1), "{:?}", seen);
            }
        }
    }
}
