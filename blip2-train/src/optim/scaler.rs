//! Dynamic loss scaling for f16 activations (`torch.amp.GradScaler`): gradients too small for f16 are
//! lifted by a factor that halves when something overflows and doubles after a while without overflow.

use serde::{Deserialize, Serialize};

/// Options of the scaler; defaults are PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScalerConfig {
    /// First scale.
    pub initial: f64,
    /// Factor after `interval` good steps.
    pub growth: f64,
    /// Factor after a bad step.
    pub backoff: f64,
    /// Good steps in a row before the scale grows.
    pub interval: u64,
}

impl Default for ScalerConfig {
    fn default() -> Self {
        Self {
            initial: 65536.0,
            growth: 2.0,
            backoff: 0.5,
            interval: 2000,
        }
    }
}

/// Scale and how long it has held.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScaler {
    config: ScalerConfig,
    scale: f64,
    good: u64,
}

/// What to do with a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Gradients are finite: apply them.
    Apply,
    /// They overflowed: skip the step, a smaller scale is already set.
    Skip,
    /// They overflow even without lifting: this is no matter of scale.
    Broken,
}

impl LossScaler {
    /// At the first scale.
    pub fn new(config: ScalerConfig) -> Self {
        Self {
            config,
            scale: config.initial,
            good: 0,
        }
    }

    /// Factor on the loss.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Adapts the scale to the outcome of a step.
    pub fn update(&mut self, finite: bool) -> Verdict {
        if finite {
            self.good += 1;
            if self.good == self.config.interval {
                self.scale *= self.config.growth;
                self.good = 0;
            }
            return Verdict::Apply;
        }
        self.good = 0;
        if self.scale < 1.0 {
            return Verdict::Broken;
        }
        self.scale *= self.config.backoff;
        Verdict::Skip
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_halves_grows_and_finally_gives_up() {
        let config = ScalerConfig {
            initial: 4.0,
            interval: 2,
            ..ScalerConfig::default()
        };
        let mut scaler = LossScaler::new(config);
        assert_eq!(scaler.update(false), Verdict::Skip);
        assert_eq!(scaler.scale(), 2.0);
        scaler.update(true);
        assert_eq!(scaler.scale(), 2.0);
        assert_eq!(scaler.update(true), Verdict::Apply);
        assert_eq!(scaler.scale(), 4.0);
        let verdicts: Vec<_> = (0..4).map(|_| scaler.update(false)).collect();
        assert_eq!(
            verdicts,
            [Verdict::Skip, Verdict::Skip, Verdict::Skip, Verdict::Broken]
        );
    }
}
