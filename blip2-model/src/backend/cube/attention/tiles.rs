//! Scores, softmax and weighted sum tile by tile (Dao et al. 2022, "FlashAttention", algorithm 1; Milakov and Gimelshein
//! 2018 for the running softmax), in f32 and without matrix units.

// a condition of the compiler's stands alone, or the device would evaluate it
#![allow(clippy::collapsible_if)]

use burn::tensor::Shape;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::super::launch::{contiguous, empty, rows_grid};
use super::Inputs;

/// Units of a cube of [`tiles`]: 16 groups of queries by [`LANES`] columns.
const UNITS: usize = 128;
/// Units that share a group of queries.
const LANES: usize = 8;
/// Keys of a tile; each unit scores four of them.
const TILE_KEYS: usize = 32;
/// Keys that one unit scores.
const OWN_KEYS: usize = TILE_KEYS / LANES;

/// One cube is a tile of queries of one head. A unit scores `rows` queries against four keys
/// of a tile and sums `rows` queries by every eighth vector of the values, in f32 registers.
#[cube(launch_unchecked)]
fn tiles<F: Float, M: Float, D: Float, N: Size>(
    q: &Tensor<Vector<F, N>>,
    k: &Tensor<Vector<F, N>>,
    v: &Tensor<Vector<F, N>>,
    mask: &Tensor<M>,
    factors: &Tensor<D>,
    out: &mut Tensor<Vector<F, N>>,
    scale: f32,
    cubes: usize,
    blocks: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    #[comptime] vectors: usize,
    #[comptime] rows: usize,
    #[comptime] masked: bool,
    #[comptime] dropped: bool,
    #[define(F, M, D)] _dtypes: [StorageType; 3],
) {
    let cube = CUBE_POS;
    if cube >= cubes {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let column = unit % LANES;
    let own = unit / LANES * rows;
    let tile = comptime!(UNITS / LANES * rows);
    let first = cube % blocks * tile;
    let head = cube / blocks % heads;
    let batch = cube / blocks / heads;
    let size = q.vector_size();
    // one vector of padding puts the rows that eight neighbours read into different banks
    let stride = comptime!(vectors + 1);
    let sums = comptime!(vectors.div_ceil(LANES));

    let mut q_tile = SharedMemory::<Vector<f32, N>>::new(comptime!(tile * stride));
    // the last row's neighbours are read, and not used, by units that have no vector of their own
    let mut kv_tile = SharedMemory::<Vector<f32, N>>::new(comptime!(TILE_KEYS * stride + LANES));
    let mut weights = SharedMemory::<f32>::new(comptime!(tile * (TILE_KEYS + 1)));
    let mut shared = SharedMemory::<f32>::new(comptime!(tile * (LANES + 1)));

    let at = (batch * q.stride(0) + head * q.stride(1)) / size;
    let step = q.stride(2) / size;
    let mut i = unit;
    while i < comptime!(tile * vectors) {
        let row = i / vectors;
        let mut value = Vector::<f32, N>::new(0.0);
        if first + row < queries {
            value = Vector::cast_from(q[at + (first + row) * step + i % vectors]);
        }
        q_tile[row * stride + i % vectors] = value * Vector::<f32, N>::new(scale);
        i += UNITS;
    }

    let at_keys = (batch * k.stride(0) + head * k.stride(1)) / size;
    let step_keys = k.stride(2) / size;
    let at_values = (batch * v.stride(0) + head * v.stride(1)) / size;
    let step_values = v.stride(2) / size;
    let mut seen = 0usize;
    if comptime!(masked) {
        seen = batch * mask.stride(0) + head * mask.stride(1);
    }
    let kept_at = (batch * heads + head) * queries;

    let mut result = Array::<Vector<f32, N>>::new(comptime!(rows * sums));
    let mut largest = Array::<f32>::new(rows);
    let mut total = Array::<f32>::new(rows);
    #[unroll]
    for r in 0..rows {
        largest[r] = f32::new(f32::MIN);
        total[r] = 0.0f32;
        #[unroll]
        for o in 0..sums {
            result[r * sums + o] = Vector::<f32, N>::new(0.0);
        }
    }

    let mut start = 0usize;
    while start < keys {
        // the values of the tile before have been read
        sync_cube();
        let mut i = unit;
        while i < comptime!(TILE_KEYS * vectors) {
            let row = i / vectors;
            let mut value = Vector::<f32, N>::new(0.0);
            if start + row < keys {
                value = Vector::cast_from(k[at_keys + (start + row) * step_keys + i % vectors]);
            }
            kv_tile[row * stride + i % vectors] = value;
            i += UNITS;
        }
        sync_cube();

        let mut dots = Array::<Vector<f32, N>>::new(comptime!(rows * OWN_KEYS));
        #[unroll]
        for i in 0..comptime!(rows * OWN_KEYS) {
            dots[i] = Vector::<f32, N>::new(0.0);
        }
        for c in 0..vectors {
            let mut some = Array::<Vector<f32, N>>::new(OWN_KEYS);
            #[unroll]
            for j in 0..OWN_KEYS {
                some[j] = kv_tile[(column + j * LANES) * stride + c];
            }
            #[unroll]
            for r in 0..rows {
                let query = q_tile[(own + r) * stride + c];
                #[unroll]
                for j in 0..OWN_KEYS {
                    dots[r * OWN_KEYS + j] += query * some[j];
                }
            }
        }
        let mut scores = Array::<f32>::new(comptime!(rows * OWN_KEYS));
        #[unroll]
        for r in 0..rows {
            let mut most = f32::new(f32::MIN);
            #[unroll]
            for j in 0..OWN_KEYS {
                let key = start + column + j * LANES;
                let mut score = f32::cast_from(Vector::vector_sum(dots[r * OWN_KEYS + j]));
                if comptime!(masked) {
                    if key < keys && first + own + r < queries {
                        score += f32::cast_from(
                            mask[seen + (first + own + r) * mask.stride(2) + key * mask.stride(3)],
                        );
                    }
                }
                if key < keys {
                    most = max(most, score);
                }
                scores[r * OWN_KEYS + j] = score;
            }
            shared[(own + r) * (LANES + 1) + column] = most;
        }
        sync_cube();

        #[unroll]
        for r in 0..rows {
            let mut most = largest[r];
            #[unroll]
            for lane in 0..LANES {
                most = max(most, shared[(own + r) * (LANES + 1) + lane]);
            }
            let shrink = f32::exp(largest[r] - most);
            largest[r] = most;
            let mut sum = total[r] * shrink;
            #[unroll]
            for j in 0..OWN_KEYS {
                let key = start + column + j * LANES;
                let mut weight = 0.0f32;
                if key < keys {
                    weight = f32::exp(scores[r * OWN_KEYS + j] - most);
                    sum += weight;
                    if comptime!(dropped) {
                        if first + own + r < queries {
                            weight *= f32::cast_from(factors[(kept_at + first + own + r) * keys + key]);
                        }
                    }
                }
                weights[(own + r) * (TILE_KEYS + 1) + column + j * LANES] = weight;
            }
            total[r] = sum;
            #[unroll]
            for o in 0..sums {
                result[r * sums + o] *= Vector::<f32, N>::new(shrink);
            }
        }
        let mut i = unit;
        while i < comptime!(TILE_KEYS * vectors) {
            let row = i / vectors;
            let mut value = Vector::<f32, N>::new(0.0);
            if start + row < keys {
                value = Vector::cast_from(v[at_values + (start + row) * step_values + i % vectors]);
            }
            kv_tile[row * stride + i % vectors] = value;
            i += UNITS;
        }
        sync_cube();

        for key in 0..TILE_KEYS {
            #[unroll]
            for o in 0..sums {
                let value = kv_tile[key * stride + column + o * LANES];
                #[unroll]
                for r in 0..rows {
                    let weight = weights[(own + r) * (TILE_KEYS + 1) + key];
                    result[r * sums + o] += value * Vector::<f32, N>::new(weight);
                }
            }
        }
        start += TILE_KEYS;
    }

    #[unroll]
    for r in 0..rows {
        shared[(own + r) * (LANES + 1) + column] = total[r];
    }
    sync_cube();
    #[unroll]
    for r in 0..rows {
        let mut sum = 0.0f32;
        #[unroll]
        for lane in 0..LANES {
            sum += shared[(own + r) * (LANES + 1) + lane];
        }
        let inverse = Vector::<f32, N>::new(1.0 / sum);
        if first + own + r < queries {
            #[unroll]
            for o in 0..sums {
                let c = column + o * LANES;
                if c < vectors {
                    let to = ((batch * queries + first + own + r) * heads + head) * vectors + c;
                    out[to] = Vector::cast_from(result[r * sums + o] * inverse);
                }
            }
        }
    }
}

/// Bytes of shared memory that [`tiles`] takes.
fn tile_bytes(width: usize, rows: usize) -> usize {
    let tile = UNITS / LANES * rows;
    let stride = width + 4;
    4 * (tile * stride + TILE_KEYS * stride + 4 * LANES + tile * (TILE_KEYS + 1) + tile * (LANES + 1))
}

/// Vectors of `size` numbers; the inputs again if no tile fits the device's shared memory.
pub(super) fn launch<R: CubeRuntime>(x: Inputs<R>, size: usize) -> Result<CubeTensor<R>, Box<Inputs<R>>> {
    let [batch, heads, queries, width] = x.q.meta.shape().dims();
    let keys = x.k.meta.shape()[2];
    let hardware = &x.q.client.properties().hardware;
    let groups = UNITS / LANES;
    let cubes = |rows: usize| batch * heads * queries.div_ceil(groups * rows);
    // large tiles read keys and values less often, if there are enough of them to keep every processor busy
    let wanted = 2 * hardware.num_streaming_multiprocessors.unwrap_or(64) as usize;
    let fits = |rows: &usize| tile_bytes(width, *rows) <= hardware.max_shared_memory_size.min(48 << 10);
    let pays = |rows: &usize| *rows == 1 || cubes(*rows) >= wanted || (*rows == 2 && queries > groups);
    let Some(rows) = [4, 2, 1].into_iter().filter(fits).find(pays) else {
        return Err(Box::new(x));
    };
    let out = empty(&x.q, Shape::new([batch, queries, heads, width]), x.q.dtype);
    let (masked, dropped) = (x.mask.is_some(), x.factors.is_some());
    let mask = x.mask.unwrap_or_else(|| x.q.clone());
    let factors = x.factors.map_or_else(|| x.q.clone(), contiguous);
    let dtypes = [x.q.dtype.into(), mask.dtype.into(), factors.dtype.into()];
    let client = x.q.client.clone();
    // SAFETY: queries and keys are compared with their numbers; offsets follow from shapes and strides
    unsafe {
        tiles::launch_unchecked::<R>(
            &client,
            rows_grid(cubes(rows)),
            CubeDim::new_1d(UNITS as u32),
            size,
            x.q.into_tensor_arg(),
            x.k.into_tensor_arg(),
            x.v.into_tensor_arg(),
            mask.into_tensor_arg(),
            factors.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            x.scale,
            cubes(rows),
            queries.div_ceil(groups * rows),
            heads,
            queries,
            keys,
            width / size,
            rows,
            masked,
            dropped,
            dtypes,
        );
    }
    Ok(out)
}
