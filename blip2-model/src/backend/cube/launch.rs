//! What every kernel launch needs: shapes as rows, vector sizes, grids.

use std::sync::LazyLock;

use burn::tensor::{DType, Shape};
use burn_cubecl::{CubeRuntime, kernel, tensor::CubeTensor};
use cubecl::prelude::*;

/// A grid that has one cube per row, in two dimensions, since some devices allow 65,535 cubes in one.
pub fn rows_grid(rows: usize) -> CubeCount {
    const MOST: usize = 65_535;
    let y = rows.div_ceil(MOST);
    CubeCount::Static(rows.div_ceil(y) as u32, y as u32, 1)
}

/// Units of a cube that walks over `steps` positions of a row: a power of two from 32 to 256.
pub fn units_for(steps: usize) -> usize {
    steps.next_power_of_two().clamp(32, 256)
}

/// Row-major without gaps; a copy only if it is not.
pub fn contiguous<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    kernel::into_contiguous(x)
}

/// `x` as rows of its last axis that follow each other at one distance, and that distance: burn pads rows to what the
/// device likes. A copy only if there is no such distance.
pub fn as_rows<R: CubeRuntime>(x: CubeTensor<R>) -> (CubeTensor<R>, usize) {
    let (shape, strides) = (x.meta.shape(), x.meta.strides());
    let last = shape.num_dims() - 1;
    if last == 0 {
        let width = shape[0];
        return (contiguous(x), width);
    }
    let regular = (1..last).all(|i| strides[i - 1] == strides[i] * shape[i]);
    if regular && strides[last] == 1 {
        let step = strides[last - 1];
        return (x, step);
    }
    let width = shape[last];
    (contiguous(x), width)
}

/// Uninitialised, row-major.
pub fn empty<R: CubeRuntime>(like: &CubeTensor<R>, shape: Shape, dtype: DType) -> CubeTensor<R> {
    let bytes = shape.num_elements() * dtype.size();
    let handle = like.client.empty(bytes);
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, handle, dtype)
}

/// Numbers that one load takes: what divides all of `widths` and distances between rows, at most 16 bytes.
pub fn vector_size<R: CubeRuntime>(x: &CubeTensor<R>, widths: &[usize]) -> usize {
    let sizes = x.client.io_optimized_vector_sizes(x.dtype.size());
    let fits = |size: &usize| widths.iter().all(|width| width.is_multiple_of(*size));
    sizes.filter(fits).max().unwrap_or(1)
}

/// Whether the environment sets `name` to 1.
pub fn switched_on(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| value == "1")
}

/// Takes the planes of software drivers, which have them and are not believed, so that tests can run there what GPUs run.
static CLAIMED: LazyLock<bool> = LazyLock::new(|| switched_on("BLIP2_PLANES"));

/// Whether planes of this device have one size and sums over them, which the kernels with a plane per result need.
pub fn has_planes<R: CubeRuntime>(x: &CubeTensor<R>) -> Option<usize> {
    let properties = x.client.properties();
    let (least, most) = (
        properties.hardware.plane_size_min,
        properties.hardware.plane_size_max,
    );
    let sums = properties
        .features
        .plane
        .contains(cubecl::ir::features::Plane::Ops);
    ((sums || *CLAIMED) && least == most && most >= 4).then_some(most as usize)
}
