//! Matching scores of one picture with many texts, from features that are encoded once.

use std::collections::HashMap;

use blip2_model::blip2::{ImageFeatures, ItmScore};
use blip2_model::nn::{Context, Kernels};
use blip2_model::session::Session;
use burn::tensor::{Tensor, TensorData};

use crate::eval::run::RunError;
use crate::eval::run::folder::Share;
use crate::eval::run::meter::Meter;

/// Encoded pictures that are kept for the second part, bytes; others are encoded again.
const FEATURE_MEMORY: usize = 4 << 30;

/// Matching scores of one picture with texts, `batch` at a time.
pub(crate) fn match_texts<B: Kernels>(
    session: &Session<B>,
    one: &ImageFeatures<B>,
    texts: &[String],
    max_length: usize,
    batch: usize,
    meter: &Meter,
) -> Result<Vec<ItmScore>, RunError> {
    let mut scores = Vec::with_capacity(texts.len());
    // texts of like length together: less padding
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|&i| texts[i].len());
    for chunk in order.chunks(batch) {
        let words: Vec<String> = chunk.iter().map(|&i| texts[i].clone()).collect();
        let tokens = session.tokenize_texts(&words, Some(max_length))?;
        let features = one.select(&vec![0; chunk.len()]);
        let found = session.model.itm(&features, &tokens, &Context::eval())?;
        scores.extend(chunk.iter().copied().zip(found));
        meter.add(chunk.len());
    }
    scores.sort_by_key(|(i, _)| *i);
    Ok(scores.into_iter().map(|(_, score)| score).collect())
}

/// Encoded pictures in memory, up to [`FEATURE_MEMORY`].
#[derive(Default)]
pub(super) struct Kept {
    of: HashMap<usize, TensorData>,
    bytes: usize,
}

impl Kept {
    /// Keeps those of this process.
    pub fn add<B: Kernels>(&mut self, at: &[usize], features: &ImageFeatures<B>, share: &Share) {
        for (i, &at) in at.iter().enumerate() {
            if !share.has(at) || self.bytes >= FEATURE_MEMORY {
                continue;
            }
            let data = features.embeds.clone().narrow(0, i, 1).into_data();
            self.bytes += data.bytes.len();
            self.of.insert(at, data);
        }
    }

    /// Those of picture `at`, with keys.
    pub fn features<B: Kernels>(&self, at: usize, session: &Session<B>) -> Option<ImageFeatures<B>> {
        let data = self.of.get(&at)?.clone();
        let dtype = data.dtype;
        let embeds = Tensor::from_data(data, (&session.model.device, dtype)); // [1, N, C], after the final norm
        let keys = session.model.bridge.qformer.image_keys(embeds.clone());
        Some(ImageFeatures { embeds, keys })
    }
}
