//! Why a sample is passed over.

use std::path::PathBuf;
use std::sync::Arc;

/// Why one sample cannot be used. Every kind is skipped and counted, never fatal by itself.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// No member or field holds a picture.
    #[error("no image: expected a jpg, jpeg, png or webp member, or an image field")]
    MissingImage,
    /// The task needs a caption and there is none, or it is blank.
    #[error("no caption, or only white space")]
    MissingCaption,
    /// The task needs a question and there is none.
    #[error("no question")]
    MissingQuestion,
    /// Text that is not UTF-8.
    #[error("{member} is not UTF-8 from byte {at} on")]
    NotUtf8 {
        /// Member or field name.
        member: String,
        /// First offending byte: of the member or row, and of the file where that is one JSON value.
        at: usize,
    },
    /// JSON or a row that does not parse.
    #[error("{member} is not valid: {reason}")]
    BadRecord {
        /// Member or field name.
        member: String,
        /// The parser's words.
        reason: String,
    },
    /// A member above the size limit.
    #[error("{member} has {bytes} bytes, above the limit of {limit}")]
    TooLarge {
        /// Member or field name.
        member: String,
        /// Its size.
        bytes: u64,
        /// The limit in force.
        limit: u64,
    },
    /// More members under one key than any sample has.
    #[error("more than {limit} files share this key")]
    TooManyMembers {
        /// The limit in force.
        limit: usize,
    },
    /// The archive ends inside this sample.
    #[error("the shard ends at byte {at}, inside this sample")]
    Truncated {
        /// Offset of the end.
        at: u64,
    },
    /// Bytes that are no tar header; reading went on at the next valid one.
    #[error("no valid tar header at byte {at}; {skipped} bytes were passed over")]
    CorruptHeader {
        /// Offset of the first bad block.
        at: u64,
        /// Distance to the next valid header or the end.
        skipped: u64,
    },
    /// Bytes that are no tar header, and none after them is: the shard is none from there on.
    #[error("no valid tar header from byte {at} on; the {skipped} bytes to the end were passed over")]
    NotTar {
        /// Offset of the first bad block.
        at: u64,
        /// Distance to the end.
        skipped: u64,
    },
    /// The shard cannot be opened, or reading it breaks off.
    #[error("cannot be read: {0}")]
    Io(#[source] Arc<std::io::Error>),
    /// A file of its own that belongs to the sample cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: Arc<std::io::Error>,
    },
    /// A picture that does not decode.
    #[error("image does not decode: {0}")]
    Decode(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// A decoder bug, caught.
    #[error("image decoder panicked")]
    DecoderPanic,
}

impl Problem {
    /// Wraps a system error.
    pub fn io(source: std::io::Error) -> Self {
        Self::Io(Arc::new(source))
    }

    /// Reading a shard broke off; `place` is a byte or a row of it.
    pub fn breaks_off(place: impl std::fmt::Display, source: std::io::Error) -> Self {
        let kind = source.kind();
        Self::io(std::io::Error::new(
            kind,
            format!("it breaks off at {place}: {source}"),
        ))
    }

    /// Wraps a system error with the sample's file that it concerns.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            path,
            source: Arc::new(source),
        }
    }

    /// Whether the shard gives nothing more after this: it is lost, or the rest of it, and not one sample.
    pub fn loses_shard(&self) -> bool {
        matches!(self, Self::Io(_) | Self::NotTar { .. } | Self::Truncated { .. })
    }

    /// Checks that `bytes` are UTF-8.
    pub fn utf8<'a>(member: &str, bytes: &'a [u8]) -> Result<&'a str, Self> {
        std::str::from_utf8(bytes).map_err(|e| Self::NotUtf8 {
            member: member.to_owned(),
            at: e.valid_up_to(),
        })
    }

    /// A short stable name to count by.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::MissingImage => "missing_image",
            Self::MissingCaption => "missing_caption",
            Self::MissingQuestion => "missing_question",
            Self::NotUtf8 { .. } => "not_utf8",
            Self::BadRecord { .. } => "bad_record",
            Self::TooLarge { .. } => "too_large",
            Self::TooManyMembers { .. } => "too_many_members",
            Self::Truncated { .. } => "truncated",
            Self::CorruptHeader { .. } => "corrupt_header",
            Self::NotTar { .. } => "not_tar",
            Self::Io(_) => "io",
            Self::File { .. } => "file",
            Self::Decode(_) => "decode",
            Self::DecoderPanic => "decoder_panic",
        }
    }
}

/// A sample that was passed over: what to write into the log.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{shard}: {}{problem}", named(key))]
pub struct Skipped {
    /// File it came from.
    pub shard: Arc<str>,
    /// Key inside the file; empty where the damage has no key.
    pub key: String,
    /// What is wrong.
    #[source]
    pub problem: Problem,
}

/// Damage without a key belongs to the file as a whole.
fn named(key: &str) -> String {
    match key {
        "" => String::new(),
        key => format!("sample `{key}`: "),
    }
}
