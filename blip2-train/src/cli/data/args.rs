//! Arguments of `data`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::super::capfilt::CapFiltArgs;
use super::super::source::SourceSelect;
use crate::data::mixture::Source;
use crate::data::prepare::{Needs, Preparation};

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
    /// Measure how many images per second the training loader delivers, and with a recipe how many its steps take.
    Bench(BenchArgs),
    /// Caption web pictures, score all captions, keep the best: from shards to shards (BLIP's CapFilt).
    Capfilt(Box<CapFiltArgs>),
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
    /// Opens it.
    pub fn open(&self) -> anyhow::Result<Source> {
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

const BENCH_EXAMPLES: &str = "Examples:
  blip2-train data bench \"shards/{000..012}.tar\" --size 364 --seconds 20
  blip2-train data bench recipe.toml --json

With a recipe its own data, transforms and batch size are measured, and beside them how many samples a second its
training steps take on this machine when they never wait. The aim is a ratio of 5 or more.";

/// Arguments of `data bench`.
#[derive(Debug, Args)]
#[command(after_help = BENCH_EXAMPLES)]
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
    /// DATA is a recipe: change a value of it; may be repeated.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// DATA is a recipe: backend of the training steps [default: the first one compiled in].
    #[arg(long)]
    pub backend: Option<String>,
}
