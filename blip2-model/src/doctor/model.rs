//! Two small models of the real architecture, one per kind of language model, with weights that are the same on
//! every machine: they go through the ordinary loader from a source in memory.

use std::path::{Path, PathBuf};

use burn::tensor::{DType as BurnDType, Tensor, TensorData};

use super::host::noise;
use super::{Check, guarded};
use crate::blip2::conditional::TokenBatch;
use crate::blip2::{Blip2, Blip2Error};
use crate::checkpoint::{DtypePolicy, expected_tensors};
use crate::config::{Blip2Config, Task};
use crate::language::{LanguageConfig, LanguageModel, OptConfig, Prompt, T5Config};
use crate::nn::{Context, Kernels, PadMask};
use crate::qformer::QFormerConfig;
use crate::vision::{EvaVitConfig, VisionConfig};
use crate::weights::{DType, TensorBytes, TensorInfo, TensorSource, WeightsError};

/// Named outputs of both models.
pub type Outputs = Vec<(String, Vec<f32>)>;

/// New tokens fed one by one.
const STEPS: usize = 24;
const VOCABULARY: usize = 517;

fn config(language: LanguageConfig) -> Blip2Config {
    Blip2Config {
        architectures: vec![Task::ConditionalGeneration],
        model_type: "blip-2".into(),
        num_query_tokens: 8,
        image_text_hidden_size: 16,
        image_token_index: None,
        vision_config: VisionConfig::Eva(EvaVitConfig {
            hidden_size: 60,
            intermediate_size: 130,
            num_hidden_layers: 3,
            num_attention_heads: 5,
            image_size: 70,
            ..EvaVitConfig::default()
        }),
        qformer_config: QFormerConfig {
            vocab_size: 99,
            hidden_size: 48,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            intermediate_size: 90,
            encoder_hidden_size: 60,
            ..QFormerConfig::default()
        },
        text_config: Some(language),
    }
}

