//! Products with weights that tile registers read where they lie, `[n, k]` as a linear layer stores them: a tile of a
//! left factor is 16 rows of 32 values along the contraction. So the weights are the left factor here, the rows of the
//! input the right one, packed once; the sums are those of the transposed result and are turned while they are written.
//!
//! What limits such a product is the way of the weights from memory as long as there are few rows, and the way of both
//! factors from the second cache to the tiles when there are many. Hence strips of 32 weight rows, each multiplied with
//! as many rows of the input as fit in that cache, while the next strip is on its way into it.

use std::mem::MaybeUninit;

use half::bf16;
use rayon::prelude::*;

use super::amx::{Ahead, Pass, Registers, SIDE, SPAN};
use super::pack::pack;
use super::{Buffer, Epilogue, Mat, Out, add, each, round, round_row, with_buffer};
use crate::act::{self, Act};
use crate::simd::{Avx2, Simd, transpose8};

/// Values along the contraction per tile.
pub(crate) const DEPTH: usize = 2 * SIDE;

/// Most values along the contraction at a time: what 32 rows of both factors take leaves room in the second cache.
const CHUNK: usize = 2560;

/// Bytes of the input that should stay in the second cache.
const INPUT: usize = 1 << 20;

/// Most strips per task.
const TASK: usize = 16;

/// Sums of a strip and [`SPAN`] rows of the input.
const SUMS: usize = SPAN * SPAN;

/// Rows of weights in bf16, `stride` bytes apart.
#[derive(Clone, Copy)]
pub(crate) struct Lines {
    pub at: *const bf16,
    pub stride: usize,
}

/// Weights `[rows, depth]` that can be had as bf16, 32 rows at a time. `depth` is a multiple of [`DEPTH`].
pub(crate) trait Strips: Sync {
    /// Rows and depth.
    fn size(&self) -> [usize; 2];
    /// Values `from..from + depth` of rows `first..first + SPAN`, in place or written to `scratch`, which has room for
    /// them. Rows that do not exist are zero.
    fn lines(&self, first: usize, from: usize, depth: usize, scratch: &mut [bf16]) -> Lines;
    /// What [`lines`](Self::lines) will read.
    fn ahead(&self, first: usize, from: usize) -> Ahead;
}

/// Columns of `b` that are contiguous.
impl Strips for Mat<'_, bf16> {
    fn size(&self) -> [usize; 2] {
        [self.columns, self.rows]
    }
    fn lines(&self, first: usize, from: usize, depth: usize, scratch: &mut [bf16]) -> Lines {
        let row = |r: usize| &self.data[(first + r) * self.column_stride + from..][..depth];
        let there = SPAN.min(self.columns - first);
        if there == SPAN {
            let _last = row(SPAN - 1);
            return Lines {
                at: row(0).as_ptr(),
                stride: 2 * self.column_stride,
            };
        }
        for (r, out) in scratch[..SPAN * depth].chunks_exact_mut(depth).enumerate() {
            if r < there {
                out.copy_from_slice(row(r));
            } else {
                out.fill(bf16::ZERO);
            }
        }
        Lines {
            at: scratch.as_ptr(),
            stride: 2 * depth,
        }
    }
    fn ahead(&self, first: usize, from: usize) -> Ahead {
        Ahead {
            at: self.data[first * self.column_stride + from..].as_ptr().cast(),
            rows: SPAN.min(self.columns - first),
            stride: 2 * self.column_stride,
            step: 2 * DEPTH,
        }
    }
}

/// Whether [`product`] serves for these weights.
pub(super) fn applies<B>(b: Mat<'_, B>) -> bool {
    b.row_stride == 1 && b.rows.is_multiple_of(DEPTH)
}

/// How a product is divided.
struct Plan {
    /// Values along the contraction at a time, a multiple of [`DEPTH`].
    chunk: usize,
    chunks: usize,
    /// Panels of [`SPAN`] rows of the input per task, and strips per task.
    panels: usize,
    strips: usize,
}

impl Plan {
    fn new([m, k, n]: [usize; 3], threads: usize) -> Self {
        let groups = k / DEPTH;
        let chunk = groups.div_ceil(k.div_ceil(CHUNK)) * DEPTH;
        let (panels, strips) = (m.div_ceil(SPAN), n.div_ceil(SPAN));
        let fit = (INPUT / (2 * SPAN * chunk)).max(1);
        let ranges = panels.div_ceil(fit);
        let tasks = if threads > 1 {
            (4 * threads).div_ceil(ranges)
        } else {
            1
        };
        Self {
            chunk,
            chunks: k.div_ceil(chunk),
            panels: panels.div_ceil(ranges),
            strips: strips.div_ceil(tasks).clamp(1, TASK),
        }
    }
}

/// The rows of the input in the order in which tiles read them: per chunk of the contraction panels of [`SIDE`] rows,
/// each `[groups][16 pairs][16]` words, zero where there are no more rows.
struct Packed<'a> {
    words: &'a [u32],
    rows: usize,
    chunk: usize,
}

