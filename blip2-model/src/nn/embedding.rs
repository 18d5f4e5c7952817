//! Table look-up (`torch.nn.Embedding`), and entries of a batch as rows of a table.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Int, Tensor, backend::Backend};

use super::kernels::as_dtype;
use super::linear::linear;
use super::{Activation, Kernels};

/// Rows of a `[V, D]` table.
#[derive(Module, Debug)]
pub struct Embedding<B: Backend> {
    /// `[V, D]`
    pub weight: Param<Tensor<B, 2>>,
}

impl<B: Backend> Embedding<B> {
    /// Rows drawn from `N(0, std)`, lazily.
    pub fn new(rows: usize, width: usize, std: f64, device: &B::Device) -> Self {
        Self {
            weight: Initializer::Normal { mean: 0.0, std }.init([rows, width], device),
        }
    }
}

impl<B: Kernels> Embedding<B> {
    /// Ids `[B, T]` -> rows `[B, T, D]`, in the dtype that the backend computes in.
    pub fn forward(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let table = self.weight.val();
        let dtype = B::compute_dtype(table.dtype());
        as_dtype(B::embed(table, ids), dtype)
    }

    /// The table as an output layer: `[.., D] -> [.., V]` (tied language-model head).
    pub fn as_head<const R: usize>(&self, x: Tensor<B, R>) -> Tensor<B, R> {
        linear(x, self.weight.val(), None, Activation::Identity)
    }
}

/// Entries `index` along the first axis, repeats allowed: `Tensor::select` with the gradient of a look-up.
pub fn pick<B: Kernels, const D: usize>(x: Tensor<B, D>, index: Tensor<B, 1, Int>) -> Tensor<B, D> {
    let mut dims = x.dims();
    let table = B::contiguous(x).reshape([dims[0], dims[1..].iter().product()]);
    dims[0] = index.dims()[0];
    B::embed(table, index.unsqueeze()).reshape(dims)
}
