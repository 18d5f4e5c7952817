//! Table look-up (`torch.nn.Embedding`).

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Int, Tensor, backend::Backend};

use super::Kernels;

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

    /// Ids `[B, T]` -> rows `[B, T, D]` in the table's dtype.
    pub fn forward(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        burn::tensor::module::embedding(self.weight.val(), ids)
    }
}

impl<B: Kernels> Embedding<B> {
    /// The table as an output layer: `[.., D] -> [.., V]` (tied language-model head).
    pub fn as_head<const R: usize>(&self, x: Tensor<B, R>) -> Tensor<B, R> {
        // `val()` and not `clone()`: the clone of a parameter that is still lazy draws its own values
        super::Linear {
            weight: Param::initialized(self.weight.id, self.weight.val()),
            bias: None,
        }
        .forward(x)
    }
}
