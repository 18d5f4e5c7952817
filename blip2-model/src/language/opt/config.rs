//! `text_config` of an OPT model (`transformers/models/opt/configuration_opt.py`).

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;
use crate::nn::Activation;

/// Sizes of an OPT model. Missing fields take Hugging Face's class defaults (OPT-125M).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OptConfig {
    /// Rows of the token table: 50272, or 50304 in later BLIP-2 files.
    pub vocab_size: usize,
    /// Width of the layers.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Hidden width of the feed-forward.
    pub ffn_dim: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Longest sequence; the position table has two more rows.
    pub max_position_embeddings: usize,
    /// Norm before (all sizes but one) or after the sub-layers (350M).
    pub do_layer_norm_before: bool,
    /// Leaves out the last norm (files older than transformers 4.20.1).
    pub _remove_final_layer_norm: bool,
    /// Width of the token embeddings; absent means `hidden_size`.
    pub word_embed_proj_dim: Option<usize>,
    /// Dropout after attention and feed-forward.
    pub dropout: f64,
    /// Dropout on attention probabilities.
    pub attention_dropout: f64,
    /// Probability of leaving out a layer while training; only 0 is supported.
    pub layerdrop: f64,
    /// Non-linearity of the feed-forward.
    pub activation_function: Activation,
    /// Standard deviation of the initialisation.
    pub init_std: f64,
    /// Whether linear maps have a bias.
    pub enable_bias: bool,
    /// Whether norms have parameters; only `true` is supported.
    pub layer_norm_elementwise_affine: bool,
    /// Whether the output layer is the token table.
    pub tie_word_embeddings: bool,
    /// Padding id.
    pub pad_token_id: i64,
    /// Id put in front of every text.
    pub bos_token_id: i64,
    /// Id that ends a text: 2 natively, 50118 (newline) in BLIP-2.
    pub eos_token_id: i64,
}

impl Default for OptConfig {
    fn default() -> Self {
        Self {
            vocab_size: 50272,
            hidden_size: 768,
            num_hidden_layers: 12,
            ffn_dim: 3072,
            num_attention_heads: 12,
            max_position_embeddings: 2048,
            do_layer_norm_before: true,
            _remove_final_layer_norm: false,
            word_embed_proj_dim: None,
            dropout: 0.1,
            attention_dropout: 0.0,
            layerdrop: 0.0,
            activation_function: Activation::Relu,
            init_std: 0.02,
            enable_bias: true,
            layer_norm_elementwise_affine: true,
            tie_word_embeddings: true,
            pad_token_id: 1,
            bos_token_id: 2,
            eos_token_id: 2,
        }
    }
}

/// Published sizes: name, width, layers, heads (Zhang et al. 2022, table 1). The feed-forward is four times
/// as wide as the layers.
const SIZES: [(&str, usize, usize, usize); 8] = [
    ("125m", 768, 12, 12),
    ("350m", 1024, 24, 16),
    ("1.3b", 2048, 24, 32),
    ("2.7b", 2560, 32, 32),
    ("6.7b", 4096, 32, 32),
    ("13b", 5120, 40, 40),
    ("30b", 7168, 48, 56),
    ("66b", 9216, 64, 72),
];

impl OptConfig {
    /// `facebook/opt-NAME`, for the names of [`OptConfig::presets`].
    pub fn preset(name: &str) -> Option<Self> {
        let &(name, width, layers, heads) = SIZES.iter().find(|size| size.0 == name)?;
        // The one size trained with post-norm and a narrower token table.
        let early = name == "350m";
        Some(Self {
            hidden_size: width,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            ffn_dim: 4 * width,
            do_layer_norm_before: !early,
            word_embed_proj_dim: early.then_some(512),
            ..Self::default()
        })
    }

    /// Names of the published sizes.
    pub fn presets() -> impl Iterator<Item = &'static str> {
        SIZES.iter().map(|size| size.0)
    }

    /// Width of the token embeddings.
    pub fn embed_size(&self) -> usize {
        self.word_embed_proj_dim.unwrap_or(self.hidden_size)
    }

    /// Checks the values against each other and against what is implemented.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(ConfigError::Unsupported {
                field: "text_config.num_attention_heads",
                value: self.num_attention_heads.to_string(),
                reason: "hidden_size must be a multiple of the number of heads",
            });
        }
        if self.layerdrop != 0.0 {
            return Err(ConfigError::Unsupported {
                field: "text_config.layerdrop",
                value: self.layerdrop.to_string(),
                reason: "leaving out whole layers while training is not implemented; set it to 0",
            });
        }
        if !self.layer_norm_elementwise_affine {
            return Err(ConfigError::Unsupported {
                field: "text_config.layer_norm_elementwise_affine",
                value: "false".into(),
                reason: "norms without parameters are not implemented; no published OPT has them",
            });
        }
        Ok(())
    }
}
