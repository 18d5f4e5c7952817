//! Retrieval evaluation: contrastive ranking of all pairs, then matching scores for the best `k` of every row and column
//! (LAVIS `compute_sim_matrix`).
//!
//! A pair's matching score does not depend on the direction it is ranked in, so the pairs that either direction needs
//! are joined and done picture by picture: the picture's keys and values are computed once for all its texts, and a
//! finished picture is one line of the journal. Embeddings are divided among processes, which read each other's from files
//! ([`shared`]); a run that goes on takes them from there too. Every process computes all similarities, as each needs them.

mod finish;
mod matching;
mod shared;
mod store;

use std::collections::BTreeMap;

use blip2_model::blip2::ImageFeatures;
use blip2_model::blip2::retrieval::{contrastive_similarity, first_token};
use blip2_model::nn::{Context, Kernels};
use blip2_model::processor::text::{MAX_WORDS, blip_caption};
use blip2_model::session::SessionError;
use burn::tensor::{DType, Tensor, TensorData};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::pictures::{Picture, Pictures};
use super::{RunError, Runner};
use crate::eval::EvalError;
use crate::eval::results::{self, Id, Prediction};
use crate::eval::retrieval::{CaptionMap, ScoreTable, rank_of_best};
use matching::Kept;
pub(super) use matching::match_texts;
use shared::Shared;
use store::Part;

/// Texts whose similarities to a batch of pictures are computed at a time; bounds `[B * Q, texts]`.
const TEXTS_AT_A_TIME: usize = 4096;

/// Settings of a retrieval evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetrievalTask {
    /// Best of each row and column that are ranked again by matching; 0 leaves the contrastive order.
    pub k: usize,
    /// Clean captions as LAVIS does (lower case, most punctuation gone).
    pub clean: bool,
    /// Tokens kept of a caption.
    pub max_length: usize,
    /// Captions that are the same for several pictures match all of these; otherwise each only its own, as LAVIS has it.
    pub shared: bool,
}

/// Captions of all pictures in one list.
struct Texts {
    texts: Vec<String>,
    map: CaptionMap,
}

/// Line of the journal: what is known of one picture's pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pairs {
    image_id: Id,
    /// Positions of texts.
    texts: Vec<usize>,
    /// 1: among the picture's best texts; 2: the picture is among the text's best; 3: both.
    among: Vec<u8>,
    /// Contrastive cosines.
    cosine: Vec<f32>,
    /// Logits of the class "matched".
    itm: Vec<f32>,
}

impl Prediction for Pairs {
    fn id(&self) -> &Id {
        &self.image_id
    }
}

/// `contrastive.json`: the order without matching.
#[derive(Serialize, Deserialize)]
struct Contrastive {
    text_ranks: Vec<usize>,
    image_ranks: Vec<usize>,
    /// The ten best texts of each picture, and pictures of each text.
    best_texts: Vec<Vec<usize>>,
    best_images: Vec<Vec<usize>>,
}

impl RetrievalTask {
    fn texts(&self, pictures: &[&Picture]) -> Result<Texts, EvalError> {
        let mut texts = Vec::new();
        let mut captions_of = Vec::with_capacity(pictures.len());
        for picture in pictures {
            let start = texts.len();
            texts.extend(picture.captions.iter().map(|caption| self.cleaned(caption)));
            captions_of.push((start..texts.len()).collect());
        }
        let map = CaptionMap::new(captions_of)?;
        let map = if self.shared { map.shared(&texts) } else { map };
        Ok(Texts { texts, map })
    }

    /// What cleaning would leave nothing of stays as it is.
    fn cleaned(&self, caption: &str) -> String {
        match self.clean.then(|| blip_caption(caption, "", MAX_WORDS)) {
            Some(cleaned) if !cleaned.trim().is_empty() => cleaned,
            _ => caption.to_owned(),
        }
    }

    /// Ranks by contrast; matches the pairs of this process' pictures that no process has matched yet.
    pub fn run<B: Kernels>(&self, runner: &mut Runner<B>) -> Result<(), RunError> {
        let with_captions: Vec<usize> = (0..runner.pictures.list.len())
            .filter(|&at| !runner.pictures.list[at].captions.is_empty())
            .collect();
        let texts = self.texts(&runner.pictures.at(&with_captions))?;
        let embedded = self.embed_texts(runner, &texts.texts)?; // parts of [texts, E]
        let mut kept = Kept::default();
        let parts = self.embed_pictures(runner, &with_captions, &mut kept)?;
        let mut rows: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        let meter = runner.meter("similarities", with_captions.len());
        for part in &parts {
            rows.extend(similarities(&runner.session.model.device, part, &embedded)?);
            meter.add(part.at.len());
        }
        drop(meter);
        // a picture that could not be read is no candidate, and its captions ask for nothing
        let readable: Vec<usize> = with_captions
            .iter()
            .copied()
            .filter(|at| rows.contains_key(at))
            .collect();
        let texts = if readable.len() < with_captions.len() {
            self.without_unreadable(&runner.pictures, &with_captions, &readable, &mut rows)?
        } else {
            texts
        };
        let sims = ScoreTable::new(
            readable.len(),
            texts.texts.len(),
            rows.into_values().flatten().collect(),
        )?;
        let by_text = sims.transposed();
        let path = runner.folder.path.join("contrastive.json");
        // every process finds the same; the others only write it where the first was not started
        if runner.effort.share.rank == 0 || !path.exists() {
            results::write(&path, &Contrastive::of(&sims, &by_text, &texts.map)?)?;
        }
        if self.k == 0 {
            return Ok(());
        }
        self.match_pairs(runner, &readable, &texts, &sims, &by_text, &kept)
    }

