//! OPT (Zhang et al. 2022, arXiv 2205.01068; `transformers/models/opt/modeling_opt.py`): a decoder with
//! learned positions, in all published sizes.

mod config;
mod layer;
#[cfg(test)]
mod tests;

pub use config::OptConfig;
pub use layer::{OptAttention, OptLayer};

use burn::module::Module;
use burn::tensor::{DType, Int, Tensor, backend::Backend};

use super::decoder::Decoder;
use super::{Architecture, DecodeState, LanguageModel, Prompt};
use crate::config::ConfigError;
use crate::nn::kernels::as_dtype;
use crate::nn::mask::ids_tensor;
use crate::nn::{Context, Embedding, Kernels, KvCache, LayerNorm, Linear, LinearConfig, PadMask};

/// Never in the config: the class uses PyTorch's default.
const LAYER_NORM_EPS: f64 = 1e-5;

/// The first two rows of the position table are not positions: padding, which counts as position -1,
/// reads row 1.
const POSITION_OFFSET: usize = 2;

/// Everything but the output layer.
#[derive(Module, Debug)]
pub struct OptDecoder<B: Backend> {
    /// `[V, embed]`
    pub embed_tokens: Embedding<B>,
    /// `[max_position_embeddings + 2, D]`
    pub embed_positions: Embedding<B>,
    /// `[D, embed]`, where the token table is narrower than the layers.
    pub project_in: Option<Linear<B>>,
    /// `[embed, D]`, likewise.
    pub project_out: Option<Linear<B>>,
    /// The layers.
    pub layers: Vec<OptLayer<B>>,
    /// Absent with post-norm layers.
    pub final_layer_norm: Option<LayerNorm<B>>,
}

/// OPT with its output layer.
#[derive(Module, Debug)]
pub struct Opt<B: Backend> {
    /// Everything but the output layer.
    pub decoder: OptDecoder<B>,
    /// `[V, embed]`; absent when tied to the token table.
    pub lm_head: Option<Linear<B>>,
}

impl OptConfig {
    /// `N(0, init_std)` weights, zero biases, lazily; the configuration is validated first.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Result<Opt<B>, ConfigError> {
        self.validate()?;
        let (width, embed, std) = (self.hidden_size, self.embed_size(), self.init_std);
        let projected = width != embed;
        let projection =
            |d_in, d_out| projected.then(|| LinearConfig::no_bias(d_in, d_out).init_normal(std, device));
        let positions = self.max_position_embeddings + POSITION_OFFSET;
        let final_norm = self.do_layer_norm_before && !self._remove_final_layer_norm;
        Ok(Opt {
            decoder: OptDecoder {
                embed_tokens: Embedding::new(self.vocab_size, embed, std, device),
                embed_positions: Embedding::new(positions, width, std, device),
                project_in: projection(embed, width),
                project_out: projection(width, embed),
                layers: (0..self.num_hidden_layers)
                    .map(|_| OptLayer::new(self, device))
                    .collect(),
                final_layer_norm: final_norm.then(|| LayerNorm::new(width, LAYER_NORM_EPS, device)),
            },
            lm_head: (!self.tie_word_embeddings)
                .then(|| LinearConfig::no_bias(embed, self.vocab_size).init_normal(std, device)),
        })
    }
}

impl<B: Kernels> OptDecoder<B> {
    /// Embeddings `[B, T, embed]` at `positions` (`[B, T]`, padding -1) -> `[B, T, embed]`, ready for the output layer.
    fn forward(
        &self,
        embeds: Tensor<B, 3>,
        positions: &[Vec<i64>],
        mask: Option<Tensor<B, 4>>,
        caches: &mut [KvCache<B>],
        ctx: &Context,
    ) -> Tensor<B, 3> {
        let positions = ids_tensor(positions, &embeds.device()) + POSITION_OFFSET as i64;
        let positions = as_dtype(self.embed_positions.forward(positions), embeds.dtype());
        let mut x = match &self.project_in {
            Some(projection) => projection.forward(embeds),
            None => embeds,
        } + positions;
        ctx.record("embeddings", &x);
        let mut caches = caches.iter_mut();
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x, mask.clone(), caches.next(), ctx);
            if ctx.is_tracing() {
                ctx.record(&format!("layers.{index}"), &x);
            }
        }
        if let Some(norm) = &self.final_layer_norm {
            x = norm.forward(x);
        }
        if let Some(projection) = &self.project_out {
            x = projection.forward(x);
        }
        ctx.record("final", &x);
        x
    }
}

impl<B: Kernels> Decoder<B> for Opt<B> {
    fn depth(&self) -> usize {
        self.decoder.layers.len()
    }

    fn device(&self) -> B::Device {
        self.decoder.embed_tokens.weight.lazy_device()
    }

    fn tokens(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.decoder.embed_tokens.forward(ids)
    }

    fn pass(
        &self,
        embeds: Tensor<B, 3>,
        positions: &[Vec<i64>],
        mask: Option<Tensor<B, 4>>,
        caches: &mut [KvCache<B>],
        ctx: &Context,
    ) -> Tensor<B, 3> {
        self.decoder.forward(embeds, positions, mask, caches, ctx)
    }

    fn logits(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let logits = match &self.lm_head {
            Some(head) => head.forward(x),
            None => self.decoder.embed_tokens.as_head(x),
        };
        as_dtype(logits, DType::F32)
    }
}

impl<B: Kernels> LanguageModel<B> for Opt<B> {
    fn architecture(&self) -> Architecture {
        Architecture::DecoderOnly
    }

    fn embed_size(&self) -> usize {
        self.decoder.embed_tokens.weight.lazy_shape()[1]
    }

    fn vocab_size(&self) -> usize {
        self.decoder.embed_tokens.weight.lazy_shape()[0]
    }

    fn max_positions(&self) -> Option<usize> {
        Some(self.decoder.embed_positions.weight.lazy_shape()[0] - POSITION_OFFSET)
    }

    fn embed(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.decoder.embed_tokens.forward(ids)
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
