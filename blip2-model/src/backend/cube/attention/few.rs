//! A query at a time: scores, softmax and the weighted sum of one query of one head in one cube.

use burn::tensor::Shape;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::super::launch::{empty, rows_grid};
use super::Inputs;

/// Queries per sequence up to which a cube per query beats two matrix products.
pub(super) const MOST_QUERIES: usize = 4;
/// Keys whose scores fit a cube's shared memory on every device.
pub(super) const MOST_KEYS: usize = 2048;
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
    let mut largest = f32::new(f32::MIN);
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

/// Vectors of `size` numbers, planes of `lanes` units.
pub(super) fn launch<R: CubeRuntime>(x: Inputs<R>, lanes: usize, size: usize) -> CubeTensor<R> {
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
