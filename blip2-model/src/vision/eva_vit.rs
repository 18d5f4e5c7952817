//! EVA-CLIP ViT-g/14 (Fang et al. 2022; `lavis/models/eva_vit.py`, Hugging Face `Blip2VisionModel`).
//!
//! All tokens are returned, no final norm inside. The weight file of LAVIS holds 40 blocks of which
//! 39 are used; the loader ignores the last one.

use burn::module::Module;
use burn::tensor::{DType, Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use super::ImageEncoder;
use super::block::{self, Block, BlockConfig};
use super::patch::PatchEmbedding;
use crate::nn::{Activation, Context, Kernels};

/// `vision_config` of `model_type` `blip_2_vision_model`. Missing fields take Hugging Face's class defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvaVitConfig {
    /// Token width.
    pub hidden_size: usize,
    /// Hidden width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Side of the picture in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Non-linearity of the MLP.
    pub hidden_act: Activation,
    /// Epsilon of the norms inside the blocks.
    pub layer_norm_eps: f64,
    /// Dropout on attention probabilities; only 0 is published.
    pub attention_dropout: f64,
    /// Whether the fused projection has a bias.
    pub qkv_bias: bool,
    /// Epsilon of `ln_vision` where it differs from `layer_norm_eps` (LAVIS: 1e-5). Our own field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub post_layer_norm_eps: Option<f64>,
}

impl Default for EvaVitConfig {
    fn default() -> Self {
        Self {
            hidden_size: 1408,
            intermediate_size: 6144,
            num_hidden_layers: 39,
            num_attention_heads: 16,
            image_size: 224,
            patch_size: 14,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-6,
            attention_dropout: 0.0,
            qkv_bias: true,
            post_layer_norm_eps: None,
        }
    }
}

/// EVA-CLIP ViT without final norm.
#[derive(Module, Debug)]
pub struct EvaVit<B: Backend> {
    /// Class token, patches and positions.
    pub embeddings: PatchEmbedding<B>,
    /// Transformer blocks.
    pub layers: Vec<Block<B>>,
}

impl EvaVitConfig {
    /// Lazily initialised encoder.
    pub fn init<B: Backend>(&self, device: &B::Device) -> EvaVit<B> {
        let blocks = BlockConfig {
            width: self.hidden_size,
            heads: self.num_attention_heads,
            mlp: self.intermediate_size,
            act: self.hidden_act,
            eps: self.layer_norm_eps,
            qkv_bias: self.qkv_bias,
        };
        EvaVit {
            embeddings: PatchEmbedding::new(
                self.hidden_size,
                self.image_size,
                self.patch_size,
                true,
                false,
                device,
            ),
            layers: (0..self.num_hidden_layers)
                .map(|i| blocks.init(i, device))
                .collect(),
        }
    }
}

impl<B: Kernels> ImageEncoder<B> for EvaVit<B> {
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
