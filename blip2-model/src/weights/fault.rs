//! What exactly is wrong with a file: the details inside a [`WeightsError`](super::WeightsError).

use std::fmt;

use super::error::NameList;
use super::pickle::PickleFault;

/// What is wrong with a safetensors header.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderFault {
    /// The header claims more than the format allows.
    #[error("it claims {size} bytes, the format allows {limit}; is this a safetensors file?")]
    TooLarge {
        /// Size claimed.
        size: u64,
        /// Size allowed.
        limit: u64,
    },
    /// Not the JSON that the format asks for, or tensors that overlap, leave gaps or have another size than
    /// their shape gives.
    #[error(transparent)]
    Invalid(#[from] safetensors::SafeTensorError),
    /// Two tensors of one name.
    #[error("tensor `{0}` occurs twice")]
    DuplicateName(String),
    /// Bytes after the last tensor.
    #[error("{bytes} bytes follow the last tensor")]
    TrailingBytes {
        /// How many.
        bytes: u64,
    },
}

/// What is wrong with a shard index.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexFault {
    /// Not the JSON that is expected.
    #[error("not valid JSON with a `weight_map`: {0}")]
    Json(#[from] serde_json::Error),
    /// The index file is absurdly large.
    #[error("{size} bytes is too large for an index")]
    TooLarge {
        /// Size of the file.
        size: u64,
    },
    /// No tensor at all.
    #[error("the weight map is empty")]
    Empty,
    /// A shard's name would lead out of the folder.
    #[error("shard name `{0}` is not a plain file name")]
    ShardName(String),
    /// Index and shard contents differ.
    #[error("it disagrees with its shards: not in the shard that the index names: [{}]; in a shard but not in the index: [{}]", NameList(.absent), NameList(.unlisted))]
    Disagrees {
        /// Listed tensors that the named shard lacks.
        absent: Vec<String>,
        /// Tensors that a shard holds although the index does not place them there.
        unlisted: Vec<String>,
    },
}

/// What is wrong with a torch file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TorchFault {
    /// The zip container is damaged.
    #[error("damaged zip container ({0}); the file is probably cut off, download or copy it again")]
    Zip(#[from] zip::result::ZipError),
    /// An entry of the container is missing.
    #[error("the archive has no entry `{0}`")]
    MissingEntry(String),
    /// An entry is compressed; torch never does that.
    #[error("entry `{0}` is compressed; write the file again with torch.save")]
    CompressedEntry(String),
    /// The pickle program is damaged or uses what a state dict never does.
    #[error(transparent)]
    Pickle(#[from] PickleFault),
    /// A file from before torch 0.2 (tar container).
    #[error("written by a torch older than 0.2; load and save it again with a newer torch")]
    TarFormat,
    /// The top level is not a dictionary.
    #[error("no dictionary of tensors inside; if a whole module was saved, save its state_dict() instead")]
    NotADict,
    /// Two entries of the same name.
    #[error("tensor `{0}` occurs twice")]
    DuplicateTensor(String),
    /// A tensor made by a function that is not known here.
    #[error(
        "tensor `{tensor}` is made by `{global}`, which is not supported; save a plain dense tensor instead"
    )]
    UnsupportedGlobal {
        /// Name of the tensor.
        tensor: String,
        /// Function or class.
        global: String,
    },
    /// Arguments that do not describe a tensor.
    #[error("tensor `{tensor}` has an invalid description ({what})")]
    InvalidTensor {
        /// Name of the tensor.
        tensor: String,
        /// Part that is invalid.
        what: &'static str,
    },
    /// A view reaches outside its storage.
    #[error("tensor `{tensor}` reaches beyond its storage of {storage} bytes")]
    OutOfStorage {
        /// Name of the tensor.
        tensor: String,
        /// Size of the storage.
        storage: u64,
    },
    /// An expanded view would need far more memory than the file has.
    #[error("tensor `{tensor}` is an expanded view of {bytes} bytes; save it with .contiguous()")]
    Oversized {
        /// Name of the tensor.
        tensor: String,
        /// Bytes it would take.
        bytes: u64,
    },
}

/// What a file that holds no weights looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileGuess {
    /// Zero bytes.
    Empty,
    /// An HTML page, typically a login or error page saved by a browser or a script.
    Html,
    /// JSON text.
    Json,
    /// Anything else.
    Unknown,
}

impl fmt::Display for FileGuess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the file is empty",
            Self::Html => "it is a web page, as a failed download leaves; download it again",
            Self::Json => "it is JSON text",
            Self::Unknown => "neither safetensors nor a torch file",
        })
    }
}
