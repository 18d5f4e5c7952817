//! Checkpoints split over several files: `model.safetensors.index.json` and `pytorch_model.bin.index.json`.
//!
//! The index maps tensor names to shard files in its own folder. It is checked against what the shards hold, both
//! ways, so that a stale or mixed-up download is an error and not a silently wrong model.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::error::{IndexFault, Result, WeightsError};
use super::safetensors::SafetensorsFile;
use super::source::{MappedFile, TensorSource};
use super::tensor::{TensorBytes, TensorInfo};
use super::torch::TorchFile;

/// Largest index file that is read; that of a model with a thousand layers takes 2 MB.
const MAX_INDEX: u64 = 64 << 20;

/// An index file, read but not yet compared with its shards.
#[derive(Debug, Clone, Deserialize)]
pub struct ShardIndex {
    /// tensor name -> file name
    pub weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Reads an index file.
    pub fn read(path: &Path) -> Result<Self> {
        let io = |e| WeightsError::io(path, e);
        let bad = |fault| WeightsError::BadIndex {
            path: path.to_owned(),
            fault,
        };
        let size = std::fs::metadata(path).map_err(io)?.len();
        if size > MAX_INDEX {
            return Err(bad(IndexFault::TooLarge { size }));
        }
        Self::from_bytes(path, &std::fs::read(path).map_err(io)?)
    }

    /// Reads the content of an index file; `path` is for messages.
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self> {
        let bad = |fault| WeightsError::BadIndex {
            path: path.to_owned(),
            fault,
        };
        let index: Self = serde_json::from_slice(bytes).map_err(|e| bad(e.into()))?;
        if index.weight_map.is_empty() {
            return Err(bad(IndexFault::Empty));
        }
        if let Some(name) = index.shards().into_iter().find(|name| !is_plain_file_name(name)) {
            return Err(bad(IndexFault::ShardName(name.to_owned())));
        }
        Ok(index)
    }

    /// Names of the shard files, sorted, each once.
    pub fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}

/// A checkpoint of several shards behind one index.
pub struct ShardedSource {
    path: PathBuf,
    shards: Vec<Box<dyn TensorSource>>,
    infos: Vec<TensorInfo>,
    /// name -> index in `infos`, shard
    by_name: HashMap<String, (usize, usize)>,
}

impl ShardedSource {
    /// Maps all shards that the index names and checks that both agree.
    ///
    /// # Errors
    /// [`WeightsError::MissingShards`] with every shard that is not there, [`WeightsError::BadIndex`] when index
    /// and contents differ, and what opening a shard may give.
    pub fn open(index_path: impl AsRef<Path>) -> Result<Self> {
        let path = index_path.as_ref().to_owned();
        let index = ShardIndex::read(&path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let names: Vec<&str> = index.shards().into_iter().collect();

        // `metadata` follows links: a dangling link in a hub cache is a missing shard
        let missing: Vec<String> = names
            .iter()
            .filter(|name| std::fs::metadata(folder.join(name)).is_err())
            .map(|&n| n.to_owned())
            .collect();
        if !missing.is_empty() {
            return Err(WeightsError::MissingShards {
                path,
                shards: missing,
            });
        }

        let mut shards = Vec::new();
        let mut infos = Vec::new();
        let mut by_name = HashMap::new();
        let mut unlisted = Vec::new();
        for name in &names {
            let shard = open_file(&folder.join(name))?;
            for info in shard.infos() {
                if index.weight_map.get(&info.name).map(String::as_str) == Some(name) {
                    by_name.insert(info.name.clone(), (infos.len(), shards.len()));
                    infos.push(info.clone());
                } else {
                    unlisted.push(info.name.clone());
                }
            }
            shards.push(shard);
        }
        let absent: Vec<String> = index
            .weight_map
            .keys()
            .filter(|name| !by_name.contains_key(*name))
            .cloned()
            .collect();
        if !absent.is_empty() || !unlisted.is_empty() {
            return Err(WeightsError::BadIndex {
                path,
                fault: IndexFault::Disagrees { absent, unlisted },
            });
        }
        Ok(Self {
            path,
            shards,
            infos,
            by_name,
        })
    }
}

impl TensorSource for ShardedSource {
    fn path(&self) -> &Path {
        &self.path
    }

    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&(i, _)| &self.infos[i])
    }

    fn get(&self, name: &str) -> Result<TensorBytes> {
        match self.by_name.get(name) {
            Some(&(_, shard)) => self.shards[shard].get(name),
            None => Err(WeightsError::NoSuchTensor {
                path: self.path.clone(),
                name: name.to_owned(),
            }),
        }
    }

    fn release(&self, name: &str) {
        if let Some(&(_, shard)) = self.by_name.get(name) {
            self.shards[shard].release(name);
        }
    }
}

