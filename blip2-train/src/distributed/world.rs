//! Which process this is among how many: the variables that torchrun, SLURM and `blip2-train launch` set.

use std::collections::BTreeMap;

/// This process in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    /// Index of this process, `0..size`.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
    /// Index among the processes of this machine: the device to use.
    pub local_rank: usize,
    /// Host name or address of rank 0.
    pub master: String,
    /// Port of rank 0.
    pub port: u16,
}

/// Variables that contradict each other or cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable} = {value}: {reason}")]
pub struct WorldError {
    variable: &'static str,
    value: String,
    reason: &'static str,
}

/// Port of rank 0 unless MASTER_PORT says otherwise; torchrun's.
const PORT: u16 = 29500;

impl World {
    /// From the environment; `None` for a single process.
    pub fn from_env() -> Result<Option<Self>, WorldError> {
        Self::from_lookup(&|name| std::env::var(name).ok())
    }

    /// From given variables.
    pub fn from_lookup(var: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, WorldError> {
        let (rank, size, local) = match var("WORLD_SIZE") {
            Some(_) => ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
            // a shell inside an allocation has no SLURM_PROCID of its own step
            None if var("SLURM_PROCID").is_some() && var("SLURM_STEP_NUM_TASKS").is_some() => {
                ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
            }
            None if var("SLURM_PROCID").is_some() => ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
            None => return Ok(None),
        };
        let number = |name: &'static str| -> Result<Option<usize>, WorldError> {
            let Some(text) = var(name) else { return Ok(None) };
            let parsed = text.trim().parse();
            parsed.map(Some).map_err(|_| WorldError {
                variable: name,
                value: text,
                reason: "a whole number is expected",
            })
        };
        let size_value = number(size)?.unwrap_or(1);
        if size_value <= 1 {
            return Ok(None);
        }
        let rank_value = number(rank)?.ok_or(WorldError {
            variable: rank,
            value: "(not set)".into(),
            reason: "every process of a group needs its index; start them with `blip2-train launch`, torchrun or srun",
        })?;
        if rank_value >= size_value {
            return Err(WorldError {
                variable: rank,
                value: rank_value.to_string(),
                reason: "an index is smaller than the number of processes",
            });
        }
        let port = match number("MASTER_PORT")? {
            Some(port) => u16::try_from(port).map_err(|_| WorldError {
                variable: "MASTER_PORT",
                value: port.to_string(),
                reason: "a port is smaller than 65536",
            })?,
            // jobs that share a machine get ports of their own
            None => match number("SLURM_JOB_ID").ok().flatten() {
                Some(job) if size != "WORLD_SIZE" => 20_000 + (job % 20_000) as u16,
                _ => PORT,
            },
        };
        let hosts = || var("SLURM_STEP_NODELIST").or_else(|| var("SLURM_JOB_NODELIST"));
        let master = var("MASTER_ADDR").or_else(|| hosts().map(|list| first_host(&list)));
        Ok(Some(Self {
            rank: rank_value,
            size: size_value,
            local_rank: number(local)?.unwrap_or(rank_value),
            master: master.unwrap_or_else(|| "127.0.0.1".into()),
            port,
        }))
    }

    /// Variables that tell a child process the same.
    pub fn variables(&self) -> BTreeMap<&'static str, String> {
        BTreeMap::from([
            ("RANK", self.rank.to_string()),
            ("WORLD_SIZE", self.size.to_string()),
            ("LOCAL_RANK", self.local_rank.to_string()),
            ("MASTER_ADDR", self.master.clone()),
            ("MASTER_PORT", self.port.to_string()),
        ])
    }
}

/// First host of SLURM's compressed list: `gpu[03-05,9],login` -> `gpu03`.
fn first_host(list: &str) -> String {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (name, rest) = list.split_at(end);
    let Some(inside) = rest.strip_prefix('[') else {
        return name.to_string();
    };
    let first = inside.split([',', '-', ']']).next().unwrap_or_default();
    let after = inside.split_once(']').map_or("", |(_, after)| after);
    let suffix = after.split(',').next().unwrap_or_default();
    format!("{name}{first}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(variables: &[(&str, &str)]) -> Result<Option<World>, WorldError> {
        World::from_lookup(&|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn torchrun_and_slurm_are_understood() {
        assert_eq!(world(&[]), Ok(None));
        assert_eq!(world(&[("WORLD_SIZE", "1"), ("RANK", "0")]), Ok(None));
        let torchrun = [
            ("WORLD_SIZE", "4"),
            ("RANK", "3"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "10.0.0.1"),
        ];
        let got = world(&torchrun).unwrap().unwrap();
        assert_eq!((got.rank, got.size, got.local_rank, got.port), (3, 4, 1, 29500));
        assert_eq!(got.master, "10.0.0.1");
        let slurm = [
            ("SLURM_PROCID", "5"),
            ("SLURM_NTASKS", "16"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_JOB_NODELIST", "gpu[03-05,9],login"),
            ("SLURM_JOB_ID", "40007"),
        ];
        let got = world(&slurm).unwrap().unwrap();
        assert_eq!((got.rank, got.size, got.local_rank, got.port), (5, 16, 1, 20_007));
        assert_eq!(got.master, "gpu03");
        // what a child is told it understands
        let told = got.variables();
        let again = World::from_lookup(&|name| told.get(name).cloned())
            .unwrap()
            .unwrap();
        assert_eq!(again, got);
    }

    #[test]
    fn nonsense_is_named() {
        let bad = |variables: &[(&str, &str)]| world(variables).unwrap_err().to_string();
        assert!(bad(&[("WORLD_SIZE", "two")]).starts_with("WORLD_SIZE = two"));
        assert!(bad(&[("WORLD_SIZE", "2")]).starts_with("RANK = (not set)"));
        assert!(bad(&[("WORLD_SIZE", "2"), ("RANK", "2")]).starts_with("RANK = 2"));
        assert!(
            bad(&[("WORLD_SIZE", "2"), ("RANK", "1"), ("MASTER_PORT", "99999")]).starts_with("MASTER_PORT")
        );
    }

    #[test]
    fn host_lists() {
        for (list, host) in [
            ("a", "a"),
            ("a,b", "a"),
            ("n[1-4]", "n1"),
            ("n[07]-ib,x", "n07-ib"),
        ] {
            assert_eq!(first_host(list), host);
        }
    }
}
