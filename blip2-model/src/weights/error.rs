//! Everything that can go wrong between a checkpoint on disk (or on the hub) and tensors in a model.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

pub use super::fault::{FileGuess, HeaderFault, IndexFault, TorchFault};
use super::hub::HubFault;
use super::tensor::DType;

/// Result of reading, writing or applying weights.
pub type Result<T, E = WeightsError> = std::result::Result<T, E>;

/// A failure to find, read, write or apply weights. Each message names the file or tensors and the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The model needs tensors that the checkpoint lacks.
    #[error("{path}: {n} tensors that the model needs are missing: {names}; load a complete checkpoint or pass --allow-partial", path = path.display(), n = names.len(), names = NameList(names))]
    MissingTensors {
        /// Checkpoint that was read.
        path: PathBuf,
        /// Names as the checkpoint family spells them.
        names: Vec<String>,
    },
    /// The checkpoint holds tensors that the model has no place for.
    #[error("{path}: {n} tensors have no place in the model: {names}; check that config.json belongs to these weights, or pass --allow-partial", path = path.display(), n = names.len(), names = NameList(names))]
    UnusedTensors {
        /// Checkpoint that was read.
        path: PathBuf,
        /// Names in the checkpoint.
        names: Vec<String>,
    },
    /// Tensors whose shape differs from what the config asks for.
    #[error("{path}: {n} tensors have another shape than the config asks for: {list}", path = path.display(), n = mismatches.len(), list = NameList(mismatches))]
    ShapeMismatches {
        /// Checkpoint that was read.
        path: PathBuf,
        /// One entry per tensor.
        mismatches: Vec<ShapeMismatch>,
    },
    /// A tensor was asked for that the checkpoint does not have.
    #[error("{path}: there is no tensor named `{name}`", path = path.display())]
    NoSuchTensor {
        /// Checkpoint that was read.
        path: PathBuf,
        /// Name asked for.
        name: String,
    },
    /// A tensor's dtype cannot be represented.
    #[error("{path}: tensor `{tensor}` has dtype {dtype}, which is not supported; convert the checkpoint to F32, F16 or BF16", path = path.display())]
    UnsupportedDtype {
        /// Checkpoint that was read.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Dtype as the file spells it.
        dtype: String,
    },
    /// No conversion between two dtypes exists (only floating point to floating point does).
    #[error("cannot convert a tensor from {from} to {to}")]
    UnsupportedConversion {
        /// Dtype of the tensor.
        from: DType,
        /// Dtype asked for.
        to: DType,
    },
    /// A buffer does not have the size its shape and dtype give.
    #[error("a {dtype} tensor of shape {shape:?} does not fit in {bytes} bytes")]
    SizeMismatch {
        /// Element type.
        dtype: DType,
        /// Shape.
        shape: Vec<usize>,
        /// Bytes at hand.
        bytes: usize,
    },
    /// A tensor to be written is not what its description said.
    #[error("tensor `{name}` was announced as {dtype} {shape:?} and came as {found_dtype} {found_shape:?}")]
    NotAsAnnounced {
        /// Name of the tensor.
        name: String,
        /// Dtype announced.
        dtype: DType,
        /// Shape announced.
        shape: Vec<usize>,
        /// Dtype of the content.
        found_dtype: DType,
        /// Shape of the content.
        found_shape: Vec<usize>,
    },
    /// Something that should be there is not.
    #[error("{path}: {what} not found; {remedy}", path = path.display())]
    NotFound {
        /// Place that was searched.
        path: PathBuf,
        /// What was searched for.
        what: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Several candidates where one is needed.
    #[error("{path}: several checkpoints in one folder: {list}; name the file", path = path.display(), list = NameList(candidates))]
    Ambiguous {
        /// Folder.
        path: PathBuf,
        /// Names of the candidates.
        candidates: Vec<String>,
    },
    /// The operating system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// The disk (or quota) is full; what was being written has been removed.
    #[error("{path}: no space left on the disk while writing; nothing was left behind, free some space and run again", path = path.display())]
    DiskFull {
        /// File being written.
        path: PathBuf,
    },
    /// Weights are already there and overwriting was not asked for.
    #[error("{path}: already exists; choose another folder or ask for overwriting", path = path.display())]
    AlreadyExists {
        /// File in the way.
        path: PathBuf,
    },
    /// The file ends before its header says it should.
    #[error("{path}: the file is cut off: {found} bytes where the header promises {expected}; download or copy it again", path = path.display())]
    Truncated {
        /// File.
        path: PathBuf,
        /// Bytes promised by the header.
        expected: u64,
        /// Bytes there.
        found: u64,
    },
    /// The file is a Git LFS pointer: a clone was made without its large files.
    #[error("{path}: this is a Git LFS pointer, not the weights ({size} bytes lie elsewhere); run `git lfs pull` in the clone, or download the file itself", path = path.display(), size = size.map_or("the".to_owned(), |s| s.to_string()))]
    LfsPointer {
        /// File.
        path: PathBuf,
        /// Size of the real file, if the pointer says it.
        size: Option<u64>,
    },
    /// The content is of another kind than weights.
    #[error("{path}: not a weights file: {found}", path = path.display())]
    NotWeights {
        /// File.
        path: PathBuf,
        /// What it is.
        found: FileGuess,
    },
    /// A safetensors header that cannot be trusted.
    #[error("{path}: bad safetensors header: {fault}", path = path.display())]
    BadHeader {
        /// File.
        path: PathBuf,
        /// What is wrong.
        #[source]
        fault: HeaderFault,
    },
    /// A shard index that cannot be trusted.
    #[error("{path}: bad shard index: {fault}", path = path.display())]
    BadIndex {
        /// Index file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        fault: IndexFault,
    },
    /// Shards that the index names are not in the folder.
    #[error("{path}: {n} shards named by the index are not in the folder: {list}; download them too", path = path.display(), n = shards.len(), list = NameList(shards))]
    MissingShards {
        /// Index file.
        path: PathBuf,
        /// Names of the missing shards.
        shards: Vec<String>,
    },
    /// Shards lie in the folder but no index tells which tensor is where.
    #[error("{path}: shards such as `{example}` are here but `{index}` is not; download the index too", path = path.display())]
    MissingIndex {
        /// Folder.
        path: PathBuf,
        /// One shard.
        example: String,
        /// Name of the index file that is missing.
        index: &'static str,
    },
    /// A torch archive or pickle that cannot be read.
    #[error("{path}: bad torch file: {fault}", path = path.display())]
    BadTorch {
        /// File.
        path: PathBuf,
        /// What is wrong.
        #[source]
        fault: TorchFault,
    },
    /// The hub, or its cache, could not provide a model.
    #[error("{id}: {fault}")]
    Hub {
        /// Model id with its revision.
        id: String,
        /// What went wrong.
        #[source]
        fault: HubFault,
    },
}

