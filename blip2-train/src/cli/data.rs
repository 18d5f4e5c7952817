//! `data inspect | verify | convert | stats | bench`: arguments and printing; the work is in the modules beside this one.
//!
//! Results go to standard output, as text or with `--json`; progress goes to standard error, on a terminal only.

mod args;
mod text;

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use self::args::{BenchArgs, ConvertArgs, InspectArgs, SourceArgs, StatsArgs, ToArg, VerifyArgs};
pub use self::args::{DataArgs, DataCommand};
use self::text::{stats_text, verification_text};
use super::print;
use crate::data::augment::Transform;
use crate::data::convert::{Target, convert};
use crate::data::inspect::{SheetOptions, inspect};
use crate::data::loader::{ErrorPolicy, Loader, LoaderConfig, LoaderStart};
use crate::data::mixture::MixtureConfig;
use crate::data::output::write_file;
use crate::data::prepare::{Needs, Preparation};
use crate::data::sample::Skipped;
use crate::data::stats::stats;
use crate::data::verify::{VerifyOptions, verify};
use crate::say::say;

/// Runs one verb.
///
/// # Errors
/// What the reader or writer met, and for `verify` also the presence of bad samples.
pub fn run(args: DataArgs) -> anyhow::Result<()> {
    match args.command {
        DataCommand::Inspect(args) => run_inspect(args),
        DataCommand::Verify(args) => run_verify(args),
        DataCommand::Convert(args) => run_convert(args),
        DataCommand::Stats(args) => run_stats(args),
        DataCommand::Bench(args) => run_bench(args),
        DataCommand::Capfilt(args) => super::capfilt::run(&args),
    }
}

/// No sample to show, count or check; `first` is the reason of the first one passed over, `skipped` how many were.
fn nothing(source: &SourceArgs, skipped: u64, first: Option<&str>) -> anyhow::Error {
    let path = &source.select.path;
    match first {
        Some(first) => anyhow::anyhow!("{path}: none of {skipped} samples can be used; the first: {first}"),
        None => anyhow::anyhow!(
            "{path}: there is no sample in it; a shard holds KEY.jpg with KEY.txt or KEY.json, an annotation file a row \
             for each picture"
        ),
    }
}

