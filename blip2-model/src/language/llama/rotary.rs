//! Rotary positions (Su et al. 2021, arXiv 2104.09864) in the layout of Hugging Face files: number `i` of a
//! head turns with number `i + d/2`, not with its neighbour.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use crate::nn::kernels::as_dtype;

/// Cosine and sine of one pass, `[B or 1, 1, T, d]`.
#[derive(Clone, Debug)]
pub struct Rotation<B: Backend> {
    cos: Tensor<B, 4>,
    sin: Tensor<B, 4>,
}

impl<B: Backend> Rotation<B> {
    /// For `positions [B, T]` and heads of width `head_dim`, in `dtype`. Angles are computed in f32, as the
    /// reference does.
    pub fn new(
        positions: &[Vec<i64>],
        head_dim: usize,
        theta: f64,
        dtype: DType,
        device: &B::Device,
    ) -> Self {
        // equal rows, as without padding, are kept once
        let distinct = match positions.windows(2).all(|pair| pair[0] == pair[1]) {
            true => &positions[..positions.len().min(1)],
            false => positions,
        };
        let frequencies: Vec<f32> = (0..head_dim / 2)
            .map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / head_dim as f32))
            .collect();
        let angles: Vec<f32> = distinct
            .iter()
            .flatten()
            // padding counts as position -1, and nothing looks at it
            .flat_map(|&position| {
                let half = frequencies.iter().map(move |f| f * position.max(0) as f32);
                half.clone().chain(half)
            })
            .collect();
        let len = distinct.first().map_or(0, Vec::len);
        let shape = [distinct.len(), 1, len, head_dim];
        let tensor = |f: fn(f32) -> f32| {
            let data = TensorData::new(angles.iter().map(|&a| f(a)).collect(), shape);
            as_dtype(Tensor::from_data(data, (device, DType::F32)), dtype)
        };
        Self {
            cos: tensor(f32::cos),
            sin: tensor(f32::sin),
        }
    }

    /// Turns queries or keys, `[B, H, T, d] -> [B, H, T, d]`.
    pub fn apply(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let half = x.dims()[3] / 2;
        let (first, second) = (x.clone().narrow(3, 0, half), x.clone().narrow(3, half, half));
        let turned = Tensor::cat(vec![-second, first], 3);
        x * self.cos.clone() + turned * self.sin.clone()
    }
}