impl Packed<'_> {
    fn words(m: usize, k: usize) -> usize {
        m.next_multiple_of(SIDE) * k / 2
    }

    fn fill(x: Mat<'_, bf16>, chunk: usize, out: &mut [u32]) {
        let (m, k) = (x.rows, x.columns);
        let width = m.next_multiple_of(SIDE) * chunk / 2;
        for (c, out) in out.chunks_mut(width).enumerate() {
            let from = c * chunk;
            let depth = chunk.min(k - from);
            let panel = |(i, out): (usize, &mut [u32])| {
                let rows = [i * SIDE, SIDE.min(m - i * SIDE)];
                pack(x.transposed(), [from, depth], rows, SIDE, true, out);
            };
            let size = SIDE * depth / 2;
            if m > SPAN {
                out.par_chunks_mut(size).enumerate().for_each(panel);
            } else {
                out.chunks_mut(size).enumerate().for_each(panel);
            }
        }
    }

    /// Panel `i` of [`SIDE`] rows in a chunk that has `depth` values.
    fn panel(&self, chunk: usize, depth: usize, i: usize) -> *const u32 {
        let start = chunk * self.rows.next_multiple_of(SIDE) * self.chunk / 2;
        self.words[start + i * SIDE * depth / 2..][..SIDE * depth / 2].as_ptr()
    }
}

/// Rows of an input up to which each is given as the sum of two numbers in bf16, 16 bits in all: tiles have columns to
/// spare, and the time is that of the weights' way from memory.
const EXACT: usize = SIDE;

/// Rows `[parts * m, k]` whose parts add up to those of `x`, and the number of parts.
pub(super) fn round_parts(x: Mat<'_, f32>) -> (Vec<bf16>, usize) {
    let mut rounded = round(x);
    if x.rows > EXACT {
        return (rounded, 1);
    }
    let rest: Vec<f32> = rounded
        .iter()
        .enumerate()
        .map(|(i, high)| {
            let rest = x.data[i / x.columns * x.row_stride + i % x.columns * x.column_stride] - high.to_f32();
            // of infinity nothing is left
            if rest.is_finite() { rest } else { 0.0 }
        })
        .collect();
    rounded.resize(2 * rest.len(), bf16::ZERO);
    let low = &mut rounded[rest.len()..];
    round_row(&rest, low);
    (rounded, 2)
}

/// `act(x w^T + bias)` for `x [parts * m, k]` -> `[m, n]`, where the rows `i`, `m + i`, ... of `x` are parts of one row
/// that are added up.
///
/// # Safety
/// [`Level::Amx`](crate::level::Level::Amx) was detected, no side is empty, several parts have at most [`SPAN`] rows
/// together, `out` has room for `m` rows of `n` columns at `stride`, and no other thread touches those.
pub(super) unsafe fn product<W: Strips>(
    x: Mat<'_, bf16>,
    parts: usize,
    w: &W,
    out: Out,
    stride: usize,
    epilogue: Epilogue<'_>,
    threads: usize,
) {
    let (m, k) = (x.rows, x.columns);
    let [n, depth] = w.size();
    debug_assert!(k == depth && k.is_multiple_of(DEPTH) && (parts == 1 || m <= SPAN));
    let plan = Plan::new([m, k, n], threads);
    with_buffer(Buffer::Left, Packed::words(m, k), |words| {
        Packed::fill(x, plan.chunk, words);
        let x = Packed {
            words,
            rows: m,
            chunk: plan.chunk,
        };
        let columns = n.div_ceil(plan.strips * SPAN);
        let task = |t: usize| {
            let (strips, panels) = (t % columns * plan.strips, t / columns * plan.panels);
            let task = Task {
                strips: [strips, plan.strips.min(n.div_ceil(SPAN) - strips)],
                panels: [panels, plan.panels.min(m.div_ceil(SPAN) - panels)],
                parts,
            };
            // SAFETY: tasks differ in strips or panels; the rest is the caller's
            unsafe { task.run(&x, w, &plan, out, stride, epilogue) };
        };
        each(columns * m.div_ceil(plan.panels * SPAN), threads, task);
    });
}

/// A rectangle of the result.
struct Task {
    /// First and number of strips of weights.
    strips: [usize; 2],
    /// First and number of panels of rows.
    panels: [usize; 2],
    parts: usize,
}

