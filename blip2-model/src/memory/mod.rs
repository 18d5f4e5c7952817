//! How much memory a model will take, from its configuration alone: weights (exact), key/value cache (exact)
//! and the largest set of activations that live at once (an estimate from the sizes of the layers).
//!
//! The answer to the most frequent question of the trackers of other implementations, before any download.

mod activations;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::blip2::{Blip2, Blip2Error};
use crate::checkpoint::apply::burn_dtype;
use crate::checkpoint::policy::PolicyError;
use crate::checkpoint::{DtypePolicy, Part, expected_tensors};
use crate::config::Blip2Config;
use crate::language::LanguageConfig;
use crate::nn::Kernels;
use crate::weights::{DType, TensorInfo};

pub use activations::Phase;

/// What to predict for.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Dtypes to keep the weights in.
    pub policy: DtypePolicy,
    /// Dtype of the file, which `auto` keeps.
    pub stored: DType,
    /// Pictures at a time.
    pub batch: usize,
    /// Side of the pictures, pixels; absent means that of the configuration.
    pub image_size: Option<usize>,
    /// Tokens of the prompt, without the picture.
    pub prompt_tokens: usize,
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// Beams per picture.
    pub num_beams: usize,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            policy: DtypePolicy::default(),
            stored: DType::F32,
            batch: 1,
            image_size: None,
            prompt_tokens: 16,
            max_new_tokens: 20,
            num_beams: 1,
        }
    }
}

/// Bytes that a model and its work take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Number of parameters.
    pub parameters: usize,
    /// Weights as kept, by part. Exact.
    pub weights: BTreeMap<Part, usize>,
    /// Keys and values of the language model. Exact.
    pub cache: usize,
    /// Largest phase.
    pub activations: usize,
    /// What each phase needs besides weights and cache.
    pub phases: Vec<Phase>,
    /// Weights, cache and activations.
    pub total: usize,
}

impl Estimate {
    /// All weights.
    pub fn weight_bytes(&self) -> usize {
        self.weights.values().sum()
    }
}

/// Why there is no estimate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The dtypes do not fit the model.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The configuration cannot be used.
    #[error(transparent)]
    Model(#[from] Blip2Error),
}

/// Predicts what `config` takes on backend `B`. `files` are the tensors of the checkpoint where it is at hand: the
/// dtype that `auto` keeps is then theirs, else [`Workload::stored`].
pub fn predict<B: Kernels>(
    config: &Blip2Config,
    files: &[TensorInfo],
    work: &Workload,
    device: &B::Device,
) -> Result<Estimate, MemoryError> {
    let policy = work.policy.for_config(config)?.on::<B>()?;
    let model = Blip2::<B>::new(config.clone(), device)?;
    let keys = crate::checkpoint::huggingface::keys(config);
    let stored: BTreeMap<&str, DType> = files
        .iter()
        .map(|info| (info.name.as_str(), info.dtype))
        .collect();
    // as the loader does: what the device cannot keep is widened
    let keep = |dtype: DType| match B::supports_dtype(device, burn_dtype(dtype)) {
        true => dtype,
        false => DType::F32,
    };
    let mut weights = BTreeMap::new();
    let mut parameters = 0;
    let mut llm_dtype = work.stored;
    for parameter in expected_tensors(&model) {
        let name = parameter.name.clone();
        let mut names = std::iter::once(name).chain(keys.alias_of(&parameter.name));
        let dtype = names.find_map(|name| stored.get(name.as_str()).copied());
        let stored = dtype.unwrap_or(work.stored);
        let kept = keep(policy.resolve(&parameter.path, parameter.shape.len(), stored));
        let part = Part::of(&parameter.path);
        let count = parameter.num_elements();
        let bytes = match policy.packing(&parameter.path, &parameter.shape) {
            Some(bits) => bits.bytes(count),
            None => {
                if part == Part::Llm && parameter.shape.len() > 1 {
                    llm_dtype = kept;
                }
                count * kept.size()
            }
        };
        parameters += count;
        *weights.entry(part).or_insert(0) += bytes;
    }
    let kept = |part: Part| match part {
        Part::Llm => llm_dtype,
        Part::Vision => keep(policy.resolve("vision.x", 2, work.stored)),
        Part::QFormer => keep(policy.resolve("bridge.x", 2, work.stored)),
    };
    let phases = activations::phases::<B>(config, work, kept);
    let activations = phases.iter().map(|phase| phase.bytes).max().unwrap_or(0);
    let cache = config.language().map_or(0, |language| {
        let bytes = activations::compute_bytes::<B>(kept(Part::Llm));
        cache_elements(language, config.num_query_tokens, work) * bytes
    });
    let total = weights.values().sum::<usize>() + cache + activations;
    Ok(Estimate {
        parameters,
        weights,
        cache,
        activations,
        phases,
        total,
    })
}

