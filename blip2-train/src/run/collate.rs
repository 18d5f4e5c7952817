//! Pictures and texts of a loader's batch as the stages take them (LAVIS `blip2_qformer.py`,
//! `blip2_opt.py`, `blip2_t5.py`: tokenisation inside `forward`).

use blip2_model::nn::PadMask;
use blip2_model::processor::{
    EncodeOptions, ImageProcessor, ImageProcessorConfig, Padding, ProcessorError, TextTokenizer, TokenBatch,
};
use burn::tensor::TensorData;
use serde::{Deserialize, Serialize};

use super::SourceError;
use super::feature_cache::FeatureStore;
use super::feed::Collate;
use crate::data::loader::Batch;
use crate::data::prepare::Example;
use crate::data::rng::KeyedRng;
use crate::losses::IGNORE;
use crate::stage::{Images, LmBatch, PairBatch, TextBatch};

/// Where image tokens come from.
pub enum Pictures {
    /// Computed from pixels; the transform has been applied by the loader, values are only normalised here.
    Pixels(Box<ImageProcessor>),
    /// Read from a store.
    Store(FeatureStore),
}

impl Pictures {
    /// Normalised with CLIP's mean and deviation.
    pub fn normalised(size: u32) -> Self {
        Self::Pixels(Box::new(ImageProcessor::new(ImageProcessorConfig {
            do_resize: false,
            ..ImageProcessorConfig::blip2(size)
        })))
    }

    /// Of a batch.
    pub fn images(&self, examples: &[Example], keys: &[String]) -> Result<Images, SourceError> {
        match self {
            Self::Store(store) => Ok(store.images(keys)?),
            Self::Pixels(processor) => {
                let images: Vec<_> = examples.iter().map(|example| example.image.clone()).collect();
                let batch = processor.preprocess_batch(&images)?;
                let shape = [batch.batch, 3, batch.height, batch.width];
                Ok(Images::Pixels(TensorData::new(batch.values, shape)))
            }
        }
    }
}

/// Names of samples among all data sets.
fn keys(examples: &[Example]) -> Vec<String> {
    examples.iter().map(Example::full_key).collect()
}

/// Rows of ids with padding on the right.
fn text_batch(batch: &TokenBatch) -> TextBatch {
    let width = batch.length.max(1);
    TextBatch {
        ids: batch
            .ids
            .chunks(width)
            .map(|row| row.iter().map(|&id| i64::from(id)).collect())
            .collect(),
        mask: PadMask::new(batch.mask.chunks(width).map(<[bool]>::to_vec).collect()),
    }
}

/// Captions for stage 1 and retrieval: `[CLS] .. [SEP]`, cut and padded to one length.
pub struct PairCollate {
    /// Pixels or features.
    pub pictures: Pictures,
    /// BERT's, with `[DEC]`.
    pub tokenizer: TextTokenizer,
    /// Length of every text; LAVIS trains with 32.
    pub max_tokens: usize,
}

impl Collate for PairCollate {
    type Batch = PairBatch;

    fn collate(&mut self, batch: Batch) -> Result<PairBatch, SourceError> {
        self.pairs(&batch.examples)
    }
}

impl PairCollate {
    fn pairs(&self, examples: &[Example]) -> Result<PairBatch, SourceError> {
        let keys = keys(examples);
        let captions: Vec<&str> = examples.iter().map(|example| example.caption.as_str()).collect();
        let options = EncodeOptions::truncated(self.max_tokens);
        let tokens = self
            .tokenizer
            .encode_batch(&captions, &options, Padding::right_to(self.max_tokens))?;
        // an index counts within its data set
        let id = |e: &Example| {
            e.image_index
                .map(|index| i64::from(e.source) << 32 | i64::from(index))
        };
        Ok(PairBatch {
            images: self.pictures.images(examples, &keys)?,
            text: text_batch(&tokens),
            image_ids: examples.iter().map(id).collect(),
            keys,
        })
    }
}

