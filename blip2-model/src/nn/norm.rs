//! Layer norm (with the epsilon of its part, never a library default) and T5's RMS norm.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Tensor, backend::Backend};

use super::Kernels;

/// `(x - mean) / sqrt(var + eps) * weight + bias` over the last axis, computed in f32.
#[derive(Module, Debug)]
pub struct LayerNorm<B: Backend> {
    /// `[D]`
    pub weight: Param<Tensor<B, 1>>,
    /// `[D]`
    pub bias: Param<Tensor<B, 1>>,
    /// Added to the variance.
    pub eps: f64,
}

impl<B: Backend> LayerNorm<B> {
    /// Weight one, bias zero.
    pub fn new(width: usize, eps: f64, device: &B::Device) -> Self {
        Self {
            weight: Initializer::Ones.init([width], device),
            bias: Initializer::Zeros.init([width], device),
            eps,
        }
    }
}

impl<B: Kernels> LayerNorm<B> {
    /// `[.., D] -> [.., D]`, output in the dtype of the input.
    pub fn forward<const R: usize>(&self, x: Tensor<B, R>) -> Tensor<B, R> {
        B::layer_norm_f32(x, self.weight.val(), self.bias.val(), self.eps)
    }

    /// `norm(x + residual)`: the post-norm pattern of BERT, fused where the backend can.
    pub fn forward_residual<const R: usize>(&self, x: Tensor<B, R>, residual: Tensor<B, R>) -> Tensor<B, R> {
        self.forward(x + residual)
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight`, computed in f32 (`T5LayerNorm`, `LlamaRMSNorm`).
#[derive(Module, Debug)]
pub struct RmsNorm<B: Backend> {
    /// `[D]`
    pub weight: Param<Tensor<B, 1>>,
    /// Added to the mean square.
    pub eps: f64,
}

impl<B: Backend> RmsNorm<B> {
    /// Weight one.
    pub fn new(width: usize, eps: f64, device: &B::Device) -> Self {
        Self {
            weight: Initializer::Ones.init([width], device),
            eps,
        }
    }
}

impl<B: Kernels> RmsNorm<B> {
    /// `[.., D] -> [.., D]`, output in the dtype of the input.
    pub fn forward<const R: usize>(&self, x: Tensor<B, R>) -> Tensor<B, R> {
        B::rms_norm_f32(x, self.weight.val(), self.eps)
    }
}
