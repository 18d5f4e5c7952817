//! Counts of a recipe at its full size, without allocating anything: operations, parameters, bytes, exchanges.

use blip2_model::config::Blip2Config;
use blip2_model::language::LanguageConfig;
use blip2_model::vision::VisionConfig;
use burn::tensor::backend::Backend;
use serde::Serialize;

use super::drawn::Root;
use super::model::Precision;
use super::train::LoraTarget;
use super::weights::list;
use super::{Recipe, RecipeError, StageKind, architecture};
use crate::params::ParamInfo;
use crate::run::flops::{StepSize, encoder_forward, stage1_step, stage2_step};
use crate::run::plan::{Cluster, Exchange, StepShape, StepTime, activation_bytes, step_time};

/// Parameters of the three parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Image encoder.
    pub vision: usize,
    /// Q-Former and all that trains with it.
    pub bridge: usize,
    /// Language model.
    pub language: usize,
    /// Parameters that the optimizer sees.
    pub trained: usize,
}

/// Memory of a part on one process, bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartMemory {
    /// Its name.
    pub part: &'static str,
    /// Dtype of its matrices.
    pub dtype: &'static str,
    /// Weights.
    pub weights: f64,
    /// Gradients and both moments, f32.
    pub optimizer: f64,
    /// Kept for the backward pass: an estimate by formula.
    pub activations: f64,
}

/// A recipe on a cluster.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Parameters.
    pub counts: Counts,
    /// Numbers of the step.
    pub shape: StepShape,
    /// Memory of one process.
    pub memory: Vec<PartMemory>,
    /// What is summed over processes.
    pub exchanges: Vec<Exchange>,
    /// Bytes one process sends in a step.
    pub sent_bytes: f64,
    /// Operations of a step of one process.
    pub flops: f64,
    /// Predicted seconds of a step.
    pub time: StepTime,
    /// Optimizer steps of the run, where the recipe says it in steps.
    pub steps: Option<u64>,
}

fn sum(infos: &[ParamInfo]) -> usize {
    infos.iter().map(ParamInfo::len).sum()
}

/// Parameters of a recipe's model.
pub fn counts<B: Backend>(recipe: &Recipe, config: &Blip2Config) -> Result<Counts, RecipeError> {
    let bridge = list::<B>(config, Root::Bridge)?;
    let language = list::<B>(config, Root::Language)?;
    let mut counts = Counts {
        vision: sum(&list::<B>(config, Root::Vision)?),
        bridge: sum(&bridge),
        language: sum(&language),
        trained: 0,
    };
    counts.trained = match recipe.stage {
        StageKind::LanguageModel => counts.language,
        _ if recipe.train.train_vision => counts.bridge + counts.vision,
        _ => counts.bridge,
    };
    if let Some(lora) = &recipe.train.lora {
        let adapted = |infos: &[ParamInfo], under: &str| {
            let of = |info: &&ParamInfo| {
                let owner = info.name.strip_suffix(".weight").unwrap_or_default();
                let last = owner.rsplit('.').next().unwrap_or_default();
                info.name.starts_with(under)
                    && info.shape.len() == 2
                    && lora.projections.iter().any(|p| p == last)
            };
            let matrices = infos.iter().filter(of);
            matrices
                .map(|info| lora.rank * (info.shape[0] + info.shape[1]))
                .sum::<usize>()
        };
        let qformer = bridge.iter().filter(|info| info.name.starts_with("qformer."));
        counts.trained = match lora.target {
            LoraTarget::Qformer => {
                counts.bridge - qformer.map(ParamInfo::len).sum::<usize>() + adapted(&bridge, "qformer.")
            }
            LoraTarget::LanguageModel => counts.bridge + adapted(&language, ""),
        };
    }
    Ok(counts)
}

