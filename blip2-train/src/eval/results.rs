//! Result files: predictions in the COCO / LAVIS format, the report of scores beside them, journals to resume from.
//!
//! A run over several processes writes one journal per process; [`merge`] puts them together and drops what two of
//! them predicted (the last batch of a split data set is padded by repetition).

mod hash;
mod journal;

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::hash::Hash;
use std::io::BufReader;
use std::path::Path;

use blip2_model::atomic;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::EvalError;
pub use hash::{sha256, sha256_file, sha256_files};
pub use journal::{Journal, journal_ids, journal_path, ranks, read_journals};

/// Id of an image or a question: a number in COCO and VQA files, a string in some others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Id {
    /// A number.
    Number(i64),
    /// A string.
    Text(String),
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(n) => n.fmt(f),
            Self::Text(s) => s.fmt(f),
        }
    }
}

impl From<i64> for Id {
    fn from(id: i64) -> Self {
        Self::Number(id)
    }
}

impl From<&str> for Id {
    fn from(id: &str) -> Self {
        Self::Text(id.to_string())
    }
}

/// One line of a caption result file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Caption {
    /// The image.
    pub image_id: Id,
    /// Its predicted caption.
    pub caption: String,
}

/// One line of a VQA result file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The question.
    pub question_id: Id,
    /// The predicted answer.
    pub answer: String,
}

/// A line of a result file.
pub trait Prediction: Serialize + DeserializeOwned {
    /// What it predicts for.
    fn id(&self) -> &Id;
}

impl Prediction for Caption {
    fn id(&self) -> &Id {
        &self.image_id
    }
}

impl Prediction for Answer {
    fn id(&self) -> &Id {
        &self.question_id
    }
}

/// Reads `predictions.json`.
///
/// # Errors
/// [`EvalError::File`], [`EvalError::Json`].
pub fn read<P: Prediction>(path: &Path) -> Result<Vec<P>, EvalError> {
    let file = File::open(path).map_err(EvalError::file(path))?;
    serde_json::from_reader(BufReader::new(file)).map_err(EvalError::json(path))
}

/// Writes `predictions.json`, `scores.json`: to a temporary file in the same folder, synced, then renamed.
///
/// # Errors
/// [`EvalError::File`], [`EvalError::Json`].
pub fn write<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<(), EvalError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(EvalError::json(path))?;
    text.push(b'\n');
    write_bytes(path, &text)
}

/// Writes any file the same way.
///
/// # Errors
/// [`EvalError::File`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), EvalError> {
    atomic::write(path, bytes).map_err(EvalError::file(path))
}

/// Puts the processes' predictions together, in their order; of two with the same id the first stays.
///
/// Returns them with the number that was dropped.
pub fn merge<P: Prediction>(parts: impl IntoIterator<Item = Vec<P>>) -> (Vec<P>, usize) {
    let mut seen: HashSet<Id> = HashSet::new();
    let mut dropped = 0;
    let mut merged = Vec::new();
    for prediction in parts.into_iter().flatten() {
        if seen.insert(prediction.id().clone()) {
            merged.push(prediction);
        } else {
            dropped += 1;
        }
    }
    (merged, dropped)
}

/// One figure of a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Its name as in [`super::expected`] (`CIDEr`, `overall`, `TR@1`).
    pub metric: String,
    /// In points: BLEU, CIDEr and the like times 100, accuracies and recalls in percent.
    pub value: f64,
    /// The published figure in the same unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<f64>,
}

/// `scores.json`: what was evaluated, on what, and what came out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// `caption`, `vqa`, `retrieval`, `itm`.
    pub task: String,
    /// Name of the recipe.
    pub recipe: String,
    /// Version of the program.
    pub version: String,
    /// SHA-256 of the configuration as it was in force.
    pub config_sha256: String,
    /// SHA-256 over the model's weights and settings.
    pub model_sha256: String,
    /// SHA-256 over the files of the data set.
    pub data_sha256: String,
    /// Items scored.
    pub items: usize,
    /// Processes that took part.
    pub processes: usize,
    /// Seconds of work of the slowest process, over all its starts, without loading the model.
    pub wall_seconds: f64,
    /// Pictures and questions left out because they cannot be read.
    #[serde(default)]
    pub skipped: usize,
    /// The configuration in force.
    #[serde(default)]
    pub config: serde_json::Value,
    /// The figures.
    pub scores: Vec<Score>,
}

#[cfg(test)]
mod tests;
