//! Image-text matching and contrastive similarity (`blip2_image_text_matching`, `Blip2ForImageTextRetrieval`).

use burn::tensor::Tensor;
use serde::Serialize;

use super::conditional::TokenBatch;
use super::{Blip2, Blip2Error, ImageFeatures};
use crate::nn::mask::ids_tensor;
use crate::nn::{Activation, Context, Kernels};

/// Matching score of one pair.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ItmScore {
    /// `[not matched, matched]`, before the softmax, mean over the queries.
    pub logits: [f32; 2],
    /// Softmax of the logits, class "matched".
    pub probability: f32,
}

/// Contrastive similarity of one pair.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ItcScore {
    /// Largest cosine over the queries, in [-1, 1]; no temperature.
    pub cosine: f32,
}

impl ItmScore {
    fn new(logits: [f32; 2]) -> Self {
        Self {
            logits,
            probability: 1.0 / (1.0 + (logits[0] - logits[1]).exp()),
        }
    }
}

impl<B: Kernels> Blip2<B> {
    /// Matching scores, picture `i` with text `i`; independent of how far the texts are padded.
    pub fn itm(
        &self,
        image: &ImageFeatures<B>,
        text: &TokenBatch,
        ctx: &Context,
    ) -> Result<Vec<ItmScore>, Blip2Error> {
        self.check_text(text)?;
        self.check_batch(image, text)?;
        let ids = ids_tensor(&text.ids, &self.device);
        let logits =
            self.bridge
                .itm_logits(ids, &text.mask, &image.keys, ctx)
                .ok_or(Blip2Error::MissingPart {
                    part: "matching head",
                })?;
        ctx.record("itm.logits", &logits);
        let flat = logits
            .into_data()
            .convert::<f32>()
            .to_vec::<f32>()
            .unwrap_or_default();
        if flat.iter().any(|x| !x.is_finite()) {
            return Err(Blip2Error::NonFinite {
                part: "the matching head",
            });
        }
        Ok(flat
            .chunks_exact(2)
            .map(|pair| ItmScore::new([pair[0], pair[1]]))
            .collect())
    }

    /// Cosines of every picture with every text: `[images][texts]`.
    pub fn itc(
        &self,
        image: &ImageFeatures<B>,
        text: &TokenBatch,
        ctx: &Context,
    ) -> Result<Vec<Vec<ItcScore>>, Blip2Error> {
        let missing = Blip2Error::MissingPart {
            part: "contrastive projections",
        };
        let (Some(images), Some(texts)) = (
            self.embed_images(image, ctx).projected,
            self.embed_texts(text, ctx)?.projected,
        ) else {
            return Err(missing);
        };
        let sims = contrastive_similarity(images, first_token(texts));
        let [rows, columns] = sims.dims();
        let flat = sims
            .into_data()
            .convert::<f32>()
            .to_vec::<f32>()
            .unwrap_or_default();
        debug_assert_eq!(flat.len(), rows * columns);
        Ok(flat
            .chunks_exact(columns)
            .map(|row| row.iter().map(|&cosine| ItcScore { cosine }).collect())
            .collect())
    }
}

/// `[CLS]` of every text: `[B, T, E] -> [B, E]`.
pub fn first_token<B: Kernels>(text: Tensor<B, 3>) -> Tensor<B, 2> {
    text.narrow(1, 0, 1).squeeze_dim(1)
}

/// `max_q images[i, q] . texts[t]`: `[I, Q, E]` and `[T, E]` -> `[I, T]`.
pub fn contrastive_similarity<B: Kernels>(images: Tensor<B, 3>, texts: Tensor<B, 2>) -> Tensor<B, 2> {
    let [count, queries, width] = images.dims();
    let columns = texts.dims()[0];
    let sims = B::linear_act(
        images.reshape([count * queries, width]),
        texts,
        None,
        Activation::Identity,
    );
    sims.reshape([count, queries, columns]).max_dim(1).squeeze_dim(1)
}
