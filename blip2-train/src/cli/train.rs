//! `train RECIPE` and `export RUN`: arguments and printing; the work is in [`crate::recipe`].

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use blip2_model::backend::{BackendKind, SelectDevice};
use blip2_model::nn::Kernels;
use blip2_model::weights::DType;
use blip2_model::with_backend;
use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::BalancedCheckpointing;
use clap::{Args, ValueEnum};

use super::share::device;
use crate::distributed::linked::Linked;
use crate::distributed::local;
use crate::distributed::world::World;
use crate::distributed::{Collective, Single};
use crate::recipe::start::{self, Ended, Environment, Estimate};
use crate::recipe::{Recipe, export, origins};
use crate::run::Interrupt;
use crate::run::progress::Show;
use crate::say::say;

/// Arguments of `train`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct TrainArgs {
    /// Recipe (TOML); paths in it count from the working directory
    pub recipe: PathBuf,
    /// Change a value of the recipe; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Folder of the run; one that holds checkpoints is continued [default: runs/NAME]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Backend of this build; default: the first one compiled in
    #[arg(long)]
    pub backend: Option<String>,
    /// Device of the backend [default: LOCAL_RANK in a group of processes, else 0]
    #[arg(long)]
    pub device: Option<usize>,
    /// Several devices of this machine, a rank on each, in this one process: 0,1,2,3
    #[arg(long, value_delimiter = ',', conflicts_with = "device")]
    pub devices: Vec<usize>,
    /// With --devices, sums over them by NCCL instead of through main memory (CUDA)
    #[arg(long, requires = "devices")]
    pub nccl: bool,
    /// Print parameters, memory, steps and the time it would take after three timed steps; write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// Nothing on standard error
    #[arg(long)]
    pub quiet: bool,
    /// Full-screen curves of losses, rates and times while it trains (needs a build with `--features dashboard`)
    #[arg(long, conflicts_with_all = ["quiet", "dry_run"])]
    pub dashboard: bool,
}

impl TrainArgs {
    fn show(&self) -> Result<Show> {
        if self.dashboard && !cfg!(feature = "dashboard") {
            bail!("this build has no dashboard; build with --features dashboard, or leave --dashboard out");
        }
        Ok(match (self.quiet, self.dashboard) {
            (true, _) => Show::Nothing,
            (_, true) => Show::Dashboard,
            _ => Show::Progress,
        })
    }
}

const EXAMPLES: &str = "Examples:
  blip2-train train assets/recipes/pretrain_stage1.toml --dry-run
  blip2-train train recipe.toml --out runs/first --set train.batch_size=16 --set schedule.max_iters=1000
  blip2-train train recipe.toml --out runs/first          (again: goes on where it stopped)
  blip2-train train recipe.toml --devices 0,1,2,3         (a rank on each; batch_size is that of one rank)

The run folder holds recipe.toml, metrics.jsonl, tensorboard/, checkpoints/, and at the end report.html and
export/, a complete model for `blip2 caption --model RUN/export`. Ctrl-C finishes the step, saves and exits.";

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Folder of a run, or one of its checkpoints
    pub run: PathBuf,
    /// Folder to write
    #[arg(long)]
    pub out: PathBuf,
    /// Dtype of all tensors [default: frozen parts as they are, trained ones f32]
    #[arg(long)]
    pub dtype: Option<FileDtype>,
}

/// Dtype of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileDtype {
    /// 4 bytes
    F32,
    /// 2 bytes, 5 exponent bits
    F16,
    /// 2 bytes, 8 exponent bits
    Bf16,
}

/// `train`
pub(super) fn train(args: &TrainArgs) -> Result<()> {
    match World::from_env()? {
        Some(world) if !args.devices.is_empty() => bail!(
            "--devices starts all ranks in one process, but a launcher started {} already; use one or the other",
            world.size
        ),
        Some(world) => train_as(args, Some(&world)).with_context(|| format!("rank {}", world.rank)),
        None if args.devices.is_empty() => train_as(args, None),
        None => train_on(args, &args.devices),
    }
}

