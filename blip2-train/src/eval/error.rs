//! What can go wrong in an evaluation.

use std::path::PathBuf;

use super::results::Id;

/// Errors of this module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// No items at all.
    #[error("nothing to score: the list of items is empty; check the split and the annotation file")]
    Empty,
    /// Lists that belong together differ in length.
    #[error(
        "{candidates} captions for {references} lists of references; give one caption per item, in the same order"
    )]
    Lengths {
        /// Captions given.
        candidates: usize,
        /// Lists of references given.
        references: usize,
    },
    /// An item without references.
    #[error("item {item} (counted from 0) has no references; leave it out or complete the annotations")]
    NoReferences {
        /// Position of the item.
        item: usize,
    },
    /// An annotated id without a prediction.
    #[error("no prediction for {id}; the run is not complete: resume it before scoring")]
    MissingPrediction {
        /// The id.
        id: Id,
    },
    /// A prediction whose id is not annotated.
    #[error("prediction {id} is not in the annotations; check that both belong to the same split")]
    UnknownId {
        /// The id.
        id: Id,
    },
    /// Two predictions with one id.
    #[error("{id} is predicted twice; merge the files of the processes first")]
    DuplicateId {
        /// The id.
        id: Id,
    },
    /// A table of scores that does not fit the maps between images and captions.
    #[error("{what} is {rows} x {columns}, expected {expected_rows} x {expected_columns}")]
    Shape {
        /// Which table.
        what: &'static str,
        /// Rows found.
        rows: usize,
        /// Columns found.
        columns: usize,
        /// Rows expected.
        expected_rows: usize,
        /// Columns expected.
        expected_columns: usize,
    },
    /// A caption index outside the list of captions, or one that belongs to two images.
    #[error("caption {caption} of image {image} is {problem}; the map between images and captions is wrong")]
    CaptionMap {
        /// Position of the image.
        image: usize,
        /// Position of the caption.
        caption: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A score that is not a number.
    #[error(
        "score of row {row}, column {column} is not a number; the model's output overflowed (try f32 instead of f16)"
    )]
    NotANumber {
        /// Row of the table.
        row: usize,
        /// Column of the table.
        column: usize,
    },
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that is no result file.
    #[error("{}: not a result file: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
}

impl EvalError {
    /// For `map_err`: an I/O error with its path.
    pub(crate) fn file(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::File {
            path: path.to_path_buf(),
            source,
        }
    }

    /// For `map_err`: a JSON error with its path.
    pub(crate) fn json(path: &std::path::Path) -> impl FnOnce(serde_json::Error) -> Self + '_ {
        move |source| Self::Json {
            path: path.to_path_buf(),
            source,
        }
    }
}
