//! Options that several verbs share.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use blip2_model::checkpoint::{DtypePolicy, PartDtype};
use blip2_model::generate::GenerateOptions;
use blip2_model::language::Architecture;
use blip2_model::nn::Kernels;
use blip2_model::weights::hub;
use clap::{Args, ValueEnum};

use super::parts::PartsArgs;
use crate::Session;

/// Model, device and output.
#[derive(Debug, Args)]
pub struct CommonArgs {
    /// Folder of a checkpoint, LAVIS .pth file, or the id of one on the hub
    #[arg(long, value_name = "DIR|FILE|HUB_ID")]
    pub model: String,
    /// Backend of this build to run on (see `blip2 backends`); default: the first one compiled in
    #[arg(long)]
    pub backend: Option<String>,
    /// Device of the backend
    #[arg(long, default_value_t = 0)]
    pub device: usize,
    /// Dtype of the frozen parts' matrices: auto (as in the file), f32, f16 or bf16
    #[arg(long, default_value = "auto")]
    pub dtype: PartDtype,
    /// Dtype of the language model alone
    #[arg(long, value_name = "DTYPE")]
    pub dtype_llm: Option<PartDtype>,
    /// Load even if tensors are missing or unused
    #[arg(long)]
    pub allow_partial: bool,
    /// Never ask the network for a model
    #[arg(long)]
    pub offline: bool,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
    /// No notes on stderr
    #[arg(long)]
    pub quiet: bool,
    /// Files that a LAVIS checkpoint leaves out
    #[command(flatten)]
    pub parts: PartsArgs,
}

impl CommonArgs {
    /// Loads the model and says on stderr what was loaded.
    pub fn open<B: Kernels>(&self, device: &B::Device) -> Result<Session<B>> {
        let mut policy = DtypePolicy::frozen(self.dtype);
        policy.llm = self.dtype_llm.unwrap_or(policy.llm);
        let files = self.parts.open(&self.folder()?, self.offline)?;
        let session = Session::load(files, policy, self.allow_partial, device)?;
        if !self.quiet {
            let report = &session.report;
            for (part, dtypes) in &report.parameters {
                let list: Vec<_> = dtypes
                    .iter()
                    .map(|(dtype, count)| format!("{count} x {dtype}"))
                    .collect();
                let bytes = report.bytes.get(part).copied().unwrap_or_default();
                eprintln!("{part}: {} ({:.1} MB)", list.join(", "), bytes as f64 / 1e6);
            }
        }
        Ok(session)
    }

    /// The model's folder, downloaded if it is a hub id.
    pub fn folder(&self) -> Result<PathBuf> {
        let path = Path::new(&self.model);
        let looks_local =
            path.exists() || self.model.starts_with(['.', '/']) || self.model.matches('/').count() != 1;
        if looks_local {
            return Ok(path.to_path_buf());
        }
        let id = self
            .model
            .parse::<hub::HubId>()
            .with_context(|| format!("--model {}", self.model))?;
        let mut settings = hub::HubSettings::from_env();
        settings.offline |= self.offline;
        Ok(hub::resolve(&id, &settings, &mut ())?.folder)
    }
}

/// Named sets of defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// As LAVIS evaluates: beam 5
    Lavis,
    /// The checkpoint's generation_config.json: greedy, 20 new tokens
    Hf,
}

/// Generation options by the names of Hugging Face's generation config.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct GenerationArgs {
    /// Defaults that the other options change
    #[arg(long, value_enum, default_value = "hf")]
    pub preset: Preset,
    #[arg(long)]
    pub max_new_tokens: Option<usize>,
    #[arg(long)]
    pub min_new_tokens: Option<usize>,
    #[arg(long)]
    pub num_beams: Option<usize>,
    #[arg(long, allow_negative_numbers = true)]
    pub length_penalty: Option<f64>,
    #[arg(long)]
    pub repetition_penalty: Option<f64>,
    #[arg(long)]
    pub no_repeat_ngram_size: Option<usize>,
    /// Sample; without it temperature, top-k and top-p have no effect
    #[arg(long)]
    pub do_sample: bool,
    #[arg(long)]
    pub temperature: Option<f64>,
    #[arg(long)]
    pub top_k: Option<usize>,
    #[arg(long)]
    pub top_p: Option<f64>,
    #[arg(long)]
    pub num_return_sequences: Option<usize>,
    #[arg(long)]
    pub seed: Option<u64>,
}

impl GenerationArgs {
    /// The options, on top of the preset; `question` picks LAVIS's settings for answers.
    pub fn options(
        &self,
        stored: Option<&GenerateOptions>,
        architecture: Architecture,
        question: bool,
    ) -> GenerateOptions {
        let mut o = match (self.preset, question) {
            (Preset::Hf, _) => stored
                .cloned()
                .unwrap_or_else(|| GenerateOptions::for_architecture(architecture)),
            (Preset::Lavis, false) => GenerateOptions::lavis_caption(architecture),
            (Preset::Lavis, true) => GenerateOptions::lavis_vqa(architecture),
        };
        if let (Preset::Lavis, Some(stored)) = (self.preset, stored) {
            o.eos_token_ids = stored.eos_token_ids.clone();
            o.pad_token_id = stored.pad_token_id;
            o.decoder_start_token_id = stored.decoder_start_token_id;
        }
        o.max_new_tokens = self.max_new_tokens.unwrap_or(o.max_new_tokens);
        o.min_new_tokens = self.min_new_tokens.unwrap_or(o.min_new_tokens);
        o.num_beams = self.num_beams.unwrap_or(o.num_beams);
        o.length_penalty = self.length_penalty.unwrap_or(o.length_penalty);
        o.repetition_penalty = self.repetition_penalty.unwrap_or(o.repetition_penalty);
        o.no_repeat_ngram_size = self.no_repeat_ngram_size.unwrap_or(o.no_repeat_ngram_size);
        o.do_sample |= self.do_sample;
        o.temperature = self.temperature.unwrap_or(o.temperature);
        o.top_k = self.top_k.unwrap_or(o.top_k);
        o.top_p = self.top_p.unwrap_or(o.top_p);
        o.num_return_sequences = self.num_return_sequences.unwrap_or(o.num_return_sequences);
        o.seed = self.seed.unwrap_or(o.seed);
        o
    }
}
