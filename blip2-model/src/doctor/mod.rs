//! Whether a device computes what it should: every kind of operation that the models use against sums in f64 on
//! the host, decoding with a cache against decoding without, and a small model against a CPU backend.
//!
//! Each check fences a failure that was seen on some device: wrong layer norms, heads after the first left out,
//! tables beyond a binding limit, TF32 where f32 was asked for, caches that decode garbage, f16 that overflows.

mod host;
mod model;
mod ops;

use serde::Serialize;

use crate::nn::Kernels;

pub use model::{Outputs, run_models};

/// Name of the check that fails on adapters whose largest binding is 128 MiB (Mesa's software driver is one): burn
/// does not ask for the limit on Vulkan, and what lies beyond is garbage. The token tables of the published
/// checkpoints are larger, that of a small model is not.
pub const LARGE_TABLE: &str = "output layer above 128 MiB";

/// How a check ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome", content = "reason")]
pub enum Outcome {
    /// Within the bound.
    Passed,
    /// Outside.
    Failed,
    /// The device says, or shows, that it lacks this dtype: it can be trusted with the others.
    Unsupported(String),
}

/// One check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// What was computed.
    pub name: String,
    /// Largest `|got - want| / (1 + |want|)`; infinite for a result that is not a number or has the wrong size.
    pub error: f64,
    /// Most that rounding explains.
    pub bound: f64,
    /// Verdict.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Check {
    /// Compares results with what they should be.
    pub fn compare(name: &str, got: &[f32], want: &[f64], bound: f64) -> Self {
        let error = match got.len() == want.len() {
            true => got
                .iter()
                .zip(want)
                .map(|(&g, &w)| distance(g.into(), w))
                .fold(0.0, f64::max),
            false => f64::INFINITY,
        };
        Self {
            name: name.to_string(),
            error,
            bound,
            // `<=` is false for what is not a number
            outcome: if error <= bound {
                Outcome::Passed
            } else {
                Outcome::Failed
            },
        }
    }

    /// A check whose computation panicked.
    fn panicked(name: &str, bound: f64) -> Self {
        Self {
            name: name.to_string(),
            error: f64::INFINITY,
            bound,
            outcome: Outcome::Failed,
        }
    }

    fn unsupported(name: &str, bound: f64, reason: &str) -> Self {
        Self {
            outcome: Outcome::Unsupported(reason.to_string()),
            ..Self::panicked(name, bound)
        }
    }
}

fn distance(got: f64, want: f64) -> f64 {
    let error = (got - want).abs() / (1.0 + want.abs());
    if error.is_nan() { f64::INFINITY } else { error }
}

/// Runs every check of single operations and of decoding on a device. Takes seconds, and about 300 MB.
pub fn examine<B: Kernels>(device: &B::Device) -> Vec<Check> {
    let mut checks = ops::run::<B>(device);
    checks.extend(model::decoding::<B>(device));
    checks
}

/// Compares the outputs of the small models with those of another backend.
pub fn compare_models(got: &Outputs, want: &Outputs) -> Vec<Check> {
    let both = got.iter().zip(want);
    both.map(|((name, got), (_, want))| {
        let want: Vec<f64> = want.iter().map(|&v| v.into()).collect();
        // a few hundred f32 operations apart, values of order 1 to 10: the bound of the parity suite
        Check::compare(name, got, &want, 1e-4)
    })
    .collect()
}

/// Whether nothing failed.
pub fn is_trusted(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.outcome != Outcome::Failed)
}

/// Runs a computation that may panic on a device that lacks something.
fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_result_is_seen_whatever_its_kind() {
        let want = [1.0, -3.0, 0.0];
        let check = |got: &[f32]| Check::compare("x", got, &want, 1e-5);
        assert_eq!(check(&[1.0, -3.0, 1e-6]).outcome, Outcome::Passed);
        for bad in [
            &[1.0, -3.0, 1e-3][..],
            &[1.0, -3.0, f32::NAN],
            &[1.0, f32::INFINITY, 0.0],
            &[1.0, -3.0],
        ] {
            let check = check(bad);
            assert_eq!(check.outcome, Outcome::Failed, "{bad:?}");
            assert!(!is_trusted(&[check]));
        }
        let missing = Check::unsupported("f16", 0.0, "no f16");
        assert!(is_trusted(&[missing]));
    }

    #[cfg(feature = "flex")]
    #[test]
    fn a_panic_is_a_failure_and_a_changed_weight_shows() {
        use crate::backend::Flex;
        assert!(guarded(|| -> i32 { panic!("as a driver would") }).is_none());
        let device = Default::default();
        let good = run_models::<Flex>(&device).expect("models");
        let same = run_models::<Flex>(&device).expect("models");
        assert!(is_trusted(&compare_models(&good, &same)));
        let bad = model::run_with_fault::<Flex>(&device).expect("models");
        let checks = compare_models(&bad, &good);
        assert!(!is_trusted(&checks), "{checks:?}");
    }
}
