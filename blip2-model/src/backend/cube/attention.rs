//! Attention without a matrix of scores in memory. A query at a time where there are few, as in decoding, else tile by
//! tile. Both read keys and values where they lie, in a cache or in the output of a projection.

use burn::tensor::Shape;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::launch::{contiguous, empty, has_planes, rows_grid, vector_size};

/// Queries per sequence up to which a cube per query beats two matrix products.
const FEW_QUERIES: usize = 4;
/// Keys whose scores fit a cube's shared memory on every device.
const MOST_KEYS: usize = 2048;
/// Planes of a cube.
const PLANES: usize = 4;

/// One cube is one query of one head; rows are ordered `[B, H, T]`, keys and values have any strides but the last.
#[cube(launch_unchecked)]
fn few_queries<F: Float, M: Float, N: Size>(
    q: &Tensor<Vector<F, N>>,
    k: &Tensor<Vector<F, N>>,
    v: &Tensor<Vector<F, N>>,
    mask: &Tensor<M>,
    out: &mut Tensor<Vector<F, N>>,
    scale: f32,
    rows: usize,
    keys: usize,
    heads: usize,
    queries: usize,
    #[comptime] vectors: usize,
    #[comptime] room: usize,
    #[comptime] lanes: usize,
    #[comptime] masked: bool,
    #[define(F, M)] _dtypes: [StorageType; 2],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let query = row % queries;
    let head = row / queries % heads;
    let batch = row / queries / heads;
    let lane = UNIT_POS_X as usize;
    let plane = UNIT_POS_Y as usize;
    let unit = UNIT_POS as usize;
    let size = q.vector_size();
    let units = comptime!(PLANES * lanes);

    let mut scores = SharedMemory::<f32>::new(room);
    let at_query = (batch * q.stride(0) + head * q.stride(1) + query * q.stride(2)) / size;
    let at_keys = (batch * k.stride(0) + head * k.stride(1)) / size;
    let step = k.stride(2) / size;
    let mut key = plane;
    while key < keys {
        let mut sum = Vector::<f32, N>::new(0.0);
        let mut i = lane;
        while i < vectors {
            let part = Vector::<f32, N>::cast_from(k[at_keys + key * step + i]);
            sum += part * Vector::<f32, N>::cast_from(q[at_query + i]);
            i += lanes;
        }
        let score = plane_sum(f32::cast_from(Vector::vector_sum(sum))) * scale;
        if lane == 0 {
            scores[key] = score;
        }
        key += PLANES;
    }
    sync_cube();

    let mut seen = 0usize;
    let mut between = 0usize;
    if comptime!(masked) {
        seen = batch * mask.stride(0) + head * mask.stride(1) + query * mask.stride(2);
        between = mask.stride(3);
    }
    let mut largest = f32::new(-3.4e38);
    let mut i = unit;
    while i < keys {
        if comptime!(masked) {
            let with = scores[i] + f32::cast_from(mask[seen + i * between]);
            scores[i] = with;
        }
        largest = max(largest, scores[i]);
        i += units;
    }
    let mut shared = SharedMemory::<f32>::new(PLANES);
    let largest = plane_max(largest);
    if lane == 0 {
        shared[plane] = largest;
    }
    sync_cube();
    let mut largest = shared[0];
    #[unroll]
    for i in 1..PLANES {
        largest = max(largest, shared[i]);
    }
    sync_cube();
    let mut sum = 0.0f32;
    let mut i = unit;
    while i < keys {
        let weight = f32::exp(scores[i] - largest);
        scores[i] = weight;
        sum += weight;
        i += units;
    }
    let sum = plane_sum(sum);
    if lane == 0 {
        shared[plane] = sum;
    }
    sync_cube();
    let mut sum = shared[0];
    #[unroll]
    for i in 1..PLANES {
        sum += shared[i];
    }
    let inverse = 1.0 / sum;

    let mut parts = SharedMemory::<Vector<f32, N>>::new(comptime!(PLANES * vectors));
    let at_values = (batch * v.stride(0) + head * v.stride(1)) / size;
    let step = v.stride(2) / size;
    let mut i = lane;
    while i < vectors {
        let mut sum = Vector::<f32, N>::new(0.0);
        let mut key = plane;
        while key < keys {
            let part = Vector::<f32, N>::cast_from(v[at_values + key * step + i]);
            sum += part * Vector::<f32, N>::new(scores[key]);
            key += PLANES;
        }
        parts[plane * vectors + i] = sum;
        i += lanes;
    }
    sync_cube();
    let mut i = unit;
    while i < vectors {
        let mut sum = parts[i];
        #[unroll]
        for plane in 1..PLANES {
            sum += parts[plane * vectors + i];
        }
        let to = ((batch * queries + query) * heads + head) * vectors + i;
        out[to] = Vector::cast_from(sum * Vector::<f32, N>::new(inverse));
        i += units;
    }
}

