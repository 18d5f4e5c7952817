//! The parts of packing that take time, eight values at once.

use super::BLOCK;
use crate::gemm::mat::{Element, Form};
use crate::level::Level;
use crate::simd::{Avx2, Simd, transpose8};

/// The vector form of packing from lines along the contraction, in whole blocks of [`BLOCK`] steps. Says how many steps
/// that was.
pub(super) fn pack_lines<T: Element>(
    data: &[T],
    line: usize,
    [steps, columns]: [usize; 2],
    width: usize,
    pairs: bool,
    out: &mut [u32],
) -> usize {
    let done = steps / BLOCK * BLOCK;
    // a narrower panel than its vectors spills into the next step, which is written later
    let fits = width == columns || width.is_multiple_of(8);
    let refused = Level::detect() < Level::Avx2 || (pairs && T::FORM != Form::Bf16);
    if refused || !fits || done == 0 || columns == 0 {
        return 0;
    }
    let per_step = if pairs { 2 } else { 1 };
    assert!((columns - 1) * line + steps * per_step <= data.len() && steps * width <= out.len());

    /// # Safety
    /// AVX2; all blocks lie inside both slices.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn blocks<T: Element, const WIDEN: bool>(
        data: *const T,
        line: usize,
        [steps, columns]: [usize; 2],
        width: usize,
        per_step: usize,
        out: &mut [u32],
    ) {
        for start in (0..steps).step_by(8) {
            // from the right, because the last block may spill
            for j in (0..columns).step_by(8).rev() {
                let there = columns - j;
                // SAFETY: the caller checked both ends
                unsafe {
                    let rows = std::array::from_fn(|i| {
                        if i >= there {
                            return Avx2::zero();
                        }
                        let x = data.add((j + i) * line + start * per_step);
                        match T::FORM {
                            Form::Bf16 if WIDEN => Avx2::load_bf16(x.cast()),
                            Form::F16 => Avx2::load_f16(x.cast()),
                            // one f32, or a pair of bf16 as one word
                            _ => Avx2::load(x.cast()),
                        }
                    });
                    for (i, row) in transpose8(rows).into_iter().enumerate() {
                        let at = (start + i) * width + j;
                        let room = out.len() - at;
                        let out = out.as_mut_ptr().add(at).cast();
                        if room >= 8 {
                            Avx2::store(out, row);
                        } else {
                            Avx2::store_part(out, room, row);
                        }
                    }
                }
            }
        }
    }
    // SAFETY: detected; the assertion covers the last element read, and what is written starts inside `out`
    unsafe {
        if pairs {
            blocks::<T, false>(data.as_ptr(), line, [done, columns], width, per_step, out);
        } else {
            blocks::<T, true>(data.as_ptr(), line, [done, columns], width, per_step, out);
        }
    }
    done
}

/// The vector form of copying lines across the panel, `row_stride` apart. Says how many steps that was.
pub(super) fn copy_rows<T: Element>(
    data: &[T],
    row_stride: usize,
    [steps, columns]: [usize; 2],
    width: usize,
    out: &mut [u32],
) -> usize {
    let whole = columns.next_multiple_of(8);
    // where a line ends inside a vector, the rest of it falls on the next steps, which are written later
    let room = if whole == columns || width == columns {
        (out.len() + width).saturating_sub(whole) / width
    } else {
        0
    };
    let done = steps.min(room);
    if Level::detect() < Level::Avx2 || done == 0 || (done - 1) * row_stride + whole > data.len() {
        return 0;
    }
    assert!((done - 1) * width + whole <= out.len());

    /// # Safety
    /// AVX2; `whole` values from the start of each of the `steps` lines exist on both sides.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn lines<T: Element>(
        data: *const T,
        row_stride: usize,
        [steps, whole]: [usize; 2],
        width: usize,
        out: *mut f32,
    ) {
        for p in 0..steps {
            for j in (0..whole).step_by(8) {
                // SAFETY: the caller checked both ends
                unsafe {
                    let x = data.add(p * row_stride + j);
                    let x = match T::FORM {
                        Form::F32 => Avx2::load(x.cast()),
                        Form::Bf16 => Avx2::load_bf16(x.cast()),
                        Form::F16 => Avx2::load_f16(x.cast()),
                    };
                    Avx2::store(out.add(p * width + j), x);
                }
            }
        }
    }
    // SAFETY: detected; the last line was compared with both slices
    unsafe {
        lines(
            data.as_ptr(),
            row_stride,
            [done, whole],
            width,
            out.as_mut_ptr().cast(),
        )
    };
    done
}
