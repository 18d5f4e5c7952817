//! A loaded model with its processor and tokenizers, on one device: what the command, the evaluations and the
//! examples stand on.

mod answer;
mod error;

use std::path::Path;
use std::time::Instant;

use crate::blip2::conditional::TokenBatch;
use crate::blip2::{Blip2, ImageFeatures};
use crate::checkpoint::{DtypePolicy, LoadReport};
use crate::config::{Blip2Config, Task};
use crate::generate::ranking::{RankOptions, rank};
use crate::generate::{self, GenerateOptions, StopReason};
use crate::language::{AnyLanguageModel, Architecture, LanguageModel};
use crate::nn::{Context, Kernels, PadMask};
use crate::processor::{
    DecodeOptions, EncodeOptions, ImageProcessor, Padding, RgbImage, TextTokenizer, TokenizerKind,
    decode_file,
};
use crate::weights::checkpoint_dir;
use burn::tensor::{DType, Tensor, TensorData};

pub use answer::{Answer, Output, RankedAnswer, Timing};
pub use error::SessionError;

type Result<T> = std::result::Result<T, SessionError>;

/// One picture with its prompt and options; a batch may mix them freely.
#[derive(Clone, Debug)]
pub struct Request {
    /// Path, as printed back.
    pub image: String,
    /// Text for the language model; empty for a plain caption.
    pub prompt: String,
    /// How to generate.
    pub options: GenerateOptions,
}

/// See the module documentation.
pub struct Session<B: Kernels> {
    /// The model.
    pub model: Blip2<B>,
    /// Pictures to pixel values.
    pub images: ImageProcessor,
    /// What the load did.
    pub report: LoadReport,
    /// Generation settings of the checkpoint.
    pub generation: Option<GenerateOptions>,
    language_tokenizer: Option<TextTokenizer>,
    query_tokenizer: Option<TextTokenizer>,
    load_ms: f64,
}

/// Milliseconds since `start`.
fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

impl<B: Kernels> Session<B> {
    /// Opens a Hugging Face folder.
    pub fn open(folder: &Path, policy: DtypePolicy, allow_partial: bool, device: &B::Device) -> Result<Self> {
        let start = Instant::now();
        let opened = checkpoint_dir::open(folder)?;
        let json = opened
            .config_json
            .as_deref()
            .ok_or_else(|| SessionError::NoConfig {
                folder: folder.to_path_buf(),
            })?;
        let config = Blip2Config::from_json(json).map_err(|source| SessionError::Config {
            folder: folder.to_path_buf(),
            source,
        })?;
        let policy = policy.for_config(&config)?;
        let (model, report) = Blip2::load(config, opened.source.as_ref(), policy, allow_partial, device)?;
        let preprocessor = opened.folder.join("preprocessor_config.json");
        let images = match preprocessor.exists() {
            true => ImageProcessor::from_file(&preprocessor)?,
            false => ImageProcessor::blip2(model.config.vision_config.image_size() as u32),
        };
        let kind = model.language.as_ref().map(|language| match language {
            AnyLanguageModel::Opt(_) => TokenizerKind::Opt,
            AnyLanguageModel::T5(_) => TokenizerKind::T5,
            AnyLanguageModel::Llama(_) => TokenizerKind::Llama,
        });
        let language_tokenizer = kind
            .map(|kind| TextTokenizer::from_folder(&opened.folder, kind))
            .transpose()?;
        let query_folder = match model.config.task() {
            Task::Complete => Some(opened.folder.join("qformer_tokenizer")),
            _ if model.bridge.qformer.has_text_branch() => Some(opened.folder.clone()),
            _ => None,
        };
        let query_tokenizer = query_folder
            .map(|folder| TextTokenizer::from_folder(folder, TokenizerKind::Bert))
            .transpose()?;
        let settings = opened.folder.join("generation_config.json");
        let generation = match (model.language.as_ref(), std::fs::read_to_string(&settings)) {
            (Some(language), Ok(text)) => Some(GenerateOptions::hf(&text, language.architecture()).map_err(
                |source| SessionError::Generation {
                    file: settings.clone(),
                    source,
                },
            )?),
            _ => None,
        };
        Ok(Self {
            model,
            images,
            report,
            generation,
            language_tokenizer,
            query_tokenizer,
            load_ms: ms(start),
        })
    }

