//! Products of a few rows with bf16 weights on tile registers that read the weights where they lie: packing them
//! would take as long as reading them from memory, which is all that such a product should cost.
//!
//! A tile of a left factor is 16 rows of 32 values along the contraction, and that is how a linear layer stores its
//! weights. So the weights are the left factor here, the few rows the right one, packed once; the tiles of sums
//! are those of the transposed result and are turned while they are written.

use super::amx::{Registers, SIDE, SPAN};
use super::pack::pack;
use super::tile::{Args, Tiles};
use super::{Buffer, Element, Epilogue, Mat, Out, each, finish_rows, with_buffer};

/// Rows up to which this is faster than packing the weights: with more, a packed panel is used often enough to pay
/// for itself, and is loaded faster than 16 rows far apart. The two meet between 100 and 200 rows.
const ROWS: usize = 96;

/// Values along the contraction per tile.
const DEPTH: usize = 2 * SIDE;

/// Most weight rows per task.
const TASK: usize = 4 * SPAN;

/// Sums of one call, `[weight rows][rows]`.
#[repr(align(64))]
struct Sums([f32; SPAN * SPAN]);

/// Whether [`product`] serves for `a b` where `tiles` would be used.
pub(super) fn applies<A: Element, B: Element>(a: Mat<'_, A>, b: Mat<'_, B>, tiles: &Tiles) -> bool {
    tiles.group == SIDE && a.rows <= ROWS && b.row_stride == 1 && b.rows.is_multiple_of(DEPTH)
}

/// `act(a b + bias)` for `a [m, k]` and `b [k, n]` whose columns are contiguous.
///
/// # Safety
/// [`Level::Amx`](crate::level::Level::Amx) was detected, [`applies`] says yes, no side is empty, `out` has room for
/// `m` rows of `n` columns at `stride`, and no other thread touches those.
pub(super) unsafe fn product<A: Element, B: Element>(
    a: Mat<'_, A>,
    b: Mat<'_, B>,
    out: Out,
    stride: usize,
    epilogue: Epilogue<'_>,
    threads: usize,
) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    let steps = k / 2;
    with_buffer(Buffer::Left, m.next_multiple_of(SIDE) * steps, |packed| {
        for i in (0..m).step_by(SPAN) {
            let rows = SPAN.min(m - i);
            let width = rows.next_multiple_of(SIDE);
            let out = &mut packed[i * steps..(i + width) * steps];
            pack(a.transposed(), [0, k], [i, rows], width, true, out);
        }
        let packed = &*packed;
        let width = (n.div_ceil(SPAN) / (2 * threads) * SPAN).clamp(SPAN, TASK);
        let task = |t: usize| {
            let (first, columns) = (t * width, width.min(n - t * width));
            let mut registers = Registers::new();
            let mut sums = Sums([0.0; SPAN * SPAN]);
            for j in (first..first + columns).step_by(SPAN) {
                let weights = &b.data[j * b.column_stride..];
                let here = SPAN.min(first + columns - j);
                for i in (0..m).step_by(SPAN) {
                    let rows = SPAN.min(m - i);
                    let args = Args {
                        steps,
                        a: weights.as_ptr().cast(),
                        b: packed[i * steps..].as_ptr(),
                        c: sums.0.as_mut_ptr(),
                        stride: SPAN,
                        last: rows,
                        accumulate: false,
                    };
                    // SAFETY: `here` rows of `k` weights exist from `j`, `rows` rows were packed from `i`, and the
                    // sums have room for all that a call can make
                    unsafe { registers.multiply([here, rows], args, [2 * b.column_stride, 2 * DEPTH]) };
                    for r in 0..rows {
                        for (c, sums) in sums.0.chunks_exact(SPAN).enumerate().take(here) {
                            // SAFETY: in a piece of a row of this task
                            unsafe { out.at((i + r) * stride + j + c).write(sums[r]) };
                        }
                    }
                }
            }
            // SAFETY: the task's pieces of all rows
            unsafe { finish_rows([0, m], [first, columns], out, stride, epilogue) };
        };
        each(n.div_ceil(width), threads, task);
    });
}
