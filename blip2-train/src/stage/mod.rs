//! The stages: what trains, what is frozen, and one step of each.
//!
//! Frozen parts are not parameters. The image encoder is a value on the inner backend, where no graph is
//! ever recorded; the language model is wrapped in [`Frozen`], which is no module, so neither the optimizer
//! nor a checkpoint can reach it. What trains is the [`Trainable`] module, and all of it.

use burn::module::Module;
use burn::tensor::{Tensor, backend::AutodiffBackend};

use crate::distributed::{Collective, CollectiveError};
use crate::params::Named;

pub mod batch;
pub mod encoded;
pub mod frozen;
pub mod graph;
pub mod language;
pub mod lora;
pub mod stage1;
pub mod stage2;

pub use batch::{Batch, Images, LmBatch, PairBatch, PlainBatch, TextBatch};
pub use encoded::{Trainable, Trained, WithEncoder};
pub use frozen::Frozen;
pub use language::LanguageModelling;
pub use stage1::{Stage1, Stage1Config};
pub use stage2::{Stage2, Stage2Config};

/// Why a step could not be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {
    /// The module lacks a part that the stage trains.
    #[error(
        "the trainable module has no {part}, which {stage} needs; build it with the configuration of that stage"
    )]
    MissingPart {
        /// The stage.
        stage: &'static str,
        /// The absent part.
        part: &'static str,
    },
    /// A trained encoder cannot use stored features.
    #[error("stored features cannot train an image encoder; give it pixels, or freeze the encoder")]
    FeaturesForTrainedEncoder,
    /// The batch lacks something.
    #[error("the batch has no {what}, which {why}")]
    MissingInput {
        /// What is absent.
        what: &'static str,
        /// What asks for it.
        why: &'static str,
    },
    /// Processes disagree or one is gone.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
}

/// What a step needs besides module and batch.
pub struct StepContext<'a, B: AutodiffBackend> {
    /// Seed of the run.
    pub seed: u64,
    /// Optimizer step, from 0.
    pub step: u64,
    /// Micro-batch within the step, from 0.
    pub micro: u64,
    /// Whether dropout is on and gradients are computed.
    pub train: bool,
    /// Targets per micro-batch, averaged over micro-batches and processes (see [`crate::losses`]).
    pub normaliser: f64,
    /// The loss is multiplied by it before the backward pass; gradients come out multiplied.
    pub loss_scale: f64,
    /// The other processes.
    pub collective: &'a dyn Collective<B::InnerBackend>,
}

/// Loss parts by name, in the order they are logged, each `[1]`; the sum of all is what trains.
pub type LossParts<B> = Vec<(&'static str, Tensor<B, 1>)>;

/// Result of one micro-batch.
#[derive(Clone, Debug)]
pub struct StepOutput<B: AutodiffBackend> {
    /// Loss parts, unscaled, still on the device.
    pub losses: LossParts<B::InnerBackend>,
    /// Gradients by parameter name, multiplied by the loss scale; empty in evaluation.
    pub gradients: Named<B::InnerBackend>,
}

/// A stage of training.
pub trait Stage<B: AutodiffBackend> {
    /// Exactly what trains.
    type Module: Trained<B>;
    /// Host-side batch.
    type Batch: Batch;

    /// Number of targets of the token loss in a batch.
    fn target_count(&self, batch: &Self::Batch) -> usize;

    /// Forward, and backward when `step.train`.
    fn step(
        &self,
        module: &Self::Module,
        batch: &Self::Batch,
        step: &StepContext<'_, B>,
    ) -> Result<StepOutput<B>, StageError>;

    /// Losses of a batch without dropout and without recording a graph.
    fn evaluate(
        &self,
        module: &Self::Module,
        batch: &Self::Batch,
        step: &StepContext<'_, B>,
    ) -> Result<LossParts<B::InnerBackend>, StageError> {
        let module = module.clone().no_grad();
        let step = StepContext {
            train: false,
            ..*step
        };
        Ok(self.step(&module, batch, &step)?.losses)
    }
}

impl<B: AutodiffBackend> StepContext<'_, B> {
    /// Numbers that identify this micro-batch on this process in a random stream's key.
    fn key(&self, last: u64) -> [[u8; 8]; 3] {
        [self.step, self.micro, last].map(u64::to_le_bytes)
    }

    /// The generator of `purpose` for this micro-batch and `last` (a rank or a row).
    fn rng(&self, purpose: &str, last: u64) -> rand_chacha::ChaCha8Rng {
        let key = self.key(last);
        crate::initial::keyed_rng(self.seed, purpose, &[&key[0], &key[1], &key[2]])
    }

    /// Forward context of this process: dropout on its own stream, or none.
    fn forward_context(&self) -> blip2_model::nn::Context {
        if !self.train {
            return blip2_model::nn::Context::eval();
        }
        let rank = self.collective.rank() as u64;
        blip2_model::nn::Context::training(self.rng("dropout", rank))
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