    /// How the language model consumes prompts, if there is one.
    pub fn architecture(&self) -> Result<Architecture> {
        Ok(self.model.language()?.architecture())
    }

    /// Decodes a picture file to 8-bit RGB.
    pub fn read_image(path: &Path) -> Result<RgbImage> {
        Ok(decode_file(path, &DecodeOptions::default())?)
    }

    /// Pictures -> pixel values `[B, 3, H, W]`.
    pub fn pixels(&self, images: &[RgbImage]) -> Result<Tensor<B, 4>> {
        let batch = self.images.preprocess_batch(images)?;
        let shape = [batch.batch, 3, batch.height, batch.width];
        Ok(Tensor::from_data(
            TensorData::new(batch.values, shape),
            (&self.model.device, DType::F32),
        ))
    }

    /// Encodes pictures once, for any number of questions.
    pub fn encode(&self, images: &[RgbImage], ctx: &Context) -> Result<ImageFeatures<B>> {
        Ok(self.model.encode_images(self.pixels(images)?, ctx)?)
    }

    fn language_tokenizer(&self) -> Result<&TextTokenizer> {
        self.language_tokenizer.as_ref().ok_or(SessionError::NoLanguage)
    }

    /// Prompts -> padded ids: left for decoder-only models, right for encoder-decoder ones.
    pub fn tokenize_prompts(&self, prompts: &[String]) -> Result<TokenBatch> {
        let side = match self.architecture()? {
            Architecture::DecoderOnly => Padding::LEFT,
            Architecture::EncoderDecoder => Padding::RIGHT,
        };
        tokenize(
            self.language_tokenizer()?,
            prompts,
            &EncodeOptions::default(),
            side,
        )
    }

    /// Texts for the Q-Former, padded on the right.
    pub fn tokenize_texts(&self, texts: &[String], max_length: Option<usize>) -> Result<TokenBatch> {
        let tokenizer = self.query_tokenizer.as_ref().ok_or(SessionError::NoTextBranch)?;
        let options = EncodeOptions {
            max_length,
            ..EncodeOptions::default()
        };
        tokenize(tokenizer, texts, &options, Padding::RIGHT)
    }

    /// Captions or answers a batch of decoded pictures.
    pub fn answer(&self, images: &[RgbImage], requests: &[Request]) -> Result<Vec<Answer>> {
        if images.len() != requests.len() {
            return Err(SessionError::Count {
                images: images.len(),
                requests: requests.len(),
            });
        }
        let ctx = Context::eval();
        let mut timing = Timing {
            load: self.load_ms,
            ..Timing::default()
        };
        let start = Instant::now();
        let pixels = self.pixels(images)?;
        timing.preprocess = ms(start);
        let start = Instant::now();
        let features = self.model.encode_images(pixels, &ctx)?;
        let _ = B::sync(&self.model.device);
        timing.vision = ms(start);
        let start = Instant::now();
        let soft = self.model.soft_tokens(&features, &ctx)?;
        let _ = B::sync(&self.model.device);
        timing.qformer = ms(start);
        let prompts: Vec<String> = requests.iter().map(|r| r.prompt.clone()).collect();
        let text = self.tokenize_prompts(&prompts)?;
        let options: Vec<_> = requests.iter().map(|r| r.options.clone()).collect();
        let prompt = self.model.prompt(soft, &text)?;
        let start = Instant::now();
        let mut first = None;
        let generations = generate::generate(self.model.language()?, prompt, &options, &ctx, &mut |_| {
            first.get_or_insert_with(|| ms(start));
            std::ops::ControlFlow::Continue(())
        })?;
        timing.prefill = first.unwrap_or_default();
        timing.decode = ms(start) - timing.prefill;
        let mut answers = Vec::with_capacity(requests.len());
        for (request, generation) in requests.iter().zip(generations) {
            let outputs = generation.sequences.into_iter().map(|sequence| {
                Ok(Output {
                    text: self.detokenize(&sequence.token_ids)?,
                    token_ids: sequence.token_ids,
                    score: sequence.score,
                    stop: match sequence.stop {
                        StopReason::Eos => "eos",
                        StopReason::EosFirst => "eos_first",
                        StopReason::Length => "length",
                        StopReason::Cancelled => "cancelled",
                    },
                })
            });
            answers.push(Answer {
                image: request.image.clone(),
                prompt: request.prompt.clone(),
                outputs: outputs.collect::<Result<_>>()?,
                timing_ms: timing,
            });
        }
        Ok(answers)
    }

