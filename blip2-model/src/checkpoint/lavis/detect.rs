//! The configuration that the shapes of a checkpoint imply, as the `config.json` that transformers would write.
//!
//! Heads are no dimension of any tensor: published widths are known, others have to be given.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::LavisError;
use crate::weights::TensorSource;

/// Configuration of a complete checkpoint with Hugging Face names. `given` (in the form of `config.json`, any subset
/// of its fields) wins over what is detected; `text` is the configuration of the language model, if there is one.
pub fn config(
    source: &dyn TensorSource,
    text: Option<Value>,
    given: &Map<String, Value>,
) -> Result<Value, LavisError> {
    let mut undetermined = Vec::new();
    let mut config = json!({
        "architectures": [architecture(source)],
        "model_type": "blip-2",
        "num_query_tokens": Shapes(source).dim("query_tokens", 1)?,
        "vision_config": vision(source)?,
        "qformer_config": qformer(source)?,
    });
    if let Some(shared) = Shapes(source).optional("vision_projection.weight", 0) {
        config["image_text_hidden_size"] = shared.into();
    }
    if let Some(text) = text {
        config["text_config"] = text;
    }
    if let Value::Object(fields) = &mut config {
        overlay(fields, given);
    }
    for (section, field) in [
        ("vision_config", "vision_config.num_attention_heads"),
        ("qformer_config", "qformer_config.num_attention_heads"),
    ] {
        if config[section]["num_attention_heads"].is_null() {
            undetermined.push(field);
        }
    }
    match undetermined.is_empty() {
        true => Ok(config),
        false => Err(LavisError::Undetermined {
            path: source.path().to_owned(),
            fields: undetermined,
        }),
    }
}

/// The class, by the heads that are there.
fn architecture(source: &dyn TensorSource) -> &'static str {
    let has = |name| source.info(name).is_some();
    let (stage1, stage2) = (has("qformer_lm_head.bias"), has("language_projection.weight"));
    match (stage1, stage2) {
        (true, true) => "Blip2Complete",
        (true, false) => "Blip2Stage1",
        (false, true) => "Blip2ForConditionalGeneration",
        (false, false) if has("itm_head.weight") => "Blip2ForImageTextRetrieval",
        (false, false) => "Blip2ForConditionalGeneration",
    }
}

fn vision(source: &dyn TensorSource) -> Result<Value, LavisError> {
    let shapes = Shapes(source);
    let layer = "vision_model.encoder.layers";
    let clip = source.info("vision_model.pre_layernorm.weight").is_some();
    let width = shapes.dim("vision_model.embeddings.class_embedding", 2)?;
    let tokens = shapes.dim("vision_model.embeddings.position_embedding", 1)?;
    let patch = shapes.dim("vision_model.embeddings.patch_embedding.weight", 2)?;
    let heads = match width {
        1408 | 1024 => Some(16), // ViT-g/14, ViT-L/14
        _ => None,
    };
    Ok(json!({
        "model_type": if clip { "clip_vision_model" } else { "blip_2_vision_model" },
        "hidden_size": width,
        "intermediate_size": shapes.dim(&format!("{layer}.0.mlp.fc1.weight"), 0)?,
        "num_hidden_layers": shapes.count(layer),
        "num_attention_heads": heads,
        "image_size": tokens.saturating_sub(1).isqrt() * patch,
        "patch_size": patch,
        "hidden_act": if clip { "quick_gelu" } else { "gelu" },
        "layer_norm_eps": if clip { 1e-5 } else { 1e-6 },
        "post_layer_norm_eps": 1e-5,
    }))
}

fn qformer(source: &dyn TensorSource) -> Result<Value, LavisError> {
    let shapes = Shapes(source);
    let layer = "qformer.encoder.layer";
    let layers = shapes.count(layer);
    let width = shapes.dim("query_tokens", 2)?;
    let crossed = (1..layers).find(|i| {
        source
            .info(&format!("{layer}.{i}.crossattention.attention.key.weight"))
            .is_some()
    });
    let has_text = source
        .info(&format!("{layer}.0.intermediate.dense.weight"))
        .is_some();
    let mut config = json!({
        "model_type": "blip_2_qformer",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": (width == 768).then_some(12), // BERT-base
        "intermediate_size": shapes.dim(&format!("{layer}.0.intermediate_query.dense.weight"), 0)?,
        "cross_attention_frequency": crossed.unwrap_or(layers.max(1)),
        "encoder_hidden_size": shapes.dim(&format!("{layer}.0.crossattention.attention.key.weight"), 1)?,
        "use_qformer_text_input": has_text,
    });
    for (field, table) in [
        ("vocab_size", "embeddings.word_embeddings.weight"),
        ("max_position_embeddings", "embeddings.position_embeddings.weight"),
    ] {
        if let Some(rows) = shapes.optional(table, 0) {
            config[field] = rows.into();
        }
    }
    Ok(config)
}

/// Puts the fields of `given` in place of those of `base`, section by section.
pub fn overlay(base: &mut Map<String, Value>, given: &Map<String, Value>) {
    for (key, value) in given {
        match (base.get_mut(key), value) {
            (Some(Value::Object(base)), Value::Object(given)) => overlay(base, given),
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

struct Shapes<'a>(&'a dyn TensorSource);

impl Shapes<'_> {
    fn optional(&self, name: &str, axis: usize) -> Option<usize> {
        self.0.info(name)?.shape.get(axis).copied()
    }

    fn dim(&self, name: &str, axis: usize) -> Result<usize, LavisError> {
        self.optional(name, axis).ok_or_else(|| LavisError::Lacks {
            path: PathBuf::from(self.0.path()),
            name: name.to_string(),
        })
    }

    /// One more than the largest index behind `prefix`.
    fn count(&self, prefix: &str) -> usize {
        let index = |name: &str| {
            let rest = name.strip_prefix(prefix)?.strip_prefix('.')?;
            rest.split('.').next()?.parse::<usize>().ok()
        };
        let names = self.0.infos().iter();
        names
            .filter_map(|info| index(&info.name))
            .max()
            .map_or(0, |last| last + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_fields_win_section_by_section() {
        let mut base = json!({"a": 1, "b": {"c": 2, "d": 3}});
        let given = json!({"b": {"c": 4}, "e": 5});
        if let (Value::Object(base), Value::Object(given)) = (&mut base, &given) {
            overlay(base, given);
        }
        assert_eq!(base, json!({"a": 1, "b": {"c": 4, "d": 3}, "e": 5}));
    }
}
