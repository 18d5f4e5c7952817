//! Matrix products of f32 with f32 or bf16, f32 sums, with bias and activation applied while the result is
//! still in cache. Blocking after Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication"
//! (2008), with the left panel in L1 and the right block in L2: wide registers need few loads per product. Pairs of
//! bf16 are multiplied in vector registers or, where there are any, in tiles.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod direct;
mod mat;
mod pack;
mod tile;

use std::cell::RefCell;

use half::bf16;
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
pub(crate) use amx::{Ahead, SPAN};
#[cfg(target_arch = "x86_64")]
pub(crate) use direct::{DEPTH, Lines, Strips};
pub use mat::{Element, Form, Mat};
use pack::{pack_panels, pack_rows};
use tile::{Args, Tiles};

use crate::act::{self, Act};
use crate::level::{Level, per_level};

/// What happens to a finished value.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// Added to every row, `[n]`.
    pub bias: Option<&'a [f32]>,
    /// Applied last.
    pub act: Act,
}

impl Epilogue<'_> {
    /// Nothing.
    pub const NONE: Self = Self {
        bias: None,
        act: Act::Identity,
    };
}

/// `act(a b + bias)` for `a [m, k]` and `b [k, n]` -> `[m, n]`, exact to f32 whatever the type of `b`
/// (narrow weights are widened while they are packed).
///
/// # Panics
/// If the sizes do not match.
pub fn matmul<T: Element>(a: Mat<'_, f32>, b: Mat<'_, T>, epilogue: Epilogue<'_>) -> Vec<f32> {
    run_all(a, b, epilogue)
}

/// As [`matmul`], with `a` rounded to bf16 where the processor multiplies pairs of bf16 (products and sums in
/// f32; denormals count as zero): faster, and with AMX several times. Elsewhere the weights are widened and nothing is
/// rounded.
///
/// # Panics
/// If the sizes do not match.
pub fn matmul_bf16(a: Mat<'_, f32>, b: Mat<'_, bf16>, epilogue: Epilogue<'_>) -> Vec<f32> {
    if Level::detect() < Level::Avx512Bf16 {
        return run_all(a, b, epilogue);
    }
    let rounded = round(a);
    run_all(Mat::new(&rounded, a.rows, a.columns), b, epilogue)
}

/// `act(x w^T + bias)` for `x [m, k]` rounded to bf16 and weights that tile registers can read.
///
/// # Panics
/// If the sizes do not match.
///
/// # Safety
/// [`Level::Amx`] was detected.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn linear_strips<W: Strips>(x: Mat<'_, f32>, w: &W, epilogue: Epilogue<'_>) -> Vec<f32> {
    let (m, k) = (x.rows, x.columns);
    let [n, depth] = w.size();
    assert!(
        k == depth && epilogue.bias.is_none_or(|bias| bias.len() == n),
        "input and bias of a linear map"
    );
    let mut out = Vec::with_capacity(m * n);
    if m == 0 || n == 0 || k == 0 {
        // the general code knows what these are
        return matmul(x, Mat::<f32>::new(&[], k, n), epilogue);
    }
    let (rounded, parts) = direct::round_parts(x);
    let threads = rayon::current_num_threads();
    // SAFETY: the caller's; `out` has room for the result, of which the product writes all
    unsafe {
        let x = Mat::new(&rounded, m * parts, k);
        direct::product(x, parts, w, Out(out.as_mut_ptr()), n, epilogue, threads);
        out.set_len(m * n);
    }
    out
}

/// As [`matmul`] or, with `a` as rounded by [`round`], as [`matmul_bf16`], into columns of a larger result.
///
/// # Safety
/// `out` has room for `m` rows of `n` columns at `stride`, and nobody else touches those.
pub(crate) unsafe fn matmul_columns<A: Element, B: Element>(
    a: Mat<'_, A>,
    b: Mat<'_, B>,
    out: *mut f32,
    stride: usize,
    epilogue: Epilogue<'_>,
) {
    // SAFETY: the caller's
    unsafe { product(Level::detect(), a, b, Out(out), stride, epilogue, true) };
}