impl Task {
    /// # Safety
    /// As for [`product`].
    unsafe fn run<W: Strips>(
        &self,
        x: &Packed<'_>,
        w: &W,
        plan: &Plan,
        out: Out,
        stride: usize,
        epilogue: Epilogue<'_>,
    ) {
        let ([first, strips], [panel, panels]) = (self.strips, self.panels);
        let [n, k] = w.size();
        // with one chunk the sums of a strip are finished before the next begins
        let kept = if plan.chunks == 1 { 1 } else { strips };
        let scratch_words = SPAN * plan.chunk / 2;
        with_buffer(Buffer::Right, scratch_words + kept * panels * SUMS, |memory| {
            let (scratch, sums) = memory.split_at_mut(scratch_words);
            // SAFETY: a word holds two bf16, of which every bit pattern is one
            let scratch =
                unsafe { std::slice::from_raw_parts_mut(scratch.as_mut_ptr().cast(), 2 * scratch_words) };
            let mut registers = Registers::new();
            for chunk in 0..plan.chunks {
                let from = chunk * plan.chunk;
                let depth = plan.chunk.min(k - from);
                for s in 0..strips {
                    let row = (first + s) * SPAN;
                    let lines = w.lines(row, from, depth, scratch);
                    let ahead = match (s + 1 < strips, chunk + 1 < plan.chunks) {
                        (true, _) => w.ahead(row + SPAN, from),
                        (false, true) => w.ahead(first * SPAN, from + depth),
                        (false, false) => Ahead::NONE,
                    };
                    let sums = &mut sums[s % kept * panels * SUMS..][..panels * SUMS];
                    for (p, sums) in sums.chunks_exact_mut(SUMS).enumerate() {
                        let left = 2 * (panel + p);
                        let wide = (left + 1) * SIDE < x.rows;
                        let b = x.panel(chunk, depth, left);
                        let pass = Pass {
                            a: lines.at.cast(),
                            stride: lines.stride,
                            b: [b, if wide { x.panel(chunk, depth, left + 1) } else { b }],
                            wide,
                            groups: depth / DEPTH,
                            sums: sums.as_mut_ptr().cast(),
                            accumulate: chunk > 0,
                            ahead: ahead.part(p, panels),
                        };
                        // SAFETY: `lines` has 32 rows of `depth` values, the panels were packed for them
                        unsafe { registers.pass(&pass) };
                        if chunk + 1 == plan.chunks {
                            let rows = [(panel + p) * SPAN, SPAN.min(x.rows - (panel + p) * SPAN)];
                            let columns = [row, SPAN.min(n - row)];
                            // SAFETY: inside the task's rectangle; sums are f32 bits
                            unsafe {
                                self.finish(sums.as_ptr().cast(), rows, columns, out, stride, epilogue)
                            };
                        }
                    }
                }
            }
        });
    }

    /// Turns four tiles of sums into pieces of rows of the result, and finishes those.
    ///
    /// # Safety
    /// The sums exist; the rectangle lies inside `out` and nobody else touches it.
    unsafe fn finish(
        &self,
        sums: *const f32,
        [row, rows]: [usize; 2],
        [first, columns]: [usize; 2],
        out: Out,
        stride: usize,
        epilogue: Epilogue<'_>,
    ) {
        let mut turned = MaybeUninit::<[[f32; SPAN]; SPAN]>::uninit();
        // SAFETY: a processor with tiles has AVX2; four tiles of sums; of the result only the rows that were turned are used
        let turned = unsafe {
            let all = rows.next_multiple_of(SIDE);
            turn(sums, all, turned.as_mut_ptr().cast());
            std::slice::from_raw_parts_mut(turned.as_mut_ptr().cast::<[f32; SPAN]>(), all)
        };
        let rows = rows / self.parts;
        let (turned, parts) = turned.split_at_mut(rows);
        for part in parts.chunks_exact(rows).take(self.parts - 1) {
            for (sums, part) in turned.iter_mut().zip(part) {
                add(sums, part);
            }
        }
        if let Some(bias) = epilogue.bias {
            let bias = &bias[first..first + columns];
            for sums in turned.iter_mut() {
                add(sums, bias);
            }
        }
        if epilogue.act != Act::Identity {
            act::apply(epilogue.act, turned.as_flattened_mut());
        }
        for (r, sums) in turned.iter().enumerate() {
            // SAFETY: the caller's
            unsafe {
                let target = out.at((row + r) * stride + first);
                if columns == SPAN {
                    target.cast::<[f32; SPAN]>().write(*sums);
                } else {
                    target.copy_from_nonoverlapping(sums.as_ptr(), columns);
                }
            }
        }
    }
}

/// `out[r][c] = sums[c][r]` for the first `rows` (16 or 32) rows, where `sums` are four tiles.
///
/// # Safety
/// AVX2, and the tiles exist.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn turn(sums: *const f32, rows: usize, out: *mut f32) {
    for r in (0..rows).step_by(8) {
        for c in (0..SPAN).step_by(8) {
            let tile = (c / SIDE * 2 + r / SIDE) * SIDE * SIDE;
            // SAFETY: 8 by 8 values of one tile, and as many of the result
            unsafe {
                let block =
                    std::array::from_fn(|i| Avx2::load(sums.add(tile + (c % SIDE + i) * SIDE + r % SIDE)));
                for (i, line) in transpose8(block).into_iter().enumerate() {
                    Avx2::store(out.add((r + i) * SPAN + c), line);
                }
            }
        }
    }
}
