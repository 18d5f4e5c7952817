//! `eval caption | vqa | retrieval | itm | merge`: arguments and printing; the work is in [`crate::eval::run`].

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use blip2_model::backend::{BackendKind, SelectDevice};
use blip2_model::nn::Kernels;
use blip2_model::session::Session;
use blip2_model::with_backend;
use clap::{Args, Subcommand, ValueEnum};

use super::generation::GenerationArgs;
use super::model::DeviceArgs;
use super::print;
use super::source::SourceSelect;
use crate::eval::expected;
use crate::eval::results::Report;
use crate::eval::run::caption::CaptionTask;
use crate::eval::run::folder::Share;
use crate::eval::run::itm::ItmTask;
use crate::eval::run::pictures::Selection;
use crate::eval::run::publish::finish;
use crate::eval::run::retrieval::RetrievalTask;
use crate::eval::run::vqa::{AnswerBy, VqaTask};
use crate::eval::run::{Effort, RunConfig, Runner, Task};
use crate::eval::vqa::Rule;

/// Measure a model: published metrics from a model folder and a data set.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = false, after_help = EXAMPLES)]
pub struct EvalArgs {
    /// Put the published figures of this recipe beside the result; without a verb, print them
    /// (with --out beside the scores of that folder)
    #[arg(long, global = true, value_name = "RECIPE")]
    pub expected: Option<String>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Folder of an earlier evaluation, for --expected without a verb
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<EvalCommand>,
}

const EXAMPLES: &str = "Examples:
  blip2-train eval caption \"shards/{000..004}.tar\" --model DIR --out runs/caption
  blip2-train eval caption dataset_coco.json --images coco/ --split test --model Salesforce/blip2-opt-2.7b-coco \\
      --out runs/coco --expected caption_coco_opt2.7b
  blip2-train eval vqa questions.json --answers annotations.json --images coco/ --model DIR --out runs/vqa
  blip2-train eval retrieval test.tar --model DIR --out runs/retrieval --k 128
  blip2-train eval --expected ret_coco --out runs/retrieval

A killed run goes on when it is started again with the same arguments. Several processes (--rank R --world W, or the
variables RANK and WORLD_SIZE) share one --out folder; `eval merge` then scores it.";

#[derive(Debug, Subcommand)]
enum EvalCommand {
    /// Caption pictures; BLEU, ROUGE-L, CIDEr and exact matches
    Caption(CaptionArgs),
    /// Answer questions; official accuracy
    Vqa(VqaArgs),
    /// Tell captions of a picture from others; accuracy and AUC
    Itm(ItmArgs),
    /// Find captions for pictures and pictures for captions; recall at 1, 5 and 10
    Retrieval(RetrievalArgs),
    /// Score a folder that several processes have filled
    Merge(MergeArgs),
}

/// What every evaluation needs.
#[derive(Clone, Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    data: SourceSelect,
    /// Folder of a checkpoint, or the id of one on the hub
    #[arg(long, value_name = "DIR|HUB_ID")]
    model: String,
    /// Folder for predictions.json, scores.json, index.html and what a later start goes on from
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Evaluate only the pictures in this file: one key or picture id per line
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Evaluate only so many pictures, from the beginning
    #[arg(long)]
    limit: Option<usize>,
    /// Lay transparent pictures on white instead of dropping their alpha channel
    #[arg(long)]
    on_white: bool,
    /// Pictures, questions or pairs in a pass through the model
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Decode threads; 0 is one per processor
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// This process among --world [default: RANK]
    #[arg(long)]
    rank: Option<usize>,
    /// Number of processes [default: WORLD_SIZE, or 1]
    #[arg(long)]
    world: Option<usize>,
    /// Best and worst cases on the page, each
    #[arg(long, default_value_t = 24)]
    cases: usize,
    /// No notes on stderr
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Debug, Args)]
struct CaptionArgs {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    generation: GenerationArgs,
}

#[derive(Debug, Args)]
struct RetrievalArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Best of each row and column that are ranked again by matching; 0 leaves the contrastive order
    #[arg(long, default_value_t = 128)]
    k: usize,
    /// Give captions to the model as written, not cleaned as LAVIS does
    #[arg(long)]
    no_clean: bool,
    /// Tokens kept of a caption
    #[arg(long, default_value_t = 35)]
    max_length: usize,
    /// Count a caption that several pictures have for its own picture only, as LAVIS does
    #[arg(long)]
    own_captions_only: bool,
}

