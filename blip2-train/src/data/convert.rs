//! From any format that is read to WebDataset shards, a folder, or an annotation file with pictures.
//!
//! Encoded pictures are copied, never decoded. Shards are written one by one under their final name; a stopped
//! conversion goes on after the last complete shard.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blip2_model::processor::read_header;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::facts::extension_of;
use super::mixture::{Cursor, Mixture, MixtureConfig, Source, Start};
use super::output::{AtomicFile, Unique, append, safe_key, write_file};
use super::prepare::Preparation;
use super::sample::{DataError, ImageSource, Problem, Sample, Skipped};
use super::stream::Order;

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `PREFIX-00000.tar`, ... in a folder.
    Tar {
        /// The folder.
        folder: PathBuf,
        /// Start of the shard names.
        prefix: String,
        /// Samples in a shard.
        per_shard: u32,
    },
    /// `images/` and `captions.jsonl` in a folder.
    Folder {
        /// The folder.
        folder: PathBuf,
    },
    /// `annotations.json`, a list in LAVIS' form, and `images/`, in a folder.
    Json {
        /// The folder.
        folder: PathBuf,
    },
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Converted {
    /// Samples written, those of an earlier, stopped conversion included.
    pub samples: u64,
    /// Samples passed over.
    pub skipped: u64,
    /// Shards written.
    pub shards: u32,
}

/// State of a stopped conversion to shards.
#[derive(Serialize, Deserialize)]
struct Progress {
    per_shard: u32,
    cursor: Cursor,
    done: Converted,
    complete: bool,
}

/// Writes all samples of `source` to `target`. `skipped` hears of each sample passed over; `progress` is called with
/// the samples read so far.
pub fn convert(
    source: &Source,
    target: &Target,
    skipped: &mut dyn FnMut(&Skipped),
    progress: &dyn Fn(u64),
) -> Result<Converted, DataError> {
    match target {
        Target::Tar {
            folder,
            prefix,
            per_shard,
        } => to_tar(source, folder, prefix, *per_shard, skipped, progress),
        Target::Folder { folder } => to_folder(source, folder, false, skipped, progress),
        Target::Json { folder } => to_folder(source, folder, true, skipped, progress),
    }
}

fn in_order(source: &Source, start: Start) -> Result<Mixture, DataError> {
    let order = Order {
        shuffle: false,
        ..Order::default()
    };
    Mixture::new(
        std::slice::from_ref(source),
        MixtureConfig {
            order,
            ..MixtureConfig::default()
        },
        start,
    )
}

/// The encoded picture with its extension.
fn picture(sample: &mut Sample) -> Result<(Vec<u8>, &'static str), Problem> {
    let image = std::mem::replace(&mut sample.image, ImageSource::Bytes(Vec::new()));
    let bytes = image.read(Preparation::default().max_bytes)?;
    let header = read_header(&bytes, "image").map_err(|e| Problem::Decode(Arc::new(e)))?;
    Ok((bytes, extension_of(header.format)))
}

/// Everything but the picture, in the field names that every reader here knows.
pub(super) fn fields(sample: &Sample) -> Map<String, Value> {
    let mut out = Map::new();
    match sample.captions.as_slice() {
        [] => {}
        [one] => drop(out.insert("caption".into(), json!(one))),
        several => drop(out.insert("caption".into(), json!(several))),
    }
    if let Some(label) = sample.label {
        out.insert("label".into(), json!(u8::from(label)));
    }
    if let Some(id) = &sample.image_id {
        out.insert("image_id".into(), json!(id));
    }
    if let Some(q) = &sample.question {
        out.insert("question".into(), json!(q.text));
        if let Some(id) = &q.id {
            out.insert("question_id".into(), json!(id));
        }
        for (name, value) in [
            ("answer_type", &q.answer_type),
            ("question_type", &q.question_type),
        ] {
            if let Some(value) = value {
                out.insert(name.into(), json!(value));
            }
        }
        // one entry for each annotator, so that the weights come out the same
        let given = q
            .answers
            .iter()
            .flat_map(|a| std::iter::repeat_n(&a.text, a.count as usize));
        let given: Vec<&String> = given.collect();
        if !given.is_empty() {
            out.insert("answer".into(), json!(given));
        }
        if !q.choices.is_empty() {
            out.insert("choices".into(), json!(q.choices));
            out.insert("correct_choice_idx".into(), json!(q.correct_choice));
        }
    }
    out
}

/// [`fields`], with what else a conversion must keep: which samples show the same picture, which an annotation file says
/// by the picture's name.
fn row(sample: &Sample) -> Map<String, Value> {
    let mut row = fields(sample);
    if let (None, Some(index)) = (&sample.image_id, sample.image_index) {
        row.insert("image_id".into(), json!(number(index.into())));
    }
    row
}

fn number(number: u64) -> String {
    format!("{number:08}")
}

/// A name for the sample: its key, a number in the files of rows.
fn name_of(sample: &Sample) -> String {
    match sample.image_index {
        Some(_) => number(sample.key.parse().unwrap_or_default()),
        None => safe_key(&sample.key),
    }
}

/// A name for the picture of the sample.
fn picture_name(sample: &Sample) -> String {
    match sample.image_index {
        Some(index) => number(index.into()),
        None => safe_key(&sample.key),
    }
}

