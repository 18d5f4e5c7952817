//! From a path to everything that a model needs: configuration, tensors under Hugging Face names, preprocessor,
//! tokenizers, generation settings. Hugging Face folders and LAVIS checkpoints alike.

use std::path::{Path, PathBuf};

use super::Companions;
use super::companions::QFORMER_TOKENIZER;
use super::lavis::{self, LavisError, LavisParts};
use crate::config::{Blip2Config, ConfigError};
use crate::processor::{ImageProcessor, ImageProcessorConfig, ProcessorError};
use crate::weights::checkpoint_dir::{self, CheckpointKind};
use crate::weights::{TensorSource, WeightsError};

/// Why a path does not give a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// The folder has weights but no description of the model.
    #[error("{}: config.json not found; give the folder of a model", folder.display())]
    NoConfig {
        /// The folder.
        folder: PathBuf,
    },
    /// The configuration does not describe a model.
    #[error("{}", path.display())]
    Config {
        /// Folder, or file the configuration was made for.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ConfigError,
    },
    /// The preprocessor's settings cannot be used.
    #[error(transparent)]
    Processor(ProcessorError),
    /// A tokenizer's files cannot be used.
    #[error(transparent)]
    Tokenizer(ProcessorError),
    /// Weights cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A LAVIS checkpoint is not complete, or not BLIP-2.
    #[error(transparent)]
    Lavis(#[from] LavisError),
}

/// A model on disk.
pub struct ModelFiles {
    /// Its configuration.
    pub config: Blip2Config,
    /// Its tensors, under Hugging Face names.
    pub source: Box<dyn TensorSource>,
    /// Settings of its image processor.
    pub images: ImageProcessorConfig,
    /// Folder of the language model's tokenizer.
    pub language_tokenizer: Option<PathBuf>,
    /// Folder of the Q-Former's tokenizer.
    pub query_tokenizer: Option<PathBuf>,
    /// Path (for messages) and text of `generation_config.json`.
    pub generation: Option<(PathBuf, String)>,
    /// The files beside the weights in a Hugging Face folder of this model.
    pub companions: Companions,
}

impl ModelFiles {
    /// Opens a Hugging Face folder or weights file, or a LAVIS checkpoint with the parts it leaves out.
    pub fn open(path: &Path, parts: &LavisParts) -> Result<Self, FilesError> {
        let opened = checkpoint_dir::open(path)?;
        let torch = matches!(
            opened.kind,
            CheckpointKind::LavisPth | CheckpointKind::TorchFile | CheckpointKind::SafetensorsFile
        );
        let lavis = lavis::is_lavis(opened.source.as_ref()) || lavis::is_bare_encoder(opened.source.as_ref());
        if lavis || (torch && opened.config_json.is_none()) {
            return lavis::open::open(opened, parts);
        }
        let folder = opened.folder;
        let json = opened.config_json.ok_or_else(|| FilesError::NoConfig {
            folder: folder.clone(),
        })?;
        let config = Blip2Config::from_json(&json).map_err(|source| FilesError::Config {
            path: folder.clone(),
            source,
        })?;
        let preprocessor = folder.join("preprocessor_config.json");
        let images = match preprocessor.exists() {
            true => ImageProcessor::from_file(&preprocessor)
                .map_err(FilesError::Processor)?
                .config()
                .clone(),
            false => ImageProcessorConfig::blip2(config.vision_config.image_size() as u32),
        };
        let query_tokenizer = match config.task() {
            _ if !config.bridge().qformer.use_qformer_text_input => None,
            // the folder's own tokenizer is the language model's
            _ if config.language().is_some() => Some(folder.join(QFORMER_TOKENIZER)),
            _ => Some(folder.clone()),
        };
        let settings = folder.join("generation_config.json");
        let generation = std::fs::read_to_string(&settings).ok();
        Ok(Self {
            language_tokenizer: config.language().map(|_| folder.clone()),
            query_tokenizer,
            generation: generation.map(|text| (settings, text)),
            companions: Companions::of_folder(&folder),
            source: opened.source,
            config,
            images,
        })
    }
}