/// Opens one weights file of either format, told apart by content.
pub(crate) fn open_file(path: &Path) -> Result<Box<dyn TensorSource>> {
    let file = MappedFile::open(path)?;
    Ok(if TorchFile::recognises(file.bytes()) {
        Box::new(TorchFile::from_mapped(file)?)
    } else {
        Box::new(SafetensorsFile::from_mapped(file)?)
    })
}

fn is_plain_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
        && !name.contains(['\\', ':'])
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    /// A copy of the sharded fixture that may be damaged.
    fn copied(fixture: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(fixtures::path(fixture)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        dir
    }

    const INDEX: &str = "model.safetensors.index.json";

    fn edited(edit: impl Fn(String) -> String) -> Result<ShardedSource> {
        let dir = copied("sharded");
        let index = dir.path().join(INDEX);
        let text = edit(std::fs::read_to_string(&index).unwrap());
        std::fs::write(&index, text).unwrap();
        ShardedSource::open(index)
    }

    fn fault(result: Result<ShardedSource>) -> IndexFault {
        match result.map(drop) {
            Err(WeightsError::BadIndex { fault, .. }) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn both_formats_read_exactly() {
        let source = ShardedSource::open(fixtures::path("sharded").join(INDEX)).unwrap();
        fixtures::assert_holds(&source, "sharded");
        let source = ShardedSource::open(fixtures::path("sharded_bin/pytorch_model.bin.index.json")).unwrap();
        fixtures::assert_holds(&source, "sharded_bin");
        assert!(matches!(source.get("x"), Err(WeightsError::NoSuchTensor { .. })));
    }

    #[test]
    fn missing_shards_are_all_named() {
        let dir = copied("sharded");
        for i in [1, 3] {
            std::fs::remove_file(dir.path().join(format!("model-0000{i}-of-00003.safetensors"))).unwrap();
        }
        let err = ShardedSource::open(dir.path().join(INDEX)).map(drop).unwrap_err();
        let WeightsError::MissingShards { shards, .. } = err else {
            panic!("{err}")
        };
        assert_eq!(
            shards,
            [
                "model-00001-of-00003.safetensors",
                "model-00003-of-00003.safetensors"
            ]
        );
    }

    #[test]
    fn index_and_shards_must_agree() {
        let IndexFault::Disagrees { absent, unlisted } =
            fault(edited(|t| t.replace("layer.0.weight", "layer.9.weight")))
        else {
            panic!()
        };
        assert_eq!(
            (absent, unlisted),
            (vec!["layer.9.weight".into()], vec!["layer.0.weight".into()])
        );
        // listed under the wrong shard
        let moved = |t: String| {
            t.replace(
                "\"layer.0.weight\": \"model-00001",
                "\"layer.0.weight\": \"model-00002",
            )
        };
        let IndexFault::Disagrees { absent, unlisted } = fault(edited(moved)) else {
            panic!()
        };
        assert_eq!(
            (absent, unlisted),
            (vec!["layer.0.weight".into()], vec!["layer.0.weight".into()])
        );
    }

    #[test]
    fn an_index_cannot_lead_out_of_its_folder() {
        for name in [
            "../model.safetensors",
            "/etc/passwd",
            "a/b",
            "..",
            "",
            "a\\\\b",
            "C:x",
        ] {
            let f = fault(edited(|t| t.replace("model-00002-of-00003.safetensors", name)));
            assert!(matches!(f, IndexFault::ShardName(_)), "{name}: {f}");
        }
    }

    #[test]
    fn broken_json_is_a_fault() {
        assert!(matches!(
            fault(edited(|t| t[..t.len() / 2].to_owned())),
            IndexFault::Json(_)
        ));
        assert!(matches!(
            fault(edited(|_| "{\"weight_map\": {}}".into())),
            IndexFault::Empty
        ));
        assert!(matches!(
            fault(edited(|_| "{\"weight_map\": {\"a\": 1}}".into())),
            IndexFault::Json(_)
        ));
    }
}
