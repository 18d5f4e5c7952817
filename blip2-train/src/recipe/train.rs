//! `[optimizer]`, `[schedule]`, `[train]`, `[stage1]`, `[stage2]`: numbers of the loop, under LAVIS's names.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Recipe, RecipeError, StageKind};
use crate::optim::{AdamWConfig, ScalerConfig, Schedule, Shape};
use crate::run::collate::LmTask;
use crate::run::trainer::{TokenMean, TrainerConfig};
use crate::stage::lora::LoraConfig;

/// AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerSection {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Largest norm of all gradients together; LAVIS does not clip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Learning-rate factor per layer of a trained image encoder.
    pub lr_layer_decay: f64,
}

impl Default for OptimizerSection {
    fn default() -> Self {
        let adamw = AdamWConfig::default();
        Self {
            beta1: adamw.beta1,
            beta2: adamw.beta2,
            eps: adamw.eps,
            weight_decay: adamw.weight_decay,
            clip_norm: None,
            lr_layer_decay: 1.0,
        }
    }
}

/// Learning rate and length of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleSection {
    /// Form of the decay.
    pub lr_sched: LrSched,
    /// Highest rate.
    #[serde(alias = "lr")]
    pub init_lr: f64,
    /// Rate at the end.
    pub min_lr: f64,
    /// Rate of the first step.
    pub warmup_lr: f64,
    /// Steps until the highest rate.
    pub warmup_steps: u64,
    /// Optimizer steps.
    #[serde(alias = "steps", skip_serializing_if = "Option::is_none")]
    pub max_iters: Option<u64>,
    /// Passes over the data, instead of `max_iters`.
    #[serde(alias = "epochs", skip_serializing_if = "Option::is_none")]
    pub max_epoch: Option<u64>,
}

impl Default for ScheduleSection {
    fn default() -> Self {
        Self {
            lr_sched: LrSched::Cosine,
            init_lr: 1e-4,
            min_lr: 1e-5,
            warmup_lr: 1e-6,
            warmup_steps: 2000,
            max_iters: None,
            max_epoch: None,
        }
    }
}

/// Form of the decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSched {
    /// Per step, as in the paper.
    #[default]
    Cosine,
    /// Per epoch, as LAVIS does; needs `max_epoch`.
    LinearWarmupCosineLr,
    /// No decay.
    Constant,
}

/// The loop.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSection {
    /// Samples of a micro-batch on each process.
    #[serde(alias = "batch_size_train")]
    pub batch_size: u32,
    /// Micro-batches per step.
    #[serde(alias = "accum_grad_iters")]
    pub accumulate: usize,
    /// Seed of weights, order, augmentation, dropout and negatives.
    pub seed: u64,
    /// Whether the image encoder trains (LAVIS: `freeze_vit: False`).
    pub train_vision: bool,
    /// Steps between logged numbers.
    #[serde(alias = "log_freq")]
    pub log_every: u64,
    /// Steps between validations; 0 for none.
    pub validate_every: u64,
    /// Steps between checkpoints; 0 for one at the end only.
    pub checkpoint_every: u64,
    /// Newest checkpoints that are kept, besides the best.
    pub keep: usize,
    /// Over what token losses are averaged.
    pub token_mean: TokenMean,
    /// Folder of stored image features: the frozen encoder runs once over the data, with one fixed augmentation
    /// per picture, and never again. Several ranks share that work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub features: Option<PathBuf>,
    /// Compute activations again in the backward pass instead of keeping them.
    #[serde(alias = "use_grad_checkpoint")]
    pub activation_checkpointing: bool,
    /// Dynamic loss scale, for f16 activations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<ScalerConfig>,
    /// Low-rank adapters instead of full training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraSection>,
    /// Most floating-point operations per second of one device, for the logged utilisation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_flops: Option<f64>,
}

impl Default for TrainSection {
    fn default() -> Self {
        Self {
            batch_size: 32,
            accumulate: 1,
            seed: 42,
            train_vision: false,
            log_every: 50,
            validate_every: 0,
            checkpoint_every: 1000,
            keep: 2,
            token_mean: TokenMean::Global,
            features: None,
            activation_checkpointing: false,
            loss_scale: None,
            lora: None,
            peak_flops: None,
        }
    }
}

