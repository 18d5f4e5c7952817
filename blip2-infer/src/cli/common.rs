//! Options that several verbs share.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use anyhow::Result;
use blip2_model::backend::BackendKind;
use blip2_model::checkpoint::{DtypePolicy, PartDtype};
use blip2_model::generate::overrides::{Overrides, Preset};
use blip2_model::generate::{EarlyStopping, GenerateOptions};
use blip2_model::language::Architecture;
use blip2_model::nn::Kernels;
use clap::Args;

use super::cache::{FeatureCache, Kept, model_hash};
use super::model;
use super::parts::PartsArgs;
use crate::Session;

/// Model, device and output.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model, device and output")]
pub struct CommonArgs {
    /// Folder of a checkpoint, LAVIS .pth file, id of one on the hub, or a bundled one: `nano`, which speaks, or
    /// `nano-itm`, which compares pictures and texts (see `blip2 models`)
    #[arg(long, value_name = "DIR|FILE|HUB_ID|NAME", default_value = model::NANO)]
    pub model: String,
    /// Backend of this build to run on (see `blip2 backends`); default: the first one compiled in
    #[arg(long)]
    pub backend: Option<String>,
    /// Device of the backend
    #[arg(long, default_value_t = 0)]
    pub device: usize,
    /// Dtype of the frozen parts' matrices: auto (as in the file), f32, f16 or bf16 (on a CPU with AMX the fastest, with
    /// inputs of products rounded as well; the environment's BLIP2_BF16=exact keeps them)
    #[arg(long, default_value = "auto")]
    pub dtype: PartDtype,
    /// Dtype of the language model alone; also int8 and int4: linear maps packed while loading, for faster decoding
    #[arg(long, value_name = "DTYPE")]
    pub dtype_llm: Option<PartDtype>,
    /// Dtype of the Q-Former's matrices, which the other options leave in f32: also f16 or bf16
    #[arg(long, value_name = "DTYPE", value_parser = PartDtype::unpacked)]
    pub dtype_qformer: Option<PartDtype>,
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
    /// Folder of the model, once it has been looked for.
    #[arg(skip)]
    resolved: OnceCell<PathBuf>,
}

impl CommonArgs {
    /// Dtypes to keep the weights in.
    pub fn policy(&self) -> DtypePolicy {
        DtypePolicy::frozen(self.dtype).but(self.dtype_qformer, self.dtype_llm)
    }

    /// The model's folder, downloaded if it is a hub id that the cache lacks.
    pub fn folder(&self) -> Result<&Path> {
        if let Some(folder) = self.resolved.get() {
            return Ok(folder);
        }
        let folder = model::folder(&self.model, self.offline, self.quiet)?;
        Ok(self.resolved.get_or_init(|| folder))
    }

    /// Tells apart what would give other numbers for the same picture.
    pub(super) fn model_hash(&self) -> Result<String> {
        let backend = BackendKind::choose(self.backend.as_deref())?;
        model_hash(
            &self.parts.open(self.folder()?, self.offline, true)?,
            &self.policy(),
            backend.name(),
        )
    }

    /// The cache of encoded pictures below `root`, if one is asked for.
    pub(super) fn cache(&self, root: Option<&Path>, kept: Kept) -> Result<Option<FeatureCache>> {
        root.map(|root| FeatureCache::open(root, &self.model_hash()?, kept))
            .transpose()
    }

    /// Loads the model and says on stderr what was loaded.
    pub fn open<B: Kernels>(&self, device: &B::Device) -> Result<Session<B>> {
        let files = self.parts.open(self.folder()?, self.offline, self.quiet)?;
        let session = Session::load(files, self.policy(), self.allow_partial, device)?;
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
}

/// Generation options by the names of Hugging Face's generation config. Left out, an option has the value of the
/// preset; the defaults below are those of `--preset hf` where the checkpoint's file is silent.
#[derive(Debug, Args)]
#[command(next_help_heading = "Generation (names as in Hugging Face's GenerationConfig)")]
pub struct GenerationArgs {
    /// Defaults that the other options change
    #[arg(long, value_enum, default_value = "hf")]
    pub preset: Preset,
    #[command(flatten)]
    overrides: Overrides,
    /// When a beam search stops: false, true or never [early_stopping; false]
    #[arg(long, value_name = "WHEN")]
    pub early_stopping: Option<EarlyStopping>,
    /// Texts per picture: samples, or the best beams [num_return_sequences; 1]
    #[arg(long, value_name = "N")]
    pub num_return_sequences: Option<usize>,
}

impl GenerationArgs {
    /// Names options that were given and change nothing in this combination.
    pub fn warn(&self, options: &GenerateOptions, quiet: bool) {
        let given = [
            ("temperature", self.overrides.temperature.is_some()),
            ("top_k", self.overrides.top_k.is_some()),
            ("top_p", self.overrides.top_p.is_some()),
            ("early_stopping", self.early_stopping.is_some()),
        ];
        let idle = options.without_effect();
        for (name, _) in given.iter().filter(|(name, given)| *given && idle.contains(name)) {
            if !quiet {
                eprintln!("note: {name} has no effect here (see --do-sample and --num-beams)");
            }
        }
    }

