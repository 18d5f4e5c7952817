//! A data set as an evaluation sees it: pictures with an id, their reference captions and questions. The texts are read
//! first and kept; encoded pictures stream by, decoded on several threads, each time they are needed.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blip2_model::processor::{Alpha, DecodeOptions, RgbImage, decode_bytes};
use serde::{Deserialize, Serialize};

use super::RunError;
use crate::data::annotations::coco_image_id;
use crate::data::facts::{in_order, in_order_without};
use crate::data::mixture::Source;
use crate::data::pipeline::{Pipeline, Work};
use crate::data::prepare::Preparation;
use crate::data::records::{Container, for_each_row};
use crate::data::sample::{DataError, ImageSource, Problem, Question, Sample, Skipped};
use crate::data::source::SourceConfig;
use crate::data::stream::Data;
use crate::eval::results::{self, Id};

/// A question about a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// As result files name it.
    pub id: Id,
    /// Text and answers.
    pub question: Question,
}

/// One picture of the data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// As result files name it.
    pub id: Id,
    /// Number of the first sample that shows it.
    number: u64,
    /// Key of that sample.
    pub key: String,
    /// File of that sample.
    pub shard: Arc<str>,
    /// Reference captions, as written.
    pub captions: Vec<String>,
    /// Key of the sample that each caption comes from.
    pub caption_keys: Vec<String>,
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
    /// Samples without usable text or picture reference.
    pub skipped: Vec<Skipped>,
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
        question: sample.question,
        image_id: sample.image_id,
        image_index: sample.image_index,
    }
}

/// 0 and 1 as JSON writes them, and as the text that a CSV file has for them.
fn truth(value: &serde_json::Value) -> Option<bool> {
    use serde_json::Value;
    match value {
        Value::Bool(label) => Some(*label),
        Value::Number(_) | Value::String(_) => match value.as_str().unwrap_or(&value.to_string()).trim() {
            "1" | "true" => Some(true),
            "0" | "false" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// Numbers stay numbers, as in COCO's files; `coco_522418` is how LAVIS writes them.
fn id_of(text: &str) -> Id {
    let text = text
        .strip_prefix("coco_")
        .filter(|rest| rest.parse::<u64>().is_ok())
        .unwrap_or(text);
    match text.parse::<i64>() {
        Ok(number) if number.to_string() == text => Id::Number(number),
        _ => Id::Text(text.to_owned()),
    }
}

/// COCO's number where the file name has one, else the name.
fn id_of_path(path: &Path) -> Id {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match coco_image_id(&name) {
        Some(number) if name.starts_with("COCO_") => Id::Number(number as i64),
        _ => Id::Text(name.into_owned()),
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
        let mut pictures = Self {
            list: Vec::new(),
            sha256: results::sha256_files(&files)?,
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

    /// The pictures at these positions.
    pub fn at(&self, positions: &[usize]) -> Vec<&Picture> {
        positions.iter().map(|&at| &self.list[at]).collect()
    }

    /// `label` of each sample of an annotation file by key: whether its caption belongs to its picture.
    ///
    /// # Errors
    /// [`RunError::Label`] for a row without one, or if the data set is no file of rows.
    pub fn labels(&self) -> Result<HashMap<String, bool>, RunError> {
        let name = &self.source.name;
        let fault = |row: String, problem: &'static str| RunError::Label {
            data: name.clone(),
            row,
            problem,
        };
        let file = match &self.source.data {
            Data::Rows(set) => PathBuf::from(&**set.shard()),
            Data::Shards(set) => set.paths.first().cloned().unwrap_or_default(),
        };
        let Some(container) = Container::of(&file) else {
            return Err(fault(
                "the whole set".into(),
                "is no .jsonl, .json, .csv or .tsv file",
            ));
        };
        let bytes = std::fs::read(&file).map_err(DataError::io(&file))?;
        let (mut labels, mut bad, mut number) = (HashMap::new(), None, 0usize);
        for_each_row(&bytes, container, &file, &mut |row| {
            // the key of a row is its number
            let key = number.to_string();
            number += 1;
            // a row that cannot be read at all is among the skipped samples
            let Ok(row) = row else { return };
            match row.get("label").and_then(truth) {
                Some(label) => {
                    labels.insert(key, label);
                }
                None => bad = bad.take().or(Some(key)),
            }
        })?;
        match bad {
            Some(row) => Err(fault(format!("row {row}"), "has no `label` of 0 or 1")),
            None => Ok(labels),
        }
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
                    self.skipped.push(skipped);
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
                    key: entry.key.clone(),
                    shard: entry.shard,
                    captions: Vec::new(),
                    caption_keys: Vec::new(),
                    questions: Vec::new(),
                });
            }
            let picture = &mut self.list[at];
            let captions = entry.captions.into_iter().filter(|c| !c.trim().is_empty());
            picture.captions.extend(captions);
            picture
                .caption_keys
                .resize(picture.captions.len(), entry.key.clone());
            picture.questions.extend(entry.question.map(|question| Asked {
                id: id_of(question.id.as_deref().unwrap_or(&entry.key)),
                question,
            }));
        }
        Ok(())
    }

    /// Different pictures under one id get the file's name in front.
    fn separate_ids(&mut self) {
        let mut seen = HashSet::new();
        let repeated: HashSet<Id> = self
            .list
            .iter()
            .filter(|picture| !seen.insert(picture.id.clone()))
            .map(|picture| picture.id.clone())
            .collect();
        for picture in self.list.iter_mut().filter(|p| repeated.contains(&p.id)) {
            picture.id = Id::Text(format!("{}:{}", picture.shard, picture.key));
        }
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
        self.list.truncate(selection.limit.unwrap_or(usize::MAX));
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
