//! Products with few rows on the left (decoding, beams): every weight is read once from memory, in the form in
//! which it is stored, and used for all rows while it is in registers. Nothing is packed.

use half::{bf16, f16};
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use crate::gemm::{self, Mat};
use crate::gemm::{Epilogue, Out, finish, round_row};
use crate::level::Level;
use crate::simd::{Base, Simd};

/// Rows of weights, `n` of them with `k` values along the contraction.
pub trait Weights: Sync {
    /// Number of rows, `n`.
    fn rows(&self) -> usize;
    /// Values per row, `k`.
    fn depth(&self) -> usize;
}

/// Dot products of a few rows of weights with a few rows of `x`, the core of each weight format.
pub(crate) trait Dot: Weights {
    /// What `x` is given as.
    type X: Copy + Sync;
    /// Whether [`Simd::dot_pairs`] is used.
    #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
    const PAIRS: bool = false;

    /// Elements of a row of `x`.
    fn width(&self) -> usize {
        self.depth()
    }

    /// `sums[i][j] = x_i . w_{row + j}` for `x [X, k]` at `x`.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; rows `row..row + W` exist; `x` holds `X` rows of `width` elements.
    unsafe fn dot<S: Simd, const X: usize, const W: usize>(
        &self,
        row: usize,
        x: *const Self::X,
    ) -> [[f32; W]; X];
}

/// Unquantised weights, row-major; rows may be apart.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a, T> {
    data: &'a [T],
    rows: usize,
    depth: usize,
    stride: usize,
}

impl<'a, T> Plain<'a, T> {
    /// `[rows, depth]` with rows at `stride`.
    ///
    /// # Panics
    /// If the slice does not hold all rows.
    pub fn new(data: &'a [T], [rows, depth]: [usize; 2], stride: usize) -> Self {
        assert!(
            rows == 0 || (stride >= depth && (rows - 1) * stride + depth <= data.len()),
            "rows of weights that leave their slice"
        );
        Self {
            data,
            rows,
            depth,
            stride,
        }
    }
}

impl<T: Sync> Weights for Plain<'_, T> {
    fn rows(&self) -> usize {
        self.rows
    }
    fn depth(&self) -> usize {
        self.depth
    }
}

/// Stored scalars that a vector load widens.
trait Stored: Copy + Sync {
    unsafe fn load<S: Simd>(x: *const Self) -> S::V;
    fn wide(self) -> f32;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(x: *const Self) -> S::V {
        // SAFETY: the caller's
        unsafe { S::load(x) }
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
}

impl Stored for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(x: *const Self) -> S::V {
        // SAFETY: the caller's; bf16 is a transparent u16
        unsafe { S::load_bf16(x.cast()) }
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Stored for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(x: *const Self) -> S::V {
        // SAFETY: the caller's; f16 is a transparent u16
        unsafe { S::load_f16(x.cast()) }
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        self.to_f32()
    }
}

impl<T: Stored> Dot for Plain<'_, T> {
    type X = f32;

    #[inline(always)]
    unsafe fn dot<S: Simd, const X: usize, const W: usize>(
        &self,
        row: usize,
        x: *const f32,
    ) -> [[f32; W]; X] {
        debug_assert!(row + W <= self.rows);
        // SAFETY: `new` checked that the rows lie in the slice; the caller vouches for `x`
        unsafe {
            let w = self.data.as_ptr().add(row * self.stride);
            let mut sums = [[S::zero(); W]; X];
            let full = self.depth / S::LANES * S::LANES;
            let mut p = 0;
            while p < full {
                let mut weights = [S::zero(); W];
                for (j, weight) in weights.iter_mut().enumerate() {
                    *weight = T::load::<S>(w.add(j * self.stride + p));
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x = S::load(x.add(i * self.depth + p));
                    for (sum, &weight) in sums.iter_mut().zip(&weights) {
                        *sum = S::fma(x, weight, *sum);
                    }
                }
                p += S::LANES;
            }
            let mut out = [[0f32; W]; X];
            for i in 0..X {
                for j in 0..W {
                    let mut sum = S::sum(sums[i][j]);
                    for p in full..self.depth {
                        sum += *x.add(i * self.depth + p) * (*w.add(j * self.stride + p)).wide();
                    }
                    out[i][j] = sum;
                }
            }
            out
        }
    }
}

/// bf16 weights that meet an input rounded to bf16: nothing is widened, two products per lane.
struct Pairs<'a>(Plain<'a, bf16>);

