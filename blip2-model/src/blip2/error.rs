//! What can go wrong when a model is put together or asked for something it cannot do.

use crate::config::ConfigError;
use crate::weights::WeightsError;

/// Error of the compositions.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Blip2Error {
    /// Bad `config.json`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Bad weights.
    #[error(transparent)]
    Weights(Box<WeightsError>),
    /// The checkpoint is of a class that lacks what the call needs.
    #[error("this checkpoint has no {part}; choose one that has, see `blip2 models`")]
    MissingPart {
        /// What is missing.
        part: &'static str,
    },
    /// The picture does not divide into patches.
    #[error(
        "pictures of {width} x {height} pixels do not divide into patches of {patch}; resize them to a multiple"
    )]
    ImageSize {
        /// Pixels.
        height: usize,
        /// Pixels.
        width: usize,
        /// Pixels.
        patch: usize,
    },
    /// Text longer than the position table.
    #[error(
        "the text has {tokens} tokens, the model takes at most {limit}; shorten it or ask for truncation"
    )]
    TextTooLong {
        /// Tokens, special ones included.
        tokens: usize,
        /// Rows of the position table.
        limit: usize,
    },
    /// A batch whose inputs do not match.
    #[error("{texts} texts were given for {images} pictures")]
    BatchMismatch {
        /// Number of texts.
        texts: usize,
        /// Number of pictures.
        images: usize,
    },
    /// A number that is not finite came out of a part.
    #[error("{part} produced a number that is not finite; try --dtype f32 for it")]
    NonFinite {
        /// The part.
        part: &'static str,
    },
}
