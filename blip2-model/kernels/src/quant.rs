//! Weights in 8 or 4 bits with one f32 scale per group of 32 along the contraction: what decoding reads from
//! memory shrinks to 1.125 or 0.625 bytes per weight. Sums are f32; few rows of activations are rounded to 16 bits.

mod dot;
#[cfg(target_arch = "x86_64")]
mod strips;

use half::bf16;
use rayon::prelude::*;

use crate::gemm::{self, Element, Epilogue, Mat};
use crate::level::{Level, per_level};
use crate::simd::{Base, Simd};

/// Weights that share a scale.
pub const GROUP: usize = 32;

/// Width of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// -127 to 127.
    Eight,
    /// -8 to 7.
    Four,
}

impl Bits {
    /// Bytes of a group, without its scale.
    pub fn group_bytes(self) -> usize {
        match self {
            Self::Eight => GROUP,
            Self::Four => GROUP / 2,
        }
    }
}

/// Packed weights `[rows, depth]`.
///
/// A group of 8-bit weights is 32 signed bytes; of 4-bit weights, 16 bytes of which byte `i` holds weight `i` in
/// its low half and weight `i + 16` in its high half, both offset by 8.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    bits: Bits,
    data: &'a [u8],
    scales: &'a [f32],
    rows: usize,
    depth: usize,
}

impl<'a> Packed<'a> {
    /// # Panics
    /// If `depth` is not a multiple of [`GROUP`] or a slice has the wrong length.
    pub fn new(bits: Bits, data: &'a [u8], scales: &'a [f32], [rows, depth]: [usize; 2]) -> Self {
        let groups = rows * depth / GROUP;
        assert!(
            depth % GROUP == 0 && scales.len() == groups && data.len() == groups * bits.group_bytes(),
            "packed weights of the wrong size"
        );
        Self {
            bits,
            data,
            scales,
            rows,
            depth,
        }
    }

    fn row_groups(&self) -> usize {
        self.depth / GROUP
    }

    /// Rows `first..first + rows` as f32.
    pub fn unpack(&self, first: usize, rows: usize) -> Vec<f32> {
        let mut out = vec![0f32; rows * self.depth];
        self.unpack_into(first, &mut out);
        out
    }

    /// Rows from `first` that fill `out`.
    fn unpack_into(&self, first: usize, out: &mut [f32]) {
        let chunks = out.par_chunks_mut(self.depth.max(1)).enumerate();
        chunks
            .with_min_len(16)
            .for_each(|(i, out)| self.unpack_one(first + i, out));
    }

    /// Rows from `first` that fill `out`, rounded to bf16 while they are in cache.
    fn unpack_bf16(&self, first: usize, out: &mut [bf16]) {
        let chunks = out.par_chunks_mut(self.depth.max(1)).enumerate();
        chunks.with_min_len(16).for_each_init(
            || vec![0f32; self.depth],
            |wide, (i, out)| {
                self.unpack_one(first + i, wide);
                gemm::round_row(wide, out);
            },
        );
    }

    /// One row.
    fn unpack_one(&self, row: usize, out: &mut [f32]) {
        let (groups, size) = (self.row_groups(), self.bits.group_bytes());
        let range = row * groups..(row + 1) * groups;
        let data = &self.data[range.start * size..range.end * size];
        unpack_row(self.bits, data, &self.scales[range], out);
    }
}

/// Packs `[rows, depth]` weights: the bytes and the scales. Half precision is widened a cache's worth at a time.
///
/// # Panics
/// If `depth` is not a multiple of [`GROUP`].
pub fn pack<T: Element>(bits: Bits, weights: &[T], [rows, depth]: [usize; 2]) -> (Vec<u8>, Vec<f32>) {
    assert!(
        depth % GROUP == 0 && weights.len() == rows * depth,
        "weights that do not divide into groups"
    );
    let groups = weights.len() / GROUP;
    let mut data = vec![0u8; groups * bits.group_bytes()];
    let mut scales = vec![0f32; groups];
    /// Groups per task.
    const TASK: usize = 512;
    data.par_chunks_mut(TASK * bits.group_bytes())
        .zip(scales.par_chunks_mut(TASK))
        .zip(weights.par_chunks(TASK * GROUP))
        .for_each_init(
            || vec![0f32; TASK * GROUP],
            |wide, ((data, scales), weights)| {
                let wide = &mut wide[..weights.len()];
                for (wide, &weight) in wide.iter_mut().zip(weights) {
                    *wide = weight.wide();
                }
                pack_groups(bits, wide, data, scales);
            },
        );
    (data, scales)
}