/// Floating-point operations of a step of one process.
pub fn flops(recipe: &Recipe, config: &Blip2Config, language: usize) -> f64 {
    let size = StepSize {
        batch: recipe.train.batch_size as usize * recipe.train.accumulate,
        queries: config.num_query_tokens,
        text: recipe.data.max_txt_len,
    };
    let (vision, qformer) = (&config.vision_config, &config.qformer_config);
    let encode = recipe.train.features.is_none();
    let step = match recipe.stage {
        StageKind::Stage1 => stage1_step(vision, qformer, size, encode),
        StageKind::Stage2 => stage2_step(vision, qformer, language as f64, size, encode),
        StageKind::LanguageModel => 6.0 * language as f64 * (size.batch * size.text) as f64,
    };
    match recipe.train.train_vision {
        // forward is counted above; its backward pass costs twice that
        true => step + 2.0 * size.batch as f64 * encoder_forward(vision),
        false => step,
    }
}

/// The whole plan for `world` processes.
pub fn plan<B: Backend>(recipe: &Recipe, world: usize, cluster: &Cluster) -> Result<Plan, RecipeError> {
    let config = architecture::configuration(&recipe.model, recipe.stage)?;
    let counts = counts::<B>(recipe, &config)?;
    let vision = &config.vision_config;
    let shape = StepShape {
        world,
        batch: recipe.train.batch_size as usize,
        accumulate: recipe.train.accumulate,
        queries: config.num_query_tokens,
        text: recipe.data.max_txt_len,
        image_tokens: vision.num_tokens(),
        image_width: vision.hidden_size(),
        embed: config.image_text_hidden_size,
        trained: counts.trained,
        global_losses: recipe.stage == StageKind::Stage1,
        train_vision: recipe.train.train_vision,
    };
    let flops = flops(recipe, &config, counts.language);
    Ok(Plan {
        memory: memory(recipe, &config, &counts, &shape),
        exchanges: shape.exchanges(),
        sent_bytes: shape.sent_bytes(),
        time: step_time(&shape, flops, cluster),
        steps: recipe.schedule.max_iters,
        counts,
        shape,
        flops,
    })
}

fn width(precision: Precision) -> (&'static str, f64) {
    match precision {
        Precision::F32 => ("f32", 4.0),
        Precision::F16 => ("f16", 2.0),
        Precision::BF16 => ("bf16", 2.0),
        // files of the published models hold half precision, except the encoder's own
        Precision::Auto => ("f32", 4.0),
    }
}

fn memory(recipe: &Recipe, config: &Blip2Config, counts: &Counts, shape: &StepShape) -> Vec<PartMemory> {
    let mut parts = Vec::new();
    let checkpointed = recipe.train.activation_checkpointing;
    // with checkpointing one layer's activations and every layer's input remain
    let kept = |rows, length, width, heads, layers: usize| match checkpointed {
        true => {
            activation_bytes(rows, length, width, heads, 1) + 4.0 * (rows * length * width * layers) as f64
        }
        false => activation_bytes(rows, length, width, heads, layers),
    };
    let (b, q, t) = (shape.batch, shape.queries, shape.text);
    let alone = recipe.stage == StageKind::LanguageModel;
    if !alone {
        let (vision_width, heads) = match &config.vision_config {
            VisionConfig::Eva(c) => (c.hidden_size, c.num_attention_heads),
            VisionConfig::Clip(c) => (c.hidden_size, c.num_attention_heads),
            VisionConfig::Dinov2(c) => (c.hidden_size, c.num_attention_heads),
        };
        let trains = recipe.train.train_vision;
        let (dtype, bytes) = width(if trains {
            Precision::F32
        } else {
            recipe.model.vit_precision
        });
        let layers = config.vision_config.num_hidden_layers();
        parts.push(PartMemory {
            part: "image encoder",
            dtype,
            weights: bytes * counts.vision as f64,
            optimizer: if trains { 12.0 * counts.vision as f64 } else { 0.0 },
            activations: match trains {
                true => kept(b, shape.image_tokens, vision_width, heads, layers),
                // one layer at a time, and the tokens that cross
                false => activation_bytes(b, shape.image_tokens, vision_width, heads, 1),
            },
        });
        let c = &config.qformer_config;
        let pass = |rows, length| {
            kept(
                rows,
                length,
                c.hidden_size,
                c.num_attention_heads,
                c.num_hidden_layers,
            )
        };
        let cross = (0..c.num_hidden_layers)
            .filter(|&i| c.has_cross_attention(i))
            .count();
        let keys = (2 * 4 * cross * b * shape.image_tokens * c.hidden_size) as f64;
        parts.push(PartMemory {
            part: "Q-Former, heads, projections",
            dtype: "f32",
            weights: 4.0 * counts.bridge as f64,
            optimizer: 12.0 * trained_bridge(recipe, counts) as f64,
            activations: keys
                + match recipe.stage {
                    StageKind::Stage1 => pass(b, q) + 2.0 * pass(b, t) + pass(3 * b, q + t),
                    _ => pass(b, q),
                },
        });
    }
    if recipe.stage != StageKind::Stage1 {
        let (dtype, bytes) = width(if alone {
            Precision::F32
        } else {
            recipe.model.llm_precision
        });
        let (hidden, heads, layers, vocabulary) = match &config.text_config {
            Some(LanguageConfig::Opt(c)) => (
                c.hidden_size,
                c.num_attention_heads,
                c.num_hidden_layers,
                c.vocab_size,
            ),
            Some(LanguageConfig::T5(c)) => (
                c.d_model,
                c.num_heads,
                c.num_layers + c.decoder_layers(),
                c.vocab_size,
            ),
            Some(LanguageConfig::Llama(c)) => (
                c.hidden_size,
                c.num_attention_heads,
                c.num_hidden_layers,
                c.vocab_size,
            ),
            None => (0, 1, 0, 0),
        };
        let length = if alone { t } else { q + t };
        parts.push(PartMemory {
            part: "language model",
            dtype,
            weights: bytes * counts.language as f64,
            optimizer: if alone { 12.0 * counts.language as f64 } else { 0.0 },
            // gradients pass through it; logits and their gradient are the largest single tensors
            activations: kept(b, length, hidden, heads, layers) + (2 * 4 * b * t * vocabulary) as f64,
        });
    }
    parts
}

