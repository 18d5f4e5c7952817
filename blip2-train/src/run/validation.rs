//! What is measured between training steps.

use burn::module::Module;
use burn::tensor::{Tensor, backend::AutodiffBackend};

use super::SourceError;
use crate::distributed::Collective;
use crate::params::to_host;
use crate::stage::{Stage, StepContext};

/// The run at the moment of a validation.
pub struct Moment<'a, B: AutodiffBackend, S: Stage<B>> {
    /// Frozen parts and losses.
    pub stage: &'a S,
    /// The weights.
    pub module: &'a S::Module,
    /// Optimizer steps done.
    pub step: u64,
    /// The other processes.
    pub collective: &'a dyn Collective<B::InnerBackend>,
}

/// A measurement; called on every process, and every process must return the same numbers.
pub trait Validate<B: AutodiffBackend, S: Stage<B>> {
    /// Numbers by name.
    fn validate(&mut self, moment: &Moment<'_, B, S>) -> Result<Vec<(String, f64)>, SourceError>;
}

/// No validation.
impl<B: AutodiffBackend, S: Stage<B>> Validate<B, S> for () {
    fn validate(&mut self, _moment: &Moment<'_, B, S>) -> Result<Vec<(String, f64)>, SourceError> {
        Ok(Vec::new())
    }
}

/// Losses on held-out batches, without dropout, with the same random negatives every time.
#[derive(Clone, Debug)]
pub struct LossValidation<T> {
    batches: Vec<T>,
    seed: u64,
}

impl<T> LossValidation<T> {
    /// This process's held-out batches; every process needs the same number.
    pub fn new(batches: Vec<T>, seed: u64) -> Self {
        Self { batches, seed }
    }
}

impl<B: AutodiffBackend, S: Stage<B>> Validate<B, S> for LossValidation<S::Batch> {
    fn validate(&mut self, moment: &Moment<'_, B, S>) -> Result<Vec<(String, f64)>, SourceError> {
        let count = self.batches.len();
        let Some(first) = self.batches.first() else {
            return Ok(Vec::new());
        };
        let collective = moment.collective;
        let targets: usize = self.batches.iter().map(|b| moment.stage.target_count(b)).sum();
        let device = moment.module.devices().into_iter().next().unwrap_or_default();
        let all_targets = collective.sum(targets as f64, &device)?;
        let normaliser = all_targets / (count * collective.world_size()) as f64;
        let context = |micro: usize| StepContext {
            seed: self.seed,
            step: 0,
            micro: micro as u64,
            train: false,
            normaliser: normaliser.max(1.0),
            loss_scale: 1.0,
            collective,
        };
        let mut parts = moment.stage.evaluate(moment.module, first, &context(0))?;
        for (micro, batch) in self.batches.iter().enumerate().skip(1) {
            let more = moment.stage.evaluate(moment.module, batch, &context(micro))?;
            for (sum, (_, loss)) in parts.iter_mut().zip(more) {
                sum.1 = sum.1.clone() + loss;
            }
        }
        let (names, sums): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let mean = collective.all_reduce_mean(Tensor::cat(sums, 0) / count as f64)?;
        let values: Vec<f64> = to_host(&mean).into_iter().map(f64::from).collect();
        let mut numbers = vec![("loss".to_string(), values.iter().sum())];
        numbers.extend(names.iter().map(|name| name.to_string()).zip(values));
        Ok(numbers)
    }
}
