//! Activation functions by their Hugging Face names (`transformers/activations.py`).

use burn::tensor::{Tensor, activation, backend::Backend};
use serde::{Deserialize, Serialize};

use super::Kernels;

/// Point-wise non-linearity; serde names are the values of `hidden_act` in Hugging Face configs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Activation {
    /// Identity.
    #[serde(rename = "linear")]
    Identity,
    /// `x * Phi(x)`, exact (erf).
    #[serde(rename = "gelu")]
    Gelu,
    /// Tanh approximation of GELU, the native activation of Flan-T5.
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh", alias = "gelu_fast")]
    GeluTanh,
    /// `x * sigmoid(1.702 x)`, used by CLIP.
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// `max(x, 0)`, used by OPT.
    #[serde(rename = "relu")]
    Relu,
    /// `x * sigmoid(x)`, used by LLaMA.
    #[serde(rename = "silu", alias = "swish")]
    Silu,
}

impl Activation {
    /// Every non-linearity.
    pub const ALL: [Self; 6] = [
        Self::Identity,
        Self::Gelu,
        Self::GeluTanh,
        Self::QuickGelu,
        Self::Relu,
        Self::Silu,
    ];

    /// Applies the function; any shape in, same shape out.
    pub fn apply<B: Kernels, const D: usize>(self, x: Tensor<B, D>) -> Tensor<B, D> {
        match self {
            Self::Identity => x,
            act => B::activate(x, act),
        }
    }

    /// The plain form of [`Kernels::activate`].
    pub fn by_tensor_ops<B: Backend, const D: usize>(self, x: Tensor<B, D>) -> Tensor<B, D> {
        match self {
            Self::Identity => x,
            Self::Gelu => activation::gelu(x),
            Self::GeluTanh => activation::gelu_approximate(x),
            Self::QuickGelu => x.clone() * activation::sigmoid(x * 1.702),
            Self::Relu => activation::relu(x),
            Self::Silu => activation::silu(x),
        }
    }
}
