//! `[data]` and `[validation]`: which pictures and texts, and what is done to them.

use serde::{Deserialize, Serialize};

use super::{RecipeError, StageKind};
use crate::data::augment::Transform;
use crate::data::loader::ErrorPolicy;
use crate::data::prepare::CaptionPick;
use crate::data::source::SourceConfig;
use crate::run::trainer::BestRule;

/// Training data.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// Data sets, mixed by their `ratio`, or by their sizes where none has one. For `language_model` also plain
    /// text files (`.txt`, one text a line).
    pub train: Vec<TrainSource>,
    /// Image transform: a LAVIS processor by name, or a table.
    #[serde(default = "train_processor")]
    pub vis_processor: VisProcessor,
    /// Cleaning of captions and questions.
    #[serde(default)]
    pub text_processor: TextProcessor,
    /// Put in front of every caption (LAVIS's processor prompt); part of what is learnt.
    #[serde(default)]
    pub prompt: String,
    /// Words of a caption that are kept.
    #[serde(default = "max_words")]
    pub max_words: usize,
    /// Longest text in tokens.
    #[serde(default = "max_txt_len")]
    pub max_txt_len: usize,
    /// Choice among a picture's captions.
    #[serde(default)]
    pub pick: CaptionPick,
    /// Whole batches from one data set at a time, as LAVIS's multi-loader.
    #[serde(default)]
    pub pure_batches: bool,
    /// Read in a random order.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// Samples in the shuffle buffer of a process (shards only).
    #[serde(default = "buffer")]
    pub buffer: u32,
    /// Draw shards with replacement.
    #[serde(default)]
    pub resample: bool,
    /// Shards a process reads at a time.
    #[serde(default = "one")]
    pub workers: u32,
    /// Threads that decode; 0 for one per processor.
    #[serde(default)]
    pub threads: usize,
    /// Batches prepared ahead.
    #[serde(default = "prefetch")]
    pub prefetch: u32,
    /// Tolerance for bad samples.
    #[serde(default)]
    pub errors: ErrorPolicy,
    /// Lay transparent pictures on white instead of dropping alpha.
    #[serde(default)]
    pub on_white: bool,
    /// Obey EXIF orientation.
    #[serde(default)]
    pub orientation: bool,
    /// `language_model`: several texts in a row until it has `max_txt_len` tokens, so that every position of the
    /// table is trained; otherwise one text a row.
    #[serde(default = "yes")]
    pub pack: bool,
}

fn train_processor() -> VisProcessor {
    VisProcessor::Named("blip2_image_train".into())
}
fn eval_processor() -> VisProcessor {
    VisProcessor::Named("blip_image_eval".into())
}
fn max_words() -> usize {
    blip2_model::processor::text::MAX_WORDS
}
fn max_txt_len() -> usize {
    32
}
fn yes() -> bool {
    true
}
fn buffer() -> u32 {
    1000
}
fn one() -> u32 {
    1
}
fn prefetch() -> u32 {
    4
}

/// One data set: the keys of [`SourceConfig`], and a transform of its own if need be.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "toml::Table")]
pub struct TrainSource {
    /// What it is.
    #[serde(flatten)]
    pub source: SourceConfig,
    /// Instead of `data.vis_processor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vis_processor: Option<VisProcessor>,
}

impl TryFrom<toml::Table> for TrainSource {
    type Error = toml::de::Error;

    /// `flatten` and `deny_unknown_fields` exclude each other, so our own key is taken out first.
    fn try_from(mut table: toml::Table) -> Result<Self, toml::de::Error> {
        let own = table.remove("vis_processor");
        Ok(Self {
            source: table.try_into()?,
            vis_processor: own.map(toml::Value::try_into).transpose()?,
        })
    }
}

/// An image transform.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum VisProcessor {
    /// LAVIS's name, at the model's image size.
    Named(String),
    /// Spelled out.
    Custom(Transform),
}

impl VisProcessor {
    /// The transform for pictures of `size` pixels.
    pub fn transform(&self, size: usize) -> Result<Transform, RecipeError> {
        match self {
            Self::Named(name) => Ok(Transform::named(name, size as u32)?),
            Self::Custom(transform) => Ok(*transform),
        }
    }
}

/// Cleaning of texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextProcessor {
    /// Lower case, punctuation to spaces, at most `max_words` words (questions as `blip_question`).
    #[default]
    BlipCaption,
    /// As it is.
    None,
}

/// Held-out data.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationSection {
    /// Data sets, read from the front in file order.
    pub data: Vec<TrainSource>,
    /// Batches of this process; fewer if the data ends.
    #[serde(default = "batches")]
    pub batches: usize,
    /// Samples in a batch; the training batch size unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<u32>,
    /// Image transform.
    #[serde(default = "eval_processor")]
    pub vis_processor: VisProcessor,
    /// Which number decides about the best checkpoint, such as `{ metric = "loss", higher = false }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<BestRule>,
}

fn batches() -> usize {
    8
}

impl DataSection {
    pub(super) fn check(&self, stage: StageKind) -> Result<(), RecipeError> {
        if self.train.is_empty() {
            return Err(RecipeError::missing("data.train", "training needs a data set"));
        }
        if self.max_txt_len < 2 {
            return Err(RecipeError::setting(
                "data.max_txt_len",
                self.max_txt_len,
                "at least 2: the beginning of a text and one token to predict",
            ));
        }
        let plain = |source: &&TrainSource| source.source.path.ends_with(".txt");
        if let Some(source) = self.train.iter().find(plain)
            && stage != StageKind::LanguageModel
        {
            return Err(RecipeError::setting(
                "data.train.path",
                &source.source.path,
                "a file of plain text has no pictures; only stage = \"language_model\" reads it",
            ));
        }
        Ok(())
    }
}
