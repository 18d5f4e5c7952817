//! Scaled dot-product attention on strided heads: scores of a block of queries live in a scratch buffer, never
//! in memory as a whole, and nothing is transposed. The result lies as `[B, T, H, d]`, so that joining heads
//! afterwards is free.

use rayon::prelude::*;

use crate::gemm::{Mat, Out, matmul_into};
use crate::level::per_level;
use crate::math::{LANES, exp_nonpositive, lanes};
use crate::skinny::{self, Plain};

/// `[B, H, T, d]` in memory with strides; the last axis is contiguous.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    data: &'a [f32],
    dims: [usize; 4],
    strides: [usize; 3],
}

impl<'a> Heads<'a> {
    /// Sizes `[B, H, T, d]`, strides of the first three axes; `data` starts at the first element.
    ///
    /// # Panics
    /// If the slice does not reach the last element.
    pub fn new(data: &'a [f32], dims: [usize; 4], strides: [usize; 3]) -> Self {
        let reach = (0..3)
            .map(|i| dims[i].saturating_sub(1) * strides[i])
            .sum::<usize>()
            + dims[3];
        assert!(
            dims.contains(&0) || reach <= data.len(),
            "heads that leave their slice"
        );
        Self { data, dims, strides }
    }

    /// `[len, d]` of one head, from position `start`.
    fn rows(&self, batch: usize, head: usize, start: usize, len: usize) -> Mat<'a, f32> {
        let from = batch * self.strides[0] + head * self.strides[1] + start * self.strides[2];
        Mat::strided(&self.data[from..], [len, self.dims[3]], [self.strides[2], 1])
    }
}

/// Additive f32 mask `[B, H, T, S]`; a stride of zero repeats an axis, the last axis is contiguous.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    data: &'a [f32],
    strides: [usize; 3],
    keys: usize,
}

impl<'a> Mask<'a> {
    /// Strides of the first three axes and the number of keys.
    pub fn new(data: &'a [f32], strides: [usize; 3], keys: usize) -> Self {
        Self { data, strides, keys }
    }

    fn row(&self, batch: usize, head: usize, query: usize) -> &'a [f32] {
        let from = batch * self.strides[0] + head * self.strides[1] + query * self.strides[2];
        &self.data[from..from + self.keys]
    }
}

/// What the scores go through.
#[derive(Clone, Copy, Debug)]
pub struct Scores<'a> {
    /// Factor of the scores.
    pub scale: f32,
    /// Added afterwards.
    pub mask: Option<Mask<'a>>,
    /// Dropout: factors of the probabilities, `[B, H, T, S]` without gaps.
    pub factors: Option<&'a [f32]>,
}

/// Gradients of [`attend`], each as `[B, T, H, d]`.
#[derive(Debug)]
pub struct Grads {
    /// Of the queries.
    pub q: Vec<f32>,
    /// Of the keys.
    pub k: Vec<f32>,
    /// Of the values.
    pub v: Vec<f32>,
}

/// Queries per task, so that the scores of a task stay in cache.
const QUERIES: usize = 320;

/// Up to this many queries, keys are read as they lie instead of being packed.
const FEW: usize = 8;

struct Sizes {
    batch: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    width: usize,
}

impl Sizes {
    fn check(q: &Heads<'_>, k: &Heads<'_>, v: &Heads<'_>, scores: &Scores<'_>) -> Self {
        let [batch, heads, queries, width] = q.dims;
        let keys = k.dims[2];
        assert!(
            k.dims == [batch, heads, keys, width] && v.dims == k.dims,
            "queries {:?}, keys {:?} and values {:?} do not fit",
            q.dims,
            k.dims,
            v.dims
        );
        assert!(
            scores.mask.is_none_or(|mask| mask.keys == keys),
            "a mask for another number of keys"
        );
        assert!(
            scores
                .factors
                .is_none_or(|factors| factors.len() == batch * heads * queries * keys),
            "dropout factors of another shape"
        );
        Self {
            batch,
            heads,
            queries,
            keys,
            width,
        }
    }
}

