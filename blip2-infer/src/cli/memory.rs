//! `blip2 memory`: what a checkpoint will take, before it is downloaded or loaded.

use std::path::Path;

use anyhow::{Context as _, Result};
use blip2_model::backend::{BackendKind, SelectDevice};
use blip2_model::catalogue;
use blip2_model::checkpoint::{DtypePolicy, PartDtype};
use blip2_model::config::Blip2Config;
use blip2_model::memory::{Estimate, MemoryError, Workload, predict};
use blip2_model::weights::{TensorInfo, checkpoint_dir, hub};
use blip2_model::with_backend;
use clap::Args;
use serde::Serialize;

use super::{model, output};

/// Arguments of `memory`.
#[derive(Debug, Args)]
pub struct MemoryArgs {
    /// Folder (a config.json is enough), hub id, or the name of a published checkpoint: nothing is downloaded for these
    #[arg(long, value_name = "DIR|HUB_ID|NAME", default_value = model::NANO)]
    model: String,
    /// Dtypes of the frozen parts' matrices: auto (as in the file), f32, f16, bf16; int8 and int4 pack the language
    /// model's and leave the image encoder as in the file
    #[arg(long, value_delimiter = ',', default_value = "f32,f16,bf16")]
    dtype: Vec<PartDtype>,
    /// Dtype of the language model alone: also int8, int4
    #[arg(long, value_name = "DTYPE")]
    dtype_llm: Option<PartDtype>,
    /// Dtype of the Q-Former's matrices, which the other options leave in f32: also f16 or bf16
    #[arg(long, value_name = "DTYPE", value_parser = PartDtype::unpacked)]
    dtype_qformer: Option<PartDtype>,
    /// Pictures at a time
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    batch: Vec<usize>,
    /// Side of the pictures in pixels; default: as in config.json
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<usize>,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 16)]
    prompt_tokens: usize,
    /// Most tokens to generate
    #[arg(long, default_value_t = 20)]
    max_new_tokens: usize,
    /// Beams per picture
    #[arg(long, default_value_t = 1)]
    num_beams: usize,
    /// Backend that will run it: CPU backends keep activations in f32
    #[arg(long)]
    backend: Option<String>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

/// One line of `--json`; sizes in bytes.
#[derive(Serialize)]
struct Line<'a> {
    model: &'a str,
    backend: BackendKind,
    dtype: PartDtype,
    dtype_llm: PartDtype,
    dtype_qformer: PartDtype,
    batch: usize,
    num_beams: usize,
    #[serde(flatten)]
    estimate: Estimate,
}

/// Configuration and, where the weights are at hand, what is in their file.
fn read(name: &str) -> Result<(Blip2Config, Vec<TensorInfo>)> {
    let path = Path::new(name);
    let local = match path.exists() {
        true => Some(path.to_path_buf()),
        false => model::cached(name),
    };
    if let (None, Some(entry)) = (&local, catalogue::find(name)) {
        return Ok((entry.config(), Vec::new()));
    }
    let folder = match local {
        Some(folder) => folder,
        None if name == model::NANO || hub::is_local(name) => model::folder(name, true, true)?,
        // no more than the description: predicting must not cost the download
        None => model::config_of(name)?,
    };
    let file = match folder.is_dir() {
        true => folder.join("config.json"),
        false => folder.clone(),
    };
    let json = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let config = Blip2Config::from_json(&json).with_context(|| file.display().to_string())?;
    let infos = match checkpoint_dir::open(&folder) {
        Ok(opened) if folder.is_dir() => opened.source.infos().to_vec(),
        _ => Vec::new(),
    };
    Ok((config, infos))
}

pub(super) fn run(args: &MemoryArgs) -> Result<()> {
    let kind = BackendKind::choose(args.backend.as_deref())?;
    let (config, files) = read(&args.model)?;
    let head = [
        "dtype",
        "batch",
        "weights",
        "vision",
        "qformer",
        "llm",
        "cache",
        "activations",
        "total",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    for &dtype in &args.dtype {
        for &batch in &args.batch {
            let policy = DtypePolicy::frozen(dtype).but(args.dtype_qformer, args.dtype_llm);
            let work = Workload {
                policy,
                batch,
                image_size: args.image_size,
                prompt_tokens: args.prompt_tokens,
                max_new_tokens: args.max_new_tokens,
                num_beams: args.num_beams,
                ..Workload::default()
            };
            let estimate = with_backend!(kind, B => {
                predict::<B>(&config, &files, &work, &B::select_device(0))
            });
            let estimate = match estimate {
                Err(refused @ MemoryError::Policy(_)) if args.dtype.len() > 1 => {
                    eprintln!("{}: {refused}", name(dtype));
                    break;
                }
                other => other?,
            };
            if args.json {
                output::json(&Line {
                    model: &args.model,
                    backend: kind,
                    dtype,
                    dtype_llm: policy.llm,
                    dtype_qformer: policy.qformer,
                    batch,
                    num_beams: args.num_beams,
                    estimate,
                })?;
                continue;
            }
            let size = |count: usize| output::bytes(count as u64);
            let parts = [
                blip2_model::checkpoint::Part::Vision,
                blip2_model::checkpoint::Part::QFormer,
                blip2_model::checkpoint::Part::Llm,
            ];
            let mut row = vec![
                name(dtype).to_string(),
                batch.to_string(),
                size(estimate.weight_bytes()),
            ];
            row.extend(parts.map(|part| estimate.weights.get(&part).map_or("-".into(), |&b| size(b))));
            row.extend([
                size(estimate.cache),
                size(estimate.activations),
                size(estimate.total),
            ]);
            rows.push(row);
        }
    }
    if args.json {
        return Ok(());
    }
    output::line(&output::table(&rows))?;
    eprintln!(
        "backend {kind}, {} new tokens after {} prompt tokens, {} beam(s); weights and cache are exact, activations \
         are those of the widest layer",
        args.max_new_tokens, args.prompt_tokens, args.num_beams
    );
    Ok(())
}

fn name(dtype: PartDtype) -> &'static str {
    match dtype {
        PartDtype::Auto => "auto",
        PartDtype::F32 => "f32",
        PartDtype::F16 => "f16",
        PartDtype::BF16 => "bf16",
        PartDtype::Int8 => "int8",
        PartDtype::Int4 => "int4",
    }
}
