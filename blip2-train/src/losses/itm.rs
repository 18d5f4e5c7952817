//! Image-text matching: hard negatives drawn from the contrastive similarities, then a binary
//! cross-entropy (paper section 3.1; LAVIS `blip2_qformer.py`).

use blip2_model::nn::Kernels;
use burn::tensor::Tensor;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::cross_entropy;
use super::itc::ItcTargets;

/// What a positive's similarity is overwritten with before the softmax that negatives are drawn from.
const HIDDEN: f64 = -10_000.0;

/// For every local row, the global index of a negative; `None` where the global batch has no negative.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HardNegatives {
    /// Negative image of text `b`.
    pub images: Vec<Option<usize>>,
    /// Negative text of image `b`.
    pub texts: Vec<Option<usize>>,
}

/// Draws one negative image per text from `softmax(t2i)` and one negative text per image from
/// `softmax(i2t)`, positives hidden.
///
/// `i2t`, `t2i` are row-major `[B, K]` on the host (already divided by the temperature), `offset = r * B`.
/// `rng(row)` gives the generator of a row of the *global* batch, so that the draw does not depend on how
/// the batch is spread over processes; the image is drawn first, then the text.
pub fn sample_negatives(
    i2t: &[f32],
    t2i: &[f32],
    targets: ItcTargets<'_>,
    offset: usize,
    global: usize,
    mut rng: impl FnMut(usize) -> ChaCha8Rng,
) -> HardNegatives {
    let batch = i2t.len() / global;
    let draw = |sims: &[f32], b: usize, rng: &mut ChaCha8Rng| {
        let positive = |n: usize| targets.is_positive(b, n, offset);
        sample_row(&sims[b * global..(b + 1) * global], positive, rng)
    };
    let (images, texts) = (0..batch)
        .map(|b| {
            let mut rng = rng(offset + b);
            (draw(t2i, b, &mut rng), draw(i2t, b, &mut rng))
        })
        .unzip();
    HardNegatives { images, texts }
}

/// One draw from `softmax(row)` with positives at [`HIDDEN`]; `None` if every candidate is a positive.
fn sample_row(row: &[f32], positive: impl Fn(usize) -> bool, rng: &mut ChaCha8Rng) -> Option<usize> {
    let u: f64 = rng.random(); // drawn even when unused: the stream does not depend on the batch
    if (0..row.len()).all(&positive) {
        return None;
    }
    let value = |n: usize| {
        if positive(n) { HIDDEN } else { f64::from(row[n]) }
    };
    let max = (0..row.len()).map(value).fold(f64::MIN, f64::max);
    let weights: Vec<f64> = (0..row.len()).map(|n| (value(n) - max).exp()).collect();
    let mut left = u * weights.iter().sum::<f64>();
    for (n, &weight) in weights.iter().enumerate() {
        if left < weight {
            return Some(n);
        }
        left -= weight;
    }
    // rounding used up the whole sum: the last candidate that can be drawn at all
    weights.iter().rposition(|&weight| weight > 0.0)
}

/// Mean cross-entropy of matching logits `[M, 2]`, of which the first `matched` rows are pairs (class 1)
/// and the others negatives (class 0); no smoothing. Returns `[1]`.
///
/// `M` is 3 B in the paper: (image, text), (negative image, text), (image, negative text).
pub fn itm<B: Kernels>(logits: Tensor<B, 2>, matched: usize) -> Tensor<B, 1> {
    let rows = logits.dims()[0];
    let labels: Vec<i64> = (0..rows).map(|i| i64::from(i < matched)).collect();
    cross_entropy(logits, &labels, 0.0).mean()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn rng(row: usize) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(row as u64)
    }

    #[test]
    fn a_positive_is_never_drawn_and_frequencies_follow_the_softmax() {
        let row = [5.0f32, 0.0, 1.0];
        let mut rng = rng(3);
        let mut seen = [0usize; 3];
        for _ in 0..20_000 {
            seen[sample_row(&row, |n| n == 0, &mut rng).unwrap()] += 1;
        }
        assert_eq!(seen[0], 0);
        let share = seen[2] as f64 / 20_000.0;
        let expected = 1f64.exp() / (1.0 + 1f64.exp());
        // binomial standard deviation 0.0031, four of them
        assert!((share - expected).abs() < 0.0125, "{share} vs {expected}");
    }

    #[test]
    fn the_draw_does_not_depend_on_how_rows_are_spread() {
        let i2t: Vec<f32> = (0..16).map(|i| (i * 7 % 5) as f32).collect();
        let t2i: Vec<f32> = (0..16).map(|i| (i * 3 % 7) as f32).collect();
        let whole = sample_negatives(&i2t, &t2i, ItcTargets::Diagonal, 0, 4, rng);
        let half = sample_negatives(&i2t[8..], &t2i[8..], ItcTargets::Diagonal, 2, 4, rng);
        assert_eq!(whole.images[2..], half.images);
        assert_eq!(whole.texts[2..], half.texts);
    }

    #[test]
    fn a_batch_of_one_picture_has_no_negatives() {
        let ids = ItcTargets::ImageIds {
            local: &[4, 4],
            global: &[4, 4],
        };
        let none = sample_negatives(&[0.0; 4], &[0.0; 4], ids, 0, 2, rng);
        assert_eq!(none.images, [None, None]);
        let one = sample_negatives(&[1.0], &[1.0], ItcTargets::Diagonal, 0, 1, rng);
        assert_eq!(one.texts, [None]);
    }
}
