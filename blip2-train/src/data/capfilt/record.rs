//! `capfilt.json`: how the shards in an output folder are made. A folder is filled with one set of settings only.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::CapFiltConfig;
use super::error::CapFiltError;
use crate::data::output::write_file;
use crate::data::prepare::Preparation;
use crate::data::sample::DataError;

/// Name of the record in the output folder.
pub const RECORD: &str = "capfilt.json";
/// Characters of a value in a message.
const SHOWN: usize = 40;

/// What is in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the program that began; not compared.
    pub version: String,
    /// What the captions depend on.
    pub settings: Settings,
}

/// What the captions depend on. What only changes how the work is done (threads, batch, processes, tolerance for bad
/// samples) is not in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// The models and how they are asked, in the words of the caller.
    pub models: Map<String, Value>,
    /// Synthetic captions for each picture.
    pub synthetic: usize,
    /// Captions kept.
    pub keep: usize,
    /// Least score.
    pub min_score: Option<f32>,
    /// How pictures are prepared.
    pub preparation: Preparation,
}

impl Record {
    /// The record of a job.
    pub fn new(config: &CapFiltConfig, models: Map<String, Value>) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            settings: Settings {
                models,
                synthetic: config.synthetic,
                keep: config.keep,
                min_score: config.min_score,
                preparation: config.preparation.clone(),
            },
        }
    }

    /// Writes the record, or compares it with the one that is there. `shards` are the files that the job will write.
    pub(super) fn claim<'a>(
        &self,
        folder: &Path,
        shards: impl IntoIterator<Item = &'a Path>,
    ) -> Result<(), CapFiltError> {
        let path = folder.join(RECORD);
        let json = |source| DataError::Json {
            path: path.clone(),
            source,
        };
        let text = serde_json::to_vec_pretty(self).map_err(json)?;
        let saved = match std::fs::read(&path) {
            Ok(saved) => saved,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let present = shards.into_iter().map(|name| folder.join(name));
                if let Some(path) = present.into_iter().find(|shard| shard.exists()) {
                    return Err(CapFiltError::NoRecord { path });
                }
                return Ok(write_file(&path, &text)?);
            }
            Err(e) => return Err(DataError::io(&path)(e).into()),
        };
        // through the type, so that settings which a record of an earlier version lacks have their defaults
        let saved: Self = serde_json::from_slice(&saved).map_err(json)?;
        let plain = |record: &Self| -> Result<Value, CapFiltError> {
            // through text on both sides: single precision has fewer digits there
            let text = serde_json::to_vec(&record.settings).map_err(json)?;
            Ok(serde_json::from_slice(&text).map_err(json)?)
        };
        let mut differences = Vec::new();
        compare("", &plain(&saved)?, &plain(self)?, &mut differences);
        if differences.is_empty() {
            return Ok(());
        }
        Err(CapFiltError::OtherSettings {
            path,
            differences: differences.join(", "),
        })
    }
}

/// Settings that differ, by their path in the record.
fn compare(at: &str, saved: &Value, now: &Value, out: &mut Vec<String>) {
    match (saved, now) {
        (Value::Object(saved), Value::Object(now)) => {
            let new = now.keys().filter(|key| !saved.contains_key(*key));
            for key in saved.keys().chain(new) {
                let path = match at {
                    // where a setting stands in the file is no help to who gives it as an option
                    "" | "models" => key.clone(),
                    _ => format!("{at}.{key}"),
                };
                let (saved, now) = (saved.get(key), now.get(key));
                compare(
                    &path,
                    saved.unwrap_or(&Value::Null),
                    now.unwrap_or(&Value::Null),
                    out,
                );
            }
        }
        _ if saved == now => {}
        _ => out.push(format!("`{at}` was {} and is now {}", shown(saved), shown(now))),
    }
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::Null => "not set".to_owned(),
        other => other.to_string(),
    };
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(change: impl FnOnce(&mut CapFiltConfig), models: Value) -> Record {
        let mut config = CapFiltConfig::default();
        change(&mut config);
        Record::new(&config, models.as_object().cloned().unwrap_or_default())
    }

    #[test]
    fn a_folder_keeps_its_settings() {
        let dir = tempfile::tempdir().unwrap();
        let models = json!({"captioner": "a1", "generation": {"top_p": 0.9, "seed": 1}});
        let claim = |record: Record| record.claim(dir.path(), []).map_err(|e| e.to_string());
        let first = || record(|c| c.min_score = Some(0.3), models.clone());
        claim(first()).unwrap();
        let text = std::fs::read(dir.path().join(RECORD)).unwrap();
        // the same, and what does not change the captions
        claim(first()).unwrap();
        let other_effort = |c: &mut CapFiltConfig| {
            (c.min_score, c.threads, c.batch_size, c.world, c.max_bad) = (Some(0.3), 7, 5, 3, 0.5);
        };
        claim(record(other_effort, models.clone())).unwrap();
        let other = json!({"captioner": "b2", "generation": {"top_p": 0.5, "seed": 1}});
        let change = |c: &mut CapFiltConfig| {
            c.keep = 3;
            c.preparation.on_white = true;
        };
        let error = claim(record(change, other)).unwrap_err();
        for part in [
            "capfilt.json: the shards here are made with other settings: ",
            "`captioner` was \"a1\" and is now \"b2\"",
            "`generation.top_p` was 0.9 and is now 0.5",
            "`keep` was 2 and is now 3",
            "`min_score` was 0.3 and is now not set",
            "`preparation.on_white` was false and is now true",
            "another output folder",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!error.contains("seed"), "{error}");
        assert_eq!(std::fs::read(dir.path().join(RECORD)).unwrap(), text);
    }

    #[test]
    fn shards_of_unknown_settings_are_not_taken_for_done() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("1.tar"), b"").unwrap();
        let claim = |names: &[&str]| {
            let names = names.iter().map(Path::new);
            record(|_| {}, json!({})).claim(dir.path(), names)
        };
        let error = claim(&["0.tar", "1.tar"]).unwrap_err();
        assert!(
            matches!(&error, CapFiltError::NoRecord { path } if path.ends_with("1.tar")),
            "{error}"
        );
        assert!(!dir.path().join(RECORD).exists());
        claim(&["0.tar", "2.tar"]).unwrap();
        claim(&["0.tar", "1.tar"]).unwrap();
    }
}
