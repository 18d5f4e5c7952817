//! Learning rate as a function of the optimizer step, with no state of its own.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// Warm-up and decay.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Highest rate.
    pub peak: f64,
    /// Rate at the end.
    #[serde(default)]
    pub min: f64,
    /// Rate of step 0.
    #[serde(default)]
    pub warmup_from: f64,
    /// Steps until the peak.
    #[serde(default)]
    pub warmup_steps: u64,
    /// What happens after the warm-up.
    #[serde(default)]
    pub shape: Shape,
}

/// Form of the decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Shape {
    /// Half a cosine from the end of the warm-up to the last step, as in the paper.
    #[default]
    Cosine,
    /// LAVIS: the warm-up is cut off at the end of the first epoch, and the cosine falls once per epoch.
    LavisEpochs {
        /// Optimizer steps in an epoch.
        steps_per_epoch: u64,
        /// Number of epochs.
        epochs: u64,
    },
    /// The peak for ever.
    Constant,
}

impl Schedule {
    /// Rate of optimizer step `step` (from 0) of a run of `total` steps.
    pub fn rate(&self, step: u64, total: u64) -> f64 {
        let warmup = |s: u64| {
            let share = s as f64 / self.warmup_steps.max(1) as f64;
            (self.warmup_from + (self.peak - self.warmup_from) * share).min(self.peak)
        };
        let cosine = |share: f64| self.min + 0.5 * (self.peak - self.min) * (1.0 + (PI * share).cos());
        match self.shape {
            Shape::LavisEpochs {
                steps_per_epoch,
                epochs,
            } => {
                let epoch = step / steps_per_epoch.max(1);
                match epoch {
                    0 => warmup(step),
                    _ => cosine(epoch as f64 / epochs.max(1) as f64),
                }
            }
            _ if step < self.warmup_steps => warmup(step),
            Shape::Cosine => {
                let length = total.saturating_sub(self.warmup_steps).max(1);
                let done = (step - self.warmup_steps).min(length);
                cosine(done as f64 / length as f64)
            }
            Shape::Constant => self.peak,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_rises_linearly_then_falls_to_the_minimum() {
        let schedule = Schedule {
            peak: 1e-4,
            min: 1e-5,
            warmup_from: 1e-6,
            warmup_steps: 2000,
            shape: Shape::Cosine,
        };
        let at = |step| schedule.rate(step, 250_000);
        assert_eq!(at(0), 1e-6);
        assert!((at(1000) - 50.5e-6).abs() < 1e-12);
        assert_eq!(at(2000), 1e-4);
        assert!((at(126_000) - 5.5e-5).abs() < 1e-12);
        assert!((at(250_000) - 1e-5).abs() < 1e-12);
        assert!((at(300_000) - 1e-5).abs() < 1e-12);
    }

    /// Values of specification section 6.4.
    #[test]
    fn lavis_rates_are_constant_within_an_epoch_and_cut_the_warm_up() {
        let stage1 = Schedule {
            peak: 1e-4,
            min: 1e-5,
            warmup_from: 1e-6,
            warmup_steps: 5000,
            shape: Shape::LavisEpochs {
                steps_per_epoch: 1000,
                epochs: 10,
            },
        };
        let want = [
            9.7798e-5, 9.1406e-5, 8.1450e-5, 6.8906e-5, 5.5e-5, 4.1094e-5, 2.8550e-5, 1.8594e-5, 1.2202e-5,
        ];
        for (i, want) in want.into_iter().enumerate() {
            let epoch = i as u64 + 1;
            let rate = stage1.rate(epoch * 1000 + 7, 10_000);
            assert!((rate - want).abs() < 1e-9, "epoch {epoch}: {rate}");
        }
        assert!((stage1.rate(999, 10_000) - (1e-6 + 99e-6 * 999.0 / 5000.0)).abs() < 1e-12);

        let tuning = Schedule {
            peak: 1e-5,
            min: 0.0,
            warmup_from: 1e-8,
            warmup_steps: 10,
            shape: Shape::LavisEpochs {
                steps_per_epoch: 100,
                epochs: 5,
            },
        };
        assert_eq!(tuning.rate(50, 500), 1e-5);
        let want = [9.0451e-6, 6.5451e-6, 3.4549e-6, 9.5492e-7];
        for (i, want) in want.into_iter().enumerate() {
            let rate = tuning.rate((i as u64 + 1) * 100, 500);
            assert!((rate - want).abs() < 1e-10, "{rate}");
        }
    }

    #[test]
    fn reads_from_a_recipe() {
        let text = "peak = 1e-4\nshape.lavis-epochs = { steps_per_epoch = 3, epochs = 2 }";
        let schedule: Schedule = toml::from_str(text).unwrap();
        assert!(matches!(schedule.shape, Shape::LavisEpochs { epochs: 2, .. }));
        let schedule: Schedule = toml::from_str("peak = 1e-4").unwrap();
        assert_eq!(schedule.shape, Shape::Cosine);
        let schedule: Schedule = toml::from_str("peak = 1e-4\nshape = \"constant\"").unwrap();
        assert_eq!(schedule.shape, Shape::Constant);
        assert!(toml::from_str::<Schedule>("peak = 1e-4\nwarmup = 3").is_err());
    }
}
