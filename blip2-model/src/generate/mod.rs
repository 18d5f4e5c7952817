//! Text generation, written once against [`LanguageModel`]: greedy search, sampling, beam search and
//! beam sampling with the results of transformers 4.57, and ranking of given answers ([`ranking`]).
//!
//! Every prompt of a batch has its own options. Beams and samples of all prompts share one tensor batch;
//! what is finished leaves it, so the work shrinks. Per step one tensor crosses from device to host (the
//! logits) and two small ones back (tokens, and rows to keep when they change).

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::language::{Architecture, LanguageModel, Prompt};
use crate::nn::{Context, Kernels};

mod beam;
mod error;
mod options;
pub mod overrides;
mod presets;
pub mod processors;
pub mod ranking;
mod sample;
mod scores;
mod search;
pub mod stream;

#[cfg(all(test, feature = "flex"))]
mod tests;

pub use error::GenerateError;
pub use options::{EarlyStopping, GenerateOptions, OptionsError};
pub use presets::ImportError;
pub use stream::StreamEvent;

use search::{Continuation, Plan, Search};

/// Why a sequence ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopReason {
    /// An end token after some text.
    Eos,
    /// The very first token was an end token: the model has nothing to say to this prompt.
    EosFirst,
    /// `max_new_tokens` reached.
    Length,
    /// The callback asked for it.
    Cancelled,
}

/// One generated continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// New tokens only: no prompt, no decoder start, no padding; the end token is included.
    pub token_ids: Vec<i64>,
    /// Sum of log-probabilities / length^`length_penalty`. Of a beam search it is transformers'
    /// `sequences_scores` (after the rules); of greedy search and sampling, for which transformers has
    /// none, the log-probabilities are the model's own, before any rule.
    pub score: f32,
    /// Why it ends.
    pub stop: StopReason,
}

/// Result for one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// `num_return_sequences` of them: of a beam search best first, else in the order of their random
    /// streams. A beam search has fewer if it is cancelled, or if sampling rules leave fewer tokens of
    /// non-zero probability.
    pub sequences: Vec<Sequence>,
}

/// Callback of [`generate`].
pub type OnEvent<'a> = dyn FnMut(StreamEvent<'_>) -> ControlFlow<()> + 'a;

/// Continues `prompt` (`B` rows) under one set of options per row.
///
/// Row `i` gets what a call with row `i` alone would give. See [`GenerateOptions`] for the options and
/// [`StreamEvent`] for what `on_event` hears ([`stream::ignore`] if nobody listens).
pub fn generate<B, M>(
    model: &M,
    prompt: Prompt<B>,
    options: &[GenerateOptions],
    ctx: &Context,
    on_event: &mut OnEvent<'_>,
) -> Result<Vec<Generation>, GenerateError>
where
    B: Kernels,
    M: LanguageModel<B> + ?Sized,
{
    let unseen = vec![Vec::new(); options.len()];
    generate_after(model, prompt, &unseen, options, ctx, on_event)
}

