//! Recipes: everything about a training run in one TOML file (the counterpart of LAVIS's YAML, with its names
//! where it has one). Unknown keys are errors.
//!
//! A recipe becomes a run in four steps: [`weights`] puts tensors from several places together, [`tokens`] finds
//! the tokenizers, [`feeds`] opens the data, [`start`] builds stage and module and hands all to the trainer.

use std::path::{Path, PathBuf};

use blip2_model::config::ConfigError;
use blip2_model::processor::ProcessorError;
use blip2_model::weights::WeightsError;
use serde::{Deserialize, Serialize};

use crate::data::sample::DataError;
use crate::run::feature_cache::FeatureError;
use crate::run::{CheckpointError, RunError, SourceError};
use crate::stage::StageError;
use crate::stage::lora::NoTargets;

pub mod architecture;
pub mod cost;
pub mod data;
pub mod drawn;
pub mod export;
pub mod features;
pub mod feeds;
pub mod lavis_yaml;
pub mod model;
pub mod origins;
pub mod set;
pub mod start;
pub mod tokens;
pub mod train;
pub mod weights;

pub use data::{DataSection, ValidationSection};
pub use model::ModelSection;
pub use train::{OptimizerSection, ScheduleSection, Stage1Section, Stage2Section, TrainSection};

/// What a run trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StageKind {
    /// Contrast, matching and grounded generation (paper section 3.1); retrieval fine-tuning.
    #[serde(rename = "stage1")]
    Stage1,
    /// Queries as a prompt for a language model (section 3.2); caption and answer fine-tuning.
    #[serde(rename = "stage2")]
    Stage2,
    /// A language model alone, on plain text.
    #[serde(rename = "language_model")]
    LanguageModel,
}

/// A training run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What trains.
    pub stage: StageKind,
    /// Name of the recipe; the run folder is `runs/NAME` unless `--out` says otherwise.
    #[serde(default)]
    pub name: Option<String>,
    /// Published scores and where they were published; shown by `--dry-run`, changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<toml::Table>,
    /// Architecture and initial weights.
    #[serde(default)]
    pub model: ModelSection,
    /// Pictures and texts.
    pub data: DataSection,
    /// AdamW.
    #[serde(default)]
    pub optimizer: OptimizerSection,
    /// Learning rate and length.
    #[serde(default)]
    pub schedule: ScheduleSection,
    /// The loop.
    #[serde(default)]
    pub train: TrainSection,
    /// Losses of stage 1.
    #[serde(default)]
    pub stage1: Stage1Section,
    /// Task of stage 2.
    #[serde(default)]
    pub stage2: Stage2Section,
    /// Held-out losses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationSection>,
}

