//! Pictures encoded once, for any number of questions: image encoder and Q-Former run in
//! [`Session::encode_once`], every later call starts at the language model.

use std::ops::ControlFlow;
use std::time::Instant;

use burn::tensor::{DType, Tensor, TensorData};

use super::streaming::{OnText, Streams};
use super::{Answer, Output, RankedAnswer, Request, Result, Session, SessionError, Timing, ms};
use crate::blip2::ImageFeatures;
use crate::blip2::conditional::select_rows;
use crate::generate::ranking::{RankOptions, rank};
use crate::generate::{self, StopReason};
use crate::language::LanguageModel;
use crate::nn::kernels::as_dtype;
use crate::nn::{Context, Kernels};
use crate::processor::RgbImage;

/// See the module documentation. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Encoded<B: Kernels> {
    /// Image tokens with their keys in the Q-Former, for matching; absent if the pictures came from
    /// [`Session::encoded_from_queries`].
    pub features: Option<ImageFeatures<B>>,
    /// Outputs of the Q-Former, `[B, Q, D]`.
    pub queries: Tensor<B, 3>,
    timing: Timing,
}

impl<B: Kernels> Encoded<B> {
    /// Number of pictures.
    pub fn batch(&self) -> usize {
        self.queries.dims()[0]
    }

    /// Outputs of the Q-Former on the host: `Q * D` numbers per picture, f32.
    pub fn queries_to_host(&self) -> Vec<Vec<f32>> {
        let [_, count, width] = self.queries.dims();
        let values = self.queries.clone().into_data().convert::<f32>();
        let values = values.to_vec::<f32>().unwrap_or_default();
        values.chunks(count * width).map(<[f32]>::to_vec).collect()
    }
}

impl<B: Kernels> Session<B> {
    /// Runs image encoder and Q-Former over decoded pictures.
    pub fn encode_once(&self, images: &[RgbImage]) -> Result<Encoded<B>> {
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
        let pass = self
            .model
            .bridge
            .query_pass(&features.keys, features.batch(), &ctx);
        let _ = B::sync(&self.model.device);
        timing.qformer = ms(start);
        Ok(Encoded {
            features: Some(features),
            queries: pass.hidden,
            timing,
        })
    }

    /// Pictures whose Q-Former outputs were kept from an earlier run (see [`Encoded::queries_to_host`]): `Q * D`
    /// numbers each.
    pub fn encoded_from_queries(&self, kept: &[Vec<f32>]) -> Result<Encoded<B>> {
        let [_, count, width] = self.model.bridge.query_tokens.dims();
        if let Some(bad) = kept.iter().find(|values| values.len() != count * width) {
            return Err(SessionError::Queries {
                found: bad.len(),
                expected: count * width,
            });
        }
        let data = TensorData::new(kept.concat(), [kept.len(), count, width]);
        let queries = Tensor::from_data(data, (&self.model.device, DType::F32));
        let dtype = B::compute_dtype(self.model.bridge.query_tokens.val().dtype());
        Ok(Encoded {
            features: None,
            queries: as_dtype(queries, dtype),
            timing: Timing {
                load: self.load_ms,
                ..Timing::default()
            },
        })
    }

