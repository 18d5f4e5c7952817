//! Tiny models for the trainer's tests: all widths 8 to 32, every structural feature present.

use blip2_model::language::{Architecture, DecodeState, LanguageModel, Prompt};
use blip2_model::nn::mask::ids_tensor;
use blip2_model::nn::{Activation, Context, Embedding, Kernels, Linear, LinearConfig, PadMask};
use blip2_model::qformer::{Bridge, BridgeConfig, QFormerConfig};
use blip2_model::vision::{AnyEncoder, EvaVitConfig, VisionConfig};
use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData, backend::AutodiffBackend, backend::Backend};

use super::{Images, LmBatch, PairBatch, TextBatch};
use crate::initial::{bridge_rule, encoder_rule, initialise, keyed_rng};
use crate::losses::IGNORE;

pub const VOCAB: usize = 40;
pub const DEC: i64 = 39;
pub const LLM_WIDTH: usize = 12;

pub fn qformer() -> QFormerConfig {
    QFormerConfig {
        vocab_size: VOCAB,
        hidden_size: 16,
        num_hidden_layers: 3,
        num_attention_heads: 2,
        intermediate_size: 24,
        max_position_embeddings: 16,
        encoder_hidden_size: 12,
        ..QFormerConfig::default()
    }
}

pub fn without_dropout(mut config: QFormerConfig) -> QFormerConfig {
    config.hidden_dropout_prob = 0.0;
    config.attention_probs_dropout_prob = 0.0;
    config
}

pub fn stage1_bridge<B: Backend>(config: QFormerConfig, device: &B::Device) -> Bridge<B> {
    let bridge = BridgeConfig::stage1(config, 4, 1e-5, 8).init(device);
    initialise(bridge, 1, bridge_rule)
}

pub fn stage2_bridge<B: Backend>(config: QFormerConfig, device: &B::Device) -> Bridge<B> {
    let bridge = BridgeConfig::stage2(config, 4, 1e-5, LLM_WIDTH).init(device);
    initialise(bridge, 1, bridge_rule)
}

pub fn vision() -> VisionConfig {
    VisionConfig::Eva(EvaVitConfig {
        hidden_size: 12,
        intermediate_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        image_size: 8,
        patch_size: 4,
        ..EvaVitConfig::default()
    })
}

pub fn encoder<B: Backend>(device: &B::Device) -> AnyEncoder<B> {
    initialise(vision().init(device), 2, encoder_rule)
}

/// Values of a stream, reproducible.
pub fn noise(purpose: &str, len: usize) -> Vec<f32> {
    use rand::Rng;
    let mut rng = keyed_rng(7, purpose, &[]);
    (0..len).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect()
}

pub fn pixels(first: usize, batch: usize) -> Images {
    let values = (first..first + batch)
        .flat_map(|i| noise(&format!("picture {i}"), 3 * 64))
        .collect();
    Images::Pixels(TensorData::new::<f32, _>(values, [batch, 3, 8, 8]))
}

/// Pairs `first..first + batch` of an endless set; texts of 3 to 6 tokens padded to 8.
pub fn pairs(first: usize, batch: usize) -> PairBatch {
    let rows = first..first + batch;
    let ids: Vec<Vec<i64>> = rows
        .clone()
        .map(|i| {
            let words = 1 + i % 4;
            let mut row = vec![1i64];
            row.extend((0..words).map(|w| 3 + ((i * 5 + w * 3) % 34) as i64));
            row.push(2);
            row.resize(8, 0);
            row
        })
        .collect();
    let mask = ids
        .iter()
        .map(|row| row.iter().map(|&id| id != 0).collect())
        .collect();
    PairBatch {
        keys: rows.map(|i| format!("pair-{i}")).collect(),
        images: pixels(first, batch),
        text: TextBatch {
            ids,
            mask: PadMask::new(mask),
        },
        image_ids: None,
    }
}

/// The same pairs as captions to predict.
pub fn captions(first: usize, batch: usize) -> LmBatch {
    let pairs = pairs(first, batch);
    let labels = pairs.text.ids.iter();
    let labels = labels
        .map(|row| row.iter().map(|&id| if id == 0 { IGNORE } else { id }).collect())
        .collect();
    LmBatch {
        keys: pairs.keys,
        images: pairs.images,
        prompt: None,
        target: pairs.text,
        labels,
        qformer_text: None,
    }
}

/// The smallest language model with attention over its prompt: a mean of the visible past, two
/// linear maps, dropout.
#[derive(Module, Debug)]
pub struct ToyLm<B: Backend> {
    pub words: Embedding<B>,
    pub hidden: Linear<B>,
    pub output: Linear<B>,
}

pub fn toy_lm<B: Backend>(device: &B::Device) -> ToyLm<B> {
    let lm = ToyLm {
        words: Embedding::new(VOCAB, LLM_WIDTH, 1.0, device),
        hidden: LinearConfig::new(LLM_WIDTH, 16).init(device),
        output: LinearConfig::no_bias(16, VOCAB).init(device),
    };
    initialise(lm, 3, |info, _| {
        crate::initial::Draw::Normal(if info.shape.len() == 1 { 0.1 } else { 0.5 })
    })
}

impl<B: Kernels> LanguageModel<B> for ToyLm<B> {
    fn architecture(&self) -> Architecture {
        Architecture::DecoderOnly
    }

    fn embed_size(&self) -> usize {
        LLM_WIDTH
    }

    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn embed(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.words.forward(ids)
    }

    fn prefill(&self, _: Prompt<B>, _: usize, _: &Context) -> (DecodeState<B>, Tensor<B, 2>) {
        unimplemented!("the trainer does not generate")
    }

    fn step(&self, _: &[i64], _: &mut DecodeState<B>, _: &Context) -> Tensor<B, 2> {
        unimplemented!("the trainer does not generate")
    }

    fn teacher_forced(
        &self,
        prompt: Prompt<B>,
        ids: &[Vec<i64>],
        mask: &PadMask,
        ctx: &Context,
    ) -> Tensor<B, 3> {
        let device = prompt.embeds.device();
        let text = ids[0].len();
        let words = self.embed(ids_tensor(ids, &device));
        let x = Tensor::cat(vec![prompt.embeds, words], 1); // [B, P + T, D]
        let mask = prompt.mask.concat(mask);
        let len = mask.len();
        // uniform attention of the last T + 1 positions over the visible past, without the very last
        let causal = mask.additive_causal::<B>(text + 1, &device); // [B, 1, T + 1, P + T]
        let causal = causal.narrow(2, 0, text);
        let weights = burn::tensor::activation::softmax(causal, 3);
        let [batch, _, rows, _] = weights.dims();
        let mean = weights.reshape([batch, rows, len]).matmul(x);
        let hidden = self.hidden.forward_act(mean, Activation::Gelu);
        self.output.forward(ctx.dropout(hidden, 0.1))
    }
}

/// A step context for one process.
pub fn context<B: AutodiffBackend>(normaliser: f64) -> super::StepContext<'static, B> {
    super::StepContext {
        seed: 5,
        step: 0,
        micro: 0,
        train: true,
        normaliser,
        loss_scale: 1.0,
        collective: &crate::distributed::Single,
    }
}
