//! Annotation files and the pictures they name: LAVIS, COCO, Karpathy, VQA, plain lists.
//!
//! What the fields are called is in [`super::formats`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::formats::{Format, Layout};
use super::official;
use super::records::{Container, for_each_row};
use super::sample::{DataError, ImageSource, Problem, Question, Sample, Skipped};

/// A row kept in memory.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub image: String,
    pub captions: Vec<String>,
    pub question: Option<Box<Question>>,
    pub image_id: Option<String>,
    pub image_index: u32,
}

/// What to read.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnnotationConfig {
    /// .json, .jsonl, .csv or .tsv.
    pub path: PathBuf,
    /// Folder the picture paths are relative to; the annotation file's folder when absent.
    #[serde(default)]
    pub images: Option<PathBuf>,
    /// Name in [`super::formats::FORMATS`].
    #[serde(default = "auto_name")]
    pub format: String,
    /// Karpathy files: "train" (with restval), "val" or "test"; everything when absent.
    #[serde(default)]
    pub split: Option<String>,
    /// Official VQA files: the annotations that go with the questions.
    #[serde(default)]
    pub answers: Option<PathBuf>,
    /// One sample per caption (training) instead of one per picture.
    #[serde(default = "yes")]
    pub pairs: bool,
}

fn auto_name() -> String {
    "auto".into()
}

fn yes() -> bool {
    true
}

impl AnnotationConfig {
    /// `path` in the lenient format, one sample per caption, pictures beside the file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            images: None,
            format: auto_name(),
            split: None,
            answers: None,
            pairs: true,
        }
    }
}

/// An annotation file in memory; pictures are opened later, by the thread that decodes them.
#[derive(Clone, Debug)]
pub struct AnnotationSet {
    shard: Arc<str>,
    images: PathBuf,
    entries: Vec<Result<Entry, Problem>>,
}

/// Texts of a retrieval evaluation and which picture each belongs to, by position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetrievalIndex {
    /// Every caption, in file order.
    pub texts: Vec<String>,
    /// Texts of each sample.
    pub image_to_texts: Vec<Vec<u32>>,
    /// Sample of each text.
    pub text_to_image: Vec<u32>,
}

impl AnnotationSet {
    /// Reads the file named by `config`. Rows that cannot be used stay in the set and fail when asked for.
    pub fn open(config: &AnnotationConfig) -> Result<Self, DataError> {
        let bytes = std::fs::read(&config.path).map_err(DataError::io(&config.path))?;
        let answers = match &config.answers {
            Some(path) => Some(std::fs::read(path).map_err(DataError::io(path))?),
            None => None,
        };
        Self::from_bytes(&bytes, answers.as_deref(), config)
    }

    /// As [`AnnotationSet::open`] on bytes already read; `config.path` gives the container and appears in messages.
    pub fn from_bytes(
        bytes: &[u8],
        answers: Option<&[u8]>,
        config: &AnnotationConfig,
    ) -> Result<Self, DataError> {
        let format = Format::named(&config.format)?;
        let container = Container::of(&config.path).ok_or_else(|| DataError::UnknownKind {
            path: config.path.clone(),
        })?;
        let parent = || config.path.parent().unwrap_or(Path::new("")).to_owned();
        let mut set = Self {
            shard: config.path.to_string_lossy().into(),
            images: config.images.clone().unwrap_or_else(parent),
            entries: Vec::new(),
        };
        let json = |source| DataError::Json {
            path: config.path.clone(),
            source,
        };
        match format.layout {
            Layout::Rows => for_each_row(bytes, container, &config.path, &mut |row| {
                set.entries.push(row.and_then(|row| format.entry(&row)));
            })?,
            Layout::Karpathy => {
                set.entries = official::karpathy(bytes, config.split.as_deref()).map_err(json)?
            }
            Layout::CocoOfficial => set.entries = official::coco(bytes).map_err(json)?,
            Layout::VqaOfficial => set.entries = official::vqa(bytes, answers).map_err(json)?,
        }
        Ok(set.finish(config.pairs))
    }

    pub(super) fn from_entries(
        source: &Path,
        images: PathBuf,
        entries: Vec<Result<Entry, Problem>>,
        pairs: bool,
    ) -> Self {
        Self {
            shard: source.to_string_lossy().into(),
            images,
            entries,
        }
        .finish(pairs)
    }

    pub(super) fn with_images(self, images: PathBuf) -> Self {
        Self { images, ..self }
    }