/// What the language model reads and predicts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "kebab-case", deny_unknown_fields)]
pub enum LmTask {
    /// The caption after a fixed prompt (possibly empty).
    Caption {
        /// Text before the caption; not predicted.
        #[serde(default)]
        prompt: String,
    },
    /// Prefix language modelling: the caption is cut at a random word, the encoder reads the first part and
    /// the decoder predicts the second. Encoder-decoder models only.
    Prefix,
    /// An answer to a question; `{}` in the template stands for the question. Of several answers one is
    /// drawn by its share among the annotators.
    Answer {
        /// For example `Question: {} Answer:`.
        template: String,
    },
}

/// Family-specific layout of the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LmLayout {
    /// One sequence `</s> prompt text \n`, of which the prompt is not predicted (OPT).
    DecoderOnly,
    /// One sequence `<s> prompt text </s>`, of which the prompt is not predicted (LLaMA, as InstructBLIP trains
    /// Vicuna).
    DecoderOnlyEos,
    /// Prompt into the encoder, text into the decoder, each ended by `</s>` (T5).
    EncoderDecoder,
}

/// Captions and answers for stage 2 and fine-tuning.
pub struct LmCollate {
    /// Pixels or features.
    pub pictures: Pictures,
    /// The language model's.
    pub tokenizer: TextTokenizer,
    /// Layout of its family.
    pub layout: LmLayout,
    /// Task.
    pub task: LmTask,
    /// Longest text; LAVIS cuts at 32.
    pub max_tokens: usize,
    /// BERT's tokenizer where the Q-Former reads the question.
    pub qformer_tokenizer: Option<TextTokenizer>,
    /// Seed of cuts and choices.
    pub seed: u64,
}

/// A sample's texts.
struct Texts {
    prompt: String,
    target: String,
}

impl LmCollate {
    fn texts(&self, example: &Example, epoch: u64) -> Texts {
        let mut rng = KeyedRng::new(
            self.seed,
            "lm text",
            &[
                example.shard.as_bytes(),
                example.key.as_bytes(),
                &epoch.to_le_bytes(),
            ],
        );
        match &self.task {
            LmTask::Caption { prompt } => Texts {
                prompt: prompt.clone(),
                target: example.caption.clone(),
            },
            LmTask::Prefix => {
                let words: Vec<&str> = example.caption.split(' ').collect();
                // the second part is never empty; the first may be
                let cut = rng.below(words.len() as u64) as usize;
                Texts {
                    prompt: words[..cut].join(" "),
                    target: words[cut..].join(" "),
                }
            }
            LmTask::Answer { template } => {
                let question = example.question.as_ref();
                let answers = question.map_or(&[][..], |question| &question.answers);
                let weights: Vec<f64> = answers.iter().map(|a| f64::from(a.weight)).collect();
                let answer = rng.weighted(&weights).map_or("", |i| answers[i].text.as_str());
                Texts {
                    prompt: template.replace("{}", question.map_or("", |q| q.text.as_str())),
                    target: answer.to_string(),
                }
            }
        }
    }

    /// `</s> prompt text \n`: ids and how many of them are the prompt.
    fn decoder_only(&self, texts: &Texts) -> Result<(Vec<i64>, usize), ProcessorError> {
        if self.layout == LmLayout::DecoderOnlyEos {
            return self.ended_by_eos(texts);
        }
        let whole = EncodeOptions::default();
        if texts.prompt.is_empty() {
            // LAVIS masks nothing then: the beginning of the text is predicted from the last query
            let text = format!("{}\n", texts.target);
            return Ok((wide(self.tokenizer.encode(&text, &whole)?), 0));
        }
        let plain = EncodeOptions {
            add_special: false,
            ..whole.clone()
        };
        let prompt = self.tokenizer.encode(&texts.prompt, &whole)?;
        let target = self.tokenizer.encode(&format!(" {}\n", texts.target), &plain)?;
        let length = prompt.len();
        Ok((wide([prompt, target].concat()), length))
    }