/// Row-major bf16, rounded to nearest even.
pub(crate) fn round(a: Mat<'_, f32>) -> Vec<bf16> {
    let mut out = vec![bf16::ZERO; a.rows * a.columns];
    let rows = out.par_chunks_mut(a.columns.max(1)).enumerate();
    rows.with_min_len(16).for_each(|(i, out)| {
        let row = &a.data[i * a.row_stride..];
        if a.column_stride == 1 {
            round_row(&row[..out.len()], out);
        } else {
            for (out, &x) in out.iter_mut().zip(row.iter().step_by(a.column_stride.max(1))) {
                *out = bf16::from_bits(x.narrow());
            }
        }
    });
    out
}

/// `out = x`, rounded to nearest even; where the processor multiplies bf16, which it does without denormals, they may
/// be zero already.
pub(crate) fn round_row(x: &[f32], out: &mut [bf16]) {
    #[cfg(target_arch = "x86_64")]
    if Level::detect() >= Level::Avx512Bf16 {
        // SAFETY: detected
        return unsafe { round_by_instruction(x, out) };
    }
    round_by_bits(x, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn round_by_instruction(x: &[f32], out: &mut [bf16]) {
    use std::arch::x86_64::*;
    const STEP: usize = 32;
    assert_eq!(x.len(), out.len(), "a row and its rounded values");
    let ((x, x_rest), (out, out_rest)) = (x.as_chunks::<STEP>(), out.as_chunks_mut::<STEP>());
    for (x, out) in x.iter().zip(out) {
        // SAFETY: 32 values of each; bf16 is a transparent u16
        unsafe {
            let [low, high] = [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))];
            let pairs = _mm512_cvtne2ps_pbh(high, low);
            _mm512_storeu_si512(
                out.as_mut_ptr().cast(),
                std::mem::transmute::<__m512bh, __m512i>(pairs),
            );
        }
    }
    round_body::<true>(x_rest, out_rest);
}

per_level! {
    fn round_by_bits(x: &[f32], out: &mut [bf16]) = round_body;
}

#[inline(always)]
fn round_body<const FMA: bool>(x: &[f32], out: &mut [bf16]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = bf16::from_bits(x.narrow());
    }
}

fn run_all<A: Element, B: Element>(a: Mat<'_, A>, b: Mat<'_, B>, epilogue: Epilogue<'_>) -> Vec<f32> {
    let (m, n) = (a.rows, b.columns);
    let mut out = Vec::with_capacity(m * n);
    // SAFETY: `out` has room for the result and is ours; the product writes all of it
    unsafe {
        product(Level::detect(), a, b, Out(out.as_mut_ptr()), n, epilogue, true);
        out.set_len(m * n);
    }
    out
}

/// As [`matmul`] into `out` with rows at `stride`, on this thread: the building block of attention.
///
/// # Safety
/// `out` has room for `m` rows of `n` columns at `stride`, and no other thread touches those.
pub(crate) unsafe fn matmul_into(a: Mat<'_, f32>, b: Mat<'_, f32>, out: *mut f32, stride: usize) {
    // SAFETY: the caller's
    unsafe { product(Level::detect(), a, b, Out(out), stride, Epilogue::NONE, false) };
}

/// A result that several threads write, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct Out(pub *mut f32);
// SAFETY: whoever hands it to threads gives them disjoint parts
unsafe impl Send for Out {}
// SAFETY: as above
unsafe impl Sync for Out {}

impl Out {
    /// # Safety
    /// `start` lies inside the result.
    pub unsafe fn at(self, start: usize) -> *mut f32 {
        // SAFETY: the caller's
        unsafe { self.0.add(start) }
    }