    pub(super) fn image_names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().flatten().map(|e| e.image.as_str())
    }

    fn finish(mut self, pairs: bool) -> Self {
        self.number_images();
        if pairs {
            self.split_captions();
        }
        self
    }

    fn number_images(&mut self) {
        let mut numbers: HashMap<String, u32> = HashMap::new();
        for entry in self.entries.iter_mut().flatten() {
            let name = entry.image_id.as_ref().unwrap_or(&entry.image);
            let next = numbers.len() as u32;
            entry.image_index = *numbers.entry(name.clone()).or_insert(next);
        }
    }

    fn split_captions(&mut self) {
        let entries = std::mem::take(&mut self.entries);
        for entry in entries {
            match entry {
                Ok(mut entry) if entry.captions.len() > 1 => {
                    for caption in std::mem::take(&mut entry.captions) {
                        self.entries.push(Ok(Entry {
                            captions: vec![caption],
                            ..entry.clone()
                        }));
                    }
                }
                other => self.entries.push(other),
            }
        }
    }

    /// The annotation file's name.
    pub fn shard(&self) -> &Arc<str> {
        &self.shard
    }

    /// Number of samples, unusable ones included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True without samples.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Sample `index`; its key is the index (LAVIS `instance_id`).
    pub fn sample(&self, index: usize) -> Option<Result<Sample, Skipped>> {
        let key = index.to_string();
        Some(match self.entries.get(index)? {
            Err(problem) => Err(Skipped {
                shard: self.shard.clone(),
                key,
                problem: problem.clone(),
            }),
            Ok(entry) => Ok(Sample {
                key,
                shard: self.shard.clone(),
                image: ImageSource::Path(self.images.join(&entry.image)),
                captions: entry.captions.clone(),
                question: entry.question.as_deref().cloned(),
                image_id: entry.image_id.clone(),
                image_index: Some(entry.image_index),
            }),
        })
    }

    /// Texts and maps for retrieval evaluation; open the set with `pairs: false`.
    pub fn retrieval_index(&self) -> RetrievalIndex {
        let mut index = RetrievalIndex::default();
        for (i, entry) in self.entries.iter().enumerate() {
            let captions = entry.as_ref().map(|e| e.captions.as_slice()).unwrap_or_default();
            let start = index.texts.len() as u32;
            index.texts.extend_from_slice(captions);
            index
                .image_to_texts
                .push((start..index.texts.len() as u32).collect());
            index.text_to_image.extend(captions.iter().map(|_| i as u32));
        }
        index
    }
}

impl burn_dataset::Dataset<Sample> for AnnotationSet {
    /// `None` also for a row that cannot be used; [`AnnotationSet::sample`] says why.
    fn get(&self, index: usize) -> Option<Sample> {
        self.sample(index)?.ok()
    }

    fn len(&self) -> usize {
        self.entries.len()
    }
}