    /// Texts of the readable pictures; `rows` lose the columns of the others.
    fn without_unreadable(
        &self,
        pictures: &Pictures,
        all: &[usize],
        readable: &[usize],
        rows: &mut BTreeMap<usize, Vec<f32>>,
    ) -> Result<Texts, RunError> {
        let kept = |at: &usize| readable.binary_search(at).is_ok();
        let columns: Vec<bool> = all
            .iter()
            .flat_map(|at| std::iter::repeat_n(kept(at), pictures.list[*at].captions.len()))
            .collect();
        for row in rows.values_mut() {
            let mut column = columns.iter();
            row.retain(|_| column.next().copied().unwrap_or(false));
        }
        Ok(self.texts(&pictures.at(readable))?)
    }

    /// Parts of `[texts, E]` in f32; those of the whole evaluation, whichever process computed them.
    fn embed_texts<B: Kernels>(
        &self,
        runner: &Runner<B>,
        texts: &[String],
    ) -> Result<Vec<Tensor<B, 2>>, RunError> {
        let session = &runner.session;
        let mut shared = Shared::open(&runner.folder.path, "texts", runner.effort.share)?;
        let total = shared.missing(0..texts.len()).len();
        let meter = runner.meter("texts", total);
        loop {
            let missing = shared.missing(0..texts.len());
            meter.reach((total - missing.len()) as u64);
            let next = shared.next(&missing, runner.effort.batch);
            if next.is_empty() {
                break;
            }
            for at in next.chunks(runner.effort.batch) {
                let words: Vec<String> = at.iter().map(|&at| texts[at].clone()).collect();
                let tokens = session.tokenize_texts(&words, Some(self.max_length))?;
                let embedded = session.model.embed_texts(&tokens, &Context::eval())?.projected;
                shared.append(Part {
                    at: at.to_vec(),
                    values: floats(first_token(embedded.ok_or(SessionError::NoTextBranch)?))?,
                })?;
                meter.add(at.len());
                runner.folder.tick()?;
            }
            shared.refresh()?;
        }
        let parts = shared.into_parts();
        let width = parts.first().map_or(1, |part| part.values.len() / part.at.len());
        let mut values = vec![0.0_f32; texts.len() * width];
        for part in &parts {
            for (at, row) in part.at.iter().zip(part.values.chunks(width)) {
                values[at * width..][..width].copy_from_slice(row);
            }
        }
        let tensor = |part: &[f32]| {
            let data = TensorData::new(part.to_vec(), [part.len() / width, width]);
            Tensor::from_data(data, (&session.model.device, DType::F32))
        };
        Ok(values.chunks(TEXTS_AT_A_TIME * width).map(tensor).collect())
    }

    /// Batches of `[B, Q, E]` of the pictures at `wanted`, whichever process computed them; without those that cannot be
    /// read. What this process has encoded of its own goes into `kept`, for matching.
    fn embed_pictures<B: Kernels>(
        &self,
        runner: &mut Runner<B>,
        wanted: &[usize],
        kept: &mut Kept,
    ) -> Result<Vec<Part>, RunError> {
        let mut shared = Shared::open(&runner.folder.path, "images", runner.effort.share)?;
        let total = shared.missing(wanted.iter().copied()).len();
        let meter = runner.meter("pictures", total);
        let mut all_bad = None;
        loop {
            let skipped = runner.skipped_by_any()?;
            let good = wanted.iter().copied();
            let good = good.filter(|&at| !skipped.contains(&runner.pictures.list[at].id));
            let missing = shared.missing(good);
            meter.reach((total - missing.len()) as u64);
            let next = shared.next(&missing, runner.effort.batch);
            if next.is_empty() {
                break;
            }
            let outcome = runner.encode_each(&next, runner.effort.batch, &mut |runner, at, features| {
                let images = runner.session.model.embed_images(&features, &Context::eval());
                shared.append(Part {
                    at: at.to_vec(),
                    values: floats(images.projected.ok_or(SessionError::NoTextBranch)?)?,
                })?;
                if self.k > 0 {
                    kept.add(at, &features, &runner.effort.share);
                }
                meter.add(at.len());
                runner.folder.tick()
            });
            match outcome {
                // some of the rest may be good
                Err(error @ RunError::AllBad { .. }) => all_bad = Some(error),
                outcome => outcome?,
            }
            shared.refresh()?;
        }
        let parts = shared.into_parts();
        match all_bad {
            Some(error) if parts.is_empty() => Err(error),
            _ => Ok(parts),
        }
    }

