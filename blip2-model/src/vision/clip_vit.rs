//! CLIP ViT-L/14 as BLIP-2 uses it (Radford et al. 2021; `lavis/models/clip_vit.py`): 23 of the 24
//! blocks, a norm before them and none after, QuickGELU, a patch projection without bias.

use burn::module::Module;
use burn::tensor::{DType, Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use super::ImageEncoder;
use super::block::{self, Block, BlockConfig};
use super::patch::PatchEmbedding;
use crate::nn::{Activation, Context, Kernels, LayerNorm};

/// `vision_config` of `model_type` `clip_vision_model`; defaults are ViT-L/14 with LAVIS's dropped block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipVitConfig {
    /// Token width.
    pub hidden_size: usize,
    /// Hidden width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks that run.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Side of the picture in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Non-linearity of the MLP.
    pub hidden_act: Activation,
    /// Epsilon of every norm.
    pub layer_norm_eps: f64,
    /// Epsilon of `ln_vision` where it differs. Our own field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub post_layer_norm_eps: Option<f64>,
}

impl Default for ClipVitConfig {
    fn default() -> Self {
        Self {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 23,
            num_attention_heads: 16,
            image_size: 224,
            patch_size: 14,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            post_layer_norm_eps: None,
        }
    }
}

/// CLIP ViT without final norm.
#[derive(Module, Debug)]
pub struct ClipVit<B: Backend> {
    /// Class token, patches and positions.
    pub embeddings: PatchEmbedding<B>,
    /// Norm before the blocks.
    pub pre_layernorm: LayerNorm<B>,
    /// Transformer blocks.
    pub layers: Vec<Block<B>>,
}

impl ClipVitConfig {
    /// Lazily initialised encoder.
    pub fn init<B: Backend>(&self, device: &B::Device) -> ClipVit<B> {
        let blocks = BlockConfig {
            width: self.hidden_size,
            heads: self.num_attention_heads,
            mlp: self.intermediate_size,
            act: self.hidden_act,
            eps: self.layer_norm_eps,
            qkv_bias: true,
        };
        ClipVit {
            embeddings: PatchEmbedding::new(
                self.hidden_size,
                self.image_size,
                self.patch_size,
                false,
                true,
                device,
            ),
            pre_layernorm: LayerNorm::new(self.hidden_size, self.layer_norm_eps, device),
            layers: (0..self.num_hidden_layers)
                .map(|i| blocks.init(i, device))
                .collect(),
        }
    }
}

impl<B: Kernels> ImageEncoder<B> for ClipVit<B> {
    fn width(&self) -> usize {
        self.embeddings.class_embedding.dims()[2]
    }

    fn compute_dtype(&self) -> DType {
        B::compute_dtype(self.embeddings.weight.val().dtype())
    }

    fn forward(&self, pixels: Tensor<B, 4>, ctx: &Context) -> Tensor<B, 3> {
        block::run(
            &self.layers,
            self.pre_layernorm.forward(self.embeddings.forward(pixels)),
            ctx,
        )
    }
}
