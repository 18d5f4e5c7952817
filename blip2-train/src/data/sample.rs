//! One training or evaluation example, and everything that can be wrong with it.
//!
//! Fields follow section 7.1 of the format notes (LAVIS sample dicts): captions for image-text pairs, a question with
//! weighted answers for VQA. Images stay encoded until a decode thread takes them.

mod error;
mod problem;

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use error::DataError;
pub use problem::{Problem, Skipped};

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
                let size = std::fs::metadata(&path).map_err(Problem::file(&path))?.len();
                if size > limit {
                    return Err(Problem::TooLarge {
                        member: "image".into(),
                        bytes: size,
                        limit,
                    });
                }
                std::fs::read(&path).map_err(Problem::file(path))
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
    /// VQAv2's `yes/no`, `number`, `other`; accuracies are also given for each.
    #[serde(default)]
    pub answer_type: Option<String>,
    /// First words of the question, as the data set classes them.
    #[serde(default)]
    pub question_type: Option<String>,
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
    /// Whether the captions belong to the picture, in sets of pairs that say so (`label`: 0 or 1). Evaluation of
    /// matching asks; training takes every pair for a true one.
    pub label: Option<bool>,
    /// Question and answers, for VQA sets.
    pub question: Option<Question>,
    /// Identifier of the picture as the data set writes it.
    pub image_id: Option<String>,
    /// Dense number of the picture among the annotation file's pictures in order of first appearance; equal for
    /// captions of one picture (the retrieval losses need that).
    pub image_index: Option<u32>,
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
    fn a_missing_picture_is_named() {
        let missing = ImageSource::Path("no/such.jpg".into()).read(100).unwrap_err();
        assert!(missing.to_string().starts_with("no/such.jpg: "), "{missing}");
        assert!(!missing.loses_shard());
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
        let whole = Skipped {
            key: String::new(),
            ..skip
        };
        assert_eq!(whole.to_string(), "a.tar: no caption, or only white space");
    }
}
