//! Annotation files and the pictures they name: LAVIS, COCO, Karpathy, VQA, plain lists.
//!
//! What the fields are called is in [`super::formats`].

mod answers;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::formats::{Format, Layout};
use super::official;
use super::records::{Container, for_each_row};
use super::sample::{DataError, ImageSource, Problem, Question, Sample, Skipped};

/// A row kept in memory.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub image: String,
    pub captions: Vec<String>,
    pub label: Option<bool>,
    pub question: Option<Box<Question>>,
    pub image_id: Option<String>,
    pub image_index: u32,
}

/// What to read.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnnotationConfig {
    /// .json, .jsonl, .csv or .tsv.
    pub path: PathBuf,
    /// Folder the picture paths are relative to; the annotation file's folder when absent.
    #[serde(default)]
    pub images: Option<PathBuf>,
    /// Name in [`super::formats::FORMATS`].
    #[serde(default = "auto_name")]
    pub format: String,
    /// Karpathy files: "train" (with restval), "val" or "test"; everything when absent.
    #[serde(default)]
    pub split: Option<String>,
    /// Files of questions: the official annotations with their answers, joined by `question_id`.
    #[serde(default)]
    pub answers: Option<PathBuf>,
    /// One sample per caption (training) instead of one per picture.
    #[serde(default = "yes")]
    pub pairs: bool,
}

fn auto_name() -> String {
    "auto".into()
}

fn yes() -> bool {
    true
}

impl AnnotationConfig {
    /// `path` in the lenient format, one sample per caption, pictures beside the file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            images: None,
            format: auto_name(),
            split: None,
            answers: None,
            pairs: true,
        }
    }
}

/// An annotation file in memory; pictures are opened later, by the thread that decodes them.
#[derive(Clone, Debug)]
pub struct AnnotationSet {
    shard: Arc<str>,
    images: PathBuf,
    entries: Vec<Result<Entry, Problem>>,
}

/// Texts of a retrieval evaluation and which picture each belongs to, by position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetrievalIndex {
    /// Every caption, in file order.
    pub texts: Vec<String>,
    /// Texts of each sample.
    pub image_to_texts: Vec<Vec<u32>>,
    /// Sample of each text.
    pub text_to_image: Vec<u32>,
}

impl AnnotationSet {
    /// Reads the file named by `config`. Rows that cannot be used stay in the set and fail when asked for.
    pub fn open(config: &AnnotationConfig) -> Result<Self, DataError> {
        let bytes = std::fs::read(&config.path).map_err(DataError::io(&config.path))?;
        let answers = match &config.answers {
            Some(path) => Some(std::fs::read(path).map_err(DataError::io(path))?),
            None => None,
        };
        Self::from_bytes(&bytes, answers.as_deref(), config)
    }

    /// As [`AnnotationSet::open`] on bytes already read; `config.path` gives the container and appears in messages.
    pub fn from_bytes(
        bytes: &[u8],
        answers: Option<&[u8]>,
        config: &AnnotationConfig,
    ) -> Result<Self, DataError> {
        let format = Format::named(&config.format)?;
        let container = Container::of(&config.path).ok_or_else(|| DataError::UnknownKind {
            path: config.path.clone(),
        })?;
        let parent = || config.path.parent().unwrap_or(Path::new("")).to_owned();
        let mut set = Self {
            shard: config.path.to_string_lossy().into(),
            images: config.images.clone().unwrap_or_else(parent),
            entries: Vec::new(),
        };
        let json = |source| DataError::Json {
            path: config.path.clone(),
            source,
        };
        match format.layout {
            Layout::Rows => for_each_row(bytes, container, &config.path, &mut |row| {
                set.entries.push(row.and_then(|row| format.entry(&row)));
            })?,
            Layout::Karpathy => {
                set.entries = official::karpathy(bytes, config.split.as_deref()).map_err(json)?
            }
            Layout::CocoOfficial => set.entries = official::coco(bytes).map_err(json)?,
            Layout::VqaOfficial => set.entries = official::vqa(bytes).map_err(json)?,
        }
        if let Some(bytes) = answers {
            let path = config.answers.as_deref().unwrap_or(Path::new("answers"));
            answers::join(&mut set.entries, bytes, path)?;
        }
        Ok(set.finish(config.pairs))
    }