#[derive(Debug, Args)]
struct VqaArgs {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    generation: GenerationArgs,
    /// Take the likeliest of the answers in this file, one per line, instead of generating; `choices`: of each
    /// question's own
    #[arg(long, value_name = "FILE|choices")]
    candidates: Option<PathBuf>,
    /// With --candidates: compare log-likelihoods per token
    #[arg(long, requires = "candidates")]
    per_token: bool,
    /// How answers are scored
    #[arg(long, value_enum, default_value = "vqa")]
    rule: RuleArg,
    /// Give questions to the model as written, not cleaned as LAVIS does
    #[arg(long)]
    no_clean: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RuleArg {
    /// VQAv2 and OK-VQA: ten answers
    Vqa,
    /// A-OKVQA direct answers
    Aokvqa,
    /// GQA: one answer
    Gqa,
}

#[derive(Debug, Args)]
struct ItmArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Captions of other pictures drawn for each caption
    #[arg(long, default_value_t = 1)]
    negatives: usize,
    /// Keys the draw
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Give captions to the model as written, not cleaned as LAVIS does
    #[arg(long)]
    no_clean: bool,
    /// Tokens kept of a caption
    #[arg(long, default_value_t = 35)]
    max_length: usize,
}

#[derive(Debug, Args)]
struct MergeArgs {
    /// Folder that the processes wrote to
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Best and worst cases on the page, each
    #[arg(long, default_value_t = 24)]
    cases: usize,
    /// Decode threads; 0 is one per processor
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// A verb's settings once the model is known.
trait Settle {
    fn run(&self) -> &RunArgs;
    fn task<B: Kernels>(&self, session: &Session<B>) -> Result<Task>;
}

impl Settle for CaptionArgs {
    fn run(&self) -> &RunArgs {
        &self.run
    }

    fn task<B: Kernels>(&self, session: &Session<B>) -> Result<Task> {
        let generation = self
            .generation
            .options(session.generation.as_ref(), session.architecture()?, false);
        Ok(Task::Caption(CaptionTask {
            prompt: self.generation.prompt(false),
            generation,
        }))
    }
}

impl Settle for VqaArgs {
    fn run(&self) -> &RunArgs {
        &self.run
    }

    fn task<B: Kernels>(&self, session: &Session<B>) -> Result<Task> {
        let answers = match &self.candidates {
            None => AnswerBy::Generate(self.generation.options(
                session.generation.as_ref(),
                session.architecture()?,
                true,
            )),
            Some(file) => AnswerBy::Rank {
                candidates: candidates(file)?,
                per_token: self.per_token,
            },
        };
        Ok(Task::Vqa(VqaTask {
            prompt: self.generation.prompt(true),
            clean: !self.no_clean,
            answers,
            rule: match self.rule {
                RuleArg::Vqa => Rule::Vqa,
                RuleArg::Aokvqa => Rule::AOkvqa,
                RuleArg::Gqa => Rule::Gqa,
            },
        }))
    }
}

/// One answer per line; none for `choices`.
fn candidates(file: &Path) -> Result<Vec<String>> {
    if file.as_os_str() == "choices" {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("--candidates {}", file.display()))?;
    let lines: Vec<String> = text
        .lines()
        .map(|l| l.trim().to_owned())
        .filter(|l| !l.is_empty())
        .collect();
    if lines.is_empty() {
        bail!("--candidates {}: no answers; write one per line", file.display());
    }
    Ok(lines)
}

impl Settle for ItmArgs {
    fn run(&self) -> &RunArgs {
        &self.run
    }

    fn task<B: Kernels>(&self, _: &Session<B>) -> Result<Task> {
        if self.negatives == 0 {
            bail!("--negatives 0: accuracy needs pairs that do not match; give at least 1");
        }
        Ok(Task::Itm(ItmTask {
            negatives: self.negatives,
            seed: self.seed,
            clean: !self.no_clean,
            max_length: self.max_length,
        }))
    }
}

impl Settle for RetrievalArgs {
    fn run(&self) -> &RunArgs {
        &self.run
    }

