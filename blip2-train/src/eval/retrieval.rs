//! Image-text retrieval: ITC ranking, re-ranking of the best by ITM, recall at 1, 5 and 10 both ways.
//!
//! As LAVIS evaluates BLIP-2: similarities are cosines (maximum over the queries, no temperature); of every row the best
//! `k` (128) get `ITM logit + similarity`, all others -100. An image counts as found at the best rank of its captions
//! (TR, image to text), a caption at that of its image (IR, text to image). A caption has one image, although COCO has a
//! few pictures with the same caption; [`CaptionMap::shared`] lets such captions match all their pictures, which gives
//! figures that cannot be compared with published ones.

use std::collections::HashMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::error::EvalError;

/// Score of pairs that were not re-ranked.
pub const NOT_RANKED: f32 = -100.0;

/// Ranks of which recall is reported.
pub const RECALL_AT: [usize; 3] = [1, 5, 10];

/// Which captions belong to which image.
#[derive(Clone, Debug, PartialEq)]
pub struct CaptionMap {
    captions_of: Vec<Vec<usize>>,
    images_of: Vec<Vec<usize>>,
}

impl CaptionMap {
    /// From each image's captions, as positions in the list of all captions.
    ///
    /// # Errors
    /// [`EvalError::CaptionMap`] for a position outside `0..captions` or used twice or never,
    /// [`EvalError::NoReferences`] for an image without captions, [`EvalError::Empty`].
    pub fn new(captions_of: Vec<Vec<usize>>) -> Result<Self, EvalError> {
        const NONE: usize = usize::MAX;
        if captions_of.is_empty() {
            return Err(EvalError::Empty);
        }
        let captions = captions_of.iter().map(Vec::len).sum();
        let mut image_of = vec![NONE; captions];
        for (image, list) in captions_of.iter().enumerate() {
            if list.is_empty() {
                return Err(EvalError::NoReferences { item: image });
            }
            for &caption in list {
                match image_of.get_mut(caption) {
                    // as many captions as places: one outside means that another place stays empty
                    None => {
                        return Err(EvalError::CaptionMap {
                            image,
                            caption,
                            problem: "outside the list of captions",
                        });
                    }
                    Some(owner) if *owner != NONE => {
                        return Err(EvalError::CaptionMap {
                            image,
                            caption,
                            problem: "another image's caption as well",
                        });
                    }
                    Some(owner) => *owner = image,
                }
            }
        }
        Ok(Self {
            captions_of,
            images_of: image_of.into_iter().map(|image| vec![image]).collect(),
        })
    }

    /// The map in which captions that are the same text belong to each other's images as well. `texts` are all captions.
    pub fn shared(self, texts: &[String]) -> Self {
        let mut same: HashMap<&str, Vec<usize>> = HashMap::new();
        for (caption, text) in texts.iter().enumerate() {
            same.entry(text).or_default().push(caption);
        }
        let mut images_of = self.images_of.clone();
        let mut captions_of = vec![Vec::new(); self.captions_of.len()];
        for captions in same.values() {
            let mut images: Vec<usize> = captions
                .iter()
                .flat_map(|&c| self.images_of[c].iter().copied())
                .collect();
            images.sort_unstable();
            images.dedup();
            images
                .iter()
                .for_each(|&image| captions_of[image].extend_from_slice(captions));
            captions
                .iter()
                .for_each(|&caption| images_of[caption].clone_from(&images));
        }
        captions_of
            .iter_mut()
            .for_each(|captions: &mut Vec<usize>| captions.sort_unstable());
        Self {
            captions_of,
            images_of,
        }
    }

    /// Captions of an image.
    pub fn captions_of(&self, image: usize) -> &[usize] {
        &self.captions_of[image]
    }

    /// Images of a caption.
    pub fn images_of(&self, caption: usize) -> &[usize] {
        &self.images_of[caption]
    }

    /// Number of images.
    pub fn images(&self) -> usize {
        self.captions_of.len()
    }

    /// Number of captions.
    pub fn captions(&self) -> usize {
        self.images_of.len()
    }
}

/// Scores of all pairs, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreTable {
    columns: usize,
    scores: Vec<f32>,
}

impl ScoreTable {
    /// From row-major scores.
    ///
    /// # Errors
    /// [`EvalError::Shape`] if they do not fill whole rows.
    pub fn new(rows: usize, columns: usize, scores: Vec<f32>) -> Result<Self, EvalError> {
        if columns == 0 || scores.len() != rows * columns {
            let found = scores.len() / columns.max(1);
            return Err(EvalError::Shape {
                what: "table of scores",
                rows: found,
                columns,
                expected_rows: rows,
                expected_columns: columns,
            });
        }
        Ok(Self { columns, scores })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.scores.len() / self.columns
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.scores[row * self.columns..][..self.columns]
    }

    /// An error if a score is not a number.
    pub fn check_numbers(&self) -> Result<(), EvalError> {
        match self.scores.iter().position(|s| s.is_nan()) {
            Some(at) => Err(EvalError::NotANumber {
                row: at / self.columns,
                column: at % self.columns,
            }),
            None => Ok(()),
        }
    }

    /// Rows and columns exchanged.
    pub fn transposed(&self) -> Self {
        let (rows, columns) = (self.rows(), self.columns);
        let scores = (0..columns)
            .flat_map(|c| (0..rows).map(move |r| r * columns + c))
            .map(|i| self.scores[i]);
        Self {
            columns: rows,
            scores: scores.collect(),
        }
    }

