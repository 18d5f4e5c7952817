//! Options of the loop.

use serde::{Deserialize, Serialize};

use crate::optim::{AdamWConfig, ScalerConfig, Schedule, Shape};

/// Over what the token losses (generation, language model) are averaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenMean {
    /// Over all tokens of the step, wherever they are: spreading a batch over processes or micro-batches
    /// changes nothing.
    #[default]
    Global,
    /// Over the tokens of each micro-batch of each process, then over those, as LAVIS does.
    PerProcess,
}

/// Which validation number decides about the best checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BestRule {
    /// Its name.
    pub metric: String,
    /// Whether larger is better.
    pub higher: bool,
}

/// Options of the loop; defaults are stage 1 of the paper, without what depends on the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainerConfig {
    /// Optimizer steps.
    pub steps: u64,
    /// Micro-batches per step.
    pub accumulate: usize,
    /// Largest norm of all gradients together; LAVIS does not clip.
    pub clip_norm: Option<f64>,
    /// Optimizer.
    pub optimizer: AdamWConfig,
    /// Learning rate.
    pub schedule: Schedule,
    /// Loss scaling, for f16 activations.
    pub scaler: Option<ScalerConfig>,
    /// See [`TokenMean`].
    pub token_mean: TokenMean,
    /// Seed of everything random.
    pub seed: u64,
    /// Steps between logged numbers.
    pub log_every: u64,
    /// Steps between validations; 0 for none.
    pub validate_every: u64,
    /// Steps between checkpoints; 0 for one at the end only.
    pub checkpoint_every: u64,
    /// Newest checkpoints that are kept, besides the best.
    pub keep_last: usize,
    /// What makes a checkpoint the best.
    pub best: Option<BestRule>,
    /// Floating-point operations of one step of this process and the most it could do in a second, for
    /// the utilisation.
    pub flops: Option<(f64, f64)>,
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            steps: 250_000,
            accumulate: 1,
            clip_norm: None,
            optimizer: AdamWConfig::default(),
            schedule: Schedule {
                peak: 1e-4,
                min: 1e-5,
                warmup_from: 1e-6,
                warmup_steps: 2000,
                shape: Shape::Cosine,
            },
            scaler: None,
            token_mean: TokenMean::Global,
            seed: 42,
            log_every: 50,
            validate_every: 0,
            checkpoint_every: 1000,
            keep_last: 2,
            best: None,
            flops: None,
        }
    }
}
