//! Rules that change scores before a token is chosen, in the order of
//! `GenerationMixin._get_logits_processor` (`transformers/generation/{utils,logits_process}.py`):
//! repetition penalty, no-repeat-ngram, bad words, minimum length, suppressed tokens; then, when sampling,
//! temperature, top-k, top-p.
//!
//! Greedy search and sampling apply them to logits, a beam search to log-probabilities.
//!
//! **Which tokens count as repeated.** `history` is what transformers calls `input_ids`: the generated
//! tokens; before them the decoder start token of an encoder-decoder model, and on a
//! decoder-only model the prompt's ids if, and only if, the caller supplies them. With
//! `inputs_embeds` alone transformers does not see the prompt. Its BLIP-2 class (4.48 and later) passes
//! `input_ids` beside the embeddings, image placeholders included, hence the choice.

use super::options::GenerateOptions;
use super::scores;

/// The rules of one prompt.
#[derive(Clone, Copy, Debug)]
pub struct Processors<'a> {
    options: &'a GenerateOptions,
}

impl<'a> Processors<'a> {
    /// Rules that `options` ask for.
    pub fn new(options: &'a GenerateOptions) -> Self {
        Self { options }
    }

    /// Applies every active rule to one row `[V]`. `history` is the sequence so far, of which the last
    /// `new_tokens` were generated.
    pub fn apply(&self, history: &[i64], new_tokens: usize, row: &mut [f32]) {
        let options = self.options;
        if options.repetition_penalty != 1.0 {
            repetition_penalty(row, history, options.repetition_penalty as f32);
        }
        if options.no_repeat_ngram_size > 0 {
            no_repeat_ngram(row, history, options.no_repeat_ngram_size);
        }
        bad_words(row, history, &options.bad_words_ids, &options.eos_token_ids);
        if new_tokens < options.min_new_tokens {
            ban(row, options.eos_token_ids.iter().copied());
        }
        ban(row, options.suppress_tokens.iter().copied());
        if new_tokens == 0 {
            ban(row, options.begin_suppress_tokens.iter().copied());
        }
        if options.do_sample {
            self.warp(row);
        }
    }

    fn warp(&self, row: &mut [f32]) {
        let options = self.options;
        // a beam must be able to continue past every end token
        let keep = match (options.num_beams, options.eos_token_ids.len()) {
            (1, _) => 1,
            (_, 0) => 2,
            (_, ends) => ends + 1,
        };
        if options.temperature != 1.0 {
            let temperature = options.temperature as f32;
            row.iter_mut().for_each(|x| *x /= temperature);
        }
        if options.top_k > 0 {
            top_k(row, options.top_k.max(keep));
        }
        if options.top_p < 1.0 {
            top_p(row, options.top_p, keep);
        }
    }
}

/// Makes every token of `history` less likely (`penalty > 1`), each once however often it occurs.
pub fn repetition_penalty(row: &mut [f32], history: &[i64], penalty: f32) {
    let mut tokens = history.to_vec();
    tokens.sort_unstable();
    tokens.dedup();
    for token in tokens {
        if let Some(x) = score_of(row, token) {
            *x = if *x < 0.0 { *x * penalty } else { *x / penalty };
        }
    }
}

/// Bans every token that would complete a sequence of `size` tokens which `history` already contains.
pub fn no_repeat_ngram(row: &mut [f32], history: &[i64], size: usize) {
    if size == 0 || history.len() + 1 < size {
        return;
    }
    let tail = &history[history.len() + 1 - size..];
    let repeats = history
        .windows(size)
        .filter(|ngram| &ngram[..size - 1] == tail)
        .map(|ngram| ngram[size - 1]);
    ban(row, repeats);
}

/// Bans the last token of every sequence in `words` whose others end `history`. As in transformers, an end token alone
/// is not a word, and a sequence counts once `history` is at least as long as all of it.
pub fn bad_words(row: &mut [f32], history: &[i64], words: &[Vec<i64>], ends: &[i64]) {
    let completed = words.iter().filter_map(|word| match word.as_slice() {
        [] => None,
        [token] => (!ends.contains(token)).then_some(*token),
        [start @ .., last] => (history.len() > start.len() && history.ends_with(start)).then_some(*last),
    });
    ban(row, completed);
}

/// Sets the score of `tokens` to negative infinity.
fn ban(row: &mut [f32], tokens: impl Iterator<Item = i64>) {
    for token in tokens {
        if let Some(x) = score_of(row, token) {
            *x = f32::NEG_INFINITY;
        }
    }
}

fn score_of(row: &mut [f32], token: i64) -> Option<&mut f32> {
    row.get_mut(usize::try_from(token).ok()?)
}

/// Bans everything below the `count`-th best score; ties with it stay.
pub fn top_k(row: &mut [f32], count: usize) {
    if count == 0 || count >= row.len() {
        return;
    }
    let mut scores = row.to_vec();
    let (_, &mut threshold, _) = scores.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
    for x in row.iter_mut().filter(|x| **x < threshold) {
        *x = f32::NEG_INFINITY;
    }
}