impl Weights for Pairs<'_> {
    fn rows(&self) -> usize {
        self.0.rows
    }
    fn depth(&self) -> usize {
        self.0.depth
    }
}

impl Dot for Pairs<'_> {
    type X = bf16;
    const PAIRS: bool = true;

    #[inline(always)]
    unsafe fn dot<S: Simd, const X: usize, const W: usize>(
        &self,
        row: usize,
        x: *const bf16,
    ) -> [[f32; W]; X] {
        let Plain {
            data,
            depth,
            stride,
            rows,
        } = self.0;
        debug_assert!(row + W <= rows);
        // SAFETY: as in `Plain`; a lane covers two values
        unsafe {
            let w = data.as_ptr().add(row * stride);
            let mut sums = [[S::zero(); W]; X];
            let step = 2 * S::LANES;
            let full = depth / step * step;
            let mut p = 0;
            while p < full {
                let mut weights = [S::zero(); W];
                for (j, weight) in weights.iter_mut().enumerate() {
                    *weight = S::load(w.add(j * stride + p).cast());
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x = S::load(x.add(i * depth + p).cast());
                    for (sum, &weight) in sums.iter_mut().zip(&weights) {
                        *sum = S::dot_pairs(x, weight, *sum);
                    }
                }
                p += step;
            }
            let mut out = [[0f32; W]; X];
            for i in 0..X {
                for j in 0..W {
                    let mut sum = S::sum(sums[i][j]);
                    for p in full..depth {
                        sum += (*x.add(i * depth + p)).wide() * (*w.add(j * stride + p)).wide();
                    }
                    out[i][j] = sum;
                }
            }
            out
        }
    }
}

/// Weight rows per task: enough work to hide the scheduling.
const TASK: usize = 64;

/// `act(x w^T + bias)` for `x [m, k]` -> `[m, n]`, meant for up to a few dozen rows.
///
/// # Panics
/// If the sizes do not match.
pub(crate) fn linear<D: Dot>(x: &[D::X], m: usize, w: &D, epilogue: Epilogue<'_>) -> Vec<f32> {
    let n = w.rows();
    assert_eq!(x.len(), m * w.width(), "input of a linear map");
    assert!(
        epilogue.bias.is_none_or(|bias| bias.len() == n),
        "bias of a linear map"
    );
    let mut out = vec![0f32; m * n];
    let target = Out(out.as_mut_ptr());
    (0..n.div_ceil(TASK))
        .into_par_iter()
        .with_max_len(1)
        .for_each(|task| {
            let first = task * TASK;
            let columns = TASK.min(n - first);
            // SAFETY: tasks write disjoint columns of the result
            unsafe { block(x, m, w, [first, columns], target, n) };
            if epilogue.bias.is_some() || epilogue.act != crate::Act::Identity {
                let bias = epilogue.bias.map(|bias| &bias[first..first + columns]);
                for i in 0..m {
                    // SAFETY: as above
                    let row = unsafe { target.slice(i * n + first, columns) };
                    finish(row, bias, epilogue.act);
                }
            }
        });
    out
}

/// `x w^T` for f32 or bf16 weights.
///
/// # Panics
/// If the sizes do not match.
pub fn linear_f32(x: &[f32], m: usize, w: Plain<'_, f32>, epilogue: Epilogue<'_>) -> Vec<f32> {
    linear(x, m, &w, epilogue)
}

/// As [`linear_f32`]; weights are widened in registers.
///
/// # Panics
/// If the sizes do not match.
pub fn linear_f16(x: &[f32], m: usize, w: Plain<'_, f16>, epilogue: Epilogue<'_>) -> Vec<f32> {
    linear(x, m, &w, epilogue)
}

/// Up to this many rows the memory is slower than widening, so that nothing need be rounded.
const EXACT_ROWS: usize = 5;

/// As [`linear_f32`]; weights are widened in registers.
///
/// # Panics
/// If the sizes do not match.
pub fn linear_bf16(x: &[f32], m: usize, w: Plain<'_, bf16>, epilogue: Epilogue<'_>) -> Vec<f32> {
    linear(x, m, &w, epilogue)
}

/// Rows that vectors widen as fast as tile registers, which take 16 in the time of one, get hold of the weights.
#[cfg(target_arch = "x86_64")]
const TILES_FROM: usize = 2;