fn to_tar(
    source: &Source,
    folder: &Path,
    prefix: &str,
    per_shard: u32,
    skipped: &mut dyn FnMut(&Skipped),
    progress: &dyn Fn(u64),
) -> Result<Converted, DataError> {
    if per_shard == 0 {
        return Err(DataError::Setting {
            field: "samples per shard",
            value: "0".into(),
            remedy: "at least 1",
        });
    }
    let state_path = folder.join(format!(".{prefix}.convert.json"));
    let state: Option<Progress> = match std::fs::read(&state_path) {
        Ok(bytes) => Some(serde_json::from_slice(&bytes).map_err(|source| DataError::Json {
            path: state_path.clone(),
            source,
        })?),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => {
            return Err(DataError::Io {
                path: state_path,
                source: e,
            });
        }
    };
    if let Some(state) = state.as_ref().filter(|s| s.per_shard != per_shard) {
        return Err(DataError::CursorMismatch {
            field: "samples per shard",
            saved: state.per_shard.to_string(),
            now: per_shard.to_string(),
        });
    }
    let (start, mut done) = match state {
        Some(state) if state.complete => {
            in_order(source, Start::At(state.cursor))?; // complains if the data set is another
            return Ok(state.done);
        }
        Some(state) => (Start::At(state.cursor), state.done),
        None => (Start::Epoch(0), Converted::default()),
    };
    let mut mixture = in_order(source, start)?;
    let mut ended = false;
    while !ended {
        let path = folder.join(format!("{prefix}-{:05}.tar", done.shards));
        let mut tar = tar::Builder::new(AtomicFile::create(&path)?);
        let (mut written, mut names) = (0, Unique::default());
        while written < per_shard {
            let Some(drawn) = mixture.next_sample()? else {
                ended = true;
                break;
            };
            progress(done.samples + done.skipped);
            let (shard, key) = match &drawn.sample {
                Ok(sample) => (sample.shard.clone(), sample.key.clone()),
                Err(_) => Default::default(),
            };
            let ready = drawn.sample.and_then(|mut sample| {
                let encoded = picture(&mut sample).map_err(|problem| Skipped { shard, key, problem })?;
                Ok((sample, encoded))
            });
            match ready {
                Ok((sample, (bytes, extension))) => {
                    let name = names.of(name_of(&sample));
                    let text = Value::Object(row(&sample)).to_string();
                    let mut members = vec![(extension, bytes.as_slice()), ("json", text.as_bytes())];
                    if let Some(caption) = sample.captions.first() {
                        members.push(("txt", caption.as_bytes()));
                    }
                    for (extension, body) in members {
                        append(&mut tar, &format!("{name}.{extension}"), body)
                            .map_err(DataError::io(&path))?;
                    }
                    written += 1;
                    done.samples += 1;
                }
                Err(skip) => {
                    done.skipped += 1;
                    skipped(&skip);
                }
            }
        }
        if written > 0 {
            tar.into_inner().map_err(DataError::io(&path))?.commit()?;
            done.shards += 1;
        }
        let state = Progress {
            per_shard,
            cursor: mixture.cursor(),
            done: done.clone(),
            complete: ended,
        };
        let bytes = serde_json::to_vec(&state).map_err(|source| DataError::Json {
            path: state_path.clone(),
            source,
        })?;
        write_file(&state_path, &bytes)?;
    }
    Ok(done)
}

fn to_folder(
    source: &Source,
    folder: &Path,
    list: bool,
    skipped: &mut dyn FnMut(&Skipped),
    progress: &dyn Fn(u64),
) -> Result<Converted, DataError> {
    let path = folder.join(if list {
        "annotations.json"
    } else {
        "captions.jsonl"
    });
    let mut rows = AtomicFile::create(&path)?;
    let mut names = Unique::default();
    // files below `images/` by the file that they came from: several rows may name one picture
    let mut written: HashMap<PathBuf, String> = HashMap::new();
    let mut mixture = in_order(source, Start::Epoch(0))?;
    let mut done = Converted::default();
    while let Some(drawn) = mixture.next_sample()? {
        progress(done.samples + done.skipped);
        let mut write = |mut sample: Sample| -> Result<Result<Map<String, Value>, Skipped>, DataError> {
            let file = match &sample.image {
                ImageSource::Path(path) => Some(path.clone()),
                ImageSource::Bytes(_) => None,
            };
            let known = file.as_ref().and_then(|file| written.get(file));
            let image = match known {
                Some(image) => image.clone(),
                None => {
                    let (bytes, extension) = match picture(&mut sample) {
                        Ok(encoded) => encoded,
                        Err(problem) => {
                            return Ok(Err(Skipped {
                                shard: sample.shard,
                                key: sample.key,
                                problem,
                            }));
                        }
                    };
                    let image = format!("{}.{extension}", names.of(picture_name(&sample)));
                    let path = folder.join("images").join(&image);
                    // a stopped conversion left whole files only: those need not be written again
                    if std::fs::metadata(&path).map_or(true, |m| m.len() != bytes.len() as u64) {
                        write_file(&path, &bytes)?;
                    }
                    written.extend(file.map(|file| (file, image.clone())));
                    image
                }
            };
            let mut out = Map::from_iter([("image".to_owned(), Value::from(format!("images/{image}")))]);
            out.extend(row(&sample));
            Ok(Ok(out))
        };
        let row = match drawn.sample {
            Ok(sample) => write(sample)?,
            Err(skip) => Err(skip),
        };
        match row {
            Ok(row) => {
                let before = match (list, done.samples) {
                    (true, 0) => "[\n",
                    (true, _) => ",\n",
                    (false, 0) => "",
                    (false, _) => "\n",
                };
                write!(rows, "{before}{}", Value::Object(row)).map_err(rows.failed())?;
                done.samples += 1;
            }
            Err(skip) => {
                done.skipped += 1;
                skipped(&skip);
            }
        }
    }
    let end = match (list, done.samples) {
        (true, 0) => "[]\n",
        (true, _) => "\n]\n",
        (false, 0) => "",
        (false, _) => "\n",
    };
    rows.write_all(end.as_bytes()).map_err(rows.failed())?;
    rows.commit()?;
    Ok(done)
}

#[cfg(test)]
mod tests;
