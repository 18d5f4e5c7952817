//! Why reading ends.

use std::path::PathBuf;

use super::Skipped;

/// What is said of parquet shards: that they are read, or how they would be.
const PARQUET: &str = if cfg!(feature = "parquet") {
    " or .parquet"
} else {
    ""
};
const NO_PARQUET: &str = if cfg!(feature = "parquet") {
    ""
} else {
    "; .parquet shards need a build with `--features parquet`"
};

/// Errors that end reading.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file cannot be opened, read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// An annotation file that is not JSON.
    #[error("{}: not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, column and cause.
        source: serde_json::Error,
    },
    /// An annotation file that is not CSV or TSV.
    #[error("{}: not valid CSV: {source}", path.display())]
    Csv {
        /// The file.
        path: PathBuf,
        /// Line and cause.
        source: csv::Error,
    },
    /// A parquet shard that cannot be opened.
    #[cfg(feature = "parquet")]
    #[error("{}: not readable as parquet: {source}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// The reader's error.
        source: parquet::errors::ParquetError,
    },
    /// A column the configuration names but the file lacks.
    #[error("{}: no column `{column}`; the file has {}", path.display(), found.join(", "))]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The wanted column.
        column: String,
        /// The file's columns.
        found: Vec<String>,
    },
    /// A parquet column packed in a way that this build cannot unpack.
    #[cfg(feature = "parquet")]
    #[error("{}: column `{column}` is packed with {codec}, which this build cannot unpack; {remedy}", path.display())]
    Codec {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Name of the codec.
        codec: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A split that the file does not have.
    #[error("{}: no sample in split `{split}`; the file has the splits {}", path.display(), found.join(", "))]
    UnknownSplit {
        /// The file.
        path: PathBuf,
        /// As given.
        split: String,
        /// The file's splits.
        found: Vec<String>,
    },
    /// A split of data that has none.
    #[error(
        "{}: split `{split}` is asked for, and only files of the format `karpathy` have splits; leave it out, or give \
         that format", path.display()
    )]
    NoSplits {
        /// The data set.
        path: PathBuf,
        /// As given.
        split: String,
    },
    /// JSON of another layout than the format says.
    #[error("{}: this looks like the `{looks_like}` layout; pass that as the format", path.display())]
    Layout {
        /// The file.
        path: PathBuf,
        /// Name in [`crate::data::formats::FORMATS`].
        looks_like: &'static str,
    },
    /// No such annotation format.
    #[error("unknown annotation format `{name}`; known: {}", known.join(", "))]
    UnknownFormat {
        /// As given.
        name: String,
        /// All names.
        known: Vec<&'static str>,
    },
    /// A path that is none of the supported kinds.
    #[error(
        "{}: not a data set this reads; give a .tar (or .tar.gz){} pattern, a .json, .jsonl, .csv or .tsv annotation \
         file, or a folder with images and captions.jsonl or captions.csv{}", path.display(), PARQUET, NO_PARQUET
    )]
    UnknownKind {
        /// As given.
        path: PathBuf,
    },
    /// A shard pattern that does not parse.
    #[error("shard pattern `{pattern}`: {reason}")]
    Pattern {
        /// As given.
        pattern: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A shard pattern that matches nothing.
    #[error("shard pattern `{pattern}` matches no file")]
    NoShards {
        /// As given.
        pattern: String,
    },
    /// Standard input can be read only once.
    #[error("standard input was already read; use shard files for more than one epoch or process")]
    StdinReread,
    /// A set without samples for this process.
    #[error(
        "data set `{source_name}` has no samples for rank {rank} of {world}; use more shards than processes or \
         split by sample"
    )]
    Empty {
        /// Name in the mixture.
        source_name: String,
        /// This process.
        rank: u32,
        /// Number of processes.
        world: u32,
    },
    /// Ratios given for some sets and not for others, or not positive, or needed and absent.
    #[error("sampling ratios: {reason}")]
    Ratios {
        /// What is wrong and what to do.
        reason: &'static str,
    },
    /// A setting outside its range.
    #[error("`{field}` is {value}: {remedy}")]
    Setting {
        /// Setting.
        field: &'static str,
        /// Its value.
        value: String,
        /// Allowed values.
        remedy: &'static str,
    },
    /// A cursor of another run.
    #[error(
        "the saved data position does not fit: `{field}` was {saved} and is now {now}; restore the old setting, or \
         start from an epoch border"
    )]
    CursorMismatch {
        /// What differs.
        field: &'static str,
        /// Value in the cursor.
        saved: String,
        /// Value now.
        now: String,
    },
    /// The share of bad samples passed the threshold.
    #[error("{bad} of {seen} samples could not be used (limit {limit}); the last one: {last}")]
    TooManyBad {
        /// Bad samples so far.
        bad: u64,
        /// Samples looked at.
        seen: u64,
        /// The threshold, in words.
        limit: String,
        /// The one that passed it.
        last: Box<Skipped>,
    },
    /// More shards were lost than the limit lets pass.
    #[error(
        "{lost} of {seen} shards cannot be read to their end (limit {limit}); the last one: {last}. Fetch such shards \
         again or take them out of the data set; `data.errors.lost_shards` and `data.errors.lost_share` set the limit"
    )]
    TooManyLost {
        /// Shards lost so far.
        lost: u64,
        /// Shards read so far, whole or in part.
        seen: u64,
        /// The threshold, in words.
        limit: String,
        /// The one that passed it.
        last: Box<Skipped>,
    },
    /// The model side of a data job failed.
    #[error("{stage} failed on shard {shard}: {source}")]
    Model {
        /// "captioner" or "scorer".
        stage: &'static str,
        /// Shard in work.
        shard: String,
        /// Its error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A reader or decode thread ended without a word.
    #[error("a data thread ended unexpectedly; rerun with one thread to find the sample")]
    ThreadLost,
}

impl DataError {
    /// Whether a shard that opens with this error ends reading; any other costs the shard alone.
    pub(in crate::data) fn ends_reading(&self) -> bool {
        #[cfg(feature = "parquet")]
        if matches!(self, Self::Codec { .. }) {
            return true;
        }
        matches!(self, Self::StdinReread | Self::MissingColumn { .. })
    }

    /// Wraps a system error with the path it concerns.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

#[cfg(all(test, not(feature = "parquet")))]
mod tests {
    use super::*;

    #[test]
    fn without_parquet_the_feature_is_named() {
        let error = DataError::UnknownKind {
            path: "a.parquet".into(),
        };
        assert!(error.to_string().contains("--features parquet"), "{error}");
    }
}
