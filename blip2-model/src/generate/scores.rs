//! Arithmetic on one row of scores over the vocabulary, on the host and in f32 as PyTorch does it.
//!
//! Rows hold finite numbers or negative infinity (a banned token); NaN is excluded by [`is_finite`] on the
//! logits. Equal scores are ordered by index, lowest first.

use rand::Rng;

/// `log(sum(exp(x)))`, kept as maximum and remainder: subtracting them one after the other is more
/// exact than subtracting their sum, and is what PyTorch does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Normaliser {
    max: f32,
    log_sum: f32,
}

impl Normaliser {
    pub(super) fn of(row: &[f32]) -> Self {
        let max = max(row);
        Self {
            max,
            log_sum: sum_exp(row, max).ln(),
        }
    }

    /// Log-probability of a token with logit `x`.
    pub(super) fn log_prob(self, x: f32) -> f32 {
        x - self.max - self.log_sum
    }
}

/// Whether no logit is NaN or infinite.
pub(super) fn is_finite(row: &[f32]) -> bool {
    row.iter().fold(true, |ok, x| ok & x.is_finite())
}

/// Independent accumulators, so that the compiler may use vector instructions.
const LANES: usize = 16;

/// `sum(exp(x - max))` of finite numbers, the costliest line of a search step.
fn sum_exp(row: &[f32], max: f32) -> f32 {
    // short f32 chains, joined in f64, keep the sum exact to the last bit or two of f32
    let block = |block: &[f32]| {
        let mut lanes = [0.0f32; LANES];
        let chunks = block.chunks_exact(LANES);
        let rest: f32 = chunks.remainder().iter().map(|x| exp(x - max)).sum();
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += exp(x - max);
            }
        }
        f64::from(lanes.iter().sum::<f32>() + rest)
    };
    row.chunks(32 * LANES).map(block).sum::<f64>() as f32
}

/// `exp(x)` for `x <= 0` to about one unit in the last place, branch-free so that it runs in vector registers
/// (the library function does not). Below -87 it stays at `exp(-87)`, 1e-38, which no f32 sum near one notices.
fn exp(x: f32) -> f32 {
    // adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > -87.0 { x } else { -87.0 };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // Taylor's coefficients, the last ones adjusted to |r| <= ln(2) / 2 (Cephes `expf`)
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    (p * r * r + r + 1.0) * f32::from_bits(power << 23)
}

/// Largest value; negative infinity for an empty row.
fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

/// Index of the largest value.
pub(super) fn argmax(row: &[f32]) -> Option<usize> {
    let best = max(row);
    row.iter().position(|&x| x == best)
}

/// `exp(x - max)` per element: probabilities up to their sum.
pub(super) fn weights(row: &[f32]) -> Vec<f32> {
    let max = max(row);
    row.iter().map(|x| (x - max).exp()).collect()
}

/// The best `limit` of a stream of scores, best first.
#[derive(Clone, Debug)]
pub(super) struct Best {
    limit: usize,
    items: Vec<(f32, usize)>,
}

impl Best {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            items: Vec::with_capacity(limit + 1),
        }
    }

    /// Offers a score; among equal ones the first offered ranks first.
    pub(super) fn push(&mut self, score: f32, index: usize) {
        let full = self.items.len() == self.limit;
        if full && self.items.last().is_none_or(|(worst, _)| score <= *worst) {
            return;
        }
        let at = self.items.partition_point(|(kept, _)| *kept >= score);
        self.items.insert(at, (score, index));
        self.items.truncate(self.limit);
    }

    /// Offers a whole row, index by index.
    pub(super) fn push_row(&mut self, row: &[f32]) {
        for (block, chunk) in row.chunks(LANES).enumerate() {
            // hardly any chunk holds a candidate, and one comparison per chunk is cheap
            let full = self.items.len() == self.limit;
            if let Some(&(worst, _)) = self.items.last().filter(|_| full)
                && !chunk.iter().fold(false, |any, x| any | (*x > worst))
            {
                continue;
            }
            for (offset, &score) in chunk.iter().enumerate() {
                self.push(score, block * LANES + offset);
            }
        }
    }

    pub(super) fn into_items(self) -> Vec<(f32, usize)> {
        self.items
    }
}

/// Draws an index with probability proportional to its weight; `None` if there is no weight at all.
pub(super) fn draw(weights: &[f32], rng: &mut impl Rng) -> Option<usize> {
    let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
    let target = rng.random::<f64>() * total;
    let mut seen = 0.0;
    let mut last = None;
    for (index, &weight) in weights.iter().enumerate() {
        if weight > 0.0 {
            seen += f64::from(weight);
            last = Some(index);
            if seen > target {
                break;
            }
        }
    }
    last
}

/// Draws up to `count` different indices one after the other, each with probability proportional to its weight.
///
/// In one pass: `weight / e` with `e` exponentially distributed ranks like successive draws do
/// (Efraimidis and Spirakis 2006), which is also how PyTorch draws without replacement.
pub(super) fn draw_distinct(weights: &[f32], count: usize, rng: &mut impl Rng) -> Vec<usize> {
    let mut best = Best::new(count);
    for (index, &weight) in weights.iter().enumerate() {
        if weight > 0.0 {
            // f64: in f32 a rounded-off zero would come once in 2^24 times, and always win
            let exponential = -(1.0 - rng.random::<f64>()).ln();
            best.push((f64::from(weight) / exponential) as f32, index);
        }
    }
    best.into_items().into_iter().map(|(_, index)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn best_equals_a_stable_sort() {
        let row = [1.0, 3.0, 2.0, 3.0, f32::NEG_INFINITY, 2.0, 3.0, -1e9].repeat(6);
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        for limit in 1..=row.len() {
            let mut best = Best::new(limit);
            best.push_row(&row);
            let found: Vec<usize> = best.into_items().iter().map(|item| item.1).collect();
            assert_eq!(found, order[..limit]);
        }
        assert_eq!((argmax(&row), argmax(&[])), (Some(1), None));
    }

    #[test]
    fn max_finds_every_position() {
        for len in 1..40 {
            for at in 0..len {
                let row: Vec<f32> = (0..len).map(|i| if i == at { -1.0 } else { -2.0 }).collect();
                assert_eq!((max(&row), argmax(&row)), (-1.0, Some(at)));
            }
        }
    }

    #[test]
    fn log_probabilities_survive_large_logits() {
        let row = [40000.0, 39999.0, -40000.0];
        let normaliser = Normaliser::of(&row);
        let expected = -(1.0 + (-1.0f64).exp()).ln();
        // 1e-6: two roundings of a number near 0.3 in f32
        assert!((f64::from(normaliser.log_prob(row[0])) - expected).abs() < 1e-6);
    }

    #[test]
    fn exponential_is_exact_to_rounding() {
        for i in 0..=87_000 {
            let x = -i as f32 / 1000.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            // 1.5e-7: one unit in the last place is at most 1.2e-7 of the value
            assert!(error < 1.5e-7, "exp({x}) is off by {error}");
        }
        assert!(exp(-1e30) < 1e-37);
    }

    #[test]
    fn distinct_draws_stop_when_nothing_has_weight() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut drawn = draw_distinct(&[0.0, 1.0, 0.0, 2.0], 4, &mut rng);
        drawn.sort_unstable();
        assert_eq!(drawn, [1, 3]);
        assert_eq!(draw(&[0.0, 0.0], &mut rng), None);
    }
}