/// Why a recipe cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, or a key that does not exist.
    #[error("{origin}: {source}")]
    Parse {
        /// File name, or the `--set` arguments.
        origin: String,
        /// Line, column, and the keys that do exist.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A `--set` argument that names no place.
    #[error("--set {argument}: {reason}")]
    Set {
        /// As given.
        argument: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A LAVIS configuration that has no counterpart here.
    #[error("{reason}")]
    Yaml {
        /// Key and remedy.
        reason: String,
    },
    /// A value that makes no sense here.
    #[error("{key} = {value}: {remedy}")]
    Setting {
        /// Dotted key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What would be accepted.
        remedy: String,
    },
    /// A key without which the recipe cannot run.
    #[error("{key} is missing: {why}")]
    Missing {
        /// Dotted key.
        key: &'static str,
        /// What it is needed for.
        why: String,
    },
    /// Weights that nobody provides.
    #[error(
        "no weights for {count} tensors of the {part}, the first being {first}; give `{key}` in [model], or `init = \"random\"` to start from nothing"
    )]
    NoWeights {
        /// The part.
        part: &'static str,
        /// How many.
        count: usize,
        /// One of them.
        first: String,
        /// Key that would provide them.
        key: &'static str,
    },
    /// The tokenizer knows tokens that the model has no row for.
    #[error(
        "{}: the tokenizer has {tokens} tokens, but {part}.vocab_size is {rows}; give the model as many rows",
        folder.display()
    )]
    Vocabulary {
        /// Folder of the tokenizer.
        folder: PathBuf,
        /// Its size.
        tokens: usize,
        /// Section of the configuration.
        part: &'static str,
        /// Rows there.
        rows: usize,
    },
    /// Neither a folder nor a model on the hub.
    #[error("`{place}` is no folder here, and as a model on the hub: {source}")]
    Place {
        /// As given.
        place: String,
        /// What the hub says.
        #[source]
        source: Box<WeightsError>,
    },
    /// See the source.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A dtype that does not work.
    #[error(transparent)]
    Half(#[from] blip2_model::checkpoint::policy::PolicyError),
    /// See the source.
    #[error(transparent)]
    Weights(#[from] Box<WeightsError>),
    /// See the source.
    #[error(transparent)]
    Processor(#[from] Box<ProcessorError>),
    /// See the source.
    #[error(transparent)]
    Data(#[from] Box<DataError>),
    /// See the source.
    #[error(transparent)]
    Run(#[from] Box<RunError>),
    /// See the source.
    #[error(transparent)]
    Feature(#[from] Box<FeatureError>),
    /// See the source.
    #[error(transparent)]
    Lora(#[from] NoTargets),
    /// See the source.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// A batch could not be made.
    #[error("data: {0}")]
    Batch(#[source] SourceError),
    /// A recipe cannot be written down as JSON.
    #[error("recipe: {0}")]
    Json(#[from] serde_json::Error),
}

macro_rules! boxed {
    ($($error:ty => $variant:ident),* $(,)?) => {
        $(impl From<$error> for RecipeError {
            fn from(error: $error) -> Self {
                Self::$variant(Box::new(error))
            }
        })*
    };
}
boxed!(WeightsError => Weights, ProcessorError => Processor, DataError => Data, RunError => Run, FeatureError => Feature);

impl From<CheckpointError> for RecipeError {
    fn from(error: CheckpointError) -> Self {
        Self::Run(Box::new(error.into()))
    }
}

impl RecipeError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn setting(key: &'static str, value: impl ToString, remedy: impl Into<String>) -> Self {
        Self::Setting {
            key,
            value: value.to_string(),
            remedy: remedy.into(),
        }
    }

    pub(crate) fn missing(key: &'static str, why: impl Into<String>) -> Self {
        Self::Missing { key, why: why.into() }
    }
}

impl Recipe {
    /// Reads a file and applies `key=value` arguments (see [`set`]).
    pub fn open(path: &Path, sets: &[String]) -> Result<Self, RecipeError> {
        let text = std::fs::read_to_string(path).map_err(RecipeError::io(path))?;
        Self::parse(&text, &path.display().to_string(), sets)
    }

    /// Reads the text of a recipe; `origin` names it in errors.
    pub fn parse(text: &str, origin: &str, sets: &[String]) -> Result<Self, RecipeError> {
        let parse = |origin: String| {
            move |source| RecipeError::Parse {
                origin,
                source: Box::new(source),
            }
        };
        let recipe: Self = match sets {
            [] => toml::from_str(text).map_err(parse(origin.into()))?,
            _ => {
                let mut table: toml::Table = toml::from_str(text).map_err(parse(origin.into()))?;
                for argument in sets {
                    set::apply(&mut table, argument)?;
                }
                table.try_into().map_err(parse(format!("{origin} with --set")))?
            }
        };
        recipe.check()?;
        Ok(recipe)
    }

    /// Checks what can be checked without opening anything.
    pub fn check(&self) -> Result<(), RecipeError> {
        self.model.check(self.stage)?;
        self.data.check(self.stage)?;
        self.train.check(self)?;
        self.schedule.check()?;
        Ok(())
    }

    /// `name`, or the word for the stage.
    pub fn title(&self) -> &str {
        self.name.as_deref().unwrap_or(match self.stage {
            StageKind::Stage1 => "stage1",
            StageKind::Stage2 => "stage2",
            StageKind::LanguageModel => "language-model",
        })
    }
}

#[cfg(test)]
mod published;
#[cfg(test)]
mod runs;
#[cfg(test)]
mod tests;
