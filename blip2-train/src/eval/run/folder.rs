//! The folder of an evaluation: what is evaluated (`run.json`), what is done (journals, one per process), how long it
//! took (`clock.N.json`). A process that was killed goes on where its journals end.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::RunError;
use crate::data::sample::Skipped;
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
    /// SHA-256 over what tells that its picture files have changed; absent without such files, and in records of earlier
    /// versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_sha256: Option<String>,
}

impl Record {
    /// What differs from another, in words; `None` if nothing does.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let mut names = Vec::new();
        for (name, same) in [
            ("model", self.model_sha256 == other.model_sha256),
            ("data set", self.data_sha256 == other.data_sha256),
            ("version", self.version == other.version),
        ] {
            names.extend((!same).then(|| name.to_owned()));
        }
        if let (Some(a), Some(b)) = (&self.state_sha256, &other.state_sha256) {
            names.extend((a != b).then(|| "state of its pictures (path, size or time of change)".to_owned()));
        }
        // the hashes say that it is the same data, wherever it lies now
        let known = self.data_sha256 == other.data_sha256 && self.state_sha256 == other.state_sha256;
        if let (Value::Object(a), Value::Object(b)) = (&self.config, &other.config) {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            // the recipe only names published figures
            let differ = |key: &&String| match key.as_str() {
                "recipe" => false,
                "data" if known => without_place(a.get("data")) != without_place(b.get("data")),
                key => a.get(key) != b.get(key),
            };
            names.extend(keys.into_iter().filter(differ).cloned());
        }
        (!names.is_empty()).then(|| names.join(", "))
    }
}

/// Settings of a data set without those that say where it lies.
fn without_place(data: Option<&Value>) -> Option<Value> {
    let mut data = data?.clone();
    if let Value::Object(data) = &mut data {
        data.retain(|key, _| !["path", "name", "images", "answers"].contains(&key.as_str()));
    }
    Some(data)
}

/// A sample that cannot be used: a line of `skipped.N.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SkippedSample {
    /// The picture; of a sample without usable text, its file and key.
    pub image_id: Id,
    /// File it is in.
    pub shard: String,
    /// Key inside it.
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
    /// It has no usable text or picture reference, and so is no picture of the evaluation.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub text: bool,
}

impl SkippedSample {
    /// Sample `number` of the data set, which has no usable text or picture reference.
    pub fn of_text(number: u64, sample: &Skipped) -> Self {
        // damage between samples has no key
        let place = match sample.key.is_empty() {
            true => format!("sample {number}"),
            false => sample.key.clone(),
        };
        Self {
            image_id: Id::Text(format!("{}:{place}", sample.shard)),
            shard: sample.shard.to_string(),
            key: sample.key.clone(),
            problem: sample.problem.to_string(),
            text: true,
        }
    }
}

impl fmt::Display for SkippedSample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: `{}`: {}", self.shard, self.key, self.problem)
    }
}

impl Prediction for SkippedSample {
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
            let found = read_record(path)?;
            if let Some(what) = record.difference(&found) {
                return Err(RunError::OtherRun {
                    folder: path.to_path_buf(),
                    what,
                });
            }
            // scoring reads the data where this start has found it
            if found.config.get("data") != record.config.get("data") {
                results::write(&file, record)?;
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

/// Pictures that a process, whichever, has noted as unreadable, with the reason.
pub fn unreadable(folder: &Path) -> Result<Vec<SkippedSample>, RunError> {
    let (all, _) = results::merge(results::read_journals::<SkippedSample>(folder, "skipped")?);
    Ok(all.into_iter().filter(|sample| !sample.text).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn record(path: &str, state: Option<&str>) -> Record {
        Record {
            version: "1".into(),
            config: serde_json::json!({"task": "caption", "data": {"path": path, "split": "test"}}),
            model_sha256: "m".into(),
            data_sha256: "d".into(),
            state_sha256: state.map(str::to_owned),
        }
    }

    #[test]
    fn data_that_has_moved_is_the_same_and_data_that_has_changed_is_not() {
        let here = record("here.json", Some("s"));
        assert_eq!(here.difference(&record("there.json", Some("s"))), None);
        let changed = here.difference(&record("here.json", Some("t"))).unwrap();
        assert!(changed.contains("state of its pictures"), "{changed}");
        // a record of an earlier version has no state: its place tells
        assert_eq!(here.difference(&record("here.json", None)), None);
        assert_eq!(
            here.difference(&record("there.json", None)).as_deref(),
            Some("data")
        );
        let mut other = record("there.json", Some("s"));
        other.config["data"]["split"] = "val".into();
        assert_eq!(here.difference(&other).as_deref(), Some("data"));
        let old: Record = serde_json::from_str(
            r#"{"version": "1", "config": {}, "model_sha256": "m", "data_sha256": "d"}"#,
        )
        .unwrap();
        assert_eq!(old.state_sha256, None);
    }

    #[test]
    fn a_folder_learns_where_its_data_has_moved() {
        let dir = tempfile::tempdir().unwrap();
        let share = Share { rank: 0, world: 1 };
        for place in ["here.json", "there.json"] {
            Folder::open(dir.path(), &record(place, Some("s")), share).unwrap();
            assert_eq!(read_record(dir.path()).unwrap().config["data"]["path"], place);
        }
    }

    #[test]
    fn samples_without_text_are_no_unreadable_pictures() {
        let dir = tempfile::tempdir().unwrap();
        let lines = concat!(
            r#"{"image_id": 1, "shard": "s", "key": "k", "problem": "p"}"#,
            "\n",
            r#"{"image_id": "s:2", "shard": "s", "key": "2", "problem": "p", "text": true}"#,
            "\n"
        );
        std::fs::write(dir.path().join("skipped.0.jsonl"), lines).unwrap();
        let found = unreadable(dir.path()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].image_id, Id::Number(1));
    }
}
