//! Panels: both factors copied once into the order in which the tiles read them. A panel holds u32 words:
//! the bits of one f32, or of two bf16 that follow each other along the contraction.

use half::{bf16, f16};

/// Matrix with strides; element `(i, j)` is `data[i * row_stride + j * column_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a, T> {
    /// Starts at element `(0, 0)`.
    pub data: &'a [T],
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// Distance of rows.
    pub row_stride: usize,
    /// Distance of columns.
    pub column_stride: usize,
}

impl<'a, T> Mat<'a, T> {
    /// Row-major without gaps.
    ///
    /// # Panics
    /// If the slice is too short.
    pub fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        Self::strided(data, [rows, columns], [columns, 1])
    }

    /// With strides.
    ///
    /// # Panics
    /// If the slice does not reach the last element.
    pub fn strided(
        data: &'a [T],
        [rows, columns]: [usize; 2],
        [row_stride, column_stride]: [usize; 2],
    ) -> Self {
        let empty = rows == 0 || columns == 0;
        assert!(
            empty || (rows - 1) * row_stride + (columns - 1) * column_stride < data.len(),
            "a matrix that leaves its slice"
        );
        Self {
            data,
            rows,
            columns,
            row_stride,
            column_stride,
        }
    }

    /// Rows and columns exchanged; nothing moves.
    pub fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// How a vector of stored scalars becomes one of f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// It is one.
    F32,
    /// Upper half of an f32.
    Bf16,
    /// IEEE half precision.
    F16,
}

/// A scalar that can be packed either way.
pub trait Element: Copy + Sync + Send {
    /// What is stored.
    const FORM: Form;
    /// As f32.
    fn wide(self) -> f32;
    /// As bf16, rounded to nearest even.
    fn narrow(self) -> u16;
}

impl Element for f32 {
    const FORM: Form = Form::F32;

    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(self) -> u16 {
        let bits = self.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        // rounding could carry a NaN into infinity
        let kept = if self.is_nan() { bits | 0x40_0000 } else { rounded };
        (kept >> 16) as u16
    }
}

impl Element for bf16 {
    const FORM: Form = Form::Bf16;

    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn narrow(self) -> u16 {
        self.to_bits()
    }
}

impl Element for f16 {
    const FORM: Form = Form::F16;

