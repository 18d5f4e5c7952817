//! What can go wrong between a folder on disk and an answer.

use std::path::PathBuf;

use crate::blip2::Blip2Error;
use crate::checkpoint::FilesError;
use crate::checkpoint::policy::PolicyError;
use crate::generate::{GenerateError, ImportError};
use crate::processor::ProcessorError;
use crate::weights::WeightsError;

/// See the module documentation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The path does not give a model.
    #[error(transparent)]
    Files(#[from] Box<FilesError>),
    /// The dtypes asked for do not fit the model.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// `generation_config.json` cannot be used.
    #[error("{}", file.display())]
    Generation {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ImportError,
    },
    /// Weights cannot be read or do not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The model cannot do this.
    #[error(transparent)]
    Model(#[from] Blip2Error),
    /// A picture or text cannot be prepared.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    /// Decoding failed.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// No tokenizer of a language model.
    #[error("this checkpoint has no language model; use match, search or embed")]
    NoLanguage,
    /// No tokenizer of the Q-Former.
    #[error("this checkpoint has no text branch; use a retrieval checkpoint such as blip2-itm-vit-g")]
    NoTextBranch,
    /// Every picture needs one request.
    #[error("{images} pictures for {requests} requests")]
    Count {
        /// Pictures given.
        images: usize,
        /// Requests given.
        requests: usize,
    },
    /// A row of a request that no encoded picture stands for.
    #[error("request for picture {row} of {pictures} encoded ones")]
    NoSuchPicture {
        /// Row asked for.
        row: usize,
        /// Pictures encoded.
        pictures: usize,
    },
    /// Kept outputs that do not fit the model.
    #[error("kept outputs of {found} numbers per picture do not fit this model, which has {expected}")]
    Kept {
        /// Numbers per picture given.
        found: usize,
        /// Numbers per picture needed.
        expected: usize,
    },
    /// Picture, prompt and answer together exceed the position table of the language model.
    #[error(
        "picture, prompt and answer need up to {needed} positions, the language model has {limit}; shorten the \
         prompt or lower --max-new-tokens"
    )]
    PromptTooLong {
        /// Positions needed.
        needed: usize,
        /// Rows of the position table.
        limit: usize,
    },
    /// The model produced an id that no tokenizer has.
    #[error("token id {id} is outside the vocabulary")]
    TokenId {
        /// The id.
        id: i64,
    },
}

impl From<FilesError> for SessionError {
    fn from(error: FilesError) -> Self {
        Self::Files(Box::new(error))
    }
}