/// Units of a cube of [`tiles`]: 16 groups of queries by [`LANES`] columns.
const UNITS: usize = 128;
/// Units that share a group of queries.
const LANES: usize = 8;
/// Keys of a tile; each unit scores four of them.
const TILE_KEYS: usize = 32;
/// Keys that one unit scores.
const OWN_KEYS: usize = TILE_KEYS / LANES;

/// Scores, softmax and weighted sum tile by tile (Dao et al. 2022, "FlashAttention", algorithm 1; Milakov and Gimelshein
/// 2018 for the running softmax). One cube is a tile of queries of one head. A unit scores `rows` queries against four keys
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
        largest[r] = f32::new(-3.4e38);
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
            let mut most = f32::new(-3.4e38);
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

/// What [`attend`] works on: mask of the shape `[B, H, T, S]` with any strides, factors of that shape without gaps.
pub struct Inputs<R: CubeRuntime> {
    pub q: CubeTensor<R>,
    pub k: CubeTensor<R>,
    pub v: CubeTensor<R>,
    pub mask: Option<CubeTensor<R>>,
    pub factors: Option<CubeTensor<R>>,
    pub scale: f32,
}

/// `(softmax(scale * q k^T + mask) * factors) v` for `q [B, H, T, d]`, `k, v [B, H, S, d]` as `[B, T, H, d]`, if the
/// device and the width of the heads are what the kernels are made for.
pub fn attend<R: CubeRuntime>(x: Inputs<R>) -> Result<CubeTensor<R>, Inputs<R>> {
    let width = x.q.meta.shape()[3];
    let size = vector_size(&x.q, &[width]).min(4);
    if size < 4 || x.v.meta.shape()[3] != width {
        return Err(x);
    }
    let fits = |x: CubeTensor<R>| {
        let strides = x.meta.strides();
        let fits = strides[3] == 1 && strides[..3].iter().all(|stride| stride.is_multiple_of(size));
        if fits { x } else { contiguous(x) }
    };
    let x = Inputs {
        q: fits(x.q),
        k: fits(x.k),
        v: fits(x.v),
        ..x
    };
    match has_planes(&x.q) {
        Some(lanes)
            if x.q.meta.shape()[2] <= FEW_QUERIES
                && x.k.meta.shape()[2] <= MOST_KEYS
                && x.factors.is_none() =>
        {
            Ok(launch_few_queries(x, lanes, size))
        }
        _ => launch_tiles(x, size),
    }
}

fn launch_few_queries<R: CubeRuntime>(x: Inputs<R>, lanes: usize, size: usize) -> CubeTensor<R> {
    let [batch, heads, queries, width] = x.q.meta.shape().dims();
    let keys = x.k.meta.shape()[2];
    let rows = batch * heads * queries;
    let out = empty(&x.q, Shape::new([batch, queries, heads, width]), x.q.dtype);
    let masked = x.mask.is_some();
    let mask = x.mask.unwrap_or_else(|| x.q.clone());
    let dtypes = [x.q.dtype.into(), mask.dtype.into()];
    let client = x.q.client.clone();
    // a few sizes, so that a growing cache does not ask for a new kernel at every token
    let room = if keys <= 256 { 256 } else { MOST_KEYS };
    // SAFETY: keys fit the room; offsets follow from shapes and strides
    unsafe {
        few_queries::launch_unchecked::<R>(
            &client,
            rows_grid(rows),
            CubeDim::new_2d(lanes as u32, PLANES as u32),
            size,
            x.q.into_tensor_arg(),
            x.k.into_tensor_arg(),
            x.v.into_tensor_arg(),
            mask.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            x.scale,
            rows,
            keys,
            heads,
            queries,
            width / size,
            room,
            lanes,
            masked,
            dtypes,
        );
    }
    out
}

fn launch_tiles<R: CubeRuntime>(x: Inputs<R>, size: usize) -> Result<CubeTensor<R>, Inputs<R>> {
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
        return Err(x);
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
