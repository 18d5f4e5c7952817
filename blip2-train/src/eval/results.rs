//! Result files: predictions in the COCO / LAVIS format, the report of scores beside them, journals to resume from.
//!
//! A run over several processes writes one journal per process; [`merge`] puts them together and drops what two of
//! them predicted (the last batch of a split data set is padded by repetition).

use std::collections::HashSet;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::hash::Hash;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::EvalError;

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
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let fault = || EvalError::file(path);
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(fault())?;
    file.write_all(bytes).map_err(fault())?;
    file.as_file().sync_all().map_err(fault())?;
    file.persist(path).map_err(|e| fault()(e.error))?;
    Ok(())
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

/// File of one process: `predictions.3.jsonl`.
pub fn journal_path(folder: &Path, name: &str, rank: usize) -> PathBuf {
    folder.join(format!("{name}.{rank}.jsonl"))
}

/// What the journals of all processes hold, in the order of their ranks. Only reads: a last line that is being written
/// is left alone.
///
/// # Errors
/// [`EvalError::File`]; [`EvalError::Json`] for a damaged line before the last.
pub fn read_journals<P: Prediction>(folder: &Path, name: &str) -> Result<Vec<Vec<P>>, EvalError> {
    let mut ranks = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(EvalError::file(folder))? {
        let file = entry.map_err(EvalError::file(folder))?.file_name();
        let rank = file.to_str().and_then(|file| {
            let middle = file
                .strip_prefix(name)?
                .strip_prefix('.')?
                .strip_suffix(".jsonl")?;
            middle.parse::<usize>().ok()
        });
        ranks.extend(rank);
    }
    ranks.sort_unstable();
    let read = |rank| {
        let path = journal_path(folder, name, rank);
        let file = File::open(&path).map_err(EvalError::file(&path))?;
        Ok(whole_lines(&file, &path)?.0)
    };
    ranks.into_iter().map(read).collect()
}

/// The predictions in the lines that are complete, and how many bytes these are.
fn whole_lines<P: Prediction>(file: &File, path: &Path) -> Result<(Vec<P>, u64), EvalError> {
    let (mut predictions, mut whole) = (Vec::new(), 0);
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    while reader
        .read_until(b'\n', &mut line)
        .map_err(EvalError::file(path))?
        > 0
    {
        if line.last() != Some(&b'\n') {
            break;
        }
        predictions.push(serde_json::from_slice(&line).map_err(EvalError::json(path))?);
        whole += line.len() as u64;
        line.clear();
    }
    Ok((predictions, whole))
}

/// Predictions of one process, one JSON line each, appended as they are made, so that a stopped run can go on.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    done: HashSet<Id>,
}

impl Journal {
    /// Opens or creates a journal and reads what it holds. A last line that was cut off is removed.
    ///
    /// # Errors
    /// [`EvalError::File`]; [`EvalError::Json`] for a damaged line before the last.
    pub fn open<P: Prediction>(path: &Path) -> Result<(Self, Vec<P>), EvalError> {
        let fault = || EvalError::file(path);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(fault())?;
        let (predictions, whole) = whole_lines::<P>(&file, path)?;
        file.set_len(whole).map_err(fault())?;
        file.seek(SeekFrom::Start(whole)).map_err(fault())?;
        let done = predictions.iter().map(|p| p.id().clone()).collect();
        Ok((
            Self {
                path: path.to_path_buf(),
                file,
                done,
            },
            predictions,
        ))
    }

    /// Whether an id was predicted already.
    pub fn holds(&self, id: &Id) -> bool {
        self.done.contains(id)
    }

    /// Appends a batch and hands it to the operating system in one piece.
    ///
    /// # Errors
    /// [`EvalError::File`], [`EvalError::Json`].
    pub fn append<P: Prediction>(&mut self, batch: &[P]) -> Result<(), EvalError> {
        let mut lines = Vec::new();
        for prediction in batch {
            serde_json::to_writer(&mut lines, prediction).map_err(EvalError::json(&self.path))?;
            lines.push(b'\n');
        }
        self.file.write_all(&lines).map_err(EvalError::file(&self.path))?;
        self.done.extend(batch.iter().map(|p| p.id().clone()));
        Ok(())
    }