/// Numbers in the key/value cache, as [`LanguageModel::prefill`](crate::language::LanguageModel::prefill) lays it
/// out: all of it is taken at once.
pub fn cache_elements(language: &LanguageConfig, queries: usize, work: &Workload) -> usize {
    let rows = work.batch * work.num_beams;
    let prompt = queries + work.prompt_tokens;
    match language {
        LanguageConfig::Opt(c) => {
            2 * c.num_hidden_layers * rows * c.hidden_size * (prompt + work.max_new_tokens)
        }
        LanguageConfig::Llama(c) => {
            let width = c.key_value_heads() * c.head_dim();
            2 * c.num_hidden_layers * rows * width * (prompt + work.max_new_tokens)
        }
        LanguageConfig::T5(c) => {
            // the decoder's own cache, and the keys and values of the encoded prompt
            let width = c.num_heads * c.d_kv;
            2 * c.decoder_layers() * rows * width * (work.max_new_tokens + 1 + prompt)
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::backend::Flex;
    use crate::catalogue;
    use crate::checkpoint::PartDtype;

    fn opt(policy: DtypePolicy) -> Estimate {
        let config = catalogue::find("blip2-opt-2.7b").expect("published").config();
        let work = Workload {
            policy,
            ..Workload::default()
        };
        predict::<Flex>(&config, &[], &work, &Default::default()).expect("an estimate")
    }

    /// The model card's table gives 14.43 GiB for f32 and 7.21 for f16, where the output layer, which is the token
    /// table, is counted twice.
    #[test]
    fn weights_of_opt_2_7b_agree_with_the_model_card() {
        let table = 50304.0 * 2560.0;
        let gib = |bytes: f64| bytes / f64::from(1 << 30);
        let f32_gib = gib(opt(DtypePolicy::f32()).weight_bytes() as f64 + 4.0 * table);
        assert!((f32_gib - 14.43).abs() < 0.01, "{f32_gib}");
        let mut half = DtypePolicy::frozen(PartDtype::F16);
        half.qformer = PartDtype::F16;
        let f16_gib = gib(opt(half).weight_bytes() as f64 + 2.0 * table);
        // the card cuts 7.215 short, and the two million numbers of the vectors stay f32 here
        assert!((f16_gib - 7.215).abs() < 0.01, "{f16_gib}");
    }

    /// 32 layers of 12 x 2560^2 weights in bytes and a scale for 32 of them; the token and position tables in bf16.
    #[test]
    fn a_packed_language_model_is_layers_in_bytes_and_tables_in_two() {
        let plain = opt(DtypePolicy::f32());
        let packed = opt(DtypePolicy::f32().but(None, Some(PartDtype::Int8)));
        let layers = 32 * 12 * 2560 * 2560;
        let tables = (50304 + 2050) * 2560;
        let saved = layers * 4 - (layers + layers / 32 * 4) + tables * 2;
        assert_eq!(plain.weight_bytes() - packed.weight_bytes(), saved);
    }

    #[test]
    fn the_parts_add_up_and_grow_with_the_batch() {
        let one = opt(DtypePolicy::f32());
        assert_eq!(one.total, one.weight_bytes() + one.cache + one.activations);
        // 32 layers x keys and values x 2560 x (32 queries + 16 + 20) positions x 4 bytes
        assert_eq!(one.cache, 32 * 2 * 2560 * 68 * 4);
        let config = catalogue::find("blip2-opt-2.7b").expect("published").config();
        let work = Workload {
            policy: DtypePolicy::f32(),
            batch: 8,
            num_beams: 5,
            ..Workload::default()
        };
        let many = predict::<Flex>(&config, &[], &work, &Default::default()).expect("an estimate");
        assert_eq!(many.cache, 40 * one.cache);
        assert!(many.activations > 5 * one.activations);
        assert_eq!(many.weight_bytes(), one.weight_bytes());
    }

    #[test]
    fn t5_in_f16_is_refused_here_too() {
        let config = catalogue::find("blip2-flan-t5-xl").expect("published").config();
        let work = Workload {
            policy: DtypePolicy::frozen(PartDtype::F16),
            ..Workload::default()
        };
        let error = predict::<Flex>(&config, &[], &work, &Default::default()).expect_err("refused");
        assert!(matches!(error, MemoryError::Policy(_)));
    }
}