per_level! {
    fn pack_groups(bits: Bits, weights: &[f32], data: &mut [u8], scales: &mut [f32]) = pack_body;
}

#[inline(always)]
fn pack_body<const FMA: bool>(bits: Bits, weights: &[f32], data: &mut [u8], scales: &mut [f32]) {
    let groups = weights
        .chunks_exact(GROUP)
        .zip(data.chunks_exact_mut(bits.group_bytes()));
    for ((group, data), scale) in groups.zip(scales) {
        let (mut low, mut high) = (0f32, 0f32);
        for &w in group {
            low = if w < low { w } else { low };
            high = if w > high { w } else { high };
        }
        let largest = if high > -low { high } else { low };
        match bits {
            Bits::Eight => {
                *scale = largest.abs() / 127.0;
                let inverse = if largest == 0.0 {
                    0.0
                } else {
                    127.0 / largest.abs()
                };
                for (d, &w) in data.iter_mut().zip(group) {
                    *d = rounded(w * inverse, 127.0) as i8 as u8;
                }
            }
            Bits::Four => {
                // the largest weight goes to -8 exactly, or is cut a little where that serves the others
                let (mut best, mut least) = (0f32, f32::INFINITY);
                for divisor in [-8.0, -8.6, -9.3, -7.5] {
                    let candidate = largest / divisor;
                    let inverse = if candidate == 0.0 { 0.0 } else { 1.0 / candidate };
                    let mut error = 0f32;
                    for &w in group {
                        let off = rounded_four(w * inverse) * candidate - w;
                        error += off * off;
                    }
                    if error < least {
                        (best, least) = (candidate, error);
                    }
                }
                *scale = best;
                let inverse = if best == 0.0 { 0.0 } else { 1.0 / best };
                for (i, d) in data.iter_mut().enumerate() {
                    let nibble = |w: f32| (rounded_four(w * inverse) + 8.0) as u8;
                    *d = nibble(group[i]) | nibble(group[i + GROUP / 2]) << 4;
                }
            }
        }
    }
}

/// Above it f32 has no fractions: a small number added to it is rounded to an integer, ties to even, which then is the
/// low bits of the sum. That vectorises.
const ROUND: f32 = 12_582_912.0;

/// To the nearest integer.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    (x + ROUND) - ROUND
}

#[inline(always)]
fn rounded(x: f32, limit: f32) -> f32 {
    nearest(x.clamp(-limit, limit))
}

#[inline(always)]
fn rounded_four(x: f32) -> f32 {
    nearest(x.clamp(-8.0, 7.0))
}

/// Packed bytes of whole groups to f32, in vectors by hand: of these loops compilers make gathers and scatters over many
/// groups.
fn unpack_row(bits: Bits, data: &[u8], scales: &[f32], out: &mut [f32]) {
    assert!(data.len() == scales.len() * bits.group_bytes() && out.len() == scales.len() * GROUP);
    #[cfg(target_arch = "x86_64")]
    {
        use crate::simd::{Avx2, Avx512};
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        unsafe fn avx512(bits: Bits, data: &[u8], scales: &[f32], out: &mut [f32]) {
            // SAFETY: the caller's
            unsafe { unpack_groups::<Avx512>(bits, data, scales, out) }
        }
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2(bits: Bits, data: &[u8], scales: &[f32], out: &mut [f32]) {
            // SAFETY: the caller's
            unsafe { unpack_groups::<Avx2>(bits, data, scales, out) }
        }
        let level = Level::detect();
        if level >= Level::Avx512 {
            // SAFETY: detected
            return unsafe { avx512(bits, data, scales, out) };
        }
        if level >= Level::Avx2 {
            // SAFETY: detected
            return unsafe { avx2(bits, data, scales, out) };
        }
    }
    // SAFETY: every processor of this architecture has it
    unsafe { unpack_groups::<Base>(bits, data, scales, out) }
}

