//! Text to token ids and back, for the three vocabularies that BLIP-2 uses.
//!
//! Wraps the `tokenizers` crate; mirrors transformers' `BertTokenizer` (Q-Former), OPT's `GPT2Tokenizer` with a
//! leading `</s>`, and `T5Tokenizer`. Files are read in `tokenizer_files.rs`.

use std::path::Path;

use rayon::prelude::*;
use tokenizers::{Tokenizer, TruncationDirection};

use super::detokenize::{DetokenizeStream, clean_up};
use super::error::ProcessorError;
use super::guard::guard;
use super::tokenizer_files;

/// Which family of vocabulary a tokenizer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenizerKind {
    /// WordPiece of the Q-Former: `[CLS] text [SEP]`, with `[DEC]` added if the vocabulary lacks it.
    Bert,
    /// Byte-level BPE of OPT: `</s> text`.
    Opt,
    /// Unigram of T5: `text </s>`.
    T5,
    /// Whatever `tokenizer.json` says.
    Llama,
}

/// Ids of the tokens with a role; `None` where the vocabulary has no such token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Beginning of a text.
    pub bos: Option<u32>,
    /// End of a text.
    pub eos: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Stand-in for what the vocabulary cannot spell.
    pub unk: Option<u32>,
    /// `[CLS]`.
    pub cls: Option<u32>,
    /// `[SEP]`.
    pub sep: Option<u32>,
    /// `[DEC]`, which starts a caption of the Q-Former's language-model head.
    pub dec: Option<u32>,
    /// `<image>`, the placeholder of newer Hugging Face checkpoints.
    pub image: Option<u32>,
    /// The line feed, if it is one token: the end of a caption for OPT.
    pub newline: Option<u32>,
}

/// Which end of a text is cut or padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Side {
    /// The beginning.
    Left,
    /// The end.
    #[default]
    Right,
}

/// How one text becomes ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Whether to add the family's special tokens. Default true.
    pub add_special: bool,
    /// Longest result, tokens, special ones included; longer texts are cut. Default: no limit.
    pub max_length: Option<usize>,
    /// Which end is cut. Default [`Side::Right`].
    pub truncation_side: Side,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self {
            add_special: true,
            max_length: None,
            truncation_side: Side::Right,
        }
    }
}

impl EncodeOptions {
    /// Special tokens, and at most `max_length` tokens.
    pub fn truncated(max_length: usize) -> Self {
        Self {
            max_length: Some(max_length),
            ..Self::default()
        }
    }
}

/// Length to which the texts of a batch are padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PadTo {
    /// The longest text of the batch.
    Longest,
    /// Always this many tokens.
    Max(usize),
}

/// How the texts of a batch are brought to one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Padding {
    /// Where the padding goes: left for generation with a decoder-only model, right otherwise.
    pub side: Side,
    /// The common length.
    pub to: PadTo,
}

impl Padding {
    /// Padding in front, up to the longest text.
    pub const LEFT: Self = Self {
        side: Side::Left,
        to: PadTo::Longest,
    };
    /// Padding behind, up to the longest text.
    pub const RIGHT: Self = Self {
        side: Side::Right,
        to: PadTo::Longest,
    };

    /// Padding behind, up to a fixed length.
    pub fn right_to(length: usize) -> Self {
        Self {
            side: Side::Right,
            to: PadTo::Max(length),
        }
    }
}

/// Token ids of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenBatch {
    /// `[B, T]`, row-major.
    pub ids: Vec<u32>,
    /// `[B, T]`: true on tokens, false on padding.
    pub mask: Vec<bool>,
    /// Texts, `B`.
    pub batch: usize,
    /// Tokens per text, `T`.
    pub length: usize,
}

impl TokenBatch {
    /// Ids of one text, padding included.
    pub fn row(&self, index: usize) -> &[u32] {
        &self.ids[index * self.length..][..self.length]
    }

    /// Position of each token among the tokens of its text, `[B, T]`: 0, 1, ...; -1 on padding in front of or
    /// behind the text. OPT adds 2 before it looks into its table.
    pub fn positions(&self) -> Vec<i64> {
        let mut positions = Vec::with_capacity(self.mask.len());
        for row in self.mask.chunks(self.length.max(1)) {
            let mut seen = 0;
            positions.extend(row.iter().map(|&token| {
                seen += i64::from(token);
                if token { seen - 1 } else { -1 }
            }));
        }
        positions
    }
}

/// A tokenizer with the roles of its special tokens.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    inner: Tokenizer,
    kind: TokenizerKind,
    special: SpecialIds,
    clean_up: bool,
}

