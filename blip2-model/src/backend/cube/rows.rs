//! Norms and softmax over the last axis: one cube of units per row, sums in f32, one pass from and to memory.

use burn::tensor::Shape;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::launch::{as_rows, contiguous, empty, rows_grid, units_for, vector_size};

/// Sum or maximum of one value per unit, known to all of them afterwards.
#[cube]
fn over_cube(value: f32, #[comptime] units: usize, #[comptime] maximum: bool) -> f32 {
    let mut shared = SharedMemory::<f32>::new(units);
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for step in 1..comptime!(units.ilog2() + 1) {
        let half = comptime!(units >> step);
        if unit < half {
            let mine = shared[unit];
            let other = shared[unit + half];
            if comptime!(maximum) {
                shared[unit] = max(mine, other);
            } else {
                shared[unit] = mine + other;
            }
        }
        sync_cube();
    }
    let result = shared[0];
    sync_cube();
    result
}

/// Layer norm (`centre`) or RMS norm of rows of `vectors` vectors that are `step` vectors apart; the latter does not look at `bias`.
#[cube(launch_unchecked)]
fn norm_rows<F: Float, W: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<W, N>>,
    bias: &Tensor<Vector<W, N>>,
    out: &mut Tensor<Vector<F, N>>,
    eps: f32,
    rows: usize,
    step: usize,
    vectors: usize,
    #[comptime] units: usize,
    #[comptime] centre: bool,
    #[define(F, W)] _dtypes: [StorageType; 2],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let start = row * step;
    let to = row * vectors;
    let unit = UNIT_POS as usize;
    let width = f32::cast_from(vectors * x.vector_size());
    let mut mean = 0.0f32;
    if comptime!(centre) {
        let mut sum = Vector::<f32, N>::new(0.0);
        let mut i = unit;
        while i < vectors {
            sum += Vector::<f32, N>::cast_from(x[start + i]);
            i += units;
        }
        mean = over_cube(f32::cast_from(Vector::vector_sum(sum)), units, false) / width;
    }
    let shift = Vector::<f32, N>::new(mean);
    let mut squares = Vector::<f32, N>::new(0.0);
    let mut i = unit;
    while i < vectors {
        let value = Vector::<f32, N>::cast_from(x[start + i]) - shift;
        squares += value * value;
        i += units;
    }
    let variance = over_cube(f32::cast_from(Vector::vector_sum(squares)), units, false) / width;
    let factor = Vector::<f32, N>::new(1.0 / f32::sqrt(variance + eps));
    let mut i = unit;
    while i < vectors {
        let value = (Vector::<f32, N>::cast_from(x[start + i]) - shift) * factor;
        let value = value * Vector::<f32, N>::cast_from(weight[i]);
        if comptime!(centre) {
            out[to + i] = Vector::cast_from(value + Vector::<f32, N>::cast_from(bias[i]));
        } else {
            out[to + i] = Vector::cast_from(value);
        }
        i += units;
    }
}

/// Layer norm, or RMS norm without a bias, over the last axis of `x`.
pub fn norm<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    bias: Option<CubeTensor<R>>,
    eps: f64,
) -> CubeTensor<R> {
    let (x, step) = as_rows(x);
    let shape: Shape = x.meta.shape().clone();
    let width = shape[shape.num_dims() - 1];
    let rows = shape.num_elements() / width;
    let size = vector_size(&x, &[width, step]).min(vector_size(&weight, &[width]));
    let units = units_for(width / size);
    let out = empty(&x, shape, x.dtype);
    let centre = bias.is_some();
    let weight = contiguous(weight);
    let bias = bias.map_or_else(|| weight.clone(), contiguous);
    let dtypes = [x.dtype.into(), weight.dtype.into()];
    let client = x.client.clone();
    // SAFETY: every index is below rows * vectors, or below vectors in weight and bias
    unsafe {
        norm_rows::launch_unchecked::<R>(
            &client,
            rows_grid(rows),
            CubeDim::new_1d(units as u32),
            size,
            x.into_tensor_arg(),
            weight.into_tensor_arg(),
            bias.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            eps as f32,
            rows,
            step / size,
            width / size,
            units,
            centre,
            dtypes,
        );
    }
    out
}

