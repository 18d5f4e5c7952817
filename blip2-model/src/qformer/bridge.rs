//! Everything BLIP-2 trains, and nothing it freezes: `ln_vision`, query tokens, Q-Former, projections,
//! heads, temperature. The optimizer and a training checkpoint see this module only.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{DType, Int, Tensor, backend::Backend};

use super::{ImageKeys, LmHead, Projection, QFormer, QFormerConfig, QueryPass};
use crate::nn::kernels::as_dtype;
use crate::nn::{Context, Kernels, LayerNorm, Linear, LinearConfig, PadMask};

/// Which parts a bridge has; the published checkpoints differ only in this.
#[derive(Clone, Debug)]
pub struct BridgeConfig {
    /// The Q-Former.
    pub qformer: QFormerConfig,
    /// Number of query tokens.
    pub num_query_token: usize,
    /// Epsilon of `ln_vision`.
    pub ln_vision_eps: f64,
    /// Width of the contrastive space, with `vision_projection`.
    pub vision_projection: Option<usize>,
    /// Width of the contrastive space, with `text_projection`.
    pub text_projection: Option<usize>,
    /// Matching head.
    pub itm_head: bool,
    /// Language-model head of grounded generation (LAVIS stage 1 only).
    pub lm_head: bool,
    /// Contrastive temperature (LAVIS stage 1 only).
    pub temperature: bool,
    /// Width of the language model that the queries are projected into.
    pub language_projection: Option<usize>,
}

/// See the module documentation.
#[derive(Module, Debug)]
pub struct Bridge<B: Backend> {
    /// Norm of the image tokens (`post_layernorm` in Hugging Face files).
    pub ln_vision: LayerNorm<B>,
    /// `[1, Q, D]`
    pub query_tokens: Param<Tensor<B, 3>>,
    /// The Q-Former.
    pub qformer: QFormer<B>,
    /// Queries into the contrastive space.
    pub vision_projection: Option<Projection<B>>,
    /// Text into the contrastive space.
    pub text_projection: Option<Projection<B>>,
    /// `[2, D]`; class 1 is "matched".
    pub itm_head: Option<Linear<B>>,
    /// Head of grounded generation.
    pub lm_head: Option<LmHead<B>>,
    /// Contrastive temperature, `[1]`, starts at 0.07.
    pub temp: Option<Param<Tensor<B, 1>>>,
    /// `[d_llm, D]`
    pub language_projection: Option<Linear<B>>,
}

impl BridgeConfig {
    /// Stage 1: text branch and all heads, contrastive width 256.
    pub fn stage1(
        mut qformer: QFormerConfig,
        num_query_token: usize,
        ln_vision_eps: f64,
        embed_dim: usize,
    ) -> Self {
        qformer.use_qformer_text_input = true;
        Self {
            qformer,
            num_query_token,
            ln_vision_eps,
            vision_projection: Some(embed_dim),
            text_projection: Some(embed_dim),
            itm_head: true,
            lm_head: true,
            temperature: true,
            language_projection: None,
        }
    }

    /// Stage 2: query branch and the projection into a language model of width `d_llm`.
    pub fn stage2(qformer: QFormerConfig, num_query_token: usize, ln_vision_eps: f64, d_llm: usize) -> Self {
        Self {
            qformer,
            num_query_token,
            ln_vision_eps,
            vision_projection: None,
            text_projection: None,
            itm_head: false,
            lm_head: false,
            temperature: false,
            language_projection: Some(d_llm),
        }
    }

    /// Lazily initialised as LAVIS does: queries from `N(0, 0.02)`, projections with PyTorch's default.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Bridge<B> {
        let q = &self.qformer;
        let project = |width: usize| Projection {
            linear: LinearConfig::new(q.hidden_size, width).init(device),
        };
        Bridge {
            ln_vision: LayerNorm::new(q.encoder_hidden_size, self.ln_vision_eps, device),
            query_tokens: Initializer::Normal {
                mean: 0.0,
                std: q.initializer_range,
            }
            .init([1, self.num_query_token, q.hidden_size], device),
            qformer: QFormer::new(q, device),
            vision_projection: self.vision_projection.map(project),
            text_projection: self.text_projection.map(project),
            itm_head: self
                .itm_head
                .then(|| LinearConfig::new(q.hidden_size, 2).init(device)),
            lm_head: self.lm_head.then(|| LmHead::new(q, device)),
            temp: self
                .temperature
                .then(|| Initializer::Constant { value: 0.07 }.init([1], device)),
            language_projection: self
                .language_projection
                .map(|width| LinearConfig::new(q.hidden_size, width).init(device)),
        }
    }
}

impl<B: Kernels> Bridge<B> {
    /// Encoder tokens `[B, N, C]` -> image embeddings `[B, N, C]` that the Q-Former attends to.
    pub fn image_embeds(&self, tokens: Tensor<B, 3>, ctx: &Context) -> Tensor<B, 3> {
        let embeds = self.ln_vision.forward(tokens);
        ctx.record("vision.last_hidden_state", &embeds);
        embeds
    }

    /// The query tokens for a batch: `[B, Q, D]`.
    pub fn queries(&self, batch: usize) -> Tensor<B, 3> {
        let [_, count, width] = self.query_tokens.dims();
        as_dtype(self.query_tokens.val(), self.compute_dtype()).expand([batch, count, width])
    }

    /// Dtype of the activations.
    pub fn compute_dtype(&self) -> DType {
        B::compute_dtype(self.query_tokens.val().dtype())
    }

    /// Query-only pass over `batch` images.
    pub fn query_pass(&self, image: &ImageKeys<B>, batch: usize, ctx: &Context) -> QueryPass<B> {
        let pass = ctx.scoped("qformer", || {
            self.qformer.queries(self.queries(batch), image, ctx)
        });
        ctx.record("qformer.last_hidden_state", &pass.hidden);
        pass
    }

    /// Query outputs after one bidirectional pass with a text: ids `[B, T]` with the images -> `[B, Q, D]`.
    ///
    /// # Panics
    /// If the checkpoint has no text branch (see [`QFormer::has_text_branch`]).
    pub fn multimodal_queries(
        &self,
        ids: Tensor<B, 2, Int>,
        mask: &PadMask,
        image: &ImageKeys<B>,
        ctx: &Context,
    ) -> Tensor<B, 3> {
        let queries = self.queries(ids.dims()[0]);
        let count = queries.dims()[1];
        let hidden = self.qformer.multimodal(queries, ids, mask, image, ctx);
        hidden.narrow(1, 0, count)
    }

    /// Matching logits: ids `[B, T]` with the images -> `[B, 2]`, the mean of the head over the queries.
    /// `None` without a matching head.
    pub fn itm_logits(
        &self,
        ids: Tensor<B, 2, Int>,
        mask: &PadMask,
        image: &ImageKeys<B>,
        ctx: &Context,
    ) -> Option<Tensor<B, 2>> {
        let head = self.itm_head.as_ref()?;
        let logits = head.forward(self.multimodal_queries(ids, mask, image, ctx)); // [B, Q, 2]
        Some(logits.mean_dim(1).squeeze_dim(1))
    }
}