/// As [`linear_bf16`], but beyond a handful of rows `x` is rounded to bf16 where the processor multiplies such pairs.
///
/// # Panics
/// If the sizes do not match.
pub fn linear_bf16_rounded(x: &[f32], m: usize, w: Plain<'_, bf16>, epilogue: Epilogue<'_>) -> Vec<f32> {
    let level = Level::detect();
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Amx && m > TILES_FROM && w.depth.is_multiple_of(gemm::DEPTH) {
        assert_eq!(x.len(), m * w.depth, "input of a linear map");
        let weights = Mat::strided(w.data, [w.rows, w.depth], [w.stride, 1]);
        // SAFETY: detected
        return unsafe { gemm::linear_strips(Mat::new(x, m, w.depth), &weights.transposed(), epilogue) };
    }
    if m <= EXACT_ROWS || level < Level::Avx512Bf16 {
        return linear(x, m, &w, epilogue);
    }
    linear_pairs(x, m, w, epilogue)
}

/// Both factors in pairs of bf16, for processors that multiply these.
fn linear_pairs(x: &[f32], m: usize, w: Plain<'_, bf16>, epilogue: Epilogue<'_>) -> Vec<f32> {
    let mut rounded = vec![bf16::ZERO; x.len()];
    round_row(x, &mut rounded);
    linear(&rounded, m, &Pairs(w), epilogue)
}