/// `scale * scores[at] + mask[seen]`.
#[cube]
fn score<F: Float, M: Float>(
    scores: &Tensor<F>,
    at: usize,
    scale: f32,
    mask: &Tensor<M>,
    seen: usize,
    #[comptime] masked: bool,
) -> f32 {
    let mut value = f32::cast_from(scores[at]) * scale;
    if comptime!(masked) {
        value += f32::cast_from(mask[seen]);
    }
    value
}

/// `softmax(scale * scores + mask) * factors` of rows of `keys` numbers, ordered `[B, H, T]` and `step`
/// numbers apart.
#[cube(launch_unchecked)]
fn softmax_rows<F: Float, M: Float, D: Float>(
    scores: &Tensor<F>,
    mask: &Tensor<M>,
    factors: &Tensor<D>,
    out: &mut Tensor<F>,
    scale: f32,
    rows: usize,
    step: usize,
    keys: usize,
    heads: usize,
    queries: usize,
    #[comptime] units: usize,
    #[comptime] masked: bool,
    #[comptime] dropped: bool,
    #[define(F, M, D)] _dtypes: [StorageType; 3],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let start = row * step;
    let to = row * keys;
    let unit = UNIT_POS as usize;
    let mut seen = 0usize;
    let mut between = 0usize;
    if comptime!(masked) {
        let query = row % queries;
        let head = row / queries % heads;
        let batch = row / queries / heads;
        seen = batch * mask.stride(0) + head * mask.stride(1) + query * mask.stride(2);
        between = mask.stride(3);
    }
    let mut largest = f32::new(f32::MIN);
    let mut i = unit;
    while i < keys {
        largest = max(
            largest,
            score(scores, start + i, scale, mask, seen + i * between, masked),
        );
        i += units;
    }
    let largest = over_cube(largest, units, true);
    let mut sum = 0.0f32;
    let mut i = unit;
    while i < keys {
        sum += f32::exp(score(scores, start + i, scale, mask, seen + i * between, masked) - largest);
        i += units;
    }
    let inverse = 1.0 / over_cube(sum, units, false);
    let mut i = unit;
    while i < keys {
        let value = score(scores, start + i, scale, mask, seen + i * between, masked);
        let mut value = f32::exp(value - largest) * inverse;
        if comptime!(dropped) {
            value *= f32::cast_from(factors[to + i]);
        }
        out[to + i] = F::cast_from(value);
        i += units;
    }
}

/// `softmax(scale * scores + mask) * factors` for `scores [B, H, T, S]`; mask and factors broadcast to that shape.
pub fn softmax<R: CubeRuntime>(
    scores: CubeTensor<R>,
    scale: f64,
    mask: Option<CubeTensor<R>>,
    factors: Option<CubeTensor<R>>,
) -> CubeTensor<R> {
    let (scores, step) = as_rows(scores);
    let shape: Shape = scores.meta.shape().clone();
    let [_, heads, queries, keys] = [shape[0], shape[1], shape[2], shape[3]];
    let rows = shape.num_elements() / keys;
    let units = units_for(keys);
    let out = empty(&scores, shape, scores.dtype);
    let (masked, dropped) = (mask.is_some(), factors.is_some());
    let mask = mask.unwrap_or_else(|| scores.clone());
    let factors = factors.map_or_else(|| scores.clone(), contiguous);
    let dtypes = [scores.dtype.into(), mask.dtype.into(), factors.dtype.into()];
    let client = scores.client.clone();
    // SAFETY: every index is below rows * keys; the mask's strides are those of a tensor broadcast to this shape
    unsafe {
        softmax_rows::launch_unchecked::<R>(
            &client,
            rows_grid(rows),
            CubeDim::new_1d(units as u32),
            scores.into_tensor_arg(),
            mask.into_tensor_arg(),
            factors.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            scale as f32,
            rows,
            step,
            keys,
            heads,
            queries,
            units,
            masked,
            dropped,
            dtypes,
        );
    }
    out
}
