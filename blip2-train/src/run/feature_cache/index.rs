//! Index files of a feature store: one of every rank that computed something, and the only one of a store from before
//! ranks shared the work. Together they say what is there.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{FeatureError, FeatureMeta};
use crate::run::guard::write_atomically;

/// Index of a store that was written by one process for all.
const WHOLE: &str = "index.json";

/// Shards with their rows.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Index {
    pub meta: FeatureMeta,
    pub shards: Vec<Shard>,
}

/// Rows of a file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Shard {
    pub file: String,
    pub keys: Vec<String>,
    pub crc32c: Vec<u32>,
}

/// The index file of a rank.
pub(super) fn path_of(folder: &Path, rank: usize) -> PathBuf {
    folder.join(format!("index-rank-{rank}.json"))
}

/// Name of a shard of a rank.
pub(super) fn shard_name(rank: usize, number: usize) -> String {
    format!("features-rank-{rank}-{number:05}.safetensors")
}

/// Whether a file of this name is an index.
fn is_index(name: &str) -> bool {
    let rank = name
        .strip_prefix("index-rank-")
        .and_then(|name| name.strip_suffix(".json"));
    name == WHOLE || rank.is_some_and(|rank| rank.parse::<usize>().is_ok())
}

/// All of a folder with their paths, sorted by name; none if there is no such folder.
pub(super) fn read_all(folder: &Path, wanted: &FeatureMeta) -> Result<Vec<(PathBuf, Index)>, FeatureError> {
    let io = |source| FeatureError::Io {
        path: folder.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let name = entry.map_err(io)?.file_name();
        if is_index(&name.to_string_lossy()) {
            paths.push(folder.join(name));
        }
    }
    paths.sort();
    paths
        .into_iter()
        .map(|path| read(&path, wanted).map(|index| (path, index)))
        .collect()
}

fn read(path: &Path, wanted: &FeatureMeta) -> Result<Index, FeatureError> {
    let path = path.to_owned();
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(source) => return Err(FeatureError::Io { path, source }),
    };
    let index: Index = match serde_json::from_slice(&text) {
        Ok(index) => index,
        Err(source) => return Err(FeatureError::Index { path, source }),
    };
    if index.meta != *wanted {
        return Err(FeatureError::OtherFeatures {
            path,
            found: Box::new(index.meta),
            wanted: Box::new(wanted.clone()),
        });
    }
    Ok(index)
}

/// Whole or not at all.
pub(super) fn write(path: &Path, index: &Index) -> Result<(), FeatureError> {
    let path = path.to_owned();
    match serde_json::to_vec(index) {
        Ok(text) => write_atomically(&path, &text).map_err(|source| FeatureError::Io { path, source }),
        Err(source) => Err(FeatureError::Index { path, source }),
    }
}