/// Columns `first..first + columns` of the product, on this thread; rows of `out` are `stride` apart.
///
/// # Safety
/// `out` has room for them, and nobody else touches them.
pub(crate) unsafe fn block<D: Dot>(x: &[D::X], m: usize, w: &D, range: [usize; 2], out: Out, stride: usize) {
    debug_assert!(x.len() >= m * w.width());
    #[cfg(target_arch = "x86_64")]
    {
        use crate::simd::{Avx2, Avx512};
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        unsafe fn avx512<D: Dot>(x: &[D::X], m: usize, w: &D, range: [usize; 2], out: Out, stride: usize) {
            // SAFETY: the caller's
            unsafe { tiles::<Avx512, D>(x, m, w, range, out, stride) }
        }
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2<D: Dot>(x: &[D::X], m: usize, w: &D, range: [usize; 2], out: Out, stride: usize) {
            // SAFETY: the caller's
            unsafe { tiles::<Avx2, D>(x, m, w, range, out, stride) }
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
        unsafe fn pairs<D: Dot>(x: &[D::X], m: usize, w: &D, range: [usize; 2], out: Out, stride: usize) {
            // SAFETY: the caller's
            unsafe { tiles::<Avx512, D>(x, m, w, range, out, stride) }
        }
        let level = Level::detect();
        if D::PAIRS {
            assert!(
                level >= Level::Avx512Bf16,
                "pairs of bf16 without the instructions"
            );
            // SAFETY: detected; the rest is the caller's
            return unsafe { pairs(x, m, w, range, out, stride) };
        }
        if level >= Level::Avx512 {
            // SAFETY: detected; the rest is the caller's
            return unsafe { avx512(x, m, w, range, out, stride) };
        }
        if level >= Level::Avx2 {
            // SAFETY: detected; the rest is the caller's
            return unsafe { avx2(x, m, w, range, out, stride) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    assert!(
        !D::PAIRS || Level::detect() >= Level::NeonBf16,
        "pairs of bf16 without the instructions"
    );
    // SAFETY: the caller's; every processor of this architecture has it
    unsafe { tiles::<Base, D>(x, m, w, range, out, stride) }
}

#[inline(always)]
unsafe fn tiles<S: Simd, D: Dot>(
    x: &[D::X],
    m: usize,
    w: &D,
    [first, columns]: [usize; 2],
    out: Out,
    stride: usize,
) {
    let k = w.width();
    // as many rows of `x` as registers allow next to four rows of weights
    let most = if S::LANES == 16 { 5 } else { 2 };
    for j in (0..columns).step_by(4) {
        let width = (columns - j).min(4);
        let (mut i, mut left) = (0, m);
        while left > 0 {
            let height = left.div_ceil(left.div_ceil(most));
            let row = &x[i * k..];
            macro_rules! run {
                ($x:literal, $w:literal) => {{
                    // SAFETY: the rows exist; the caller vouches for instructions and result
                    unsafe {
                        let sums = w.dot::<S, $x, $w>(first + j, row.as_ptr());
                        for (r, sums) in sums.iter().enumerate() {
                            out.slice((i + r) * stride + first + j, $w)
                                .copy_from_slice(sums);
                        }
                    }
                }};
            }
            macro_rules! run_width {
                ($x:literal) => {
                    match width {
                        4 => run!($x, 4),
                        3 => run!($x, 3),
                        2 => run!($x, 2),
                        _ => run!($x, 1),
                    }
                };
            }
            match height {
                1 => run_width!(1),
                2 => run_width!(2),
                3 => run_width!(3),
                4 => run_width!(4),
                _ => run_width!(5),
            }
            i += height;
            left -= height;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Act;
    use crate::simd::Portable;

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i + seed) * 2_654_435_761 % 10_007) as f32 / 5_003.5 - 1.0)
            .collect()
    }

    #[test]
    fn equals_f64_for_every_number_of_rows_and_odd_sizes() {
        for (m, k, n) in [
            (1, 1, 1),
            (1, 40, 130),
            (2, 33, 5),
            (3, 17, 66),
            (5, 100, 129),
            (8, 64, 7),
            (17, 31, 3),
        ] {
            let (x, bias) = (values(m * k, 1), values(n, 2));
            let narrow: Vec<bf16> = values(n * k, 3).iter().map(|&w| bf16::from_f32(w)).collect();
            let wide: Vec<f32> = narrow.iter().map(|w| w.to_f32()).collect();
            let epilogue = Epilogue {
                bias: Some(&bias),
                act: Act::Identity,
            };
            let exact: Vec<f16> = narrow.iter().map(|w| f16::from_f32(w.to_f32())).collect();
            let sixteen = linear_f16(&x, m, Plain::new(&exact, [n, k], k), epilogue);
            let half = linear_bf16(&x, m, Plain::new(&narrow, [n, k], k), epilogue);
            let rounded = linear_bf16_rounded(&x, m, Plain::new(&narrow, [n, k], k), epilogue);
            let full = linear_f32(&x, m, Plain::new(&wide, [n, k], k), epilogue);
            let pairs = (Level::detect() >= Level::Avx512Bf16)
                .then(|| linear_pairs(&x, m, Plain::new(&narrow, [n, k], k), epilogue));
            for i in 0..m {
                for j in 0..n {
                    let terms = (0..k).map(|p| f64::from(x[i * k + p]) * f64::from(wide[j * k + p]));
                    let want = terms.sum::<f64>() + f64::from(bias[j]);
                    // at most 100 f32 roundings of sums of terms below one
                    let off = |got: f32| (f64::from(got) - want).abs();
                    assert!(off(full[i * n + j]) < 2e-5, "{m} {k} {n} at {i} {j}");
                    // eight bits of a bf16 near one fit into the eleven of an f16, but for the smallest
                    assert!(off(sixteen[i * n + j]) < 3e-5, "f16 {m} {k} {n} at {i} {j}");
                    // rounded to bf16: at most 2^-9 per product, five deviations
                    let rounding = 4e-3 * (k as f64).sqrt();
                    assert!(off(half[i * n + j]) < 2e-5, "{m} {k} {n} at {i} {j}");
                    assert!(
                        off(rounded[i * n + j]) < 2e-5 + if m > EXACT_ROWS { rounding } else { 0.0 },
                        "{m} {k} {n} at {i} {j}"
                    );
                    if let Some(pairs) = &pairs {
                        assert!(
                            off(pairs[i * n + j]) < 2e-5 + rounding,
                            "pairs {m} {k} {n} at {i} {j}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn every_level_agrees() {
        let (m, k, n) = (7, 53, 11);
        let (x, w) = (values(m * k, 1), values(n * k, 2));
        let weights = Plain::new(&w, [n, k], k);
        let fast = linear_f32(&x, m, weights, Epilogue::NONE);
        let mut plain = vec![0f32; m * n];
        // SAFETY: portable instructions, all of the result
        unsafe { tiles::<Portable, _>(&x, m, &weights, [0, n], Out(plain.as_mut_ptr()), n) };
        for (a, b) in fast.iter().zip(&plain) {
            assert!((a - b).abs() < 5e-6, "{a} {b}");
        }
    }

    #[test]
    fn nothing_to_do() {
        let none: [f32; 0] = [];
        assert!(linear_f32(&none, 0, Plain::new(&[1.0; 6], [2, 3], 3), Epilogue::NONE).is_empty());
        assert!(linear_f32(&[1.0; 3], 1, Plain::new(&none, [0, 3], 3), Epilogue::NONE).is_empty());
        let zeros = linear_f32(&none, 2, Plain::new(&none, [2, 0], 0), Epilogue::NONE);
        assert_eq!(zeros, [0.0; 4]);
    }
}