/// The number COCO result files want: the trailing digits of the file name.
///
/// `val2014/COCO_val2014_000000522418.jpg` gives 522418.
pub fn coco_image_id(image: &str) -> Option<u64> {
    let stem = Path::new(image).file_stem()?.to_str()?;
    stem.rsplit('_').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, text: &str, config: impl FnOnce(&mut AnnotationConfig)) -> AnnotationSet {
        let mut c = AnnotationConfig {
            images: Some("root".into()),
            ..AnnotationConfig::new(name)
        };
        config(&mut c);
        AnnotationSet::from_bytes(text.as_bytes(), None, &c).unwrap()
    }

    fn get(set: &AnnotationSet, i: usize) -> Sample {
        set.sample(i).unwrap().unwrap()
    }

    #[test]
    fn caption_rows_of_both_splits() {
        let train = r#"[{"image":"val2014/COCO_val2014_000000522418.jpg","caption":"A woman.","image_id":"coco_522418"},
            {"image":"b.jpg","caption":"B","image_id":"coco_1"},
            {"image":"val2014/COCO_val2014_000000522418.jpg","caption":"A cake.","image_id":"coco_522418"}]"#;
        let s = set("t.json", train, |c| c.format = "coco_caption".into());
        assert_eq!(s.len(), 3);
        let third = get(&s, 2);
        assert_eq!(
            (third.key.as_str(), third.captions[0].as_str(), third.image_index),
            ("2", "A cake.", Some(0))
        );
        assert_eq!(third.image_id.as_deref(), Some("coco_522418"));
        assert_eq!(
            third.image,
            ImageSource::Path("root/val2014/COCO_val2014_000000522418.jpg".into())
        );
        assert_eq!(
            coco_image_id("val2014/COCO_val2014_000000522418.jpg"),
            Some(522418)
        );

        let eval = r#"[{"image":"a.jpg","caption":["1","2","3","4","5"]},{"image":"b.jpg","caption":["6"]}]"#;
        let s = set("t.json", eval, |c| c.pairs = false);
        let index = s.retrieval_index();
        assert_eq!(index.image_to_texts, [vec![0, 1, 2, 3, 4], vec![5]]);
        assert_eq!(index.text_to_image, [0, 0, 0, 0, 0, 1]);
        let pairs = set("t.json", eval, |_| {});
        assert_eq!(
            (
                pairs.len(),
                get(&pairs, 4).image_index,
                get(&pairs, 5).image_index
            ),
            (6, Some(0), Some(1))
        );
    }

    #[test]
    fn nocaps_and_vqa_rows() {
        let s = set("n.json", r#"[{"image":"x.jpg","img_id":17}]"#, |c| {
            c.format = "nocaps".into()
        });
        assert_eq!(get(&s, 0).image_id.as_deref(), Some("17"));

        let s = set(
            "v.json",
            r#"[{"image":"x.jpg","question":"q?","question_id":5,"answer":["a","b","a","a","a","a","a","a","a","a"]},
                {"image":"x.jpg","question":"q?","question_id":6}]"#,
            |c| c.format = "coco_vqa".into(),
        );
        let q = get(&s, 0).question.unwrap();
        assert_eq!(
            (q.id.as_deref(), q.answers[0].weight, q.answers[1].weight),
            (Some("5"), 0.9, 0.1)
        );
        assert!(get(&s, 1).question.unwrap().answers.is_empty());

        let s = set(
            "a.json",
            r#"[{"image":"x.jpg","question":"q","direct_answers":["a","a","b"],"choices":["a","b","c","d"],"correct_choice_idx":1}]"#,
            |c| c.format = "aok_vqa".into(),
        );
        let q = get(&s, 0).question.unwrap();
        assert_eq!(
            (q.choices.len(), q.correct_choice, q.answers.len()),
            (4, Some(1), 2)
        );

        let s = set(
            "g.json",
            r#"{"201":{"question":"Is it?","imageId":"n16","answer":"no"}}"#,
            |c| c.format = "gqa_official".into(),
        );
        let sample = get(&s, 0);
        assert_eq!(sample.image, ImageSource::Path("root/n16.jpg".into()));
        let q = sample.question.unwrap();
        assert_eq!((q.id.as_deref(), q.answers[0].weight), (Some("201"), 1.0));
    }

    #[test]
    fn published_layouts() {
        let karpathy = r#"{"images":[
            {"filepath":"val2014","filename":"a.jpg","imgid":0,"cocoid":9,"split":"restval","sentences":[{"raw":"one"},{"raw":"two"}]},
            {"filename":"b.jpg","imgid":1,"split":"test","sentences":[{"raw":"three"}]}],"dataset":"coco"}"#;
        let s = set("d.json", karpathy, |c| {
            (c.format, c.split) = ("karpathy".into(), Some("train".into()))
        });
        assert_eq!(
            (s.len(), get(&s, 1).captions[0].as_str(), get(&s, 1).image_id),
            (2, "two", Some("9".into()))
        );
        let s = set("d.json", karpathy, |c| {
            (c.format, c.split) = ("karpathy".into(), Some("test".into()))
        });
        assert_eq!(get(&s, 0).image, ImageSource::Path("root/b.jpg".into()));

        let coco = r#"{"images":[{"id":3,"file_name":"c.jpg"},{"id":4,"file_name":"d.jpg"}],
            "annotations":[{"image_id":4,"id":1,"caption":"x"},{"image_id":4,"id":2,"caption":"y"},{"image_id":8,"id":3,"caption":"z"}]}"#;
        let s = set("c.json", coco, |c| {
            (c.format, c.pairs) = ("coco_official".into(), false)
        });
        assert_eq!((get(&s, 0).captions.len(), get(&s, 1).captions.len()), (0, 2));
        assert_eq!(s.sample(2).unwrap().unwrap_err().problem.kind(), "missing_image");

        let config = AnnotationConfig {
            format: "vqa_official".into(),
            ..AnnotationConfig::new("q.json")
        };
        let questions = r#"{"data_subtype":"val2014","questions":[{"image_id":42,"question":"what?","question_id":420}]}"#;
        let notes = r#"{"annotations":[{"question_id":420,"answers":[{"answer":"a"},{"answer":"b"}]}]}"#;
        let s = AnnotationSet::from_bytes(questions.as_bytes(), Some(notes.as_bytes()), &config).unwrap();
        assert_eq!(
            get(&s, 0).image,
            ImageSource::Path("val2014/COCO_val2014_000000000042.jpg".into())
        );
        assert_eq!(get(&s, 0).question.unwrap().answers[1].weight, 0.5);
    }

    #[test]
    fn names_and_problems() {
        assert!(matches!(
            Format::named("coco"),
            Err(DataError::UnknownFormat { .. })
        ));
        let s = set(
            "x.csv",
            "file_name,text,question\na.png,\"[\"\"p\"\",\"\"q\"\"]\",\n,b,c\n",
            |c| c.pairs = false,
        );
        assert_eq!(get(&s, 0).captions, ["p", "q"]);
        assert_eq!(get(&s, 0).question, None);
        assert_eq!(s.sample(1).unwrap().unwrap_err().problem.kind(), "missing_image");
        assert!(s.sample(2).is_none());
        use burn_dataset::Dataset;
        assert!(Dataset::get(&s, 0).is_some() && Dataset::get(&s, 1).is_none());
    }
}
