//! `data inspect | verify | convert | stats | bench`: arguments and printing; the work is in the modules beside this one.
//!
//! Results go to standard output, as text or with `--json`; progress goes to standard error, on a terminal only.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::print;
use super::source::SourceSelect;
use crate::data::augment::Transform;
use crate::data::convert::{Target, convert};
use crate::data::facts::Histogram;
use crate::data::inspect::{SheetOptions, inspect};
use crate::data::loader::{ErrorPolicy, Loader, LoaderConfig, LoaderStart};
use crate::data::mixture::{MixtureConfig, Source};
use crate::data::output::write_file;
use crate::data::prepare::{Needs, Preparation};
use crate::data::sample::Skipped;
use crate::data::stats::{Stats, stats};
use crate::data::verify::{Duplicates, Verification, VerifyOptions, verify};

/// Look at, check, convert and measure data sets.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: DataCommand,
}

/// Verbs of `data`.
#[derive(Debug, Subcommand)]
#[non_exhaustive]
pub enum DataCommand {
    /// Draw samples with their captions into one PNG.
    Inspect(InspectArgs),
    /// Decode everything; list samples that training would skip, and duplicates.
    Verify(VerifyArgs),
    /// Write the data set as tar shards, as a folder, or as an annotation file.
    Convert(ConvertArgs),
    /// Count samples, captions, picture sizes and formats.
    Stats(StatsArgs),
    /// Measure how many images per second the training loader delivers.
    Bench(BenchArgs),
}

/// Which data set, and how to read it.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// The data set.
    #[command(flatten)]
    pub select: SourceSelect,
    /// One sample per picture, with all its captions.
    #[arg(long)]
    pub group: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl SourceArgs {
    fn open(&self) -> anyhow::Result<Source> {
        Ok(self.select.config(!self.group).open()?)
    }
}

/// What a sample must have.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum NeedsArg {
    /// A caption.
    Caption,
    /// A question.
    Question,
    /// Just the picture.
    Image,
}

impl From<NeedsArg> for Needs {
    fn from(needs: NeedsArg) -> Self {
        match needs {
            NeedsArg::Caption => Self::Caption,
            NeedsArg::Question => Self::Question,
            NeedsArg::Image => Self::Image,
        }
    }
}

/// Arguments of `data inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The data set.
    #[command(flatten)]
    pub source: SourceArgs,
    /// PNG to write.
    #[arg(short, long, default_value = "contact-sheet.png")]
    pub out: PathBuf,
    /// Samples to show.
    #[arg(short = 'n', long, default_value_t = 40)]
    pub count: usize,
    /// Pictures side by side.
    #[arg(long, default_value_t = 8)]
    pub columns: u32,
    /// Largest side of a picture on the sheet, pixels.
    #[arg(long, default_value_t = 160)]
    pub side: u32,
    /// Take samples in shuffled order of this seed instead of the first ones.
    #[arg(long)]
    pub shuffle: Option<u64>,
}

/// Arguments of `data verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The data set.
    #[command(flatten)]
    pub source: SourceArgs,
    /// What a good sample has.
    #[arg(long, value_enum, default_value = "caption")]
    pub needs: NeedsArg,
    /// Bad samples and duplicates to list of each sort.
    #[arg(long, default_value_t = 20)]
    pub list: usize,
    /// Larger pictures count as bad, pixels.
    #[arg(long, default_value_t = Preparation::default().max_pixels)]
    pub max_pixels: u64,
    /// Threads; 0 is one per processor.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
}

/// Arguments of `data stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// The data set.
    #[command(flatten)]
    pub source: SourceArgs,
    /// What a good sample has.
    #[arg(long, value_enum, default_value = "caption")]
    pub needs: NeedsArg,
    /// Threads; 0 is one per processor.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
}

/// Formats that `data convert` writes.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ToArg {
    /// WebDataset shards.
    Tar,
    /// images/ and captions.jsonl.
    Folder,
    /// annotations.json in LAVIS' form and images/.
    Json,
}

/// Arguments of `data convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// The data set.
    #[command(flatten)]
    pub source: SourceArgs,
    /// What to write.
    #[arg(long, value_enum)]
    pub to: ToArg,
    /// Folder to write to.
    #[arg(short, long)]
    pub out: PathBuf,
    /// Start of the shard names.
    #[arg(long, default_value = "shard")]
    pub prefix: String,
    /// Samples in a shard.
    #[arg(long, default_value_t = 1000)]
    pub per_shard: u32,
}

/// Arguments of `data bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The data set.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Image processor.
    #[arg(long, default_value = "blip2_image_train")]
    pub processor: String,
    /// Side of the prepared pictures, pixels.
    #[arg(long, default_value_t = 224)]
    pub size: u32,
    /// Samples in a batch.
    #[arg(long, default_value_t = 64)]
    pub batch_size: u32,
    /// Decode threads; 0 is one per processor.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Stop after so many seconds; without it after one epoch.
    #[arg(long)]
    pub seconds: Option<f64>,
}

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
    }
}