    fn task<B: Kernels>(&self, _: &Session<B>) -> Result<Task> {
        Ok(Task::Retrieval(RetrievalTask {
            k: self.k,
            clean: !self.no_clean,
            max_length: self.max_length,
            shared: !self.own_captions_only,
        }))
    }
}

/// Runs `eval`.
///
/// # Errors
/// What the data, the model or the files gave.
pub fn run(args: EvalArgs) -> Result<()> {
    let expected = args.expected.as_deref();
    match &args.command {
        None => show_expected(expected, args.out.as_deref(), args.json),
        Some(_) if args.out.is_some() => {
            bail!("write --out behind the verb: `eval caption DATA --model DIR --out DIR`")
        }
        Some(EvalCommand::Caption(verb)) => evaluate(verb, expected, args.json),
        Some(EvalCommand::Vqa(verb)) => evaluate(verb, expected, args.json),
        Some(EvalCommand::Itm(verb)) => evaluate(verb, expected, args.json),
        Some(EvalCommand::Retrieval(verb)) => evaluate(verb, expected, args.json),
        Some(EvalCommand::Merge(verb)) => {
            publish(&verb.folder, expected, verb.threads, verb.cases, args.json)
        }
    }
}

fn show_expected(recipe: Option<&str>, out: Option<&Path>, json: bool) -> Result<()> {
    let Some(recipe) = recipe else {
        bail!("name a verb (caption, retrieval, merge) or --expected RECIPE; see `blip2-train eval --help`");
    };
    let report: Option<Report> = match out {
        Some(folder) => {
            let path = folder.join("scores.json");
            let text = std::fs::read(&path).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
            Some(serde_json::from_slice(&text).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?)
        }
        None => None,
    };
    if expected::of_recipe(recipe).next().is_none() {
        bail!("{}", expected::table(recipe, &[]));
    }
    let measured = report.map(|r| r.scores).unwrap_or_default();
    let rows: Vec<serde_json::Value> = expected::of_recipe(recipe)
        .flat_map(|row| {
            row.figures.iter().map(|(metric, published)| {
                let found = measured.iter().find(|s| s.metric == *metric).map(|s| s.value);
                serde_json::json!({"metric": metric, "published": published, "measured": found,
                    "source": row.source.to_string(), "data": row.data})
            })
        })
        .collect();
    print(json, &rows, || expected::table(recipe, &measured))
}

fn evaluate<S: Settle>(verb: &S, expected: Option<&str>, json: bool) -> Result<()> {
    let kind = BackendKind::choose(verb.run().device.backend.as_deref())?;
    with_backend!(kind, B => {
        evaluate_on::<B, S>(verb, expected, json, &B::select_device(verb.run().device.device))
    })
}

fn evaluate_on<B: Kernels, S: Settle>(
    verb: &S,
    expected: Option<&str>,
    json: bool,
    device: &B::Device,
) -> Result<()> {
    let run = verb.run();
    known_recipe(expected)?;
    let share = share(run)?;
    let folder = run.device.folder(&run.model)?;
    let session = run.device.open::<B>(&folder, device)?;
    let config = RunConfig {
        task: verb.task(&session)?,
        recipe: expected.map(str::to_owned),
        data: run.data.config(false),
        select: Selection {
            keys: run.keys.clone(),
            limit: run.limit,
            on_white: run.on_white,
        },
    };
    let effort = Effort {
        batch: run.batch,
        threads: run.threads,
        share,
        quiet: run.quiet,
    };
    let mut runner = Runner::open(session, &folder, &config, &run.out, effort)?;
    config.task.run(&mut runner)?;
    runner.folder.tick()?;
    drop(runner);
    if share.world > 1 {
        if !run.quiet {
            let out = run.out.display();
            eprintln!(
                "rank {} of {} is done; when all are: blip2-train eval merge {out}",
                share.rank, share.world
            );
        }
        return Ok(());
    }
    publish(&run.out, expected, run.threads, run.cases, json)
}

fn known_recipe(recipe: Option<&str>) -> Result<()> {
    match recipe {
        Some(recipe) if expected::of_recipe(recipe).next().is_none() => {
            bail!("{}", expected::table(recipe, &[]))
        }
        _ => Ok(()),
    }
}

fn publish(folder: &Path, expected: Option<&str>, threads: usize, cases: usize, json: bool) -> Result<()> {
    known_recipe(expected)?;
    let (report, notes) = finish(folder, expected.map(str::to_owned), threads, cases)?;
    notes.iter().for_each(|note| eprintln!("note: {note}"));
    print(json, &report, || text(&report, folder))
}

fn text(report: &Report, folder: &Path) -> String {
    let mut lines = vec![format!(
        "{} of {}: {} items",
        report.task, report.recipe, report.items
    )];
    if report.skipped > 0 {
        lines.push(format!(
            "{} samples could not be read and are left out",
            report.skipped
        ));
    }
    match expected::of_recipe(&report.recipe).next() {
        Some(_) => lines.push(expected::table(&report.recipe, &report.scores)),
        None => lines.extend(
            report
                .scores
                .iter()
                .map(|s| format!("{:<14} {:>8.2}", s.metric, s.value)),
        ),
    }
    lines.push(format!(
        "{:.1} s; {}",
        report.wall_seconds,
        folder.join("index.html").display()
    ));
    lines.join("\n")
}

fn share(run: &RunArgs) -> Result<Share> {
    let variable = |name: &str| -> Result<Option<usize>> {
        match std::env::var(name) {
            Err(_) => Ok(None),
            Ok(text) => match text.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => {
                    bail!("the variable {name} is `{text}`; it must be a number, or use --rank and --world")
                }
            },
        }
    };
    let (rank, world) = match (run.rank, run.world) {
        (None, None) => (
            variable("RANK")?.unwrap_or(0),
            variable("WORLD_SIZE")?.unwrap_or(1),
        ),
        (rank, world) => (rank.unwrap_or(0), world.unwrap_or(1)),
    };
    if rank >= world {
        bail!("rank {rank} of {world} processes: ranks go from 0 to one below --world");
    }
    Ok(Share { rank, world })
}