    /// # Safety
    /// The values exist and nobody else touches them while the slice lives.
    pub unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: the caller's
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// # Safety
/// The processor has `level`, `out` has room for `m` rows of `n` columns at `stride`, and no other thread touches
/// those.
unsafe fn product<A: Element, B: Element>(
    level: Level,
    a: Mat<'_, A>,
    b: Mat<'_, B>,
    out: Out,
    stride: usize,
    epilogue: Epilogue<'_>,
    parallel: bool,
) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert_eq!(k, b.rows, "inner sizes of a product");
    assert!(
        epilogue.bias.is_none_or(|bias| bias.len() == n),
        "bias of a product"
    );
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        for i in 0..m {
            // SAFETY: a row of the result, which may not have been written before
            let row = unsafe {
                out.at(i * stride).write_bytes(0, n);
                out.slice(i * stride, n)
            };
            finish(row, epilogue.bias, epilogue.act);
        }
        return;
    }
    // pairs of bf16 where both factors are bf16
    let tiles = Tiles::choose(level, A::FORM == Form::Bf16 && B::FORM == Form::Bf16);
    let threads = if parallel { rayon::current_num_threads() } else { 1 };
    #[cfg(target_arch = "x86_64")]
    if tiles.group > 1
        && let (Some(a), Some(b)) = (A::as_bf16(a), B::as_bf16(b))
        && direct::applies(b)
    {
        // SAFETY: only AMX has tiles with groups; no side is empty; the rest is the caller's
        return unsafe { direct::product(a, 1, &b, out, stride, epilogue, threads) };
    }
    with_buffer(Buffer::Left, m * tiles.steps(k), |left| {
        pack_left(a, &tiles, left, parallel);
        let left = &*left;
        // two tasks for every thread: narrow ones if need be, and with few columns rows are split as well, at the
        // price of packing the right factor again
        let least = if threads > 1 { 2 * threads } else { 1 };
        let panels = (n.div_ceil(tiles.columns()) / least).clamp(1, tiles.panels);
        let width = panels * tiles.columns();
        let columns = n.div_ceil(width);
        let row_tasks = least.div_ceil(columns).min(m.div_ceil(8 * tiles.rows));
        let rows_each = m.div_ceil(row_tasks).next_multiple_of(tiles.rows);
        let task = |t: usize| {
            let (first, row) = ((t % columns) * width, (t / columns) * rows_each);
            let block = Block {
                rows: [row, rows_each.min(m.saturating_sub(row))],
                columns: [first, width.min(n - first)],
            };
            // SAFETY: tasks differ in rows or columns and stay inside the result
            unsafe { block.run(left, m, b, out, stride, epilogue, &tiles) };
        };
        each(columns * row_tasks, threads, task);
    });
}

/// Runs tasks `0..tasks`, on this thread alone if it is the only one.
fn each(tasks: usize, threads: usize, task: impl Fn(usize) + Send + Sync) {
    if threads > 1 && tasks > 1 {
        (0..tasks).into_par_iter().with_max_len(1).for_each(task);
    } else {
        (0..tasks).for_each(task);
    }
}

/// Panels of the left factor that are packed together.
const LEFT: usize = 4;

/// Packs all of the left factor: blocks along the contraction, in them panels of rows.
fn pack_left<A: Element>(a: Mat<'_, A>, tiles: &Tiles, left: &mut [u32], parallel: bool) {
    let (m, k) = (a.rows, a.columns);
    let transposed = a.transposed();
    let block = tiles.depth * tiles.per_step();
    let mut rest = left;
    for from in (0..k).step_by(block) {
        let depth = block.min(k - from);
        let steps = tiles.steps(depth);
        let (block, tail) = rest.split_at_mut(m * steps);
        rest = tail;
        let rows_each = LEFT * tiles.rows;
        let group = |(i, out): (usize, &mut [u32])| {
            let (first, rows) = (i * rows_each, rows_each.min(m - i * rows_each));
            let depth = [from, depth];
            if tiles.group > 1 {
                pack_rows(a, depth, [first, rows], [tiles.rows, tiles.group], out);
            } else {
                pack_panels(
                    transposed,
                    depth,
                    [first, rows],
                    [tiles.rows, 1],
                    tiles.pairs,
                    out,
                );
            }
        };
        if parallel && m * depth > 1 << 16 {
            block
                .par_chunks_mut(rows_each * steps)
                .enumerate()
                .for_each(group);
        } else {
            block.chunks_mut(rows_each * steps).enumerate().for_each(group);
        }
    }
}

/// One task: a rectangle of the result.
struct Block {
    /// First and number.
    rows: [usize; 2],
    /// First and number.
    columns: [usize; 2],
}

