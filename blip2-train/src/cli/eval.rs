//! `eval caption | vqa | retrieval | itm | merge`: arguments and printing; the work is in [`crate::eval::run`].

mod args;
mod candidates;
mod checkpoint;
mod settle;

use std::path::Path;

use anyhow::{Result, bail};
use blip2_model::backend::BackendKind;
use blip2_model::nn::Kernels;
use blip2_model::with_backend;

pub use self::args::EvalArgs;
use self::args::{BadArgs, EvalCommand};
use self::settle::Settle;
use super::print;
use crate::eval::expected;
use crate::eval::results::Report;
use crate::eval::run::pictures::Selection;
use crate::eval::run::publish::finish;
use crate::eval::run::{Effort, RunConfig, Runner};
use crate::say::say;

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
        Some(EvalCommand::Merge(verb)) => publish(
            &verb.folder,
            expected,
            verb.threads,
            verb.cases,
            &verb.bad,
            args.json,
        ),
    }
}

fn show_expected(recipe: Option<&str>, out: Option<&Path>, json: bool) -> Result<()> {
    let Some(recipe) = recipe else {
        bail!(
            "name a verb (caption, vqa, retrieval, itm, merge) or --expected RECIPE; see `blip2-train eval --help`"
        );
    };
    let report: Option<Report> = match out {
        Some(folder) => {
            let path = folder.join("scores.json");
            let text = std::fs::read(&path).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
            Some(serde_json::from_slice(&text).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?)
        }
        None => None,
    };
    known_recipe(Some(recipe))?;
    let measured = report.as_ref().map_or(&[][..], |report| &report.scores);
    let rows: Vec<serde_json::Value> = expected::lines(recipe, measured)
        .into_iter()
        .map(|line| {
            serde_json::json!({"metric": line.metric, "published": line.published.map(|(value, _)| value),
                "measured": line.measured, "source": line.published.map(|(_, row)| row.source.to_string()),
                "data": line.published.map(|(_, row)| row.data)})
        })
        .collect();
    if let (true, Some(report)) = (json, &report) {
        say_notes(expected::notes(recipe, report));
    }
    print(json, &rows, || expected::table(recipe, report.as_ref()))
}

/// On standard error, for results that are for a program.
fn say_notes(notes: Vec<String>) {
    notes.iter().for_each(|note| say(format_args!("note: {note}")));
}

fn evaluate<S: Settle>(verb: &S, expected: Option<&str>, json: bool) -> Result<()> {
    let kind = BackendKind::choose(verb.run().device.backend.as_deref())?;
    with_backend!(kind, B => {
        evaluate_on::<B, S>(verb, expected, json, &verb.run().device.select::<B>()?)
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
    let share = run.share.share()?;
    let folder = run.device.folder(&run.model)?;
    let session = checkpoint::open::<B>(run, &folder, device)?;
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
        max_bad: run.bad.max_bad,
    };
    let mut runner = Runner::open(session, &folder, &config, &run.out, effort)?;
    config.task.run(&mut runner)?;
    runner.folder.note_time()?;
    drop(runner);
    if share.world > 1 {
        if !run.quiet {
            let out = run.out.display();
            say(format_args!(
                "rank {} of {} is done; when all are: blip2-train eval merge {out}",
                share.rank, share.world
            ));
        }
        return Ok(());
    }
    publish(&run.out, expected, run.threads, run.cases, &run.bad, json)
}

fn known_recipe(recipe: Option<&str>) -> Result<()> {
    match recipe {
        Some(recipe) if expected::of_recipe(recipe).next().is_none() => {
            bail!("{}", expected::table(recipe, None))
        }
        _ => Ok(()),
    }
}

fn publish(
    folder: &Path,
    expected: Option<&str>,
    threads: usize,
    cases: usize,
    bad: &BadArgs,
    json: bool,
) -> Result<()> {
    known_recipe(expected)?;
    let (report, notes) = finish(folder, expected.map(str::to_owned), threads, cases, bad.max_bad)?;
    say_notes(notes);
    if json {
        say_notes(expected::notes(&report.recipe, &report));
    }
    print(json, &report, || text(&report, folder))
}

fn text(report: &Report, folder: &Path) -> String {
    let mut lines = vec![format!(
        "{} of {}: {} items",
        report.task, report.recipe, report.items
    )];
    if report.skipped > 0 {
        lines.push(format!(
            "{} samples could not be used and are left out; skipped.N.jsonl and the page name them",
            report.skipped
        ));
    }
    match expected::of_recipe(&report.recipe).next() {
        Some(_) => lines.push(expected::table(&report.recipe, Some(report))),
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