    #[inline(always)]
    fn wide(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(self) -> u16 {
        self.to_f32().narrow()
    }
}

/// Steps handled at a time where the source runs along the contraction: the strided writes then stay in L1.
const BLOCK: usize = 16;

/// Packs columns `first..first + out_columns` of rows `from..from + depth` of `m` (rows run along the
/// contraction) as `[steps][width]`, zero where `width` exceeds the columns and where `out` has more steps than
/// `depth` fills.
///
/// The left factor of vector code is packed through its transpose.
pub(super) fn pack<T: Element>(
    m: Mat<'_, T>,
    [from, depth]: [usize; 2],
    [first, columns]: [usize; 2],
    width: usize,
    pairs: bool,
    out: &mut [u32],
) {
    let steps = if pairs { depth.div_ceil(2) } else { depth };
    let (out, padding) = out.split_at_mut(steps * width);
    padding.fill(0);
    if columns < width {
        out.fill(0);
    }
    if m.row_stride == 1 {
        // the source runs along the contraction
        let line = |j: usize| {
            let start = (first + j) * m.column_stride + from;
            &m.data[start..start + depth]
        };
        #[cfg(target_arch = "x86_64")]
        let done = {
            let size = [steps - usize::from(pairs && depth % 2 == 1), columns];
            let start = first * m.column_stride + from;
            pack_lines(&m.data[start..], m.column_stride, size, width, pairs, out)
        };
        #[cfg(not(target_arch = "x86_64"))]
        let done = [0, 0];
        for start in (0..steps).step_by(BLOCK) {
            let end = (start + BLOCK).min(steps);
            for j in if end <= done[0] { done[1] } else { 0 }..columns {
                let line = line(j);
                let out = out[start * width + j..].iter_mut().step_by(width);
                if pairs {
                    let line = &line[2 * start..(2 * end).min(depth)];
                    for (out, pair) in out.zip(line.chunks(2)) {
                        *out = word(pair[0], pair.get(1).copied());
                    }
                } else {
                    for (out, &x) in out.zip(&line[start..end]) {
                        *out = x.wide().to_bits();
                    }
                }
            }
        }
        return;
    }
    let at = |i: usize, j: usize| m.data[(from + i) * m.row_stride + (first + j) * m.column_stride];
    for (p, out) in out.chunks_exact_mut(width).enumerate() {
        if m.column_stride == 1 && !pairs {
            let start = (from + p) * m.row_stride + first;
            for (out, &x) in out.iter_mut().zip(&m.data[start..start + columns]) {
                *out = x.wide().to_bits();
            }
        } else if m.column_stride == 1 && 2 * p + 1 < depth {
            let start = (from + 2 * p) * m.row_stride + first;
            let low = &m.data[start..start + columns];
            let high = &m.data[start + m.row_stride..start + m.row_stride + columns];
            words(low, high, out);
        } else if pairs {
            for (j, out) in out.iter_mut().enumerate().take(columns) {
                let high = (2 * p + 1 < depth).then(|| at(2 * p + 1, j));
                *out = word(at(2 * p, j), high);
            }
        } else {
            for (j, out) in out.iter_mut().enumerate().take(columns) {
                *out = at(p, j).wide().to_bits();
            }
        }
    }
}

/// Two values that follow each other along the contraction.
#[inline(always)]
fn word<T: Element>(low: T, high: Option<T>) -> u32 {
    u32::from(low.narrow()) | u32::from(high.map_or(0, Element::narrow)) << 16
}

/// Pairs of two rows.
fn words<T: Element>(low: &[T], high: &[T], out: &mut [u32]) {
    #[inline(always)]
    fn body<T: Element>(low: &[T], high: &[T], out: &mut [u32]) {
        for ((out, &low), &high) in out.iter_mut().zip(low).zip(high) {
            *out = word(low, Some(high));
        }
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn avx2<T: Element>(low: &[T], high: &[T], out: &mut [u32]) {
            body(low, high, out);
        }
        if crate::level::Level::detect() >= crate::level::Level::Avx2 {
            // SAFETY: detected
            return unsafe { avx2(low, high, out) };
        }
    }
    body(low, high, out);
}

/// Packs `rows` rows from `first` of `m` (columns run along the contraction, `from..from + depth` of them) as
/// `[steps / group][rows][group]` pairs, zero where `out` has more steps than `depth` fills: the left factor of
/// tile registers.
pub(super) fn pack_rows<T: Element>(
    m: Mat<'_, T>,
    [from, depth]: [usize; 2],
    [first, rows]: [usize; 2],
    group: usize,
    out: &mut [u32],
) {
    for (g, out) in out.chunks_exact_mut(rows * group).enumerate() {
        let start = 2 * g * group;
        let size = (2 * group).min(depth - start);
        for (i, out) in out.chunks_exact_mut(group).enumerate() {
            let line = &m.data[(first + i) * m.row_stride + (from + start) * m.column_stride..];
            if m.column_stride == 1 && size == 2 * group {
                for (out, pair) in out.iter_mut().zip(line.as_chunks().0) {
                    let &[low, high] = pair;
                    *out = word(low, Some(high));
                }
            } else {
                let at = |p: usize| line[p * m.column_stride];
                for (p, out) in out.iter_mut().enumerate() {
                    *out = match size.saturating_sub(2 * p) {
                        0 => 0,
                        1 => word(at(2 * p), None),
                        _ => word(at(2 * p), Some(at(2 * p + 1))),
                    };
                }
            }
        }
    }
}

/// The vector form of packing from lines along the contraction: as many whole blocks of 16 steps by 8 columns as
/// there are. Says how many steps and columns that was.
#[cfg(target_arch = "x86_64")]
fn pack_lines<T: Element>(
    data: &[T],
    line: usize,
    [steps, columns]: [usize; 2],
    width: usize,
    pairs: bool,
    out: &mut [u32],
) -> [usize; 2] {
    use crate::level::Level;
    use crate::simd::{Avx2, Simd, transpose8};

    let done = [steps / BLOCK * BLOCK, columns / 8 * 8];
    if Level::detect() < Level::Avx2 || (pairs && T::FORM != Form::Bf16) || done.contains(&0) {
        return [0, 0];
    }
    let per_step = if pairs { 2 } else { 1 };
    assert!((columns - 1) * line + steps * per_step <= data.len() && steps * width <= out.len());

    /// # Safety
    /// AVX2; all blocks lie inside both slices.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn blocks<T: Element, const WIDEN: bool>(
        data: *const T,
        line: usize,
        done: [usize; 2],
        width: usize,
        per_step: usize,
        out: *mut u32,
    ) {
        for start in (0..done[0]).step_by(8) {
            for j in (0..done[1]).step_by(8) {
                // SAFETY: the caller checked both ends
                unsafe {
                    let rows = std::array::from_fn(|i| {
                        let x = data.add((j + i) * line + start * per_step);
                        match T::FORM {
                            Form::Bf16 if WIDEN => Avx2::load_bf16(x.cast()),
                            Form::F16 => Avx2::load_f16(x.cast()),
                            // one f32, or a pair of bf16 as one word
                            _ => Avx2::load(x.cast()),
                        }
                    });
                    for (i, row) in transpose8(rows).into_iter().enumerate() {
                        Avx2::store(out.add((start + i) * width + j).cast(), row);
                    }
                }
            }
        }
    }
    // SAFETY: detected; the assertion covers the last element read and written
    unsafe {
        if pairs {
            blocks::<T, false>(data.as_ptr(), line, done, width, per_step, out.as_mut_ptr());
        } else {
            blocks::<T, true>(data.as_ptr(), line, done, width, per_step, out.as_mut_ptr());
        }
    }
    done
}