fn trained_bridge(recipe: &Recipe, counts: &Counts) -> usize {
    match recipe.train.train_vision {
        true => counts.bridge,
        false => counts.trained,
    }
}

#[cfg(test)]
mod tests {
    use blip2_model::backend::Flex;

    use super::*;

    const CLUSTER: Cluster = Cluster {
        flops: 1e14,
        bandwidth: 1e10,
        latency: 1e-4,
    };

    fn published(name: &str, sets: &[&str]) -> Plan {
        let path = format!("{}/../assets/recipes/{name}.toml", env!("CARGO_MANIFEST_DIR"));
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        let recipe = Recipe::open(path.as_ref(), &sets).unwrap();
        plan::<Flex>(&recipe, 16, &CLUSTER).unwrap()
    }

    #[test]
    fn the_paper_s_stage_1_in_numbers() {
        let plan = published("pretrain_stage1", &[]);
        assert_eq!(plan.counts.trained, 186_705_470);
        assert_eq!(plan.shape.image_tokens, 257);
        // f16 encoder, f32 masters with gradient and two moments
        let encoder = &plan.memory[0];
        assert_eq!(
            (encoder.dtype, encoder.weights),
            ("f16", 2.0 * plan.counts.vision as f64)
        );
        assert_eq!(plan.memory[1].optimizer, 12.0 * 186_705_470.0);
        assert_eq!(plan.steps, Some(250_000));
        // the encoder alone: 105 pictures of about half a TFLOP
        assert!(
            plan.flops > 105.0 * 0.5e12 && plan.flops < 105.0 * 2.0e12,
            "{}",
            plan.flops
        );
    }

    #[test]
    fn adapters_shrink_what_trains() {
        let full = published("pretrain_stage2_opt2.7b", &[]).counts;
        let adapted = published(
            "pretrain_stage2_opt2.7b",
            &["train.lora={target = \"language_model\"}"],
        )
        .counts;
        // 32 layers, two projections of 2560 x 2560, rank 8
        assert_eq!(adapted.trained - full.trained, 32 * 2 * 8 * 2 * 2560);
        let qformer = published("pretrain_stage1", &["train.lora={target = \"qformer\"}"]).counts;
        assert!(qformer.trained < 4_000_000, "{}", qformer.trained);
    }
}
