//! `text_config` of a T5 model (`transformers/models/t5/configuration_t5.py`).

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;
use crate::nn::Activation;

/// Sizes of a T5 model. Missing fields take Hugging Face's class defaults (T5 v1.0 small).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct T5Config {
    /// Rows of the token table.
    pub vocab_size: usize,
    /// Width of the layers.
    pub d_model: usize,
    /// Width of one attention head; `num_heads * d_kv` may differ from `d_model`.
    pub d_kv: usize,
    /// Hidden width of the feed-forward.
    pub d_ff: usize,
    /// Encoder blocks.
    pub num_layers: usize,
    /// Decoder blocks; absent means as many as the encoder has.
    pub num_decoder_layers: Option<usize>,
    /// Attention heads.
    pub num_heads: usize,
    /// Rows of the relative-position table.
    pub relative_attention_num_buckets: usize,
    /// Distance from which on all positions share a bucket.
    pub relative_attention_max_distance: usize,
    /// Every dropout of the model.
    pub dropout_rate: f64,
    /// Epsilon of every norm.
    pub layer_norm_epsilon: f64,
    /// Scale of the initialisation.
    pub initializer_factor: f64,
    /// `ACT` (v1.0) or `gated-ACT` (v1.1, Flan).
    pub feed_forward_proj: String,
    /// Overrides the activation that `feed_forward_proj` names: BLIP-2 files say `gelu`, exact, where
    /// Flan-T5 was trained with the tanh form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dense_act_fn: Option<Activation>,
    /// Overrides whether the feed-forward is gated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_gated_act: Option<bool>,
    /// Whether the output layer is the token table (v1.0), in which case its input is scaled by
    /// `d_model^-0.5`.
    pub tie_word_embeddings: bool,
    /// Only `true` is supported.
    pub is_encoder_decoder: bool,
    /// Padding id.
    pub pad_token_id: i64,
    /// Id that ends a text.
    pub eos_token_id: i64,
    /// First id of every decoder input.
    pub decoder_start_token_id: i64,
}

impl Default for T5Config {
    fn default() -> Self {
        Self {
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_decoder_layers: None,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            dropout_rate: 0.1,
            layer_norm_epsilon: 1e-6,
            initializer_factor: 1.0,
            feed_forward_proj: "relu".into(),
            dense_act_fn: None,
            is_gated_act: None,
            tie_word_embeddings: true,
            is_encoder_decoder: true,
            pad_token_id: 0,
            eos_token_id: 1,
            decoder_start_token_id: 0,
        }
    }
}

/// Published Flan-T5 sizes: name, width, feed-forward, blocks per stack, heads of width 64.
const SIZES: [(&str, usize, usize, usize, usize); 5] = [
    ("flan-t5-small", 512, 1024, 8, 6),
    ("flan-t5-base", 768, 2048, 12, 12),
    ("flan-t5-large", 1024, 2816, 24, 16),
    ("flan-t5-xl", 2048, 5120, 24, 32),
    ("flan-t5-xxl", 4096, 10240, 24, 64),
];

impl T5Config {
    /// `google/NAME` with the exact `gelu` that BLIP-2 runs it with, for the names of [`T5Config::presets`].
    pub fn preset(name: &str) -> Option<Self> {
        let &(_, d_model, d_ff, num_layers, num_heads) = SIZES.iter().find(|size| size.0 == name)?;
        Some(Self {
            d_model,
            d_ff,
            num_layers,
            num_heads,
            feed_forward_proj: "gated-gelu".into(),
            dense_act_fn: Some(Activation::Gelu),
            tie_word_embeddings: false,
            ..Self::default()
        })
    }

    /// Names of the published sizes.
    pub fn presets() -> impl Iterator<Item = &'static str> {
        SIZES.iter().map(|size| size.0)
    }

    /// Decoder blocks.
    pub fn decoder_layers(&self) -> usize {
        self.num_decoder_layers.unwrap_or(self.num_layers)
    }

    /// Whether the feed-forward multiplies its activation by a second linear map.
    pub fn is_gated(&self) -> bool {
        self.is_gated_act
            .unwrap_or_else(|| self.feed_forward_proj.starts_with("gated-"))
    }

    /// Non-linearity of the feed-forward.
    pub fn activation(&self) -> Result<Activation, ConfigError> {
        if let Some(act) = self.dense_act_fn {
            return Ok(act);
        }
        // Written for T5 v1.1 before the two forms of gelu had names: it means the tanh form.
        if self.feed_forward_proj == "gated-gelu" {
            return Ok(Activation::GeluTanh);
        }
        let name = self
            .feed_forward_proj
            .strip_prefix("gated-")
            .unwrap_or(&self.feed_forward_proj);
        serde_json::from_value(name.into()).map_err(|_| ConfigError::Unsupported {
            field: "text_config.feed_forward_proj",
            value: self.feed_forward_proj.clone(),
            reason: "expected ACT or gated-ACT, where ACT is relu, gelu, gelu_new, quick_gelu or silu",
        })
    }

    /// Checks the values against each other and against what is implemented.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.activation()?;
        if !self.is_encoder_decoder {
            return Err(ConfigError::Unsupported {
                field: "text_config.is_encoder_decoder",
                value: "false".into(),
                reason: "only the encoder-decoder form of T5 is implemented",
            });
        }
        let buckets = self.relative_attention_num_buckets;
        if buckets < 4 || !buckets.is_multiple_of(4) {
            return Err(ConfigError::Unsupported {
                field: "text_config.relative_attention_num_buckets",
                value: buckets.to_string(),
                reason: "it must be a multiple of 4: two directions, each half exact and half logarithmic",
            });
        }
        if self.relative_attention_max_distance <= buckets / 2 {
            return Err(ConfigError::Unsupported {
                field: "text_config.relative_attention_max_distance",
                value: self.relative_attention_max_distance.to_string(),
                reason: "it must exceed half of relative_attention_num_buckets",
            });
        }
        if self.num_heads == 0 || self.d_kv == 0 {
            return Err(ConfigError::Unsupported {
                field: "text_config.num_heads",
                value: format!("{} (d_kv = {})", self.num_heads, self.d_kv),
                reason: "heads and their width must be at least 1",
            });
        }
        Ok(())
    }
}
