//! The one table of annotation formats: which field holds what (section 7.1 of the format notes).

use serde_json::Value;

use super::annotations::Entry;
use super::records::Row;
use super::sample::{DataError, Problem, Question, weigh_answers};

/// How a JSON file is organised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A list of rows (`Container`).
    Rows,
    /// `dataset_*.json`: images with sentences and a split each.
    Karpathy,
    /// `captions_*.json`: images and annotations in two lists.
    CocoOfficial,
    /// A questions file, with an annotations file beside it for train and val.
    VqaOfficial,
}

/// One row of the table: which fields hold what; the first that is present counts.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// Name used in recipes and on the command line.
    pub name: &'static str,
    /// Organisation of the file.
    pub layout: Layout,
    /// Path of the picture below the image folder.
    pub image: &'static [&'static str],
    /// Appended to a picture name without extension.
    pub image_suffix: &'static str,
    /// Caption, a string or a list.
    pub caption: &'static [&'static str],
    /// Question text.
    pub question: &'static [&'static str],
    /// Question identifier.
    pub question_id: &'static [&'static str],
    /// Answers: a string, a list of strings, or a list of objects with `answer`.
    pub answers: &'static [&'static str],
    /// Picture identifier.
    pub image_id: &'static [&'static str],
    /// Where LAVIS keeps the pictures, below its cache folder.
    pub usual_folder: &'static str,
}

const CAPTION: Format = Format {
    name: "",
    layout: Layout::Rows,
    image: &["image"],
    image_suffix: "",
    caption: &["caption"],
    question: &[],
    question_id: &[],
    answers: &[],
    image_id: &["image_id"],
    usual_folder: "",
};
const VQA: Format = Format {
    caption: &[],
    question: &["question"],
    question_id: &["question_id"],
    answers: &["answer"],
    ..CAPTION
};

/// Every annotation format that is read.
pub const FORMATS: &[Format] = &[
    // lenient: the first known field name wins; used for folders, tar members and files without a named format
    Format {
        name: "auto",
        image: &["image", "file_name", "filename", "image_path", "path", "file"],
        caption: &["caption", "captions", "text", "text_input", "TEXT"],
        question: &["question"],
        question_id: &["question_id"],
        answers: &["answer", "answers", "direct_answers"],
        image_id: &["image_id", "img_id"],
        ..CAPTION
    },
    Format {
        name: "coco_caption",
        usual_folder: "coco/images",
        ..CAPTION
    },
    Format {
        name: "coco_retrieval",
        usual_folder: "coco/images",
        ..CAPTION
    },
    Format {
        name: "vg_caption",
        usual_folder: "vg/images",
        ..CAPTION
    },
    Format {
        name: "sbu_caption",
        usual_folder: "sbu_captions/images",
        ..CAPTION
    },
    Format {
        name: "conceptual_caption_3m",
        usual_folder: "conceptual_caption/images",
        ..CAPTION
    },
    Format {
        name: "conceptual_caption_12m",
        usual_folder: "conceptual_caption/images_12m",
        ..CAPTION
    },
    Format {
        name: "flickr30k",
        usual_folder: "flickr30k/images",
        ..CAPTION
    },
    // test-time only: pictures and numbers, captions are on the evaluation server
    Format {
        name: "nocaps",
        image_id: &["img_id"],
        usual_folder: "nocaps/images",
        ..CAPTION
    },
    Format {
        name: "coco_vqa",
        usual_folder: "coco/images",
        ..VQA
    },
    Format {
        name: "ok_vqa",
        usual_folder: "coco/images",
        ..VQA
    },
    Format {
        name: "aok_vqa",
        answers: &["direct_answers"],
        usual_folder: "coco/images",
        ..VQA
    },
    Format {
        name: "gqa",
        usual_folder: "gqa/images",
        ..VQA
    },
    Format {
        name: "vg_vqa",
        usual_folder: "vg/images",
        ..VQA
    },
    // GQA as published: object of questions, the picture by number
    Format {
        name: "gqa_official",
        image: &["imageId"],
        image_suffix: ".jpg",
        image_id: &["imageId"],
        question_id: &["sample_id"],
        usual_folder: "gqa/images",
        ..VQA
    },
    Format {
        name: "karpathy",
        layout: Layout::Karpathy,
        usual_folder: "coco/images",
        ..CAPTION
    },
    Format {
        name: "coco_official",
        layout: Layout::CocoOfficial,
        ..CAPTION
    },
    Format {
        name: "vqa_official",
        layout: Layout::VqaOfficial,
        usual_folder: "coco/images",
        ..VQA
    },
];

