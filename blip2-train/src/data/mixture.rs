//! Several data sets as one stream (section 6.7 of the format notes).
//!
//! Without ratios the next source is drawn in proportion to what it still has to give, which is a uniform shuffle of
//! the concatenation (LAVIS' map-style sets). With ratios it is drawn by them, for each sample or for each batch
//! (LAVIS' multi-loader draws whole batches). Draws are keyed by (seed, rank, epoch, draw number): every process has
//! its own sequence.

mod config;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::rng::KeyedRng;
use super::sample::{DataError, Sample, Skipped};
use super::stream::{Order, SourceCursor, SourceStream, Split};
pub use config::{Draw, MixtureConfig, Source};
use config::{check, ratios, setup};

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
    /// Names of the data sets, for messages.
    #[serde(default, with = "names")]
    names: Arc<Vec<String>>,
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
    names: Arc<Vec<String>>,
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
            names: Arc::new(sources.iter().map(|s| s.name.clone()).collect()),
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
                described(&cursor.names, &cursor.setup),
                described(&self.names, &self.setup),
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
            names: self.names.clone(),
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

/// Data sets by name, and the digest that tells two settings over the same ones apart.
fn described(names: &[String], setup: &str) -> String {
    match names {
        [] => setup.to_owned(), // saved before names were
        names => format!("{} ({setup})", names.join(", ")),
    }
}

/// Names as a plain list; cursors share them, since there is one for every sample.
mod names {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(names: &Arc<Vec<String>>, to: S) -> Result<S::Ok, S::Error> {
        names.as_slice().serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<Vec<String>>, D::Error> {
        Vec::deserialize(from).map(Arc::new)
    }
}

#[cfg(test)]
mod tests;
