//! Store of image-encoder outputs: with a frozen encoder and a fixed augmentation the tokens of a picture
//! never change, so they are computed once and trained from many times.
//!
//! A folder holds `features-rank-0-00000.safetensors`, ... (one f16 tensor `features [n, N, C]` each, memory-mapped
//! when read) and `index-rank-0.json` with their keys and checksums, and the same of every other rank that computed
//! something; of a store from before ranks shared the work, `features-00000.safetensors`, ... and `index.json`. What is
//! there is what all indices name, whoever wrote them. A shard enters its index after it is on the disk, so an
//! interrupted computation goes on behind its last shard.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use blip2_model::weights::safetensors::SafetensorsFile;
use blip2_model::weights::{DType, TensorBytes, TensorSource, WeightsError};
use burn::tensor::{DType as BurnDType, TensorData};
use serde::{Deserialize, Serialize};

use super::crc32c::crc32c;
use crate::stage::Images;

mod index;
mod writer;

pub use writer::FeatureWriter;

/// Name of the tensor in every shard.
const TENSOR: &str = "features";

/// Why features cannot be stored or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FeatureError {
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Its error.
        #[source]
        source: std::io::Error,
    },
    /// A shard could not be read or written.
    #[error(transparent)]
    Weights(#[from] Box<WeightsError>),
    /// An index is damaged.
    #[error("{path}: {source}; delete the folder and compute the features again")]
    Index {
        /// The file.
        path: PathBuf,
        /// The parser's message.
        #[source]
        source: serde_json::Error,
    },
    /// The features were computed by something else.
    #[error(
        "{path} lists features of another computation ({found:?}, wanted {wanted:?}); use another folder or delete that one"
    )]
    OtherFeatures {
        /// The index.
        path: PathBuf,
        /// What they are.
        found: Box<FeatureMeta>,
        /// What was asked for.
        wanted: Box<FeatureMeta>,
    },
    /// The tokens given have another size.
    #[error("features of `{key}` have {found} values, {wanted} expected")]
    Size {
        /// Sample key.
        key: String,
        /// Given.
        found: usize,
        /// `N * C`.
        wanted: usize,
    },
    /// Not in the store.
    #[error(
        "no features of `{key}` in {path}: its picture could not be read when they were computed; `blip2-train data verify` says why"
    )]
    Missing {
        /// Sample key.
        key: String,
        /// The folder.
        path: PathBuf,
    },
    /// The checksum differs.
    #[error(
        "features of `{key}` in {path} are damaged; delete that shard's entry from {index} and compute it again"
    )]
    Damaged {
        /// Sample key.
        key: String,
        /// The shard.
        path: PathBuf,
        /// The index that names it.
        index: PathBuf,
    },
}

impl From<WeightsError> for FeatureError {
    fn from(error: WeightsError) -> Self {
        Self::Weights(Box::new(error))
    }
}

/// What was computed: equal metadata, equal features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeatureMeta {
    /// Tokens per picture, `N`.
    pub tokens: usize,
    /// Width of a token, `C`.
    pub width: usize,
    /// Digest of the encoder (see [`super::fingerprint`]).
    pub encoder: String,
    /// Image size, augmentation and its seed, in whatever form the data configuration has.
    pub transform: String,
}

impl FeatureMeta {
    fn row(&self) -> usize {
        self.tokens * self.width
    }
}

/// A shard that is open.
struct Mapped {
    path: PathBuf,
    index: PathBuf,
    tensor: TensorBytes,
}

impl Mapped {
    fn damaged(&self, key: &str) -> FeatureError {
        FeatureError::Damaged {
            key: key.into(),
            path: self.path.clone(),
            index: self.index.clone(),
        }
    }
}

/// A store to train from. Every row is checked when it is read.
pub struct FeatureStore {
    folder: PathBuf,
    meta: FeatureMeta,
    shards: Vec<Mapped>,
    rows: HashMap<String, (usize, usize, u32)>,
}

impl FeatureStore {
    /// Maps all shards, of all ranks, of a store that was computed as `meta` says.
    pub fn open(folder: &Path, meta: &FeatureMeta) -> Result<Self, FeatureError> {
        let indices = index::read_all(folder, meta)?;
        if indices.is_empty() {
            return Err(FeatureError::Io {
                path: index::path_of(folder, 0),
                source: std::io::ErrorKind::NotFound.into(),
            });
        }
        let mut shards = Vec::new();
        let mut rows = HashMap::new();
        let all = indices
            .into_iter()
            .flat_map(|(path, index)| index.shards.into_iter().map(move |shard| (path.clone(), shard)));
        for (index, shard) in all {
            let path = folder.join(&shard.file);
            let tensor = SafetensorsFile::open(&path)?.get(TENSOR)?;
            let mapped = Mapped { path, index, tensor };
            let wanted = shard.keys.len() * meta.row();
            if mapped.tensor.dtype() != DType::F16 || mapped.tensor.num_elements() != wanted {
                return Err(mapped.damaged(shard.keys.first().map_or("", String::as_str)));
            }
            let sums = shard.keys.into_iter().zip(shard.crc32c);
            rows.extend(
                sums.enumerate()
                    .map(|(row, (key, sum))| (key, (shards.len(), row, sum))),
            );
            shards.push(mapped);
        }
        Ok(Self {
            folder: folder.to_owned(),
            meta: meta.clone(),
            shards,
            rows,
        })
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Tokens of pictures, `[B, N, C]` in f16.
    pub fn images(&self, keys: &[String]) -> Result<Images, FeatureError> {
        let row_bytes = 2 * self.meta.row();
        let mut bytes = Vec::with_capacity(keys.len() * row_bytes);
        for key in keys {
            let found = self.rows.get(key).ok_or_else(|| FeatureError::Missing {
                key: key.clone(),
                path: self.folder.clone(),
            })?;
            let &(shard, row, sum) = found;
            let mapped = &self.shards[shard];
            let row = &mapped.tensor.bytes()[row * row_bytes..(row + 1) * row_bytes];
            if crc32c(row) != sum {
                return Err(mapped.damaged(key));
            }
            bytes.extend_from_slice(row);
        }
        let shape = [keys.len(), self.meta.tokens, self.meta.width];
        Ok(Images::Features(TensorData::from_bytes_vec(
            bytes,
            shape,
            BurnDType::F16,
        )))
    }
}

#[cfg(test)]
mod tests;
