//! Options for the files that a LAVIS checkpoint leaves out.

use std::path::{Path, PathBuf};

use anyhow::Result;
use blip2_model::checkpoint::{LavisParts, ModelFiles};
use clap::Args;

use super::model;

/// Parts that a LAVIS `.pth` leaves out. Without them: files beside the checkpoint, and torch's download folder.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "LAVIS checkpoints (.pth) only")]
pub struct PartsArgs {
    /// Image encoder: eva_vit_g.pth, clip_vit_L.pth, or any BLIP-2 checkpoint with one
    #[arg(long, value_name = "FILE")]
    pub vision: Option<PathBuf>,
    /// Language model: folder or hub id of an OPT or Flan-T5, such as facebook/opt-2.7b
    #[arg(long, value_name = "DIR|HUB_ID")]
    pub llm: Option<String>,
    /// Tokenizer of the Q-Former: a folder with the files of bert-base-uncased
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// Fields of config.json that the weights do not tell, as a JSON file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl PartsArgs {
    /// Opens a checkpoint on this machine together with these parts.
    pub fn open(&self, path: &Path, offline: bool, quiet: bool) -> Result<ModelFiles> {
        let llm = self.llm.as_deref();
        let parts = LavisParts {
            vision: self.vision.clone(),
            llm: llm.map(|llm| model::folder(llm, offline, quiet)).transpose()?,
            tokenizer: self.tokenizer.clone(),
            config: self.config.clone(),
        };
        Ok(ModelFiles::open(path, &parts)?)
    }
}