/// Low-rank adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraSection {
    /// What is adapted.
    pub target: LoraTarget,
    /// Rank.
    #[serde(default = "rank")]
    pub rank: usize,
    /// Numerator of the factor `alpha / rank`.
    #[serde(default = "alpha")]
    pub alpha: f64,
    /// Last parts of the names of adapted projections; the usual ones of every family unless given.
    #[serde(default = "projections")]
    pub projections: Vec<String>,
}

fn rank() -> usize {
    LoraConfig::default().rank
}
fn alpha() -> f64 {
    LoraConfig::default().alpha
}
fn projections() -> Vec<String> {
    LoraConfig::default().projections
}

/// What adapters are put on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraTarget {
    /// The Q-Former, otherwise frozen.
    Qformer,
    /// The language model; the Q-Former trains in full.
    LanguageModel,
}

impl LoraSection {
    /// As the adapters take it.
    pub fn config(&self) -> LoraConfig {
        LoraConfig {
            rank: self.rank,
            alpha: self.alpha,
            projections: self.projections.clone(),
        }
    }
}

/// Losses of stage 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stage1Section {
    /// Of the contrastive and the generation loss.
    pub label_smoothing: f64,
    /// Weight of the contrastive loss.
    pub itc_weight: f64,
    /// Weight of the matching loss.
    pub itm_weight: f64,
    /// Weight of the generation loss.
    pub itg_weight: f64,
    /// Captions of one picture are positives of each other (retrieval fine-tuning).
    pub image_ids: bool,
    /// Pairs with the same caption are positives of each other (captions that repeat).
    pub caption_ids: bool,
    /// Train the text branch and the heads alone, so that a bridge from stage 2 retrieves again and captions as before.
    pub text_only: bool,
    /// Floor of the contrast's temperature, which starts at 0.07 (0: none, as in the paper).
    pub min_temp: f64,
}

impl Default for Stage1Section {
    fn default() -> Self {
        Self {
            label_smoothing: 0.1,
            itc_weight: 1.0,
            itm_weight: 1.0,
            itg_weight: 1.0,
            image_ids: false,
            caption_ids: false,
            text_only: false,
            min_temp: 0.0,
        }
    }
}

/// Task of stage 2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stage2Section {
    /// What is predicted.
    pub task: TextTask,
    /// `caption`: text before the caption that is not predicted (LAVIS's model prompt).
    pub prompt: String,
    /// `answer`: what the language model reads; `{}` stands for the question.
    pub template: String,
    /// Whether the frozen language model's dropout is active, as it is in LAVIS.
    pub llm_dropout: bool,
}

impl Default for Stage2Section {
    fn default() -> Self {
        Self {
            task: TextTask::Caption,
            prompt: String::new(),
            template: "Question: {} Answer:".into(),
            llm_dropout: true,
        }
    }
}

/// What is predicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextTask {
    /// The caption.
    #[default]
    Caption,
    /// The second part of a caption cut at a random word (encoder-decoder models).
    Prefix,
    /// An answer to a question.
    Answer,
}

impl Stage2Section {
    /// As the collation takes it.
    pub fn task(&self) -> LmTask {
        match self.task {
            TextTask::Caption => LmTask::Caption {
                prompt: self.prompt.clone(),
            },
            TextTask::Prefix => LmTask::Prefix,
            TextTask::Answer => LmTask::Answer {
                template: self.template.clone(),
            },
        }
    }
}

impl ScheduleSection {
    pub(super) fn check(&self) -> Result<(), RecipeError> {
        match (self.max_iters, self.max_epoch) {
            (None, None) => Err(RecipeError::missing(
                "schedule.max_iters",
                "say how long to train: `max_iters` optimizer steps or `max_epoch` passes over the data",
            )),
            (Some(_), Some(_)) => Err(RecipeError::setting(
                "schedule.max_epoch",
                self.max_epoch.unwrap_or(0),
                "give `max_iters` or `max_epoch`, not both",
            )),
            (_, None) if self.lr_sched == LrSched::LinearWarmupCosineLr => Err(RecipeError::missing(
                "schedule.max_epoch",
                "`linear_warmup_cosine_lr` falls once per epoch; `lr_sched = \"cosine\"` falls per step",
            )),
            _ => Ok(()),
        }
    }
}

