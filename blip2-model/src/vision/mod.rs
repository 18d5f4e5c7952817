//! Image encoders behind one trait: a newer encoder is one new file and one variant of [`AnyEncoder`].
//!
//! An encoder returns the tokens *before* `ln_vision`: that norm trains with the Q-Former in every
//! stage and therefore lives with it (paper section 3.1, `lavis/models/blip2_models/blip2.py`).

use burn::module::Module;
use burn::tensor::{DType, Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use crate::config::ConfigError;
use crate::nn::{Context, Kernels};

pub mod block;
pub mod clip_vit;
pub mod dinov2;
pub mod eva_vit;
pub mod patch;
pub mod position;

pub use clip_vit::{ClipVit, ClipVitConfig};
pub use dinov2::{Dinov2, Dinov2Config};
pub use eva_vit::{EvaVit, EvaVitConfig};

/// A (usually frozen) image encoder.
pub trait ImageEncoder<B: Kernels> {
    /// Width `D` of a token.
    fn width(&self) -> usize;

    /// Dtype that the pixels must have.
    fn compute_dtype(&self) -> DType;

    /// Pixels `[B, 3, H, W]` -> all tokens `[B, N, D]`, class token first, before `ln_vision`.
    ///
    /// `H` and `W` must be multiples of the patch. A size other than the one of the position table
    /// resizes the table on the fly (Hugging Face's `interpolate_pos_encoding`).
    fn forward(&self, pixels: Tensor<B, 4>, ctx: &Context) -> Tensor<B, 3>;
}

/// `vision_config` of a BLIP-2 checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "model_type")]
pub enum VisionConfig {
    /// EVA-CLIP ViT-g/14, Hugging Face's only BLIP-2 encoder.
    #[serde(rename = "blip_2_vision_model", alias = "instructblip_vision_model")]
    Eva(EvaVitConfig),
    /// CLIP ViT-L/14 as LAVIS uses it.
    #[serde(rename = "clip_vision_model")]
    Clip(ClipVitConfig),
    /// DINOv2, to stand for the stronger encoders that the paper's design is open to.
    #[serde(rename = "dinov2")]
    Dinov2(Dinov2Config),
}

impl VisionConfig {
    /// Width of a token.
    pub fn hidden_size(&self) -> usize {
        match self {
            Self::Eva(c) => c.hidden_size,
            Self::Clip(c) => c.hidden_size,
            Self::Dinov2(c) => c.hidden_size,
        }
    }

    /// Side of the square picture the position table is for, in pixels.
    pub fn image_size(&self) -> usize {
        match self {
            Self::Eva(c) => c.image_size,
            Self::Clip(c) => c.image_size,
            Self::Dinov2(c) => c.image_size,
        }
    }

    /// Side of a patch in pixels.
    pub fn patch_size(&self) -> usize {
        match self {
            Self::Eva(c) => c.patch_size,
            Self::Clip(c) => c.patch_size,
            Self::Dinov2(c) => c.patch_size,
        }
    }

    /// Tokens of a picture of the configured size: the class token and one per patch.
    pub fn num_tokens(&self) -> usize {
        (self.image_size() / self.patch_size().max(1)).pow(2) + 1
    }

    /// Hidden width of the MLP.
    pub fn intermediate_size(&self) -> usize {
        match self {
            Self::Eva(c) => c.intermediate_size,
            Self::Clip(c) => c.intermediate_size,
            Self::Dinov2(c) => c.mlp_ratio * c.hidden_size,
        }
    }

    /// Number of transformer blocks.
    pub fn num_hidden_layers(&self) -> usize {
        match self {
            Self::Eva(c) => c.num_hidden_layers,
            Self::Clip(c) => c.num_hidden_layers,
            Self::Dinov2(c) => c.num_hidden_layers,
        }
    }

    /// Epsilon of the norm that follows the encoder (`ln_vision`).
    ///
    /// Hugging Face uses the block epsilon, LAVIS always 1e-5: a LAVIS import sets it explicitly.
    pub fn post_layer_norm_eps(&self) -> f64 {
        match self {
            Self::Eva(c) => c.post_layer_norm_eps.unwrap_or(c.layer_norm_eps),
            Self::Clip(c) => c.post_layer_norm_eps.unwrap_or(c.layer_norm_eps),
            Self::Dinov2(c) => c.post_layer_norm_eps.unwrap_or(c.layer_norm_eps),
        }
    }

    /// The same encoder for pictures of `image_size` pixels (its position table then has another shape).
    pub fn with_image_size(mut self, image_size: usize) -> Self {
        match &mut self {
            Self::Eva(c) => c.image_size = image_size,
            Self::Clip(c) => c.image_size = image_size,
            Self::Dinov2(c) => c.image_size = image_size,
        }
        self
    }

    /// Checks the values against each other.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (hidden, heads) = match self {
            Self::Eva(c) => (c.hidden_size, c.num_attention_heads),
            Self::Clip(c) => (c.hidden_size, c.num_attention_heads),
            Self::Dinov2(c) => {
                c.validate()?;
                (c.hidden_size, c.num_attention_heads)
            }
        };
        if heads == 0 || !hidden.is_multiple_of(heads) {
            return Err(ConfigError::Unsupported {
                field: "vision_config.num_attention_heads",
                value: heads.to_string(),
                reason: "hidden_size must be a multiple of the number of heads",
            });
        }
        if self.patch_size() == 0 || !self.image_size().is_multiple_of(self.patch_size()) {
            return Err(ConfigError::Unsupported {
                field: "vision_config.image_size",
                value: self.image_size().to_string(),
                reason: "the image size must be a multiple of the patch size",
            });
        }
        Ok(())
    }

    /// Lazily initialised encoder.
    pub fn init<B: Backend>(&self, device: &B::Device) -> AnyEncoder<B> {
        match self {
            Self::Eva(c) => AnyEncoder::Eva(c.init(device)),
            Self::Clip(c) => AnyEncoder::Clip(c.init(device)),
            Self::Dinov2(c) => AnyEncoder::Dinov2(c.init(device)),
        }
    }
}

/// One of the known encoders, chosen by the checkpoint.
// one value per model, and a boxed variant would not be a burn module
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum AnyEncoder<B: Backend> {
    /// EVA-CLIP ViT.
    Eva(EvaVit<B>),
    /// CLIP ViT.
    Clip(ClipVit<B>),
    /// DINOv2.
    Dinov2(Dinov2<B>),
}

impl<B: Kernels> ImageEncoder<B> for AnyEncoder<B> {
    fn width(&self) -> usize {
        match self {
            Self::Eva(m) => m.width(),
            Self::Clip(m) => m.width(),
            Self::Dinov2(m) => m.width(),
        }
    }

    fn compute_dtype(&self) -> DType {
        match self {
            Self::Eva(m) => m.compute_dtype(),
            Self::Clip(m) => m.compute_dtype(),
            Self::Dinov2(m) => m.compute_dtype(),
        }
    }

    fn forward(&self, pixels: Tensor<B, 4>, ctx: &Context) -> Tensor<B, 3> {
        match self {
            Self::Eva(m) => m.forward(pixels, ctx),
            Self::Clip(m) => m.forward(pixels, ctx),
            Self::Dinov2(m) => m.forward(pixels, ctx),
        }
    }
}
