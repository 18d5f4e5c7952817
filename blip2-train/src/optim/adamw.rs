//! AdamW (Loshchilov & Hutter 2019) with the arithmetic of `torch.optim.AdamW`.
//!
//! With `t` the number of updates of this parameter, `lr` its learning rate and `g` its gradient:
//! `p *= 1 - lr * wd`, `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`,
//! `p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)`. A parameter without a gradient is left
//! alone entirely: no decay, and its `t` stands still.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Tensor, backend::AutodiffBackend, backend::Backend};
use serde::{Deserialize, Serialize};

use super::groups::GroupRule;
use crate::params::{self, Named};

/// Options of the optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment; the paper pre-trains with 0.98 and fine-tunes with 0.999.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of the parameters that decay (see [`GroupRule`]).
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-8,
            weight_decay: 0.05,
        }
    }
}

/// Optimizer state of one parameter.
#[derive(Clone, Debug)]
pub struct Moments<B: Backend> {
    /// First moment, flattened.
    pub m: Tensor<B, 1>,
    /// Second moment, flattened.
    pub v: Tensor<B, 1>,
    /// Updates so far.
    pub step: u64,
}

/// AdamW over the parameters of one module.
#[derive(Clone, Debug)]
pub struct AdamW<B: Backend> {
    config: AdamWConfig,
    state: BTreeMap<String, Moments<B>>,
}

impl<B: Backend> AdamW<B> {
    /// Without state; moments appear with the first gradient.
    pub fn new(config: AdamWConfig) -> Self {
        Self {
            config,
            state: BTreeMap::new(),
        }
    }

    /// Moments by parameter name.
    pub fn state(&self) -> &BTreeMap<String, Moments<B>> {
        &self.state
    }

    /// Continues from saved moments.
    pub fn restore(&mut self, state: BTreeMap<String, Moments<B>>) {
        self.state = state;
    }

    /// One update of every parameter that has a gradient; `lr` is multiplied by each group's scale.
    pub fn step<AB, M>(&mut self, module: M, gradients: Named<B>, lr: f64, groups: &GroupRule) -> M
    where
        AB: AutodiffBackend<InnerBackend = B>,
        M: Module<AB>,
    {
        let mut gradients = gradients;
        params::update(module, |info, value| {
            let Some(gradient) = gradients.remove(&info.name) else {
                return value;
            };
            let group = groups.group(info);
            let decay = if group.decay {
                self.config.weight_decay
            } else {
                0.0
            };
            self.update(&info.name, value, gradient, lr * group.lr_scale, decay)
        })
    }

    fn update(
        &mut self,
        name: &str,
        value: Tensor<B, 1>,
        gradient: Tensor<B, 1>,
        lr: f64,
        decay: f64,
    ) -> Tensor<B, 1> {
        let AdamWConfig {
            beta1, beta2, eps, ..
        } = self.config;
        let old = self.state.remove(name).unwrap_or_else(|| {
            let zeros = Tensor::zeros(gradient.shape(), (&gradient.device(), gradient.dtype()));
            Moments {
                m: zeros.clone(),
                v: zeros,
                step: 0,
            }
        });
        let step = old.step + 1;
        let m = old.m * beta1 + gradient.clone() * (1.0 - beta1);
        let v = old.v * beta2 + gradient.clone() * gradient * (1.0 - beta2);
        let t = step.min(i32::MAX as u64) as i32;
        let (correct1, correct2) = (1.0 - beta1.powi(t), (1.0 - beta2.powi(t)).sqrt());
        let denominator = v.clone().sqrt() / correct2 + eps;
        let update = m.clone() / denominator * (lr / correct1);
        let value = match decay {
            0.0 => value,
            decay => value * (1.0 - lr * decay),
        };
        self.state.insert(name.to_string(), Moments { m, v, step });
        value - update
    }
}

#[cfg(test)]
mod tests;