    /// Ids -> trimmed text without special tokens.
    pub fn detokenize(&self, ids: &[i64]) -> Result<String> {
        let ids: Vec<u32> = ids
            .iter()
            .map(|&id| u32::try_from(id).map_err(|_| SessionError::TokenId { id }))
            .collect::<Result<_>>()?;
        Ok(self.language_tokenizer()?.decode(&ids, true)?.trim().to_string())
    }

    /// Candidate answers -> ids to be scored behind a prompt; T5's end with its end token.
    pub fn tokenize_candidates(&self, candidates: &[String]) -> Result<Vec<Vec<i64>>> {
        let tokenizer = self.language_tokenizer()?;
        let decoder_only = self.architecture()? == Architecture::DecoderOnly;
        let options = EncodeOptions {
            add_special: !decoder_only,
            ..EncodeOptions::default()
        };
        let mut ids = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            // an answer follows the prompt after a space, which a byte-level vocabulary spells as part of the word
            let text = if decoder_only {
                format!(" {}", candidate.trim())
            } else {
                candidate.trim().to_string()
            };
            ids.push(
                tokenizer
                    .encode(&text, &options)?
                    .into_iter()
                    .map(i64::from)
                    .collect::<Vec<_>>(),
            );
        }
        Ok(ids)
    }

    /// Candidate answers to one question, best first, by exact log-likelihood.
    pub fn rank(&self, image: &RgbImage, prompt: &str, candidates: &[String]) -> Result<Vec<RankedAnswer>> {
        let ctx = Context::eval();
        let features = self.encode(std::slice::from_ref(image), &ctx)?;
        let soft = self.model.soft_tokens(&features, &ctx)?;
        let prompt = self
            .model
            .prompt(soft, &self.tokenize_prompts(&[prompt.to_string()])?)?;
        let ids = self.tokenize_candidates(candidates)?;
        let scores = rank(
            self.model.language()?,
            prompt,
            &[ids],
            &RankOptions::default(),
            &ctx,
        )?;
        Ok(scores
            .into_iter()
            .flatten()
            .map(|score| RankedAnswer {
                text: candidates[score.candidate].clone(),
                log_likelihood: score.sum,
                mean_log_likelihood: score.mean,
            })
            .collect())
    }
}

fn tokenize(
    tokenizer: &TextTokenizer,
    texts: &[String],
    options: &EncodeOptions,
    padding: Padding,
) -> Result<TokenBatch> {
    let batch = tokenizer.encode_batch(texts, options, padding)?;
    let ids = (0..batch.batch)
        .map(|i| batch.row(i).iter().map(|&id| i64::from(id)).collect())
        .collect();
    let mask = batch
        .mask
        .chunks(batch.length.max(1))
        .map(<[bool]>::to_vec)
        .collect();
    Ok(TokenBatch {
        ids,
        mask: PadMask::new(mask),
    })
}