    pub(super) fn from_entries(
        source: &Path,
        images: PathBuf,
        entries: Vec<Result<Entry, Problem>>,
        pairs: bool,
    ) -> Self {
        Self {
            shard: source.to_string_lossy().into(),
            images,
            entries,
        }
        .finish(pairs)
    }

    pub(super) fn with_images(self, images: PathBuf) -> Self {
        Self { images, ..self }
    }

    pub(super) fn image_names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().flatten().map(|e| e.image.as_str())
    }

    fn finish(mut self, pairs: bool) -> Self {
        self.number_images();
        if pairs {
            self.split_captions();
        }
        self
    }

    fn number_images(&mut self) {
        let mut numbers: HashMap<String, u32> = HashMap::new();
        for entry in self.entries.iter_mut().flatten() {
            let name = entry.image_id.as_ref().unwrap_or(&entry.image);
            let next = numbers.len() as u32;
            entry.image_index = *numbers.entry(name.clone()).or_insert(next);
        }
    }

    fn split_captions(&mut self) {
        let entries = std::mem::take(&mut self.entries);
        for entry in entries {
            match entry {
                Ok(mut entry) if entry.captions.len() > 1 => {
                    for caption in std::mem::take(&mut entry.captions) {
                        self.entries.push(Ok(Entry {
                            captions: vec![caption],
                            ..entry.clone()
                        }));
                    }
                }
                other => self.entries.push(other),
            }
        }
    }

    /// The annotation file's name.
    pub fn shard(&self) -> &Arc<str> {
        &self.shard
    }

    /// Number of samples, unusable ones included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True without samples.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Sample `index`; its key is the index (LAVIS `instance_id`).
    pub fn sample(&self, index: usize) -> Option<Result<Sample, Skipped>> {
        let key = index.to_string();
        Some(match self.entries.get(index)? {
            Err(problem) => Err(Skipped {
                shard: self.shard.clone(),
                key,
                problem: problem.clone(),
            }),
            Ok(entry) => Ok(Sample {
                key,
                shard: self.shard.clone(),
                image: ImageSource::Path(self.images.join(&entry.image)),
                captions: entry.captions.clone(),
                label: entry.label,
                question: entry.question.as_deref().cloned(),
                image_id: entry.image_id.clone(),
                image_index: Some(entry.image_index),
            }),
        })
    }

    /// Texts and maps for retrieval evaluation; open the set with `pairs: false`.
    pub fn retrieval_index(&self) -> RetrievalIndex {
        let mut index = RetrievalIndex::default();
        for (i, entry) in self.entries.iter().enumerate() {
            let captions = entry.as_ref().map(|e| e.captions.as_slice()).unwrap_or_default();
            let start = index.texts.len() as u32;
            index.texts.extend_from_slice(captions);
            index
                .image_to_texts
                .push((start..index.texts.len() as u32).collect());
            index.text_to_image.extend(captions.iter().map(|_| i as u32));
        }
        index
    }
}

impl burn_dataset::Dataset<Sample> for AnnotationSet {
    /// `None` also for a row that cannot be used; [`AnnotationSet::sample`] says why.
    fn get(&self, index: usize) -> Option<Sample> {
        self.sample(index)?.ok()
    }

    fn len(&self) -> usize {
        self.entries.len()
    }
}

/// The number COCO result files want: the trailing digits of the file name.
///
/// `val2014/COCO_val2014_000000522418.jpg` gives 522418.
pub fn coco_image_id(image: &str) -> Option<u64> {
    let stem = Path::new(image).file_stem()?.to_str()?;
    stem.rsplit('_').next()?.parse().ok()
}

#[cfg(test)]
mod tests;
