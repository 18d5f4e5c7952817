//! A data set as an evaluation sees it: pictures with an id, their reference captions and questions. The texts are read
//! first and kept; encoded pictures stream by, decoded on several threads, each time they are needed.

mod ids;
mod state;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blip2_model::processor::{Alpha, DecodeOptions, RgbImage, decode_bytes};
use serde::{Deserialize, Serialize};

use super::RunError;
use crate::data::facts::{in_order, in_order_without};
use crate::data::mixture::Source;
use crate::data::pipeline::{Pipeline, Work};
use crate::data::prepare::Preparation;
use crate::data::sample::{DataError, ImageSource, Problem, Question, Sample, Skipped};
use crate::data::source::SourceConfig;
use crate::data::stream::Data;
use crate::eval::results::{self, Id};
use ids::{id_of, id_of_path};

/// A question about a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// As result files name it.
    pub id: Id,
    /// Text and answers.
    pub question: Question,
    /// File of the sample that asks it.
    pub shard: Arc<str>,
    /// Key of that sample.
    pub key: String,
}

/// One picture of the data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// As result files name it.
    pub id: Id,
    /// Number of the first sample that shows it.
    number: u64,
    /// Its file, if it has one of its own.
    path: Option<PathBuf>,
    /// Samples that show it.
    samples: usize,
    /// Key of that sample.
    pub key: String,
    /// File of that sample.
    pub shard: Arc<str>,
    /// Reference captions, as written.
    pub captions: Vec<String>,
    /// Of each caption, whether its sample says that it belongs to the picture, and the key of that sample.
    pub labels: Vec<(Option<bool>, String)>,
    /// Questions.
    pub questions: Vec<Asked>,
}

/// Which part of a data set to evaluate, and how its pictures are decoded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// File with one key or picture id per line; others are left out.
    pub keys: Option<PathBuf>,
    /// Only so many pictures, from the beginning.
    pub limit: Option<usize>,
    /// Lay transparent pictures on white; otherwise alpha is dropped, as transformers does.
    pub on_white: bool,
}

/// See the module documentation.
pub struct Pictures {
    /// All pictures, in the order of the data set.
    pub list: Vec<Picture>,
    /// SHA-256 over the files of the data set.
    pub sha256: String,
    /// SHA-256 over what tells that picture files, or the list of [`Selection::keys`], have changed; `None` if there are
    /// none.
    pub state_sha256: Option<String>,
    /// Samples of the selected part without usable text or picture reference, by number in the data set.
    pub skipped: Vec<(u64, Skipped)>,
    source: Source,
    samples: u64,
    decode: DecodeOptions,
}

/// What the first pass keeps of a sample.
struct Entry {
    key: String,
    shard: Arc<str>,
    path: Option<PathBuf>,
    captions: Vec<String>,
    label: Option<bool>,
    question: Option<Question>,
    image_id: Option<String>,
    image_index: Option<u32>,
}

fn entry(sample: Sample) -> Entry {
    Entry {
        path: match sample.image {
            ImageSource::Path(path) => Some(path),
            ImageSource::Bytes(_) => None,
        },
        key: sample.key,
        shard: sample.shard,
        captions: sample.captions,
        label: sample.label,
        question: sample.question,
        image_id: sample.image_id,
        image_index: sample.image_index,
    }
}