    /// Image tokens of an encoded batch, which matching needs.
    pub fn features<'e>(&self, encoded: &'e Encoded<B>) -> Result<&'e ImageFeatures<B>> {
        let missing = crate::blip2::Blip2Error::MissingPart { part: "image tokens" };
        Ok(encoded.features.as_ref().ok_or(missing)?)
    }

    /// Pictures in the contrastive space, unit length: `Q * embed` numbers each. `None` if the checkpoint has no
    /// such projection.
    pub fn image_projections(&self, encoded: &Encoded<B>) -> Option<Vec<Vec<f32>>> {
        let projection = self.model.bridge.vision_projection.as_ref()?;
        let projected = projection.forward(encoded.queries.clone());
        let [_, count, width] = projected.dims();
        let values = projected.into_data().convert::<f32>().to_vec::<f32>().ok()?;
        Some(values.chunks(count * width).map(<[f32]>::to_vec).collect())
    }

    /// Answers `requests`, of which number `i` is about picture `rows[i]`; repeats are several questions about one
    /// picture. `on_text` hears the first answer to each request grow.
    pub fn answer_encoded(
        &self,
        encoded: &Encoded<B>,
        rows: &[usize],
        requests: &[Request],
        on_text: &mut OnText<'_>,
    ) -> Result<Vec<Answer>> {
        self.check_rows(encoded, rows, requests.len())?;
        let ctx = Context::eval();
        let language = self.model.language()?;
        let soft = self
            .model
            .project_queries(select_rows(encoded.queries.clone(), rows), &ctx)?;
        let prompts: Vec<String> = requests.iter().map(|r| r.prompt.clone()).collect();
        let text = self.tokenize_prompts(&prompts)?;
        let options: Vec<_> = requests.iter().map(|r| r.options.clone()).collect();
        let prompt = self.model.prompt(soft, &text)?;
        let new_tokens = options.iter().map(|o| o.max_new_tokens).max().unwrap_or(0);
        self.check_length(prompt.mask.len(), new_tokens)?;
        let start = Instant::now();
        let mut first = None;
        let mut streams = Streams::new(self.language_tokenizer()?, requests.len());
        let generations = generate::generate(language, prompt, &options, &ctx, &mut |event| {
            first.get_or_insert_with(|| ms(start));
            streams.hear(event, on_text)
        })?;
        streams.result()?;
        let mut timing = encoded.timing;
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

    /// Candidate answers to one question about picture `row`, best first, by exact log-likelihood.
    pub fn rank_encoded(
        &self,
        encoded: &Encoded<B>,
        row: usize,
        prompt: &str,
        candidates: &[String],
    ) -> Result<Vec<RankedAnswer>> {
        self.check_rows(encoded, &[row], 1)?;
        let ctx = Context::eval();
        let soft = self
            .model
            .project_queries(select_rows(encoded.queries.clone(), &[row]), &ctx)?;
        let text = self.tokenize_prompts(&[prompt.to_string()])?;
        let prompt = self.model.prompt(soft, &text)?;
        let ids = self.tokenize_candidates(candidates)?;
        let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
        self.check_length(prompt.mask.len(), longest)?;
        let options = RankOptions::default();
        let scores = rank(self.model.language()?, prompt, &[ids], &options, &ctx)?;
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

    /// Positions that the language model has left for a prompt, if it has a limit: tokens of text beside the
    /// picture and `max_new_tokens`.
    pub fn prompt_room(&self, max_new_tokens: usize) -> Result<Option<usize>> {
        let limit = self.model.language()?.max_positions();
        let taken = self.model.config.num_query_tokens + max_new_tokens;
        Ok(limit.map(|limit| limit.saturating_sub(taken)))
    }

    fn check_rows(&self, encoded: &Encoded<B>, rows: &[usize], requests: usize) -> Result<()> {
        if rows.len() != requests {
            return Err(SessionError::Count {
                images: rows.len(),
                requests,
            });
        }
        match rows.iter().find(|&&row| row >= encoded.batch()) {
            Some(&row) => Err(SessionError::NoSuchPicture {
                row,
                pictures: encoded.batch(),
            }),
            None => Ok(()),
        }
    }

    fn check_length(&self, prompt: usize, new_tokens: usize) -> Result<()> {
        let needed = prompt + new_tokens;
        match self.model.language()?.max_positions() {
            Some(limit) if needed > limit => Err(SessionError::PromptTooLong { needed, limit }),
            _ => Ok(()),
        }
    }
}

/// Whether a callback wants to go on; the name says what `true` means.
pub(super) fn go_on(on: bool) -> ControlFlow<()> {
    match on {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break(()),
    }
}
