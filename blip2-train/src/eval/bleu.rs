//! BLEU-1 to BLEU-4 (Papineni et al. 2002), corpus and per item, as pycocoevalcap's `Bleu(4)` with `option="closest"`:
//! n-gram counts clipped by their maximum over the references, length of the closest reference, no smoothing but for
//! the constants that keep divisions defined.

use super::ngrams::{Counts, NgramId, ORDERS};

const SMALL: f64 = 1e-9;
const TINY: f64 = 1e-15;

/// BLEU-1 to BLEU-4 as fractions.
pub type Bleu = [f64; ORDERS];

/// What BLEU needs of one item.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Statistics {
    length: usize,
    reference_length: usize,
    guessed: [usize; ORDERS],
    correct: [u64; ORDERS],
}

/// Corpus score and the score of each item. An item is a candidate and its references.
pub fn bleu(items: &[(Counts, Vec<Counts>)]) -> (Bleu, Vec<Bleu>) {
    let mut total = Statistics::default();
    let each = items
        .iter()
        .map(|(candidate, references)| {
            let item = statistics(candidate, references);
            total.length += item.length;
            total.reference_length += item.reference_length;
            for n in 0..ORDERS {
                total.guessed[n] += item.guessed[n];
                total.correct[n] += item.correct[n];
            }
            score(&item)
        })
        .collect();
    (score(&total), each)
}

fn statistics(candidate: &Counts, references: &[Counts]) -> Statistics {
    let length = candidate.words;
    // of two references equally close the shorter one
    let closest = references
        .iter()
        .map(|r| (r.words.abs_diff(length), r.words))
        .min();
    let mut item = Statistics {
        length,
        reference_length: closest.map_or(0, |(_, words)| words),
        ..Default::default()
    };
    for n in 0..ORDERS {
        item.guessed[n] = (length + 1).saturating_sub(n + 1);
        let most = |id: &NgramId| {
            references
                .iter()
                .map(|r| count(&r.grams[n], *id))
                .max()
                .unwrap_or(0)
        };
        item.correct[n] = candidate.grams[n]
            .iter()
            .map(|(id, count)| u64::from(most(id).min(*count)))
            .sum();
    }
    item
}

fn count(grams: &[(NgramId, u32)], id: NgramId) -> u32 {
    grams
        .binary_search_by_key(&id, |(g, _)| *g)
        .map_or(0, |at| grams[at].1)
}

fn score(statistics: &Statistics) -> Bleu {
    let ratio = (statistics.length as f64 + TINY) / (statistics.reference_length as f64 + SMALL);
    let brevity = if ratio < 1.0 {
        (1.0 - 1.0 / ratio).exp()
    } else {
        1.0
    };
    let mut product = 1.0;
    std::array::from_fn(|n| {
        product *= (statistics.correct[n] as f64 + TINY) / (statistics.guessed[n] as f64 + SMALL);
        product.powf(1.0 / (n + 1) as f64) * brevity
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::ngrams::Vocabulary;

    fn items(pairs: &[(&str, &[&str])]) -> Vec<(Counts, Vec<Counts>)> {
        let mut v = Vocabulary::default();
        pairs
            .iter()
            .map(|(c, rs)| (v.count(c), rs.iter().map(|r| v.count(r)).collect()))
            .collect()
    }

    #[test]
    fn perfect_empty_and_clipped() {
        let (corpus, each) = bleu(&items(&[("a b c d e", &["a b c d e"]), ("", &["a b"])]));
        for b in each[0] {
            assert!(
                (b - 1.0).abs() < 1e-8,
                "{b}: only the constants of 1e-9 part it from one"
            );
        }
        assert_eq!(each[1], [0.0; 4], "exp of a huge negative number");
        assert!(
            corpus[0] > 0.6 && corpus[0] < 0.7,
            "five of five words, two words missing: exp(1 - 7/5)"
        );
        // "the" occurs at most twice in a reference
        let (_, each) = bleu(&items(&[(
            "the the the the the the the",
            &["the cat is on the mat", "there is a cat"],
        )]));
        assert!((each[0][0] - 2.0 / 7.0).abs() < 1e-9);
    }

    #[test]
    fn of_two_closest_references_the_shorter() {
        let (c, rs) = &items(&[("a b c", &["a b c d", "a b"])])[0];
        assert_eq!(statistics(c, rs).reference_length, 2);
    }
}
