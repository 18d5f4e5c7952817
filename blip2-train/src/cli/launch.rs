//! `launch --nproc N -- train ...`: the same command in several processes of this machine.

use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::distributed::world::World;
use crate::run::Interrupt;
use crate::say::say;

/// Time that the other processes have to notice that one is gone, before they are ended: more than the 20 s of
/// silence that `distributed::cluster::Patience` allows.
const GRACE: Duration = Duration::from_secs(30);

/// Arguments of `launch`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct LaunchArgs {
    /// Number of processes
    #[arg(long)]
    pub nproc: usize,
    /// Port of the first process [default: a free one]
    #[arg(long)]
    pub port: Option<u16>,
    /// Command of blip2-train that every process runs
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

const EXAMPLES: &str = "Examples:
  blip2-train launch --nproc 4 -- train recipe.toml --out runs/four
On a cluster start the processes with srun or torchrun instead: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT, or SLURM's variables, are understood.";

/// `launch`
pub(super) fn launch(args: &LaunchArgs) -> Result<()> {
    if args.nproc == 0 {
        bail!("--nproc 0: at least one process is needed");
    }
    let port = match args.port {
        Some(port) => port,
        None => TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port(),
    };
    let program = std::env::current_exe().context("this program's own path")?;
    let mut children = Vec::new();
    for rank in 0..args.nproc {
        let world = World {
            rank,
            size: args.nproc,
            local_rank: rank,
            master: "127.0.0.1".into(),
            port,
        };
        let child = Command::new(&program)
            .args(&args.command)
            .envs(world.variables())
            .spawn()
            .with_context(|| format!("rank {rank}"));
        match child {
            Ok(child) => children.push((rank, child)),
            Err(error) => {
                end(&mut children);
                return Err(error);
            }
        }
    }
    wait(children)
}

/// Until all have ended; the first failure ends the others after a while.
fn wait(mut running: Vec<(usize, Child)>) -> Result<()> {
    let interrupt = Interrupt::on_signals()?;
    let (mut failed, mut told): (Option<(String, Instant)>, bool) = (None, false);
    while !running.is_empty() {
        if interrupt.is_requested() && !told {
            // on a terminal the children have got the signal themselves, and take this one, so soon after it, for the same
            told = true;
            running.iter().for_each(|(_, child)| terminate(child));
        }
        let mut still = Vec::new();
        for (rank, mut child) in running {
            match child.try_wait().with_context(|| format!("rank {rank}"))? {
                None => still.push((rank, child)),
                Some(status) if status.success() => {}
                Some(status) => {
                    say(format_args!("rank {rank} ended with {}", describe(status)));
                    failed.get_or_insert_with(|| (format!("rank {rank} failed first"), Instant::now()));
                }
            }
        }
        running = still;
        if failed.as_ref().is_some_and(|(_, since)| since.elapsed() > GRACE) {
            end(&mut running);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    match failed {
        None => Ok(()),
        Some((message, _)) => bail!("{message}; the same command goes on from the last checkpoint"),
    }
}

fn describe(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit code {code}"),
        None => format!("{status}"),
    }
}

fn end(children: &mut [(usize, Child)]) {
    for (_, child) in children {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Asks a process to stop; it saves and exits. Where that cannot be asked for, it is left to its signal handler.
fn terminate(child: &Child) {
    if cfg!(unix) {
        let _ = Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status();
    }
}
