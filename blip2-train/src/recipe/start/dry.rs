//! `--dry-run`: what trains, what it takes, and how long, after a few timed steps.

use std::time::{Duration, Instant};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use serde::Serialize;

use super::*;
use crate::optim::AdamW;
use crate::params::ParamInfo;
use crate::run::memory;
use crate::run::trainer::TrainerConfig;
use crate::stage::{Batch, StepContext};

/// Timed steps; the first is a warm-up and not counted where there are more.
const STEPS: usize = 3;

/// What a run would be.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    /// Parameters and bytes of each part: weights, gradients, optimizer.
    pub parts: Vec<PartSize>,
    /// Parameters by optimizer group.
    pub groups: Vec<GroupSize>,
    /// Optimizer steps.
    pub steps: u64,
    /// Optimizer steps in an epoch, where known.
    pub steps_per_epoch: Option<u64>,
    /// Passes over the data, where known.
    pub epochs: Option<f64>,
    /// Samples of a step on all processes.
    pub samples_per_step: u64,
    /// Predicted tokens of the whole run, from the batches seen.
    pub target_tokens: f64,
    /// Floating-point operations of a step of one process.
    pub flops_per_step: f64,
    /// Mean seconds of the timed steps.
    pub seconds_per_step: f64,
    /// The data beside the model.
    pub supply: SupplyRates,
    /// `steps * seconds_per_step`.
    pub total_seconds: f64,
    /// Main memory at its highest, where the system says.
    pub peak_bytes: Option<u64>,
    /// Losses of the last timed step.
    pub losses: Vec<(String, f64)>,
    /// Published scores of the recipe.
    pub expected: Option<toml::Table>,
}

/// How fast this process takes samples, and how fast its loader delivers them.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SupplyRates {
    /// Samples per second that the timed steps take when they never wait for data.
    pub step_samples_per_second: f64,
    /// Samples per second of the loader alone: reading, decoding, augmenting, collating.
    pub loader_samples_per_second: f64,
    /// The second over the first; below 1 the model waits for data, and 5 leaves it most of the processor.
    pub ratio: f64,
}

/// A part of the model.
#[derive(Clone, Debug, Serialize)]
pub struct PartSize {
    /// Its name.
    pub part: String,
    /// Whether it trains.
    pub trains: bool,
    /// Number of parameters.
    pub parameters: usize,
    /// Bytes of the weights as loaded.
    pub weight_bytes: u64,
    /// Bytes of gradients and both moments in f32, for what trains.
    pub optimizer_bytes: u64,
}

/// Parameters treated alike by the optimizer.
#[derive(Clone, Debug, Serialize)]
pub struct GroupSize {
    /// Whether they decay.
    pub decay: bool,
    /// Factor on the learning rate.
    pub lr_scale: f64,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of parameters.
    pub parameters: usize,
}

/// Shortest measurement of the loader, and the batches that are enough for one, whichever comes first.
const LOADER_TIME: Duration = Duration::from_secs(2);
const LOADER_BATCHES: usize = 256;

/// What is known before measuring.
pub(super) struct Measured<'a> {
    pub config: &'a TrainerConfig,
    pub groups: GroupRule,
    pub steps_per_epoch: Option<u64>,
    pub flops: f64,
    pub sizes: Vec<(&'static str, usize, u64)>,
}

/// Bytes of a module's parameters as they are kept.
pub(super) fn bytes<B: Backend, M: Module<B>>(module: &M) -> u64 {
    struct Sum(u64);
    impl<B: Backend> ModuleVisitor<B> for Sum {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let value = param.val();
            let count: usize = value.dims().iter().product();
            self.0 += (count * value.dtype().size()) as u64;
        }
    }
    let mut sum = Sum(0);
    module.visit(&mut sum);
    sum.0
}

/// Part of the model that a trained parameter belongs to, by the first words of its path.
fn part_of(stage: StageKind, name: &str) -> &'static str {
    if stage == StageKind::LanguageModel {
        return "language model";
    }
    let mut words = name
        .split('.')
        .skip_while(|word| ["bridge", "inner"].contains(word));
    match words.next().unwrap_or_default() {
        "encoder" => "image encoder",
        "qformer" => "Q-Former",
        "lora" => "adapters",
        _ => "queries, norm, heads and projections",
    }
}

