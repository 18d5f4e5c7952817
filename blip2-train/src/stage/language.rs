//! A language model's own training on plain text: `-log p(token | tokens before it)`, everything trains. For
//! models small enough to be made at home, which BLIP-2 then freezes.

use blip2_model::checkpoint::Keys;
use blip2_model::language::{AnyLanguageModel, Architecture, LanguageModel, Prompt};
use blip2_model::nn::mask::ids_tensor;
use blip2_model::nn::{Kernels, PadMask};
use burn::tensor::backend::AutodiffBackend;

use super::graph::Recording;
use super::{PlainBatch, Stage, StageError, StepContext, StepOutput, TextBatch, Trained};
use crate::losses::{self, IGNORE};
use crate::params::{self, Named};

impl<B: AutodiffBackend> Trained<B> for AnyLanguageModel<B> {
    fn file_name(&self, keys: &Keys, name: &str) -> Option<String> {
        keys.name(&format!("language.{name}"))
    }
}

/// Next-token prediction with a decoder-only model.
#[derive(Clone, Debug)]
pub struct LanguageModelling<B: AutodiffBackend> {
    device: B::Device,
}

impl<B: AutodiffBackend> LanguageModelling<B> {
    /// On a device.
    pub fn new(device: B::Device) -> Self {
        Self { device }
    }
}

/// Everything after the first token: `[B, T - 1]` ids, their mask, and labels.
fn targets(text: &TextBatch) -> (Vec<Vec<i64>>, PadMask, Vec<Vec<i64>>) {
    let ids: Vec<Vec<i64>> = text.ids.iter().map(|row| row[1..].to_vec()).collect();
    let mask: Vec<Vec<bool>> = text.mask.rows().iter().map(|row| row[1..].to_vec()).collect();
    let label = |(&id, &real): (&i64, &bool)| if real { id } else { IGNORE };
    let labels = ids
        .iter()
        .zip(&mask)
        .map(|(ids, mask)| ids.iter().zip(mask).map(label).collect());
    let labels = labels.collect();
    (ids, PadMask::new(mask), labels)
}

impl<B> Stage<B> for LanguageModelling<B>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    type Module = AnyLanguageModel<B>;
    type Batch = PlainBatch;

    fn target_count(&self, batch: &PlainBatch) -> usize {
        losses::target_count(&targets(&batch.text).2)
    }

    fn step(
        &self,
        module: &AnyLanguageModel<B>,
        batch: &PlainBatch,
        step: &StepContext<'_, B>,
    ) -> Result<StepOutput<B>, StageError> {
        if module.architecture() != Architecture::DecoderOnly {
            return Err(StageError::MissingPart {
                stage: "language modelling",
                part: "decoder-only language model",
            });
        }
        let recording = Recording::start();
        let ctx = step.forward_context();
        let first: Vec<Vec<i64>> = batch.text.ids.iter().map(|row| vec![row[0]]).collect();
        let prompt = Prompt {
            embeds: module.embed(ids_tensor(&first, &self.device)),
            mask: PadMask::ones(first.len(), 1),
        };
        let (ids, mask, labels) = targets(&batch.text);
        let logits = module.teacher_forced(prompt, &ids, &mask, &ctx);
        let loss = losses::lm(logits, &labels, step.normaliser);
        let mut gradients = Named::new();
        if step.train {
            let mut grads = recording.backward(loss.clone() * step.loss_scale);
            gradients = params::gradients(module, &mut grads);
        }
        Ok(StepOutput {
            losses: vec![("lm", loss.inner())],
            gradients,
        })
    }
}

#[cfg(test)]
mod tests {
    use blip2_model::backend::Flex;
    use blip2_model::language::{LanguageConfig, OptConfig};
    use burn::backend::Autodiff;
    use burn::tensor::activation::log_softmax;

    use super::*;
    use crate::distributed::host;
    use crate::initial::initialise;
    use crate::recipe::drawn::language_rule;
    use crate::stage::testing::context;

    type Ad = Autodiff<Flex>;

    fn config() -> LanguageConfig {
        LanguageConfig::Opt(OptConfig {
            vocab_size: 20,
            hidden_size: 8,
            num_hidden_layers: 2,
            ffn_dim: 12,
            num_attention_heads: 2,
            max_position_embeddings: 16,
            dropout: 0.0,
            ..OptConfig::default()
        })
    }

    fn model() -> AnyLanguageModel<Ad> {
        let config = config();
        initialise(config.init(&Default::default()).unwrap(), 3, |info, _| {
            language_rule(&config, info)
        })
    }

    fn batch() -> PlainBatch {
        PlainBatch {
            keys: vec!["a".into(), "b".into()],
            text: TextBatch {
                ids: vec![vec![2, 5, 6, 7], vec![2, 9, 1, 1]],
                mask: PadMask::new(vec![vec![true; 4], vec![true, true, false, false]]),
            },
        }
    }

    /// The loss is the mean of `-log p` over the four tokens after the beginnings, computed here from prefill and
    /// single steps, that is by another path through the model.
    #[test]
    fn the_loss_is_that_of_decoding_token_by_token() {
        let (model, batch) = (model(), batch());
        let stage = LanguageModelling::<Ad>::new(Default::default());
        assert_eq!(stage.target_count(&batch), 4);
        let out = stage.step(&model, &batch, &context(4.0)).unwrap();
        let got = host(out.losses[0].1.clone())[0];

        let eval = blip2_model::nn::Context::eval();
        let mut want = 0.0;
        for row in [&[2i64, 5, 6, 7][..], &[2, 9]] {
            let embeds = model.embed(ids_tensor(&[vec![row[0]]], &Default::default()));
            let mask = PadMask::ones(1, 1);
            let (mut state, mut logits) = model.prefill(Prompt { embeds, mask }, 8, &eval);
            for &token in &row[1..] {
                let log_p = host(log_softmax(logits, 1).inner().reshape([-1]));
                want -= log_p[token as usize] / 4.0;
                logits = model.step(&[token], &mut state, &eval);
            }
        }
        // f32 sums of a dozen logits near 1, in two orders
        assert!((got - want).abs() < 1e-5, "{got} and {want}");
        let trained: Vec<_> = params::list(&model).into_iter().map(|info| info.name).collect();
        let mut got: Vec<_> = out.gradients.keys().cloned().collect();
        got.sort();
        let mut trained = trained;
        trained.sort();
        assert_eq!(got, trained);
    }
}
