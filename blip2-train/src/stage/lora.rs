//! Low-rank adapters (Hu et al. 2021, "LoRA") on attention projections of the Q-Former or of the frozen
//! language model, without a line changed in either: before a step, `W + alpha / r * B A` takes the place
//! of `W`, and gradients flow through that sum into `A` and `B`.
//!
//! Costs one copy of the adapted matrices per step; in exchange every model, present or future, can be
//! adapted by naming its parameters.

use std::collections::BTreeMap;

use blip2_model::module_path::ModulePath;
use burn::module::{Initializer, Module, ModuleMapper, Param};
use burn::tensor::{Tensor, backend::AutodiffBackend, backend::Backend};
use serde::{Deserialize, Serialize};

use crate::initial::{Draw, initialise};
use crate::params::{self, ParamInfo};

/// Options of a set of adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank `r`.
    pub rank: usize,
    /// Numerator of the factor `alpha / r`.
    pub alpha: f64,
    /// Which projections, by the last part of their path: `query` and `value` in the Q-Former, `q_proj`
    /// and `v_proj` in OPT, `q` and `v` in T5.
    pub projections: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            projections: ["query", "value", "q_proj", "v_proj", "q", "v"]
                .map(String::from)
                .to_vec(),
        }
    }
}

/// The two factors of one matrix.
#[derive(Module, Debug)]
pub struct Adapter<B: Backend> {
    /// `[r, in]`
    pub a: Param<Tensor<B, 2>>,
    /// `[out, r]`, zero at first: an untrained adapter changes nothing.
    pub b: Param<Tensor<B, 2>>,
}

/// Adapters of the matrices of one module.
#[derive(Module, Debug)]
pub struct Adapters<B: Backend> {
    /// In the order of `targets`.
    pub pairs: Vec<Adapter<B>>,
    #[module(skip)]
    targets: Vec<String>,
    scale: f64,
}

impl<B: Backend> Adapters<B> {
    /// For every matrix of `module` that `config` names; weights are drawn from `seed`.
    ///
    /// # Errors
    /// [`NoTargets`] if it names none, which is a typing mistake.
    pub fn new<M: Module<B>>(
        module: &M,
        config: &LoraConfig,
        seed: u64,
        device: &B::Device,
    ) -> Result<Self, NoTargets> {
        let wanted = |info: &ParamInfo| {
            let owner = info.name.strip_suffix(".weight")?;
            let last = owner.rsplit('.').next()?;
            let named = config.projections.iter().any(|name| name == last);
            (named && info.shape.len() == 2).then_some(())
        };
        let found: Vec<ParamInfo> = params::list(module)
            .into_iter()
            .filter(|info| wanted(info).is_some())
            .collect();
        if found.is_empty() {
            return Err(NoTargets {
                projections: config.projections.clone(),
            });
        }
        let pairs = found.iter().map(|info| Adapter {
            a: Initializer::Zeros.init([config.rank, info.shape[1]], device),
            b: Initializer::Zeros.init([info.shape[0], config.rank], device),
        });
        let adapters = Self {
            pairs: pairs.collect(),
            targets: found.into_iter().map(|info| info.name).collect(),
            scale: config.alpha / config.rank as f64,
        };
        Ok(initialise(adapters, seed, |info, _| {
            match info.name.ends_with(".a") {
                true => Draw::Uniform((info.shape[1] as f64).powf(-0.5)),
                false => Draw::Constant(0.0),
            }
        }))
    }

    /// Paths of the adapted matrices.
    pub fn targets(&self) -> &[String] {
        &self.targets
    }

    /// `module` with `W + scale * B A` in place of every adapted `W`; the others are shared.
    pub fn apply<M: Module<B>>(&self, module: &M) -> M {
        let pairs = self.targets.iter().map(String::as_str).zip(&self.pairs);
        module.clone().map(&mut Apply {
            path: ModulePath::default(),
            pairs: pairs.collect(),
            scale: self.scale,
        })
    }

    /// Name in files of a parameter of these adapters (`pairs.3.a`), after PEFT's pattern.
    pub fn file_name(&self, name: &str, target_name: impl Fn(&str) -> Option<String>) -> Option<String> {
        let (index, factor) = name.strip_prefix("pairs.")?.split_once('.')?;
        let target = self.targets.get(index.parse::<usize>().ok()?)?;
        let target = target_name(target)?;
        let owner = target.strip_suffix(".weight").unwrap_or(&target);
        Some(format!("{owner}.lora_{}.weight", factor.to_uppercase()))
    }
}

/// No parameter of the module has one of these names.
#[derive(Debug, thiserror::Error)]
#[error(
    "no attention projection is called one of {projections:?}; the Q-Former has query, key, value, dense, OPT q_proj, k_proj, v_proj, out_proj, T5 q, k, v, o"
)]
pub struct NoTargets {
    projections: Vec<String>,
}

struct Apply<'a, B: Backend> {
    path: ModulePath,
    pairs: BTreeMap<&'a str, &'a Adapter<B>>,
    scale: f64,
}

impl<B: Backend> ModuleMapper<B> for Apply<'_, B> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let Some(adapter) = self.pairs.get(self.path.name().as_str()) else {
            return param;
        };
        let (id, weight, mapper) = param.consume();
        let product = adapter.b.val().matmul(adapter.a.val()) * self.scale;
        let product = product.reshape(weight.dims()).cast(weight.dtype());
        Param::from_mapped_value(id, weight + product, mapper)
    }
}

/// A module of which only `trained` counts as such: what `frozen` holds has no parameters as far as
/// optimizer, gradients and checkpoints are concerned.
#[derive(Clone, Debug)]
pub struct Beside<T, F> {
    /// Trains.
    pub trained: T,
    /// Does not.
    pub frozen: F,
}

impl<B, T, F> Module<B> for Beside<T, F>
where
    B: Backend,
    T: Module<B>,
    F: Clone + Send + std::fmt::Debug,
{
    type Record = T::Record;

    fn collect_devices(&self, devices: burn::module::Devices<B>) -> burn::module::Devices<B> {
        self.trained.collect_devices(devices)
    }

    fn fork(self, device: &B::Device) -> Self {
        Self {
            trained: self.trained.fork(device),
            ..self
        }
    }

    fn to_device(self, device: &B::Device) -> Self {
        Self {
            trained: self.trained.to_device(device),
            ..self
        }
    }

    fn visit<V: burn::module::ModuleVisitor<B>>(&self, visitor: &mut V) {
        self.trained.visit(visitor);
    }

    fn map<M: ModuleMapper<B>>(self, mapper: &mut M) -> Self {
        Self {
            trained: self.trained.map(mapper),
            ..self
        }
    }

    fn load_record(self, record: Self::Record) -> Self {
        Self {
            trained: self.trained.load_record(record),
            ..self
        }
    }

    fn into_record(self) -> Self::Record {
        self.trained.into_record()
    }
}

mod adapted;
pub use adapted::{AdaptedBridge, BridgeAdapters, WithLanguageAdapters, adapt_bridge};

/// Weights of a module on the host, for comparing or exporting a merged one.
pub fn merged_values<B: AutodiffBackend, M: Module<B>>(module: &M) -> BTreeMap<String, Vec<f32>> {
    let values = params::values(module).into_iter();
    values
        .map(|(name, value)| (name, params::to_host(&value)))
        .collect()
}

#[cfg(test)]
mod tests;
