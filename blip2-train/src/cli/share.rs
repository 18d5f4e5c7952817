//! Which part of the work is this process', and which device of its machine: options, or the variables of a launcher.

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::distributed::world::World;
use crate::eval::run::folder::Share;

/// Options of a verb whose work several processes divide.
#[derive(Clone, Debug, Args)]
pub struct ShareArgs {
    /// This process among --world [default: RANK or SLURM_PROCID, or 0]
    #[arg(long)]
    pub rank: Option<usize>,
    /// Number of processes [default: WORLD_SIZE or SLURM's, or 1]
    #[arg(long)]
    pub world: Option<usize>,
}

impl ShareArgs {
    /// The options come before a launcher's variables.
    ///
    /// # Errors
    /// A rank beyond the processes, or variables that cannot be read.
    pub fn share(&self) -> Result<Share> {
        self.share_of(&|name| std::env::var(name).ok())
    }

    fn share_of(&self, variables: &dyn Fn(&str) -> Option<String>) -> Result<Share> {
        let (rank, world) = match (self.rank, self.world) {
            (None, None) => World::from_lookup(variables)
                .context("a launcher's variables; or use --rank and --world")?
                .map_or((0, 1), |world| (world.rank, world.size)),
            (rank, world) => (rank.unwrap_or(0), world.unwrap_or(1)),
        };
        if rank >= world {
            bail!("rank {rank} of {world} processes: ranks go from 0 to one below --world");
        }
        Ok(Share { rank, world })
    }
}

/// Number of the device for this process: `asked`, or its own among the processes of its machine.
///
/// # Errors
/// Variables of a launcher that cannot be read.
pub fn device(asked: Option<usize>) -> Result<usize> {
    device_of(asked, &|name| std::env::var(name).ok())
}

fn device_of(asked: Option<usize>, variables: &dyn Fn(&str) -> Option<String>) -> Result<usize> {
    match asked {
        Some(index) => Ok(index),
        None => Ok(World::from_lookup(variables)?.map_or(0, |world| world.local_rank)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launched(name: &str) -> Option<String> {
        let value = match name {
            "RANK" => "5",
            "WORLD_SIZE" => "8",
            "LOCAL_RANK" => "1",
            _ => return None,
        };
        Some(value.to_owned())
    }

    #[test]
    fn options_come_before_a_launchers_variables() {
        let of = |rank, world, variables: &dyn Fn(&str) -> Option<String>| {
            ShareArgs { rank, world }
                .share_of(variables)
                .map(|share| (share.rank, share.world))
                .map_err(|e| format!("{e:#}"))
        };
        assert_eq!(of(None, None, &|_| None), Ok((0, 1)));
        assert_eq!(of(None, None, &launched), Ok((5, 8)));
        assert_eq!(of(Some(2), Some(3), &launched), Ok((2, 3)));
        let beyond = of(Some(1), None, &launched).unwrap_err();
        assert!(beyond.starts_with("rank 1 of 1"), "{beyond}");
        let error = of(None, None, &|_| Some("two".into())).unwrap_err();
        assert!(
            error.contains("--rank") && error.contains("WORLD_SIZE = two"),
            "{error}"
        );
    }

    #[test]
    fn processes_of_one_machine_get_devices_of_their_own() {
        assert_eq!(device_of(None, &|_| None).unwrap(), 0);
        assert_eq!(device_of(None, &launched).unwrap(), 1);
        assert_eq!(device_of(Some(3), &launched).unwrap(), 3);
    }
}
