//! Encoder or decoder of T5 (`T5Stack`).

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::layer::KeysValues;
use super::{RelativeBuckets, T5Attention, T5Config, T5FeedForward};
use crate::config::ConfigError;
use crate::nn::kernels::as_dtype;
use crate::nn::{Context, Embedding, Kernels, KvCache, RmsNorm};

/// Self-attention, in the decoder cross-attention, feed-forward.
#[derive(Module, Debug)]
pub struct T5Block<B: Backend> {
    /// Self-attention.
    pub self_attention: T5Attention<B>,
    /// To the encoder; decoder only.
    pub cross_attention: Option<T5Attention<B>>,
    /// Feed-forward.
    pub feed_forward: T5FeedForward<B>,
}

/// Blocks that share one relative position bias.
#[derive(Module, Debug)]
pub struct T5Stack<B: Backend> {
    /// `[buckets, H]`
    pub relative_attention_bias: Embedding<B>,
    /// The blocks.
    pub blocks: Vec<T5Block<B>>,
    /// After the last block.
    pub final_norm: RmsNorm<B>,
    #[module(skip)]
    buckets: RelativeBuckets,
    dropout: f64,
}

/// What a decoder attends to besides itself.
pub(super) struct Encoded<'a, B: Backend> {
    /// Per block.
    pub keys_values: &'a [KeysValues<B>],
    /// Over encoder positions.
    pub mask: Option<Tensor<B, 4>>,
}

impl<B: Backend> T5Stack<B> {
    /// The encoder.
    pub fn encoder(config: &T5Config, device: &B::Device) -> Result<Self, ConfigError> {
        Self::new(config, config.num_layers, false, device)
    }

    /// The decoder.
    pub fn decoder(config: &T5Config, device: &B::Device) -> Result<Self, ConfigError> {
        Self::new(config, config.decoder_layers(), true, device)
    }

    fn new(config: &T5Config, blocks: usize, decoder: bool, device: &B::Device) -> Result<Self, ConfigError> {
        let buckets = RelativeBuckets {
            count: config.relative_attention_num_buckets,
            max_distance: config.relative_attention_max_distance,
            bidirectional: !decoder,
        };
        let std = config.initializer_factor * (config.d_model as f64).powf(-0.5);
        let block = |_| {
            Ok(T5Block {
                self_attention: T5Attention::new(config, device),
                cross_attention: decoder.then(|| T5Attention::new(config, device)),
                feed_forward: T5FeedForward::new(config, device)?,
            })
        };
        Ok(Self {
            relative_attention_bias: Embedding::new(buckets.count, config.num_heads, std, device),
            blocks: (0..blocks).map(block).collect::<Result<_, ConfigError>>()?,
            final_norm: RmsNorm::new(config.d_model, config.layer_norm_epsilon, device),
            buckets,
            dropout: config.dropout_rate,
        })
    }
}

impl<B: Kernels> T5Stack<B> {
    /// `x [B, T, D] -> [B, T, D]` in the dtype of `x`. `mask` hides keys of the self-attention, `caches` hold
    /// what came before `x`.
    pub(super) fn forward(
        &self,
        x: Tensor<B, 3>,
        mask: Option<Tensor<B, 4>>,
        caches: &mut [KvCache<B>],
        encoded: Option<Encoded<'_, B>>,
        ctx: &Context,
    ) -> Tensor<B, 3> {
        let (dtype, len) = (x.dtype(), x.dims()[1]);
        let before = caches.first().map_or(0, KvCache::len);
        let table = &self.relative_attention_bias;
        let bias = self.buckets.bias(table, before, len, before + len);
        let bias = match mask {
            Some(mask) => bias + mask,
            None => bias,
        };
        let mut caches = caches.iter_mut();
        let mut x = ctx.dropout(x, self.dropout);
        for (index, block) in self.blocks.iter().enumerate() {
            let attention = &block.self_attention;
            x = attention.to_self(x, bias.clone(), caches.next(), dtype, ctx);
            if let (Some(attention), Some(encoded)) = (&block.cross_attention, &encoded) {
                let keys_values = encoded.keys_values[index].clone();
                x = attention.to_encoder(x, keys_values, encoded.mask.clone(), dtype, ctx);
            }
            x = block.feed_forward.forward(x, dtype, ctx);
            if ctx.is_tracing() {
                ctx.record(&format!("blocks.{index}"), &x);
            }
        }
        let x = as_dtype(self.final_norm.forward(x), dtype);
        ctx.record("final", &x);
        ctx.dropout(x, self.dropout)
    }

    /// Cross-attention keys and values of `encoded [B, S, D]`, per block.
    pub(super) fn encoded_keys_values(&self, encoded: Tensor<B, 3>) -> Vec<KeysValues<B>> {
        self.blocks
            .iter()
            .filter_map(|block| block.cross_attention.as_ref())
            .map(|attention| attention.keys_values(encoded.clone()))
            .collect()
    }
}
