//! The loop: micro-batches to an averaged gradient, clipping, update, log, validation, checkpoint.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use blip2_model::checkpoint::Keys;
use burn::tensor::{Tensor, TensorData, backend::AutodiffBackend};
use serde_json::Value;

use super::checkpoint::{
    self, Best, CheckpointError, CheckpointStore, Contents, Found, MODEL, OPTIMIZER, Pending, TrainState,
};
use super::feed::Skips;
use super::log::MetricsLog;
use super::progress::{Progress, Split};
use super::validation::{Moment, Validate};
use super::{BatchSource, Interrupt, RunError, guard};
use crate::distributed::{Collective, Single};
use crate::optim::adamw::Moments;
use crate::optim::scaler::Verdict;
use crate::optim::{
    Accumulator, AdamW, GroupRule, LossScaler, average_over_processes, clip_to_norm, global_norm,
};
use crate::params::{self, Named, ParamInfo};
use crate::stage::{Batch, Stage, StepContext, Trained};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// Asked to stop; everything up to `step` is saved.
    Interrupted {
        /// Steps done.
        step: u64,
    },
}

/// What a run is made of, besides its options.
pub struct RunParts<'a, B: AutodiffBackend> {
    /// Folder of the run.
    pub folder: PathBuf,
    /// Parameter groups.
    pub groups: GroupRule,
    /// Names in files.
    pub keys: Keys,
    /// Digests of the frozen parts by name.
    pub frozen: BTreeMap<String, String>,
    /// The whole configuration, to be found again in every checkpoint.
    pub config: Value,
    /// `config.json` of the model.
    pub config_json: Option<String>,
    /// The other processes.
    pub collective: &'a dyn Collective<B::InnerBackend>,
    /// Request to stop.
    pub interrupt: Interrupt,
    /// Terminal.
    pub progress: Progress,
}

impl<B: AutodiffBackend> RunParts<'static, B> {
    /// One process, nothing shown, nothing frozen.
    pub fn new(folder: impl Into<PathBuf>, keys: Keys) -> Self {
        Self {
            folder: folder.into(),
            groups: GroupRule::default(),
            keys,
            frozen: BTreeMap::new(),
            config: Value::Null,
            config_json: None,
            collective: &Single,
            interrupt: Interrupt::new(),
            progress: Progress::hidden(),
        }
    }
}

/// A run in memory.
pub struct Trainer<'a, B: AutodiffBackend, S: Stage<B>> {
    config: TrainerConfig,
    parts: RunParts<'a, B>,
    stage: S,
    module: S::Module,
    infos: Vec<ParamInfo>,
    optimizer: AdamW<B::InnerBackend>,
    scaler: Option<LossScaler>,
    store: CheckpointStore,
    device: B::Device,
    step: u64,
    samples: u64,
    best: Option<Best>,
    resume_cursors: Option<Vec<Value>>,
}

