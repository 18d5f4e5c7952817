//! One sample from encoded bytes to what a batch holds: decode, transform, choose and clean the text.

use blip2_model::processor::text::{MAX_WORDS, blip_caption, blip_question};
use blip2_model::processor::{Alpha, DecodeOptions, decode_bytes};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::sync::Arc;

use super::augment::Transform;
use super::rng::KeyedRng;
use super::sample::{ImageSource, Problem, Question, Sample};

/// Which caption of a sample is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptionPick {
    /// The first.
    #[default]
    First,
    /// A random one of the first so many; 2 is LAVIS' rule for CapFilt lists.
    RandomOf(u32),
}

/// What a sample must have to be of use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Needs {
    /// A caption that is not blank.
    #[default]
    Caption,
    /// A question.
    Question,
    /// Just the picture (inference, caption evaluation).
    Image,
}

/// How samples of one source are prepared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Preparation {
    /// Picture transform.
    pub transform: Transform,
    /// Choice among captions.
    pub pick: CaptionPick,
    /// Clean texts as `blip_caption` and `blip_question` do.
    pub clean: bool,
    /// Put in front of every cleaned caption.
    pub prompt: String,
    /// Words kept.
    pub max_words: usize,
    /// What must be there.
    pub needs: Needs,
    /// Larger pictures are refused before decoding.
    pub max_pixels: u64,
    /// Largest picture file, bytes.
    pub max_bytes: u64,
    /// Lay transparent pictures on white; otherwise alpha is dropped, as LAVIS does.
    pub on_white: bool,
    /// Obey EXIF orientation; LAVIS does not.
    pub orientation: bool,
    /// Read the pictures of these samples alone, by their [`full_key`], and hand out a black pixel for all others: with
    /// an empty set for training from stored features, with those that are missing for computing them.
    #[serde(skip)]
    pub only: Option<Arc<HashSet<String>>>,
}

impl Default for Preparation {
    fn default() -> Self {
        Self {
            transform: Transform::Resize { size: 224 },
            pick: CaptionPick::First,
            clean: true,
            prompt: String::new(),
            max_words: MAX_WORDS,
            needs: Needs::Caption,
            max_pixels: 89_478_485, // where Pillow starts to warn of a decompression bomb
            max_bytes: 64 << 20,
            on_white: false,
            orientation: false,
            only: None,
        }
    }
}

/// Name of a sample among all data sets.
pub fn full_key(shard: &str, key: &str) -> String {
    format!("{shard}#{key}")
}

/// A sample ready for a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Key of the sample.
    pub key: String,
    /// File it came from.
    pub shard: Arc<str>,
    /// Index of its source in the mixture.
    pub source: u32,
    /// Decoded and transformed picture.
    pub image: RgbImage,
    /// The chosen caption, cleaned; empty without captions.
    pub caption: String,
    /// All captions as stored.
    pub captions: Vec<String>,
    /// Question (text cleaned) and answers.
    pub question: Option<Question>,
    /// Identifier of the picture.
    pub image_id: Option<String>,
    /// Dense number of the picture in its annotation file.
    pub image_index: Option<u32>,
}

impl Example {
    /// Its [`full_key`].
    pub fn full_key(&self) -> String {
        full_key(&self.shard, &self.key)
    }
}

impl Preparation {
    /// Prepares `sample`; the result depends on the arguments alone.
    pub fn run(&self, seed: u64, source: u32, pass: u64, sample: Sample) -> Result<Example, Problem> {
        let Sample {
            key,
            shard,
            image,
            captions,
            question,
            image_id,
            image_index,
            label: _,
        } = sample;
        let rng = |purpose| KeyedRng::new(seed, purpose, &[&pass.to_le_bytes(), key.as_bytes()]);
        // cheap checks first: no decoding for a sample that will be refused
        let caption = self.caption(&captions, &mut rng("caption"));
        if self.needs == Needs::Caption && caption.trim().len() <= self.prompt.trim().len() {
            return Err(Problem::MissingCaption);
        }
        if self.needs == Needs::Question && question.is_none() {
            return Err(Problem::MissingQuestion);
        }
        let image = match &self.only {
            Some(only) if !only.contains(&full_key(&shard, &key)) => RgbImage::new(1, 1),
            _ => self.picture(image, &mut rng("augment"))?,
        };
        let question = question.map(|q| Question {
            text: if self.clean {
                blip_question(&q.text, self.max_words)
            } else {
                q.text
            },
            ..q
        });
        Ok(Example {
            key,
            shard,
            source,
            image,
            caption,
            captions,
            question,
            image_id,
            image_index,
        })
    }