impl TextTokenizer {
    /// Reads a Hugging Face folder: `tokenizer.json`, or else `vocab.txt` (BERT) or `vocab.json` with `merges.txt`
    /// (OPT); and, where present, `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`.
    ///
    /// # Errors
    /// [`ProcessorError::MissingTokenizer`], [`ProcessorError::InvalidTokenizer`], [`ProcessorError::InvalidJson`],
    /// [`ProcessorError::AddedTokenId`], [`ProcessorError::Read`].
    pub fn from_folder(folder: impl AsRef<Path>, kind: TokenizerKind) -> Result<Self, ProcessorError> {
        let path = folder.as_ref();
        let damaged = |panic| ProcessorError::InvalidTokenizer {
            path: path.into(),
            source: panic,
        };
        let loaded = guard(|| tokenizer_files::load(path, kind)).map_err(|panic| damaged(panic.into()))??;
        let mut tokenizer = Self {
            inner: loaded.tokenizer,
            kind,
            special: loaded.special,
            clean_up: loaded.clean_up,
        };
        let plain = EncodeOptions {
            add_special: false,
            ..EncodeOptions::default()
        };
        let newline = tokenizer.encode("\n", &plain)?;
        if newline.len() == 1 && tokenizer.decode(&newline, false)? == "\n" {
            tokenizer.special.newline = newline.first().copied();
        }
        Ok(tokenizer)
    }

    /// Family of the vocabulary.
    pub fn kind(&self) -> TokenizerKind {
        self.kind
    }

    /// Ids of the special tokens.
    pub fn special(&self) -> &SpecialIds {
        &self.special
    }

    /// Number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Id of one token, spelled as in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Ids of one text.
    ///
    /// # Errors
    /// [`ProcessorError::MaxLength`] if the limit has no room for the special tokens;
    /// [`ProcessorError::Tokenize`].
    pub fn encode(&self, text: &str, options: &EncodeOptions) -> Result<Vec<u32>, ProcessorError> {
        let failed = |source| ProcessorError::Tokenize { source };
        guard(|| self.encode_unguarded(text, options)).map_err(|panic| failed(panic.into()))?
    }

    fn encode_unguarded(&self, text: &str, options: &EncodeOptions) -> Result<Vec<u32>, ProcessorError> {
        let failed = |source| ProcessorError::Tokenize { source };
        let mut encoding = self.inner.encode_fast(text, false).map_err(failed)?;
        let special = match self.inner.get_post_processor() {
            Some(post) if options.add_special => tokenizers::PostProcessor::added_tokens(post, false),
            _ => 0,
        };
        if let Some(max_length) = options.max_length {
            let room = max_length
                .checked_sub(special)
                .ok_or(ProcessorError::MaxLength { max_length, special })?;
            let direction = match options.truncation_side {
                Side::Left => TruncationDirection::Left,
                Side::Right => TruncationDirection::Right,
            };
            encoding.truncate(room, 0, direction);
        }
        let encoding = self
            .inner
            .post_process(encoding, None, options.add_special)
            .map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids of several texts, padded to one length.
    ///
    /// # Errors
    /// [`ProcessorError::MissingSpecialToken`] if there is no padding token; [`ProcessorError::PadLength`] if a
    /// text exceeds [`PadTo::Max`]; see also [`Self::encode`].
    pub fn encode_batch<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        options: &EncodeOptions,
        padding: Padding,
    ) -> Result<TokenBatch, ProcessorError> {
        let rows: Vec<Vec<u32>> = texts
            .par_iter()
            .map(|t| self.encode(t.as_ref(), options))
            .collect::<Result<_, _>>()?;
        let length = match padding.to {
            PadTo::Longest => rows.iter().map(Vec::len).max().unwrap_or(0),
            PadTo::Max(target) => {
                if let Some(index) = rows.iter().position(|r| r.len() > target) {
                    return Err(ProcessorError::PadLength {
                        index,
                        length: rows[index].len(),
                        target,
                    });
                }
                target
            }
        };
        let pad = match self.special.pad {
            Some(id) => id,
            // never used, since nothing is padded
            None if rows.iter().all(|r| r.len() == length) => 0,
            None => return Err(ProcessorError::MissingSpecialToken { role: "pad" }),
        };
        let mut batch = TokenBatch {
            batch: rows.len(),
            length,
            ..TokenBatch::default()
        };
        for row in &rows {
            let gap = length - row.len();
            let (before, after) = if padding.side == Side::Left {
                (gap, 0)
            } else {
                (0, gap)
            };
            batch
                .ids
                .extend(std::iter::repeat_n(pad, before).chain(row.iter().copied()));
            batch.ids.extend(std::iter::repeat_n(pad, after));
            batch
                .mask
                .extend(std::iter::repeat_n(false, before).chain(row.iter().map(|_| true)));
            batch.mask.extend(std::iter::repeat_n(false, after));
        }
        Ok(batch)
    }

    /// Text of token ids; ids outside the vocabulary are passed over.
    ///
    /// # Errors
    /// [`ProcessorError::Tokenize`].
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, ProcessorError> {
        let text = guard(|| self.inner.decode(ids, skip_special))
            .unwrap_or_else(|panic| Err(panic.into()))
            .map_err(|source| ProcessorError::Tokenize { source })?;
        Ok(if self.clean_up { clean_up(&text) } else { text })
    }

    /// A decoder for ids that arrive one at a time.
    pub fn stream(&self, skip_special: bool) -> DetokenizeStream<'_> {
        DetokenizeStream::new(self, skip_special, self.clean_up)
    }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