    fn match_pairs<B: Kernels>(
        &self,
        runner: &mut Runner<B>,
        readable: &[usize],
        texts: &Texts,
        sims: &ScoreTable,
        by_text: &ScoreTable,
        kept: &Kept,
    ) -> Result<(), RunError> {
        let (mut journal, done) = runner.folder.journal::<Pairs>("pairs")?;
        let mut among: Vec<BTreeMap<usize, u8>> = (0..sims.rows())
            .into_par_iter()
            .map(|row| sims.best(row, self.k).into_iter().map(|text| (text, 1)).collect())
            .collect();
        let best_images: Vec<Vec<usize>> = (0..by_text.rows())
            .into_par_iter()
            .map(|text| by_text.best(text, self.k))
            .collect();
        for (text, images) in best_images.iter().enumerate() {
            for &image in images {
                *among[image].entry(text).or_default() |= 2;
            }
        }
        let mine: Vec<usize> = (0..readable.len())
            .filter(|&row| runner.effort.share.has(readable[row]))
            .filter(|&row| !done.contains(&runner.pictures.list[readable[row]].id))
            .collect();
        let meter = runner.meter("pairs", mine.iter().map(|&row| among[row].len()).sum());
        let mut one = |runner: &Runner<B>, row: usize, features: &ImageFeatures<B>| -> Result<(), RunError> {
            let chosen: Vec<usize> = among[row].keys().copied().collect();
            let words: Vec<String> = chosen.iter().map(|&text| texts.texts[text].clone()).collect();
            let itm = match_texts(
                &runner.session,
                features,
                &words,
                self.max_length,
                runner.effort.batch,
                &meter,
            )?;
            let line = Pairs {
                image_id: runner.pictures.list[readable[row]].id.clone(),
                cosine: chosen.iter().map(|&text| sims.row(row)[text]).collect(),
                itm: itm.into_iter().map(|score| score.logits[1]).collect(),
                among: among[row].values().copied().collect(),
                texts: chosen,
            };
            journal.append(&[line])?;
            runner.folder.tick()
        };
        let mut again = Vec::new();
        for &row in &mine {
            match kept.features(readable[row], &runner.session) {
                Some(features) => one(runner, row, &features)?,
                None => again.push(readable[row]),
            }
        }
        runner.encode_each(&again, runner.effort.batch, &mut |runner, at, features| {
            for (i, at) in at.iter().enumerate() {
                let row = readable.binary_search(at).unwrap_or_default(); // `again` comes from `readable`
                one(runner, row, &features.select(&[i]))?;
            }
            Ok(())
        })?;
        Ok(journal.sync()?)
    }
}

impl Contrastive {
    fn of(sims: &ScoreTable, by_text: &ScoreTable, map: &CaptionMap) -> Result<Self, EvalError> {
        sims.check_numbers()?;
        let text_ranks = (0..sims.rows())
            .into_par_iter()
            .map(|i| rank_of_best(sims.row(i), map.captions_of(i)));
        let image_ranks = (0..by_text.rows())
            .into_par_iter()
            .map(|t| rank_of_best(by_text.row(t), map.images_of(t)));
        Ok(Self {
            text_ranks: text_ranks.collect(),
            image_ranks: image_ranks.collect(),
            best_texts: (0..sims.rows())
                .into_par_iter()
                .map(|i| sims.best(i, 10))
                .collect(),
            best_images: (0..by_text.rows())
                .into_par_iter()
                .map(|t| by_text.best(t, 10))
                .collect(),
        })
    }
}

/// Rows of the table of similarities, by position of the picture; in f32 whatever the model's dtype.
fn similarities<B: Kernels>(
    device: &B::Device,
    part: &Part,
    texts: &[Tensor<B, 2>],
) -> Result<Vec<(usize, Vec<f32>)>, RunError> {
    let mut rows: Vec<(usize, Vec<f32>)> = part.at.iter().map(|&at| (at, Vec::new())).collect();
    for texts in texts {
        let [columns, width] = texts.dims();
        let shape = [rows.len(), part.values.len() / (rows.len() * width), width]; // [B, Q, E]
        let images = Tensor::from_data(TensorData::new(part.values.clone(), shape), (device, DType::F32));
        let sims = floats(contrastive_similarity(images, texts.clone()))?;
        for ((_, row), sims) in rows.iter_mut().zip(sims.chunks(columns)) {
            row.extend_from_slice(sims);
        }
    }
    Ok(rows)
}

fn floats<B: Kernels, const D: usize>(tensor: Tensor<B, D>) -> Result<Vec<f32>, RunError> {
    let data = tensor.into_data().convert::<f32>();
    data.to_vec::<f32>().map_err(|_| {
        RunError::Eval(EvalError::NotANumber { row: 0, column: 0 }) // converted just above, so this does not happen
    })
}
