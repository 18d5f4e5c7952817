//! Runs in processes of their own that are killed or asked to stop: what they reach in the end has the same bits.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// The run that the kill test kills: stage 1 with dropout, a checkpoint after every second step.
/// Does nothing unless the parent names a folder.
#[test]
fn child() {
    let Some(folder) = std::env::var_os("BLIP2_TEST_RUN") else {
        return;
    };
    let steps: u64 = std::env::var("BLIP2_TEST_STEPS").unwrap().parse().unwrap();
    let (stage, module) = contrasting(true);
    let config = TrainerConfig {
        checkpoint_every: 2,
        accumulate: 2,
        ..config(steps)
    };
    let parts = RunParts {
        interrupt: Interrupt::on_signals().unwrap(),
        ..RunParts::new(Path::new(&folder), keys())
    };
    let mut trainer = Trainer::open(config, parts, stage, module, device()).unwrap();
    trainer
        .run(
            &mut Counter::new(3, pairs as fn(usize, usize) -> PairBatch),
            &mut (),
        )
        .unwrap();
}

fn spawn(folder: &Path, steps: u64, pause: &str) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "run::trainer::tests::killed::child",
            "--test-threads",
            "1",
        ])
        .env("BLIP2_TEST_RUN", folder)
        .env("BLIP2_TEST_STEPS", steps.to_string())
        .env("BLIP2_TEST_CHECKPOINT_PAUSE_US", pause)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Whether a checkpoint is being written or deleted at this moment.
fn is_writing(run: &Path) -> bool {
    let entries = std::fs::read_dir(run.join("checkpoints"));
    let mut names = entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name());
    names.any(|name| name.to_string_lossy().starts_with('.'))
}

/// Kills a run `kills` times, every second time at a random moment of its life, otherwise at a random
/// moment of a checkpoint, and compares what it finally reaches with a run that nobody disturbed.
fn kill_and_compare(kills: usize, steps: u64) {
    let folder = tempfile::tempdir().unwrap();
    let calm = folder.path().join("calm");
    let start = Instant::now();
    assert!(spawn(&calm, steps, "0").wait().unwrap().success());
    let calm_time = start.elapsed();

    let rough = folder.path().join("rough");
    let mut rng = ChaCha8Rng::seed_from_u64(steps);
    let (mut done, mut attempt, mut during_write) = (0, 0, 0);
    while done < kills {
        attempt += 1;
        assert!(attempt < 20 * kills, "the run does not get anywhere");
        let mut child = spawn(&rough, steps, "150");
        if attempt % 2 == 0 {
            // a life may be all start-up on a busy machine, so lives get longer
            let longest = calm_time.as_micros() as u64 / 4 + 10_000 * attempt as u64;
            std::thread::sleep(Duration::from_micros(rng.random_range(1000..longest)));
        } else {
            std::thread::sleep(Duration::from_micros(rng.random_range(0..300_000)));
            while !is_writing(&rough) && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(200));
            }
            std::thread::sleep(Duration::from_micros(rng.random_range(0..40_000)));
        }
        if child.try_wait().unwrap().is_some() {
            // it finished before enough kills: begin again
            std::fs::remove_dir_all(&rough).unwrap();
            continue;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        done += 1;
        during_write += usize::from(is_writing(&rough));
    }
    assert!(spawn(&rough, steps, "0").wait().unwrap().success());
    eprintln!("{done} kills, {during_write} of them during a checkpoint");
    assert!(during_write > 0, "no kill hit a checkpoint");
    let last = format!("checkpoints/step-{steps:08}");
    for file in [MODEL, OPTIMIZER] {
        let bytes = |run: &Path| std::fs::read(run.join(&last).join(file)).unwrap();
        assert!(bytes(&calm) == bytes(&rough), "{file} differs");
    }
    let left = CheckpointStore::open(&rough, 2).unwrap().steps().unwrap();
    assert_eq!(left.last(), Some(&steps));
    let rows = crate::run::log::read(&rough).unwrap();
    let logged: Vec<_> = rows.iter().map(|row| row["step"].as_u64().unwrap()).collect();
    assert_eq!(logged, (1..=steps).collect::<Vec<_>>());
}

/// The first Ctrl-C (or `kill`) ends the step, saves and leaves; going on gives the undisturbed weights.
#[cfg(unix)]
#[test]
fn a_signal_ends_the_step_and_saves() {
    let folder = tempfile::tempdir().unwrap();
    let (calm, asked) = (folder.path().join("calm"), folder.path().join("asked"));
    let steps = 40;
    assert!(spawn(&calm, steps, "0").wait().unwrap().success());
    let stopped = || {
        CheckpointStore::open(&asked, 2)
            .unwrap()
            .steps()
            .unwrap()
            .pop()
            .unwrap()
    };
    // a busy machine may look away until the run is over: then once more
    let asked_in_time = (0..20).any(|_| {
        let _ = std::fs::remove_dir_all(&asked);
        let mut child = spawn(&asked, steps, "0");
        while crate::run::log::read(&asked).map_or(true, |rows| rows.is_empty()) {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let id = child.id().to_string();
        Command::new("kill").args(["-INT", &id]).status().unwrap();
        assert!(child.wait().unwrap().success());
        stopped() < steps
    });
    assert!(asked_in_time, "it did not stop");
    assert!(spawn(&asked, steps, "0").wait().unwrap().success());
    let bytes =
        |run: &Path| std::fs::read(run.join(format!("checkpoints/step-{steps:08}")).join(MODEL)).unwrap();
    assert!(bytes(&calm) == bytes(&asked));
}

#[test]
fn a_run_killed_at_random_moments_ends_with_the_same_bits() {
    kill_and_compare(5, 16);
}

#[test]
#[ignore = "half a minute of kills"]
fn a_run_killed_sixty_times_ends_with_the_same_bits() {
    kill_and_compare(60, 120);
}
