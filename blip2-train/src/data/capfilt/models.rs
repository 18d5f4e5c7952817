//! Loaded models in the two roles of CapFilt. One model with both branches can play both.

use blip2_model::generate::GenerateOptions;
use blip2_model::nn::{Context, Kernels};
use blip2_model::session::{Request, Session};
use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::{Captioner, ModelError, Scorer};

/// A captioner.
pub struct SessionCaptioner<'a, B: Kernels> {
    /// A model with a language model.
    pub session: &'a Session<B>,
    /// Beginning of every caption.
    pub prompt: String,
    /// How to generate; samples or beams, so that the captions differ.
    pub generation: GenerateOptions,
}

impl<B: Kernels> Captioner for SessionCaptioner<'_, B> {
    fn caption(&mut self, images: &[RgbImage], n: usize) -> Result<Vec<Vec<String>>, ModelError> {
        if n == 0 {
            return Ok(vec![Vec::new(); images.len()]);
        }
        let request = Request {
            image: String::new(),
            prompt: self.prompt.clone(),
            question: String::new(),
            options: GenerateOptions {
                num_return_sequences: n,
                ..self.generation.clone()
            },
        };
        let answers = self.session.answer(images, &vec![request; images.len()])?;
        let texts = |answer: blip2_model::session::Answer| {
            // a search that finds fewer texts than asked for repeats its last one; repeats are dropped later
            let mut texts: Vec<String> = answer.outputs.into_iter().map(|output| output.text).collect();
            let last = texts.last().cloned().unwrap_or_default();
            texts.resize(n, last);
            texts
        };
        Ok(answers.into_iter().map(texts).collect())
    }
}

/// What a caption is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScoreBy {
    /// Matching probability.
    Itm,
    /// Contrastive cosine.
    Itc,
}

/// A judge.
pub struct SessionScorer<'a, B: Kernels> {
    /// A model with a text branch.
    pub session: &'a Session<B>,
    /// By what.
    pub by: ScoreBy,
    /// Pairs in a pass through the model.
    pub batch: usize,
    /// Tokens kept of a caption.
    pub max_length: usize,
}

impl<B: Kernels> Scorer for SessionScorer<'_, B> {
    fn score(&mut self, images: &[RgbImage], captions: &[Vec<String>]) -> Result<Vec<Vec<f32>>, ModelError> {
        let ctx = Context::eval();
        let features = self.session.encode(images, &ctx)?;
        let pairs: Vec<(usize, &String)> = captions
            .iter()
            .enumerate()
            .flat_map(|(row, captions)| captions.iter().map(move |caption| (row, caption)))
            .collect();
        let mut scores: Vec<Vec<f32>> = captions.iter().map(|c| Vec::with_capacity(c.len())).collect();
        for chunk in pairs.chunks(self.batch.max(1)) {
            let texts: Vec<String> = chunk.iter().map(|(_, caption)| (*caption).clone()).collect();
            let tokens = self.session.tokenize_texts(&texts, Some(self.max_length))?;
            let rows: Vec<usize> = chunk.iter().map(|(row, _)| *row).collect();
            match self.by {
                ScoreBy::Itm => {
                    let found = self.session.model.itm(&features.select(&rows), &tokens, &ctx)?;
                    rows.iter()
                        .zip(found)
                        .for_each(|(&row, score)| scores[row].push(score.probability));
                }
                ScoreBy::Itc => {
                    let table = self.session.model.itc(&features, &tokens, &ctx)?; // [pictures][chunk]
                    rows.iter()
                        .enumerate()
                        .for_each(|(i, &row)| scores[row].push(table[row][i].cosine));
                }
            }
        }
        Ok(scores)
    }
}