impl Pictures {
    /// Reads the texts of the data set and hashes its files.
    pub fn open(config: &SourceConfig, selection: &Selection, threads: usize) -> Result<Self, RunError> {
        let config = SourceConfig {
            pairs: Some(false),
            ..config.clone()
        };
        let source = config.open()?;
        let files = match &source.data {
            Data::Shards(set) => set.paths.clone(),
            Data::Rows(set) => [Some(PathBuf::from(&**set.shard())), config.answers.clone()]
                .into_iter()
                .flatten()
                .filter(|file| file.is_file())
                .collect(),
        };
        if files.iter().any(|file| file.as_os_str() == "-") {
            return Err(RunError::Stdin);
        }
        if let (Data::Shards(_), Some(answers)) = (&source.data, &config.answers) {
            return Err(RunError::Setting {
                name: "--answers",
                value: answers.display().to_string(),
                remedy: "shards hold their answers themselves; give --answers with a file of questions",
            });
        }
        let mut pictures = Self {
            list: Vec::new(),
            sha256: results::sha256_files(&files)?,
            state_sha256: None,
            skipped: Vec::new(),
            source,
            samples: 0,
            decode: DecodeOptions {
                max_pixels: Preparation::default().max_pixels,
                alpha: match selection.on_white {
                    true => Alpha::OnWhite,
                    false => Alpha::Drop,
                },
                ..DecodeOptions::default()
            },
        };
        pictures.read_texts(threads)?;
        if files.is_empty() {
            let text: Vec<String> = pictures
                .list
                .iter()
                .map(|p| format!("{} {:?}\n", p.id, p.captions))
                .collect();
            pictures.sha256 = results::sha256(text.concat().as_bytes());
        }
        pictures.separate_ids();
        pictures.select(selection)?;
        pictures.note_state(&config, selection)?;
        if let (true, Some((_, last))) = (pictures.list.is_empty(), pictures.skipped.last()) {
            return Err(RunError::AllBad {
                count: pictures.skipped.len(),
                last: last.to_string(),
            });
        }
        if pictures.list.is_empty() {
            return Err(RunError::Nothing {
                data: pictures.source.name,
                what: "pictures",
            });
        }
        Ok(pictures)
    }

    /// Name of the data set.
    pub fn name(&self) -> &str {
        &self.source.name
    }

    /// Samples of the selected part, bad ones included.
    pub fn samples(&self) -> usize {
        let good: usize = self.list.iter().map(|picture| picture.samples).sum();
        good + self.skipped.len()
    }

    /// The pictures at these positions.
    pub fn at(&self, positions: &[usize]) -> Vec<&Picture> {
        positions.iter().map(|&at| &self.list[at]).collect()
    }

    fn read_texts(&mut self, threads: usize) -> Result<(), RunError> {
        #[derive(PartialEq, Eq, Hash)]
        enum Identity {
            Row(u32),
            Id(String),
        }
        let mut known: HashMap<Identity, usize> = HashMap::new();
        let work: Work<Entry> = Arc::new(|_, _, sample| Ok(entry(sample)));
        for item in in_order(&self.source, threads, work)? {
            let item = item?;
            self.samples = item.number + 1;
            let entry = match item.outcome {
                Ok(entry) => entry,
                Err(skipped) => {
                    self.skipped.push((item.number, skipped));
                    continue;
                }
            };
            let identity = match (entry.image_index, &entry.image_id) {
                (Some(index), _) => Some(Identity::Row(index)),
                (None, id) => id.clone().map(Identity::Id),
            };
            let next = self.list.len();
            let at = identity.map_or(next, |identity| *known.entry(identity).or_insert(next));
            if at == next {
                let id = match (&entry.image_id, &entry.path) {
                    (Some(id), _) => id_of(id),
                    (None, Some(path)) => id_of_path(path),
                    (None, None) => Id::Text(entry.key.clone()),
                };
                self.list.push(Picture {
                    id,
                    number: item.number,
                    path: entry.path,
                    samples: 0,
                    key: entry.key.clone(),
                    shard: entry.shard.clone(),
                    captions: Vec::new(),
                    labels: Vec::new(),
                    questions: Vec::new(),
                });
            }
            let picture = &mut self.list[at];
            picture.samples += 1;
            let captions = entry.captions.into_iter().filter(|c| !c.trim().is_empty());
            picture.captions.extend(captions);
            picture
                .labels
                .resize(picture.captions.len(), (entry.label, entry.key.clone()));
            picture.questions.extend(entry.question.map(|question| Asked {
                id: id_of(question.id.as_deref().unwrap_or(&entry.key)),
                question,
                shard: entry.shard,
                key: entry.key,
            }));
        }
        Ok(())
    }

