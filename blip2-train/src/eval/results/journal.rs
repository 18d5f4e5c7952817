//! Journals: predictions of one process, one JSON line each, so that a stopped run can go on.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{Id, Prediction};
use crate::eval::EvalError;

/// File of one process: `predictions.3.jsonl`.
pub fn journal_path(folder: &Path, name: &str, rank: usize) -> PathBuf {
    folder.join(format!("{name}.{rank}.jsonl"))
}

/// Ranks whose file `name.RANK.extension` is in a folder, ascending.
///
/// # Errors
/// [`EvalError::File`].
pub fn ranks(folder: &Path, name: &str, extension: &str) -> Result<Vec<usize>, EvalError> {
    let mut ranks = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(EvalError::file(folder))? {
        let file = entry.map_err(EvalError::file(folder))?.file_name();
        let rank = file.to_str().and_then(|file| {
            let middle = file.strip_prefix(name)?.strip_prefix('.')?;
            middle
                .strip_suffix(extension)?
                .strip_suffix('.')?
                .parse::<usize>()
                .ok()
        });
        ranks.extend(rank);
    }
    ranks.sort_unstable();
    Ok(ranks)
}

/// Ids in the journals of all processes.
///
/// # Errors
/// As [`read_journals`].
pub fn journal_ids<P: Prediction>(folder: &Path, name: &str) -> Result<HashSet<Id>, EvalError> {
    let journals = read_journals::<P>(folder, name)?;
    Ok(journals.iter().flatten().map(|p| p.id().clone()).collect())
}

/// What the journals of all processes hold, in the order of their ranks. Only reads: a last line that is being written
/// is left alone.
///
/// # Errors
/// [`EvalError::File`]; [`EvalError::Json`] for a damaged line before the last.
pub fn read_journals<P: Prediction>(folder: &Path, name: &str) -> Result<Vec<Vec<P>>, EvalError> {
    let read = |rank| {
        let path = journal_path(folder, name, rank);
        let file = File::open(&path).map_err(EvalError::file(&path))?;
        Ok(whole_lines(&file, &path)?.0)
    };
    ranks(folder, name, "jsonl")?.into_iter().map(read).collect()
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
