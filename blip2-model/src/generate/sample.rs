//! Greedy search and sampling: chains that grow one token at a time, independent of each other
//! (`GenerationMixin._sample`).

use std::sync::Arc;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::error::RowError;
use super::processors::Processors;
use super::scores::{self, Normaliser};
use super::search::{Continuation, Plan, Token, length_normalised};
use super::{Sequence, StopReason};

/// All chains of one prompt.
#[derive(Debug)]
pub(super) struct Chains {
    plan: Arc<Plan>,
    chains: Vec<Chain>,
}

#[derive(Debug)]
struct Chain {
    /// History and generated tokens.
    ids: Vec<i64>,
    /// Sum of the model's own log-probabilities, before any rule.
    log_prob: f32,
    /// Present when sampling; a stream per chain, so that neither the batch nor a sibling matters.
    rng: Option<ChaCha8Rng>,
    stop: Option<StopReason>,
}

impl Chains {
    pub(super) fn new(plan: Arc<Plan>) -> Self {
        let options = &plan.options;
        let chains = (0..options.num_return_sequences)
            .map(|stream| Chain {
                ids: plan.history.clone(),
                log_prob: 0.0,
                rng: options.do_sample.then(|| {
                    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
                    rng.set_stream(stream as u64);
                    rng
                }),
                stop: None,
            })
            .collect();
        Self { plan, chains }
    }

    pub(super) fn width(&self) -> usize {
        self.chains.len()
    }

    /// Takes one logits row per running chain; gives the new tokens and how to go on.
    pub(super) fn advance(&mut self, rows: &[&[f32]]) -> Result<(Vec<Token>, Vec<Continuation>), RowError> {
        let mut tokens = Vec::with_capacity(rows.len());
        let mut next = Vec::with_capacity(rows.len());
        let running = self
            .chains
            .iter_mut()
            .enumerate()
            .filter(|(_, c)| c.stop.is_none());
        for (parent, ((sequence, chain), row)) in running.zip(rows).enumerate() {
            let token_id = chain.advance(&self.plan, row)?;
            tokens.push(Token {
                sequence,
                token_id,
                stop: chain.stop,
            });
            if chain.stop.is_none() {
                next.push(Continuation { parent, token_id });
            }
        }
        Ok((tokens, next))
    }

    /// Stops the chains that still run.
    pub(super) fn cancel(&mut self) {
        for chain in &mut self.chains {
            chain.stop.get_or_insert(StopReason::Cancelled);
        }
    }

    /// The results in the order of their random streams.
    pub(super) fn finish(self) -> Vec<Sequence> {
        let plan = self.plan;
        let sequence = |chain: Chain| {
            let token_ids = chain.ids[plan.history.len()..].to_vec();
            Sequence {
                score: length_normalised(chain.log_prob, token_ids.len(), plan.options.length_penalty),
                token_ids,
                stop: chain.stop.unwrap_or(StopReason::Cancelled),
            }
        };
        self.chains.into_iter().map(sequence).collect()
    }
}

impl Chain {
    fn advance(&mut self, plan: &Plan, logits: &[f32]) -> Result<i64, RowError> {
        if !scores::is_finite(logits) {
            return Err(RowError::NonFinite);
        }
        let mut row = logits.to_vec();
        let new_tokens = self.ids.len() - plan.history.len();
        Processors::new(&plan.options).apply(&self.ids, new_tokens, &mut row);
        let choice = match &mut self.rng {
            Some(rng) => scores::draw(&scores::weights(&row), rng),
            None => scores::argmax(&row),
        };
        let index = choice
            .filter(|&index| row[index] > f32::NEG_INFINITY)
            .ok_or(RowError::NothingLeft)?;
        self.log_prob += Normaliser::of(logits).log_prob(logits[index]);
        let token = index as i64;
        self.ids.push(token);
        self.stop = plan.stop(token, new_tokens + 1);
        Ok(token)
    }
}
