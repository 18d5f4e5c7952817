//! Embeddings of pictures, texts and both (`blip2_feature_extractor`, `Blip2VisionModelWithProjection`,
//! `Blip2TextModelWithProjection`), each with its documented shape and norm.

use burn::tensor::{Tensor, backend::Backend};

use super::conditional::TokenBatch;
use super::{Blip2, Blip2Error, ImageFeatures};
use crate::nn::mask::ids_tensor;
use crate::nn::{Context, Kernels};

/// Embedding of pictures.
#[derive(Clone, Debug)]
pub struct ImageEmbedding<B: Backend> {
    /// Query outputs, `[B, Q, D]`.
    pub raw: Tensor<B, 3>,
    /// In the contrastive space, unit length, `[B, Q, embed]`; the similarity to a text is the largest over `Q`.
    pub projected: Option<Tensor<B, 3>>,
}

/// Embedding of texts.
#[derive(Clone, Debug)]
pub struct TextEmbedding<B: Backend> {
    /// Every token, `[B, T, D]`.
    pub raw: Tensor<B, 3>,
    /// Every token in the contrastive space, unit length, `[B, T, embed]`; token 0 (`[CLS]`) stands for the text.
    pub projected: Option<Tensor<B, 3>>,
}

impl<B: Kernels> Blip2<B> {
    /// Query outputs of the pictures and their projections.
    pub fn embed_images(&self, image: &ImageFeatures<B>, ctx: &Context) -> ImageEmbedding<B> {
        let raw = self.bridge.query_pass(&image.keys, image.batch(), ctx).hidden;
        let projected = self
            .bridge
            .vision_projection
            .as_ref()
            .map(|p| p.forward(raw.clone()));
        if let Some(projected) = &projected {
            ctx.record("projected.image", projected);
        }
        ImageEmbedding { raw, projected }
    }

    /// Text outputs and their projections; independent of how far the batch is padded.
    pub fn embed_texts(&self, text: &TokenBatch, ctx: &Context) -> Result<TextEmbedding<B>, Blip2Error> {
        self.check_text(text)?;
        let ids = ids_tensor(&text.ids, &self.device);
        let raw = ctx.scoped("text.qformer", || self.bridge.qformer.text(ids, &text.mask, ctx));
        ctx.record("text.last_hidden_state", &raw);
        let projected = self
            .bridge
            .text_projection
            .as_ref()
            .map(|p| p.forward(raw.clone()));
        if let Some(projected) = &projected {
            ctx.record("projected.text", projected);
        }
        Ok(TextEmbedding { raw, projected })
    }

    /// Query outputs after seeing picture and text, `[B, Q, D]`, neither projected nor normalised.
    pub fn embed_multimodal(
        &self,
        image: &ImageFeatures<B>,
        text: &TokenBatch,
        ctx: &Context,
    ) -> Result<Tensor<B, 3>, Blip2Error> {
        self.check_text(text)?;
        self.check_batch(image, text)?;
        let ids = ids_tensor(&text.ids, &self.device);
        Ok(ctx.scoped("multimodal.qformer", || {
            self.bridge.multimodal_queries(ids, &text.mask, &image.keys, ctx)
        }))
    }

    /// Text can be given at all, and fits the position table.
    pub(super) fn check_text(&self, text: &TokenBatch) -> Result<(), Blip2Error> {
        if !self.bridge.qformer.has_text_branch() {
            return Err(Blip2Error::MissingPart {
                part: "text branch in its Q-Former",
            });
        }
        let limit = self.config.qformer_config.max_position_embeddings;
        if text.mask.len() > limit {
            return Err(Blip2Error::TextTooLong {
                tokens: text.mask.len(),
                limit,
            });
        }
        Ok(())
    }

    pub(super) fn check_batch(&self, image: &ImageFeatures<B>, text: &TokenBatch) -> Result<(), Blip2Error> {
        if text.ids.len() != image.batch() {
            return Err(Blip2Error::BatchMismatch {
                texts: text.ids.len(),
                images: image.batch(),
            });
        }
        Ok(())
    }
}
