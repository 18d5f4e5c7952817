//! `data capfilt`: arguments, loading the models, printing; the work is in [`crate::data::capfilt`].

use std::path::PathBuf;

use anyhow::{Result, bail};
use blip2_model::backend::{BackendKind, SelectDevice};
use blip2_model::nn::Kernels;
use blip2_model::session::Session;
use blip2_model::with_backend;
use clap::{Args, ValueEnum};

use super::data::{counter, warn};
use super::generation::GenerationArgs;
use super::model::DeviceArgs;
use super::print;
use super::source::SourceSelect;
use crate::data::augment::Transform;
use crate::data::capfilt::models::{ScoreBy, SessionCaptioner, SessionScorer};
use crate::data::capfilt::{CapFiltConfig, CapFiltReport, capfilt};
use crate::data::prepare::{Needs, Preparation};
use crate::data::shard::ShardSet;
use crate::data::stream::Data;

/// Arguments of `data capfilt`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example (BLIP-2's recipe: ten captions for each picture, the best two kept):
  blip2-train data capfilt \"web/{000..012}.tar\" --model CAPTIONER --scorer ITM_MODEL --score itc --out clean/

A shard that exists in --out is done: start again after a stop, or run several processes with --rank and --world."
)]
pub struct CapFiltArgs {
    #[command(flatten)]
    source: SourceSelect,
    /// Captioner: folder of a checkpoint with a language model, or a hub id
    #[arg(long, value_name = "DIR|HUB_ID")]
    model: String,
    /// Judge: a checkpoint with a text branch [default: --model, if it has both]
    #[arg(long, value_name = "DIR|HUB_ID")]
    scorer: Option<String>,
    /// What captions are judged by
    #[arg(long, value_enum, default_value = "itm")]
    score: ScoreArg,
    /// Folder for the new shards
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Synthetic captions for each picture; 0 only filters the ones that are there
    #[arg(long, default_value_t = 10)]
    synthetic: usize,
    /// Captions kept
    #[arg(long, default_value_t = 2)]
    keep: usize,
    /// Drop captions below this score even if fewer remain
    #[arg(long, allow_negative_numbers = true)]
    min_score: Option<f32>,
    /// Pictures in a pass through the model
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Tokens kept of a caption when it is judged
    #[arg(long, default_value_t = 35)]
    max_length: usize,
    /// Lay transparent pictures on white instead of dropping their alpha channel
    #[arg(long)]
    on_white: bool,
    /// Decode threads; 0 is one per processor
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// This process among --world
    #[arg(long, default_value_t = 0)]
    rank: u32,
    /// Number of processes
    #[arg(long, default_value_t = 1)]
    world: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ScoreArg {
    /// Matching probability
    Itm,
    /// Contrastive cosine
    Itc,
}

/// Runs `data capfilt`.
///
/// # Errors
/// What the data or the models gave.
pub fn run(args: &CapFiltArgs) -> Result<()> {
    let source = args.source.config(false).open()?;
    let Data::Shards(set) = &source.data else {
        bail!(
            "{}: capfilt goes from shards to shards; first run `blip2-train data convert {} --to tar --out DIR`",
            args.source.path,
            args.source.path
        );
    };
    let kind = BackendKind::choose(args.device.backend.as_deref())?;
    let report = with_backend!(kind, B => {
        run_on::<B>(args, set, &B::open_device(args.device.device)?)
    })?;
    print(args.json, &report, || {
        format!(
            "{} shards written, {} were there; {} samples, {} without a good caption, {} skipped; captions kept: {} synthetic, {} original",
            report.shards,
            report.present,
            report.samples,
            report.rejected,
            report.skipped,
            report.synthetic,
            report.original
        )
    })
}

fn run_on<B: Kernels>(args: &CapFiltArgs, set: &ShardSet, device: &B::Device) -> Result<CapFiltReport> {
    let captioner = args.device.open::<B>(&args.device.folder(&args.model)?, device)?;
    let judge: Option<Session<B>> = match &args.scorer {
        Some(model) => Some(args.device.open::<B>(&args.device.folder(model)?, device)?),
        None => None,
    };
    let scorer = judge.as_ref().unwrap_or(&captioner);
    if !scorer.model.bridge.qformer.has_text_branch() {
        bail!(
            "{}: has no text branch to judge captions with; name a retrieval checkpoint with --scorer",
            args.model
        );
    }
    let mut generation =
        args.generation
            .options(captioner.generation.as_ref(), captioner.architecture()?, false);
    if args.generation.overrides.num_beams.is_none() && args.synthetic > 1 {
        // nucleus sampling, as BLIP's captioner: beams would give ten times nearly the same
        (generation.do_sample, generation.num_beams) = (true, 1);
        generation.top_p = args.generation.overrides.top_p.unwrap_or(0.9);
        generation.top_k = args.generation.overrides.top_k.unwrap_or(0);
    }
    let config = CapFiltConfig {
        synthetic: args.synthetic,
        keep: args.keep,
        min_score: args.min_score,
        batch_size: args.batch,
        threads: args.threads,
        rank: args.rank,
        world: args.world,
        preparation: Preparation {
            transform: Transform::Keep,
            clean: false,
            needs: Needs::Image,
            on_white: args.on_white,
            ..Preparation::default()
        },
    };
    let mut captioner = SessionCaptioner {
        session: &captioner,
        prompt: args.generation.prompt(false),
        generation,
    };
    let mut scorer = SessionScorer {
        session: scorer,
        by: match args.score {
            ScoreArg::Itm => ScoreBy::Itm,
            ScoreArg::Itc => ScoreBy::Itc,
        },
        batch: args.batch,
        max_length: args.max_length,
    };
    let bar = counter();
    let report = capfilt(
        set,
        &args.out,
        &config,
        &mut captioner,
        &mut scorer,
        &mut |s| warn(s, &bar),
        &|n| bar.set_position(n),
    )?;
    bar.finish_and_clear();
    Ok(report)
}
