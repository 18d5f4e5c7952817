//! Stage-1 heads (spec of `blip2_qformer.py`): contrastive projections, and the language-model head
//! of grounded generation, whose decoder is the word table.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Tensor, backend::Backend};

use super::QFormerConfig;
use crate::nn::linear::linear;
use crate::nn::{Activation, Embedding, Kernels, LayerNorm, Linear, LinearConfig};

/// A linear map into the shared contrastive space, followed by l2 normalisation.
#[derive(Module, Debug)]
pub struct Projection<B: Backend> {
    /// `[embed, D]`
    pub linear: Linear<B>,
}

impl<B: Kernels> Projection<B> {
    /// `[B, T, D] -> [B, T, embed]`, unit length.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        l2_normalise(self.linear.forward(x))
    }
}

/// `x / max(|x|, 1e-12)` over the last axis.
pub fn l2_normalise<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let norm = (x.clone() * x.clone()).sum_dim(D - 1).sqrt();
    x / norm.clamp_min(1e-12)
}

/// BERT's prediction head; the decoder weight is the word table, so only its bias is stored here.
#[derive(Module, Debug)]
pub struct LmHead<B: Backend> {
    /// `[D, D]`
    pub dense: Linear<B>,
    /// After the non-linearity.
    pub layer_norm: LayerNorm<B>,
    /// `[V]`
    pub bias: Param<Tensor<B, 1>>,
    #[module(skip)]
    act: Activation,
}

impl<B: Backend> LmHead<B> {
    /// Lazily initialised.
    pub fn new(config: &QFormerConfig, device: &B::Device) -> Self {
        let width = config.hidden_size;
        Self {
            dense: LinearConfig::new(width, width).init_normal(config.initializer_range, device),
            layer_norm: LayerNorm::new(width, config.layer_norm_eps, device),
            bias: Initializer::Zeros.init([config.vocab_size], device),
            act: config.hidden_act,
        }
    }
}

impl<B: Kernels> LmHead<B> {
    /// `[B, T, D]` and the word table `[V, D]` -> logits `[B, T, V]`.
    pub fn forward(&self, x: Tensor<B, 3>, words: &Embedding<B>) -> Tensor<B, 3> {
        let x = self.layer_norm.forward(self.dense.forward_act(x, self.act));
        linear(x, words.weight.val(), Some(self.bias.val()), Activation::Identity)
    }
}