/// # Safety
/// The processor has the instructions of `S`.
#[inline(always)]
unsafe fn unpack_groups<S: Simd>(bits: Bits, data: &[u8], scales: &[f32], out: &mut [f32]) {
    let groups = data.chunks_exact(bits.group_bytes()).zip(scales);
    for ((data, &scale), out) in groups.zip(out.as_chunks_mut::<GROUP>().0) {
        let mut bytes = [0u8; GROUP];
        let offset = match bits {
            Bits::Eight => {
                bytes.copy_from_slice(data);
                0.0
            }
            Bits::Four => {
                let (low, high) = bytes.split_at_mut(GROUP / 2);
                for ((low, high), &d) in low.iter_mut().zip(high).zip(data) {
                    (*low, *high) = (d & 15, d >> 4);
                }
                8.0
            }
        };
        for i in (0..GROUP).step_by(S::LANES) {
            // SAFETY: the caller's; a group is a multiple of every vector
            unsafe {
                let wide = S::load_i8(bytes.as_ptr().add(i).cast());
                // the offset times the scale is exact: 8 is a power of two
                let scaled = S::fma(wide, S::splat(scale), S::splat(-offset * scale));
                S::store(out.as_mut_ptr().add(i), scaled);
            }
        }
    }
}

/// Rows of `x` up to which weights are not unpacked: products of bf16 win sooner than those of f32, and those of tiles,
/// which take 16 rows in the time of one, sooner still.
fn few_rows(bits: Bits) -> usize {
    match (Level::detect(), bits) {
        (Level::Amx, Bits::Eight) => 4,
        (Level::Amx, Bits::Four) => 3,
        (Level::Avx512Bf16 | Level::NeonBf16, _) => 16,
        _ => 32,
    }
}

/// Weights unpacked at a time for more rows of `x` than that: what stays in cache until it is used.
const BLOCK: usize = 1 << 21;

