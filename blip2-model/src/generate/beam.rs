//! Beam search and beam sampling with the results of transformers 4.57
//! (`GenerationMixin._beam_search`), one prompt at a time.
//!
//! Per step, with `k` beams: the best `max(2, 1 + end tokens) k` continuations of all beams are ranked (or
//! drawn without replacement). One that ends counts as a hypothesis only if it ranks among the first `k`;
//! the best `k` that do not end are the next beams. Scores are sums of f32 log-probabilities, divided by
//! `length^length_penalty` (the end token counts) once a hypothesis is complete.

use std::sync::Arc;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::error::RowError;
use super::options::EarlyStopping;
use super::processors::Processors;
use super::scores::{self, Best, Normaliser};
use super::search::{Continuation, Plan, length_normalised};
use super::{Sequence, StopReason};

/// Score of a beam that does not exist yet: at the first step all beams but one, so that they do not
/// find the same continuations. Also the score that a hypothesis has to exceed to be kept.
const ABSENT: f32 = -1e9;

/// The beams of one prompt.
#[derive(Debug)]
pub(super) struct Beams {
    plan: Arc<Plan>,
    vocab: usize,
    /// Live hypotheses, best first; one logits row each.
    running: Vec<Hypothesis>,
    /// Complete ones, best first, at most `num_beams`; scores are length-normalised.
    complete: Vec<(Hypothesis, StopReason)>,
    new_tokens: usize,
    rng: Option<ChaCha8Rng>,
    cancelled: bool,
}

#[derive(Clone, Debug)]
struct Hypothesis {
    /// History and generated tokens.
    ids: Vec<i64>,
    score: f32,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    parent: usize,
    token_id: i64,
    score: f32,
    stop: Option<StopReason>,
}

impl Beams {
    pub(super) fn new(plan: Arc<Plan>, vocab: usize) -> Self {
        let options = &plan.options;
        let beam = |index| Hypothesis {
            ids: plan.history.clone(),
            score: if index == 0 { 0.0 } else { ABSENT },
        };
        Self {
            running: (0..options.num_beams).map(beam).collect(),
            complete: Vec::with_capacity(options.num_beams + 1),
            new_tokens: 0,
            rng: options.do_sample.then(|| ChaCha8Rng::seed_from_u64(options.seed)),
            cancelled: false,
            vocab,
            plan,
        }
    }

    pub(super) fn width(&self) -> usize {
        self.running.len()
    }

    /// Takes one logits row per running beam; no continuation means that the search is over.
    pub(super) fn advance(&mut self, rows: &[&[f32]]) -> Result<Vec<Continuation>, RowError> {
        let options = &self.plan.options;
        let ends = options.eos_token_ids.len();
        let wanted = options.num_beams * (1 + ends).max(2);
        let chosen = match self.rng.take() {
            None => self.ranked(rows, wanted)?,
            Some(mut rng) => {
                let drawn = self.drawn(rows, wanted, &mut rng);
                self.rng = Some(rng);
                drawn?
            }
        };
        if chosen.iter().all(|&(score, _)| score == f32::NEG_INFINITY) {
            return Err(RowError::NothingLeft);
        }
        self.new_tokens += 1;
        let candidates: Vec<Candidate> = chosen
            .into_iter()
            .map(|(score, index)| {
                let token_id = (index % self.vocab) as i64;
                Candidate {
                    parent: index / self.vocab,
                    token_id,
                    score,
                    stop: self.plan.stop(token_id, self.new_tokens),
                }
            })
            .collect();
        self.complete(&candidates);
        let next = self.continue_with(&candidates);
        let all_stopped = candidates.iter().all(|candidate| candidate.stop.is_some());
        if all_stopped || self.is_settled() {
            return Ok(Vec::new());
        }
        Ok(next)
    }

    /// Log-probabilities after the rules, plus the beam's own score.
    fn accumulate(&self, beam: usize, logits: &[f32]) -> Result<Vec<f32>, RowError> {
        if !scores::is_finite(logits) {
            return Err(RowError::NonFinite);
        }
        let Hypothesis { ids, score } = &self.running[beam];
        let normaliser = Normaliser::of(logits);
        let mut row: Vec<f32> = logits.iter().map(|&x| normaliser.log_prob(x)).collect();
        Processors::new(&self.plan.options).apply(ids, self.new_tokens, &mut row);
        row.iter_mut().for_each(|x| *x += score);
        Ok(row)
    }

    /// The best `wanted` continuations as (score, beam * vocabulary + token), best first.
    fn ranked(&self, rows: &[&[f32]], wanted: usize) -> Result<Vec<(f32, usize)>, RowError> {
        let per_beam: Vec<Vec<(f32, usize)>> = rows
            .par_iter()
            .enumerate()
            .map(|(beam, logits)| {
                let mut best = Best::new(wanted);
                best.push_row(&self.accumulate(beam, logits)?);
                Ok(best.into_items())
            })
            .collect::<Result<_, _>>()?;
        let mut best = Best::new(wanted);
        for (beam, items) in per_beam.into_iter().enumerate() {
            for (score, token) in items {
                best.push(score, beam * self.vocab + token);
            }
        }
        Ok(best.into_items())
    }