    /// `<s> prompt text </s>`; the vocabulary puts the space between prompt and text itself.
    fn ended_by_eos(&self, texts: &Texts) -> Result<(Vec<i64>, usize), ProcessorError> {
        let end = self.tokenizer.special().eos;
        let end = end.ok_or(ProcessorError::MissingSpecialToken { role: "eos" })?;
        let plain = EncodeOptions {
            add_special: false,
            ..EncodeOptions::default()
        };
        let prompt = match texts.prompt.is_empty() {
            true => self.tokenizer.special().bos.into_iter().collect(),
            false => self.tokenizer.encode(&texts.prompt, &EncodeOptions::default())?,
        };
        let length = if texts.prompt.is_empty() { 0 } else { prompt.len() };
        let mut target = self.tokenizer.encode(&texts.target, &plain)?;
        target.push(end);
        Ok((wide([prompt, target].concat()), length))
    }

    fn padded(&self, mut rows: Vec<Vec<i64>>) -> Result<TextBatch, ProcessorError> {
        let pad = self.tokenizer.special().pad;
        let pad = i64::from(pad.ok_or(ProcessorError::MissingSpecialToken { role: "pad" })?);
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        let mask = rows
            .iter()
            .map(|row| (0..longest).map(|t| t < row.len()).collect());
        let mask = PadMask::new(mask.collect());
        for row in &mut rows {
            row.resize(longest, pad);
        }
        Ok(TextBatch { ids: rows, mask })
    }
}

impl Collate for LmCollate {
    type Batch = LmBatch;

    fn collate(&mut self, batch: Batch) -> Result<LmBatch, SourceError> {
        self.targets(&batch.examples, batch.cursor.epoch())
    }
}

impl LmCollate {
    fn targets(&self, examples: &[Example], epoch: u64) -> Result<LmBatch, SourceError> {
        let keys = keys(examples);
        let texts: Vec<Texts> = examples
            .iter()
            .map(|example| self.texts(example, epoch))
            .collect();
        let cut = EncodeOptions::truncated(self.max_tokens);
        let (prompt, target, masked) = match self.layout {
            LmLayout::DecoderOnly | LmLayout::DecoderOnlyEos => {
                let mut rows = Vec::new();
                let mut masked = Vec::new();
                for texts in &texts {
                    let (mut ids, prompt) = self.decoder_only(texts)?;
                    ids.truncate(self.max_tokens);
                    rows.push(ids);
                    masked.push(prompt);
                }
                (None, self.padded(rows)?, masked)
            }
            LmLayout::EncoderDecoder => {
                let encode = |text: &str| self.tokenizer.encode(text, &cut).map(wide);
                let prompts = texts
                    .iter()
                    .map(|t| encode(&t.prompt))
                    .collect::<Result<_, _>>()?;
                let targets = texts
                    .iter()
                    .map(|t| encode(&t.target))
                    .collect::<Result<_, _>>()?;
                let masked = vec![0; texts.len()];
                (Some(self.padded(prompts)?), self.padded(targets)?, masked)
            }
        };
        let labels = target.ids.iter().zip(target.mask.rows()).zip(&masked);
        let labels = labels.map(|((ids, real), &prompt)| {
            let label = |t: usize| if real[t] && t >= prompt { ids[t] } else { IGNORE };
            (0..ids.len()).map(label).collect()
        });
        let qformer_text = match &self.qformer_tokenizer {
            None => None,
            Some(tokenizer) => {
                let questions = examples
                    .iter()
                    .map(|e| e.question.as_ref().map_or("", |q| q.text.as_str()));
                let questions: Vec<&str> = questions.collect();
                Some(text_batch(&tokenizer.encode_batch(
                    &questions,
                    &cut,
                    Padding::RIGHT,
                )?))
            }
        };
        Ok(LmBatch {
            images: self.pictures.images(examples, &keys)?,
            labels: labels.collect(),
            prompt,
            target,
            qformer_text,
            keys,
        })
    }
}

fn wide(ids: Vec<u32>) -> Vec<i64> {
    ids.into_iter().map(i64::from).collect()
}

#[cfg(test)]
mod tests;