/// What a dry run of a recipe finds, in one process.
pub(super) fn estimate(recipe: &Path, set: &[String], backend: Option<&str>) -> Result<Box<Estimate>> {
    let recipe = Recipe::open(recipe, set)?;
    let kind = BackendKind::choose(backend)?;
    let ended = with_backend!(kind, B => {
        let env = Environment {
            folder: PathBuf::new(), // nothing is written
            collective: &Single as &dyn Collective<B>,
            interrupt: Interrupt::new(),
            dry_run: true,
            show: Show::Nothing,
        };
        dispatch::<B>(&recipe, &env, &B::select_device(0))?
    });
    match ended {
        Ended::Estimated(estimate) => Ok(estimate),
        Ended::Finished(_) | Ended::Interrupted(_) => bail!("a dry run trained"),
    }
}

/// As one process, or as one of several.
fn train_as(args: &TrainArgs, world: Option<&World>) -> Result<()> {
    let recipe = Recipe::open(&args.recipe, &args.set)?;
    let kind = BackendKind::choose(args.backend.as_deref())?;
    let ended = with_backend!(kind, B => {
        let device = B::open_device(device(args.device)?)?;
        let collective = join::<B>(world)?;
        let env = environment(args, &recipe, collective.as_ref(), interrupt(args)?)?;
        dispatch::<B>(&recipe, &env, &device)?
    });
    match world {
        Some(world) if world.rank > 0 => Ok(()),
        _ => report(args, &ended),
    }
}

/// As one process with a rank on each of several devices.
fn train_on(args: &TrainArgs, numbers: &[usize]) -> Result<()> {
    let recipe = Recipe::open(&args.recipe, &args.set)?;
    let kind = BackendKind::choose(args.backend.as_deref())?;
    let interrupt = interrupt(args)?;
    let ended = with_backend!(kind, B => local::try_run(numbers.len(), |me| {
        let number = numbers[Collective::<B>::rank(me)];
        let rank = || -> Result<Ended> {
            let device = B::open_device(number)?;
            let linked = args.nccl.then(|| Linked::<B>::new(me, numbers)).transpose()?;
            let collective = linked.as_ref().map_or(me as &dyn Collective<B>, |linked| linked);
            let env = environment(args, &recipe, collective, interrupt.clone())?;
            dispatch::<B>(&recipe, &env, &device)
        };
        rank().with_context(|| format!("device {number}"))
    }))?;
    report(args, &ended[0])
}

fn interrupt(args: &TrainArgs) -> Result<Interrupt> {
    Ok(match args.dry_run {
        true => Interrupt::new(),
        false => Interrupt::on_signals()?,
    })
}

fn environment<'a, B: Kernels>(
    args: &TrainArgs,
    recipe: &Recipe,
    collective: &'a dyn Collective<B>,
    interrupt: Interrupt,
) -> Result<Environment<'a, B>> {
    Ok(Environment {
        folder: args
            .out
            .clone()
            .unwrap_or_else(|| Path::new("runs").join(recipe.title())),
        collective,
        interrupt,
        dry_run: args.dry_run,
        show: args.show()?,
    })
}

#[cfg(feature = "cluster")]
fn join<B: Kernels>(world: Option<&World>) -> Result<Box<dyn Collective<B>>> {
    use crate::distributed::cluster::{Cluster, Patience};
    Ok(match world {
        None => Box::new(Single),
        Some(world) => Box::new(Cluster::<B>::connect(world, Patience::default())?),
    })
}

#[cfg(not(feature = "cluster"))]
fn join<B: Kernels>(world: Option<&World>) -> Result<Box<dyn Collective<B>>> {
    match world {
        None => Ok(Box::new(Single)),
        Some(world) => bail!(
            "{} processes were started, but this build trains in one; rebuild with `--features cluster`",
            world.size
        ),
    }
}

/// The backend's autodiff wrapper: activations kept, or computed again.
fn dispatch<B: Kernels>(recipe: &Recipe, env: &Environment<'_, B>, device: &B::Device) -> Result<Ended> {
    Ok(match recipe.train.activation_checkpointing {
        true => start::run::<Autodiff<B, BalancedCheckpointing>>(recipe, env, device)?,
        false => start::run::<Autodiff<B>>(recipe, env, device)?,
    })
}

