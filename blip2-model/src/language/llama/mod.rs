//! LLaMA (Touvron et al. 2023, arXiv 2302.13971; `transformers/models/llama/modeling_llama.py`), the family
//! of Vicuna: a decoder with rotary positions and grouped queries.

mod config;
mod layer;
mod rotary;
#[cfg(test)]
mod tests;

pub use config::{LlamaConfig, RopeScaling, TokenIds};
pub use layer::{LlamaAttention, LlamaLayer, LlamaMlp};
pub use rotary::Rotation;

use burn::module::Module;
use burn::tensor::{DType, Int, Tensor, backend::Backend};

use super::decoder::Decoder;
use super::{Architecture, DecodeState, LanguageModel, Prompt};
use crate::config::ConfigError;
use crate::nn::kernels::as_dtype;
use crate::nn::{Context, Embedding, Kernels, KvCache, Linear, LinearConfig, PadMask, RmsNorm};

/// LLaMA with its output layer.
#[derive(Module, Debug)]
pub struct Llama<B: Backend> {
    /// `[V, D]`
    pub embed_tokens: Embedding<B>,
    /// The layers.
    pub layers: Vec<LlamaLayer<B>>,
    /// After the last layer.
    pub norm: RmsNorm<B>,
    /// `[V, D]`; absent when tied to the token table.
    pub lm_head: Option<Linear<B>>,
    head_dim: usize,
    heads_per_group: usize,
    theta: f64,
}

impl LlamaConfig {
    /// `N(0, initializer_range)` weights, zero biases, lazily; the configuration is validated first.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Result<Llama<B>, ConfigError> {
        self.validate()?;
        let (vocab, width, std) = (self.vocab_size, self.hidden_size, self.initializer_range);
        Ok(Llama {
            embed_tokens: Embedding::new(vocab, width, std, device),
            layers: (0..self.num_hidden_layers)
                .map(|_| LlamaLayer::new(self, device))
                .collect(),
            norm: RmsNorm::new(width, self.rms_norm_eps, device),
            lm_head: (!self.tie_word_embeddings)
                .then(|| LinearConfig::no_bias(width, vocab).init_normal(std, device)),
            head_dim: self.head_dim(),
            heads_per_group: self.num_attention_heads / self.key_value_heads(),
            theta: self.rope_theta,
        })
    }
}

impl<B: Kernels> Decoder<B> for Llama<B> {
    fn depth(&self) -> usize {
        self.layers.len()
    }

    fn device(&self) -> B::Device {
        self.embed_tokens.weight.lazy_device()
    }

    fn tokens(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.embed_tokens.forward(ids)
    }

    fn pass(
        &self,
        embeds: Tensor<B, 3>,
        positions: &[Vec<i64>],
        mask: Option<Tensor<B, 4>>,
        caches: &mut [KvCache<B>],
        ctx: &Context,
    ) -> Tensor<B, 3> {
        let (dtype, device) = (embeds.dtype(), embeds.device());
        let rotation = Rotation::new(positions, self.head_dim, self.theta, dtype, &device);
        let mask = mask.map(|mask| layer::grouped_mask(mask, self.heads_per_group));
        let mut x = embeds;
        ctx.record("embeddings", &x);
        let mut caches = caches.iter_mut();
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x, &rotation, mask.clone(), caches.next(), ctx);
            if ctx.is_tracing() {
                ctx.record(&format!("layers.{index}"), &x);
            }
        }
        let x = self.norm.forward(x);
        ctx.record("final", &x);
        x
    }

    fn logits(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let logits = match &self.lm_head {
            Some(head) => head.forward(x),
            None => self.embed_tokens.as_head(x),
        };
        as_dtype(logits, DType::F32)
    }
}

impl<B: Kernels> LanguageModel<B> for Llama<B> {
    fn architecture(&self) -> Architecture {
        Architecture::DecoderOnly
    }

    fn embed_size(&self) -> usize {
        self.embed_tokens.weight.lazy_shape()[1]
    }

    fn vocab_size(&self) -> usize {
        self.embed_tokens.weight.lazy_shape()[0]
    }

    fn embed(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.embed_tokens.forward(ids)
    }

    fn prefill(
        &self,
        prompt: Prompt<B>,
        max_new_tokens: usize,
        ctx: &Context,
    ) -> (DecodeState<B>, Tensor<B, 2>) {
        self.first(prompt, max_new_tokens, ctx)
    }

    fn step(&self, tokens: &[i64], state: &mut DecodeState<B>, ctx: &Context) -> Tensor<B, 2> {
        self.next(tokens, state, ctx)
    }

    fn teacher_forced(
        &self,
        prompt: Prompt<B>,
        ids: &[Vec<i64>],
        mask: &PadMask,
        ctx: &Context,
    ) -> Tensor<B, 3> {
        self.all(prompt, ids, mask, ctx)
    }
}