    fn select(&mut self, selection: &Selection) -> Result<(), RunError> {
        if let Some(file) = &selection.keys {
            let text = std::fs::read_to_string(file).map_err(DataError::io(file))?;
            let wanted: HashSet<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
            let mut found: HashSet<String> = HashSet::new();
            self.list.retain(|picture| {
                let names = [picture.key.clone(), picture.id.to_string()];
                let keep = names.iter().any(|name| wanted.contains(name.as_str()));
                found.extend(names);
                keep
            });
            found.extend(self.skipped.iter().map(|(_, skipped)| skipped.key.clone()));
            self.skipped
                .retain(|(_, skipped)| wanted.contains(skipped.key.as_str()));
            let missing: Vec<&str> = text
                .lines()
                .map(str::trim)
                .filter(|l| !l.is_empty() && !found.contains(*l))
                .collect();
            if let Some(first) = missing.first() {
                return Err(RunError::UnknownKey {
                    file: file.clone(),
                    key: (*first).to_owned(),
                    more: missing.len() - 1,
                });
            }
        }
        let limit = selection.limit.unwrap_or(usize::MAX);
        if let Some(beyond) = self.list.get(limit) {
            let end = beyond.number;
            self.skipped.retain(|(number, _)| *number < end);
            self.list.truncate(limit);
        }
        Ok(())
    }

    /// Notes the state of the picture files that were selected, and of the list that selected them.
    fn note_state(&mut self, config: &SourceConfig, selection: &Selection) -> Result<(), RunError> {
        let mut roots: Vec<PathBuf> = config.images.iter().cloned().collect();
        if let Data::Rows(set) = &self.source.data {
            let file = PathBuf::from(&**set.shard());
            // a folder without a file of captions is its own root
            roots.extend(match file.is_dir() {
                true => Some(file),
                false => file.parent().map(Path::to_owned),
            });
        }
        let paths: Vec<&Path> = self.list.iter().filter_map(|p| p.path.as_deref()).collect();
        let pictures = state::of_files(&paths, &roots);
        self.state_sha256 = match &selection.keys {
            None => pictures,
            Some(keys) => {
                let keys = results::sha256_file(keys)?;
                Some(results::sha256(
                    format!("{keys} {}", pictures.unwrap_or_default()).as_bytes(),
                ))
            }
        };
        Ok(())
    }

    /// Decodes the pictures at `wanted` (ascending positions in [`Self::list`]) and does `work` on each, on several
    /// threads; results come in that order.
    pub fn stream<T: Send + 'static>(
        &self,
        wanted: &[usize],
        threads: usize,
        work: impl Fn(RgbImage) -> Result<T, Problem> + Send + Sync + 'static,
    ) -> Result<Stream<T>, RunError> {
        let position: HashMap<u64, usize> = wanted.iter().map(|&at| (self.list[at].number, at)).collect();
        let passed_over = (0..self.samples).filter(|n| !position.contains_key(n)).collect();
        let decode = self.decode.clone();
        let work: Work<T> = Arc::new(move |_, _, sample: Sample| {
            let bytes = sample.image.read(Preparation::default().max_bytes)?;
            let image =
                decode_bytes(&bytes, &sample.key, &decode).map_err(|e| Problem::Decode(Arc::new(e)))?;
            work(image)
        });
        Ok(Stream {
            pipeline: in_order_without(&self.source, threads, passed_over, work)?,
            position,
        })
    }
}

/// Pictures on their way; see [`Pictures::stream`].
pub struct Stream<T> {
    pipeline: Pipeline<T>,
    position: HashMap<u64, usize>,
}

impl<T: Send + 'static> Iterator for Stream<T> {
    type Item = Result<(usize, Result<T, Skipped>), DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.pipeline.next()? {
                Err(error) => return Some(Err(error)),
                Ok(item) => {
                    if let Some(&at) = self.position.get(&item.number) {
                        return Some(Ok((at, item.outcome)));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
