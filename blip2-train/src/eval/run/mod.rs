//! An evaluation from end to end: a model folder and a data set in; predictions, scores and a page out.
//!
//! [`Runner`] holds what every task needs. A task writes each finished picture or question into a journal
//! ([`folder`]), so that a killed run goes on and several processes share the work; its `finish` reads the journals and
//! scores them, without the model. [`caption`], [`vqa`], [`retrieval`], [`itm`].

pub mod bad;
pub mod caption;
mod error;
pub mod folder;
pub mod itm;
pub mod meter;
mod model_hash;
pub mod pictures;
pub mod publish;
pub mod retrieval;
pub mod vqa;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use blip2_model::blip2::ImageFeatures;
use blip2_model::nn::{Context, Kernels};
use blip2_model::session::{Session, SessionError};
use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::results::{Id, Journal};
use crate::data::sample::Problem;
use crate::data::source::SourceConfig;
use crate::say::say;
pub use error::RunError;
use folder::{Folder, Record, Share, SkippedSample};
use meter::Meter;
pub use model_hash::model_sha256;
use pictures::{Pictures, Selection};

/// What is evaluated: goes into `run.json`, and is all that scoring needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunConfig {
    /// Task and its settings.
    #[serde(flatten)]
    pub task: Task,
    /// Name that published figures are looked up by.
    pub recipe: Option<String>,
    /// The data set.
    pub data: SourceConfig,
    /// The part of it.
    pub select: Selection,
}

/// The tasks with their settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Task {
    /// Captions against references.
    Caption(caption::CaptionTask),
    /// Finding captions for pictures and pictures for captions.
    Retrieval(retrieval::RetrievalTask),
    /// Questions about pictures.
    Vqa(vqa::VqaTask),
    /// Telling a picture's captions from others.
    Itm(itm::ItmTask),
}

impl Task {
    /// As on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Caption(_) => "caption",
            Self::Retrieval(_) => "retrieval",
            Self::Vqa(_) => "vqa",
            Self::Itm(_) => "itm",
        }
    }

    /// What this needs of model and data, found out before a folder is made.
    fn check<B: Kernels>(&self, session: &Session<B>, pictures: &Pictures) -> Result<(), RunError> {
        let nothing = |what| {
            Err(RunError::Nothing {
                data: pictures.name().to_owned(),
                what,
            })
        };
        let texts = session.model.bridge.qformer.has_text_branch();
        match self {
            Self::Caption(_) => {}
            Self::Vqa(_) if pictures.list.iter().all(|p| p.questions.is_empty()) => {
                return nothing("questions");
            }
            Self::Vqa(task) => task.check(pictures)?,
            Self::Retrieval(_) | Self::Itm(_) if !texts => return Err(SessionError::NoTextBranch.into()),
            Self::Retrieval(_) | Self::Itm(_) if pictures.list.iter().all(|p| p.captions.is_empty()) => {
                return nothing("captions");
            }
            Self::Retrieval(_) | Self::Itm(_) => {}
        }
        Ok(())
    }

    /// Does this process' part of the work; later calls go on where an earlier one was stopped.
    pub fn run<B: Kernels>(&self, runner: &mut Runner<B>) -> Result<(), RunError> {
        match self {
            Self::Caption(task) => task.run(runner),
            Self::Retrieval(task) => task.run(runner),
            Self::Vqa(task) => task.run(runner),
            Self::Itm(task) => task.run(runner),
        }
    }
}

/// How the work is done; without influence on the results.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effort {
    /// Pictures, questions or pairs in a pass through the model.
    pub batch: usize,
    /// Decode threads; 0 means one per processor.
    pub threads: usize,
    /// This process among all.
    pub share: Share,
    /// Say nothing on standard error.
    pub quiet: bool,
    /// Share of the samples that may be bad before the evaluation stops.
    pub max_bad: f64,
}

/// See the module documentation.
pub struct Runner<B: Kernels> {
    /// The model.
    pub session: Session<B>,
    /// The data set.
    pub pictures: Pictures,
    /// Where results go.
    pub folder: Folder,
    /// How.
    pub effort: Effort,
    skipped: Journal,
    /// Pictures that were noted as unreadable, by this process or before it began.
    unreadable: HashSet<Id>,
}

impl<B: Kernels> Runner<B> {
    /// Opens the data set and the output folder. `model` is the folder or file that `session` was loaded from.
    pub fn open(
        session: Session<B>,
        model: &Path,
        config: &RunConfig,
        out: &Path,
        effort: Effort,
    ) -> Result<Self, RunError> {
        let setting = |name, value: usize, remedy| {
            Err(RunError::Setting {
                name,
                value: value.to_string(),
                remedy,
            })
        };
        if effort.batch == 0 {
            return setting("--batch", 0, "give at least 1");
        }
        if effort.share.rank >= effort.share.world {
            return setting(
                "--rank",
                effort.share.rank,
                "ranks go from 0 to one below --world",
            );
        }
        bad::check_share(effort.max_bad)?;
        let pictures = Pictures::open(&config.data, &config.select, effort.threads)?;
        config.task.check(&session, &pictures)?;
        bad::check(&pictures, 0, effort.max_bad, || last_text(&pictures))?;
        let record = Record {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config: serde_json::to_value(config).map_err(super::EvalError::json(out))?,
            model_sha256: model_sha256(model)?,
            data_sha256: pictures.sha256.clone(),
            state_sha256: pictures.state_sha256.clone(),
        };
        let folder = Folder::open(out, &record, effort.share)?;
        let (skipped, _) = folder.journal::<SkippedSample>("skipped")?;
        let mut runner = Self {
            session,
            pictures,
            folder,
            effort,
            skipped,
            unreadable: HashSet::new(),
        };
        runner.note_bad_texts()?;
        let unreadable = folder::unreadable(out)?;
        let ids = unreadable.iter().map(|sample| sample.image_id.clone());
        runner.unreadable = ids.collect();
        bad::check(&runner.pictures, runner.unreadable.len(), effort.max_bad, || {
            unreadable.last().map_or(String::new(), SkippedSample::to_string)
        })?;
        Ok(runner)
    }