/// `softmax(scale q k^T + mask) v` -> `[B, T, H, d]`.
///
/// # Panics
/// If sizes do not match.
pub fn attend(q: Heads<'_>, k: Heads<'_>, v: Heads<'_>, scores: Scores<'_>) -> Vec<f32> {
    let s = Sizes::check(&q, &k, &v, &scores);
    let mut out = vec![0f32; s.batch * s.queries * s.heads * s.width];
    if s.keys == 0 || out.is_empty() {
        return out;
    }
    let target = Out(out.as_mut_ptr());
    let blocks = s.queries.div_ceil(QUERIES);
    let each = s.queries.div_ceil(blocks);
    let stride = s.heads * s.width;
    let task = |buffer: &mut Vec<f32>, t: usize| {
        let (block, pair) = (t % blocks, t / blocks);
        let (batch, head) = (pair / s.heads, pair % s.heads);
        let start = block * each;
        let len = each.min(s.queries - start);
        buffer.resize(len * s.keys, 0.0);
        let rows = q.rows(batch, head, start, len);
        probabilities(&s, rows, &k, &scores, [batch, head, start], buffer);
        drop_out(&s, &scores, [batch, head, start], buffer);
        let values = v.rows(batch, head, 0, s.keys);
        let first = ((batch * s.queries + start) * s.heads + head) * s.width;
        if len <= FEW {
            for (i, weights) in buffer.chunks_exact(s.keys).enumerate() {
                // SAFETY: one row of this head, which is this task's
                let row = unsafe { target.slice(first + i * stride, s.width) };
                weighted_sum(weights, values.data, values.row_stride, row);
            }
        } else {
            let weights = Mat::new(buffer, len, s.keys);
            // SAFETY: rows of this head, which are this task's
            unsafe { matmul_into(weights, values, target.at(first), stride) };
        }
    };
    (0..s.batch * s.heads * blocks)
        .into_par_iter()
        .with_min_len(min_tasks(each, &s))
        .for_each_init(Vec::new, task);
    out
}

/// Tasks per thread hand-over: a decoding step has little to do per head.
fn min_tasks(queries: usize, s: &Sizes) -> usize {
    ((1 << 17) / (queries * s.keys * s.width).max(1)).clamp(1, 64)
}

/// Softmax of the scores of some queries of one head, `[queries, keys]`.
fn probabilities(
    s: &Sizes,
    q: Mat<'_, f32>,
    k: &Heads<'_>,
    scores: &Scores<'_>,
    [batch, head, start]: [usize; 3],
    out: &mut [f32],
) {
    let keys = k.rows(batch, head, 0, s.keys);
    if q.rows <= FEW {
        let mut rows = [0f32; FEW * 256];
        let dense: &[f32] = if q.rows == 1 {
            &q.data[..s.width]
        } else if q.rows * s.width <= rows.len() {
            for (i, row) in rows.chunks_exact_mut(s.width).enumerate().take(q.rows) {
                row.copy_from_slice(&q.data[i * q.row_stride..][..s.width]);
            }
            &rows
        } else {
            &[]
        };
        if !dense.is_empty() && keys.row_stride >= s.width {
            let keys = Plain::new(keys.data, [s.keys, s.width], keys.row_stride);
            // SAFETY: `out` holds `queries * keys` values
            unsafe { skinny::block(dense, q.rows, &keys, [0, s.keys], Out(out.as_mut_ptr()), s.keys) };
            return softmax(scores, [batch, head, start], out, s.keys);
        }
    }
    // SAFETY: as above
    unsafe { matmul_into(q, keys.transposed(), out.as_mut_ptr(), s.keys) };
    softmax(scores, [batch, head, start], out, s.keys);
}

fn softmax(scores: &Scores<'_>, [batch, head, start]: [usize; 3], out: &mut [f32], keys: usize) {
    for (i, row) in out.chunks_exact_mut(keys).enumerate() {
        let mask = scores.mask.map(|mask| mask.row(batch, head, start + i));
        softmax_row(row, mask, scores.scale);
    }
}

fn factors_of<'a>(s: &Sizes, factors: &'a [f32], [batch, head, start]: [usize; 3], len: usize) -> &'a [f32] {
    let first = ((batch * s.heads + head) * s.queries + start) * s.keys;
    &factors[first..first + len]
}

fn drop_out(s: &Sizes, scores: &Scores<'_>, at: [usize; 3], p: &mut [f32]) {
    if let Some(factors) = scores.factors {
        multiply(p, factors_of(s, factors, at, p.len()));
    }
}

