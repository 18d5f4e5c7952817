//! A loaded model with its processor and tokenizers, on one device: what the command, the evaluations and the
//! examples stand on.

mod answer;
mod encoded;
mod error;
mod streaming;

use std::path::Path;
use std::time::Instant;

use crate::blip2::conditional::TokenBatch;
use crate::blip2::{Blip2, ImageFeatures};
use crate::checkpoint::companions;
use crate::checkpoint::{DtypePolicy, LavisParts, LoadReport, ModelFiles};
use crate::generate::GenerateOptions;
use crate::language::{AnyLanguageModel, Architecture, LanguageModel};
use crate::nn::{Context, Kernels, PadMask};
use crate::processor::{
    DecodeOptions, EncodeOptions, ImageProcessor, Padding, RgbImage, TextTokenizer, TokenizerKind,
    decode_file,
};
use burn::tensor::{DType, Tensor, TensorData};

pub use answer::{Answer, Output, RankedAnswer, Timing};
pub use encoded::{Encoded, rows_to_host};
pub use error::SessionError;
pub use streaming::{OnText, TextPiece, ignore};

type Result<T> = std::result::Result<T, SessionError>;

/// One picture with its prompt and options; a batch may mix them freely.
#[derive(Clone, Debug)]
pub struct Request {
    /// Path, as printed back.
    pub image: String,
    /// Text for the language model; empty for a plain caption.
    pub prompt: String,
    /// Text for the Q-Former of a checkpoint that [reads questions](Blip2::reads_questions), without the words that
    /// the prompt puts around it; of no effect with others.
    pub question: String,
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
    /// Longest question that the Q-Former was trained with, in tokens.
    question_length: usize,
    load_ms: f64,
}

/// Milliseconds since `start`.
fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

impl<B: Kernels> Session<B> {
    /// Opens a Hugging Face folder, or a LAVIS checkpoint beside the files that it leaves out.
    pub fn open(path: &Path, policy: DtypePolicy, allow_partial: bool, device: &B::Device) -> Result<Self> {
        let files = ModelFiles::open(path, &LavisParts::default())?;
        Self::load(files, policy, allow_partial, device)
    }

    /// Loads the model that [`ModelFiles::open`] found.
    pub fn load(
        files: ModelFiles,
        policy: DtypePolicy,
        allow_partial: bool,
        device: &B::Device,
    ) -> Result<Self> {
        let start = Instant::now();
        let policy = policy.for_config(&files.config)?.on::<B>()?;
        let (model, report) =
            Blip2::load(files.config, files.source.as_ref(), policy, allow_partial, device)?;
        let kind = model.language.as_ref().map(|language| match language {
            AnyLanguageModel::Opt(_) => TokenizerKind::Opt,
            AnyLanguageModel::T5(_) => TokenizerKind::T5,
            AnyLanguageModel::Llama(_) => TokenizerKind::Llama,
        });
        let language_tokenizer = files
            .language_tokenizer
            .zip(kind)
            .map(|(folder, kind)| TextTokenizer::from_folder(folder, kind))
            .transpose()?;
        let positions = model.config.qformer_config.max_position_embeddings;
        let question_length = files
            .query_tokenizer
            .as_deref()
            .and_then(companions::longest_text);
        let question_length = question_length.map_or(positions, |length| length.min(positions));
        let query_tokenizer = files
            .query_tokenizer
            .map(|folder| TextTokenizer::from_folder(folder, TokenizerKind::Bert))
            .transpose()?;
        let generation = match (model.language.as_ref(), files.generation) {
            (Some(language), Some((file, text))) => {
                let options = GenerateOptions::hf(&text, language.architecture());
                Some(options.map_err(|source| SessionError::Generation { file, source })?)
            }
            _ => None,
        };
        Ok(Self {
            model,
            images: ImageProcessor::new(files.images),
            report,
            generation,
            language_tokenizer,
            query_tokenizer,
            question_length,
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

    /// Captions or answers a batch of decoded pictures, one request each.
    pub fn answer(&self, images: &[RgbImage], requests: &[Request]) -> Result<Vec<Answer>> {
        if images.len() != requests.len() {
            return Err(SessionError::Count {
                images: images.len(),
                requests: requests.len(),
            });
        }
        let rows: Vec<usize> = (0..images.len()).collect();
        self.answer_encoded(
            &self.encode_once(images)?,
            &rows,
            requests,
            &mut streaming::ignore,
        )
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

    /// Candidate answers to one question, best first, by exact log-likelihood; the request's options are not used.
    pub fn rank(
        &self,
        image: &RgbImage,
        request: &Request,
        candidates: &[String],
    ) -> Result<Vec<RankedAnswer>> {
        let encoded = self.encode_once(std::slice::from_ref(image))?;
        self.rank_encoded(&encoded, 0, request, candidates)
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
