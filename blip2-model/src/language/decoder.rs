//! What decoder-only families share: prefill, one step and teacher forcing in terms of one pass.

use burn::tensor::{Int, Tensor};

use super::{DecodeState, Prompt, mask};
use crate::nn::kernels::as_dtype;
use crate::nn::mask::ids_tensor;
use crate::nn::{Context, Kernels, KvCache, PadMask};

/// One pass of a decoder-only model.
pub(super) trait Decoder<B: Kernels> {
    /// Number of layers, each with a cache.
    fn depth(&self) -> usize;

    /// Device of the token table.
    fn device(&self) -> B::Device;

    /// Token ids `[B, T] -> [B, T, D]`.
    fn tokens(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3>;

    /// Embeddings `[B, T, D]` at `positions` (`[B, T]`, padding -1) `-> [B, T, D]`, ready for the output
    /// layer. `caches` hold what came before and take what comes; empty for a pass without a cache.
    fn pass(
        &self,
        embeds: Tensor<B, 3>,
        positions: &[Vec<i64>],
        mask: Option<Tensor<B, 4>>,
        caches: &mut [KvCache<B>],
        ctx: &Context,
    ) -> Tensor<B, 3>;

    /// `[B, T, D] -> [B, T, V]` in f32.
    fn logits(&self, x: Tensor<B, 3>) -> Tensor<B, 3>;

    /// [`super::LanguageModel::prefill`]
    fn first(
        &self,
        prompt: Prompt<B>,
        max_new_tokens: usize,
        ctx: &Context,
    ) -> (DecodeState<B>, Tensor<B, 2>) {
        let (embeds, pad) = (prompt.embeds, prompt.mask);
        let len = pad.len();
        let mut caches = vec![KvCache::new(len + max_new_tokens); self.depth()];
        let causal = mask::causal(&pad, len, &embeds.device());
        let x = self.pass(embeds, &pad.positions(), causal, &mut caches, ctx);
        let state = DecodeState {
            self_attention: caches,
            cross_attention: Vec::new(),
            mask: pad,
        };
        (state, self.last_logits(x))
    }

    /// [`super::LanguageModel::step`]
    fn next(&self, tokens: &[i64], state: &mut DecodeState<B>, ctx: &Context) -> Tensor<B, 2> {
        let device = self.device();
        let rows: Vec<_> = tokens.iter().map(|&token| vec![token]).collect();
        let mut embeds = self.tokens(ids_tensor(&rows, &device));
        // the token table may be stored in fewer bits than the activations have
        if let Some(dtype) = state.self_attention.first().and_then(KvCache::dtype) {
            embeds = as_dtype(embeds, dtype);
        }
        state.mask.push_real();
        let positions = mask::last_positions(&state.mask);
        let causal = mask::causal(&state.mask, 1, &device);
        let x = self.pass(embeds, &positions, causal, &mut state.self_attention, ctx);
        self.last_logits(x)
    }

    /// [`super::LanguageModel::teacher_forced`]
    fn all(&self, prompt: Prompt<B>, ids: &[Vec<i64>], ids_mask: &PadMask, ctx: &Context) -> Tensor<B, 3> {
        let (prompt_len, len) = (prompt.mask.len(), ids_mask.len());
        let device = prompt.embeds.device();
        let mut embeds = prompt.embeds;
        // the last token predicts nothing
        if len > 1 {
            let fed = self.tokens(ids_tensor(&mask::without_last(ids), &device));
            let fed = as_dtype(fed, embeds.dtype());
            embeds = Tensor::cat(vec![embeds, fed], 1);
        }
        let pad = prompt.mask.concat(&mask::mask_without_last(ids_mask));
        let causal = mask::causal(&pad, pad.len(), &device);
        let x = self.pass(embeds, &pad.positions(), causal, &mut [], ctx);
        self.logits(x.narrow(1, prompt_len - 1, len))
    }

    /// Logits `[B, V]` of the last position.
    fn last_logits(&self, x: Tensor<B, 3>) -> Tensor<B, 2> {
        let [batch, len, _] = x.dims();
        let logits = self.logits(x.narrow(1, len - 1, 1));
        let vocab = logits.dims()[2];
        logits.reshape([batch, vocab])
    }
}