/// Numbers of one step, on the host.
struct StepNumbers {
    losses: Vec<(&'static str, f64)>,
    norm: f64,
    rate: f64,
    applied: bool,
}

impl<'a, B: AutodiffBackend, S: Stage<B>> Trainer<'a, B, S> {
    /// A run from the start with the given weights, or from its newest checkpoint if the folder has one.
    pub fn open(
        config: TrainerConfig,
        parts: RunParts<'a, B>,
        stage: S,
        module: S::Module,
        device: B::Device,
    ) -> Result<Self, RunError> {
        if config.accumulate == 0 {
            return Err(RunError::Config {
                option: "accumulate",
                value: "0".into(),
                reason: "a step needs at least one micro-batch",
            });
        }
        let store = CheckpointStore::open(&parts.folder, config.keep_last)?;
        let mut trainer = Self {
            scaler: config.scaler.map(LossScaler::new),
            optimizer: AdamW::new(config.optimizer),
            infos: params::list(&module),
            config,
            parts,
            stage,
            module,
            store,
            device,
            step: 0,
            samples: 0,
            best: None,
            resume_cursors: None,
        };
        if trainer.is_first() {
            trainer.store.remove_leftovers()?;
        }
        trainer.barrier()?;
        let (found, skipped) = trainer.store.latest()?;
        for problem in skipped {
            trainer.parts.progress.note(&format!("skipped: {problem}"));
        }
        if let Some(found) = found {
            trainer.restore(found)?;
        }
        Ok(trainer)
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The weights.
    pub fn module(&self) -> &S::Module {
        &self.module
    }

    /// Runs to the last step, an interrupt or an error.
    pub fn run(
        &mut self,
        source: &mut dyn BatchSource<S::Batch>,
        validation: &mut dyn Validate<B, S>,
    ) -> Result<Outcome, RunError> {
        if let Some(cursors) = self.resume_cursors.take() {
            // with another number of processes each continues at some old one's place
            let mine = self.parts.collective.rank() % cursors.len().max(1);
            if let Some(cursor) = cursors.get(mine) {
                source.seek(cursor).map_err(CheckpointError::Cursor)?;
            }
        }
        let mut log = match self.is_first() {
            true => Some(MetricsLog::open(&self.parts.folder, self.step)?),
            false => None,
        };
        let mut since = (Instant::now(), self.step, self.samples);
        while self.step < self.config.steps {
            let numbers = self.one_step(source)?;
            self.parts.progress.step(self.step);
            if due(self.config.log_every, self.step) || self.step == self.config.steps {
                let skips = self.skips(source)?;
                self.write_numbers(&mut log, &numbers, skips, since)?;
                since = (Instant::now(), self.step, self.samples);
            }
            let improved = self.validate_if_due(&mut log, validation)?;
            let stop = self.stop_requested()?;
            let last = self.step == self.config.steps;
            if improved || stop || last || due(self.config.checkpoint_every, self.step) {
                self.save(source.cursor())?;
            }
            if stop && !last {
                self.say_skips(source)?;
                return Ok(Outcome::Interrupted { step: self.step });
            }
        }
        self.say_skips(source)?;
        Ok(Outcome::Finished)
    }

    fn one_step(&mut self, source: &mut dyn BatchSource<S::Batch>) -> Result<StepNumbers, RunError> {
        let step = self.step;
        let fail = |source| RunError::Stage { step, source };
        let batches = (0..self.config.accumulate)
            .map(|_| {
                source
                    .next_batch()
                    .map_err(|source| RunError::Source { step, source })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let counts: Vec<f64> = batches
            .iter()
            .map(|b| self.stage.target_count(b) as f64)
            .collect();
        let collective = self.parts.collective;
        let world = collective.world_size() as f64;
        let mean_count = collective.sum(counts.iter().sum(), &self.device)? / (world * batches.len() as f64);
        let scale = self.scaler.map_or(1.0, |scaler| scaler.scale());

        let mut accumulator = Accumulator::default();
        let mut losses = Vec::new();
        for (micro, batch) in batches.iter().enumerate() {
            let normaliser = match self.config.token_mean {
                TokenMean::Global => mean_count,
                TokenMean::PerProcess => counts[micro],
            };
            let context = StepContext {
                seed: self.config.seed,
                step,
                micro: micro as u64,
                train: true,
                normaliser: normaliser.max(1.0),
                loss_scale: scale,
                collective,
            };
            let out = self.stage.step(&self.module, batch, &context).map_err(fail)?;
            accumulator.add(out.gradients);
            losses.push(out.losses);
        }
        let gradients = accumulator.mean(1.0 / scale);
        let gradients = average_over_processes(collective, &self.infos, gradients, &self.device)?;
        let norm = global_norm(&gradients);
        let (names, per_micro) = read_losses::<B>(losses);

        let finite = norm.is_finite() && per_micro.iter().flatten().all(|loss| loss.is_finite());
        let finite = collective.sum(f64::from(u8::from(!finite)), &self.device)? == 0.0;
        let verdict = match &mut self.scaler {
            Some(scaler) => scaler.update(finite),
            None if finite => Verdict::Apply,
            None => Verdict::Broken,
        };
        if verdict == Verdict::Broken {
            return Err(self.not_finite(step, norm, &batches, &names, &per_micro)?);
        }
        let rate = self.config.schedule.rate(step, self.config.steps);
        if verdict == Verdict::Apply {
            self.update(gradients, norm, rate);
        }
        self.step += 1;
        let seen: usize = batches.iter().map(Batch::len).sum();
        self.samples += collective.sum(seen as f64, &self.device)? as u64;
        Ok(StepNumbers {
            losses: self.mean_losses(&names, &per_micro)?,
            norm,
            rate,
            applied: verdict == Verdict::Apply,
        })
    }

    fn update(&mut self, gradients: Named<B::InnerBackend>, norm: f64, rate: f64) {
        let gradients = match self.config.clip_norm {
            Some(max) => clip_to_norm(gradients, norm, max),
            None => gradients,
        };
        let module = self.module.clone();
        self.module = self
            .optimizer
            .step::<B, _>(module, gradients, rate, &self.parts.groups);
    }

    fn not_finite(
        &self,
        step: u64,
        norm: f64,
        batches: &[S::Batch],
        names: &[&'static str],
        per_micro: &[Vec<f64>],
    ) -> Result<RunError, RunError> {
        let micro_batches = batches.iter().zip(per_micro).map(|(batch, losses)| {
            let texts = losses.iter().map(|loss| format!("{loss}"));
            guard::MicroBatch {
                losses: names.iter().copied().zip(texts).collect(),
                keys: batch.keys(),
            }
        });
        let report = guard::Report {
            step,
            rank: self.parts.collective.rank(),
            gradient_norm: format!("{norm}"),
            micro_batches: micro_batches.collect(),
        };
        let report = guard::write(&self.parts.folder, &report)?;
        Ok(RunError::NotFinite { step, report })
    }

    /// Whether the module became the best so far.
    fn validate_if_due(
        &mut self,
        log: &mut Option<MetricsLog>,
        validation: &mut dyn Validate<B, S>,
    ) -> Result<bool, RunError> {
        if !due(self.config.validate_every, self.step) {
            return Ok(false);
        }
        let step = self.step;
        let values = validation.validate(&Moment {
            stage: &self.stage,
            module: &self.module,
            step,
            collective: self.parts.collective,
        });
        let values = values.map_err(|source| RunError::Source { step, source })?;
        if let Some(log) = log {
            self.parts.progress.numbers(step, Split::Validation, &values);
            log.write(step, "validation", &values)?;
        }
        let Some(rule) = &self.config.best else {
            return Ok(false);
        };
        let value = values.iter().find(|(name, _)| *name == rule.metric);
        let Some(&(_, value)) = value.filter(|(_, value)| value.is_finite()) else {
            return Ok(false);
        };
        let better = |old: &Best| match rule.higher {
            true => value > old.value,
            false => value < old.value,
        };
        let improved = self.best.as_ref().is_none_or(better);
        if improved {
            self.best = Some(Best { step, value });
        }
        Ok(improved)
    }

    fn stop_requested(&self) -> Result<bool, RunError> {
        let asked = f64::from(u8::from(self.parts.interrupt.is_requested()));
        Ok(self.parts.collective.sum(asked, &self.device)? > 0.0)
    }

    fn is_first(&self) -> bool {
        self.parts.collective.rank() == 0
    }

    fn barrier(&self) -> Result<(), RunError> {
        self.parts.collective.sum(0.0, &self.device)?;
        Ok(())
    }
}

mod config;
mod numbers;
mod saving;

pub use config::{BestRule, TokenMean, TrainerConfig};
use numbers::read_losses;

fn due(every: u64, step: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

#[cfg(test)]
mod tests;
