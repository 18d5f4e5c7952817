//! `config.json` of a BLIP-2 folder -> typed configuration (`transformers/models/blip_2/configuration_blip_2.py`).
//!
//! Hugging Face field names. A value that this engine cannot honour is an error, never ignored; fields that
//! do not change the computation (training leftovers, library bookkeeping) are skipped.

use serde::{Deserialize, Serialize};

use crate::language::LanguageConfig;
use crate::qformer::{BridgeConfig, QFormerConfig};
use crate::vision::VisionConfig;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not JSON, or a field has the wrong type.
    #[error("config.json: {source}; compare it with the model's page on the hub")]
    Json {
        /// The parser's message, with line and column.
        #[from]
        source: serde_json::Error,
    },
    /// A field has a value outside what is implemented.
    #[error("config.json: {field} = {value} is not supported: {reason}")]
    Unsupported {
        /// Dotted path of the field.
        field: &'static str,
        /// Its value.
        value: String,
        /// Why, or what would be accepted.
        reason: &'static str,
    },
}

/// The published classes; which heads a checkpoint has follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Caption and answer: `Blip2ForConditionalGeneration`, `Blip2Model`.
    #[serde(rename = "Blip2ForConditionalGeneration", alias = "Blip2Model")]
    ConditionalGeneration,
    /// Match and retrieve: `Blip2ForImageTextRetrieval`.
    #[serde(rename = "Blip2ForImageTextRetrieval")]
    ImageTextRetrieval,
    /// Text embeddings only: `Blip2TextModelWithProjection`.
    #[serde(rename = "Blip2TextModelWithProjection")]
    TextWithProjection,
    /// Image embeddings only: `Blip2VisionModelWithProjection`.
    #[serde(rename = "Blip2VisionModelWithProjection")]
    VisionWithProjection,
    /// LAVIS `blip2`: all stage-1 heads, grounded generation included. Our own name.
    #[serde(rename = "Blip2Stage1")]
    Stage1,
    /// Both a stage-1 and a stage-2 model in one checkpoint: every command works. Our own name.
    #[serde(rename = "Blip2Complete")]
    Complete,
}

/// Top level of `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Blip2Config {
    /// The class the checkpoint was saved from; the first entry counts.
    #[serde(default)]
    pub architectures: Vec<Task>,
    /// Always `blip-2`.
    #[serde(default = "model_type")]
    pub model_type: String,
    /// Number of query tokens.
    #[serde(default = "num_query_tokens")]
    pub num_query_tokens: usize,
    /// Width of the contrastive space.
    #[serde(default = "image_text_hidden_size")]
    pub image_text_hidden_size: usize,
    /// Id of `<image>`; absent in old checkpoints. Never needed here: image embeddings are passed as such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_token_index: Option<i64>,
    /// Image encoder.
    #[serde(default = "eva")]
    pub vision_config: VisionConfig,
    /// Q-Former.
    #[serde(default)]
    pub qformer_config: QFormerConfig,
    /// Language model; ignored by classes that have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_config: Option<LanguageConfig>,
}

fn model_type() -> String {
    "blip-2".into()
}
fn num_query_tokens() -> usize {
    32
}
fn image_text_hidden_size() -> usize {
    256
}
fn eva() -> VisionConfig {
    VisionConfig::Eva(Default::default())
}

impl Blip2Config {
    /// Reads and checks `config.json`.
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        let mut value: serde_json::Value = serde_json::from_str(json)?;
        normalise(&mut value);
        let mut config: Self = serde_json::from_value(value)?;
        if config.model_type != "blip-2" {
            return Err(ConfigError::Unsupported {
                field: "model_type",
                value: config.model_type,
                reason: "this engine runs `blip-2` checkpoints",
            });
        }
        // transformers forces this too: the Q-Former attends to what the encoder gives
        config.qformer_config.encoder_hidden_size = config.vision_config.hidden_size();
        config.validate()?;
        Ok(config)
    }

    /// Checks the values against each other and against what is implemented.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.vision_config.validate()?;
        self.qformer_config.validate()?;
        if let Some(text) = self.language() {
            text.validate()?;
        }
        Ok(())
    }

    /// The class of the checkpoint.
    pub fn task(&self) -> Task {
        self.architectures
            .first()
            .copied()
            .unwrap_or(Task::ConditionalGeneration)
    }

    /// The language model that the class uses, if any.
    pub fn language(&self) -> Option<&LanguageConfig> {
        match self.task() {
            Task::ConditionalGeneration | Task::Complete => self.text_config.as_ref(),
            _ => None,
        }
    }

    /// Whether the class has an image encoder.
    pub fn has_vision(&self) -> bool {
        self.task() != Task::TextWithProjection
    }

    /// Which trainable parts the class has.
    pub fn bridge(&self) -> BridgeConfig {
        let task = self.task();
        let embed = |tasks: &[Task]| tasks.contains(&task).then_some(self.image_text_hidden_size);
        let stage1 = matches!(task, Task::Stage1 | Task::Complete);
        let mut qformer = self.qformer_config.clone();
        qformer.use_qformer_text_input |=
            stage1 || matches!(task, Task::ImageTextRetrieval | Task::TextWithProjection);
        BridgeConfig {
            qformer,
            num_query_token: self.num_query_tokens,
            ln_vision_eps: self.vision_config.post_layer_norm_eps(),
            vision_projection: embed(&[
                Task::ImageTextRetrieval,
                Task::VisionWithProjection,
                Task::Stage1,
                Task::Complete,
            ]),
            text_projection: embed(&[
                Task::ImageTextRetrieval,
                Task::TextWithProjection,
                Task::Stage1,
                Task::Complete,
            ]),
            itm_head: stage1 || task == Task::ImageTextRetrieval,
            lm_head: stage1,
            temperature: stage1,
            language_projection: self.language().map(LanguageConfig::embed_size),
        }
    }
}

/// Fills what Hugging Face leaves out: the tags of sub-configurations.
fn normalise(value: &mut serde_json::Value) {
    for (part, tag) in [("vision_config", "blip_2_vision_model"), ("text_config", "opt")] {
        if let Some(section) = value.get_mut(part).and_then(|v| v.as_object_mut()) {
            section.entry("model_type").or_insert_with(|| tag.into());
        }
    }
}
