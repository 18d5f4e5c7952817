//! Matrix products with weights kept in bf16, for CPU backends: decoding reads every weight once per token, so
//! the fewer bytes the faster, and widening a whole matrix first costs five times its bytes.

use half::bf16;
use rayon::prelude::*;

/// Up to this many rows of `x` the weights are widened in registers, each row of them read once for all of `x`.
pub const MAX_ROWS: usize = 32;

/// Output columns per task: large enough to hide the scheduling, small enough to balance.
const BLOCK: usize = 64;

/// Independent sums per dot product: two 8-lane registers.
const LANES: usize = 16;

/// `x [m, k]` times the transpose of `w [n, k]` -> `[m, n]`, f32 sums.
///
/// # Panics
/// If the slices do not have the sizes given.
pub fn linear(x: &[f32], w: &[bf16], [m, k, n]: [usize; 3]) -> Vec<f32> {
    assert!(x.len() == m * k && w.len() == n * k, "sizes of a linear map");
    let mut columns = vec![0f32; n * m];
    columns.par_chunks_mut(BLOCK * m).zip(w.par_chunks(BLOCK * k)).for_each(|(out, w)| {
        for (out, w) in out.chunks_exact_mut(m).zip(w.chunks_exact(k)) {
            for (out, x) in out.iter_mut().zip(x.chunks_exact(k)) {
                *out = dot(x, w);
            }
        }
    });
    if m == 1 {
        return columns;
    }
    let mut rows = vec![0f32; m * n];
    for (j, column) in columns.chunks_exact(m).enumerate() {
        for (i, &value) in column.iter().enumerate() {
            rows[i * n + j] = value;
        }
    }
    rows
}

/// Every value as f32, in parallel.
pub fn widen(w: &[bf16]) -> Vec<f32> {
    const CHUNK: usize = 1 << 15;
    let mut out = vec![0f32; w.len()];
    out.par_chunks_mut(CHUNK).zip(w.par_chunks(CHUNK)).for_each(|(out, w)| {
        out.iter_mut().zip(w).for_each(|(out, w)| *out = to_f32(*w));
    });
    out
}

#[inline(always)]
fn to_f32(v: bf16) -> f32 {
    f32::from_bits(u32::from(v.to_bits()) << 16)
}

fn dot(x: &[f32], w: &[bf16]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the processor has the instructions
        return unsafe { dot_avx2(x, w) };
    }
    dot_lanes(x, w)
}

/// The portable sum, compiled for wider registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dot_avx2(x: &[f32], w: &[bf16]) -> f32 {
    dot_lanes(x, w)
}

#[inline(always)]
fn dot_lanes(x: &[f32], w: &[bf16]) -> f32 {
    let mut sums = [0f32; LANES];
    let (xs, ws) = (x.chunks_exact(LANES), w.chunks_exact(LANES));
    let tail: f32 = xs.remainder().iter().zip(ws.remainder()).map(|(x, w)| x * to_f32(*w)).sum();
    for (x, w) in xs.zip(ws) {
        for i in 0..LANES {
            sums[i] += x[i] * to_f32(w[i]);
        }
    }
    sums.iter().sum::<f32>() + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_sum_in_f64_for_odd_sizes() {
        for [m, k, n] in [[1, 5, 3], [5, 100, 130], [3, 64, 65]] {
            let value = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0;
            let x: Vec<f32> = (0..m * k).map(value).collect();
            let w: Vec<bf16> = (0..n * k).map(|i| bf16::from_f32(value(i + 7))).collect();
            let got = linear(&x, &w, [m, k, n]);
            let wide = widen(&w);
            for i in 0..m {
                for j in 0..n {
                    let terms = (0..k).map(|l| f64::from(x[i * k + l]) * f64::from(wide[j * k + l]));
                    let want = terms.sum::<f64>();
                    // at most 100 f32 additions of terms below one
                    assert!((f64::from(got[i * n + j]) - want).abs() < 1e-4, "{m} {k} {n}");
                }
            }
        }
    }
}
