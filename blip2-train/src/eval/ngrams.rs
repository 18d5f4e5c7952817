//! n-grams of a corpus as numbers: each caption becomes, per order, a sorted list of `(n-gram, count)`.
//!
//! BLEU and CIDEr count the same n-grams of the same captions; giving every distinct one a number once lets both work by
//! merging sorted lists.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::ptb::is_blank;

/// Longest n-gram that BLEU-4 and CIDEr use.
pub const ORDERS: usize = 4;

/// Number of a distinct n-gram; numbers of all orders come from one count.
pub type NgramId = u32;

/// n-gram counts of one tokenized caption.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Number of words.
    pub words: usize,
    /// `(n-gram, count)` sorted by n-gram, for orders 1 to 4.
    pub grams: [Vec<(NgramId, u32)>; ORDERS],
}

/// Numbers given so far.
#[derive(Debug, Default)]
pub struct Vocabulary {
    words: HashMap<String, NgramId>,
    // an n-gram is its first n-1 words and its last word
    longer: HashMap<(NgramId, NgramId), NgramId, BuildHasherDefault<PairHasher>>,
}

impl Vocabulary {
    /// Number of distinct n-grams seen.
    pub fn len(&self) -> usize {
        self.words.len() + self.longer.len()
    }

    /// Whether nothing was counted yet.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Counts the n-grams of a tokenized caption, words parted at blanks as by Python's `str.split`.
    pub fn count(&mut self, tokenized: &str) -> Counts {
        let mut words = Vec::new();
        for word in tokenized.split(is_blank).filter(|w| !w.is_empty()) {
            let id = match self.words.get(word) {
                Some(id) => *id,
                None => {
                    let id = self.len() as NgramId;
                    self.words.insert(word.to_string(), id);
                    id
                }
            };
            words.push(id);
        }
        let mut counts = Counts {
            words: words.len(),
            grams: Default::default(),
        };
        let mut grams = words.clone();
        for order in 0..ORDERS {
            counts.grams[order] = tally(grams.clone());
            if order + 1 == ORDERS || grams.len() < 2 {
                break;
            }
            grams.pop();
            for (gram, last) in grams.iter_mut().zip(&words[order + 1..]) {
                let next = (self.words.len() + self.longer.len()) as NgramId;
                *gram = *self.longer.entry((*gram, *last)).or_insert(next);
            }
        }
        counts
    }
}

fn tally(mut grams: Vec<NgramId>) -> Vec<(NgramId, u32)> {
    grams.sort_unstable();
    grams
        .chunk_by(|a, b| a == b)
        .map(|run| (run[0], run.len() as u32))
        .collect()
}

/// Pairs of counts of both lists' common n-grams.
pub fn shared<'a, T: Copy>(
    a: &'a [(NgramId, T)],
    b: &'a [(NgramId, T)],
) -> impl Iterator<Item = (T, T)> + 'a {
    let mut other = b.iter().peekable();
    a.iter().filter_map(move |(id, count)| {
        while other.next_if(|(o, _)| o < id).is_some() {}
        other
            .next_if(|(o, _)| o == id)
            .map(|(_, theirs)| (*count, *theirs))
    })
}

/// Hash of a pair of numbers: they are dense, so one multiplication spreads them well enough.
#[derive(Default)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }
    fn write_u32(&mut self, n: u32) {
        self.0 = (self.0.rotate_left(26) ^ u64::from(n)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_every_order() {
        let mut vocabulary = Vocabulary::default();
        let counts = vocabulary.count("a b a b");
        assert_eq!(counts.words, 4);
        assert_eq!(
            counts
                .grams
                .each_ref()
                .map(|g| g.iter().map(|(_, n)| *n).sum::<u32>()),
            [4, 3, 2, 1]
        );
        assert_eq!(
            counts.grams[1].iter().map(|(_, n)| *n).max(),
            Some(2),
            "a b twice"
        );
        assert_eq!(vocabulary.count("").words, 0);
        assert_eq!(vocabulary.count("a b a b"), counts, "numbers stay");
        assert_eq!(
            vocabulary.count("1\u{a0}1/2").words,
            2,
            "a no-break space parts words"
        );
    }

    #[test]
    fn shared_grams() {
        let a = [(1, 2u32), (4, 1), (9, 3)];
        let b = [(0, 5u32), (4, 7), (9, 1), (11, 1)];
        assert_eq!(shared(&a, &b).collect::<Vec<_>>(), [(1, 7), (3, 1)]);
    }
}
