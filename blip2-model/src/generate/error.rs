//! Why generation or ranking failed.

use super::options::OptionsError;

/// Failure of [`super::generate`] or [`super::ranking::rank`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The options of one prompt contradict themselves.
    #[error("options of prompt {row}: {source}")]
    Options {
        /// Prompt in the batch.
        row: usize,
        /// What is wrong.
        source: OptionsError,
    },
    /// An argument that has one entry per prompt has another number of them.
    #[error("{found} {what} for {prompts} prompts; give one per prompt")]
    RowCount {
        /// The argument.
        what: &'static str,
        /// Rows of the prompt.
        prompts: usize,
        /// Entries given.
        found: usize,
    },
    /// The model overflowed.
    #[error(
        "the language model gave NaN or infinite logits for prompt {row} at new token {step}; \
         use f32, or bf16 instead of f16"
    )]
    NonFinite {
        /// Prompt in the batch.
        row: usize,
        /// Tokens generated before.
        step: usize,
    },
    /// The rules left no token to choose.
    #[error(
        "every token is banned for prompt {row} at new token {step}; \
         relax `no_repeat_ngram_size`, `min_new_tokens` or the banned words and tokens"
    )]
    NothingLeft {
        /// Prompt in the batch.
        row: usize,
        /// Tokens generated before.
        step: usize,
    },
    /// A candidate without tokens has no likelihood.
    #[error("candidate {candidate} of prompt {row} has no tokens; leave it out")]
    EmptyCandidate {
        /// Prompt in the batch.
        row: usize,
        /// Position in its list.
        candidate: usize,
    },
    /// A candidate holds an id that the model cannot produce.
    #[error(
        "candidate {candidate} of prompt {row} holds token {token}, outside the vocabulary of {vocab}; \
         use the tokenizer of this model"
    )]
    UnknownToken {
        /// Prompt in the batch.
        row: usize,
        /// Position in its list.
        candidate: usize,
        /// The id.
        token: i64,
        /// Rows of the output layer.
        vocab: usize,
    },
    /// The device did not deliver.
    #[error("cannot read the logits from the device")]
    Device(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Failure of one prompt's search; the driver knows where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowError {
    NonFinite,
    NothingLeft,
}

impl RowError {
    pub(super) fn at(self, row: usize, step: usize) -> GenerateError {
        match self {
            Self::NonFinite => GenerateError::NonFinite { row, step },
            Self::NothingLeft => GenerateError::NothingLeft { row, step },
        }
    }
}

pub(super) fn check_rows(what: &'static str, prompts: usize, found: usize) -> Result<(), GenerateError> {
    if prompts == found {
        return Ok(());
    }
    Err(GenerateError::RowCount { what, prompts, found })
}