    /// As [`Beams::ranked`], but drawn without replacement and in the order of the draws.
    fn drawn(
        &self,
        rows: &[&[f32]],
        wanted: usize,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<(f32, usize)>, RowError> {
        let per_beam: Vec<Vec<f32>> = rows
            .par_iter()
            .enumerate()
            .map(|(beam, logits)| self.accumulate(beam, logits))
            .collect::<Result<_, _>>()?;
        let flat = per_beam.concat();
        let mut order = scores::draw_distinct(&scores::weights(&flat), wanted, rng);
        if order.len() < wanted {
            // beams that do not exist yet have no probability, but places must be filled
            let mut rest = Best::new(wanted - order.len());
            for (index, &score) in flat.iter().enumerate() {
                if !order.contains(&index) {
                    rest.push(score, index);
                }
            }
            order.extend(rest.into_items().into_iter().map(|(_, index)| index));
        }
        Ok(order.into_iter().map(|index| (flat[index], index)).collect())
    }

    /// Keeps the complete ones among the first `num_beams` candidates.
    fn complete(&mut self, candidates: &[Candidate]) {
        let options = &self.plan.options;
        for candidate in candidates.iter().take(options.num_beams) {
            let Some(stop) = candidate.stop else { continue };
            let score = length_normalised(candidate.score, self.new_tokens, options.length_penalty);
            if score <= ABSENT {
                continue;
            }
            let hypothesis = Hypothesis {
                score,
                ..self.extended(candidate)
            };
            let at = self.complete.partition_point(|(kept, _)| kept.score >= score);
            self.complete.insert(at, (hypothesis, stop));
            self.complete.truncate(options.num_beams);
        }
    }

    /// Makes the best candidates that do not stop the running beams.
    fn continue_with(&mut self, candidates: &[Candidate]) -> Vec<Continuation> {
        let mut best = Best::new(self.plan.options.num_beams);
        for (index, candidate) in candidates.iter().enumerate() {
            let demoted = if candidate.stop.is_some() { ABSENT } else { 0.0 };
            best.push(candidate.score + demoted, index);
        }
        let mut running = Vec::with_capacity(self.running.len());
        let mut next = Vec::with_capacity(self.running.len());
        for (score, index) in best.into_items() {
            let candidate = &candidates[index];
            running.push(Hypothesis {
                score,
                ..self.extended(candidate)
            });
            next.push(Continuation {
                parent: candidate.parent,
                token_id: candidate.token_id,
            });
        }
        self.running = running;
        next
    }

    fn extended(&self, candidate: &Candidate) -> Hypothesis {
        let parent = &self.running[candidate.parent];
        let mut ids = Vec::with_capacity(parent.ids.len() + 1);
        ids.extend_from_slice(&parent.ids);
        ids.push(candidate.token_id);
        Hypothesis {
            ids,
            score: candidate.score,
        }
    }

    /// Whether no running beam is expected to displace a complete hypothesis.
    fn is_settled(&self) -> bool {
        let options = &self.plan.options;
        let full = self.complete.len() == options.num_beams;
        if full && options.early_stopping == EarlyStopping::WhenFull {
            return true;
        }
        let optimistic = options.early_stopping == EarlyStopping::Never && options.length_penalty > 0.0;
        let length = if optimistic {
            options.max_new_tokens
        } else {
            self.new_tokens
        };
        let best = self.running.first().map_or(f32::NEG_INFINITY, |beam| {
            length_normalised(beam.score, length, options.length_penalty)
        });
        let worst = match self.complete.last() {
            Some((hypothesis, _)) if full => hypothesis.score,
            _ => ABSENT,
        };
        best <= worst
    }

    pub(super) fn cancel(&mut self) {
        self.cancelled = true;
    }

    /// Length of the running beams in new tokens.
    pub(super) fn new_tokens(&self) -> usize {
        self.new_tokens
    }

    /// The best `num_return_sequences` hypotheses, best first. If none is complete, because the search was
    /// cancelled or every continuation was banned, the best running beam stands in.
    pub(super) fn finish(mut self) -> Vec<Sequence> {
        if self.complete.is_empty() {
            let penalty = self.plan.options.length_penalty;
            let stop = if self.cancelled {
                StopReason::Cancelled
            } else {
                StopReason::Length
            };
            self.complete
                .extend(self.running.drain(..).take(1).map(|mut beam| {
                    beam.score = length_normalised(beam.score, self.new_tokens, penalty);
                    (beam, stop)
                }));
        }
        let plan = self.plan;
        self.complete
            .into_iter()
            .take(plan.options.num_return_sequences)
            .map(|(hypothesis, stop)| Sequence {
                token_ids: hypothesis.ids[plan.history.len()..].to_vec(),
                score: hypothesis.score,
                stop,
            })
            .collect()
    }
}
