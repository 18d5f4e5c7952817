//! Ranks that share work without common steps: each goes on at its own pace, and all meet every few seconds to hear
//! whether everybody is done, somebody was asked to stop, or somebody is gone.

use std::time::{Duration, Instant};

use burn::tensor::backend::Backend;
use sha2::{Digest, Sha256};

use crate::distributed::Collective;
use crate::recipe::RecipeError;
use crate::run::{Interrupt, RunError};

/// How long ranks go without each other.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two meetings: so long a rank may go on after another was asked to stop.
    pub round: Duration,
    /// For what another machine wrote to be seen here: twice the half minute for which NFS remembers a folder's contents.
    pub patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            round: Duration::from_secs(10),
            patience: Duration::from_secs(60),
        }
    }
}

/// This rank among all.
pub(super) struct Ranks<'a, B: Backend> {
    pub collective: &'a dyn Collective<B>,
    pub device: &'a B::Device,
    pub interrupt: &'a Interrupt,
    pub pace: Pace,
}

/// The same number for a key on every machine and in every version.
pub(super) fn hash(key: &str) -> u64 {
    let digest = Sha256::digest(key);
    digest[..8]
        .iter()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

impl<B: Backend> Ranks<'_, B> {
    pub fn rank(&self) -> usize {
        self.collective.rank()
    }

    pub fn world(&self) -> usize {
        self.collective.world_size()
    }

    /// Whether the sample is this rank's to compute.
    pub fn own(&self, key: &str) -> bool {
        hash(key) % self.world() as u64 == self.rank() as u64
    }

    /// Calls `work` until it has said on every rank that all is done; it does a piece of it at least, and no other once
    /// its argument gives false. False, on all ranks, after a request to stop on one.
    pub fn together(
        &self,
        mut work: impl FnMut(&dyn Fn() -> bool) -> Result<bool, RecipeError>,
    ) -> Result<bool, RecipeError> {
        let mut done = false;
        loop {
            let end = Instant::now() + self.pace.round;
            let asked = || self.interrupt.is_requested();
            done = done || !asked() && work(&|| !asked() && Instant::now() < end)?;
            // what all hear counts: a later request is for what comes next
            let stop = asked();
            let all = self.gather(&[i64::from(!done), i64::from(stop)])?;
            if all.iter().skip(1).step_by(2).any(|&stop| stop > 0) {
                return Ok(false);
            }
            if all.iter().step_by(2).all(|&busy| busy == 0) {
                return Ok(true);
            }
        }
    }

    /// Sum over the ranks, exact but for overflow, which wraps.
    pub fn sum(&self, value: u64) -> Result<u64, RecipeError> {
        let all = self.gather(&[value as i64])?;
        Ok(all.iter().fold(0, |sum, &value| sum.wrapping_add(value as u64)))
    }

    fn gather(&self, values: &[i64]) -> Result<Vec<i64>, RecipeError> {
        let all = self.collective.all_gather_ids(values, self.device);
        Ok(all.map_err(RunError::from)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stores that exist are shared out by it.
    #[test]
    fn the_hash_is_sha_256_and_shares_are_even() {
        assert_eq!(hash("abc"), 0xba78_16bf_8f01_cfea); // FIPS 180-2, appendix B.1
        let mut shares = [0; 4];
        (0..10_000).for_each(|i| shares[(hash(&format!("captions.jsonl#{i}")) % 4) as usize] += 1);
        // 2500 +- 4 sigma
        assert!(shares.iter().all(|n| (2327..=2673).contains(n)), "{shares:?}");
    }
}
