//! `metrics.jsonl` and TensorBoard files of a run; one line, one step.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::RunError;
use super::guard::write_atomically;
use super::tfevents::EventWriter;

/// Name of the metrics file in a run folder.
pub const METRICS: &str = "metrics.jsonl";

/// Where numbers go.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    events: EventWriter,
}

impl MetricsLog {
    /// Opens the logs of a run that continues with `step`: lines of later steps, which a killed run may
    /// have left, are removed.
    pub fn open(folder: &Path, step: u64) -> Result<Self, RunError> {
        let path = folder.join(METRICS);
        let io = || RunError::io(&path);
        std::fs::create_dir_all(folder).map_err(io())?;
        let kept = kept_lines(&path, step).map_err(io())?;
        write_atomically(&path, kept.as_bytes()).map_err(io())?;
        let file = OpenOptions::new().append(true).open(&path).map_err(io())?;
        let events = folder.join("tensorboard");
        let events = EventWriter::create(&events, step).map_err(RunError::io(events))?;
        Ok(Self { path, file, events })
    }

    /// Appends the numbers of `step` under `kind` (`train`, `validation`).
    pub fn write(&mut self, step: u64, kind: &str, values: &[(String, f64)]) -> Result<(), RunError> {
        let mut line = Map::new();
        line.insert("step".into(), step.into());
        line.insert("kind".into(), kind.into());
        for (name, value) in values {
            // JSON knows no NaN: null says that there was a number and it was none
            line.insert(name.clone(), (*value).into());
        }
        let mut text = Value::Object(line).to_string();
        text.push('\n');
        let io = || RunError::io(&self.path);
        self.file.write_all(text.as_bytes()).map_err(io())?;
        let tags: Vec<String> = values.iter().map(|(name, _)| format!("{kind}/{name}")).collect();
        let scalars = tags
            .iter()
            .zip(values)
            .map(|(tag, (_, value))| (tag.as_str(), *value));
        self.events.scalars(step, scalars).map_err(io())
    }
}

/// Complete lines of steps up to `step`.
fn kept_lines(path: &Path, step: u64) -> std::io::Result<String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let mut kept = String::new();
    for line in BufReader::new(file).lines() {
        let line = line?;
        let row: Option<Value> = serde_json::from_str(&line).ok();
        let row_step = row.and_then(|row| row["step"].as_u64());
        if row_step.is_some_and(|row_step| row_step <= step) {
            kept.push_str(&line);
            kept.push('\n');
        }
    }
    Ok(kept)
}

/// All rows of a metrics file; a torn last line is skipped.
pub fn read(folder: &Path) -> Result<Vec<Map<String, Value>>, RunError> {
    let path = folder.join(METRICS);
    let text = std::fs::read_to_string(&path).map_err(RunError::io(&path))?;
    let rows = text.lines().filter_map(|line| serde_json::from_str(line).ok());
    Ok(rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_drops_what_came_after_its_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::open(folder.path(), 0).unwrap();
        for step in 1..=4 {
            log.write(step, "train", &[("loss".into(), step as f64)]).unwrap();
        }
        drop(log);
        // killed in the middle of a line
        let path = folder.path().join(METRICS);
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"step\": 5, \"lo");
        std::fs::write(&path, text).unwrap();
        let mut log = MetricsLog::open(folder.path(), 2).unwrap();
        log.write(3, "train", &[("loss".into(), f64::NAN)]).unwrap();
        let rows = read(folder.path()).unwrap();
        let steps: Vec<_> = rows.iter().map(|row| row["step"].as_u64().unwrap()).collect();
        assert_eq!(steps, [1, 2, 3]);
        assert!(rows[2]["loss"].is_null());
    }
}
