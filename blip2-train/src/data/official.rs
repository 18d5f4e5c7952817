//! Annotation files as their publishers write them, where that is not a list of rows: Karpathy splits, COCO captions,
//! VQAv2 / OK-VQA questions.

use std::collections::{BTreeSet, HashMap};

use serde::Deserialize;
use serde_json::Value;

use super::annotations::Entry;
use super::sample::{Problem, Question};

type Entries = Result<Vec<Result<Entry, Problem>>, serde_json::Error>;

#[derive(Deserialize)]
struct Karpathy {
    images: Vec<KarpathyImage>,
}

#[derive(Deserialize)]
struct KarpathyImage {
    #[serde(default)]
    filepath: String, // absent in the Flickr30k file
    filename: String,
    split: String,
    sentences: Vec<KarpathySentence>,
    imgid: Option<Value>,
    cocoid: Option<Value>,
}

#[derive(Deserialize)]
struct KarpathySentence {
    raw: String,
}

/// `dataset_coco.json`, `dataset_flickr30k.json`; `train` takes restval too, as the COCO caption recipe does.
pub(super) fn karpathy(bytes: &[u8], split: Option<&str>) -> Entries {
    let file: Karpathy = serde_json::from_slice(bytes)?;
    let wanted = |s: &str| split.is_none_or(|w| w == s || (w == "train" && s == "restval"));
    let kept = file.images.into_iter().filter(|i| wanted(&i.split));
    Ok(kept
        .map(|image| {
            let image_id = image.cocoid.or(image.imgid).map(|v| v.to_string());
            let path = if image.filepath.is_empty() {
                image.filename
            } else {
                format!("{}/{}", image.filepath, image.filename)
            };
            let captions = image
                .sentences
                .into_iter()
                .map(|s| s.raw)
                .filter(|s| !s.trim().is_empty())
                .collect();
            Ok(Entry {
                image: path,
                captions,
                label: None,
                question: None,
                image_id,
                image_index: 0,
            })
        })
        .collect())
}

/// The splits that occur in a Karpathy file, sorted.
pub(super) fn karpathy_splits(bytes: &[u8]) -> Result<Vec<String>, serde_json::Error> {
    let file: Karpathy = serde_json::from_slice(bytes)?;
    let splits: BTreeSet<String> = file.images.into_iter().map(|image| image.split).collect();
    Ok(splits.into_iter().collect())
}

#[derive(Deserialize)]
struct Coco {
    images: Vec<CocoImage>,
    #[serde(default)]
    annotations: Vec<CocoCaption>, // absent in test files
}

#[derive(Deserialize)]
struct CocoImage {
    id: u64,
    file_name: String,
}

#[derive(Deserialize)]
struct CocoCaption {
    image_id: u64,
    caption: String,
}

/// `captions_train2014.json`, `nocaps_val_4500_captions.json`: one entry per picture, in the order of `images`.
pub(super) fn coco(bytes: &[u8]) -> Entries {
    let file: Coco = serde_json::from_slice(bytes)?;
    let mut entries: Vec<Result<Entry, Problem>> = Vec::with_capacity(file.images.len());
    let mut position = HashMap::with_capacity(file.images.len());
    for image in file.images {
        position.insert(image.id, entries.len());
        entries.push(Ok(Entry {
            image: image.file_name,
            captions: Vec::new(),
            label: None,
            question: None,
            image_id: Some(image.id.to_string()),
            image_index: 0,
        }));
    }
    for note in file.annotations {
        match position.get(&note.image_id).map(|&i| &mut entries[i]) {
            Some(Ok(entry)) => entry.captions.push(note.caption),
            _ => entries.push(Err(Problem::MissingImage)),
        }
    }
    Ok(entries)
}

#[derive(Deserialize)]
struct VqaQuestions {
    #[serde(default)]
    data_subtype: String,
    questions: Vec<VqaQuestion>,
}

#[derive(Deserialize)]
struct VqaQuestion {
    image_id: u64,
    question: String,
    question_id: u64,
}

/// `v2_OpenEnded_mscoco_*_questions.json`; OK-VQA has the same layout. The answers are in a file of their own
/// (`annotations/answers.rs`).
pub(super) fn vqa(questions: &[u8]) -> Entries {
    let file: VqaQuestions = serde_json::from_slice(questions)?;
    // test-dev is a part of the test2015 pictures
    let folder = if file.data_subtype == "test-dev2015" {
        "test2015"
    } else {
        file.data_subtype.as_str()
    };
    Ok(file
        .questions
        .into_iter()
        .map(|q| {
            Ok(Entry {
                image: format!("{folder}/COCO_{folder}_{:012}.jpg", q.image_id),
                captions: Vec::new(),
                label: None,
                question: Some(Box::new(Question {
                    text: q.question,
                    id: Some(q.question_id.to_string()),
                    ..Question::default()
                })),
                image_id: Some(q.image_id.to_string()),
                image_index: 0,
            })
        })
        .collect())
}
