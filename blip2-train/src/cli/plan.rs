//! `plan RECIPE`: memory, communication and time of a recipe on a cluster, by formula.

use std::path::PathBuf;

use anyhow::{Result, bail};
use blip2_model::backend::BackendKind;
use blip2_model::with_backend;
use clap::Args;

use crate::recipe::Recipe;
use crate::recipe::cost::{Plan, plan as make};
use crate::run::plan::Cluster;

/// Arguments of `plan`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PlanArgs {
    /// Recipe (TOML)
    pub recipe: PathBuf,
    /// Change a value of the recipe; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Number of processes
    #[arg(long, default_value_t = 1)]
    pub nproc: usize,
    /// TFLOP/s that one device really reaches on this work (`train --dry-run` measures it)
    #[arg(long)]
    pub tflops: f64,
    /// GB/s that one process can send while it receives as many
    #[arg(long, default_value_t = 10.0)]
    pub bandwidth: f64,
    /// Microseconds of an exchange without contents
    #[arg(long, default_value_t = 50.0)]
    pub latency: f64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "Examples:
  blip2-train plan assets/recipes/pretrain_stage1.toml --nproc 16 --tflops 120 --bandwidth 50
The formula: step time = FLOPs / rate + bytes sent / bandwidth + rounds x latency. See blip2-train/SCALING.md.";

/// `plan`
pub(super) fn plan(args: &PlanArgs) -> Result<()> {
    if args.nproc == 0 || args.tflops <= 0.0 || args.bandwidth <= 0.0 {
        bail!("--nproc, --tflops and --bandwidth are above 0");
    }
    let recipe = Recipe::open(&args.recipe, &args.set)?;
    let cluster = Cluster {
        flops: args.tflops * 1e12,
        bandwidth: args.bandwidth * 1e9,
        latency: args.latency * 1e-6,
    };
    let kind = BackendKind::choose(None)?;
    let plan = with_backend!(kind, B => make::<B>(&recipe, args.nproc, &cluster)?);
    match args.json {
        true => println!("{}", serde_json::to_string(&plan)?),
        false => print!("{}", describe(&plan)),
    }
    Ok(())
}

fn describe(plan: &Plan) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let gib = |bytes: f64| bytes / (1u64 << 30) as f64;
    let _ = writeln!(
        out,
        "{:<30} {:>6} {:>12} {:>24} {:>22}",
        "memory of one process, GiB", "dtype", "weights", "gradients and moments", "activations (estimate)"
    );
    let mut total = 0.0;
    for part in &plan.memory {
        total += part.weights + part.optimizer + part.activations;
        let _ = writeln!(
            out,
            "{:<30} {:>6} {:>12.2} {:>24.2} {:>22.2}",
            part.part,
            part.dtype,
            gib(part.weights),
            gib(part.optimizer),
            gib(part.activations)
        );
    }
    let _ = writeln!(out, "{:<30} {:>6} {:>12.2}", "in all", "", gib(total));
    for exchange in &plan.exchanges {
        let _ = writeln!(
            out,
            "summed over processes: {}, {:.4} GB x {}",
            exchange.what,
            exchange.vector_bytes / 1e9,
            exchange.times
        );
    }
    let time = &plan.time;
    let _ = writeln!(
        out,
        "one process computes {:.2} TFLOP and sends {:.3} GB in a step",
        plan.flops / 1e12,
        plan.sent_bytes / 1e9
    );
    let _ = writeln!(
        out,
        "step: {:.3} s = {:.3} computing + {:.3} sending + {:.4} waiting; {:.1} images/s on all processes",
        time.total(),
        time.compute,
        time.transfer,
        time.latency,
        (plan.shape.world * plan.shape.batch * plan.shape.accumulate) as f64 / time.total()
    );
    if let Some(steps) = plan.steps {
        let _ = writeln!(
            out,
            "run: {steps} steps, {:.2} days",
            steps as f64 * time.total() / 86_400.0
        );
    }
    out
}
