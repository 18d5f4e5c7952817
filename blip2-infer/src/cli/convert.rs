//! `blip2 convert SOURCE DEST`

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use blip2_model::weights::checkpoint_dir;
use blip2_model::weights::writer::{self, WriteOptions};
use clap::Args;

/// Arguments of `convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// Folder or weights file: safetensors or torch, single or sharded
    source: PathBuf,
    /// Folder to write
    dest: PathBuf,
    /// Largest shard, bytes
    #[arg(long, default_value_t = 5_000_000_000)]
    max_shard_bytes: u64,
    /// Replace weights that are in the folder already
    #[arg(long)]
    overwrite: bool,
}

/// Everything beside the weights that belongs to a checkpoint.
const COMPANIONS: &[&str] = &[
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
];

pub(super) fn run(args: &ConvertArgs) -> Result<()> {
    let opened = checkpoint_dir::open(&args.source)?;
    let options = WriteOptions {
        max_shard_bytes: args.max_shard_bytes,
        overwrite: args.overwrite,
    };
    let source = opened.source.as_ref();
    let written = writer::write_folder(
        &args.dest,
        source.infos(),
        &options,
        &mut writer::copy_from(source),
    )?;
    for name in COMPANIONS {
        let from = opened.folder.join(name);
        if from.exists() {
            std::fs::copy(&from, args.dest.join(name)).with_context(|| from.display().to_string())?;
        }
    }
    for path in written {
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}
