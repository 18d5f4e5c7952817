//! Head splitting around [`Kernels::attend`](super::Kernels::attend), the one attention of the project.
//!
//! Paths: naive (plain tensor operations, any backend, differentiable), fused (a backend's override)
//! and cached (keys and values come from a [`KvCache`](super::KvCache)).

use burn::tensor::Tensor;

use super::Kernels;

/// `[B, T, H * d] -> [B, T, H, d]`
pub fn in_heads<B: Kernels>(x: Tensor<B, 3>, heads: usize) -> Tensor<B, 4> {
    let [batch, len, width] = x.dims();
    x.reshape([batch, len, heads, width / heads])
}

/// `[B, T, H * d] -> [B, H, T, d]`
pub fn split_heads<B: Kernels>(x: Tensor<B, 3>, heads: usize) -> Tensor<B, 4> {
    // for the gradient, which may arrive with its axes exchanged
    B::contiguous(in_heads(x, heads)).swap_dims(1, 2)
}

/// `[B, H, T, d] -> [B, T, H * d]`
pub fn merge_heads<B: Kernels>(x: Tensor<B, 4>) -> Tensor<B, 3> {
    let [batch, heads, len, width] = x.dims();
    B::contiguous(x.swap_dims(1, 2)).reshape([batch, len, heads * width])
}
