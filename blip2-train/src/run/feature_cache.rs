//! Store of image-encoder outputs: with a frozen encoder and a fixed augmentation the tokens of a picture
//! never change, so they are computed once and trained from many times.
//!
//! A folder holds `features-00000.safetensors`, ... (one f16 tensor `features [n, N, C]` each, memory-mapped
//! when read) and `index.json` with the keys and checksums. A shard enters the index after it is on the
//! disk, so an interrupted computation goes on behind its last shard.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use blip2_model::weights::safetensors::SafetensorsFile;
use blip2_model::weights::{DType, TensorBytes, TensorInfo, TensorSource, WeightsError, writer};
use burn::tensor::{DType as BurnDType, TensorData};
use serde::{Deserialize, Serialize};

use super::crc32c::crc32c;
use super::guard::write_atomically;
use crate::stage::Images;

/// Name of the tensor in every shard.
const TENSOR: &str = "features";
/// Bytes of a shard, roughly.
const SHARD_BYTES: usize = 128 << 20;

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
    /// `index.json` is damaged.
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
        "{path} holds features of another computation ({found:?}, wanted {wanted:?}); use another folder or delete this one"
    )]
    OtherFeatures {
        /// The folder.
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
    #[error("no features of `{key}` in {path}; compute them with `blip2-train features`")]
    Missing {
        /// Sample key.
        key: String,
        /// The folder.
        path: PathBuf,
    },
    /// The checksum differs.
    #[error(
        "features of `{key}` in {path} are damaged; delete that shard's entry from index.json and compute it again"
    )]
    Damaged {
        /// Sample key.
        key: String,
        /// The shard.
        path: PathBuf,
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

#[derive(Debug, Serialize, Deserialize)]
struct Index {
    meta: FeatureMeta,
    shards: Vec<Shard>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Shard {
    file: String,
    keys: Vec<String>,
    crc32c: Vec<u32>,
}

/// Reads the index; `None` if there is none.
fn read_index(folder: &Path, wanted: &FeatureMeta) -> Result<Option<Index>, FeatureError> {
    let path = folder.join("index.json");
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FeatureError::Io { path, source }),
    };
    let index: Index =
        serde_json::from_slice(&text).map_err(|source| FeatureError::Index { path, source })?;
    if index.meta != *wanted {
        return Err(FeatureError::OtherFeatures {
            path: folder.to_owned(),
            found: Box::new(index.meta),
            wanted: Box::new(wanted.clone()),
        });
    }
    Ok(Some(index))
}

/// Fills a store.
#[derive(Debug)]
pub struct FeatureWriter {
    folder: PathBuf,
    index: Index,
    per_shard: usize,
    known: HashMap<String, ()>,
    keys: Vec<String>,
    values: Vec<f32>,
}

impl FeatureWriter {
    /// Opens a new store, or one that was interrupted.
    pub fn open(folder: &Path, meta: FeatureMeta) -> Result<Self, FeatureError> {
        let per_shard = (SHARD_BYTES / (2 * meta.row()).max(1)).max(1);
        Self::with_shards_of(folder, meta, per_shard)
    }

    fn with_shards_of(folder: &Path, meta: FeatureMeta, per_shard: usize) -> Result<Self, FeatureError> {
        let io = |source| FeatureError::Io {
            path: folder.to_owned(),
            source,
        };
        std::fs::create_dir_all(folder).map_err(io)?;
        let index = read_index(folder, &meta)?;
        let index = index.unwrap_or(Index {
            meta,
            shards: Vec::new(),
        });
        let known = index.shards.iter().flat_map(|shard| &shard.keys);
        Ok(Self {
            folder: folder.to_owned(),
            known: known.map(|key| (key.clone(), ())).collect(),
            per_shard,
            index,
            keys: Vec::new(),
            values: Vec::new(),
        })
    }

    /// Whether a picture is stored already and need not be computed.
    pub fn contains(&self, key: &str) -> bool {
        self.known.contains_key(key)
    }

    /// Adds the tokens of one picture, `N * C` values; a key that is there already is ignored.
    pub fn push(&mut self, key: &str, tokens: &[f32]) -> Result<(), FeatureError> {
        let wanted = self.index.meta.row();
        if tokens.len() != wanted {
            return Err(FeatureError::Size {
                key: key.into(),
                found: tokens.len(),
                wanted,
            });
        }
        if self.known.insert(key.into(), ()).is_some() {
            return Ok(());
        }
        self.keys.push(key.into());
        self.values.extend_from_slice(tokens);
        if self.keys.len() == self.per_shard {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes the last, smaller shard. Returns the number of pictures in the store.
    pub fn finish(mut self) -> Result<usize, FeatureError> {
        self.flush()?;
        Ok(self.known.len())
    }

    fn flush(&mut self) -> Result<(), FeatureError> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let meta = &self.index.meta;
        let shape = vec![self.keys.len(), meta.tokens, meta.width];
        let values = std::mem::take(&mut self.values);
        let tensor = TensorBytes::from_f32(shape.clone(), values)?.convert(DType::F16)?;
        let file = format!("features-{:05}.safetensors", self.index.shards.len());
        let info = TensorInfo {
            name: TENSOR.into(),
            dtype: DType::F16,
            shape,
        };
        writer::write_file(self.folder.join(&file), &[info], &mut |_| Ok(tensor.clone()))?;
        let rows = tensor.bytes().chunks_exact(2 * meta.row());
        self.index.shards.push(Shard {
            file,
            keys: std::mem::take(&mut self.keys),
            crc32c: rows.map(crc32c).collect(),
        });
        let path = self.folder.join("index.json");
        let text = serde_json::to_vec(&self.index);
        let text = text.map_err(|source| FeatureError::Index {
            path: path.clone(),
            source,
        })?;
        write_atomically(&path, &text).map_err(|source| FeatureError::Io { path, source })
    }
}

/// A store to train from. Every row is checked when it is read.
pub struct FeatureStore {
    folder: PathBuf,
    meta: FeatureMeta,
    shards: Vec<(PathBuf, TensorBytes)>,
    rows: HashMap<String, (usize, usize, u32)>,
}

impl FeatureStore {
    /// Maps all shards of a store that was computed as `meta` says.
    pub fn open(folder: &Path, meta: &FeatureMeta) -> Result<Self, FeatureError> {
        let path = folder.join("index.json");
        let index = read_index(folder, meta)?.ok_or_else(|| FeatureError::Io {
            path,
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        let mut shards = Vec::new();
        let mut rows = HashMap::new();
        for (number, shard) in index.shards.into_iter().enumerate() {
            let path = folder.join(&shard.file);
            let tensor = SafetensorsFile::open(&path)?.get(TENSOR)?;
            let wanted = shard.keys.len() * meta.row();
            if tensor.dtype() != DType::F16 || tensor.num_elements() != wanted {
                let key = shard.keys.first().cloned().unwrap_or_default();
                return Err(FeatureError::Damaged { key, path });
            }
            shards.push((path, tensor));
            let sums = shard.keys.into_iter().zip(shard.crc32c);
            rows.extend(
                sums.enumerate()
                    .map(|(row, (key, sum))| (key, (number, row, sum))),
            );
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
            let (path, tensor) = &self.shards[shard];
            let row = &tensor.bytes()[row * row_bytes..(row + 1) * row_bytes];
            if crc32c(row) != sum {
                return Err(FeatureError::Damaged {
                    key: key.clone(),
                    path: path.clone(),
                });
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
