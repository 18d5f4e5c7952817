//! `qformer_config` (`Blip2QFormerConfig`).

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;
use crate::nn::Activation;

/// Sizes of the Q-Former. Missing fields take Hugging Face's class defaults (BERT-base).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct QFormerConfig {
    /// Rows of the word table; 30,523 with `[DEC]`.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Hidden width of both feed-forwards.
    pub intermediate_size: usize,
    /// Non-linearity of both feed-forwards.
    pub hidden_act: Activation,
    /// Dropout after embeddings and output projections.
    pub hidden_dropout_prob: f64,
    /// Dropout on attention probabilities.
    pub attention_probs_dropout_prob: f64,
    /// Rows of the position table.
    pub max_position_embeddings: usize,
    /// Standard deviation of the initialisation.
    pub initializer_range: f64,
    /// Epsilon of every norm.
    pub layer_norm_eps: f64,
    /// Padding id.
    pub pad_token_id: i64,
    /// Layers with `index % frequency == 0` have cross-attention.
    pub cross_attention_frequency: usize,
    /// Width of the image tokens.
    pub encoder_hidden_size: usize,
    /// Whether there is a text branch (embeddings and text feed-forward).
    #[serde(alias = "qformer_text_input")]
    pub use_qformer_text_input: bool,
}

impl Default for QFormerConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            max_position_embeddings: 512,
            initializer_range: 0.02,
            layer_norm_eps: 1e-12,
            pad_token_id: 0,
            cross_attention_frequency: 2,
            encoder_hidden_size: 1408,
            use_qformer_text_input: false,
        }
    }
}

impl QFormerConfig {
    /// Whether layer `index` attends to the image.
    pub fn has_cross_attention(&self, index: usize) -> bool {
        index.is_multiple_of(self.cross_attention_frequency)
    }

    /// Checks the values against each other.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(ConfigError::Unsupported {
                field: "qformer_config.num_attention_heads",
                value: self.num_attention_heads.to_string(),
                reason: "hidden_size must be a multiple of the number of heads",
            });
        }
        if self.cross_attention_frequency == 0 {
            return Err(ConfigError::Unsupported {
                field: "qformer_config.cross_attention_frequency",
                value: "0".into(),
                reason: "it must be at least 1",
            });
        }
        Ok(())
    }
}