/// Bans the least likely tokens that together have probability `1 - share` or less, but never the best `keep`.
pub fn top_p(row: &mut [f32], share: f64, keep: usize) {
    let mut order: Vec<usize> = (0..row.len()).filter(|&i| row[i] > f32::NEG_INFINITY).collect();
    order.sort_by(|&a, &b| row[a].total_cmp(&row[b]));
    let sorted: Vec<f32> = order.iter().map(|&i| row[i]).collect();
    let weights = scores::weights(&sorted);
    let total = weights.iter().map(|&w| f64::from(w)).sum::<f64>() as f32;
    let tail = (1.0 - share) as f32;
    // PyTorch accumulates in f64 on the CPU and compares in f32
    let mut seen = 0.0f64;
    for (&index, &weight) in order.iter().zip(&weights).take(order.len().saturating_sub(keep)) {
        seen += f64::from(weight / total);
        if seen as f32 > tail {
            break;
        }
        row[index] = f32::NEG_INFINITY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BANNED: f32 = f32::NEG_INFINITY;

    #[test]
    fn penalty_counts_a_token_once_and_skips_foreign_ids() {
        let mut row = [2.0, -2.0, 1.0];
        repetition_penalty(&mut row, &[0, 1, 0, 50265, -1], 2.0);
        assert_eq!(row, [1.0, -4.0, 1.0]);
    }

    #[test]
    fn ngrams_of_one_to_three_tokens() {
        let history = [0, 1, 2, 0, 1];
        let banned = |size| {
            let mut row = [0.0; 4];
            no_repeat_ngram(&mut row, &history, size);
            row.map(|x| x == BANNED)
        };
        assert_eq!(banned(1), [true, true, true, false]);
        assert_eq!(banned(2), [false, false, true, false]);
        assert_eq!(banned(3), [false, false, true, false]);
        assert_eq!(banned(6), [false; 4]);
        assert_eq!(banned(9), [false; 4]);
    }

    #[test]
    fn top_k_keeps_ties_and_tolerates_any_count() {
        let mut row = [1.0, 3.0, 2.0, 2.0];
        top_k(&mut row, 2);
        assert_eq!(row, [BANNED, 3.0, 2.0, 2.0]);
        top_k(&mut row, 100);
        assert_eq!(row, [BANNED, 3.0, 2.0, 2.0]);
    }

    #[test]
    fn top_p_zero_keeps_the_minimum() {
        for keep in 1..=3 {
            let mut row = [1.0, 3.0, 2.0, 0.0];
            top_p(&mut row, 0.0, keep);
            assert_eq!(row.iter().filter(|x| **x != BANNED).count(), keep);
            assert_eq!(row[1], 3.0);
        }
    }

    /// torch keeps as many; which of equal tokens it keeps is arbitrary there, here it is the last.
    #[test]
    fn top_p_drops_a_share_that_is_met_exactly() {
        for (share, kept) in [(0.76, 4), (0.75, 3), (0.5, 2), (0.25, 1)] {
            let mut row = [0.0, -1e4, 0.0, 0.0, 0.0];
            top_p(&mut row, share, 1);
            assert_eq!(row.iter().filter(|x| **x == 0.0).count(), kept);
            assert_eq!(row[4], 0.0);
        }
    }

    #[test]
    fn bad_words_ban_their_last_token() {
        let words = [vec![0], vec![3], vec![1, 2], vec![4, 1, 5], vec![]];
        let banned = |history: &[i64]| {
            let mut row = [0.0; 6];
            bad_words(&mut row, history, &words, &[3]);
            (0..6).filter(|&i| row[i] == BANNED).collect::<Vec<_>>()
        };
        assert_eq!(banned(&[]), [0]);
        assert_eq!(banned(&[1]), [0]);
        assert_eq!(banned(&[4, 1]), [0, 2]);
        assert_eq!(banned(&[7, 4, 1]), [0, 2, 5]);
        assert_eq!(banned(&[4, 1, 7]), [0]);
    }

    #[test]
    fn suppressed_tokens_at_the_beginning_and_anywhere() {
        let options = GenerateOptions {
            suppress_tokens: vec![1, 99, -1],
            begin_suppress_tokens: vec![3],
            ..Default::default()
        };
        let at = |new_tokens| {
            let mut row = [0.0; 4];
            Processors::new(&options).apply(&[7, 8], new_tokens, &mut row);
            row
        };
        assert_eq!(at(0), [0.0, BANNED, 0.0, BANNED]);
        assert_eq!(at(1), [0.0, BANNED, 0.0, 0.0]);
    }

    #[test]
    fn end_tokens_wait_for_the_minimum_length() {
        let options = GenerateOptions {
            min_new_tokens: 2,
            eos_token_ids: vec![1, 3],
            ..Default::default()
        };
        let at = |new_tokens| {
            let mut row = [0.0; 4];
            Processors::new(&options).apply(&[], new_tokens, &mut row);
            row
        };
        assert_eq!(at(1), [0.0, BANNED, 0.0, BANNED]);
        assert_eq!(at(2), [0.0; 4]);
    }
}