    /// Names the samples without usable text; the first process does it for all, as each reads all texts.
    fn note_bad_texts(&mut self) -> Result<(), RunError> {
        if self.effort.share.rank != 0 {
            return Ok(());
        }
        let texts = self.pictures.skipped.iter();
        let lines: Vec<SkippedSample> = texts
            .map(|(n, sample)| SkippedSample::of_text(*n, sample))
            .collect();
        lines.into_iter().try_for_each(|line| self.note(line))
    }

    /// A counter on standard error.
    pub fn meter(&self, what: &'static str, total: usize) -> Meter {
        Meter::new(what, total as u64, self.effort.quiet)
    }

    /// Pictures that a process, whichever, has noted as unreadable.
    pub fn skipped_by_any(&self) -> Result<HashSet<Id>, RunError> {
        let found = folder::unreadable(&self.folder.path)?;
        Ok(found.into_iter().map(|sample| sample.image_id).collect())
    }

    /// Encodes the pictures at `wanted` (ascending), `batch` at a time, and hands them on with their positions.
    /// Pictures that cannot be read are noted in a journal and left out; those noted before are not tried again.
    pub fn encode_each(
        &mut self,
        wanted: &[usize],
        batch: usize,
        each: &mut dyn FnMut(&Self, &[usize], ImageFeatures<B>) -> Result<(), RunError>,
    ) -> Result<(), RunError> {
        let known = |at: &usize| self.unreadable.contains(&self.pictures.list[*at].id);
        let wanted: Vec<usize> = wanted.iter().copied().filter(|at| !known(at)).collect();
        let processor = self.session.images.clone();
        let prepare = move |image: blip2_model::processor::RgbImage| {
            let (height, width) = processor.output_size(image.height(), image.width());
            let values = processor
                .preprocess(&image)
                .map_err(|e| Problem::Decode(Arc::new(e)))?;
            Ok(([height as usize, width as usize], values))
        };
        let mut at = Vec::with_capacity(batch);
        let mut pixels: Vec<f32> = Vec::new();
        let mut size = [0; 2];
        let (mut good, mut bad) = (0, None);
        for item in self.pictures.stream(&wanted, self.effort.threads, prepare)? {
            let (position, outcome) = item?;
            match outcome {
                Err(skipped) => {
                    self.skip(position, skipped.problem.to_string())?;
                    bad = Some(skipped.to_string());
                }
                Ok((shape, values)) => {
                    good += 1;
                    // processors that keep the shape of the picture give batches of one shape each
                    if shape != size && !at.is_empty() {
                        self.hand_on(&mut at, &mut pixels, size, each)?;
                    }
                    size = shape;
                    at.push(position);
                    pixels.extend(values);
                }
            }
            if at.len() == batch {
                self.hand_on(&mut at, &mut pixels, size, each)?;
            }
        }
        if !at.is_empty() {
            self.hand_on(&mut at, &mut pixels, size, each)?;
        }
        match bad {
            Some(last) if good == 0 => Err(RunError::AllBad {
                count: wanted.len(),
                last,
            }),
            _ => Ok(()),
        }
    }

    fn hand_on(
        &self,
        at: &mut Vec<usize>,
        pixels: &mut Vec<f32>,
        [height, width]: [usize; 2],
        each: &mut dyn FnMut(&Self, &[usize], ImageFeatures<B>) -> Result<(), RunError>,
    ) -> Result<(), RunError> {
        let data = TensorData::new(std::mem::take(pixels), [at.len(), 3, height, width]);
        let pixels = Tensor::from_data(data, (&self.session.model.device, DType::F32)); // [B, 3, H, W]
        let features = self.session.model.encode_images(pixels, &Context::eval())?;
        each(self, at, features)?;
        at.clear();
        Ok(())
    }

    fn skip(&mut self, position: usize, problem: String) -> Result<(), RunError> {
        let picture = &self.pictures.list[position];
        let line = SkippedSample {
            image_id: picture.id.clone(),
            shard: picture.shard.to_string(),
            key: picture.key.clone(),
            problem,
            text: false,
        };
        let reason = line.to_string();
        self.unreadable.insert(line.image_id.clone());
        self.note(line)?;
        bad::check(&self.pictures, self.unreadable.len(), self.effort.max_bad, || {
            reason
        })
    }

    fn note(&mut self, line: SkippedSample) -> Result<(), RunError> {
        if self.skipped.holds(&line.image_id) {
            return Ok(());
        }
        if !self.effort.quiet {
            say(format_args!("skipped {line}"));
        }
        Ok(self.skipped.append(&[line])?)
    }
}

/// Why the last sample without usable text has none.
fn last_text(pictures: &Pictures) -> String {
    let last = pictures.skipped.last();
    last.map_or(String::new(), |(_, sample)| sample.to_string())
}
