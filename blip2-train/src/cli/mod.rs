//! Command line: one file per verb. Results go to stdout (with `--json` as JSON), everything else to stderr. Bad
//! input ends with exit code 2 and a sentence that names the thing and the remedy.

mod capfilt;
mod data;
mod eval;
mod generation;
mod launch;
mod model;
mod plan;
mod report;
mod share;
mod source;
mod train;

use std::io::Write;
use std::process::ExitCode;

use crate::say::say;
use blip2_model::sentence::sentence;
use clap::{Parser, Subcommand};
use serde::Serialize;

/// Train and evaluate BLIP-2, and look after its data.
#[derive(Debug, Parser)]
#[command(name = "blip2-train", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  blip2-train train recipe.toml --dry-run
  blip2-train train recipe.toml --out runs/first --set train.batch_size=16
  blip2-train export runs/first --out model --dtype f16
  blip2-train data stats \"shards/{000..012}.tar\"
  blip2-train data inspect photos/ --out sheet.png
  blip2-train eval caption test.tar --model DIR --out runs/caption";

#[derive(Debug, Subcommand)]
enum Command {
    /// Train as a recipe says, or go on with a run
    Train(train::TrainArgs),
    /// Write a run's model as a complete Hugging Face folder
    Export(train::ExportArgs),
    /// Predict memory, communication and step time of a recipe on a cluster
    Plan(plan::PlanArgs),
    /// Run a command in several processes of this machine
    Launch(launch::LaunchArgs),
    /// Draw the curves of a run into its report.html
    Report(report::ReportArgs),
    /// Turn a LAVIS training YAML into a recipe
    ImportLavis(report::ImportArgs),
    /// Look at, check, convert and measure data sets
    Data(data::DataArgs),
    /// Measure a model: published metrics from a model folder and a data set
    Eval(Box<eval::EvalArgs>),
}

/// A result on standard output, as JSON or as text.
fn print(json: bool, value: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    let text = if json {
        serde_json::to_string_pretty(value)?
    } else {
        text().trim_end().to_owned()
    };
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()), // `| head` has seen enough
        other => Ok(other?),
    }
}

/// Parses the arguments, runs the verb, and turns an error into a sentence.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Train(args) => train::train(&args),
        Command::Export(args) => train::export(&args),
        Command::Plan(args) => plan::plan(&args),
        Command::Launch(args) => launch::launch(&args),
        Command::Report(args) => report::report(&args),
        Command::ImportLavis(args) => report::import(&args),
        Command::Data(args) => data::run(args),
        Command::Eval(args) => eval::run(*args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("error: {}", sentence(error.as_ref())));
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let path = std::path::Path::new("no/such.toml");
        let error = crate::recipe::Recipe::open(path, &[]).unwrap_err();
        let text = sentence(anyhow::Error::new(error).context("rank 1").as_ref());
        assert_eq!(text.matches("os error 2").count(), 1, "{text}");
        assert!(text.starts_with("rank 1: no/such.toml: "), "{text}");
    }
}
