//! Fills a feature store, as one of any number of ranks that do so in one folder.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use blip2_model::weights::{DType, TensorBytes, TensorInfo, writer};

use super::index::{self, Index, Shard};
use super::{FeatureError, FeatureMeta, TENSOR};
use crate::run::crc32c::crc32c;

/// Bytes of a shard, roughly.
const SHARD_BYTES: usize = 128 << 20;

/// Adds to a store. Shards and index are those of one rank, so that no other writes them.
#[derive(Debug)]
pub struct FeatureWriter {
    folder: PathBuf,
    rank: usize,
    /// Of this rank.
    index: Index,
    per_shard: usize,
    /// Of all ranks when it was opened, and what was added since.
    known: HashSet<String>,
    keys: Vec<String>,
    values: Vec<f32>,
}

impl FeatureWriter {
    /// Opens a new store, or one that others fill, have filled, or were interrupted at.
    pub fn open(folder: &Path, meta: FeatureMeta, rank: usize) -> Result<Self, FeatureError> {
        let per_shard = (SHARD_BYTES / (2 * meta.row()).max(1)).max(1);
        Self::with_shards_of(folder, meta, rank, per_shard)
    }

    pub(super) fn with_shards_of(
        folder: &Path,
        meta: FeatureMeta,
        rank: usize,
        per_shard: usize,
    ) -> Result<Self, FeatureError> {
        let io = |source| FeatureError::Io {
            path: folder.to_owned(),
            source,
        };
        std::fs::create_dir_all(folder).map_err(io)?;
        let (mut own, mut known) = (None, HashSet::new());
        for (path, index) in index::read_all(folder, &meta)? {
            known.extend(index.shards.iter().flat_map(|shard| shard.keys.iter().cloned()));
            if path == index::path_of(folder, rank) {
                own = Some(index);
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            rank,
            index: own.unwrap_or(Index {
                meta,
                shards: Vec::new(),
            }),
            per_shard,
            known,
            keys: Vec::new(),
            values: Vec::new(),
        })
    }

    /// Whether a picture is stored already and need not be computed.
    pub fn contains(&self, key: &str) -> bool {
        self.known.contains(key)
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
        if !self.known.insert(key.into()) {
            return Ok(());
        }
        self.keys.push(key.into());
        self.values.extend_from_slice(tokens);
        if self.keys.len() == self.per_shard {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes the last, smaller shard.
    pub fn finish(mut self) -> Result<(), FeatureError> {
        self.flush()
    }

    fn flush(&mut self) -> Result<(), FeatureError> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let meta = &self.index.meta;
        let keys = std::mem::take(&mut self.keys);
        let shape = vec![keys.len(), meta.tokens, meta.width];
        let values = std::mem::take(&mut self.values);
        let tensor = TensorBytes::from_f32(shape.clone(), values)?.convert(DType::F16)?;
        let file = self.free_name();
        let info = TensorInfo {
            name: TENSOR.into(),
            dtype: DType::F16,
            shape,
        };
        writer::write_file(self.folder.join(&file), &[info], &mut |_| Ok(tensor.clone()))?;
        let rows = tensor.bytes().chunks_exact(2 * meta.row());
        self.index.shards.push(Shard {
            file,
            keys,
            crc32c: rows.map(crc32c).collect(),
        });
        index::write(&index::path_of(&self.folder, self.rank), &self.index)
    }

    /// One that is neither a file nor named by the index: the number of shards will not do where the entry of a damaged
    /// one was taken out.
    fn free_name(&self) -> String {
        let mut number = self.index.shards.len();
        loop {
            let name = index::shard_name(self.rank, number);
            let named = self.index.shards.iter().any(|shard| shard.file == name);
            if !named && !self.folder.join(&name).exists() {
                return name;
            }
            number += 1;
        }
    }
}
