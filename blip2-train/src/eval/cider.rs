//! CIDEr (Vedantam et al. 2015): tf-idf weighted n-gram similarity, in two forms.
//!
//! What the COCO tools and pycocoevalcap print as "CIDEr" is CIDEr-D: counts clipped by the reference's, and a Gaussian
//! penalty (sigma 6) on the difference of lengths, counted in bigrams. [`Form::D`] is that one; [`Form::Plain`] leaves
//! both out. Both are scaled by 10, so the corpus score 1.458 is printed as 145.8 in papers.
//! Document frequencies come from the references of the corpus that is scored, one document per item.

use rayon::prelude::*;

use super::ngrams::{Counts, NgramId, ORDERS, shared};

const SIGMA: f64 = 6.0;

/// Which CIDEr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The paper's first form: plain cosine similarity.
    Plain,
    /// CIDEr-D, the published figures.
    D,
}

/// In how many items' references each n-gram occurs.
#[derive(Clone, Debug)]
pub struct DocumentFrequency {
    counts: Vec<u32>,
    log_documents: f64,
}

impl DocumentFrequency {
    /// Counts over all items' references; `ngrams` is the vocabulary's size.
    pub fn of_references<'a>(items: impl IntoIterator<Item = &'a [Counts]>, ngrams: usize) -> Self {
        let mut counts = vec![0; ngrams];
        let mut seen_in = vec![u32::MAX; ngrams];
        let mut documents = 0u32;
        for references in items {
            for (id, _) in references.iter().flat_map(|r| r.grams.iter().flatten()) {
                let id = *id as usize;
                if seen_in[id] != documents {
                    seen_in[id] = documents;
                    counts[id] += 1;
                }
            }
            documents += 1;
        }
        Self {
            counts,
            log_documents: f64::from(documents).ln(),
        }
    }

    fn weight(&self, id: NgramId) -> f64 {
        let frequency = self.counts.get(id as usize).copied().unwrap_or(0);
        self.log_documents - f64::from(frequency.max(1)).ln() // an n-gram of no reference counts as one of a single item
    }
}

/// Corpus score and the score of each item. An item is a candidate and its references.
pub fn cider(items: &[(Counts, Vec<Counts>)], frequency: &DocumentFrequency, form: Form) -> (f64, Vec<f64>) {
    let each: Vec<f64> = items
        .par_iter()
        .map(|(candidate, references)| {
            let candidate = Weighted::new(candidate, frequency);
            let sum: f64 = references
                .iter()
                .map(|r| similarity(&candidate, &Weighted::new(r, frequency), form))
                .sum();
            sum / references.len().max(1) as f64 * 10.0
        })
        .collect();
    (each.iter().sum::<f64>() / each.len().max(1) as f64, each)
}

struct Weighted {
    vectors: [Vec<(NgramId, f64)>; ORDERS],
    norms: [f64; ORDERS],
    bigrams: f64,
}

impl Weighted {
    fn new(counts: &Counts, frequency: &DocumentFrequency) -> Self {
        let vectors = counts.grams.each_ref().map(|grams| {
            grams
                .iter()
                .map(|(id, count)| (*id, f64::from(*count) * frequency.weight(*id)))
                .collect::<Vec<_>>()
        });
        let norms = vectors
            .each_ref()
            .map(|v| v.iter().map(|(_, w)| w * w).sum::<f64>().sqrt());
        Self {
            vectors,
            norms,
            bigrams: counts.words.saturating_sub(1) as f64,
        }
    }
}

/// Mean over the orders.
fn similarity(candidate: &Weighted, reference: &Weighted, form: Form) -> f64 {
    let penalty = match form {
        Form::Plain => 1.0,
        Form::D => (-(candidate.bigrams - reference.bigrams).powi(2) / (2.0 * SIGMA * SIGMA)).exp(),
    };
    let sum: f64 = (0..ORDERS)
        .map(|n| {
            let dot: f64 = shared(&candidate.vectors[n], &reference.vectors[n])
                .map(|(ours, theirs)| {
                    if form == Form::D {
                        ours.min(theirs) * theirs
                    } else {
                        ours * theirs
                    }
                })
                .sum();
            let norm = candidate.norms[n] * reference.norms[n];
            if norm == 0.0 { dot } else { dot / norm }
        })
        .sum();
    sum * penalty / ORDERS as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::ngrams::Vocabulary;

    fn score(pairs: &[(&str, &[&str])], form: Form) -> Vec<f64> {
        let mut v = Vocabulary::default();
        let items: Vec<_> = pairs
            .iter()
            .map(|(c, rs)| (v.count(c), rs.iter().map(|r| v.count(r)).collect::<Vec<_>>()))
            .collect();
        let frequency = DocumentFrequency::of_references(items.iter().map(|(_, r)| r.as_slice()), v.len());
        cider(&items, &frequency, form).1
    }

    #[test]
    fn a_perfect_caption_scores_ten_and_a_foreign_one_nothing() {
        let pairs: &[(&str, &[&str])] = &[
            ("a red bus on road", &["a red bus on road"]),
            ("x y z", &["two cats sleep here"]),
        ];
        for form in [Form::Plain, Form::D] {
            let each = score(pairs, form);
            assert!((each[0] - 10.0).abs() < 1e-12, "rounding of a handful of sums");
            assert_eq!(each[1], 0.0);
        }
    }

    #[test]
    fn one_item_alone_has_no_weights() {
        assert_eq!(
            score(&[("a b", &["a b"])], Form::D),
            [0.0],
            "the logarithm of one document is zero"
        );
    }

    #[test]
    fn d_punishes_repetition_and_length() {
        let pairs: &[(&str, &[&str])] = &[
            ("bus bus bus bus", &["bus"]),
            ("cat", &["a cat"]),
            ("dog", &["a dog"]),
        ];
        assert!(score(pairs, Form::D)[0] < score(pairs, Form::Plain)[0]);
    }
}