fn configs() -> [(&'static str, Blip2Config); 2] {
    let opt = OptConfig {
        vocab_size: VOCABULARY,
        hidden_size: 72,
        num_hidden_layers: 3,
        ffn_dim: 150,
        num_attention_heads: 6,
        max_position_embeddings: 128,
        ..OptConfig::default()
    };
    let t5 = T5Config {
        vocab_size: VOCABULARY,
        d_model: 72,
        d_kv: 10,
        d_ff: 150,
        num_layers: 3,
        num_heads: 6,
        feed_forward_proj: "gated-gelu".into(),
        tie_word_embeddings: false,
        ..T5Config::default()
    };
    [
        ("OPT", config(LanguageConfig::Opt(opt))),
        ("T5", config(LanguageConfig::T5(t5))),
    ]
}

/// Weights drawn by name; norms near one, vectors small, matrices of the size that keeps activations near one.
struct Synthetic {
    infos: Vec<TensorInfo>,
    faulty: bool,
}

impl TensorSource for Synthetic {
    fn path(&self) -> &Path {
        Path::new("synthetic weights")
    }

    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn get(&self, name: &str) -> Result<TensorBytes, WeightsError> {
        let Some(index) = self.infos.iter().position(|info| info.name == name) else {
            return Err(WeightsError::NoSuchTensor {
                path: PathBuf::from(self.path()),
                name: name.to_string(),
            });
        };
        let info = &self.infos[index];
        let mut values = noise(1000 + index as u64, info.num_elements());
        let scale = match info.shape.as_slice() {
            [_] => 0.1,
            shape => (3.0 / shape.last().copied().unwrap_or(1).max(1) as f32).sqrt(),
        };
        let base = f32::from(u8::from(info.shape.len() == 1 && name.ends_with("weight")));
        values.iter_mut().for_each(|v| *v = base + scale * *v);
        if self.faulty && name == "query_tokens" {
            values[0] += 0.5;
        }
        TensorBytes::from_f32(info.shape.clone(), values)
    }
}

fn build<B: Kernels>(config: Blip2Config, faulty: bool, device: &B::Device) -> Result<Blip2<B>, Blip2Error> {
    let infos = expected_tensors(&Blip2::<B>::new(config.clone(), device)?)
        .into_iter()
        .map(|tensor| TensorInfo {
            name: tensor.name,
            dtype: DType::F32,
            shape: tensor.shape,
        })
        .collect();
    let source = Synthetic { infos, faulty };
    Ok(Blip2::load(config, &source, DtypePolicy::f32(), false, device)?.0)
}

/// Two pictures and two prompts of different lengths.
fn prompt<B: Kernels>(model: &Blip2<B>, outputs: &mut Outputs, name: &str) -> Result<Prompt<B>, Blip2Error> {
    let (batch, side) = (2, 70);
    let pixels = noise(21, batch * 3 * side * side);
    let pixels = Tensor::from_data(
        TensorData::new(pixels, [batch, 3, side, side]),
        (&model.device, BurnDType::F32),
    );
    let ctx = Context::eval();
    let image = model.encode_images(pixels, &ctx)?;
    outputs.push((format!("{name}: image encoder"), to_host(image.embeds.clone())));
    let soft = model.soft_tokens(&image, &ctx)?;
    outputs.push((format!("{name}: Q-Former"), to_host(soft.clone())));
    let rows = [vec![2, 17, 300, 45, 516], vec![2, 9]];
    let text = match model.language()?.architecture() {
        crate::language::Architecture::DecoderOnly => TokenBatch::left_padded(&rows, 1),
        crate::language::Architecture::EncoderDecoder => TokenBatch::right_padded(&rows, 0),
    };
    model.prompt(soft, &text)
}

fn to_host<B: Kernels, const D: usize>(x: Tensor<B, D>) -> Vec<f32> {
    x.into_data().convert::<f32>().to_vec().unwrap_or_default()
}

fn ids() -> Vec<Vec<i64>> {
    let row = |k: i64| {
        (0..STEPS as i64)
            .map(|t| (7 + 31 * t * k) % VOCABULARY as i64)
            .collect()
    };
    vec![row(1), row(3)]
}

/// Logits after every token, fed one by one with the cache: `[STEPS][B * V]`.
fn stepwise<B: Kernels>(model: &Blip2<B>, prompt: Prompt<B>) -> Result<Vec<Vec<f32>>, Blip2Error> {
    let (language, ctx, ids) = (model.language()?, Context::eval(), ids());
    let (mut state, logits) = language.prefill(prompt, STEPS, &ctx);
    let mut all = vec![to_host(logits)];
    for t in 0..STEPS - 1 {
        let tokens: Vec<i64> = ids.iter().map(|row| row[t]).collect();
        all.push(to_host(language.step(&tokens, &mut state, &ctx)));
    }
    Ok(all)
}

/// Decoding with a cache against one pass over everything, on the same device.
pub(super) fn decoding<B: Kernels>(device: &B::Device) -> Vec<Check> {
    configs()
        .into_iter()
        .map(|(name, config)| {
            let name = format!("{name}: {STEPS} cached steps against none");
            // both sides are f32 of order one to ten, a hundred operations apart
            let bound = 1e-4;
            let run = guarded(|| -> Result<Check, Blip2Error> {
                let model = build::<B>(config, false, device)?;
                let prompt = prompt(&model, &mut Vec::new(), "")?;
                let cached = stepwise(&model, prompt.clone())?;
                let ids = ids();
                let mask = PadMask::ones(ids.len(), STEPS);
                let whole = model
                    .language()?
                    .teacher_forced(prompt, &ids, &mask, &Context::eval());
                let whole = to_host(whole); // [B, T, V]
                let mut want = Vec::with_capacity(whole.len());
                for t in 0..STEPS {
                    for row in 0..ids.len() {
                        let at = (row * STEPS + t) * VOCABULARY;
                        want.extend(whole[at..at + VOCABULARY].iter().map(|&v| f64::from(v)));
                    }
                }
                Ok(Check::compare(&name, &cached.concat(), &want, bound))
            });
            match run {
                Some(Ok(check)) => check,
                _ => Check::panicked(&name, bound),
            }
        })
        .collect()
}

/// Image encoder, Q-Former and logits of both models.
pub fn run_models<B: Kernels>(device: &B::Device) -> Result<Outputs, Blip2Error> {
    run::<B>(false, device)
}

/// As [`run_models`], with one wrong number among the weights.
#[cfg(test)]
pub(super) fn run_with_fault<B: Kernels>(device: &B::Device) -> Result<Outputs, Blip2Error> {
    run::<B>(true, device)
}

fn run<B: Kernels>(faulty: bool, device: &B::Device) -> Result<Outputs, Blip2Error> {
    let mut outputs = Vec::new();
    for (name, config) in configs() {
        let model = build::<B>(config, faulty, device)?;
        let prompt = prompt(&model, &mut outputs, name)?;
        let logits = stepwise(&model, prompt)?;
        outputs.push((format!("{name}: logits of {STEPS} steps"), logits.concat()));
    }
    Ok(outputs)
}
