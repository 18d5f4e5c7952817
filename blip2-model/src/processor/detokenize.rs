//! Text from ids that arrive one at a time, for streaming.
//!
//! The pieces joined together equal the text of all ids at once: a character is held back until its last byte
//! is there, and a blank until it is known whether the clean-up of spaces will swallow it.

use super::error::ProcessorError;
use super::tokenizer::TextTokenizer;

/// transformers' `clean_up_tokenization`, in its order: what is looked for, what it becomes.
const CLEAN_UP: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// Removes the blanks that joining tokens leaves before English punctuation and contractions.
pub(super) fn clean_up(text: &str) -> String {
    CLEAN_UP
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Decodes a growing sequence of ids.
///
/// Each step decodes the whole sequence again: the cost is quadratic, and invisible at the lengths of captions
/// and answers.
#[derive(Debug)]
pub struct DetokenizeStream<'a> {
    tokenizer: &'a TextTokenizer,
    skip_special: bool,
    clean_up: bool,
    ids: Vec<u32>,
    text: String,
    /// Bytes of `text` already handed out.
    emitted: usize,
}

impl<'a> DetokenizeStream<'a> {
    pub(super) fn new(tokenizer: &'a TextTokenizer, skip_special: bool, clean_up: bool) -> Self {
        Self {
            tokenizer,
            skip_special,
            clean_up,
            ids: Vec::new(),
            text: String::new(),
            emitted: 0,
        }
    }

    /// Takes the next id and returns the text that is now certain, possibly none.
    ///
    /// # Errors
    /// See [`TextTokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String, ProcessorError> {
        self.ids.push(id);
        self.text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        Ok(self.emit(self.certain()))
    }

    /// Returns the rest, once no id will follow.
    pub fn finish(mut self) -> String {
        self.emit(self.text.len())
    }

    /// All text so far, held-back end included.
    pub fn text(&self) -> &str {
        &self.text
    }

    fn emit(&mut self, end: usize) -> String {
        let piece = self.text.get(self.emitted..end).unwrap_or_default().to_owned();
        self.emitted = self.emitted.max(end);
        piece
    }

    /// Bytes of `text` that no further id can change.
    fn certain(&self) -> usize {
        // U+FFFD at the end stands for the first bytes of an unfinished character
        let text = self.text.trim_end_matches('\u{FFFD}');
        if !self.clean_up {
            return text.len();
        }
        // an apostrophe that stands alone loses its blanks before the contraction around it does
        let packed = |text: &str| text.replace(' ', "");
        let open = |at: &usize| {
            let tail = packed(&text[*at..]);
            CLEAN_UP.iter().any(|(from, _)| packed(from).starts_with(&tail))
        };
        // no pattern is longer than this, its inner blanks included
        let tail = text.char_indices().rev().take(8);
        let tail = tail.filter(|(_, c)| *c == ' ').map(|(at, _)| at);
        tail.filter(open).min().unwrap_or(text.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{json, numbers, path};
    use super::super::tokenizer::{EncodeOptions, TextTokenizer, TokenizerKind};

    const KINDS: [(&str, TokenizerKind); 3] = [
        ("bert", TokenizerKind::Bert),
        ("opt", TokenizerKind::Opt),
        ("t5", TokenizerKind::T5),
    ];

    fn load(name: &str, kind: TokenizerKind) -> TextTokenizer {
        TextTokenizer::from_folder(path("tokenizers").join(name), kind).unwrap()
    }

    #[test]
    fn streamed_pieces_join_to_the_whole_text() {
        let fixture = json("tokenizers/ids.json");
        for (name, kind) in KINDS {
            let tokenizer = load(name, kind);
            for (i, text) in fixture["strings"].as_array().unwrap().iter().enumerate() {
                let text = text.as_str().unwrap();
                let ids = numbers(&fixture[name]["ids"][i]);
                for skip in [true, false] {
                    let mut stream = tokenizer.stream(skip);
                    let mut joined = String::new();
                    for id in &ids {
                        let piece = stream.push(*id).unwrap();
                        // U+FFFD may be handed out where the text itself contains it
                        assert!(
                            !piece.contains('\u{FFFD}') || text.contains('\u{FFFD}'),
                            "{name}: {text:?}"
                        );
                        joined += &piece;
                    }
                    joined += &stream.finish();
                    assert_eq!(joined, tokenizer.decode(&ids, skip).unwrap(), "{name}: {text:?}");
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_ids_stream_to_the_whole_text(seeds in proptest::collection::vec(0u32.., 0..24), skip in proptest::prelude::any::<bool>()) {
            static LOADED: std::sync::LazyLock<Vec<TextTokenizer>> =
                std::sync::LazyLock::new(|| KINDS.iter().map(|(name, kind)| load(name, *kind)).collect());
            for tokenizer in LOADED.iter() {
                // the small ids are single characters, half of them parts of longer UTF-8 sequences
                let size = tokenizer.vocab_size() as u32;
                let id = |s: &u32| if s.is_multiple_of(2) { s / 2 % 260 } else { s / 2 % (size + 3) };
                let ids: Vec<u32> = seeds.iter().map(id).collect();
                let mut stream = tokenizer.stream(skip);
                let mut joined: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
                joined += &stream.finish();
                proptest::prop_assert_eq!(joined, tokenizer.decode(&ids, skip).unwrap());
            }
        }
    }

    #[test]
    fn stream_holds_back_what_may_still_change() {
        let opt = load("opt", TokenizerKind::Opt);
        let bare = EncodeOptions {
            add_special: false,
            ..EncodeOptions::default()
        };
        let ids = opt.encode("do n't 😀 .", &bare).unwrap();
        let mut stream = opt.stream(true);
        let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        assert!(
            pieces.contains(&"n't".to_owned()) || pieces.concat().starts_with("don't"),
            "{pieces:?}"
        );
        assert!(pieces.iter().any(|p| p.ends_with('😀')), "{pieces:?}");
        assert!(pieces.iter().filter(|p| p.is_empty()).count() >= 3, "{pieces:?}");
        assert_eq!(pieces.concat() + &stream.finish(), "don't 😀.");
    }
}
