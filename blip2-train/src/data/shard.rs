//! Sets that are read shard by shard, whatever the shards are.

use std::path::{Path, PathBuf};

#[cfg(feature = "parquet")]
use super::parquet::{ParquetFields, ParquetShard};
use super::sample::{DataError, Sample, Skipped};
use super::webdataset::{AnyTarShard, TarFields};

/// Shards of one data set and how to read them.
#[derive(Clone, Debug)]
pub struct ShardSet {
    /// Files in canonical order; `-` is standard input.
    pub paths: Vec<PathBuf>,
    /// Members of tar shards.
    pub tar: TarFields,
    /// Columns of parquet shards.
    #[cfg(feature = "parquet")]
    pub parquet: ParquetFields,
    /// Number of samples over all shards, where known; used to mix without given ratios.
    pub samples: Option<u64>,
}

impl ShardSet {
    /// Shards with default fields. Every file must exist.
    pub fn new(paths: Vec<PathBuf>) -> Result<Self, DataError> {
        for path in paths.iter().filter(|p| p.as_os_str() != "-") {
            std::fs::metadata(path).map_err(DataError::io(path))?;
        }
        Ok(Self {
            paths,
            tar: TarFields::default(),
            #[cfg(feature = "parquet")]
            parquet: ParquetFields::default(),
            samples: None,
        })
    }

    /// Opens shard `index` at a position given by [`ShardReader::position`] (0 for the start).
    pub fn open(&self, index: usize, position: u64) -> Result<ShardReader, DataError> {
        let path = &self.paths[index];
        #[cfg(feature = "parquet")]
        if is_parquet(path) {
            let shard = ParquetShard::open(path, &self.parquet, position)?;
            return Ok(ShardReader::Parquet(Box::new(shard)));
        }
        let shard = AnyTarShard::open(path, &self.tar, position)?;
        Ok(ShardReader::Tar(Box::new(shard)))
    }
}

/// True for names that are read as shards.
pub fn is_shard(path: &Path) -> bool {
    let name = path.to_string_lossy().to_ascii_lowercase();
    name == "-" || [".tar", ".tar.gz", ".tgz"].iter().any(|e| name.ends_with(e)) || is_parquet(path)
}

fn is_parquet(path: &Path) -> bool {
    cfg!(feature = "parquet")
        && path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("parquet"))
}

/// An open shard.
#[non_exhaustive]
pub enum ShardReader {
    /// WebDataset tar.
    Tar(Box<AnyTarShard>),
    /// Parquet rows.
    #[cfg(feature = "parquet")]
    Parquet(Box<ParquetShard>),
}

impl ShardReader {
    /// The next sample; `Ok(None)` for one passed over because it is not `wanted`; `None` at the end. Of what is not
    /// wanted only the loss of the shard is told.
    pub fn next_sample(&mut self, wanted: bool) -> Option<Result<Option<Sample>, Skipped>> {
        match self {
            Self::Tar(shard) => shard.next_sample(wanted),
            #[cfg(feature = "parquet")]
            Self::Parquet(shard) => shard.next_sample(wanted),
        }
    }

    /// Where the next sample starts: a byte offset (tar) or a row number (parquet).
    pub fn position(&self) -> u64 {
        match self {
            Self::Tar(shard) => shard.position(),
            #[cfg(feature = "parquet")]
            Self::Parquet(shard) => shard.position(),
        }
    }
}