    /// Makes sure that all of it is on the disk.
    ///
    /// # Errors
    /// [`EvalError::File`].
    pub fn sync(&self) -> Result<(), EvalError> {
        self.file.sync_all().map_err(EvalError::file(&self.path))
    }
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

/// SHA-256 of bytes, as hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// SHA-256 of a file, read in pieces.
///
/// # Errors
/// [`EvalError::File`].
pub fn sha256_file(path: &Path) -> Result<String, EvalError> {
    let mut file = File::open(path).map_err(EvalError::file(path))?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece).map_err(EvalError::file(path))? {
            0 => return Ok(hexadecimal(&hash.finalize())),
            n => hash.update(&piece[..n]),
        }
    }
}

/// SHA-256 over several files: of the lines `hash name`, in the order given. One file gives its own hash.
///
/// # Errors
/// [`EvalError::File`].
pub fn sha256_files(files: &[PathBuf]) -> Result<String, EvalError> {
    use rayon::prelude::*;
    if let [file] = files {
        return sha256_file(file);
    }
    let line = |file: &PathBuf| {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Ok(format!("{} {name}\n", sha256_file(file)?))
    };
    let lines = files
        .par_iter()
        .map(line)
        .collect::<Result<Vec<_>, EvalError>>()?;
    Ok(sha256(lines.concat().as_bytes()))
}

fn hexadecimal(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caption(id: i64, text: &str) -> Caption {
        Caption {
            image_id: id.into(),
            caption: text.to_string(),
        }
    }

    #[test]
    fn the_format_is_cocos() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("predictions.json");
        let written = vec![
            caption(42, "a dog"),
            Caption {
                image_id: "x.jpg".into(),
                caption: "é \"q\"".into(),
            },
        ];
        write(&path, &written).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(json[0], serde_json::json!({"image_id": 42, "caption": "a dog"}));
        assert_eq!(json[1]["image_id"], "x.jpg");
        assert_eq!(read::<Caption>(&path).unwrap(), written);
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "no temporary file stays"
        );
        let error = read::<Answer>(&path).unwrap_err().to_string();
        assert!(
            error.contains("predictions.json") && error.contains("question_id"),
            "{error}"
        );
    }

    #[test]
    fn merging_keeps_the_first_of_two() {
        let (merged, dropped) = merge([
            vec![caption(1, "a"), caption(3, "c")],
            vec![caption(2, "b"), caption(1, "z")],
        ]);
        assert_eq!(merged, [caption(1, "a"), caption(3, "c"), caption(2, "b")]);
        assert_eq!(dropped, 1);
    }

    #[test]
    fn a_journal_goes_on_after_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = journal_path(folder.path(), "predictions", 3);
        let (mut journal, before) = Journal::open::<Caption>(&path).unwrap();
        assert!(before.is_empty());
        journal.append(&[caption(1, "a"), caption(2, "b")]).unwrap();
        journal.sync().unwrap();
        let mut torn = std::fs::read(&path).unwrap();
        torn.extend(b"{\"image_id\": 3, \"capt");
        std::fs::write(&path, torn).unwrap();
        let (mut journal, before) = Journal::open::<Caption>(&path).unwrap();
        assert_eq!(before, [caption(1, "a"), caption(2, "b")]);
        assert!(journal.holds(&2.into()) && !journal.holds(&3.into()));
        journal.append(&[caption(3, "c")]).unwrap();
        assert_eq!(Journal::open::<Caption>(&path).unwrap().1.len(), 3);
    }

    #[test]
    fn a_line_damaged_in_the_middle_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("j");
        std::fs::write(
            &path,
            "{\"image_id\": 1}\n{\"image_id\": 1, \"caption\": \"a\"}\n",
        )
        .unwrap();
        assert!(Journal::open::<Caption>(&path).is_err());
    }

    #[test]
    fn hashes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "abc").unwrap();
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; // FIPS 180-2, appendix B.1
        assert_eq!(sha256(b"abc"), known);
        assert_eq!(sha256_file(&path).unwrap(), known);
    }
}
