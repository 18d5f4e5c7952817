//! Rows reduced to one: their sum, which is the gradient of a bias, and `log sum exp` of each, the body of every
//! cross-entropy, with its gradient: two passes over the logits, and no copy of them.

use rayon::prelude::*;

use crate::copy::{CHUNK, changed, rows_per_task};
use crate::gemm::add;
use crate::level::per_level;
use crate::math::{LANES, exp_nonpositive, lanes};

/// Sum over the rows of `x [rows, width]` -> `[width]`, in the order of the rows whatever the number of threads.
///
/// # Panics
/// If `width` is zero or does not divide `x`.
pub fn sum_rows(x: &[f32], width: usize) -> Vec<f32> {
    assert_eq!(x.len() % width, 0, "rows to add up");
    let mut out = vec![0f32; width];
    /// Columns per task: a few cache lines of every row.
    const COLUMNS: usize = 128;
    let add_up = |(i, out): (usize, &mut [f32])| {
        for row in x.chunks_exact(width) {
            add(out, &row[i * COLUMNS..][..out.len()]);
        }
    };
    if x.len() > CHUNK {
        out.par_chunks_mut(COLUMNS).enumerate().for_each(add_up);
    } else {
        out.chunks_mut(COLUMNS).enumerate().for_each(add_up);
    }
    out
}

/// `log sum_c exp(x_c)` per row of `x [rows, width]` -> `[rows]`.
///
/// # Panics
/// If `width` is zero or does not divide `x`.
pub fn log_sum_exp(x: &[f32], width: usize) -> Vec<f32> {
    assert_eq!(x.len() % width, 0, "rows of logits");
    let rows = x.par_chunks_exact(width).with_min_len(rows_per_task(width));
    rows.map(of_row).collect()
}

/// Gradient with respect to `x`, which is `grad exp(x - y)` where `y` is the result and `grad` its gradient, both
/// `[rows]`.
///
/// # Panics
/// If sizes do not match.
pub fn log_sum_exp_backward(x: &[f32], y: &[f32], grad: &[f32]) -> Vec<f32> {
    assert_eq!(y.len(), grad.len(), "a log-sum-exp and its gradient");
    if x.is_empty() {
        return Vec::new();
    }
    assert_eq!(x.len() % y.len(), 0, "rows of logits");
    let width = x.len() / y.len();
    let rows = rows_per_task(width);
    let piece = |i, piece: &mut [f32]| {
        let factors = y[i * rows..].iter().zip(&grad[i * rows..]);
        for (row, (&y, &grad)) in piece.chunks_exact_mut(width).zip(factors) {
            slope(row, y, grad);
        }
    };
    changed(x, width * rows, piece).0
}

per_level! {
    fn of_row(x: &[f32]) -> f32 = of_row_body;
}
per_level! {
    fn slope(row: &mut [f32], y: f32, grad: f32) = slope_body;
}

#[inline(always)]
fn of_row_body<const FMA: bool>(x: &[f32]) -> f32 {
    let largest = lanes(x, f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    // of infinities nothing may be subtracted
    if largest.is_infinite() {
        let unknown = x.iter().any(|x| x.is_nan());
        return if unknown { f32::NAN } else { largest };
    }
    let mut sums = [0f32; LANES];
    let pieces = x.chunks_exact(LANES);
    let rest = pieces.remainder();
    for x in pieces {
        for i in 0..LANES {
            sums[i] += exp_nonpositive::<FMA>(x[i] - largest);
        }
    }
    let mut sum: f32 = sums.iter().sum();
    for &x in rest {
        sum += exp_nonpositive::<FMA>(x - largest);
    }
    largest + sum.ln()
}

#[inline(always)]
fn slope_body<const FMA: bool>(row: &mut [f32], y: f32, grad: f32) {
    for x in row {
        *x = grad * exp_nonpositive::<FMA>(*x - y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_their_gradients_equal_f64() {
        for (rows, width) in [(1, 1), (3, 5), (7, 129), (2, 30_523)] {
            let x: Vec<f32> = (0..rows * width)
                .map(|i| ((i * 7919 % 1009) as f32 - 500.0) / 40.0 + (i / width) as f32 * 50.0)
                .collect();
            let grad: Vec<f32> = (0..rows).map(|i| i as f32 - 0.5).collect();
            let y = log_sum_exp(&x, width);
            let dx = log_sum_exp_backward(&x, &y, &grad);
            for (i, row) in x.chunks_exact(width).enumerate() {
                let largest = f64::from(row.iter().copied().fold(f32::MIN, f32::max));
                let sum: f64 = row.iter().map(|&x| (f64::from(x) - largest).exp()).sum();
                let want = largest + sum.ln();
                // the result is rounded, and an error of it is one of every exponential
                let bound = 1e-7 * (1.0 + want.abs());
                assert!((f64::from(y[i]) - want).abs() < 2.0 * bound, "{} {want}", y[i]);
                for (&dx, &x) in dx[i * width..].iter().zip(row) {
                    let want = f64::from(grad[i]) * (f64::from(x) - want).exp();
                    assert!((f64::from(dx) - want).abs() <= want.abs() * (3.0 * bound + 1e-6) + 1e-30);
                }
            }
        }
    }

    #[test]
    fn rows_add_up() {
        for (rows, width) in [(0, 3), (5, 1), (33, 200), (300, 129)] {
            let x: Vec<f32> = (0..rows * width).map(|i| (i * 31 % 257) as f32).collect();
            let sums = sum_rows(&x, width);
            for (j, &sum) in sums.iter().enumerate() {
                // small integers, hence exact
                assert_eq!(sum, (0..rows).map(|i| x[i * width + j]).sum::<f32>());
            }
            assert_eq!(sums.len(), width);
        }
    }

    #[test]
    fn infinities_and_what_is_no_number() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let y = log_sum_exp(&[-inf, -inf, 0.0, -inf, 1.0, inf, nan, 1.0, nan, inf], 2);
        assert_eq!(y[..3], [-inf, 0.0, inf]);
        assert!(y[3].is_nan() && y[4].is_nan());
        assert!(log_sum_exp_backward(&[], &[], &[]).is_empty());
    }
}