    /// Decoded and transformed.
    fn picture(&self, image: ImageSource, rng: &mut KeyedRng) -> Result<RgbImage, Problem> {
        let options = DecodeOptions {
            max_pixels: self.max_pixels,
            apply_orientation: self.orientation,
            alpha: if self.on_white {
                Alpha::OnWhite
            } else {
                Alpha::Drop
            },
            allow_truncated: false,
        };
        let decode_error = |e| Problem::Decode(Arc::new(e));
        let bytes = image.read(self.max_bytes)?;
        let decoded = decode_bytes(&bytes, "image", &options).map_err(decode_error)?;
        self.transform.apply(decoded, rng).map_err(decode_error)
    }

    fn caption(&self, captions: &[String], rng: &mut KeyedRng) -> String {
        let index = match self.pick {
            CaptionPick::First => 0,
            CaptionPick::RandomOf(n) => {
                rng.below(u64::from(n).clamp(1, captions.len().max(1) as u64)) as usize
            }
        };
        match captions.get(index) {
            None => String::new(),
            Some(text) if self.clean => blip_caption(text, &self.prompt, self.max_words),
            Some(text) => format!("{}{text}", self.prompt),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::png;
    use super::*;

    fn sample(captions: &[&str], image: Vec<u8>) -> Sample {
        Sample {
            key: "k".into(),
            shard: "s".into(),
            image: ImageSource::Bytes(image),
            captions: captions.iter().map(|&c| c.to_owned()).collect(),
            label: None,
            question: Some(Question {
                text: "What IS this?".into(),
                ..Question::default()
            }),
            image_id: None,
            image_index: None,
        }
    }

    #[test]
    fn text_is_chosen_and_cleaned() {
        let p = Preparation {
            pick: CaptionPick::RandomOf(2),
            prompt: "a photo of ".into(),
            ..Preparation::default()
        };
        let mut seen = std::collections::BTreeSet::new();
        for pass in 0..40 {
            let e = p
                .run(1, 0, pass, sample(&["A  Cat!", "Dog.", "never"], png(8, 8)))
                .unwrap();
            assert_eq!(e.image.dimensions(), (224, 224));
            assert_eq!(e.question.unwrap().text, "what is this?");
            seen.insert(e.caption);
        }
        assert_eq!(
            seen.into_iter().collect::<Vec<_>>(),
            ["a photo of a cat", "a photo of dog"]
        );
        let raw = Preparation {
            clean: false,
            ..Preparation::default()
        };
        assert_eq!(
            raw.run(1, 0, 0, sample(&["A  Cat!"], png(8, 8))).unwrap().caption,
            "A  Cat!"
        );
    }

    /// One that cannot be read is no error where nobody asks for it.
    #[test]
    fn only_the_pictures_asked_for_are_read() {
        let p = Preparation {
            only: Some(Arc::new([full_key("s", "k")].into())),
            ..Preparation::default()
        };
        let other = |image| Sample {
            key: "other".into(),
            ..sample(&["x"], image)
        };
        let broken = || b"GIF89a".to_vec();
        let size = |s| p.run(1, 0, 0, s).map(|example| example.image.dimensions());
        assert_eq!(size(sample(&["x"], png(8, 8))).unwrap(), (224, 224));
        assert_eq!(size(other(broken())).unwrap(), (1, 1));
        assert_eq!(size(sample(&["x"], broken())).unwrap_err().kind(), "decode");
    }

    #[test]
    fn every_kind_of_bad_sample_is_refused() {
        let p = Preparation {
            prompt: "a photo of ".into(),
            ..Preparation::default()
        };
        let kind = |p: &Preparation, s| p.run(1, 0, 0, s).unwrap_err().kind();
        assert_eq!(kind(&p, sample(&[], png(8, 8))), "missing_caption");
        assert_eq!(kind(&p, sample(&[" ! . "], png(8, 8))), "missing_caption");
        let good = png(64, 64);
        assert_eq!(
            kind(&p, sample(&["x"], good[..good.len() / 2].to_vec())),
            "decode"
        );
        assert_eq!(kind(&p, sample(&["x"], b"GIF89a".to_vec())), "decode");
        let question = Preparation {
            needs: Needs::Question,
            ..p.clone()
        };
        assert_eq!(
            kind(
                &question,
                Sample {
                    question: None,
                    ..sample(&["x"], png(8, 8))
                }
            ),
            "missing_question"
        );
        let missing = Sample {
            image: ImageSource::Path("no/such.jpg".into()),
            ..sample(&["x"], vec![])
        };
        assert_eq!(kind(&p, missing), "file");
        // a 30,000 x 30,000 PNG is refused by its header
        let mut huge = png(8, 8);
        for at in [16, 20] {
            huge[at..at + 4].copy_from_slice(&30_000u32.to_be_bytes());
        }
        let crc = crc32(&huge[12..29]);
        huge[29..33].copy_from_slice(&crc.to_be_bytes());
        let problem = p.run(1, 0, 0, sample(&["x"], huge)).unwrap_err();
        assert!(problem.to_string().contains("30000 x 30000"), "{problem}");
    }

    fn crc32(data: &[u8]) -> u32 {
        !data.iter().fold(!0u32, |mut crc, &byte| {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
            }
            crc
        })
    }
}
