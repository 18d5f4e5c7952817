//! From `[model]` to a complete configuration: a checkpoint's, a file's, or LAVIS's names of published parts.

use std::path::{Path, PathBuf};

use blip2_model::config::{Blip2Config, Task};
use blip2_model::language::{LanguageConfig, LlamaConfig, OptConfig, T5Config};
use blip2_model::nn::Activation;
use blip2_model::qformer::QFormerConfig;
use blip2_model::vision::{ClipVitConfig, EvaVitConfig, VisionConfig};
use blip2_model::weights::hub;
use serde_json::{Value, json};

use super::model::{ConfigSource, VitModel};
use super::{ModelSection, RecipeError, StageKind};

/// Rows of BERT's word table with `[DEC]`.
const BERT_VOCABULARY: usize = 30523;
/// Epsilon of `ln_vision` in LAVIS.
const LN_VISION_EPS: f64 = 1e-5;

/// A folder or file for a place named in a recipe; a hub id is downloaded.
pub fn place(text: &str) -> Result<PathBuf, RecipeError> {
    let path = Path::new(text);
    // `runs/first` is a run that is not there yet, not a model of the organisation `runs`
    let sibling = path
        .parent()
        .is_some_and(|parent| parent.as_os_str() != "" && parent.exists());
    let local = sibling || text.starts_with(['.', '/']) || text.matches('/').count() > 1;
    if path.exists() || local || path.extension().is_some_and(|e| e == "pth" || e == "safetensors") {
        return Ok(path.to_owned());
    }
    let snapshot = text
        .parse()
        .and_then(|id: hub::HubId| hub::resolve(&id, &hub::HubSettings::from_env(), &mut ()));
    match snapshot {
        Ok(snapshot) => Ok(snapshot.folder),
        Err(source) => Err(RecipeError::Place {
            place: text.into(),
            source: Box::new(source),
        }),
    }
}

/// The configuration that the run trains, as it will be written beside its weights.
pub fn configuration(model: &ModelSection, stage: StageKind) -> Result<Blip2Config, RecipeError> {
    let mut config = match (&model.base, &model.config, model.vit_model) {
        (Some(base), _, _) => from_file(&place(base)?.join("config.json"))?,
        (_, Some(ConfigSource::Path(path)), _) => from_file(Path::new(path))?,
        (_, Some(ConfigSource::Table(table)), _) => from_value(serde_json::to_value(table)?)?,
        (_, _, Some(vit)) => published(model, vit),
        _ => published(model, VitModel::EvaClipG),
    };
    if let Some(name) = model.language_model() {
        config.text_config = Some(language(model, name)?);
    }
    config.architectures = vec![match stage {
        StageKind::Stage1 => Task::Stage1,
        StageKind::Stage2 | StageKind::LanguageModel => Task::ConditionalGeneration,
    }];
    if let Some(size) = model.image_size {
        config.vision_config = config.vision_config.with_image_size(size);
    }
    if let Some(probability) = model.qformer_dropout {
        config.qformer_config.hidden_dropout_prob = probability;
        config.qformer_config.attention_probs_dropout_prob = probability;
    }
    config.qformer_config.encoder_hidden_size = config.vision_config.hidden_size();
    // stage 1 has its text branch in any case; transformers reads only this field
    config.qformer_config.use_qformer_text_input = model.qformer_text_input || stage == StageKind::Stage1;
    if stage == StageKind::Stage1 {
        config.text_config = None;
    } else if config.text_config.is_none() {
        return Err(RecipeError::missing(
            "model.opt_model",
            "this stage needs a language model: `opt_model`, `t5_model`, `llm_model`, or a `text_config`",
        ));
    }
    config.validate()?;
    Ok(config)
}

fn from_file(path: &Path) -> Result<Blip2Config, RecipeError> {
    let text = std::fs::read_to_string(path).map_err(RecipeError::io(path))?;
    from_value(serde_json::from_str(&text)?)
}

/// A configuration of BLIP-2, or of a language model alone.
fn from_value(value: Value) -> Result<Blip2Config, RecipeError> {
    let kind = value.get("model_type").and_then(Value::as_str);
    let value = match kind {
        Some("opt" | "t5" | "llama") => json!({ "text_config": value }),
        _ => value,
    };
    Ok(Blip2Config::from_json(&value.to_string())?)
}

/// LAVIS's architecture around one of its image encoders.
fn published(model: &ModelSection, vit: VitModel) -> Blip2Config {
    let vision_config = match vit {
        VitModel::EvaClipG => VisionConfig::Eva(EvaVitConfig {
            post_layer_norm_eps: Some(LN_VISION_EPS),
            ..EvaVitConfig::default()
        }),
        VitModel::ClipL => VisionConfig::Clip(ClipVitConfig {
            post_layer_norm_eps: Some(LN_VISION_EPS),
            ..ClipVitConfig::default()
        }),
    };
    Blip2Config {
        architectures: Vec::new(),
        model_type: "blip-2".into(),
        num_query_tokens: model.num_query_token.unwrap_or(32),
        image_text_hidden_size: 256,
        image_token_index: None,
        vision_config,
        qformer_config: QFormerConfig {
            vocab_size: BERT_VOCABULARY,
            ..QFormerConfig::default()
        },
        text_config: None,
    }
}

/// A language model by the name of a published size, or by the `config.json` of a folder.
fn language(model: &ModelSection, name: &str) -> Result<LanguageConfig, RecipeError> {
    let short = name.rsplit('/').next().unwrap_or(name);
    let preset = if model.opt_model.is_some() {
        short
            .strip_prefix("opt-")
            .and_then(OptConfig::preset)
            .map(LanguageConfig::Opt)
    } else if model.t5_model.is_some() {
        T5Config::preset(short).map(LanguageConfig::T5)
    } else {
        let size = short.rsplit(['-', '_']).next().unwrap_or_default();
        LlamaConfig::preset(&size.to_lowercase()).map(LanguageConfig::Llama)
    };
    if let (Some(config), false) = (preset, Path::new(name).exists()) {
        return Ok(config);
    }
    let path = place(name)?.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(RecipeError::io(&path))?;
    let mut config: LanguageConfig = serde_json::from_str(&text)?;
    if let LanguageConfig::T5(t5) = &mut config {
        // LAVIS and Hugging Face run Flan-T5 with the exact gelu inside BLIP-2
        t5.dense_act_fn.get_or_insert(Activation::Gelu);
    }
    Ok(config)
}