impl TrainSection {
    pub(super) fn check(&self, recipe: &Recipe) -> Result<(), RecipeError> {
        if self.batch_size == 0 || self.accumulate == 0 {
            return Err(RecipeError::setting(
                "train.batch_size",
                self.batch_size,
                "`batch_size` and `accumulate` are at least 1",
            ));
        }
        if self.train_vision && self.features.is_some() {
            return Err(RecipeError::setting(
                "train.features",
                "given",
                "stored features cannot train the image encoder; leave out `features` or `train_vision`",
            ));
        }
        if recipe.stage == StageKind::LanguageModel && (self.train_vision || self.lora.is_some()) {
            return Err(RecipeError::setting(
                "train",
                "train_vision or lora",
                "stage = \"language_model\" trains the whole language model and nothing else",
            ));
        }
        let Some(lora) = &self.lora else { return Ok(()) };
        if self.train_vision || lora.rank == 0 {
            return Err(RecipeError::setting(
                "train.lora.rank",
                lora.rank,
                "adapters need a rank of at least 1, and a frozen image encoder",
            ));
        }
        if lora.target == LoraTarget::LanguageModel && recipe.stage == StageKind::Stage1 {
            return Err(RecipeError::setting(
                "train.lora.target",
                "language_model",
                "stage 1 has no language model; use \"qformer\"",
            ));
        }
        Ok(())
    }
}

impl Recipe {
    /// Options of the loop, given the number of optimizer steps in an epoch where it is known.
    pub fn trainer(&self, steps_per_epoch: Option<u64>) -> Result<TrainerConfig, RecipeError> {
        let (optimizer, schedule, train) = (&self.optimizer, &self.schedule, &self.train);
        let epochs = |count: u64| match steps_per_epoch {
            Some(0) => Err(RecipeError::setting(
                "train.batch_size",
                train.batch_size,
                "the data has less than one batch; use a smaller batch",
            )),
            Some(steps) => Ok((steps, steps * count)),
            None => Err(RecipeError::missing(
                "data.train.samples",
                "an epoch of shards has no known length; give each set its number of `samples` (see `blip2-train data stats`), or use `max_iters`",
            )),
        };
        let (steps, per_epoch) = match (schedule.max_iters, schedule.max_epoch) {
            (Some(steps), _) => (steps, 0),
            (None, count) => epochs(count.unwrap_or(0)).map(|(per_epoch, steps)| (steps, per_epoch))?,
        };
        let shape = match schedule.lr_sched {
            LrSched::Cosine => Shape::Cosine,
            LrSched::Constant => Shape::Constant,
            LrSched::LinearWarmupCosineLr => Shape::LavisEpochs {
                steps_per_epoch: per_epoch,
                epochs: schedule.max_epoch.unwrap_or(1),
            },
        };
        Ok(TrainerConfig {
            steps,
            accumulate: train.accumulate,
            clip_norm: optimizer.clip_norm,
            optimizer: AdamWConfig {
                beta1: optimizer.beta1,
                beta2: optimizer.beta2,
                eps: optimizer.eps,
                weight_decay: optimizer.weight_decay,
            },
            schedule: Schedule {
                peak: schedule.init_lr,
                min: schedule.min_lr,
                warmup_from: schedule.warmup_lr,
                warmup_steps: schedule.warmup_steps,
                shape,
            },
            scaler: train.loss_scale,
            token_mean: train.token_mean,
            seed: train.seed,
            log_every: train.log_every,
            validate_every: train.validate_every,
            checkpoint_every: train.checkpoint_every,
            keep_last: train.keep,
            best: self
                .validation
                .as_ref()
                .and_then(|validation| validation.best.clone()),
            flops: None,
        })
    }
}
