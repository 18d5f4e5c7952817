//! `text_config` of a LLaMA model (`transformers/models/llama/configuration_llama.py`).

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;
use crate::nn::Activation;

/// Sizes of a LLaMA model. Missing fields take Hugging Face's class defaults (LLaMA-7B).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LlamaConfig {
    /// Rows of the token table.
    pub vocab_size: usize,
    /// Width of the layers.
    pub hidden_size: usize,
    /// Hidden width of the feed-forward.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Heads of keys and values, each shared by a group of attention heads; absent means one per head.
    pub num_key_value_heads: Option<usize>,
    /// Width of one head; absent means `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// Non-linearity of the feed-forward.
    pub hidden_act: Activation,
    /// Longest sequence seen in training. Positions are relative, so nothing ends there.
    pub max_position_embeddings: usize,
    /// Standard deviation of the initialisation.
    pub initializer_range: f64,
    /// Epsilon of every norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary wavelengths.
    pub rope_theta: f64,
    /// Stretching of the rotary wavelengths; only the default (none) is supported.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the maps of the attention have a bias.
    pub attention_bias: bool,
    /// Dropout on attention probabilities.
    pub attention_dropout: f64,
    /// Whether the maps of the feed-forward have a bias.
    pub mlp_bias: bool,
    /// Whether the output layer is the token table.
    pub tie_word_embeddings: bool,
    /// Padding id, if the tokenizer has one.
    pub pad_token_id: Option<i64>,
    /// Id put in front of every text.
    pub bos_token_id: Option<i64>,
    /// Ids that end a text.
    pub eos_token_id: Option<TokenIds>,
}

/// The part of `rope_scaling` that tells whether it changes anything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeScaling {
    /// `default` is no scaling.
    #[serde(alias = "type")]
    pub rope_type: String,
}

/// One id or several, as the file has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenIds {
    /// A number.
    One(i64),
    /// A list.
    Many(Vec<i64>),
}

impl Default for LlamaConfig {
    fn default() -> Self {
        Self {
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: 2048,
            initializer_range: 0.02,
            rms_norm_eps: 1e-6,
            rope_theta: 10000.0,
            rope_scaling: None,
            attention_bias: false,
            attention_dropout: 0.0,
            mlp_bias: false,
            tie_word_embeddings: false,
            pad_token_id: None,
            bos_token_id: Some(1),
            eos_token_id: Some(TokenIds::One(2)),
        }
    }
}

/// Published sizes of the first generation, which Vicuna shares: name, width, feed-forward, layers, heads.
const SIZES: [(&str, usize, usize, usize, usize); 4] = [
    ("7b", 4096, 11008, 32, 32),
    ("13b", 5120, 13824, 40, 40),
    ("30b", 6656, 17920, 60, 52),
    ("65b", 8192, 22016, 80, 64),
];

impl LlamaConfig {
    /// LLaMA-NAME, for the names of [`LlamaConfig::presets`].
    pub fn preset(name: &str) -> Option<Self> {
        let &(_, width, ffn, layers, heads) = SIZES.iter().find(|size| size.0 == name)?;
        Some(Self {
            hidden_size: width,
            intermediate_size: ffn,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            ..Self::default()
        })
    }

    /// Names of the published sizes.
    pub fn presets() -> impl Iterator<Item = &'static str> {
        SIZES.iter().map(|size| size.0)
    }

    /// Heads of keys and values.
    pub fn key_value_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
            .unwrap_or_else(|| self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Checks the values against each other and against what is implemented.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let heads = self.num_attention_heads;
        if heads == 0 || (self.head_dim.is_none() && !self.hidden_size.is_multiple_of(heads)) {
            return Err(ConfigError::Unsupported {
                field: "text_config.num_attention_heads",
                value: heads.to_string(),
                reason: "hidden_size must be a multiple of the number of heads unless head_dim is given",
            });
        }
        let groups = self.key_value_heads();
        if groups == 0 || !heads.is_multiple_of(groups) {
            return Err(ConfigError::Unsupported {
                field: "text_config.num_key_value_heads",
                value: groups.to_string(),
                reason: "num_attention_heads must be a multiple of it",
            });
        }
        if self.head_dim() == 0 || !self.head_dim().is_multiple_of(2) {
            return Err(ConfigError::Unsupported {
                field: "text_config.head_dim",
                value: self.head_dim().to_string(),
                reason: "rotary positions turn pairs of numbers: it must be even",
            });
        }
        match &self.rope_scaling {
            Some(scaling) if scaling.rope_type != "default" => Err(ConfigError::Unsupported {
                field: "text_config.rope_scaling",
                value: scaling.rope_type.clone(),
                reason: "only unscaled rotary positions are implemented",
            }),
            _ => Ok(()),
        }
    }
}
