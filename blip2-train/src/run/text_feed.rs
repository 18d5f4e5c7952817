//! Rows of tokens from a set of texts, for a language model's own training: the whole set in memory as tokens,
//! in a new order every epoch, the place in it two numbers.

use blip2_model::nn::PadMask;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{BatchSource, SourceError};
use crate::data::rng::KeyedRng;
use crate::stage::{PlainBatch, TextBatch};

/// How rows are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TextFeedConfig {
    /// Rows in a batch of this process.
    pub batch_size: usize,
    /// Longest row, tokens.
    pub length: usize,
    /// Texts one after another until a row is full; otherwise one text a row, cut into pieces where it is longer.
    pub pack: bool,
    /// Keys the order.
    pub seed: u64,
    /// A new order every epoch, or the given one.
    pub shuffle: bool,
    /// Padding id.
    pub pad: i64,
    /// This process.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
}

/// See the module documentation.
#[derive(Debug)]
pub struct TextFeed {
    config: TextFeedConfig,
    texts: Vec<Vec<u32>>,
    place: Place,
    /// Rows of the epoch, as (key, ids).
    rows: Option<Vec<(String, Vec<i64>)>>,
}

/// Epoch, and batches of it behind us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    epoch: u64,
    batch: u64,
}

/// Fewer rows than one batch on every process.
#[derive(Debug, thiserror::Error)]
#[error(
    "the texts make {rows} rows, one step takes {needed}; give more text, a smaller batch or a shorter max_txt_len"
)]
pub struct TooFewTexts {
    rows: usize,
    needed: usize,
}

impl TextFeed {
    /// Over tokenised texts, each with its beginning and end.
    ///
    /// # Errors
    /// [`TooFewTexts`].
    pub fn new(texts: Vec<Vec<u32>>, config: TextFeedConfig) -> Result<Self, TooFewTexts> {
        let mut feed = Self {
            config,
            texts,
            place: Place::default(),
            rows: None,
        };
        let rows = feed.make_rows(0);
        let needed = config.batch_size * config.world;
        if rows.len() < needed {
            return Err(TooFewTexts {
                rows: rows.len(),
                needed,
            });
        }
        feed.rows = Some(rows);
        Ok(feed)
    }

    /// Batches of an epoch; the same for every epoch up to the rounding of pieces.
    pub fn batches_per_epoch(&self) -> u64 {
        let rows = self.rows.as_ref().map_or(0, Vec::len);
        (rows / (self.config.batch_size * self.config.world)) as u64
    }

    /// Tokens of all texts.
    pub fn tokens(&self) -> usize {
        self.texts.iter().map(Vec::len).sum()
    }

    fn make_rows(&self, epoch: u64) -> Vec<(String, Vec<i64>)> {
        let config = &self.config;
        let mut order: Vec<usize> = (0..self.texts.len()).collect();
        if config.shuffle {
            KeyedRng::numbered(config.seed, "texts", &[epoch]).shuffle(&mut order);
        }
        let wide = |ids: &[u32]| ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>();
        let mut rows = Vec::new();
        if config.pack {
            let stream: Vec<u32> = order
                .iter()
                .flat_map(|&i| self.texts[i].iter().copied())
                .collect();
            let full = stream.chunks_exact(config.length).enumerate();
            rows.extend(full.map(|(i, row)| (format!("epoch {epoch} row {i}"), wide(row))));
        } else {
            for &i in &order {
                // the last token of a piece is the first of the next, so that every token is predicted once
                let (text, step) = (&self.texts[i], config.length - 1);
                let mut start = 0;
                while text.len() > start + 1 {
                    let end = text.len().min(start + config.length);
                    rows.push((format!("text {i}"), wide(&text[start..end])));
                    start += step;
                }
            }
        }
        rows
    }
}

