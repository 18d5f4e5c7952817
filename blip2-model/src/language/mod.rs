//! Language models behind one trait, so that generation, answer ranking and the stage-2 loss are
//! written once. One family = one file (or folder).

pub mod any;
mod decoder;
pub mod keys;
pub mod llama;
mod mask;
pub mod opt;
pub mod t5;
#[cfg(test)]
mod testing;

pub use any::{AnyLanguageModel, LanguageConfig};
pub use keys::KeyTable;
pub use llama::{Llama, LlamaConfig};
pub use opt::{Opt, OptConfig};
pub use t5::{T5, T5Config};

use burn::tensor::{Int, Tensor, backend::Backend};

use crate::nn::mask::index_tensor;
use crate::nn::{Context, Kernels, KvCache, PadMask};

/// How a language model consumes a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// The prompt is the beginning of the generated sequence (OPT, LLaMA).
    DecoderOnly,
    /// The prompt is encoded, the answer decoded (T5).
    EncoderDecoder,
}

/// Embedded prompt of a batch: soft tokens of the image, then text, left-padded for decoder-only models.
#[derive(Clone, Debug)]
pub struct Prompt<B: Backend> {
    /// `[B, T, D]`, in the embedding width of the language model.
    pub embeds: Tensor<B, 3>,
    /// `[B, T]`; may hide positions anywhere.
    pub mask: PadMask,
}

/// What decoding carries from token to token.
#[derive(Clone, Debug)]
pub struct DecodeState<B: Backend> {
    /// Self-attention cache per layer.
    pub self_attention: Vec<KvCache<B>>,
    /// Keys and values `[B, H, S, d]` of the encoded prompt per layer; empty for decoder-only models.
    pub cross_attention: Vec<(Tensor<B, 4>, Tensor<B, 4>)>,
    /// Decoder-only: which cached positions are real. Encoder-decoder: which encoder positions are real.
    pub mask: PadMask,
}

impl<B: Kernels> DecodeState<B> {
    /// Keeps rows `index[i]` of the batch, in that order: expansion to beams, reordering, dropping finished rows.
    pub fn select(&mut self, index: &[usize]) {
        let identity = index.len() == self.mask.batch() && index.iter().enumerate().all(|(i, &j)| i == j);
        if identity {
            return;
        }
        let cached = self.self_attention.iter().find_map(KvCache::device);
        if let Some(device) = cached.or_else(|| self.cross_attention.first().map(|(k, _)| k.device())) {
            // one upload serves every layer
            let rows = index_tensor(index, &device);
            for cache in &mut self.self_attention {
                cache.select(&rows);
            }
            for (k, v) in &mut self.cross_attention {
                *k = k.clone().select(0, rows.clone());
                *v = v.clone().select(0, rows.clone());
            }
        }
        self.mask = self.mask.select(index);
    }
}

/// A frozen or trainable language model.
pub trait LanguageModel<B: Kernels> {
    /// Decoder-only or encoder-decoder.
    fn architecture(&self) -> Architecture;

    /// Width `D` of the token embeddings, which is what the image projection must produce.
    fn embed_size(&self) -> usize;

    /// Rows of the output layer.
    fn vocab_size(&self) -> usize;

    /// Longest sequence of prompt and new tokens that the position table covers; `None` where positions are
    /// relative. The caller checks it: beyond the table there is no meaningful result.
    fn max_positions(&self) -> Option<usize> {
        None
    }

    /// Token ids `[B, T] -> [B, T, D]`.
    fn embed(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3>;

    /// Runs the prompt and returns the state with the logits `[B, V]` (f32) of the first new token.
    fn prefill(
        &self,
        prompt: Prompt<B>,
        max_new_tokens: usize,
        ctx: &Context,
    ) -> (DecodeState<B>, Tensor<B, 2>);

    /// Feeds one token per row and returns the logits `[B, V]` (f32) of the next one.
    fn step(&self, tokens: &[i64], state: &mut DecodeState<B>, ctx: &Context) -> Tensor<B, 2>;

    /// Teacher forcing: logits `[B, T, V]` (f32) where position `t` predicts `ids[t]` given the prompt and
    /// `ids[..t]`. `ids [B, T]` are right-padded, `mask` marks real ones. Serves the training loss and
    /// answer ranking alike.
    fn teacher_forced(
        &self,
        prompt: Prompt<B>,
        ids: &[Vec<i64>],
        mask: &PadMask,
        ctx: &Context,
    ) -> Tensor<B, 3>;
}
