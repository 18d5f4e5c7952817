//! Stage 1: the Q-Former learns to represent pictures from image-text pairs by contrast, matching and
//! grounded generation (paper section 3.1). Also retrieval fine-tuning, where pictures have identities.

use std::marker::PhantomData;

use blip2_model::nn::mask::ids_tensor;
use blip2_model::nn::mask::index_tensor;
use blip2_model::nn::{Context, Kernels, PadMask};
use blip2_model::qformer::{Bridge, ImageKeys};
use burn::tensor::{Tensor, backend::AutodiffBackend};
use serde::{Deserialize, Serialize};

use super::encoded::Border;
use super::graph::Recording;
use super::{LossParts, PairBatch, Stage, StageError, StepContext, StepOutput, TextBatch, Trainable};
use crate::distributed::host;
use crate::losses::{
    self, HardNegatives, ItcTargets, itc, itg, itg::decoder_ids, itg::next_token_labels, itm,
    sample_negatives, similarities,
};

/// Options of stage 1; defaults are the paper's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stage1Config {
    /// Label smoothing of the contrastive and the generation loss.
    pub label_smoothing: f64,
    /// Weights of the three losses. Matching and generation are not computed at weight 0, which saves most of a
    /// step.
    pub itc_weight: f64,
    /// See `itc_weight`.
    pub itm_weight: f64,
    /// See `itc_weight`.
    pub itg_weight: f64,
    /// Pairs with the same picture are positives of each other and never negatives (retrieval fine-tuning).
    pub image_ids: bool,
    /// Pairs with the same caption are positives of each other and never negatives (captions that repeat).
    pub caption_ids: bool,
    /// Only the text branch and the heads learn; what the queries pass through stays as it is. After stage 2 this
    /// lets one checkpoint retrieve and match again without changing a caption.
    pub text_only: bool,
    /// Floor of the contrast's temperature. The paper has none; a small data set is learnt by heart with a
    /// temperature that goes on falling.
    pub min_temp: f64,
    /// `[DEC]`, the beginning of generated text.
    pub dec_token: i64,
    /// Padding id.
    pub pad_token: i64,
}

impl Default for Stage1Config {
    fn default() -> Self {
        Self {
            label_smoothing: 0.1,
            itc_weight: 1.0,
            itm_weight: 1.0,
            itg_weight: 1.0,
            image_ids: false,
            caption_ids: false,
            text_only: false,
            min_temp: 0.0,
            dec_token: 30522,
            pad_token: 0,
        }
    }
}

/// Stage 1 over a trainable module `M`: the bridge alone, or with an unfrozen encoder.
pub struct Stage1<B: AutodiffBackend, M: Trainable<B>> {
    encoder: M::Encoder,
    config: Stage1Config,
    device: B::Device,
    injected: Option<HardNegatives>,
    module: PhantomData<M>,
}

/// Whether queries that go to a language model never meet this parameter.
fn beside_queries(name: &str) -> bool {
    [
        "embeddings.",
        "ffn_text.",
        "vision_projection.",
        "text_projection.",
        "itm_head.",
        "lm_head.",
        "temp",
    ]
    .iter()
    .any(|part| name.starts_with(part) || name.contains(&format!(".{part}")))
}

/// A number for a caption's tokens: FNV-1a, the same on every process.
fn caption_id(tokens: &[i64]) -> i64 {
    let hash = tokens.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &token| {
        (hash ^ token as u64).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash as i64
}

/// Identities of this process and of all.
type ImageIds = (Vec<i64>, Vec<i64>);

/// What the three losses share within a step.
struct Parts<'a, B: AutodiffBackend> {
    bridge: &'a Bridge<B>,
    border: &'a Border<B>,
    keys: ImageKeys<B>,
    ctx: &'a Context,
    step: &'a StepContext<'a, B>,
    batch: usize,
    global: usize,
    offset: usize,
}

impl<B: AutodiffBackend, M: Trainable<B>> Stage1<B, M> {
    /// `encoder` is the frozen encoder, or `()` when it is part of `M`.
    pub fn new(encoder: M::Encoder, config: Stage1Config, device: B::Device) -> Self {
        Self {
            encoder,
            config,
            device,
            injected: None,
            module: PhantomData,
        }
    }

    /// Uses these negatives in every step instead of drawing them, to compare with a reference.
    pub fn with_negatives(mut self, negatives: HardNegatives) -> Self {
        self.injected = Some(negatives);
        self
    }
}