    /// The options, on top of the preset; `question` picks LAVIS's settings for answers.
    pub fn options(
        &self,
        stored: Option<&GenerateOptions>,
        architecture: Architecture,
        question: bool,
    ) -> GenerateOptions {
        let mut o = self.preset.options(stored, architecture, question);
        self.overrides.apply(&mut o);
        o.early_stopping = self.early_stopping.unwrap_or(o.early_stopping);
        o.num_return_sequences = self.num_return_sequences.unwrap_or(o.num_return_sequences);
        o
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches, Parser};

    use super::*;

    #[derive(Parser)]
    struct Bare {
        #[command(flatten)]
        generation: GenerationArgs,
    }

    fn options(args: &[&str], architecture: Architecture, question: bool) -> GenerateOptions {
        let args = ["x"].iter().chain(args);
        let bare = Bare::parse_from(args);
        bare.generation.options(None, architecture, question)
    }

    /// LAVIS's arguments of `generate` and `predict_answers`, and transformers' defaults, in new tokens.
    #[test]
    fn presets_have_the_published_values() {
        use Architecture::{DecoderOnly, EncoderDecoder};
        // preset, architecture, answer: new tokens, beams, length penalty, top-p
        let cases = [
            ("hf", DecoderOnly, false, (20, 1, 1.0, 1.0)),
            ("hf", EncoderDecoder, true, (20, 1, 1.0, 1.0)),
            ("lavis", DecoderOnly, false, (29, 5, 1.0, 0.9)),
            ("lavis", EncoderDecoder, false, (30, 5, 1.0, 0.9)),
            ("lavis", DecoderOnly, true, (10, 5, 0.0, 1.0)),
            ("lavis", EncoderDecoder, true, (10, 5, -1.0, 1.0)),
        ];
        for (preset, architecture, question, want) in cases {
            let o = options(&["--preset", preset], architecture, question);
            let got = (o.max_new_tokens, o.num_beams, o.length_penalty, o.top_p);
            assert_eq!(got, want, "{preset} {architecture:?} {question}");
            assert_eq!(
                (o.min_new_tokens, o.repetition_penalty, o.do_sample),
                (0, 1.0, false)
            );
            let eos = match architecture {
                DecoderOnly => 50118,
                EncoderDecoder => 1,
            };
            assert_eq!(o.eos_token_ids, [eos]);
        }
    }

    #[test]
    fn every_option_overrides_the_preset() {
        let args = "--preset lavis --max-new-tokens 7 --min-new-tokens 2 --num-beams 3 --length-penalty -2 \
            --early-stopping never --repetition-penalty 1.5 --no-repeat-ngram-size 3 --do-sample --temperature 0.5 \
            --top-k 9 --top-p 0.25 --num-return-sequences 2 --seed 11";
        let args: Vec<&str> = args.split_whitespace().filter(|a| *a != "\\").collect();
        let o = options(&args, Architecture::DecoderOnly, false);
        let want = GenerateOptions {
            max_new_tokens: 7,
            min_new_tokens: 2,
            num_beams: 3,
            length_penalty: -2.0,
            early_stopping: EarlyStopping::Never,
            repetition_penalty: 1.5,
            no_repeat_ngram_size: 3,
            do_sample: true,
            temperature: 0.5,
            top_k: 9,
            top_p: 0.25,
            num_return_sequences: 2,
            seed: 11,
            ..GenerateOptions::for_architecture(Architecture::DecoderOnly)
        };
        assert_eq!(o, want);
    }

    #[test]
    fn every_option_has_help() {
        let command = Bare::command();
        for argument in command.get_arguments().filter(|a| a.get_id() != "help") {
            assert!(argument.get_help().is_some(), "{}", argument.get_id());
        }
        let matches = command
            .try_get_matches_from(["x"])
            .expect("no argument is needed");
        assert!(Bare::from_arg_matches(&matches).is_ok());
    }
}
