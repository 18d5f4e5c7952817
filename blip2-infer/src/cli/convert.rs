//! `blip2 convert SOURCE DEST`: any checkpoint to Hugging Face safetensors or to a LAVIS `.pth`.

use std::path::PathBuf;

use anyhow::Result;
use blip2_model::backend::{BackendKind, SelectDevice};
use blip2_model::blip2::Blip2;
use blip2_model::checkpoint::PartDtype;
use blip2_model::checkpoint::convert::{ConvertOptions, to_huggingface, to_lavis};
use blip2_model::checkpoint::expected::expected_tensors;
use blip2_model::config::{Blip2Config, Task};
use blip2_model::language::LanguageConfig;
use blip2_model::vision::VisionConfig;
use blip2_model::weights::writer::WriteOptions;
use blip2_model::with_backend;
use clap::{Args, ValueEnum};
use serde_json::json;

use super::model;
use super::parts::PartsArgs;

const EXAMPLES: &str = "Examples:
  blip2 convert Salesforce/blip2-opt-2.7b opt-2.7b-bf16 --dtype bf16
  blip2 convert blip2_pretrained_opt2.7b.pth opt-2.7b --vision eva_vit_g.pth --llm facebook/opt-2.7b
  blip2 convert blip2_pretrained.pth stage1 --vision eva_vit_g.pth --tokenizer bert-base-uncased
  blip2 convert opt-2.7b checkpoint.pth --trained-only

Every tensor keeps its bytes unless --dtype says otherwise. Configuration, tokenizer and preprocessor files are
copied or, for a LAVIS checkpoint, made. A conversion that fails leaves no weights behind.";

/// Arguments of `convert`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ConvertArgs {
    /// Folder, weights file (safetensors or torch, single or sharded), LAVIS .pth, or id on the hub
    source: String,
    /// Folder to write, or a file that ends in .pth for LAVIS
    dest: PathBuf,
    /// Layout to write; default: lavis for a DEST that ends in .pth
    #[arg(long, value_enum)]
    to: Option<Layout>,
    /// Dtype for the matrices of encoder and language model: auto (as they are), f32, f16 or bf16
    #[arg(long, default_value = "auto")]
    dtype: PartDtype,
    /// Largest shard, bytes
    #[arg(long, default_value_t = 5_000_000_000, value_name = "N")]
    max_shard_bytes: u64,
    /// LAVIS: leave encoder and language model out, as LAVIS's own files do
    #[arg(long)]
    trained_only: bool,
    /// Replace files that are there already
    #[arg(long, alias = "overwrite")]
    force: bool,
    /// Convert even if tensors are missing or have no place
    #[arg(long)]
    allow_partial: bool,
    /// Never ask the network
    #[arg(long)]
    offline: bool,
    /// Print one JSON object about the result
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    parts: PartsArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Layout {
    /// Folder with config.json, safetensors, tokenizer and preprocessor files
    Hf,
    /// One torch file under LAVIS's names
    Lavis,
}

pub(super) fn run(args: &ConvertArgs) -> Result<()> {
    let source = model::folder(&args.source, args.offline, args.json)?;
    let files = args.parts.open(&source, args.offline, args.json)?;
    let kind = BackendKind::choose(None)?;
    // shapes only: nothing is allocated
    let expected = with_backend!(kind, B => {
        expected_tensors(&Blip2::<B>::new(files.config.clone(), &B::select_device(0))?)
    });
    let note = transformers_lacks(&files.config);
    let options = ConvertOptions {
        dtype: args.dtype,
        write: WriteOptions {
            max_shard_bytes: args.max_shard_bytes,
            overwrite: args.force,
        },
        allow_partial: args.allow_partial,
        trained_only: args.trained_only,
    };
    let pth = args.dest.extension().is_some_and(|e| e == "pth" || e == "pt");
    let layout = args.to.unwrap_or(if pth { Layout::Lavis } else { Layout::Hf });
    let done = match layout {
        Layout::Hf => to_huggingface(files, &expected, &args.dest, &options)?,
        Layout::Lavis => to_lavis(files, &expected, &args.dest, &options)?,
    };
    for path in &done.files {
        eprintln!("wrote {}", path.display());
    }
    if let (Layout::Hf, Some(note)) = (layout, note) {
        eprintln!("note: {note}");
    }
    if args.json {
        let files: Vec<_> = done.files.iter().map(|path| path.display().to_string()).collect();
        println!(
            "{}",
            json!({"files": files, "tensors": done.tensors, "bytes": done.bytes})
        );
    }
    Ok(())
}

/// What keeps transformers from opening a folder that this engine opens.
fn transformers_lacks(config: &Blip2Config) -> Option<&'static str> {
    if !matches!(config.vision_config, VisionConfig::Eva(_)) {
        return Some("transformers has no BLIP-2 class with this image encoder; the folder is for blip2");
    }
    if let Some(LanguageConfig::Opt(opt)) = config.language()
        && opt.embed_size() != opt.hidden_size
    {
        return Some("transformers refuses OPT with projected embeddings in BLIP-2; the folder is for blip2");
    }
    match config.task() {
        Task::ConditionalGeneration if config.qformer_config.use_qformer_text_input => {
            Some("transformers does not give the Q-Former the question; its answers will differ")
        }
        Task::Stage1 => Some(
            "transformers has no class with all heads of stage 1; it opens the folder as Blip2ForImageTextRetrieval \
             and leaves the head of grounded generation out",
        ),
        _ => None,
    }
}