/// `act(x w^T + bias)` for `x [m, depth]` -> `[m, rows]`.
///
/// # Panics
/// If the sizes do not match.
pub fn linear(x: &[f32], m: usize, w: Packed<'_>, epilogue: Epilogue<'_>) -> Vec<f32> {
    if m <= few_rows(w.bits) {
        return dot::linear(x, m, w, epilogue);
    }
    #[cfg(target_arch = "x86_64")]
    if Level::detect() >= Level::Amx {
        // SAFETY: detected
        return unsafe { gemm::linear_strips(Mat::new(x, m, w.depth), &w, epilogue) };
    }
    let (n, k) = (w.rows, w.depth);
    assert_eq!(x.len(), m * k, "input of a linear map");
    let block = (BLOCK / k.max(1)).next_multiple_of(48).min(n.max(1));
    let x = Mat::new(x, m, k);
    // the unpacked weights are rounded to bf16 where that is faster: a quarter of the step of 8 bits
    let mut rounded =
        (Level::detect() >= Level::Avx512Bf16).then(|| (gemm::round(x), vec![bf16::ZERO; block * k]));
    let mut wide = if rounded.is_none() {
        vec![0f32; block * k]
    } else {
        Vec::new()
    };
    let mut out = vec![0f32; m * n];
    for first in (0..n).step_by(block) {
        let rows = block.min(n - first);
        let epilogue = Epilogue {
            bias: epilogue.bias.map(|bias| &bias[first..first + rows]),
            act: epilogue.act,
        };
        // SAFETY: columns `first..first + rows` of `out`
        unsafe {
            let out = out.as_mut_ptr().add(first);
            match &mut rounded {
                Some((x, weights)) => {
                    let weights = &mut weights[..rows * k];
                    w.unpack_bf16(first, weights);
                    let w = Mat::new(weights, rows, k).transposed();
                    gemm::matmul_columns(Mat::new(x, m, k), w, out, n, epilogue);
                }
                None => {
                    let wide = &mut wide[..rows * k];
                    w.unpack_into(first, wide);
                    let w = Mat::new(wide, rows, k).transposed();
                    gemm::matmul_columns(x, w, out, n, epilogue);
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::Act;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        let mut x = seed;
        (0..n)
            .map(|_| {
                x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((x >> 8) as f32 / 8_388_608.0 - 1.0).powi(3)
            })
            .collect()
    }

    #[test]
    fn every_weight_is_within_half_a_step() {
        let (rows, depth) = (7, 96);
        let w = values(rows * depth, 3);
        let (data, scales) = pack(Bits::Eight, &w, [rows, depth]);
        let back = Packed::new(Bits::Eight, &data, &scales, [rows, depth]).unpack(0, rows);
        for (i, (a, b)) in w.iter().zip(&back).enumerate() {
            assert!((a - b).abs() <= scales[i / GROUP] * 0.501, "{i}");
        }
        let (data, scales) = pack(Bits::Four, &w, [rows, depth]);
        let back = Packed::new(Bits::Four, &data, &scales, [rows, depth]).unpack(0, rows);
        for (i, (a, b)) in w.iter().zip(&back).enumerate() {
            // the far end of the asymmetric range, and a cut maximum, may be off by up to 1.3 steps
            assert!((a - b).abs() <= scales[i / GROUP].abs() * 1.31, "{i}");
        }
        let off = |back: &[f32]| w.iter().zip(back).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        let energy: f32 = w.iter().map(|w| w * w).sum();
        // a uniform step of `largest / 8` has a variance of a twelfth of its square
        assert!(off(&back) / energy < 0.01, "{}", off(&back) / energy);
    }

    /// Longer than one task, so that its buffer is used twice.
    #[test]
    fn half_precision_is_packed_as_the_f32_that_it_stands_for() {
        let dims = [13, 1600];
        let w = values(dims[0] * dims[1], 9);
        let short: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
        let half: Vec<f16> = w.iter().map(|&w| f16::from_f32(w)).collect();
        for bits in [Bits::Eight, Bits::Four] {
            let wide: Vec<f32> = short.iter().map(|w| w.to_f32()).collect();
            assert_eq!(pack(bits, &short, dims), pack(bits, &wide, dims));
            let wide: Vec<f32> = half.iter().map(|w| w.to_f32()).collect();
            assert_eq!(pack(bits, &half, dims), pack(bits, &wide, dims));
        }
    }

    #[test]
    fn zeros_and_a_single_spike() {
        for bits in [Bits::Eight, Bits::Four] {
            let mut w = vec![0f32; 64];
            w[40] = -3.0;
            let (data, scales) = pack(bits, &w, [2, 32]);
            assert_eq!(Packed::new(bits, &data, &scales, [2, 32]).unpack(0, 2), w);
        }
    }

    #[test]
    fn products_equal_those_of_the_unpacked_weights() {
        for bits in [Bits::Eight, Bits::Four] {
            for (m, k, n) in [
                (1, 32, 1),
                (1, 96, 130),
                (3, 64, 5),
                (5, 160, 66),
                (16, 32, 9),
                (20, 64, 70),
                (33, 64, 600),
            ] {
                let (x, w, bias) = (values(m * k, 1), values(n * k, 2), values(n, 5));
                let (data, scales) = pack(bits, &w, [n, k]);
                let packed = Packed::new(bits, &data, &scales, [n, k]);
                let wide = packed.unpack(0, n);
                let epilogue = Epilogue {
                    bias: Some(&bias),
                    act: Act::Identity,
                };
                let y = linear(&x, m, packed, epilogue);
                for i in 0..m {
                    for j in 0..n {
                        let terms = (0..k).map(|p| f64::from(x[i * k + p]) * f64::from(wide[j * k + p]));
                        let want = terms.sum::<f64>() + f64::from(bias[j]);
                        // f32 sums, and per product: few rows are rounded to steps of 1/32767 (an error of 8.8e-6, times
                        // weights of 0.38 on average), many round both factors to bf16; five deviations each
                        let each = if m > few_rows(bits) { 8e-3 } else { 1.7e-5 };
                        let rounding = each * (k as f64).sqrt();
                        let off = (f64::from(y[i * n + j]) - want).abs();
                        assert!(off < 1e-5 + rounding, "{bits:?} {m} {k} {n} at {i} {j}: {off}");
                    }
                }
            }
        }
    }
}
