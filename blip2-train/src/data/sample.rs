//! One training or evaluation example, and everything that can be wrong with it.
//!
//! Fields follow section 7.1 of the format notes (LAVIS sample dicts): captions for image-text pairs, a question with
//! weighted answers for VQA. Images stay encoded until a decode thread takes them.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Where the encoded picture is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// The file's bytes (JPEG, PNG or WebP), read from a shard.
    Bytes(Vec<u8>),
    /// A file that the decode thread opens.
    Path(PathBuf),
}

impl ImageSource {
    /// The encoded bytes; reads the file for [`ImageSource::Path`], at most `limit` bytes of it.
    pub fn read(self, limit: u64) -> Result<Vec<u8>, Problem> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Path(path) => {
                let size = std::fs::metadata(&path).map_err(Problem::io)?.len();
                if size > limit {
                    return Err(Problem::TooLarge {
                        member: "image".into(),
                        bytes: size,
                        limit,
                    });
                }
                std::fs::read(&path).map_err(Problem::io)
            }
        }
    }
}

/// A distinct answer and its share among the annotators' answers, in (0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The answer as written in the annotations.
    pub text: String,
    /// Annotators who gave it.
    pub count: u32,
    /// `count` / number of answers.
    pub weight: f32,
}

/// The VQA side of a sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// The question as written.
    pub text: String,
    /// Identifier used in result files.
    pub id: Option<String>,
    /// Distinct answers in order of first appearance; empty in test splits.
    pub answers: Vec<Answer>,
    /// A-OKVQA multiple-choice options.
    pub choices: Vec<String>,
    /// Index into `choices`.
    pub correct_choice: Option<usize>,
}

/// Distinct answers with weight count / total, in order of first appearance.
pub fn weigh_answers<S: AsRef<str>>(answers: &[S]) -> Vec<Answer> {
    let mut out: Vec<(String, u32)> = Vec::new();
    for answer in answers {
        let answer = answer.as_ref();
        match out.iter_mut().find(|(text, _)| text == answer) {
            Some((_, count)) => *count += 1,
            None => out.push((answer.to_owned(), 1)),
        }
    }
    let total = answers.len() as f32;
    out.into_iter()
        .map(|(text, count)| Answer {
            text,
            count,
            weight: count as f32 / total,
        })
        .collect()
}

/// One example before decoding.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name inside its shard (tar key) or row number in its annotation file.
    pub key: String,
    /// The file the sample came from, for logs.
    pub shard: Arc<str>,
    /// The encoded picture.
    pub image: ImageSource,
    /// Captions, best first; empty where the data set has none.
    pub captions: Vec<String>,
    /// Question and answers, for VQA sets.
    pub question: Option<Question>,
    /// Identifier of the picture as the data set writes it.
    pub image_id: Option<String>,
    /// Dense number of the picture among the annotation file's pictures in order of first appearance; equal for
    /// captions of one picture (the retrieval losses need that).
    pub image_index: Option<u32>,
}

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
        /// First offending byte.
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
    /// The shard cannot be opened or read.
    #[error("cannot be read: {0}")]
    Io(#[source] Arc<std::io::Error>),
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
            Self::Io(_) => "io",
            Self::Decode(_) => "decode",
            Self::DecoderPanic => "decoder_panic",
        }
    }
}

/// A sample that was passed over: what to write into the log.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{shard}: sample `{key}`: {problem}")]
pub struct Skipped {
    /// File it came from.
    pub shard: Arc<str>,
    /// Key inside the file; empty where the damage has no key.
    pub key: String,
    /// What is wrong.
    #[source]
    pub problem: Problem,
}

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
    /// JSON of another layout than the format says.
    #[error("{}: this looks like the `{looks_like}` layout; pass that as the format", path.display())]
    Layout {
        /// The file.
        path: PathBuf,
        /// Name in [`super::formats::FORMATS`].
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
        "{}: not a data set this reads; give a .tar (or .tar.gz) pattern, a .json, .jsonl, .csv or .tsv annotation \
         file, or a folder with images and captions.jsonl or captions.csv", path.display()
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
    /// Wraps a system error with the path it concerns.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_weights_are_shares() {
        let weighed = weigh_answers(&[
            "yes", "no", "yes", "yes", "maybe", "no", "yes", "yes", "yes", "yes",
        ]);
        let pairs: Vec<(&str, f32)> = weighed.iter().map(|a| (a.text.as_str(), a.weight)).collect();
        assert_eq!(pairs, [("yes", 0.7), ("no", 0.2), ("maybe", 0.1)]);
        assert_eq!(
            weigh_answers(&["cat"]),
            [Answer {
                text: "cat".into(),
                count: 1,
                weight: 1.0
            }]
        );
        assert!(weigh_answers::<&str>(&[]).is_empty());
    }

    #[test]
    fn skip_message_names_shard_and_key() {
        let skip = Skipped {
            shard: "a.tar".into(),
            key: "x7".into(),
            problem: Problem::MissingCaption,
        };
        assert_eq!(
            skip.to_string(),
            "a.tar: sample `x7`: no caption, or only white space"
        );
    }
}
