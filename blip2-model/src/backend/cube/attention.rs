//! Attention without a matrix of scores in memory. A query at a time where there are few, as in decoding, else tile by
//! tile. Both read keys and values where they lie, in a cache or in the output of a projection.

mod few;
mod tiles;

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};

use super::launch::{contiguous, has_planes, vector_size};

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
pub fn attend<R: CubeRuntime>(x: Inputs<R>) -> Result<CubeTensor<R>, Box<Inputs<R>>> {
    let width = x.q.meta.shape()[3];
    let size = vector_size(&x.q, &[width]).min(4);
    let alike = [&x.k, &x.v].iter().all(|y| {
        let (ours, theirs) = (x.q.meta.shape(), y.meta.shape());
        y.dtype == x.q.dtype && ours[..2] == theirs[..2] && theirs[3] == width
    });
    if size < 4 || !alike {
        return Err(Box::new(x));
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
            if x.q.meta.shape()[2] <= few::MOST_QUERIES
                && x.k.meta.shape()[2] <= few::MOST_KEYS
                && x.factors.is_none() =>
        {
            Ok(few::launch(x, lanes, size))
        }
        _ => tiles::launch(x, size),
    }
}
