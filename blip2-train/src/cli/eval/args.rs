//! Arguments of `eval`.
#![allow(missing_docs)]

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::super::generation::GenerationArgs;
use super::super::model::DeviceArgs;
use super::super::share::ShareArgs;
use super::super::source::SourceSelect;
use crate::eval::run::bad::MAX_BAD;

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
    pub command: Option<EvalCommand>,
}

const EXAMPLES: &str = "Examples:
  blip2-train eval caption \"shards/{000..004}.tar\" --model DIR --out runs/caption
  blip2-train eval caption dataset_coco.json --images coco/ --split test --model Salesforce/blip2-opt-2.7b-coco \\
      --out runs/coco --expected caption_coco_opt2.7b
  blip2-train eval vqa questions.json --answers annotations.json --images coco/ --model DIR --out runs/vqa
  blip2-train eval retrieval test.tar --model DIR --out runs/retrieval --k 128
  blip2-train eval itm pairs.jsonl --labelled --images pictures/ --model DIR --out runs/itm
  blip2-train eval --expected ret_coco --out runs/retrieval

A killed run goes on when it is started again with the same arguments. Several processes (`blip2-train launch --nproc N -- eval ...`,
srun, torchrun, or --rank R --world W) share one --out folder; `eval merge` then scores it.

METEOR and SPICE are not computed: METEOR's paraphrase and WordNet tables come without a licence, SPICE needs a parser.
`eval caption` writes what their own programs read: references.json with predictions.json, and spice.json.";

#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// Caption pictures; BLEU, ROUGE-L, CIDEr and exact matches
    Caption(CaptionArgs),
    /// Answer questions; official accuracy
    Vqa(VqaArgs),
    /// Tell captions of a picture from others; accuracy, AUC and average precision
    Itm(ItmArgs),
    /// Find captions for pictures and pictures for captions; recall at 1, 5 and 10
    Retrieval(RetrievalArgs),
    /// Score a folder that several processes have filled
    Merge(MergeArgs),
}

/// What every evaluation needs.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub data: SourceSelect,
    /// Folder of a checkpoint, or the id of one on the hub
    #[arg(long, value_name = "DIR|HUB_ID")]
    pub model: String,
    /// Folder for predictions.json, scores.json, index.html and what a later start goes on from
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Evaluate only the pictures in this file: one key or picture id per line
    #[arg(long, value_name = "FILE")]
    pub keys: Option<PathBuf>,
    /// Evaluate only so many pictures, from the beginning
    #[arg(long)]
    pub limit: Option<usize>,
    /// Lay transparent pictures on white instead of dropping their alpha channel
    #[arg(long)]
    pub on_white: bool,
    /// Pictures, questions or pairs in a pass through the model
    #[arg(long, default_value_t = 16)]
    pub batch: usize,
    /// Decode threads; 0 is one per processor
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    #[command(flatten)]
    pub bad: BadArgs,
    #[command(flatten)]
    pub share: ShareArgs,
    /// Best and worst cases on the page, each
    #[arg(long, default_value_t = 24)]
    pub cases: usize,
    /// No notes on stderr
    #[arg(long)]
    pub quiet: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// What to do about samples that cannot be used.
#[derive(Clone, Debug, Args)]
pub struct BadArgs {
    /// Stop if more than this share of the samples cannot be used, and more than 5 of them
    #[arg(long, value_name = "SHARE", default_value_t = MAX_BAD)]
    pub max_bad: f64,
}

#[derive(Debug, Args)]
pub struct CaptionArgs {
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub generation: GenerationArgs,
}

#[derive(Debug, Args)]
pub struct RetrievalArgs {
    #[command(flatten)]
    pub run: RunArgs,
    /// Best of each row and column that are ranked again by matching; 0 leaves the contrastive order
    #[arg(long, default_value_t = 128)]
    pub k: usize,
    /// Give captions to the model as written, not cleaned as LAVIS does
    #[arg(long)]
    pub no_clean: bool,
    /// Tokens kept of a caption
    #[arg(long, default_value_t = 35)]
    pub max_length: usize,
    /// Count equal captions of other pictures as right too; not comparable with published figures
    #[arg(long)]
    pub shared_captions: bool,
}

#[derive(Debug, Args)]
pub struct VqaArgs {
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub generation: GenerationArgs,
    /// Take the likeliest of the answers in this file, one per line or a JSON list (LAVIS's answer_list.json), instead
    /// of generating; `choices`: of each question's own
    #[arg(long, value_name = "FILE|choices")]
    pub candidates: Option<PathBuf>,
    /// With --candidates: compare log-likelihoods per token
    #[arg(long, requires = "candidates")]
    pub per_token: bool,
    /// How answers are scored [default: as --format says, gqa for gqa and vg_vqa, aokvqa for aok_vqa; else vqa]
    #[arg(long, value_enum)]
    pub rule: Option<RuleArg>,
    /// Bring the words of an answer back to a base form before it is scored (for OK-VQA, whose answers are stemmed)
    ///
    /// A word that no human answer of the data set holds is replaced by the first form that one does hold, out of those
    /// that WordNet's suffix rules for nouns (dogs: dog) and then verbs (riding: ride) give. What LAVIS does here needs
    /// tables that are not part of this program: spaCy's en_core_web_sm decides by a trained tagger which words are nouns
    /// or verbs, and knows irregular forms (geese, ridden). Figures with this option lie near LAVIS's, they are not the
    /// same.
    #[arg(long, verbatim_doc_comment)]
    pub lemmatise: bool,
    /// Give questions to the model as written, not cleaned as LAVIS does
    #[arg(long)]
    pub no_clean: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum RuleArg {
    /// VQAv2 and OK-VQA: ten answers
    Vqa,
    /// A-OKVQA direct answers
    Aokvqa,
    /// GQA: one answer
    Gqa,
}

#[derive(Debug, Args)]
pub struct ItmArgs {
    #[command(flatten)]
    pub run: RunArgs,
    /// DATA says itself which pairs belong together: rows, JSON members of shards or parquet rows with `label` (1 or 0)
    /// beside picture and caption; nothing is drawn
    #[arg(long, conflicts_with_all = ["negatives", "seed"])]
    pub labelled: bool,
    /// Captions of other pictures drawn for each caption
    #[arg(long, default_value_t = 1)]
    pub negatives: usize,
    /// Keys the draw
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Give captions to the model as written, not cleaned as LAVIS does
    #[arg(long)]
    pub no_clean: bool,
    /// Tokens kept of a caption
    #[arg(long, default_value_t = 35)]
    pub max_length: usize,
}

#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Folder that the processes wrote to
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    #[command(flatten)]
    pub bad: BadArgs,
    /// Best and worst cases on the page, each
    #[arg(long, default_value_t = 24)]
    pub cases: usize,
    /// Decode threads; 0 is one per processor
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
}
