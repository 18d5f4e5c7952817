//! Evaluation: published metrics from predictions, without Java or Python.
//!
//! Captions: [`CaptionScores::compute`] gives BLEU-1..4, ROUGE-L, CIDEr-D and CIDEr, equal to pycocoevalcap 1.2 to 1e-6;
//! METEOR and SPICE through [`export`]. VQA: [`vqa`]. Retrieval: [`retrieval`]. Files: [`results`], [`page`]; published
//! figures: [`expected`]. From a model and a data set to all of that: [`run`].

pub mod bleu;
pub mod cider;
pub mod error;
pub mod expected;
pub mod export;
pub mod ngrams;
pub mod page;
pub mod ptb;
pub mod results;
pub mod retrieval;
pub mod rouge;
pub mod run;
pub mod vqa;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use error::EvalError;
use ngrams::{Counts, ORDERS, Vocabulary};
use results::Score;

/// Scores of one caption or of a corpus, as fractions like pycocoevalcap's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// BLEU-1 to BLEU-4.
    pub bleu: [f64; ORDERS],
    /// ROUGE-L.
    pub rouge_l: f64,
    /// CIDEr-D, which the COCO tools and papers call CIDEr.
    pub cider_d: f64,
    /// CIDEr without clipping and length penalty.
    pub cider: f64,
}

/// Caption metrics of a corpus and of each item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaptionScores {
    /// Over the corpus: BLEU from summed counts, the others as means.
    pub corpus: Metrics,
    /// In the order given.
    pub items: Vec<Metrics>,
}

impl CaptionScores {
    /// Tokenizes and scores `candidates[i]` against `references[i]`.
    ///
    /// Captions are tokenized in the order given, as pycocoevalcap does with its one file for all
    /// (see [`ptb::tokenize_all`]): give both in the order of the annotations.
    ///
    /// # Errors
    /// [`EvalError::Empty`], [`EvalError::Lengths`], [`EvalError::NoReferences`].
    pub fn compute<R: AsRef<[String]>, C: AsRef<str> + Sync>(
        references: &[R],
        candidates: &[C],
    ) -> Result<Self, EvalError> {
        if candidates.is_empty() {
            return Err(EvalError::Empty);
        }
        if candidates.len() != references.len() {
            return Err(EvalError::Lengths {
                candidates: candidates.len(),
                references: references.len(),
            });
        }
        if let Some(item) = references.iter().position(|r| r.as_ref().is_empty()) {
            return Err(EvalError::NoReferences { item });
        }
        let all: Vec<&String> = references.iter().flat_map(|r| r.as_ref()).collect();
        let mut tokenized = ptb::tokenize_all(&all).into_iter();
        let references: Vec<Vec<String>> = references
            .iter()
            .map(|r| tokenized.by_ref().take(r.as_ref().len()).collect())
            .collect();
        Ok(Self::of_tokenized(&references, &ptb::tokenize_all(candidates)))
    }

    /// Scores captions that are tokenized already; lists must be of one length.
    fn of_tokenized(references: &[Vec<String>], candidates: &[String]) -> Self {
        let rouge: Vec<f64> = candidates
            .par_iter()
            .zip(references)
            .map(|(c, r)| rouge::rouge_l(c, r.as_slice()))
            .collect();
        let mut vocabulary = Vocabulary::default();
        let counted: Vec<(Counts, Vec<Counts>)> = candidates
            .iter()
            .zip(references)
            .map(|(c, r)| {
                (
                    vocabulary.count(c),
                    r.iter().map(|r| vocabulary.count(r)).collect(),
                )
            })
            .collect();
        let frequency = cider::DocumentFrequency::of_references(
            counted.iter().map(|(_, r)| r.as_slice()),
            vocabulary.len(),
        );
        let (bleu, bleus) = bleu::bleu(&counted);
        let (cider_d, ciders_d) = cider::cider(&counted, &frequency, cider::Form::D);
        let (cider, ciders) = cider::cider(&counted, &frequency, cider::Form::Plain);
        let rouge_l = rouge.iter().sum::<f64>() / rouge.len().max(1) as f64;
        let items = (0..counted.len())
            .map(|i| Metrics {
                bleu: bleus[i],
                rouge_l: rouge[i],
                cider_d: ciders_d[i],
                cider: ciders[i],
            })
            .collect();
        Self {
            corpus: Metrics {
                bleu,
                rouge_l,
                cider_d,
                cider,
            },
            items,
        }
    }

    /// The corpus figures for a report, in points.
    pub fn report(&self) -> Vec<Score> {
        let Metrics {
            bleu,
            rouge_l,
            cider_d,
            cider,
        } = self.corpus;
        let bleus = bleu
            .iter()
            .enumerate()
            .map(|(n, b)| (format!("BLEU-{}", n + 1), *b));
        let others = [("ROUGE-L", rouge_l), ("CIDEr", cider_d), ("CIDEr-plain", cider)];
        bleus
            .chain(others.map(|(name, value)| (name.to_string(), value)))
            .map(|(metric, value)| Score {
                metric,
                value: 100.0 * value + 0.0, // no negative zero
                published: None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
