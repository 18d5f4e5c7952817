//! Packed weights times few rows: products of integers. The rows are rounded to 16 bits with a scale per group of 32,
//! a step of 1/65534 of what the group spans (bf16 rounds a large value 128 times as coarsely), so that weights need no
//! conversion to f32: 32 of them cost nine instructions of AVX2, and reading them is what decoding waits for.

use super::{Bits, GROUP, Packed, ROUND};
use crate::gemm::Epilogue;
use crate::level::per_level;
use crate::simd::Simd;
use crate::skinny::{self, Dot, Weights};

/// 32 values along the contraction in 16 bits.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Rounded {
    values: [i16; GROUP],
    /// What a step stands for.
    scale: f32,
    /// Eight times the sum of the values: 4-bit weights are stored 8 too large.
    offset: i32,
}

impl Rounded {
    const ZERO: Self = Self {
        values: [0; GROUP],
        scale: 0.0,
        offset: 0,
    };
}

/// Largest value in 16 bits.
const LARGEST: f32 = 32_767.0;

/// Rows `[m, depth]` in groups; so few are not worth several threads.
fn round(x: &[f32]) -> Vec<Rounded> {
    let mut out = vec![Rounded::ZERO; x.len() / GROUP];
    round_groups(x, &mut out);
    out
}

per_level! {
    fn round_groups(x: &[f32], out: &mut [Rounded]) = round_body;
}

#[inline(always)]
fn round_body<const FMA: bool>(x: &[f32], out: &mut [Rounded]) {
    for (x, out) in x.chunks_exact(GROUP).zip(out) {
        // lanes of their own, so that this vectorises
        let (mut lanes, mut unbounded) = ([0f32; 8], [0f32; 8]);
        for x in x.chunks_exact(8) {
            for i in 0..8 {
                lanes[i] = if x[i].abs() > lanes[i] {
                    x[i].abs()
                } else {
                    lanes[i]
                };
                // what is not finite must reach the result: a comparison passes over NaN, zero times it does not
                unbounded[i] += x[i] * 0.0;
            }
        }
        let largest = lanes.iter().fold(0f32, |a, &b| a.max(b));
        let unbounded: f32 = unbounded.iter().sum();
        let inverse = LARGEST / largest;
        // of numbers too small for their inverse nothing is left
        let inverse = if inverse.is_finite() { inverse } else { 0.0 };
        let mut sum = 0i32;
        for (value, &x) in out.values.iter_mut().zip(x) {
            *value = nearest_i16(x * inverse);
            sum += i32::from(*value);
        }
        out.scale = largest / LARGEST + unbounded;
        out.offset = 8 * sum;
    }
}

/// The nearest integer to a number of at most [`LARGEST`].
#[inline(always)]
fn nearest_i16(x: f32) -> i16 {
    (x + ROUND).to_bits() as i16
}

/// [`Packed`] with the width known to the compiler.
struct Groups<'a, const FOUR: bool>(Packed<'a>);

impl<const FOUR: bool> Weights for Groups<'_, FOUR> {
    fn rows(&self) -> usize {
        self.0.rows
    }
    fn depth(&self) -> usize {
        self.0.depth
    }
}

impl<const FOUR: bool> Dot for Groups<'_, FOUR> {
    type X = Rounded;

    fn width(&self) -> usize {
        self.0.row_groups()
    }

    #[inline(always)]
    unsafe fn dot<S: Simd, const X: usize, const W: usize>(
        &self,
        row: usize,
        x: *const Rounded,
    ) -> [[f32; W]; X] {
        let groups = self.0.row_groups();
        debug_assert!(row + W <= self.0.rows);
        let size = if FOUR { GROUP / 2 } else { GROUP };
        // SAFETY: `Packed::new` checked that the groups of all rows exist; the caller vouches for `x`
        unsafe {
            let data = self.0.data.as_ptr().add(row * groups * size);
            let scales = self.0.scales.as_ptr().add(row * groups);
            let mut sums = [[S::zero(); X]; W];
            for g in 0..groups {
                for (j, sums) in sums.iter_mut().enumerate() {
                    let at = j * groups + g;
                    let (weights, scale) = (data.add(at * size), S::splat(*scales.add(at)));
                    for (i, sum) in sums.iter_mut().enumerate() {
                        let x = &*x.add(i * groups + g);
                        let values = x.values.as_ptr();
                        let dot = if FOUR {
                            S::dot_u4(weights, values, x.offset)
                        } else {
                            S::dot_i8(weights.cast(), values)
                        };
                        *sum = S::fma(dot, S::mul(scale, S::splat(x.scale)), *sum);
                    }
                }
            }
            let mut out = [[0f32; W]; X];
            for (j, sums) in sums.iter().enumerate() {
                for (out, &sum) in out.iter_mut().zip(sums) {
                    out[j] = S::sum(sum);
                }
            }
            out
        }
    }
}