/// One tensor whose shape is not the expected one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeMismatch {
    /// Name in the checkpoint.
    pub name: String,
    /// Shape that the config asks for.
    pub expected: Vec<usize>,
    /// Shape in the checkpoint.
    pub found: Vec<usize>,
}

impl fmt::Display for ShapeMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            expected,
            found,
        } = self;
        write!(f, "{name} (expected {expected:?}, found {found:?})")
    }
}

impl WeightsError {
    /// Wraps an I/O error, telling a full disk apart from the rest.
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Io { path, source },
        }
    }

    pub(crate) fn torch(path: &Path, fault: impl Into<TorchFault>) -> Self {
        Self::BadTorch {
            path: path.to_owned(),
            fault: fault.into(),
        }
    }
}

/// Prints at most a screenful of a list and counts the rest.
pub(crate) struct NameList<'a, T>(pub(crate) &'a [T]);

impl<T: fmt::Display> fmt::Display for NameList<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 20;
        for (i, item) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}{item}", if i == 0 { "" } else { ", " })?;
        }
        match self.0.len().checked_sub(SHOWN) {
            Some(rest) if rest > 0 => write!(f, " and {rest} more"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_every_mismatch_and_count_the_rest() {
        let mismatches = vec![ShapeMismatch {
            name: "w".into(),
            expected: vec![2, 3],
            found: vec![3, 2],
        }];
        let text = WeightsError::ShapeMismatches {
            path: "m".into(),
            mismatches,
        }
        .to_string();
        assert!(text.contains("w (expected [2, 3], found [3, 2])"), "{text}");

        let names = (0..23).map(|i| format!("t{i}")).collect();
        let text = WeightsError::MissingTensors {
            path: "m".into(),
            names,
        }
        .to_string();
        assert!(
            text.contains("23 tensors") && text.contains("t19 and 3 more"),
            "{text}"
        );
        assert!(!text.contains("t20"), "{text}");
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let full = WeightsError::io(Path::new("x"), io::Error::from(io::ErrorKind::StorageFull));
        assert!(matches!(full, WeightsError::DiskFull { .. }));
        let denied = WeightsError::io(Path::new("x"), io::Error::from(io::ErrorKind::PermissionDenied));
        assert!(matches!(denied, WeightsError::Io { .. }));
    }
}
