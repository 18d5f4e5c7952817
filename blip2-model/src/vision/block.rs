//! The pre-norm transformer block that the ViTs share: `x + Attn(LN1 x)`, `x + MLP(LN2 x)`.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use crate::nn::{Activation, Context, Kernels, LayerNorm, Linear, LinearConfig, merge_heads};

/// What a block needs to know.
#[derive(Clone, Copy, Debug)]
pub struct BlockConfig {
    /// Token width.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Hidden width of the MLP.
    pub mlp: usize,
    /// Non-linearity of the MLP.
    pub act: Activation,
    /// Epsilon of both norms.
    pub eps: f64,
    /// Whether the fused projection has a bias.
    pub qkv_bias: bool,
}

/// Pre-norm block.
#[derive(Module, Debug)]
pub struct Block<B: Backend> {
    /// Before attention.
    pub layer_norm1: LayerNorm<B>,
    /// Self-attention.
    pub self_attn: FusedAttention<B>,
    /// Before the MLP.
    pub layer_norm2: LayerNorm<B>,
    /// MLP.
    pub mlp: Mlp<B>,
}

/// Self-attention with one projection for queries, keys and values, in this order.
#[derive(Module, Debug)]
pub struct FusedAttention<B: Backend> {
    /// `[3 D, D]`
    pub qkv: Linear<B>,
    /// `[D, D]`
    pub projection: Linear<B>,
    /// Number of heads.
    pub heads: usize,
}

/// Two linear maps around a non-linearity.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    /// `[mlp, D]`
    pub fc1: Linear<B>,
    /// `[D, mlp]`
    pub fc2: Linear<B>,
    /// Non-linearity.
    #[module(skip)]
    pub act: Activation,
}

impl BlockConfig {
    /// Linear maps from `N(0, 0.02)`, the two output projections scaled down by `sqrt(2 (i + 1))` for
    /// block index `i`.
    pub fn init<B: Backend>(&self, index: usize, device: &B::Device) -> Block<B> {
        let std = 0.02;
        let std_out = std / (2.0 * (index + 1) as f64).sqrt();
        let qkv = LinearConfig {
            bias: self.qkv_bias,
            ..LinearConfig::new(self.width, 3 * self.width)
        };
        Block {
            layer_norm1: LayerNorm::new(self.width, self.eps, device),
            self_attn: FusedAttention {
                qkv: qkv.init_normal(std, device),
                projection: LinearConfig::new(self.width, self.width).init_normal(std_out, device),
                heads: self.heads,
            },
            layer_norm2: LayerNorm::new(self.width, self.eps, device),
            mlp: Mlp {
                fc1: LinearConfig::new(self.width, self.mlp).init_normal(std, device),
                fc2: LinearConfig::new(self.mlp, self.width).init_normal(std_out, device),
                act: self.act,
            },
        }
    }
}

/// One block of an encoder.
pub trait Layer<B: Backend> {
    /// `[B, N, D] -> [B, N, D]`
    fn forward(&self, x: Tensor<B, 3>, ctx: &Context) -> Tensor<B, 3>;
}

impl<B: Kernels> Layer<B> for Block<B> {
    fn forward(&self, x: Tensor<B, 3>, ctx: &Context) -> Tensor<B, 3> {
        let x = x.clone() + self.self_attn.forward(self.layer_norm1.forward(x), ctx);
        x.clone() + self.mlp.forward(self.layer_norm2.forward(x))
    }
}

/// All blocks of an encoder: `[B, N, D] -> [B, N, D]`, every intermediate recorded.
pub fn run<B: Kernels>(layers: &[impl Layer<B>], mut x: Tensor<B, 3>, ctx: &Context) -> Tensor<B, 3> {
    ctx.record("embeddings", &x);
    for (i, block) in layers.iter().enumerate() {
        x = block.forward(x, ctx);
        ctx.record(&format!("layers.{i}"), &x);
    }
    x
}

impl<B: Kernels> FusedAttention<B> {
    /// `[B, N, D] -> [B, N, D]`, no mask.
    pub fn forward(&self, x: Tensor<B, 3>, ctx: &Context) -> Tensor<B, 3> {
        let [batch, len, width] = x.dims();
        let each = width / self.heads;
        let qkv = self.qkv.forward(x).reshape([batch, len, 3 * self.heads, each]); // [B, N, 3 H, d]
        // narrowing heads keeps the three parts views; narrowing the joint width would copy them
        let part = |i: usize| qkv.clone().narrow(2, i * self.heads, self.heads).swap_dims(1, 2);
        let scale = (each as f64).powf(-0.5);
        let context = B::attend(part(0), part(1), part(2), None, scale, ctx, 0.0);
        self.projection.forward(merge_heads(context))
    }
}

impl<B: Kernels> Mlp<B> {
    /// `[.., D] -> [.., D]`
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.fc2.forward(self.fc1.forward_act(x, self.act))
    }
}