impl<B, M> Stage<B> for Stage1<B, M>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
    M: Trainable<B>,
{
    type Module = M;
    type Batch = PairBatch;

    fn target_count(&self, batch: &PairBatch) -> usize {
        losses::target_count(&next_token_labels(&batch.text.ids, self.config.pad_token))
    }

    fn step(
        &self,
        module: &M,
        batch: &PairBatch,
        step: &StepContext<'_, B>,
    ) -> Result<StepOutput<B>, StageError> {
        let recording = Recording::start();
        let ctx = step.forward_context();
        let bridge = module.bridge();
        let encoded = module.encode(&self.encoder, &batch.images, &self.device, &ctx)?;
        let border = encoded.global(step.collective)?;
        let losses = self.losses(&bridge, &border, batch, &ctx, step)?;
        let mut output = border.finish(recording, module, losses, step)?;
        if self.config.text_only {
            output.gradients.retain(|name, _| beside_queries(name));
        }
        Ok(output)
    }
}

impl<B, M> Stage1<B, M>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
    M: Trainable<B>,
{
    fn losses(
        &self,
        bridge: &Bridge<B>,
        border: &Border<B>,
        batch: &PairBatch,
        ctx: &Context,
        step: &StepContext<'_, B>,
    ) -> Result<LossParts<B>, StageError> {
        let ids = self.identities(batch, step)?;
        let targets = match &ids {
            Some((local, global)) => ItcTargets::ImageIds { local, global },
            None => ItcTargets::Diagonal,
        };
        let embeds = bridge.image_embeds(border.tokens(), ctx);
        let count = embeds.dims()[0];
        let parts = Parts {
            bridge,
            border,
            keys: bridge.qformer.image_keys(embeds),
            ctx,
            step,
            batch: count,
            global: count * step.collective.world_size(),
            offset: count * step.collective.rank(),
        };
        let pass = bridge.query_pass(&parts.keys, count, ctx);

        let sims = self.similarities(&parts, pass.hidden.clone(), &batch.text)?;
        let contrast = itc(&sims, targets, parts.offset, self.config.label_smoothing);
        let mut losses = vec![("itc", contrast * self.config.itc_weight)];
        if self.config.itm_weight > 0.0 {
            let negatives = match &self.injected {
                Some(negatives) => negatives.clone(),
                None => {
                    let on_host = |t: &Tensor<B, 2>| host(t.clone().inner().reshape([-1]));
                    let rng = |row: usize| step.rng("negatives", row as u64);
                    let (i2t, t2i) = (on_host(&sims.i2t), on_host(&sims.t2i));
                    sample_negatives(&i2t, &t2i, targets, parts.offset, parts.global, rng)
                }
            };
            let matching = self.matching(&parts, &batch.text, &negatives)?;
            losses.push(("itm", matching * self.config.itm_weight));
        }
        if self.config.itg_weight > 0.0 {
            let generation = self.generation(&parts, &batch.text, &pass.cache)?;
            losses.push(("itg", generation * self.config.itg_weight));
        }
        Ok(losses)
    }

    /// Local and global identities of what pairs show, if they matter.
    fn identities(
        &self,
        batch: &PairBatch,
        step: &StepContext<'_, B>,
    ) -> Result<Option<ImageIds>, StageError> {
        let local = if self.config.caption_ids {
            batch.text.ids.iter().map(|row| caption_id(row)).collect()
        } else if self.config.image_ids {
            batch.image_ids.clone().ok_or(StageError::MissingInput {
                what: "image ids",
                why: "`image_ids = true` asks for",
            })?
        } else {
            return Ok(None);
        };
        let global = step.collective.all_gather_ids(&local, &self.device)?;
        Ok(Some((local, global)))
    }

    /// `hidden [B, Q, D]` of the queries against the text's first token, over all processes.
    fn similarities(
        &self,
        parts: &Parts<'_, B>,
        hidden: Tensor<B, 3>,
        text: &TextBatch,
    ) -> Result<losses::Similarities<B>, StageError> {
        let bridge = parts.bridge;
        let (Some(vision), Some(language), Some(temp)) =
            (&bridge.vision_projection, &bridge.text_projection, &bridge.temp)
        else {
            return Err(missing("contrastive projections and temperature"));
        };
        if !bridge.qformer.has_text_branch() {
            return Err(missing("text branch"));
        }
        let text = text.trimmed();
        let ids = ids_tensor(&text.ids, &self.device);
        let words = bridge.qformer.text(ids, &text.mask, parts.ctx);
        let first = language.forward(words.narrow(1, 0, 1)); // [B, 1, E]
        let [batch, _, embed] = first.dims();
        let text = first.reshape([batch, embed]);
        let image = vision.forward(hidden); // [B, Q, E]
        let queries = image.dims()[1];

        let gather = |rows: Tensor<B::InnerBackend, 2>| parts.step.collective.all_gather_rows(rows);
        let all_image = gather(image.clone().inner().reshape([batch, queries * embed]))?;
        let all_text = gather(text.clone().inner())?;
        let all_image = all_image.reshape([parts.global, queries, embed]);
        Ok(similarities(
            image,
            text,
            Tensor::from_inner(all_image),
            Tensor::from_inner(all_text),
            temp.val().clamp_min(self.config.min_temp),
        ))
    }

    /// Pairs, then negative images, then negative texts, in one pass.
    fn matching(
        &self,
        parts: &Parts<'_, B>,
        text: &TextBatch,
        negatives: &HardNegatives,
    ) -> Result<Tensor<B, 1>, StageError> {
        let (images, texts) = (flat(&negatives.images), flat(&negatives.texts));
        let all_text = self.all_text(parts, text)?;
        let own = parts.offset..parts.offset + parts.batch;
        let text_rows: Vec<usize> = own
            .clone()
            .chain(images.iter().map(|&(b, _)| parts.offset + b))
            .chain(texts.iter().map(|&(_, n)| n))
            .collect();
        let chosen = all_text.select(&text_rows).trimmed();
        let keys = self.image_keys(parts, &images, &texts);
        let ids = ids_tensor(&chosen.ids, &self.device);
        let logits = parts
            .bridge
            .itm_logits(ids, &chosen.mask, &keys, parts.ctx)
            .ok_or_else(|| missing("matching head"))?;
        Ok(itm(logits, parts.batch))
    }

    /// Keys of `[own ; negative images ; own again for the negative texts]`.
    fn image_keys(
        &self,
        parts: &Parts<'_, B>,
        images: &[(usize, usize)],
        texts: &[(usize, usize)],
    ) -> ImageKeys<B> {
        let own: Vec<usize> = (0..parts.batch).collect();
        let again: Vec<usize> = texts.iter().map(|&(b, _)| b).collect();
        let negative: Vec<usize> = images.iter().map(|&(_, n)| n).collect();
        if parts.global == parts.batch {
            return parts.keys.select(&[own, negative, again].concat());
        }
        // pictures of other processes: only their tokens are here, so they are projected now
        let mut sets = vec![parts.keys.clone()];
        if !negative.is_empty() {
            let tokens = parts
                .border
                .all_tokens()
                .select(0, index_tensor(&negative, &self.device));
            let embeds = parts.bridge.image_embeds(tokens, parts.ctx);
            sets.push(parts.bridge.qformer.image_keys(embeds));
        }
        if !again.is_empty() {
            sets.push(parts.keys.select(&again));
        }
        ImageKeys::concat(&sets)
    }

    /// Texts of all processes.
    fn all_text(&self, parts: &Parts<'_, B>, text: &TextBatch) -> Result<TextBatch, StageError> {
        if parts.global == parts.batch {
            return Ok(text.clone());
        }
        let len = text.mask.len();
        let gather = |values: Vec<i64>| {
            let all = parts.step.collective.all_gather_ids(&values, &self.device);
            all.map(|all| all.chunks(len).map(<[i64]>::to_vec).collect::<Vec<_>>())
        };
        let ids = gather(text.ids.concat())?;
        let mask = gather(text.mask.rows().iter().flatten().map(|&m| i64::from(m)).collect())?;
        let mask = mask
            .iter()
            .map(|row| row.iter().map(|&m| m != 0).collect())
            .collect();
        Ok(TextBatch {
            ids,
            mask: PadMask::new(mask),
        })
    }

    /// Text after the queries that the contrastive pass has cached.
    fn generation(
        &self,
        parts: &Parts<'_, B>,
        text: &TextBatch,
        cache: &[(Tensor<B, 4>, Tensor<B, 4>)],
    ) -> Result<Tensor<B, 1>, StageError> {
        let qformer = &parts.bridge.qformer;
        let (Some(head), Some(tables)) = (&parts.bridge.lm_head, &qformer.embeddings) else {
            return Err(missing("language-model head"));
        };
        let text = text.trimmed();
        let ids = decoder_ids(&text.ids, self.config.dec_token);
        let labels = next_token_labels(&text.ids, self.config.pad_token);
        let ids = ids_tensor(&ids, &self.device);
        let hidden = qformer.grounded(ids, &text.mask, cache, parts.ctx);
        let output = |rows: Tensor<B, 2>| {
            let logits = head.forward(rows.unsqueeze_dim(0), &tables.word_embeddings);
            logits.squeeze_dim(0)
        };
        let smoothing = self.config.label_smoothing;
        Ok(itg(hidden, &labels, smoothing, parts.step.normaliser, output))
    }
}

/// Row and negative, for rows that have one.
fn flat(negatives: &[Option<usize>]) -> Vec<(usize, usize)> {
    let rows = negatives.iter().enumerate();
    rows.filter_map(|(b, n)| n.map(|n| (b, n))).collect()
}

fn missing(part: &'static str) -> StageError {
    StageError::MissingPart {
        stage: "stage 1",
        part,
    }
}