/// `act(x w^T + bias)` for `x [m, depth]` -> `[m, rows]`.
pub(super) fn linear(x: &[f32], m: usize, w: Packed<'_>, epilogue: Epilogue<'_>) -> Vec<f32> {
    assert_eq!(x.len(), m * w.depth, "input of a linear map");
    let x = round(x);
    match w.bits {
        Bits::Eight => skinny::linear(&x, m, &Groups::<false>(w), epilogue),
        Bits::Four => skinny::linear(&x, m, &Groups::<true>(w), epilogue),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Portable;

    /// Integers below 2^24 are exact in f32, so every instruction set gives the same sum.
    #[test]
    fn products_of_integers_are_exact() {
        let w: [i8; GROUP] = std::array::from_fn(|i| (i * 29 % 255) as u8 as i8);
        let nibbles: [u8; GROUP / 2] = std::array::from_fn(|i| (i * 37 % 256) as u8);
        let x: [i16; GROUP] = std::array::from_fn(|i| [i16::MAX, -32_767, 1, 517, -9][i % 5]);
        let eight: i32 = (0..GROUP).map(|i| i32::from(w[i]) * i32::from(x[i])).sum();
        let four = |i: usize| i32::from([nibbles[i % 16] & 15, nibbles[i % 16] >> 4][i / 16]) - 8;
        let four: i32 = (0..GROUP).map(|i| four(i) * i32::from(x[i])).sum();
        let less = 8 * x.iter().map(|&x| i32::from(x)).sum::<i32>();
        unsafe fn both<S: Simd>(w: &[i8], nibbles: &[u8], x: &[i16], less: i32) -> [f32; 2] {
            // SAFETY: a group of each, and instructions that the caller has
            unsafe {
                let eight = S::sum(S::dot_i8(w.as_ptr(), x.as_ptr()));
                [eight, S::sum(S::dot_u4(nibbles.as_ptr(), x.as_ptr(), less))]
            }
        }
        let want = [eight as f32, four as f32];
        // SAFETY: needs nothing
        assert_eq!(unsafe { both::<Portable>(&w, &nibbles, &x, less) }, want);
        #[cfg(target_arch = "aarch64")]
        // SAFETY: every aarch64 has it
        assert_eq!(unsafe { both::<crate::simd::Neon>(&w, &nibbles, &x, less) }, want);
        #[cfg(target_arch = "x86_64")]
        {
            use crate::level::Level;
            use crate::simd::{Avx2, Avx512};
            // SAFETY: detected
            unsafe {
                if Level::detect() >= Level::Avx2 {
                    assert_eq!(both::<Avx2>(&w, &nibbles, &x, less), want);
                }
                if Level::detect() >= Level::Avx512 {
                    assert_eq!(both::<Avx512>(&w, &nibbles, &x, less), want);
                }
            }
        }
    }

    #[test]
    fn rounding_is_within_half_a_step_and_keeps_what_is_not_finite() {
        let mut x: Vec<f32> = (0..5 * GROUP)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) * 10f32.powi(i as i32 / 32 - 2))
            .collect();
        x[3 * GROUP..4 * GROUP].fill(0.0);
        x[4 * GROUP..].fill(1e-44);
        let groups = round(&x);
        for (x, group) in x.chunks_exact(GROUP).zip(&groups) {
            let sum: i32 = group.values.iter().map(|&v| i32::from(v)).sum();
            assert_eq!(group.offset, 8 * sum);
            for (&x, &v) in x.iter().zip(&group.values) {
                let off = (f32::from(v) * group.scale - x).abs();
                assert!(off <= 0.51 * group.scale + 1e-40, "{x}: {off}");
            }
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[40] = bad;
            let groups = round(&x);
            assert!(groups[1].scale.is_nan() && groups[0].scale.is_finite() && groups[2].scale.is_finite());
        }
    }
}
