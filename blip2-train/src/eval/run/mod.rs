//! An evaluation from end to end: a model folder and a data set in; predictions, scores and a page out.
//!
//! [`Runner`] holds what every task needs. A task writes each finished picture or question into a journal
//! ([`folder`]), so that a killed run goes on and several processes share the work; its `finish` reads the journals and
//! scores them, without the model. [`caption`], [`vqa`], [`retrieval`], [`itm`].

pub mod caption;
mod error;
pub mod folder;
pub mod itm;
pub mod meter;
pub mod pictures;
pub mod publish;
pub mod retrieval;
pub mod vqa;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blip2_model::blip2::ImageFeatures;
use blip2_model::nn::{Context, Kernels};
use blip2_model::session::{Session, SessionError};
use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::results::{self, Id, Journal};
use crate::data::sample::Problem;
use crate::data::source::SourceConfig;
use crate::say::say;
pub use error::RunError;
use folder::{Folder, Record, Share, SkippedPicture};
use meter::Meter;
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
            Self::Vqa(_) => {}
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
}

/// SHA-256 over the files of a model folder that its results depend on.
pub fn model_sha256(folder: &Path) -> Result<String, RunError> {
    const SETTINGS: [&str; 9] = [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "special_tokens_map.json",
    ];
    let mut files: Vec<PathBuf> = Vec::new();
    for folder in [folder.to_path_buf(), folder.join("qformer_tokenizer")] {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry.map_err(super::EvalError::file(&folder))?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let weights = path.extension().is_some_and(|e| {
                ["safetensors", "bin", "pth", "pt"]
                    .iter()
                    .any(|known| e == *known)
            });
            if path.is_file() && (weights || SETTINGS.contains(&name.as_str())) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(results::sha256_files(&files)?)
}

impl<B: Kernels> Runner<B> {
    /// Opens the data set and the output folder. `model` is the folder that `session` was loaded from.
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
        let pictures = Pictures::open(&config.data, &config.select, effort.threads)?;
        config.task.check(&session, &pictures)?;
        let record = Record {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config: serde_json::to_value(config).map_err(super::EvalError::json(out))?,
            model_sha256: model_sha256(model)?,
            data_sha256: pictures.sha256.clone(),
        };
        let folder = Folder::open(out, &record, effort.share)?;
        let (skipped, _) = folder.journal::<SkippedPicture>("skipped")?;
        Ok(Self {
            session,
            pictures,
            folder,
            effort,
            skipped,
        })
    }

    /// A counter on standard error.
    pub fn meter(&self, what: &'static str, total: usize) -> Meter {
        Meter::new(what, total as u64, self.effort.quiet)
    }

    /// Pictures that a process, whichever, has noted as unreadable.
    pub fn skipped_by_any(&self) -> Result<HashSet<Id>, RunError> {
        Ok(results::journal_ids::<SkippedPicture>(
            &self.folder.path,
            "skipped",
        )?)
    }

    /// Encodes the pictures at `wanted` (ascending), `batch` at a time, and hands them on with their positions.
    /// Pictures that cannot be read are noted in a journal and left out.
    pub fn encode_each(
        &mut self,
        wanted: &[usize],
        batch: usize,
        each: &mut dyn FnMut(&Self, &[usize], ImageFeatures<B>) -> Result<(), RunError>,
    ) -> Result<(), RunError> {
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
        for item in self.pictures.stream(wanted, self.effort.threads, prepare)? {
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
        if self.skipped.holds(&picture.id) {
            return Ok(());
        }
        let line = SkippedPicture {
            image_id: picture.id.clone(),
            shard: picture.shard.to_string(),
            key: picture.key.clone(),
            problem,
        };
        if !self.effort.quiet {
            say(format_args!(
                "skipped {}: `{}`: {}",
                line.shard, line.key, line.problem
            ));
        }
        Ok(self.skipped.append(&[line])?)
    }
}
