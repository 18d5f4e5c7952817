//! From a path that a user typed to a checkpoint: what it is, its tensors, its config.

use std::fmt;
use std::path::{Path, PathBuf};

use super::error::{Result, WeightsError};
use super::safetensors::SafetensorsFile;
use super::sharded::ShardedSource;
use super::source::{MappedFile, TensorSource};
use super::torch::TorchFile;

/// Largest config.json that is read.
const MAX_CONFIG: u64 = 16 << 20;

/// Weight files of a Hugging Face folder in the order in which transformers prefers them.
pub const WEIGHT_FILES: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// What was found at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckpointKind {
    /// A folder with weights in one of the Hugging Face layouts.
    HuggingFaceFolder,
    /// A torch file with its tensors under a top-level key, as LAVIS writes it.
    LavisPth,
    /// A torch file that is a bare dictionary of tensors, such as LAVIS's `eva_vit_g.pth`.
    TorchFile,
    /// A safetensors file on its own.
    SafetensorsFile,
}

/// An opened checkpoint.
pub struct Opened {
    /// What it is.
    pub kind: CheckpointKind,
    /// Its tensors.
    pub source: Box<dyn TensorSource>,
    /// Text of the config.json beside the weights.
    pub config_json: Option<String>,
    /// Folder of the weights, where tokenizer and preprocessor files are looked for.
    pub folder: PathBuf,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind, source, folder, ..
        } = self;
        f.debug_struct("Opened")
            .field("kind", kind)
            .field("path", &source.path())
            .field("folder", folder)
            .finish_non_exhaustive()
    }
}

/// Opens a folder or a file.
///
/// A folder is searched for [`WEIGHT_FILES`] in that order, then for a single `.pth` file. A file is told by its
/// content, not its name; an index file opens its shards.
///
/// # Errors
/// [`WeightsError::NotFound`] with a remedy, [`WeightsError::MissingIndex`] for shards without an index,
/// [`WeightsError::Ambiguous`] for several `.pth` files, and whatever is wrong with the files themselves.
pub fn open(path: impl AsRef<Path>) -> Result<Opened> {
    let path = path.as_ref();
    let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => WeightsError::NotFound {
            path: path.to_owned(),
            what: "checkpoint",
            remedy: "give a folder, a weights file, or the id of a model on the hub",
        },
        _ => WeightsError::io(path, e),
    })?;
    if meta.is_dir() {
        open_folder(path)
    } else {
        open_file(path)
    }
}

fn open_folder(folder: &Path) -> Result<Opened> {
    // `symlink_metadata`: a dangling link of a hub cache must be named, not passed over
    let present = WEIGHT_FILES
        .iter()
        .find(|name| folder.join(name).symlink_metadata().is_ok());
    if let Some(name) = present {
        return Ok(Opened {
            kind: CheckpointKind::HuggingFaceFolder,
            ..open_file(&folder.join(name))?
        });
    }

    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| WeightsError::io(folder, e))? {
        let entry = entry.map_err(|e| WeightsError::io(folder, e))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    for (prefix, suffix, index) in [
        ("model-", ".safetensors", WEIGHT_FILES[1]),
        ("pytorch_model-", ".bin", WEIGHT_FILES[3]),
    ] {
        if let Some(shard) = names
            .iter()
            .find(|n| n.starts_with(prefix) && n.contains("-of-") && n.ends_with(suffix))
        {
            return Err(WeightsError::MissingIndex {
                path: folder.to_owned(),
                example: shard.clone(),
                index,
            });
        }
    }
    let mut pth: Vec<String> = names
        .into_iter()
        .filter(|n| n.ends_with(".pth") || n.ends_with(".pt"))
        .collect();
    match pth.len() {
        0 => Err(WeightsError::NotFound {
            path: folder.to_owned(),
            what: "model.safetensors, pytorch_model.bin (or their index) or a .pth file",
            remedy: "check that the download is complete",
        }),
        1 => open_file(&folder.join(pth.remove(0))),
        _ => Err(WeightsError::Ambiguous {
            path: folder.to_owned(),
            candidates: pth,
        }),
    }
}

fn open_file(path: &Path) -> Result<Opened> {
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    let config_json = read_config(&folder.join("config.json"))?;
    let is_index = path
        .file_name()
        .is_some_and(|name| name.to_string_lossy().ends_with(".index.json"));
    let (kind, source): (_, Box<dyn TensorSource>) = if is_index {
        (
            CheckpointKind::HuggingFaceFolder,
            Box::new(ShardedSource::open(path)?),
        )
    } else {
        let file = MappedFile::open(path)?;
        if TorchFile::recognises(file.bytes()) {
            let torch = TorchFile::from_mapped(file)?;
            let kind = if torch.top_key().is_some() {
                CheckpointKind::LavisPth
            } else {
                CheckpointKind::TorchFile
            };
            (kind, Box::new(torch))
        } else {
            (
                CheckpointKind::SafetensorsFile,
                Box::new(SafetensorsFile::from_mapped(file)?),
            )
        }
    };
    Ok(Opened {
        kind,
        source,
        config_json,
        folder,
    })
}