    /// Re-ranks one row: the positions of its `k` best, best first; of equal scores the first.
    pub fn best(&self, row: usize, k: usize) -> Vec<usize> {
        best(self.row(row), k)
    }

    /// The table after re-ranking: `itm(row, column) + score` for the `k` best of each row, [`NOT_RANKED`] elsewhere.
    pub fn reranked(&self, k: usize, itm: impl Fn(usize, usize) -> f32 + Sync) -> Self {
        let mut scores = vec![NOT_RANKED; self.scores.len()];
        scores
            .par_chunks_mut(self.columns)
            .enumerate()
            .for_each(|(row, out)| rerank_row(self.row(row), k, |c| itm(row, c), out));
        Self {
            columns: self.columns,
            scores,
        }
    }
}

/// Positions of the `k` best scores, best first; of equal scores the first.
pub fn best(scores: &[f32], k: usize) -> Vec<usize> {
    let order = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    let mut positions: Vec<usize> = (0..scores.len()).collect();
    if k < positions.len() {
        positions.select_nth_unstable_by(k, order);
        positions.truncate(k);
    }
    positions.sort_unstable_by(order);
    positions
}

/// Re-ranks one row into `out`, which holds [`NOT_RANKED`].
pub fn rerank_row(scores: &[f32], k: usize, itm: impl Fn(usize) -> f32, out: &mut [f32]) {
    for column in best(scores, k) {
        out[column] = itm(column) + scores[column];
    }
}

/// Rows that a process of several works on: slices of `rows / processes + 1`, so the last ones may be short or empty.
pub fn share(rows: usize, rank: usize, processes: usize) -> std::ops::Range<usize> {
    let step = rows / processes.max(1) + 1;
    (rank * step).min(rows)..((rank + 1) * step).min(rows)
}

/// Rank, from 0, of the best of `wanted` in a row: how many scores are above it. Of equal scores the later one ranks
/// first, as a stable ascending sort read backwards gives.
pub fn rank_of_best(scores: &[f32], wanted: &[usize]) -> usize {
    let better = |a: usize, b: usize| scores[a] > scores[b] || (scores[a] == scores[b] && a > b);
    let Some(best) = wanted
        .iter()
        .copied()
        .reduce(|a, b| if better(a, b) { a } else { b })
    else {
        return scores.len();
    };
    let value = scores[best];
    let above = scores.iter().filter(|s| **s > value).count();
    above + scores[best + 1..].iter().filter(|s| **s == value).count()
}

/// Recalls in percent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RetrievalScores {
    /// Image to text at 1, 5, 10.
    pub text: [f64; 3],
    /// Text to image at 1, 5, 10.
    pub image: [f64; 3],
    /// Mean of `text`; LAVIS calls it `txt_r_mean`, and picks checkpoints by it (`agg_metrics`).
    pub text_mean: f64,
    /// Mean of `image`.
    pub image_mean: f64,
    /// Mean of both means.
    pub mean: f64,
}

impl RetrievalScores {
    /// From ranks of images' best captions and of captions' images.
    pub fn from_ranks(text_ranks: &[usize], image_ranks: &[usize]) -> Self {
        let recall = |ranks: &[usize]| {
            RECALL_AT.map(|k| {
                let found = ranks.iter().filter(|rank| **rank < k).count();
                100.0 * found as f64 / ranks.len().max(1) as f64
            })
        };
        let (text, image) = (recall(text_ranks), recall(image_ranks));
        let mean = |r: [f64; 3]| r.iter().sum::<f64>() / 3.0;
        let (text_mean, image_mean) = (mean(text), mean(image));
        Self {
            text,
            image,
            text_mean,
            image_mean,
            mean: (text_mean + image_mean) / 2.0,
        }
    }
}

/// Scores both directions.
///
/// # Shapes
/// `image_to_text` `[images, captions]`, `text_to_image` `[captions, images]`.
///
/// # Errors
/// [`EvalError::Shape`], [`EvalError::NotANumber`].
pub fn score(
    image_to_text: &ScoreTable,
    text_to_image: &ScoreTable,
    map: &CaptionMap,
) -> Result<RetrievalScores, EvalError> {
    check("image-to-text table", image_to_text, map.images(), map.captions())?;
    check("text-to-image table", text_to_image, map.captions(), map.images())?;
    let text: Vec<usize> = (0..map.images())
        .into_par_iter()
        .map(|image| rank_of_best(image_to_text.row(image), &map.captions_of[image]))
        .collect();
    let image: Vec<usize> = (0..map.captions())
        .into_par_iter()
        .map(|caption| rank_of_best(text_to_image.row(caption), &map.images_of[caption]))
        .collect();
    Ok(RetrievalScores::from_ranks(&text, &image))
}

fn check(what: &'static str, table: &ScoreTable, rows: usize, columns: usize) -> Result<(), EvalError> {
    if (table.rows(), table.columns) != (rows, columns) {
        return Err(EvalError::Shape {
            what,
            rows: table.rows(),
            columns: table.columns,
            expected_rows: rows,
            expected_columns: columns,
        });
    }
    table.check_numbers()
}

#[cfg(test)]
mod tests;