/// A counter on standard error; silent unless that is a terminal.
fn counter() -> ProgressBar {
    let style = ProgressStyle::with_template("{pos} samples, {per_sec}, {elapsed}");
    ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

fn warn(skipped: &Skipped, bar: &ProgressBar) {
    bar.suspend(|| eprintln!("skipped {skipped}"));
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
    print(args.source.json, &found, || verification_text(&found))?;
    anyhow::ensure!(
        found.good == found.seen,
        "{} of {} samples cannot be used",
        found.seen - found.good,
        found.seen
    );
    Ok(())
}

fn verification_text(found: &Verification) -> String {
    let mut text = format!("{} samples, {} good\n", found.seen, found.good);
    for (kind, count) in &found.kinds {
        text += &format!("  {kind}: {count}\n");
    }
    for bad in &found.bad {
        text += &format!("  {} `{}`: {}\n", bad.name.shard, bad.name.key, bad.reason);
    }
    let mut duplicates = |what: &str, d: &Duplicates| {
        text += &format!(
            "{what}: {} groups, {} beyond the first of each\n",
            d.groups, d.extra
        );
        for (one, other) in &d.examples {
            text += &format!(
                "  {} `{}` = {} `{}`\n",
                one.shard, one.key, other.shard, other.key
            );
        }
    };
    duplicates("same picture and caption", &found.same_pair);
    duplicates(
        "same picture",
        &Duplicates {
            examples: Vec::new(),
            ..found.same_image.clone()
        },
    );
    duplicates(
        "same caption",
        &Duplicates {
            examples: Vec::new(),
            ..found.same_caption.clone()
        },
    );
    text
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
    let done = convert(&args.source.open()?, &target, &mut |s| warn(s, &bar), &|n| {
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
    })
}

fn run_stats(args: StatsArgs) -> anyhow::Result<()> {
    let bar = counter();
    let found = stats(&args.source.open()?, args.needs.into(), args.threads, &|n| {
        bar.set_position(n)
    })?;
    bar.finish_and_clear();
    print(args.source.json, &found, || stats_text(&found))
}

fn stats_text(found: &Stats) -> String {
    let range = |h: &Histogram| {
        format!(
            "{} to {}, mean {:.1}, median {}",
            h.min,
            h.max,
            h.mean(),
            h.quantile(0.5)
        )
    };
    let mut text = format!(
        "{} samples in {} files, {:.1} MB of pictures\n",
        found.samples,
        found.shards.len(),
        found.image_bytes as f64 / 1e6
    );
    found
        .bad
        .iter()
        .for_each(|(kind, n)| text += &format!("  not usable, {kind}: {n}\n"));
    found
        .formats
        .iter()
        .for_each(|(format, n)| text += &format!("  {format}: {n}\n"));
    text += &format!(
        "width   {}\nheight  {}\n",
        range(&found.width),
        range(&found.height)
    );
    text += &format!("captions per sample  {}\n", range(&found.captions_per_sample));
    if found.questions > 0 {
        let answers = range(&found.answers_per_question);
        text += &format!("questions  {}; distinct answers  {answers}\n", found.questions);
    }
    text += &format!(
        "words per caption  {}; {} distinct captions\n",
        range(&found.caption_words),
        found.distinct_captions
    );
    let most = found.caption_words.classes.values().max().copied().unwrap_or(1);
    for (words, n) in &found.caption_words.classes {
        text += &format!(
            "{words:>4} words  {n:>9}  {}\n",
            "#".repeat((n * 50).div_ceil(most) as usize)
        );
    }
    found
        .top_captions
        .iter()
        .for_each(|(caption, n)| text += &format!("{n:>6} x  {caption}\n"));
    text
}

fn run_bench(args: BenchArgs) -> anyhow::Result<()> {
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
    let value =
        json!({"images": images, "skipped": counts.bad, "seconds": seconds, "images_per_second": rate});
    print(args.source.json, &value, || {
        format!(
            "{images} images in {seconds:.2} s, {rate:.0} images/s, {} skipped",
            counts.bad
        )
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::data::testing::picture_shards;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        data: DataArgs,
    }

    fn call(args: &[&str]) -> anyhow::Result<()> {
        run(Cli::try_parse_from([&["data"], args].concat())?.data)
    }

    #[test]
    fn every_verb_runs() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        let (dir, _) = picture_shards(&[6, 5], 0);
        let shards = format!("{}/{{0..1}}.tar", dir.path().display());
        let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        call(&["stats", &shards, "--json"]).unwrap();
        call(&["bench", &shards, "--size", "32", "--seconds", "0.01"]).unwrap();
        call(&["inspect", &shards, "-n", "4", "-o", &at("sheet.png")]).unwrap();
        assert!(image::open(at("sheet.png")).unwrap().width() > 4 * 160);
        call(&["convert", &shards, "--to", "folder", "-o", &at("out")]).unwrap();
        assert_eq!(
            call(&["verify", &at("out")]).unwrap_err().to_string(),
            "1 of 11 samples cannot be used"
        );
        assert!(call(&["stats", &at("none.json")]).is_err());
        assert!(
            call(&["stats", &shards, "--format", "nonsense"]).is_ok(),
            "formats concern annotation files only"
        );
    }
}
