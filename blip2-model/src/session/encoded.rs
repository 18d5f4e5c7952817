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
        rows_to_host(&self.queries)
    }
}

/// `[B, T, D]` -> `T * D` numbers for each of the `B` rows, f32.
pub fn rows_to_host<B: Kernels>(rows: &Tensor<B, 3>) -> Vec<Vec<f32>> {
    let [_, count, width] = rows.dims();
    let values = rows.clone().into_data().convert::<f32>();
    let values = values.to_vec::<f32>().unwrap_or_default();
    values.chunks(count * width).map(<[f32]>::to_vec).collect()
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
        Ok(self.encoded_from(features, timing))
    }

    /// Runs the Q-Former.
    fn encoded_from(&self, features: ImageFeatures<B>, mut timing: Timing) -> Encoded<B> {
        let start = Instant::now();
        let bridge = &self.model.bridge;
        let pass = bridge.query_pass(&features.keys, features.batch(), &Context::eval());
        let _ = B::sync(&self.model.device);
        timing.qformer = ms(start);
        Encoded {
            features: Some(features),
            queries: pass.hidden,
            timing,
        }
    }

    /// Pictures whose image tokens were kept from an earlier run (see [`features_from_tokens`](
    /// Self::features_from_tokens)).
    pub fn encoded_from_features(&self, features: ImageFeatures<B>) -> Encoded<B> {
        let timing = Timing {
            load: self.load_ms,
            ..Timing::default()
        };
        self.encoded_from(features, timing)
    }

    /// Pictures whose [`ImageFeatures::embeds`] were kept from an earlier run: `N * C` numbers each, the same `N` for
    /// all.
    pub fn features_from_tokens(&self, kept: &[Vec<f32>]) -> Result<ImageFeatures<B>> {
        let width = self.model.config.vision_config.hidden_size();
        let numbers = kept.first().map_or(0, Vec::len);
        let bad = kept
            .iter()
            .find(|values| values.len() != numbers || !numbers.is_multiple_of(width));
        if let Some(bad) = bad {
            return Err(SessionError::Kept {
                found: bad.len(),
                expected: numbers / width * width,
            });
        }
        let data = TensorData::new(kept.concat(), [kept.len(), numbers / width, width]);
        Ok(self.model.features_of(self.kept(data)))
    }

    /// Kept numbers on the device, in the dtype that the Q-Former computes in.
    fn kept(&self, data: TensorData) -> Tensor<B, 3> {
        let dtype = self.model.bridge.compute_dtype();
        as_dtype(Tensor::from_data(data, (&self.model.device, DType::F32)), dtype)
    }

    /// Pictures whose Q-Former outputs were kept from an earlier run (see [`Encoded::queries_to_host`]): `Q * D`
    /// numbers each.
    pub fn encoded_from_queries(&self, kept: &[Vec<f32>]) -> Result<Encoded<B>> {
        let [_, count, width] = self.model.bridge.query_tokens.dims();
        if let Some(bad) = kept.iter().find(|values| values.len() != count * width) {
            return Err(SessionError::Kept {
                found: bad.len(),
                expected: count * width,
            });
        }
        let data = TensorData::new(kept.concat(), [kept.len(), count, width]);
        Ok(Encoded {
            features: None,
            queries: self.kept(data),
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
        Some(rows_to_host(&projection.forward(encoded.queries.clone())))
    }

    /// Pictures of one batch in the language model's space, one row per question: number `i` is about picture
    /// `index[i]`; `[questions, Q, d]`. The questions count where the Q-Former [reads them](
    /// crate::blip2::Blip2::reads_questions).
    pub fn soft_tokens<S: AsRef<str>>(
        &self,
        features: &ImageFeatures<B>,
        index: &[usize],
        questions: &[S],
        ctx: &Context,
    ) -> Result<Tensor<B, 3>> {
        let queries = match self.model.reads_questions() {
            true => self.questioned(features, index, questions, ctx)?,
            false => {
                let bridge = &self.model.bridge;
                let pass = bridge.query_pass(&features.keys, features.batch(), ctx);
                select_rows(pass.hidden, index)
            }
        };
        Ok(self.model.project_queries(queries, ctx)?)
    }

    /// [`soft_tokens`](Self::soft_tokens) of an encoded batch.
    fn soft_rows(
        &self,
        encoded: &Encoded<B>,
        rows: &[usize],
        requests: &[Request],
        ctx: &Context,
    ) -> Result<Tensor<B, 3>> {
        if self.model.reads_questions() {
            let questions: Vec<&str> = requests.iter().map(|r| r.question.as_str()).collect();
            return self.soft_tokens(self.features(encoded)?, rows, &questions, ctx);
        }
        let queries = select_rows(encoded.queries.clone(), rows);
        Ok(self.model.project_queries(queries, ctx)?)
    }

    /// Query outputs after reading a question each, `[questions, Q, D]`: cut and padded as in training.
    fn questioned<S: AsRef<str>>(
        &self,
        features: &ImageFeatures<B>,
        index: &[usize],
        questions: &[S],
        ctx: &Context,
    ) -> Result<Tensor<B, 3>> {
        let questions: Vec<String> = questions.iter().map(|q| q.as_ref().to_string()).collect();
        let text = self.tokenize_texts(&questions, Some(self.question_length))?;
        Ok(self.model.embed_multimodal(&features.select(index), &text, ctx)?)
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
        let soft = self.soft_rows(encoded, rows, requests, &ctx)?;
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
        request: &Request,
        candidates: &[String],
    ) -> Result<Vec<RankedAnswer>> {
        self.check_rows(encoded, &[row], 1)?;
        let ctx = Context::eval();
        let soft = self.soft_rows(encoded, &[row], std::slice::from_ref(request), &ctx)?;
        let text = self.tokenize_prompts(std::slice::from_ref(&request.prompt))?;
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
