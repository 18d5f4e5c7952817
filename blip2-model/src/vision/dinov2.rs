//! DINOv2 ViT (Oquab et al. 2023; Hugging Face `Dinov2Model`): a pre-norm ViT with separate query, key and value
//! projections and a learned scale on both branches.
//!
//! BLIP-2 works with any frozen encoder; this one is trained without text. Its final norm has the place of
//! `ln_vision` and trains with the Q-Former, as that of the other encoders does.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use super::ImageEncoder;
use super::block::{self, Layer, Mlp};
use super::patch::PatchEmbedding;
use crate::config::ConfigError;
use crate::nn::kernels::as_dtype;
use crate::nn::{Activation, Context, Kernels, LayerNorm, Linear, LinearConfig, merge_heads, split_heads};

/// `vision_config` of `model_type` `dinov2`. Missing fields take Hugging Face's class defaults (ViT-B/14).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dinov2Config {
    /// Token width.
    pub hidden_size: usize,
    /// Hidden width of the MLP as a multiple of `hidden_size`.
    pub mlp_ratio: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Side of the picture in pixels the position table is for (published weights: 518).
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Non-linearity of the MLP.
    pub hidden_act: Activation,
    /// Epsilon of every norm.
    pub layer_norm_eps: f64,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Gated MLP of the giant model; only `false` is implemented.
    pub use_swiglu_ffn: bool,
    /// Where the branch scales start.
    pub layerscale_value: f64,
    /// Epsilon of `ln_vision` where it differs. Our own field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub post_layer_norm_eps: Option<f64>,
}

impl Default for Dinov2Config {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            mlp_ratio: 4,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 14,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-6,
            qkv_bias: true,
            use_swiglu_ffn: false,
            layerscale_value: 1.0,
            post_layer_norm_eps: None,
        }
    }
}

/// DINOv2 without final norm.
#[derive(Module, Debug)]
pub struct Dinov2<B: Backend> {
    /// Class token, patches and positions.
    pub embeddings: PatchEmbedding<B>,
    /// Transformer blocks.
    pub layers: Vec<Dinov2Layer<B>>,
}

/// `x + s1 * Attn(norm1 x)`, `x + s2 * MLP(norm2 x)`.
#[derive(Module, Debug)]
pub struct Dinov2Layer<B: Backend> {
    /// Before attention.
    pub norm1: LayerNorm<B>,
    /// Self-attention.
    pub attention: SplitAttention<B>,
    /// `[D]`, scale of the attention branch.
    pub layer_scale1: Param<Tensor<B, 1>>,
    /// Before the MLP.
    pub norm2: LayerNorm<B>,
    /// MLP.
    pub mlp: Mlp<B>,
    /// `[D]`, scale of the MLP branch.
    pub layer_scale2: Param<Tensor<B, 1>>,
}

/// Self-attention with one projection each for queries, keys and values.
#[derive(Module, Debug)]
pub struct SplitAttention<B: Backend> {
    /// `[D, D]`
    pub query: Linear<B>,
    /// `[D, D]`
    pub key: Linear<B>,
    /// `[D, D]`
    pub value: Linear<B>,
    /// `[D, D]`, after the heads are merged.
    pub dense: Linear<B>,
    /// Number of heads.
    pub heads: usize,
}

impl Dinov2Config {
    /// Refuses what is not implemented.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.use_swiglu_ffn {
            return Err(ConfigError::Unsupported {
                field: "vision_config.use_swiglu_ffn",
                value: "true".into(),
                reason: "only the small, base and large DINOv2 models run, whose MLP is not gated",
            });
        }
        Ok(())
    }

    /// Lazily initialised encoder.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Dinov2<B> {
        Dinov2 {
            embeddings: PatchEmbedding::new(
                self.hidden_size,
                self.image_size,
                self.patch_size,
                true,
                false,
                device,
            ),
            layers: (0..self.num_hidden_layers).map(|_| self.layer(device)).collect(),
        }
    }

    fn layer<B: Backend>(&self, device: &B::Device) -> Dinov2Layer<B> {
        let (width, std) = (self.hidden_size, 0.02);
        let projection = || {
            let config = LinearConfig {
                bias: self.qkv_bias,
                ..LinearConfig::new(width, width)
            };
            config.init_normal(std, device)
        };
        let scale = || {
            Initializer::Constant {
                value: self.layerscale_value,
            }
            .init([width], device)
        };
        Dinov2Layer {
            norm1: LayerNorm::new(width, self.layer_norm_eps, device),
            attention: SplitAttention {
                query: projection(),
                key: projection(),
                value: projection(),
                dense: LinearConfig::new(width, width).init_normal(std, device),
                heads: self.num_attention_heads,
            },
            layer_scale1: scale(),
            norm2: LayerNorm::new(width, self.layer_norm_eps, device),
            mlp: Mlp {
                fc1: LinearConfig::new(width, self.mlp_ratio * width).init_normal(std, device),
                fc2: LinearConfig::new(self.mlp_ratio * width, width).init_normal(std, device),
                act: self.hidden_act,
            },
            layer_scale2: scale(),
        }
    }
}

impl<B: Kernels> Layer<B> for Dinov2Layer<B> {
    fn forward(&self, x: Tensor<B, 3>, ctx: &Context) -> Tensor<B, 3> {
        let scaled = |branch: Tensor<B, 3>, scale: &Param<Tensor<B, 1>>| {
            let scale = as_dtype(scale.val(), branch.dtype());
            branch * scale.unsqueeze()
        };
        let branch = self.attention.forward(self.norm1.forward(x.clone()), ctx);
        let x = x + scaled(branch, &self.layer_scale1);
        let branch = self.mlp.forward(self.norm2.forward(x.clone()));
        x + scaled(branch, &self.layer_scale2)
    }
}

impl<B: Kernels> SplitAttention<B> {
    /// `[B, N, D] -> [B, N, D]`, no mask.
    pub fn forward(&self, x: Tensor<B, 3>, ctx: &Context) -> Tensor<B, 3> {
        let scale = ((x.dims()[2] / self.heads) as f64).powf(-0.5);
        let part = |projection: &Linear<B>| split_heads(projection.forward(x.clone()), self.heads);
        let (q, k, v) = (part(&self.query), part(&self.key), part(&self.value));
        let context = B::attend(q, k, v, None, scale, ctx, 0.0);
        self.dense.forward(merge_heads(context))
    }
}

impl<B: Kernels> ImageEncoder<B> for Dinov2<B> {
    fn width(&self) -> usize {
        self.embeddings.class_embedding.dims()[2]
    }

    fn compute_dtype(&self) -> DType {
        B::compute_dtype(self.embeddings.weight.val().dtype())
    }

    fn forward(&self, pixels: Tensor<B, 4>, ctx: &Context) -> Tensor<B, 3> {
        block::run(&self.layers, self.embeddings.forward(pixels), ctx)
    }
}

#[cfg(test)]
mod tests;
