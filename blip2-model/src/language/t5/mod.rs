//! T5 and Flan-T5 (Raffel et al. 2020, arXiv 1910.10683; `transformers/models/t5/modeling_t5.py`):
//! encoder and decoder with relative position bias, of versions 1.0 and 1.1.

mod config;
mod layer;
mod relative;
mod stack;
#[cfg(test)]
mod tests;

pub use config::T5Config;
pub use layer::{T5Attention, T5FeedForward};
pub use relative::RelativeBuckets;
pub use stack::{T5Block, T5Stack};

use burn::module::Module;
use burn::tensor::{DType, Int, Tensor, backend::Backend};

use super::{Architecture, DecodeState, LanguageModel, Prompt, mask};
use crate::config::ConfigError;
use crate::nn::kernels::as_dtype;
use crate::nn::mask::ids_tensor;
use crate::nn::{Context, Embedding, Kernels, KvCache, Linear, LinearConfig, PadMask};
use stack::Encoded;

/// T5 with its output layer.
#[derive(Module, Debug)]
pub struct T5<B: Backend> {
    /// `[V, D]`, for encoder and decoder.
    pub shared: Embedding<B>,
    /// Reads the prompt.
    pub encoder: T5Stack<B>,
    /// Writes the answer.
    pub decoder: T5Stack<B>,
    /// `[V, D]`; absent when tied to the token table.
    pub lm_head: Option<Linear<B>>,
    start: i64,
}

impl T5Config {
    /// Mesh TensorFlow's initialisation, lazily; the configuration is validated first.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Result<T5<B>, ConfigError> {
        self.validate()?;
        let (vocab, width, std) = (self.vocab_size, self.d_model, self.initializer_factor);
        Ok(T5 {
            shared: Embedding::new(vocab, width, std, device),
            encoder: T5Stack::encoder(self, device)?,
            decoder: T5Stack::decoder(self, device)?,
            lm_head: (!self.tie_word_embeddings)
                .then(|| LinearConfig::no_bias(width, vocab).init_normal(std, device)),
            start: self.decoder_start_token_id,
        })
    }
}

impl<B: Kernels> T5<B> {
    /// Output of the encoder, `[B, S, D]` in the dtype of the embeddings.
    pub fn encode(&self, prompt: Prompt<B>, ctx: &Context) -> Tensor<B, 3> {
        let mask = mask::keys(&prompt.mask, &prompt.embeds.device());
        ctx.scoped("encoder", || {
            self.encoder.forward(prompt.embeds, mask, &mut [], None, ctx)
        })
    }

    /// `[B, T, D] -> [B, T, V]` in f32.
    fn logits(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let width = x.dims()[2] as f64;
        let logits = match &self.lm_head {
            Some(head) => head.forward(x),
            None => self.shared.as_head(x * width.powf(-0.5)),
        };
        as_dtype(logits, DType::F32)
    }

    /// One decoder pass over `tokens`, one per row: logits `[B, V]`.
    fn decode_one(&self, tokens: &[i64], state: &mut DecodeState<B>, ctx: &Context) -> Tensor<B, 2> {
        let device = self.shared.weight.lazy_device();
        let rows: Vec<_> = tokens.iter().map(|&token| vec![token]).collect();
        let mut x = self.embed(ids_tensor(&rows, &device));
        // the token table may be stored in fewer bits than the activations have
        if let Some((k, _)) = state.cross_attention.first() {
            x = as_dtype(x, k.dtype());
        }
        let encoded = Encoded {
            keys_values: &state.cross_attention,
            mask: mask::keys(&state.mask, &device),
        };
        let caches = &mut state.self_attention;
        let x = ctx.scoped("decoder", || {
            self.decoder.forward(x, None, caches, Some(encoded), ctx)
        });
        let logits = self.logits(x);
        let [batch, _, vocab] = logits.dims();
        logits.reshape([batch, vocab])
    }
}

impl<B: Kernels> LanguageModel<B> for T5<B> {
    fn architecture(&self) -> Architecture {
        Architecture::EncoderDecoder
    }

    fn embed_size(&self) -> usize {
        self.shared.weight.lazy_shape()[1]
    }

    fn vocab_size(&self) -> usize {
        self.shared.weight.lazy_shape()[0]
    }

    fn embed(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.shared.forward(ids)
    }

    fn prefill(
        &self,
        prompt: Prompt<B>,
        max_new_tokens: usize,
        ctx: &Context,
    ) -> (DecodeState<B>, Tensor<B, 2>) {
        let mask = prompt.mask.clone();
        let encoded = self.encode(prompt, ctx);
        // the start token takes a place of its own
        let cache = KvCache::new(max_new_tokens + 1);
        let mut state = DecodeState {
            self_attention: vec![cache; self.decoder.blocks.len()],
            cross_attention: self.decoder.encoded_keys_values(encoded),
            mask,
        };
        let start = vec![self.start; state.mask.batch()];
        let logits = self.decode_one(&start, &mut state, ctx);
        (state, logits)
    }

    fn step(&self, tokens: &[i64], state: &mut DecodeState<B>, ctx: &Context) -> Tensor<B, 2> {
        self.decode_one(tokens, state, ctx)
    }

    fn teacher_forced(
        &self,
        prompt: Prompt<B>,
        ids: &[Vec<i64>],
        ids_mask: &PadMask,
        ctx: &Context,
    ) -> Tensor<B, 3> {
        let (device, dtype) = (prompt.embeds.device(), prompt.embeds.dtype());
        let prompt_mask = prompt.mask.clone();
        let encoded = self.encode(prompt, ctx);
        let keys_values = self.decoder.encoded_keys_values(encoded);
        let mut fed = mask::without_last(ids);
        for row in &mut fed {
            row.insert(0, self.start);
        }
        let x = as_dtype(self.embed(ids_tensor(&fed, &device)), dtype);
        // as in LAVIS the mask is that of the labels, not shifted with the ids
        let causal = mask::causal(ids_mask, ids_mask.len(), &device);
        let encoded = Encoded {
            keys_values: &keys_values,
            mask: mask::keys(&prompt_mask, &device),
        };
        let x = ctx.scoped("decoder", || {
            self.decoder.forward(x, causal, &mut [], Some(encoded), ctx)
        });
        self.logits(x)
    }
}
