//! Soft tokens in front of a language model (paper section 3.2; `blip2_opt.py`, `blip2_t5.py`,
//! `Blip2ForConditionalGeneration`).
//!
//! The 32 projected queries stand in front of everything, the language model's BOS and any left padding
//! included. They are passed as embeddings, so no `<image>` placeholder id is ever needed and checkpoints of
//! the old and the new layout behave alike.

use burn::tensor::{Tensor, backend::Backend};

use super::{Blip2, Blip2Error, ImageFeatures};
use crate::language::{AnyLanguageModel, LanguageModel, Prompt};
use crate::nn::kernels::as_dtype;
use crate::nn::mask::{ids_tensor, index_tensor};
use crate::nn::{Context, Kernels, PadMask};

/// Token ids of a batch with padding on either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBatch {
    /// `B` rows of equal length.
    pub ids: Vec<Vec<i64>>,
    /// Which of them are real.
    pub mask: PadMask,
}

impl TokenBatch {
    /// Pads rows on the left with `pad`, as decoder-only models need.
    pub fn left_padded(rows: &[Vec<i64>], pad: i64) -> Self {
        Self::padded(rows, pad, |fill, row| [fill, row].concat())
    }

    /// Pads rows on the right with `pad`.
    pub fn right_padded(rows: &[Vec<i64>], pad: i64) -> Self {
        Self::padded(rows, pad, |fill, row| [row, fill].concat())
    }

    fn padded(rows: &[Vec<i64>], pad: i64, join: impl Fn(&[i64], &[i64]) -> Vec<i64>) -> Self {
        let len = rows.iter().map(Vec::len).max().unwrap_or(0);
        // Padding is told by position, not by id: a real token may equal the padding id.
        const REAL: i64 = 1;
        let fill = |row: &Vec<i64>, value: i64| vec![value; len - row.len()];
        let ids = rows.iter().map(|row| join(&fill(row, pad), row)).collect();
        let mask = rows
            .iter()
            .map(|row| {
                join(&fill(row, 0), &vec![REAL; row.len()])
                    .iter()
                    .map(|&m| m == REAL)
                    .collect()
            })
            .collect();
        Self {
            ids,
            mask: PadMask::new(mask),
        }
    }
}

impl<B: Kernels> Blip2<B> {
    /// The language model, or an error that says the checkpoint has none.
    pub fn language(&self) -> Result<&AnyLanguageModel<B>, Blip2Error> {
        self.language.as_ref().ok_or(Blip2Error::MissingPart {
            part: "language model",
        })
    }

    /// Images -> soft tokens `[B, Q, d_llm]`.
    pub fn soft_tokens(&self, image: &ImageFeatures<B>, ctx: &Context) -> Result<Tensor<B, 3>, Blip2Error> {
        let pass = self.bridge.query_pass(&image.keys, image.batch(), ctx);
        self.project_queries(pass.hidden, ctx)
    }

    /// Query outputs `[B, Q, D]` (of [`embed_images`](Self::embed_images), or kept from an earlier run) -> soft
    /// tokens `[B, Q, d_llm]`.
    pub fn project_queries(&self, queries: Tensor<B, 3>, ctx: &Context) -> Result<Tensor<B, 3>, Blip2Error> {
        let projection = self.bridge.language_projection.as_ref();
        let projection = projection.ok_or(Blip2Error::MissingPart {
            part: "projection into a language model",
        })?;
        let soft = projection.forward(queries);
        ctx.record("language_projection", &soft);
        Ok(soft)
    }

    /// `[soft tokens ; text]`: soft tokens `[B, Q, d]` and one row of ids per picture.
    pub fn prompt(&self, soft: Tensor<B, 3>, text: &TokenBatch) -> Result<Prompt<B>, Blip2Error> {
        let language = self.language()?;
        let [batch, queries, _] = soft.dims();
        if text.ids.len() != batch {
            return Err(Blip2Error::BatchMismatch {
                texts: text.ids.len(),
                images: batch,
            });
        }
        let mask = PadMask::ones(batch, queries);
        if text.mask.is_empty() {
            // soft tokens come in the dtype of the bridge; the language model computes in that of its table
            let dtype = language.embed(ids_tensor(&[vec![0]], &self.device)).dtype();
            let embeds = as_dtype(soft, dtype);
            return Ok(Prompt { embeds, mask });
        }
        let words = language.embed(ids_tensor(&text.ids, &self.device));
        let soft = as_dtype(soft, words.dtype());
        Ok(Prompt {
            embeds: Tensor::cat(vec![soft, words], 1),
            mask: mask.concat(&text.mask),
        })
    }
}

/// Rows `index[i]` of a prompt, in that order: one picture, several questions.
pub fn select_rows<B: Backend>(soft: Tensor<B, 3>, index: &[usize]) -> Tensor<B, 3> {
    let rows = index_tensor(index, &soft.device());
    soft.select(0, rows)
}