impl Block {
    /// # Safety
    /// The rectangle lies inside `out` and nobody else touches it.
    unsafe fn run<T: Element>(
        &self,
        left: &[u32],
        m: usize,
        b: Mat<'_, T>,
        out: Out,
        stride: usize,
        epilogue: Epilogue<'_>,
        tiles: &Tiles,
    ) {
        let ([row, rows], [first, columns]) = (self.rows, self.columns);
        if rows == 0 {
            return;
        }
        let panel = tiles.columns();
        let (k, mut offset) = (b.rows, 0);
        let block = tiles.depth * tiles.per_step();
        let size = columns.next_multiple_of(tiles.lanes) * tiles.steps(block.min(k));
        let mut code = (tiles.code)();
        with_buffer(Buffer::Right, size, |right| {
            for from in (0..k).step_by(block) {
                let depth = block.min(k - from);
                let steps = tiles.steps(depth);
                let packed = &mut right[..columns.next_multiple_of(tiles.lanes) * steps];
                let panels = [panel, tiles.lanes];
                pack_panels(b, [from, depth], [first, columns], panels, tiles.pairs, packed);
                let last_block = from + depth == k;
                for i in (row..row + rows).step_by(tiles.rows) {
                    let height = tiles.rows.min(row + rows - i);
                    let a = &left[offset + i * steps..offset + (i + height) * steps];
                    for j in (0..columns).step_by(panel) {
                        let here = panel.min(columns - j);
                        let vectors = here.div_ceil(tiles.lanes);
                        let b = &right[j * steps..(j + vectors * tiles.lanes) * steps];
                        let args = Args {
                            steps,
                            a: a.as_ptr(),
                            b: b.as_ptr(),
                            // SAFETY: inside the rectangle
                            c: unsafe { out.at(i * stride + first + j) },
                            stride,
                            last: here - (vectors - 1) * tiles.lanes,
                            accumulate: from > 0,
                        };
                        // SAFETY: panels were packed for these sizes, the rectangle is ours
                        unsafe { code.run(height, vectors, args) };
                    }
                    if last_block {
                        // SAFETY: rows of the rectangle
                        unsafe { finish_rows([i, height], [first, columns], out, stride, epilogue) };
                    }
                }
                offset += m * steps;
            }
        });
    }
}

/// Bias and activation of a rectangle of the result: first and number of its rows and columns.
///
/// # Safety
/// The rectangle is written, lies inside `out`, and nobody else touches it.
unsafe fn finish_rows(
    [row, rows]: [usize; 2],
    [first, columns]: [usize; 2],
    out: Out,
    stride: usize,
    epilogue: Epilogue<'_>,
) {
    if epilogue.bias.is_none() && epilogue.act == Act::Identity {
        return;
    }
    let bias = epilogue.bias.map(|bias| &bias[first..first + columns]);
    for r in row..row + rows {
        // SAFETY: a row of the rectangle
        let row = unsafe { out.slice(r * stride + first, columns) };
        finish(row, bias, epilogue.act);
    }
}

/// Bias and activation of a piece of a row.
pub(crate) fn finish(row: &mut [f32], bias: Option<&[f32]>, act: Act) {
    if let Some(bias) = bias {
        add(row, bias);
    }
    if act != Act::Identity {
        act::apply(act, row);
    }
}

per_level! {
    /// `x += y`
    pub(crate) fn add(x: &mut [f32], y: &[f32]) = add_body;
}

#[inline(always)]
fn add_body<const FMA: bool>(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Which scratch memory.
#[derive(Clone, Copy)]
enum Buffer {
    Left,
    Right,
}

/// Words per cache line.
const LINE: usize = 16;

/// Scratch memory that this thread keeps: fresh pages cost more than the packing.
fn with_buffer(which: Buffer, size: usize, f: impl FnOnce(&mut [u32])) {
    thread_local! {
        static BUFFERS: [RefCell<Vec<u32>>; 2] = const { [RefCell::new(Vec::new()), RefCell::new(Vec::new())] };
    }
    // taken, not borrowed: a thread that waits for others may be given another product meanwhile
    let mut buffer = BUFFERS.with(|b| std::mem::take(&mut *b[which as usize].borrow_mut()));
    if buffer.len() < size + LINE {
        buffer.resize(size + LINE, 0);
    }
    // a load of tile rows or wide vectors that straddle cache lines takes twice as long
    let start = buffer.as_ptr().align_offset(4 * LINE).min(LINE);
    f(&mut buffer[start..start + size]);
    BUFFERS.with(|b| *b[which as usize].borrow_mut() = buffer);
}

#[cfg(test)]
mod tests;
