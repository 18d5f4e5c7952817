//! Patch embedding: class token, patches, absolute positions (ViT, Dosovitskiy et al. 2021, section 3.1).

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Tensor, TensorData, backend::Backend};

use super::position;
use crate::nn::kernels::as_dtype;
use crate::nn::linear::linear;
use crate::nn::{Activation, Kernels};

/// Class token, patch projection and position table.
#[derive(Module, Debug)]
pub struct PatchEmbedding<B: Backend> {
    /// `[1, 1, D]`
    pub class_embedding: Param<Tensor<B, 3>>,
    /// `[1, N, D]`, row 0 belongs to the class token.
    pub position_embedding: Param<Tensor<B, 3>>,
    /// `[D, 3, p, p]`, applied as unfold and matrix product: the one convolution of the model, and
    /// convolutions are where GPU backends differ most.
    pub weight: Param<Tensor<B, 4>>,
    /// `[D]`
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// Whether a resize of the position table aligns the corners (CLIP in LAVIS) or not (EVA).
    pub align_corners: bool,
}

impl<B: Backend> PatchEmbedding<B> {
    /// Truncated-normal-like initialisation with the standard deviation 0.02 of the original code.
    pub fn new(
        width: usize,
        image_size: usize,
        patch: usize,
        bias: bool,
        align_corners: bool,
        device: &B::Device,
    ) -> Self {
        let grid = image_size / patch;
        let normal = Initializer::Normal { mean: 0.0, std: 0.02 };
        Self {
            class_embedding: normal.init([1, 1, width], device),
            position_embedding: normal.init([1, grid * grid + 1, width], device),
            weight: normal.init([width, 3, patch, patch], device),
            bias: bias.then(|| Initializer::Zeros.init([width], device)),
            align_corners,
        }
    }
}

impl<B: Kernels> PatchEmbedding<B> {
    /// Pixels `[B, 3, H, W]` -> `[B, 1 + (H/p)(W/p), D]`, patches in row-major order.
    pub fn forward(&self, pixels: Tensor<B, 4>) -> Tensor<B, 3> {
        let [batch, channels, height, width_px] = pixels.dims();
        let [width, _, patch, _] = self.weight.dims();
        let (rows, cols) = (height / patch, width_px / patch);
        let dtype = pixels.dtype();
        let patches = pixels
            .reshape([batch, channels, rows, patch, cols, patch])
            .permute([0, 2, 4, 1, 3, 5]) // [B, rows, cols, 3, p, p]
            .reshape([batch, rows * cols, channels * patch * patch]);
        let weight = self.weight.val().reshape([width, channels * patch * patch]);
        let bias = self.bias.as_ref().map(|b| b.val());
        let tokens = linear(patches, weight, bias, Activation::Identity);
        let class = as_dtype(self.class_embedding.val(), dtype).expand([batch, 1, width]);
        let positions = as_dtype(self.positions(rows, cols), dtype);
        // one copy per picture first: burn-flex adds tensors of equal shape thirty times faster than it broadcasts
        Tensor::cat(vec![class, tokens], 1) + positions.repeat_dim(0, batch)
    }

    /// The position table for a `rows` x `cols` grid: the parameter itself where the grid is its own.
    fn positions(&self, rows: usize, cols: usize) -> Tensor<B, 3> {
        let table = self.position_embedding.val();
        let [_, tokens, width] = table.dims();
        let side = (tokens - 1).isqrt();
        if (rows, cols) == (side, side) {
            return table;
        }
        let device = table.device();
        let values = table.into_data().convert::<f32>();
        let values = values.as_slice::<f32>().unwrap_or_default();
        let resized = position::resize_table(values, width, side, (rows, cols), self.align_corners);
        Tensor::from_data(TensorData::new(resized, [1, rows * cols + 1, width]), &device)
    }
}