fn read_config(path: &Path) -> Result<Option<String>> {
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(WeightsError::io(path, e)),
        Ok(meta) if meta.len() > MAX_CONFIG => {
            return Err(WeightsError::io(
                path,
                std::io::Error::other("too large for a config"),
            ));
        }
        Ok(_) => {}
    }
    std::fs::read_to_string(path)
        .map(Some)
        .map_err(|e| WeightsError::io(path, e))
}

#[cfg(test)]
mod tests {
    use super::super::error::TorchFault;
    use super::super::fixtures;
    use super::*;

    fn copy(fixture: &str, dest: &Path) {
        std::fs::copy(fixtures::path(fixture), dest).unwrap();
    }

    #[test]
    fn every_layout_is_told_apart() {
        for (path, kind, holds) in [
            ("sharded", CheckpointKind::HuggingFaceFolder, "sharded"),
            ("sharded_bin", CheckpointKind::HuggingFaceFolder, "sharded_bin"),
            (
                "sharded/model.safetensors.index.json",
                CheckpointKind::HuggingFaceFolder,
                "sharded",
            ),
            ("lavis.pth", CheckpointKind::LavisPth, "lavis.pth"),
            ("views_legacy.pth", CheckpointKind::TorchFile, "views_legacy.pth"),
            (
                "dtypes.safetensors",
                CheckpointKind::SafetensorsFile,
                "dtypes.safetensors",
            ),
        ] {
            let opened = open(fixtures::path(path)).unwrap();
            assert_eq!(opened.kind, kind, "{path}");
            fixtures::assert_holds(opened.source.as_ref(), holds);
            assert_eq!(
                opened.config_json.is_some(),
                path.starts_with("sharded"),
                "{path}"
            );
            assert!(opened.folder.is_dir());
        }
    }

    #[test]
    fn a_folder_with_one_pth_is_that_file_and_with_two_an_error() {
        let dir = tempfile::tempdir().unwrap();
        copy("lavis.pth", &dir.path().join("checkpoint_best.pth"));
        assert_eq!(open(dir.path()).unwrap().kind, CheckpointKind::LavisPth);
        copy("lavis.pth", &dir.path().join("checkpoint_0.pth"));
        let err = open(dir.path()).unwrap_err();
        assert!(
            matches!(&err, WeightsError::Ambiguous { candidates, .. } if candidates == &["checkpoint_0.pth", "checkpoint_best.pth"]),
            "{err}"
        );
    }

    #[test]
    fn the_single_file_comes_before_the_index_and_safetensors_before_torch() {
        let dir = tempfile::tempdir().unwrap();
        copy("mixed.pth", &dir.path().join("pytorch_model.bin"));
        assert!(
            open(dir.path())
                .unwrap()
                .source
                .path()
                .ends_with("pytorch_model.bin")
        );
        copy("dtypes.safetensors", &dir.path().join("model.safetensors"));
        assert!(
            open(dir.path())
                .unwrap()
                .source
                .path()
                .ends_with("model.safetensors")
        );
    }

    #[test]
    fn what_is_missing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            open(dir.path().join("nowhere")),
            Err(WeightsError::NotFound {
                what: "checkpoint",
                ..
            })
        ));
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        let err = open(dir.path()).unwrap_err();
        assert!(
            err.to_string().contains("check that the download is complete"),
            "{err}"
        );

        let shard = "model-00001-of-00003.safetensors";
        copy(&format!("sharded/{shard}"), &dir.path().join(shard));
        let err = open(dir.path()).unwrap_err();
        assert!(
            matches!(&err, WeightsError::MissingIndex { example, index, .. } if example == shard && *index == WEIGHT_FILES[1]),
            "{err}"
        );
    }

    #[test]
    fn a_clone_without_its_large_files_is_recognised() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("pytorch_model.bin"),
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n",
        )
        .unwrap();
        assert!(matches!(
            open(dir.path()),
            Err(WeightsError::LfsPointer { size: Some(7), .. })
        ));
    }

    #[cfg(unix)]
    #[test]
    fn a_dangling_link_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("../../blobs/gone", dir.path().join("model.safetensors")).unwrap();
        copy("mixed.pth", &dir.path().join("pytorch_model.bin"));
        let err = open(dir.path()).unwrap_err();
        assert!(
            err.to_string().contains("model.safetensors") && err.to_string().contains("incomplete"),
            "{err}"
        );
    }

    #[test]
    fn a_pickled_module_says_that_it_holds_no_state_dict() {
        assert!(matches!(
            open(fixtures::path("module.pth")),
            Err(WeightsError::BadTorch {
                fault: TorchFault::NotADict,
                ..
            })
        ));
    }
}
