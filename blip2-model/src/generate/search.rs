//! What the search strategies share, and the choice between them.

use std::sync::Arc;

use super::beam::Beams;
use super::error::RowError;
use super::options::GenerateOptions;
use super::sample::Chains;
use super::{Sequence, StopReason};

/// One prompt's options, with the tokens that its rules look back at.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) options: GenerateOptions,
    /// Precedes the generated tokens; see [`super::processors`].
    pub(super) history: Vec<i64>,
}

impl Plan {
    /// Why a sequence of `new_tokens` ends with `token`, if it does.
    pub(super) fn stop(&self, token: i64, new_tokens: usize) -> Option<StopReason> {
        if self.options.is_eos(token) {
            return Some(match new_tokens {
                1 => StopReason::EosFirst,
                _ => StopReason::Eos,
            });
        }
        (new_tokens >= self.options.max_new_tokens).then_some(StopReason::Length)
    }
}

/// A token to feed next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Continuation {
    /// Which of the prompt's current logits rows it continues.
    pub(super) parent: usize,
    pub(super) token_id: i64,
}

/// A token that is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) sequence: usize,
    pub(super) token_id: i64,
    pub(super) stop: Option<StopReason>,
}

/// `log_prob / length^penalty`, the score that transformers returns for a hypothesis.
pub(super) fn length_normalised(log_prob: f32, length: usize, penalty: f64) -> f32 {
    log_prob / (length as f64).powf(penalty) as f32
}

/// How one prompt is continued.
#[derive(Debug)]
pub(super) enum Search {
    Chains(Chains),
    Beams(Box<Beams>),
}

impl Search {
    pub(super) fn new(plan: Plan, vocab: usize) -> Self {
        let plan = Arc::new(plan);
        match plan.options.num_beams {
            1 => Self::Chains(Chains::new(plan)),
            _ => Self::Beams(Box::new(Beams::new(plan, vocab))),
        }
    }

    /// Logits rows that the first [`Search::advance`] takes, all of them the prompt's.
    pub(super) fn width(&self) -> usize {
        match self {
            Self::Chains(chains) => chains.width(),
            Self::Beams(beams) => beams.width(),
        }
    }

    /// Takes the logits rows of the current continuations; no continuation in the answer means done.
    pub(super) fn advance(&mut self, rows: &[&[f32]]) -> Result<(Vec<Token>, Vec<Continuation>), RowError> {
        match self {
            Self::Chains(chains) => chains.advance(rows),
            Self::Beams(beams) => Ok((Vec::new(), beams.advance(rows)?)),
        }
    }

    pub(super) fn cancel(&mut self) {
        match self {
            Self::Chains(chains) => chains.cancel(),
            Self::Beams(beams) => beams.cancel(),
        }
    }

    pub(super) fn finish(self) -> Vec<Sequence> {
        match self {
            Self::Chains(chains) => chains.finish(),
            Self::Beams(beams) => beams.finish(),
        }
    }
}

/// A beam search over a function instead of a model, also with a single beam.
#[cfg(test)]
pub(super) fn run_as_beam_search<'a>(
    options: &GenerateOptions,
    vocab: usize,
    logits: impl Fn(&[i64]) -> &'a [f32],
) -> Vec<Sequence> {
    let plan = Plan {
        options: options.clone(),
        history: Vec::from_iter(options.decoder_start_token_id),
    };
    let mut beams = Beams::new(Arc::new(plan), vocab);
    let mut prefixes = vec![Vec::new(); beams.width()];
    while !prefixes.is_empty() {
        let rows: Vec<&[f32]> = prefixes.iter().map(|prefix| logits(prefix)).collect();
        let next = beams.advance(&rows).expect("finite logits");
        let extend = |next: &Continuation| {
            let mut prefix = prefixes[next.parent].clone();
            prefix.push(next.token_id);
            prefix
        };
        prefixes = next.iter().map(extend).collect();
    }
    beams.finish()
}