/// A counter on standard error; silent unless that is a terminal.
pub(super) fn counter() -> ProgressBar {
    let style = ProgressStyle::with_template("{pos} samples, {per_sec}, {elapsed}");
    ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

pub(super) fn warn(skipped: &Skipped, bar: &ProgressBar) {
    bar.suspend(|| say(format_args!("skipped {skipped}")));
}

fn run_inspect(args: InspectArgs) -> anyhow::Result<()> {
    let options = SheetOptions {
        count: args.count,
        columns: args.columns.min(args.count.try_into().unwrap_or(u32::MAX)),
        side: args.side,
        shuffle: args.shuffle,
        ..SheetOptions::default()
    };
    let sheet = inspect(&args.source.open()?, options)?;
    if sheet.shown.is_empty() {
        let first = sheet.skipped.first().map(ToString::to_string);
        return Err(nothing(
            &args.source,
            sheet.skipped.len() as u64,
            first.as_deref(),
        ));
    }
    sheet.skipped.iter().for_each(|s| eprintln!("skipped {s}"));
    let mut png = std::io::Cursor::new(Vec::new());
    sheet.image.write_to(&mut png, image::ImageFormat::Png)?;
    write_file(&args.out, png.get_ref())?;
    let value = json!({"sheet": args.out, "samples": sheet.shown, "skipped": sheet.skipped.len()});
    print(args.source.json, &value, || {
        let mut lines = String::new();
        for s in &sheet.shown {
            let question = s.question.as_ref().map(|q| format!("Q: {}", q.text));
            let text: Vec<&str> = s
                .captions
                .iter()
                .map(String::as_str)
                .chain(question.as_deref())
                .collect();
            lines += &format!("{}  {}x{}  {}\n", s.key, s.width, s.height, text.join(" | "));
        }
        format!(
            "{lines}\n{} samples, {} skipped; see {}",
            sheet.shown.len(),
            sheet.skipped.len(),
            args.out.display()
        )
    })
}

fn run_verify(args: VerifyArgs) -> anyhow::Result<()> {
    let options = VerifyOptions {
        needs: args.needs.into(),
        max_pixels: args.max_pixels,
        threads: args.threads,
        list: args.list,
    };
    let bar = counter();
    let found = verify(&args.source.open()?, options, &|n| bar.set_position(n))?;
    bar.finish_and_clear();
    if found.seen == 0 {
        return Err(nothing(&args.source, 0, None));
    }
    print(args.source.json, &found, || verification_text(&found))?;
    anyhow::ensure!(
        found.good == found.seen,
        "{} of {} samples cannot be used",
        found.seen - found.good,
        found.seen
    );
    Ok(())
}

fn run_convert(args: ConvertArgs) -> anyhow::Result<()> {
    let folder = args.out.clone();
    let target = match args.to {
        ToArg::Tar => Target::Tar {
            folder,
            prefix: args.prefix,
            per_shard: args.per_shard,
        },
        ToArg::Folder => Target::Folder { folder },
        ToArg::Json => Target::Json { folder },
    };
    let bar = counter();
    let mut lost = Vec::new();
    let mut skipped = |skipped: &Skipped| {
        warn(skipped, &bar);
        if skipped.problem.loses_shard() {
            lost.push(skipped.to_string());
        }
    };
    let done = convert(&args.source.open()?, &target, &mut skipped, &|n| {
        bar.set_position(n)
    })?;
    bar.finish_and_clear();
    print(args.source.json, &done, || {
        let shards = if done.shards > 0 {
            format!(" in {} shards", done.shards)
        } else {
            String::new()
        };
        format!(
            "{} samples{shards} to {}, {} skipped",
            done.samples,
            args.out.display(),
            done.skipped
        )
    })?;
    if let Some(first) = lost.first() {
        anyhow::bail!(
            "{} shards could not be read to their end ({first}); what they gave is written, what is missing comes only with \
             whole shards",
            lost.len()
        );
    }
    Ok(())
}

fn run_stats(args: StatsArgs) -> anyhow::Result<()> {
    let bar = counter();
    let found = stats(&args.source.open()?, args.needs.into(), args.threads, &|n| {
        bar.set_position(n)
    })?;
    bar.finish_and_clear();
    if found.samples == 0 {
        // the most frequent reason says most
        let worst = found.bad.iter().max_by_key(|(_, count)| **count);
        let first = worst.and_then(|(kind, _)| found.reasons.get(kind));
        return Err(nothing(
            &args.source,
            found.bad.values().sum(),
            first.map(String::as_str),
        ));
    }
    print(args.source.json, &found, || stats_text(&found))
}

/// The loader of a recipe against its steps.
fn run_recipe_bench(args: &BenchArgs) -> anyhow::Result<()> {
    let recipe = std::path::Path::new(&args.source.select.path);
    let found = super::train::estimate(recipe, &args.set, args.backend.as_deref())?;
    print(args.source.json, &found.supply, || {
        let rates = &found.supply;
        format!(
            "loader alone {:.1} samples/s, training steps {:.1} samples/s: {:.1} times as many as they take{}",
            rates.loader_samples_per_second,
            rates.step_samples_per_second,
            rates.ratio,
            if rates.ratio < 5.0 {
                "; below 5: more decode threads (data.threads), smaller pictures on disk, or a feature cache"
            } else {
                ""
            }
        )
    })
}

fn run_bench(args: BenchArgs) -> anyhow::Result<()> {
    if args.source.select.path.ends_with(".toml") {
        return run_recipe_bench(&args);
    }
    anyhow::ensure!(
        args.set.is_empty() && args.backend.is_none(),
        "--set and --backend go with a recipe; `{}` is none",
        args.source.select.path
    );
    let transform = Transform::named(&args.processor, args.size)?;
    let preparation = Preparation {
        transform,
        needs: Needs::Image,
        ..Preparation::default()
    };
    let config = LoaderConfig {
        batch_size: args.batch_size,
        drop_last: false,
        threads: args.threads,
        errors: ErrorPolicy::LENIENT,
        ..LoaderConfig::default()
    };
    let mixture = MixtureConfig {
        repeat: args.seconds.is_some(),
        ..MixtureConfig::default()
    };
    let source = args.source.open()?;
    let limit = args.seconds.map(Duration::try_from_secs_f64).transpose()?;
    let (start, bar) = (Instant::now(), counter());
    let mut images = 0u64;
    let mut loader = Loader::new(&[source], &[preparation], mixture, config, LoaderStart::Epoch(0))?;
    for batch in loader.by_ref() {
        images += batch?.examples.len() as u64;
        bar.set_position(images);
        if limit.is_some_and(|l| start.elapsed() > l) {
            break;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let counts = loader.counts();
    let rate = images as f64 / seconds;
    let value = json!({"images": images, "skipped": counts.bad, "shards_lost": counts.lost, "seconds": seconds, "images_per_second": rate});
    print(args.source.json, &value, || {
        format!(
            "{images} images in {seconds:.2} s, {rate:.0} images/s, {} skipped, {} shards lost",
            counts.bad, counts.lost
        )
    })
}

#[cfg(test)]
mod tests;
