//! The folder of an evaluation: what is evaluated (`run.json`), what is done (journals, one per process), how long it
//! took (`clock.N.json`). A process that was killed goes on where its journals end.

use std::cell::Cell;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::RunError;
use crate::eval::EvalError;
use crate::eval::results::{self, Id, Journal, Prediction, journal_path};

/// This process among those that share an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// 0..world.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
}

impl Share {
    /// Whether item `at` is this process'.
    pub fn has(self, at: usize) -> bool {
        at % self.world.max(1) == self.rank
    }
}

/// `run.json`: two evaluations with the same record give the same results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the program.
    pub version: String,
    /// Everything that the results depend on, the data's place and the model's included.
    pub config: Value,
    /// SHA-256 over the model's weights and settings.
    pub model_sha256: String,
    /// SHA-256 over the files of the data set.
    pub data_sha256: String,
}

impl Record {
    /// What differs from another, in words; `None` if nothing does.
    fn difference(&self, other: &Self) -> Option<String> {
        let mut names = Vec::new();
        for (name, same) in [
            ("model", self.model_sha256 == other.model_sha256),
            ("data set", self.data_sha256 == other.data_sha256),
            ("version", self.version == other.version),
        ] {
            names.extend((!same).then(|| name.to_owned()));
        }
        if let (Value::Object(a), Value::Object(b)) = (&self.config, &other.config) {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            // the recipe only names published figures
            let differ = |key: &&String| *key != "recipe" && a.get(*key) != b.get(*key);
            names.extend(keys.into_iter().filter(differ).cloned());
        }
        (!names.is_empty()).then(|| names.join(", "))
    }
}

/// A sample whose picture cannot be used: a line of `skipped.N.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SkippedPicture {
    /// The picture.
    pub image_id: Id,
    /// File it is in.
    pub shard: String,
    /// Key inside it.
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Prediction for SkippedPicture {
    fn id(&self) -> &Id {
        &self.image_id
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Clock {
    seconds: f64,
    starts: u32,
}

/// See the module documentation.
pub struct Folder {
    /// Where it is.
    pub path: PathBuf,
    share: Share,
    before: Clock,
    start: Instant,
    noted: Cell<Instant>,
}

impl Folder {
    /// Makes the folder, or goes on in one with the same record.
    pub fn open(path: &Path, record: &Record, share: Share) -> Result<Self, RunError> {
        std::fs::create_dir_all(path).map_err(|source| EvalError::File {
            path: path.to_path_buf(),
            source,
        })?;
        let file = path.join("run.json");
        if file.exists() {
            if let Some(what) = record.difference(&read_record(path)?) {
                return Err(RunError::OtherRun {
                    folder: path.to_path_buf(),
                    what,
                });
            }
        } else {
            results::write(&file, record)?;
        }
        let before = match std::fs::read(clock_path(path, share.rank)) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_default(),
            Err(_) => Clock::default(),
        };
        Ok(Self {
            path: path.to_path_buf(),
            share,
            before,
            start: Instant::now(),
            noted: Cell::new(Instant::now()),
        })
    }

    /// This process' journal, and what is done already, by whichever process.
    pub fn journal<P: Prediction>(&self, name: &str) -> Result<(Journal, HashSet<Id>), RunError> {
        let (journal, _) = Journal::open::<P>(&journal_path(&self.path, name, self.share.rank))?;
        Ok((journal, results::journal_ids::<P>(&self.path, name)?))
    }

    /// Notes the time spent so far, at most once a second.
    pub fn tick(&self) -> Result<(), RunError> {
        match self.noted.get().elapsed() < Duration::from_secs(1) {
            true => Ok(()),
            false => self.note_time(),
        }
    }

    /// Notes the time spent so far.
    pub fn note_time(&self) -> Result<(), RunError> {
        self.noted.set(Instant::now());
        let clock = Clock {
            seconds: self.before.seconds + self.start.elapsed().as_secs_f64(),
            starts: self.before.starts + 1,
        };
        Ok(results::write(&clock_path(&self.path, self.share.rank), &clock)?)
    }
}

fn clock_path(folder: &Path, rank: usize) -> PathBuf {
    folder.join(format!("clock.{rank}.json"))
}

/// `run.json` of a folder.
pub fn read_record(folder: &Path) -> Result<Record, RunError> {
    let path = folder.join("run.json");
    let text = std::fs::read(&path).map_err(|source| EvalError::File {
        path: path.clone(),
        source,
    })?;
    Ok(serde_json::from_slice(&text).map_err(|source| EvalError::Json { path, source })?)
}

/// Seconds of the slowest process and the number of processes.
pub fn read_clocks(folder: &Path) -> Result<(f64, usize), RunError> {
    let (mut seconds, mut count) = (0.0_f64, 0);
    for entry in std::fs::read_dir(folder).map_err(EvalError::file(folder))? {
        let entry = entry.map_err(EvalError::file(folder))?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("clock.") {
            let path = entry.path();
            let text = std::fs::read(&path).map_err(EvalError::file(&path))?;
            let clock: Clock = serde_json::from_slice(&text).map_err(EvalError::json(&path))?;
            seconds = seconds.max(clock.seconds);
            count += 1;
        }
    }
    Ok((seconds, count))
}