/// As [`generate`], for a decoder-only model whose repetition rules shall look at the prompt, too.
///
/// `prompt_ids` are the ids of each row without padding. transformers' BLIP-2 class (4.48 and later)
/// behaves like this, with one image placeholder id per query in front. An encoder-decoder
/// model generates into a sequence of its own, so they are not looked at.
pub fn generate_after<B, M>(
    model: &M,
    prompt: Prompt<B>,
    prompt_ids: &[Vec<i64>],
    options: &[GenerateOptions],
    ctx: &Context,
    on_event: &mut OnEvent<'_>,
) -> Result<Vec<Generation>, GenerateError>
where
    B: Kernels,
    M: LanguageModel<B> + ?Sized,
{
    let architecture = model.architecture();
    let prompts = prompt.mask.batch();
    error::check_rows("options", prompts, options.len())?;
    error::check_rows("lists of prompt ids", prompts, prompt_ids.len())?;
    for (row, options) in options.iter().enumerate() {
        options
            .validate(architecture)
            .map_err(|source| GenerateError::Options { row, source })?;
    }
    let Some(longest) = options.iter().map(|options| options.max_new_tokens).max() else {
        return Ok(Vec::new());
    };

    let (mut state, mut logits) = model.prefill(prompt, longest, ctx);
    let vocab = logits.dims()[1];
    let mut tasks: Vec<Task> = options
        .iter()
        .zip(prompt_ids)
        .enumerate()
        .map(|(row, (options, ids))| {
            let history = match architecture {
                Architecture::DecoderOnly => ids.clone(),
                Architecture::EncoderDecoder => Vec::from_iter(options.decoder_start_token_id),
            };
            let options = options.clone();
            Task::new(row, Search::new(Plan { options, history }, vocab))
        })
        .collect();
    let mut results = vec![None; prompts];

    for step in 0.. {
        let scores = read(logits)?;
        // every task settles before the first error is picked, so that the lowest row is reported
        let advanced: Vec<_> = tasks
            .par_iter_mut()
            .map(|task| {
                let advanced = task.advance(&scores, vocab);
                advanced.map_err(|error| error.at(task.row, step))
            })
            .collect();
        for (task, advanced) in tasks.iter_mut().zip(advanced) {
            task.report(advanced?, on_event);
        }
        let (done, running) = tasks.into_iter().partition(|task| task.next.is_empty());
        tasks = running;
        for task in done {
            let (row, sequences) = (task.row, task.search.finish());
            let _ = on_event(StreamEvent::Finished {
                row,
                sequences: &sequences,
            });
            results[row] = Some(Generation { sequences });
        }
        if tasks.is_empty() {
            break;
        }
        let (rows, tokens) = regroup(&mut tasks);
        state.select(&rows);
        logits = model.step(&tokens, &mut state, ctx);
    }
    Ok(results.into_iter().flatten().collect())
}

/// One prompt on its way.
struct Task {
    row: usize,
    search: Search,
    /// Rows of the current logits that belong to it.
    lanes: Vec<usize>,
    /// What it wants to be fed next; empty when done.
    next: Vec<Continuation>,
}

impl Task {
    fn new(row: usize, search: Search) -> Self {
        Self {
            row,
            lanes: vec![row; search.width()],
            search,
            next: Vec::new(),
        }
    }

    fn advance(&mut self, scores: &[f32], vocab: usize) -> Result<Vec<search::Token>, error::RowError> {
        let rows: Vec<&[f32]> = self
            .lanes
            .iter()
            .map(|lane| &scores[lane * vocab..(lane + 1) * vocab])
            .collect();
        let (tokens, next) = self.search.advance(&rows)?;
        self.next = next;
        Ok(tokens)
    }

    fn report(&mut self, tokens: Vec<search::Token>, on_event: &mut OnEvent<'_>) {
        let row = self.row;
        let mut flow = match &self.search {
            Search::Chains(_) => ControlFlow::Continue(()),
            Search::Beams(beams) => on_event(StreamEvent::Searching {
                row,
                new_tokens: beams.new_tokens(),
            }),
        };
        for token in tokens {
            let search::Token {
                sequence,
                token_id,
                stop,
            } = token;
            let event = StreamEvent::Token {
                row,
                sequence,
                token_id,
                stop,
            };
            if on_event(event).is_break() {
                flow = ControlFlow::Break(());
            }
        }
        if flow.is_break() {
            self.search.cancel();
            self.next.clear();
        }
    }
}

/// Lays the continuations of all tasks out as the next batch: rows of the current one, and tokens.
fn regroup(tasks: &mut [Task]) -> (Vec<usize>, Vec<i64>) {
    let (mut rows, mut tokens) = (Vec::new(), Vec::new());
    for task in tasks {
        let first = rows.len();
        rows.extend(task.next.iter().map(|next| task.lanes[next.parent]));
        tokens.extend(task.next.iter().map(|next| next.token_id));
        task.lanes = (first..rows.len()).collect();
    }
    (rows, tokens)
}

/// The one transfer per step: scores to the host, row after row.
fn read<B: Kernels, const D: usize>(scores: Tensor<B, D>) -> Result<Vec<f32>, GenerateError> {
    let data = scores
        .try_into_data()
        .map_err(|source| GenerateError::Device(Box::new(source)))?;
    data.convert::<f32>()
        .into_vec()
        .map_err(|source| GenerateError::Device(Box::new(source)))
}