/// Gradients from that of the result, `grad [B, H, T, d]`; probabilities are computed again.
///
/// # Panics
/// If sizes do not match.
pub fn attend_backward(
    q: Heads<'_>,
    k: Heads<'_>,
    v: Heads<'_>,
    scores: Scores<'_>,
    grad: Heads<'_>,
) -> Grads {
    let s = Sizes::check(&q, &k, &v, &scores);
    assert_eq!(grad.dims, q.dims, "gradient of an attention");
    let zeros = |len: usize| vec![0f32; s.batch * len * s.heads * s.width];
    let mut grads = Grads {
        q: zeros(s.queries),
        k: zeros(s.keys),
        v: zeros(s.keys),
    };
    if s.keys == 0 || grads.q.is_empty() {
        return grads;
    }
    let [dq, dk, dv] = [&mut grads.q, &mut grads.k, &mut grads.v].map(|g| Out(g.as_mut_ptr()));
    let stride = s.heads * s.width;
    let task = |buffers: &mut [Vec<f32>; 2], t: usize| {
        let [p, dp] = buffers;
        let (batch, head) = (t / s.heads, t % s.heads);
        let at = [batch, head, 0];
        let first = |len: usize| (batch * len * s.heads + head) * s.width;
        p.resize(s.queries * s.keys, 0.0);
        dp.resize(s.queries * s.keys, 0.0);
        let (queries, keys) = (q.rows(batch, head, 0, s.queries), k.rows(batch, head, 0, s.keys));
        let (values, grad) = (
            v.rows(batch, head, 0, s.keys),
            grad.rows(batch, head, 0, s.queries),
        );
        probabilities(&s, queries, &k, &scores, at, p);
        // SAFETY: `dp` holds `queries * keys` values
        unsafe { matmul_into(grad, values.transposed(), dp.as_mut_ptr(), s.keys) };
        // the values saw the probabilities after dropout, the softmax sees them before
        if let Some(factors) = scores.factors {
            let factors = factors_of(&s, factors, at, p.len());
            multiply(dp, factors);
            let mut dropped = p.clone();
            multiply(&mut dropped, factors);
            let dropped = Mat::new(&dropped, s.queries, s.keys);
            // SAFETY: the rows of this head, which is this task's
            unsafe { matmul_into(dropped.transposed(), grad, dv.at(first(s.keys)), stride) };
        } else {
            let p = Mat::new(p, s.queries, s.keys);
            // SAFETY: as above
            unsafe { matmul_into(p.transposed(), grad, dv.at(first(s.keys)), stride) };
        }
        for (p, dp) in p.chunks_exact(s.keys).zip(dp.chunks_exact_mut(s.keys)) {
            softmax_row_backward(p, dp, scores.scale);
        }
        let ds = Mat::new(dp, s.queries, s.keys);
        // SAFETY: as above
        unsafe {
            matmul_into(ds, keys, dq.at(first(s.queries)), stride);
            matmul_into(ds.transposed(), queries, dk.at(first(s.keys)), stride);
        }
    };
    (0..s.batch * s.heads)
        .into_par_iter()
        .with_max_len(1)
        .for_each_init(Default::default, task);
    grads
}

per_level! {
    fn softmax_row(row: &mut [f32], mask: Option<&[f32]>, scale: f32) = softmax_body;
}
per_level! {
    fn softmax_row_backward(p: &[f32], grad: &mut [f32], scale: f32) = softmax_backward_body;
}
per_level! {
    fn weighted_sum(weights: &[f32], values: &[f32], stride: usize, out: &mut [f32]) = weighted_sum_body;
}
per_level! {
    fn multiply(x: &mut [f32], y: &[f32]) = multiply_body;
}

#[inline(always)]
fn softmax_body<const FMA: bool>(row: &mut [f32], mask: Option<&[f32]>, scale: f32) {
    match mask {
        Some(mask) => {
            for (x, &m) in row.iter_mut().zip(mask) {
                *x = *x * scale + m;
            }
        }
        None => {
            for x in row.iter_mut() {
                *x *= scale;
            }
        }
    }
    let largest = lanes(row, f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    for x in row.iter_mut() {
        *x = exp_nonpositive::<FMA>(*x - largest);
    }
    let inverse = 1.0 / lanes(row, 0.0, |a, b| a + b);
    for x in row.iter_mut() {
        *x *= inverse;
    }
}

#[inline(always)]
fn softmax_backward_body<const FMA: bool>(p: &[f32], grad: &mut [f32], scale: f32) {
    let mut sums = [0f32; LANES];
    let (ps, gs) = (p.chunks_exact(LANES), grad.chunks_exact(LANES));
    let mut sum: f32 = ps
        .remainder()
        .iter()
        .zip(gs.remainder())
        .map(|(p, g)| p * g)
        .sum();
    for (p, g) in ps.zip(gs) {
        for i in 0..LANES {
            sums[i] += p[i] * g[i];
        }
    }
    sum += sums.iter().sum::<f32>();
    for (g, &p) in grad.iter_mut().zip(p) {
        *g = p * (*g - sum) * scale;
    }
}

#[inline(always)]
fn weighted_sum_body<const FMA: bool>(weights: &[f32], values: &[f32], stride: usize, out: &mut [f32]) {
    let width = out.len();
    out.fill(0.0);
    for (s, &weight) in weights.iter().enumerate() {
        for (out, &value) in out.iter_mut().zip(&values[s * stride..s * stride + width]) {
            *out = crate::math::fma::<FMA>(weight, value, *out);
        }
    }
}

#[inline(always)]
fn multiply_body<const FMA: bool>(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x *= y);
}

#[cfg(test)]
mod tests;
