//! Linear map with PyTorch's weight layout (`torch.nn.Linear`).

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Tensor, backend::Backend};

use super::{Activation, Kernels};

/// Sizes of a [`Linear`].
#[derive(Clone, Copy, Debug)]
pub struct LinearConfig {
    /// Input width.
    pub d_in: usize,
    /// Output width.
    pub d_out: usize,
    /// Whether a bias is added.
    pub bias: bool,
}

/// `y = x W^T + b`, weight stored `[out, in]` as in the published files.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[out, in]`
    pub weight: Param<Tensor<B, 2>>,
    /// `[out]`
    pub bias: Option<Param<Tensor<B, 1>>>,
}

impl LinearConfig {
    /// With bias.
    pub fn new(d_in: usize, d_out: usize) -> Self {
        Self {
            d_in,
            d_out,
            bias: true,
        }
    }

    /// Without bias.
    pub fn no_bias(d_in: usize, d_out: usize) -> Self {
        Self {
            d_in,
            d_out,
            bias: false,
        }
    }

    /// Parameters drawn as PyTorch's default: `U(-1/sqrt(in), 1/sqrt(in))`, lazily.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Linear<B> {
        let bound = 1.0 / (self.d_in as f64).sqrt();
        self.init_with(
            Initializer::Uniform {
                min: -bound,
                max: bound,
            },
            device,
        )
    }

    /// Parameters drawn from `N(0, std)`, bias zero (BERT-style initialisation).
    pub fn init_normal<B: Backend>(&self, std: f64, device: &B::Device) -> Linear<B> {
        let mut linear = self.init_with(Initializer::Normal { mean: 0.0, std }, device);
        linear.bias = self.bias.then(|| Initializer::Zeros.init([self.d_out], device));
        linear
    }

    fn init_with<B: Backend>(&self, initializer: Initializer, device: &B::Device) -> Linear<B> {
        Linear {
            weight: initializer.init([self.d_out, self.d_in], device),
            bias: self.bias.then(|| initializer.init([self.d_out], device)),
        }
    }
}

impl<B: Kernels> Linear<B> {
    /// `[.., in] -> [.., out]`
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        self.forward_act(x, Activation::Identity)
    }

    /// `act(x W^T + b)`: `[.., in] -> [.., out]`, fused where the backend can.
    pub fn forward_act<const D: usize>(&self, x: Tensor<B, D>, act: Activation) -> Tensor<B, D> {
        linear(x, self.weight.val(), self.bias.as_ref().map(|b| b.val()), act)
    }
}

/// `act(x W^T + b)` with weights that live elsewhere (a tied table, a convolution seen as a matrix):
/// `x [.., in]`, `weight [out, in]`, `bias [out]` -> `[.., out]`.
pub fn linear<B: Kernels, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
    act: Activation,
) -> Tensor<B, D> {
    let mut dims = x.dims();
    let rows = dims[..D - 1].iter().product::<usize>();
    let x = B::contiguous(x).reshape([rows, dims[D - 1]]);
    let y = B::linear_act(x, weight, bias, act);
    dims[D - 1] = y.dims()[1];
    B::contiguous(y.reshape(dims))
}
