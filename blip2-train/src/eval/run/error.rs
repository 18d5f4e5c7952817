//! What can end an evaluation.

use std::path::PathBuf;

use blip2_model::blip2::Blip2Error;
use blip2_model::generate::GenerateError;
use blip2_model::session::SessionError;

use crate::data::sample::DataError;
use crate::eval::EvalError;

/// See the module documentation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The data set cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model cannot be loaded, or cannot do this.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] Blip2Error),
    /// Decoding failed.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// Result files, or predictions that do not fit the annotations.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// The folder belongs to another evaluation.
    #[error(
        "{}: holds an evaluation with another {what}; choose another --out, or remove the folder to start anew",
        folder.display()
    )]
    OtherRun {
        /// The folder.
        folder: PathBuf,
        /// What differs.
        what: String,
    },
    /// Standard input passes by once.
    #[error("an evaluation reads its data more than once: give files instead of standard input")]
    Stdin,
    /// Nothing to do.
    #[error("{data}: no {what}; check the path, --split, --format and --keys")]
    Nothing {
        /// The data set.
        data: String,
        /// What is missing.
        what: &'static str,
    },
    /// Pairs that do not say whether they belong together.
    #[error(
        "{data}: sample {key} has no `label` of 0 or 1; --labelled needs samples like {{\"image\": \"a.png\", \"caption\": \"a boat\", \"label\": 1}}, without it pairs are drawn"
    )]
    Label {
        /// The data set.
        data: String,
        /// Which sample.
        key: String,
    },
    /// Names in a list that the data set does not have.
    #[error("{}: `{key}` is no key or id of the data set (and {more} more are not)", file.display())]
    UnknownKey {
        /// The list.
        file: PathBuf,
        /// The first such name.
        key: String,
        /// Further ones.
        more: usize,
    },
    /// A setting outside its range.
    #[error("{name} is {value}: {remedy}")]
    Setting {
        /// As on the command line.
        name: &'static str,
        /// As given.
        value: String,
        /// What would do.
        remedy: &'static str,
    },
    /// Processes that have not finished.
    #[error(
        "{done} of {total} are done in {}; start the unfinished processes again with the same arguments, then merge",
        folder.display()
    )]
    Incomplete {
        /// The folder.
        folder: PathBuf,
        /// Finished items.
        done: usize,
        /// All items.
        total: usize,
    },
    /// Every picture failed.
    #[error("none of the {count} pictures could be read; the last one: {last}")]
    AllBad {
        /// Pictures tried.
        count: usize,
        /// Why the last one failed.
        last: String,
    },
    /// A model path without weights.
    #[error("{}: no weights in it; give the folder of a model, or a file of weights", path.display())]
    NoModelFiles {
        /// The path.
        path: PathBuf,
    },
    /// More samples are bad than may be.
    #[error(
        "{texts} of {samples} samples have no usable text and {unreadable} of {pictures} pictures cannot be read: that is \
         {percent:.2} %, and --max-bad {most} lets pass {:.2} %; the last one: {last}; mend them, or raise --max-bad",
        100.0 * most
    )]
    TooManyBad {
        /// Samples without usable text or picture reference.
        texts: usize,
        /// Samples looked at.
        samples: usize,
        /// Pictures that cannot be read.
        unreadable: usize,
        /// Pictures to evaluate.
        pictures: usize,
        /// Both together in percent.
        percent: f64,
        /// Share that may be bad.
        most: f64,
        /// Why the last one is.
        last: String,
    },
    /// The data set of a folder that is to be scored cannot be opened.
    #[error(
        "{source}; if the data set has moved, start the evaluation again with --out {} and its new place: what is done is \
         kept",
        folder.display()
    )]
    DataGone {
        /// The folder.
        folder: PathBuf,
        /// What opening the data gave.
        source: DataError,
    },
    /// A rule that needs several answers, where no question has them.
    #[error(
        "--rule vqa compares the answers of several people, and no question of {data} has more than one: every figure would \
         be 0; use --rule gqa"
    )]
    OneAnswer {
        /// The data set.
        data: String,
    },
}