impl BatchSource<PlainBatch> for TextFeed {
    fn next_batch(&mut self) -> Result<PlainBatch, SourceError> {
        let config = self.config;
        let step = config.batch_size * config.world;
        if self.rows.is_none() {
            self.rows = Some(self.make_rows(self.place.epoch));
        }
        let count = self.rows.as_ref().map_or(0, Vec::len);
        if (self.place.batch as usize + 1) * step > count {
            self.place = Place {
                epoch: self.place.epoch + 1,
                batch: 0,
            };
            self.rows = Some(self.make_rows(self.place.epoch));
        }
        let rows = self.rows.as_deref().unwrap_or_default();
        let first = self.place.batch as usize * step + config.rank * config.batch_size;
        let rows = &rows[first..first + config.batch_size];
        let longest = rows.iter().map(|(_, ids)| ids.len()).max().unwrap_or(0);
        let pad = |ids: &Vec<i64>| {
            let mut ids = ids.clone();
            ids.resize(longest, config.pad);
            ids
        };
        let mask = rows
            .iter()
            .map(|(_, ids)| (0..longest).map(|t| t < ids.len()).collect());
        let batch = PlainBatch {
            keys: rows.iter().map(|(key, _)| key.clone()).collect(),
            text: TextBatch {
                ids: rows.iter().map(|(_, ids)| pad(ids)).collect(),
                mask: PadMask::new(mask.collect()),
            },
        };
        self.place.batch += 1;
        Ok(batch)
    }

    fn cursor(&self) -> Value {
        serde_json::to_value(self.place).unwrap_or_default()
    }

    fn seek(&mut self, cursor: &Value) -> Result<(), SourceError> {
        self.place = serde_json::from_value(cursor.clone())?;
        self.rows = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pack: bool) -> TextFeedConfig {
        TextFeedConfig {
            batch_size: 2,
            length: 4,
            pack,
            seed: 1,
            shuffle: true,
            pad: 0,
            rank: 0,
            world: 1,
        }
    }

    fn texts() -> Vec<Vec<u32>> {
        (0..7)
            .map(|i| (0..i % 3 + 3).map(|t| 10 * i + t + 1).collect())
            .collect()
    }

    #[test]
    fn every_epoch_has_all_tokens_and_a_resumed_feed_the_same_ones() {
        for pack in [true, false] {
            let mut feed = TextFeed::new(texts(), config(pack)).unwrap();
            let epoch = feed.batches_per_epoch();
            let mut seen = Vec::new();
            let mut cursors = Vec::new();
            for _ in 0..2 * epoch {
                cursors.push(feed.cursor());
                seen.push(feed.next_batch().unwrap().text.ids);
            }
            assert_ne!(seen[0], seen[epoch as usize], "another order in the second epoch");
            for (i, cursor) in cursors.iter().enumerate() {
                let mut other = TextFeed::new(texts(), config(pack)).unwrap();
                other.seek(cursor).unwrap();
                assert_eq!(other.next_batch().unwrap().text.ids, seen[i]);
            }
        }
        // unpacked, a token that is no beginning is predicted exactly once
        let mut feed = TextFeed::new(
            texts(),
            TextFeedConfig {
                batch_size: 1,
                ..config(false)
            },
        )
        .unwrap();
        let mut predicted: Vec<i64> = (0..feed.batches_per_epoch())
            .flat_map(|_| feed.next_batch().unwrap().text.ids[0][1..].to_vec())
            .filter(|&id| id != 0)
            .collect();
        predicted.sort_unstable();
        let mut want: Vec<i64> = texts()
            .iter()
            .flat_map(|t| t[1..].to_vec())
            .map(i64::from)
            .collect();
        want.sort_unstable();
        assert_eq!(predicted, want);
    }

    #[test]
    fn ranks_share_the_rows_of_one_process() {
        let whole = TextFeedConfig {
            batch_size: 4,
            ..config(true)
        };
        let all = TextFeed::new(texts(), whole)
            .unwrap()
            .next_batch()
            .unwrap()
            .text
            .ids;
        let parts: Vec<_> = (0..2)
            .flat_map(|rank| {
                let part = TextFeedConfig {
                    rank,
                    world: 2,
                    ..config(true)
                };
                TextFeed::new(texts(), part)
                    .unwrap()
                    .next_batch()
                    .unwrap()
                    .text
                    .ids
            })
            .collect();
        assert_eq!(all, parts);
    }

    #[test]
    fn too_little_text_is_said() {
        let error = TextFeed::new(vec![vec![1, 2, 3]], config(true))
            .unwrap_err()
            .to_string();
        assert!(error.contains("0 rows") && error.contains("takes 2"), "{error}");
    }
}
