//! What generation tells its caller while it runs. Turning ids into text is the processor's job.

use std::ops::ControlFlow;

use super::{Sequence, StopReason};

/// One thing that happened. Returning [`ControlFlow::Break`] cancels the prompt that the event belongs to;
/// the other prompts of the batch go on.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum StreamEvent<'a> {
    /// Greedy search or sampling settled a token.
    Token {
        /// Prompt in the batch.
        row: usize,
        /// Which of its `num_return_sequences`.
        sequence: usize,
        /// The token.
        token_id: i64,
        /// Set if the sequence ends here; with [`StopReason::Eos`] the token is the end token itself.
        stop: Option<StopReason>,
    },
    /// A beam search advanced by one token; nothing is settled before its end.
    Searching {
        /// Prompt in the batch.
        row: usize,
        /// Length of the running beams in new tokens.
        new_tokens: usize,
    },
    /// A prompt is done; the answer of the callback is ignored.
    Finished {
        /// Prompt in the batch.
        row: usize,
        /// Its results, best first.
        sequences: &'a [Sequence],
    },
}

/// For callers that only want the result.
pub fn ignore(_: StreamEvent<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}