fn report(args: &TrainArgs, ended: &Ended) -> Result<()> {
    match ended {
        Ended::Finished(export) if args.json => {
            println!("{}", serde_json::json!({ "finished": true, "export": export }));
        }
        Ended::Finished(export) => println!("{}", export.display()),
        Ended::Interrupted(step) if args.json => {
            println!("{}", serde_json::json!({ "finished": false, "step": step }));
        }
        Ended::Interrupted(0) => {
            say(
                "stopped before the first step; features that are computed are kept, and the same command goes on",
            );
        }
        Ended::Interrupted(step) => {
            say(format_args!(
                "stopped after step {step}, which is saved; the same command goes on"
            ));
        }
        Ended::Estimated(estimate) if args.json => println!("{}", serde_json::to_string(estimate)?),
        Ended::Estimated(estimate) => print!("{}", describe(estimate)),
    }
    Ok(())
}

/// An estimate as text.
fn describe(e: &Estimate) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    line(format!(
        "{:<40} {:>14} {:>11} {:>21}",
        "part", "parameters", "weights", "gradients and moments"
    ));
    for p in &e.parts {
        let state = if p.trains { "" } else { " (frozen)" };
        line(format!(
            "{:<40} {:>14} {:>7.3} GiB {:>17.3} GiB",
            format!("{}{state}", p.part),
            grouped(p.parameters),
            gib(p.weight_bytes),
            gib(p.optimizer_bytes)
        ));
    }
    let trained: usize = e.parts.iter().filter(|p| p.trains).map(|p| p.parameters).sum();
    line(format!("{:<40} {:>14}", "trained in all", grouped(trained)));
    for g in &e.groups {
        let decay = if g.decay { "weight decay" } else { "no decay" };
        line(format!(
            "group: {decay}, learning rate x {:.4}: {} tensors, {} parameters",
            g.lr_scale,
            g.tensors,
            grouped(g.parameters)
        ));
    }
    let epochs = match (e.steps_per_epoch, e.epochs) {
        (Some(per), Some(epochs)) => format!(", {per} to an epoch: {epochs:.2} epochs"),
        _ => String::new(),
    };
    line(format!("steps: {}{epochs}", grouped(e.steps as usize)));
    line(format!(
        "samples: {} a step, {} in all; about {:.3e} predicted tokens in all",
        e.samples_per_step,
        grouped((e.samples_per_step * e.steps) as usize),
        e.target_tokens
    ));
    let losses: Vec<_> = e
        .losses
        .iter()
        .map(|(name, loss)| format!("{name} {loss:.4}"))
        .collect();
    line(format!("losses now: {}", losses.join(", ")));
    line(format!(
        "time: {:.3} s a step (mean of two after one to warm up), {:.2} GFLOP/s; {} for the run",
        e.seconds_per_step,
        e.flops_per_step / e.seconds_per_step / 1e9,
        duration(e.total_seconds)
    ));
    line(format!(
        "data: the loader alone gives {:.1} samples/s, the steps take {:.1}: {:.1} times as many",
        e.supply.loader_samples_per_second, e.supply.step_samples_per_second, e.supply.ratio
    ));
    if let Some(peak) = e.peak_bytes {
        line(format!("main memory at most so far: {:.2} GiB", gib(peak)));
    }
    if let Some(expected) = &e.expected {
        line(format!(
            "published: {}",
            toml::to_string(expected)
                .unwrap_or_default()
                .trim()
                .replace('\n', "; ")
        ));
    }
    out
}

/// Digits in groups of three.
fn grouped(value: usize) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

/// `export`
pub(super) fn export(args: &ExportArgs) -> Result<()> {
    let dtype = args.dtype.map(|dtype| match dtype {
        FileDtype::F32 => DType::F32,
        FileDtype::F16 => DType::F16,
        FileDtype::Bf16 => DType::BF16,
    });
    let found = if args.run.join(crate::run::checkpoint::STATE).is_file() {
        crate::run::checkpoint::load_state(&args.run)?
    } else if args.run.join("checkpoints").is_dir() {
        origins::checkpoint_of(&args.run)?
    } else {
        bail!(
            "{} is neither a run nor a checkpoint; give the folder that `train --out` wrote",
            args.run.display()
        );
    };
    let kind = BackendKind::choose(None)?;
    let written = with_backend!(kind, B => export::export::<B>(&found, &args.out, dtype));
    let written = written.with_context(|| args.run.display().to_string())?;
    for path in written {
        eprintln!("wrote {}", path.display());
    }
    println!("{}", args.out.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(grouped(186_705_470), "186,705,470");
        assert_eq!(grouped(1000), "1,000");
        assert_eq!(grouped(12), "12");
        assert_eq!(duration(90.0), "90 s");
        assert_eq!(duration(86_400.0 * 6.0), "6.0 days");
    }
}
