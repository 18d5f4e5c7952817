//! `data capfilt`: arguments, loading the models, printing; the work is in [`crate::data::capfilt`].

use std::path::PathBuf;

use anyhow::{Result, bail};
use blip2_model::backend::BackendKind;
use blip2_model::nn::Kernels;
use blip2_model::session::Session;
use blip2_model::with_backend;
use clap::{Args, ValueEnum};
use serde_json::json;

use super::data::{counter, warn};
use super::generation::GenerationArgs;
use super::model::DeviceArgs;
use super::print;
use super::share::ShareArgs;
use super::source::SourceSelect;
use crate::data::augment::Transform;
use crate::data::capfilt::models::{ScoreBy, SessionCaptioner, SessionScorer};
use crate::data::capfilt::{CapFiltConfig, CapFiltReport, Models, capfilt};
use crate::data::prepare::{Needs, Preparation};
use crate::data::shard::ShardSet;
use crate::data::stream::Data;
use crate::eval::run::folder::Share;
use crate::eval::run::model_sha256;

/// Lost shards that the last message names.
const NAMED: usize = 10;

/// Arguments of `data capfilt`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example (BLIP-2's recipe: ten captions for each picture, the best two kept):
  blip2-train data capfilt \"web/{000..012}.tar\" --model CAPTIONER --scorer ITM_MODEL --score itc --out clean/

A shard that exists in --out is done: start again after a stop, or run several processes (`blip2-train launch`, or
--rank R --world W). capfilt.json in --out says how its shards are made; other settings need another --out.
A shard that is damaged is not written; the command does the others, names it, and ends with exit code 2."
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
    /// Share of a shard's samples that may be unusable; five always may. A shard with more is not written
    #[arg(long, value_name = "SHARE", default_value_t = CapFiltConfig::default().max_bad)]
    max_bad: f64,
    #[command(flatten)]
    share: ShareArgs,
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
    let share = args.share.share()?;
    let kind = BackendKind::choose(args.device.backend.as_deref())?;
    let report = with_backend!(kind, B => {
        run_on::<B>(args, set, share, &args.device.select::<B>()?)
    })?;
    print(args.json, &report, || text(&report))?;
    match lost(&report) {
        Some(message) => bail!("{message}"),
        None => Ok(()),
    }
}

fn text(report: &CapFiltReport) -> String {
    format!(
        "{} shards written, {} were there, {} lost; {} samples, {} without a good caption, {} skipped; captions kept: \
         {} synthetic, {} original",
        report.shards,
        report.present,
        report.lost.len(),
        report.samples,
        report.rejected,
        report.skipped,
        report.synthetic,
        report.original
    )
}

/// What to say of shards that could not be used.
fn lost(report: &CapFiltReport) -> Option<String> {
    let first = report.lost.first()?;
    let named: Vec<String> = report
        .lost
        .iter()
        .take(NAMED)
        .map(|lost| format!("{}: {}", lost.shard, lost.reason))
        .collect();
    let more = match report.lost.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!("; and {more} more (--json lists all)"),
    };
    Some(format!(
        "{} of {} shards cannot be used and are left out: {}{more}. Fetch them again, or save what is readable with \
         `blip2-train data convert {} --to tar --out DIR`, or allow more bad samples with --max-bad; then run the same \
         command again, which does only what is missing",
        report.lost.len(),
        report.lost.len() as u64 + report.shards + report.present,
        named.join("; "),
        first.shard
    ))
}

fn run_on<B: Kernels>(
    args: &CapFiltArgs,
    set: &ShardSet,
    share: Share,
    device: &B::Device,
) -> Result<CapFiltReport> {
    let folder = args.device.folder(&args.model)?;
    let captioner = args.device.open::<B>(&folder, device)?;
    let judge: Option<(PathBuf, Session<B>)> = match &args.scorer {
        Some(model) => {
            let folder = args.device.folder(model)?;
            let session = args.device.open::<B>(&folder, device)?;
            Some((folder, session))
        }
        None => None,
    };
    let scorer = judge.as_ref().map_or(&captioner, |(_, session)| session);
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
    let prompt = args.generation.prompt(false);
    let by = match args.score {
        ScoreArg::Itm => ScoreBy::Itm,
        ScoreArg::Itc => ScoreBy::Itc,
    };
    let captioner_hash = model_sha256(&folder)?;
    let scorer_hash = match &judge {
        Some((folder, _)) => model_sha256(folder)?,
        None => captioner_hash.clone(),
    };
    let settings = json!({
        "model": captioner_hash,
        "scorer": scorer_hash,
        "score": by,
        "max_length": args.max_length,
        "prompt": prompt,
        "generation": generation,
        "dtype": args.device.dtype,
        "dtype_llm": args.device.dtype_llm,
        "dtype_qformer": args.device.dtype_qformer,
    });
    let settings = settings.as_object().cloned().unwrap_or_default();
    let config = CapFiltConfig {
        synthetic: args.synthetic,
        keep: args.keep,
        min_score: args.min_score,
        batch_size: args.batch,
        threads: args.threads,
        max_bad: args.max_bad,
        rank: share.rank.try_into()?,
        world: share.world.try_into()?,
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
        prompt,
        generation,
    };
    let mut scorer = SessionScorer {
        session: scorer,
        by,
        batch: args.batch,
        max_length: args.max_length,
    };
    let mut models = Models {
        captioner: &mut captioner,
        scorer: &mut scorer,
        settings,
    };
    let bar = counter();
    let report = capfilt(
        set,
        &args.out,
        &config,
        &mut models,
        &mut |skipped| warn(skipped, &bar),
        &|n| bar.set_position(n),
    )?;
    bar.finish_and_clear();
    Ok(report)
}