impl<B> Run<'_, B>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    pub(super) fn estimate<S: Stage<B>>(
        &self,
        stage: &S,
        mut module: S::Module,
        source: &mut dyn BatchSource<S::Batch>,
        measured: Measured<'_>,
    ) -> Result<Ended, RecipeError> {
        let config = measured.config;
        let infos = params::list(&module);
        let mut optimizer = AdamW::new(config.optimizer);
        let (mut seconds, mut targets, mut losses) = (Vec::new(), 0usize, Vec::new());
        // seconds without waiting for data, and samples, of the steps that count
        let (mut busy, mut seen) = (0.0, 0usize);
        for step in 0..STEPS as u64 {
            let start = Instant::now();
            let (mut waited, mut samples) = (0.0, 0);
            let mut sum = crate::optim::Accumulator::default();
            for micro in 0..config.accumulate as u64 {
                let asked = Instant::now();
                let batch = source.next_batch().map_err(RecipeError::Batch)?;
                waited += asked.elapsed().as_secs_f64();
                samples += batch.len();
                let count = stage.target_count(&batch);
                targets += count;
                let context = StepContext {
                    seed: config.seed,
                    step,
                    micro,
                    train: true,
                    normaliser: count.max(1) as f64,
                    loss_scale: 1.0,
                    collective: self.env.collective,
                };
                debug_assert!(!batch.is_empty());
                let out = stage.step(&module, &batch, &context)?;
                sum.add(out.gradients);
                losses = out.losses;
            }
            let gradients = sum.mean(1.0);
            let rate = config.schedule.rate(step, config.steps);
            module = optimizer.step::<B, _>(module, gradients, rate, &measured.groups);
            // reading a value waits for the device
            losses.iter().for_each(|(_, loss)| drop(params::to_host(loss)));
            let _ = B::sync(&self.device);
            seconds.push(start.elapsed().as_secs_f64());
            if step > 0 {
                busy += start.elapsed().as_secs_f64() - waited;
                seen += samples;
            }
        }
        let supply = self.supply_rates(source, seen as f64 / busy.max(1e-9))?;
        let seconds = seconds[1..].iter().sum::<f64>() / (seconds.len() - 1) as f64;
        let world = self.place.world as u64;
        let samples = u64::from(self.recipe.train.batch_size) * config.accumulate as u64 * world;
        let mut parts = trained_parts(self.recipe.stage, &infos);
        parts.extend(
            measured
                .sizes
                .into_iter()
                .map(|(part, parameters, weight_bytes)| PartSize {
                    part: part.into(),
                    trains: false,
                    parameters,
                    weight_bytes,
                    optimizer_bytes: 0,
                }),
        );
        let read = |(name, loss): (&'static str, Tensor<B::InnerBackend, 1>)| {
            (name.to_string(), f64::from(params::to_host(&loss)[0]))
        };
        Ok(Ended::Estimated(Box::new(Estimate {
            parts,
            groups: groups(&infos, &measured.groups),
            steps: config.steps,
            steps_per_epoch: measured.steps_per_epoch,
            epochs: measured
                .steps_per_epoch
                .map(|per| config.steps as f64 / per.max(1) as f64),
            samples_per_step: samples,
            target_tokens: targets as f64 / STEPS as f64 * config.steps as f64 * world as f64,
            flops_per_step: measured.flops,
            seconds_per_step: seconds,
            supply,
            total_seconds: seconds * config.steps as f64,
            peak_bytes: memory::resident().map(|(_, peak)| peak),
            losses: losses.into_iter().map(read).collect(),
            expected: self.recipe.expected.clone(),
        })))
    }

    /// Takes batches without using them; what was prepared in advance does not count.
    fn supply_rates<T: Batch>(
        &self,
        source: &mut dyn BatchSource<T>,
        step_rate: f64,
    ) -> Result<SupplyRates, RecipeError> {
        let mut next = || source.next_batch().map_err(RecipeError::Batch);
        for _ in 0..=self.recipe.data.prefetch {
            next()?;
        }
        let start = Instant::now();
        let mut samples = 0;
        for _ in 0..LOADER_BATCHES {
            samples += next()?.len();
            if start.elapsed() > LOADER_TIME {
                break;
            }
        }
        let loader_rate = samples as f64 / start.elapsed().as_secs_f64().max(1e-9);
        Ok(SupplyRates {
            step_samples_per_second: step_rate,
            loader_samples_per_second: loader_rate,
            ratio: loader_rate / step_rate,
        })
    }
}

/// Sizes of what trains; masters, gradients and moments are f32.
pub fn trained_parts(stage: StageKind, infos: &[ParamInfo]) -> Vec<PartSize> {
    let mut sums: BTreeMap<&'static str, usize> = BTreeMap::new();
    for info in infos {
        *sums.entry(part_of(stage, &info.name)).or_default() += info.len();
    }
    let sizes = sums.into_iter().map(|(part, parameters)| PartSize {
        part: part.into(),
        trains: true,
        parameters,
        weight_bytes: 4 * parameters as u64,
        optimizer_bytes: 12 * parameters as u64,
    });
    sizes.collect()
}

/// Parameters by optimizer group, those that learn fastest first.
pub fn groups(infos: &[ParamInfo], rule: &GroupRule) -> Vec<GroupSize> {
    let mut groups: Vec<GroupSize> = Vec::new();
    for info in infos {
        let group = rule.group(info);
        let same = |g: &&mut GroupSize| g.decay == group.decay && g.lr_scale == group.lr_scale;
        match groups.iter_mut().find(same) {
            Some(found) => {
                found.tensors += 1;
                found.parameters += info.len();
            }
            None => groups.push(GroupSize {
                decay: group.decay,
                lr_scale: group.lr_scale,
                tensors: 1,
                parameters: info.len(),
            }),
        }
    }
    groups.sort_by(|a, b| b.lr_scale.total_cmp(&a.lr_scale).then(b.decay.cmp(&a.decay)));
    groups
}