impl Format {
    /// Looks `name` up in [`FORMATS`].
    pub fn named(name: &str) -> Result<&'static Self, DataError> {
        FORMATS
            .iter()
            .find(|f| f.name == name)
            .ok_or_else(|| DataError::UnknownFormat {
                name: name.to_owned(),
                known: FORMATS.iter().map(|f| f.name).collect(),
            })
    }

    /// The lenient format.
    pub fn auto() -> &'static Self {
        &FORMATS[0]
    }

    /// Captions of a row, blank ones left out.
    pub fn captions(&self, row: &Row) -> Vec<String> {
        first(row, self.caption)
            .map(|v| texts(v, &["caption", "raw"]))
            .unwrap_or_default()
    }

    /// The question of a row.
    pub fn question(&self, row: &Row) -> Option<Question> {
        let text = first(row, self.question).and_then(text)?;
        Some(Question {
            text,
            id: first(row, self.question_id).and_then(text_of),
            answers: weigh_answers(
                &first(row, self.answers)
                    .map(|v| texts(v, &["answer"]))
                    .unwrap_or_default(),
            ),
            choices: row.get("choices").map(|v| texts(v, &[])).unwrap_or_default(),
            correct_choice: row
                .get("correct_choice_idx")
                .and_then(Value::as_u64)
                .map(|i| i as usize),
            answer_type: row.get("answer_type").and_then(text_of),
            question_type: row.get("question_type").and_then(text_of),
        })
    }

    /// The picture identifier of a row.
    pub fn image_id(&self, row: &Row) -> Option<String> {
        first(row, self.image_id).and_then(text_of)
    }

    /// Whether a row says that its captions belong to the picture.
    pub fn label(&self, row: &Row) -> Option<bool> {
        row.get("label").and_then(truth)
    }

    pub(super) fn entry(&self, row: &Row) -> Result<Entry, Problem> {
        let mut image = first(row, self.image)
            .and_then(text_of)
            .ok_or(Problem::MissingImage)?;
        if !self.image_suffix.is_empty() && !image.contains('.') {
            image.push_str(self.image_suffix);
        }
        Ok(Entry {
            captions: self.captions(row),
            label: self.label(row),
            question: self.question(row).map(Box::new),
            image_id: self.image_id(row),
            image_index: 0,
            image,
        })
    }
}

fn first<'a>(row: &'a Row, names: &[&str]) -> Option<&'a Value> {
    names
        .iter()
        .find_map(|&name| row.get(name))
        .filter(|v| !v.is_null())
}

/// 0 and 1 as JSON writes them, and as the text that a CSV file has for them.
pub(super) fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(label) => Some(*label),
        Value::Number(_) | Value::String(_) => match value.as_str().unwrap_or(&value.to_string()).trim() {
            "1" | "true" | "True" => Some(true),
            "0" | "false" | "False" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|s| !s.trim().is_empty()).map(str::to_owned)
}

/// Strings and numbers.
fn text_of(value: &Value) -> Option<String> {
    text(value).or_else(|| value.is_number().then(|| value.to_string()))
}

/// A string or a list of strings, numbers, or objects holding one under a name of `inner`.
fn texts(value: &Value, inner: &[&str]) -> Vec<String> {
    match value {
        Value::Array(items) => {
            let inner_text = |v: &Value| v.as_object().and_then(|o| first(o, inner)).and_then(text_of);
            items
                .iter()
                .filter_map(|v| text_of(v).or_else(|| inner_text(v)))
                .collect()
        }
        other => text_of(other).into_iter().collect(),
    }
}
