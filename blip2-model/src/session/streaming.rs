//! Events of the generator -> text that grows. The pieces of a request joined together are exactly the text of
//! its first output: characters are held back until complete, blanks until it is known that text follows.

use std::ops::ControlFlow;

use super::encoded::go_on;
use super::{Result, SessionError};
use crate::generate::{Sequence, StreamEvent};
use crate::processor::{DetokenizeStream, TextTokenizer};

/// New text of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextPiece<'a> {
    /// Which request.
    pub row: usize,
    /// What is now certain; never empty.
    pub text: &'a str,
}

/// Listener of [`Session::answer_encoded`](super::Session::answer_encoded); `Break` cancels the request.
pub type OnText<'a> = dyn FnMut(TextPiece<'_>) -> ControlFlow<()> + 'a;

/// For callers that only want the result.
pub fn ignore(_: TextPiece<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// One stream per request.
pub(super) struct Streams<'t> {
    tokenizer: &'t TextTokenizer,
    rows: Vec<Stream<'t>>,
    failure: Option<SessionError>,
}

struct Stream<'t> {
    tokens: Option<DetokenizeStream<'t>>,
    trim: Trim,
}

impl<'t> Streams<'t> {
    pub fn new(tokenizer: &'t TextTokenizer, rows: usize) -> Self {
        let stream = || Stream {
            tokens: Some(tokenizer.stream(true)),
            trim: Trim::default(),
        };
        Self {
            tokenizer,
            rows: (0..rows).map(|_| stream()).collect(),
            failure: None,
        }
    }

    /// Takes one event; what becomes certain goes to `on_text`.
    pub fn hear(&mut self, event: StreamEvent<'_>, on_text: &mut OnText<'_>) -> ControlFlow<()> {
        match self.text_of(event) {
            Ok(Some((row, text))) if !text.is_empty() => on_text(TextPiece { row, text: &text }),
            Ok(_) => go_on(true),
            Err(error) => {
                self.failure.get_or_insert(error);
                go_on(false)
            }
        }
    }

    /// The first thing that went wrong while listening.
    pub fn result(self) -> Result<()> {
        self.failure.map_or(Ok(()), Err)
    }

    fn text_of(&mut self, event: StreamEvent<'_>) -> Result<Option<(usize, String)>> {
        match event {
            StreamEvent::Token {
                row,
                sequence: 0,
                token_id,
                stop,
            } => {
                let stream = &mut self.rows[row];
                let mut text = String::new();
                if let Some(tokens) = stream.tokens.as_mut() {
                    text += &stream.trim.push(&tokens.push(id(token_id)?)?);
                }
                if stop.is_some()
                    && let Some(tokens) = stream.tokens.take()
                {
                    text += &stream.trim.push(&tokens.finish());
                }
                Ok(Some((row, text)))
            }
            // a beam search settles nothing before its end
            StreamEvent::Finished { row, sequences } => {
                let stream = &mut self.rows[row];
                let Some(tokens) = stream.tokens.take() else {
                    return Ok(None);
                };
                // cancelled between two tokens: what was held back is text all the same
                let rest = match tokens.text().is_empty() {
                    true => whole(self.tokenizer, sequences)?,
                    false => tokens.finish(),
                };
                Ok(Some((row, stream.trim.push(&rest))))
            }
            _ => Ok(None),
        }
    }
}

fn id(token_id: i64) -> Result<u32> {
    u32::try_from(token_id).map_err(|_| SessionError::TokenId { id: token_id })
}

fn whole(tokenizer: &TextTokenizer, sequences: &[Sequence]) -> Result<String> {
    let Some(best) = sequences.first() else {
        return Ok(String::new());
    };
    let ids: Vec<u32> = best.token_ids.iter().map(|&t| id(t)).collect::<Result<_>>()?;
    Ok(tokenizer.decode(&ids, true)?)
}

/// `str::trim` of a text that arrives in pieces.
#[derive(Default)]
struct Trim {
    started: bool,
    held: String,
}

impl Trim {
    fn push(&mut self, piece: &str) -> String {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(if self.started { piece } else { piece.trim_start() });
        self.started |= !text.is_empty();
        let end = text.trim_end().len();
        self.held = text.split_off(end);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn pieces_join_to_the_trimmed_text(pieces in proptest::collection::vec("[ \na\u{3000}ü]{0,4}", 0..6)) {
            let mut trim = Trim::default();
            let joined: String = pieces.iter().map(|piece| trim.push(piece)).collect();
            let whole = pieces.concat();
            prop_assert_eq!(joined, whole.trim());
        }
    }
}
