//! Stage 2: the queries become a visual prompt for a frozen language model (paper section 3.2). Also
//! caption and question-answering fine-tuning.

use std::marker::PhantomData;

use blip2_model::language::{LanguageModel, Prompt};
use blip2_model::nn::kernels::as_dtype;
use blip2_model::nn::mask::ids_tensor;
use blip2_model::nn::{Context, Kernels, PadMask};
use blip2_model::qformer::Bridge;
use burn::module::Module;
use burn::tensor::{Tensor, backend::AutodiffBackend};
use serde::{Deserialize, Serialize};

use super::graph::Recording;
use super::{Frozen, LmBatch, Stage, StageError, StepContext, StepOutput, Trainable};
use crate::losses;

/// Options of stage 2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stage2Config {
    /// Whether the frozen language model's dropout is active while training, as it is in LAVIS.
    pub llm_dropout: bool,
}

impl Default for Stage2Config {
    fn default() -> Self {
        Self { llm_dropout: true }
    }
}

/// Stage 2 over a trainable module `M` and a frozen language model `L`.
pub struct Stage2<B: AutodiffBackend, M: Trainable<B>, L> {
    encoder: M::Encoder,
    llm: Frozen<L>,
    config: Stage2Config,
    device: B::Device,
    module: PhantomData<M>,
}

impl<B: AutodiffBackend, M: Trainable<B>, L> Stage2<B, M, L> {
    /// `encoder` is the frozen encoder, or `()` when it is part of `M`.
    pub fn new(encoder: M::Encoder, llm: Frozen<L>, config: Stage2Config, device: B::Device) -> Self {
        Self {
            encoder,
            llm,
            config,
            device,
            module: PhantomData,
        }
    }
}

impl<B, M, L> Stage<B> for Stage2<B, M, L>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
    M: Trainable<B>,
    L: LanguageModel<B> + Module<B>,
{
    type Module = M;
    type Batch = LmBatch;

    fn target_count(&self, batch: &LmBatch) -> usize {
        losses::target_count(&batch.labels)
    }

    fn step(
        &self,
        module: &M,
        batch: &LmBatch,
        step: &StepContext<'_, B>,
    ) -> Result<StepOutput<B>, StageError> {
        let recording = Recording::start();
        let ctx = step.forward_context();
        let bridge = module.bridge();
        let encoded = module.encode(&self.encoder, &batch.images, &self.device, &ctx)?;
        let border = encoded.local();
        let tokens = self.soft_tokens(&bridge, border.tokens(), batch, &ctx)?;
        let eval = Context::eval();
        let llm_ctx = if self.config.llm_dropout { &ctx } else { &eval };
        let prompt = self.prompt(tokens, batch);
        let target = &batch.target;
        let adapted = module.language_model(&*self.llm);
        let llm = adapted.as_ref().unwrap_or(&self.llm);
        let logits = llm.teacher_forced(prompt, &target.ids, &target.mask, llm_ctx);
        let loss = losses::lm(logits, &batch.labels, step.normaliser);
        border.finish(recording, module, vec![("lm", loss)], step)
    }
}

impl<B, M, L> Stage2<B, M, L>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
    M: Trainable<B>,
    L: LanguageModel<B> + Module<B>,
{
    /// Image tokens `[B, N, C]` -> queries in the language model's space, `[B, Q, d_llm]`.
    fn soft_tokens(
        &self,
        bridge: &Bridge<B>,
        tokens: Tensor<B, 3>,
        batch: &LmBatch,
        ctx: &Context,
    ) -> Result<Tensor<B, 3>, StageError> {
        let projection = bridge
            .language_projection
            .as_ref()
            .ok_or_else(|| missing("language projection"))?;
        let embeds = bridge.image_embeds(tokens, ctx);
        let count = embeds.dims()[0];
        let keys = bridge.qformer.image_keys(embeds);
        let hidden = match &batch.qformer_text {
            None => bridge.query_pass(&keys, count, ctx).hidden,
            Some(_) if !bridge.qformer.has_text_branch() => {
                return Err(missing("text branch for the Q-Former's text"));
            }
            Some(text) => {
                let text = text.trimmed();
                let ids = ids_tensor(&text.ids, &self.device);
                bridge.multimodal_queries(ids, &text.mask, &keys, ctx)
            }
        };
        Ok(projection.forward(hidden))
    }

    /// `[queries ; prompt text]`.
    fn prompt(&self, tokens: Tensor<B, 3>, batch: &LmBatch) -> Prompt<B> {
        let [count, length, _] = tokens.dims();
        let mask = PadMask::ones(count, length);
        let Some(text) = &batch.prompt else {
            let probe = self.llm.embed(ids_tensor(&[vec![0]], &self.device));
            return Prompt {
                embeds: as_dtype(tokens, probe.dtype()),
                mask,
            };
        };
        let words = self.llm.embed(ids_tensor(&text.ids, &self.device));
        Prompt {
            embeds: Tensor::cat(vec![as_dtype(tokens, words.dtype()), words], 1),
            mask: mask.concat(&text.mask),
        }
    }
}

fn missing(part: &'static str) -> StageError {
    StageError::MissingPart {
        stage: "stage 2",
        part,
    }
}
