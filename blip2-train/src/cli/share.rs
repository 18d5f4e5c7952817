//! Which part of the work is this process': `--rank` and `--world`, or the variables of a launcher.

use anyhow::{Result, bail};

use crate::eval::run::folder::Share;

/// From the options; without both from `RANK` and `WORLD_SIZE`.
pub fn share(rank: Option<usize>, world: Option<usize>) -> Result<Share> {
    share_of(rank, world, &|name| std::env::var(name).ok())
}

fn share_of(
    rank: Option<usize>,
    world: Option<usize>,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Share> {
    let variable = |name: &str| -> Result<Option<usize>> {
        let Some(text) = lookup(name) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => {
                bail!("the variable {name} is `{text}`; it must be a number, or use --rank and --world")
            }
        }
    };
    let (rank, world) = match (rank, world) {
        (None, None) => (
            variable("RANK")?.unwrap_or(0),
            variable("WORLD_SIZE")?.unwrap_or(1),
        ),
        (rank, world) => (rank.unwrap_or(0), world.unwrap_or(1)),
    };
    if rank >= world {
        bail!("rank {rank} of {world} processes: ranks go from 0 to one below --world");
    }
    Ok(Share { rank, world })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_before_a_launchers_variables() {
        let launched = |name: &str| match name {
            "RANK" => Some("1".to_owned()),
            "WORLD_SIZE" => Some("2".to_owned()),
            _ => None,
        };
        let of = |rank, world, lookup: &dyn Fn(&str) -> Option<String>| {
            share_of(rank, world, lookup)
                .map(|share| (share.rank, share.world))
                .map_err(|e| e.to_string())
        };
        assert_eq!(of(None, None, &|_| None), Ok((0, 1)));
        assert_eq!(of(None, None, &launched), Ok((1, 2)));
        assert_eq!(of(Some(2), Some(3), &launched), Ok((2, 3)));
        assert!(
            of(Some(1), None, &launched)
                .unwrap_err()
                .starts_with("rank 1 of 1")
        );
        let error = of(None, None, &|_| Some("two".into())).unwrap_err();
        assert!(error.starts_with("the variable RANK is `two`"), "{error}");
    }
}
