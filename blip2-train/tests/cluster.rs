//! Several ranks of the command, as processes on loopback or on the devices of one process: the same training as by one;
//! a process that dies, and another number of processes after that.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use blip2_model::weights::TensorSource;
use blip2_model::weights::safetensors::SafetensorsFile;

fn fixture(name: &str) -> String {
    format!("{}/../tests/fixtures/parity/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Twelve pictures with captions, and a recipe over them without dropout.
fn bench(folder: &Path, stage: &str, more: &str) -> PathBuf {
    let rows: String = (0..12u8)
        .map(|i| {
            let picture =
                image::RgbImage::from_fn(16, 14, |x, y| image::Rgb([20 * i, x as u8 * 15, y as u8 * 15]));
            picture.save(folder.join(format!("{i}.png"))).unwrap();
            let word = ["a red house", "fruit on the table", "a boat"][i as usize % 3];
            format!("{{\"image\":\"{i}.png\",\"caption\":\"{word} {i}\"}}\n")
        })
        .collect();
    std::fs::write(folder.join("captions.jsonl"), rows).unwrap();
    let base = if stage == "stage1" { "itm" } else { "opt" };
    // the fixtures' configuration with its dropout taken out
    let json = std::fs::read_to_string(Path::new(&fixture(base)).join("config.json")).unwrap();
    let json = json.replace("dropout\": 0.1", "dropout\": 0.0");
    let json = json.replace("dropout_prob\": 0.1", "dropout_prob\": 0.0");
    let model = folder.join("model");
    std::fs::create_dir_all(&model).unwrap();
    for file in std::fs::read_dir(fixture(base)).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    std::fs::write(model.join("config.json"), json).unwrap();
    let recipe = folder.join("recipe.toml");
    let text = format!(
        "stage = \"{stage}\"\n[model]\nbase = \"{}\"\n[data]\nmax_txt_len = 12\n[[data.train]]\npath = \"{}\"\n[schedule]\nmax_iters = 4\nwarmup_steps = 0\ninit_lr = 1e-4\n[train]\nlog_every = 1\n{more}\n",
        model.display(),
        folder.join("captions.jsonl").display()
    );
    std::fs::write(&recipe, text).unwrap();
    recipe
}

#[derive(Clone, Copy, Debug)]
enum Ranks {
    One,
    Processes(usize),
    Devices(&'static str),
}

fn command(ranks: Ranks, recipe: &Path, run: &Path, sets: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blip2-train"));
    if let Ranks::Processes(count) = ranks {
        command.args(["launch", "--nproc", &count.to_string(), "--"]);
    }
    command.args(["train", &recipe.display().to_string(), "--backend", "flex"]);
    if let Ranks::Devices(numbers) = ranks {
        command.args(["--devices", numbers]);
    }
    command.args(["--out", &run.display().to_string()]);
    for set in sets {
        command.args(["--set", set]);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Its standard output is the path of the export, from rank 0, and nothing else.
fn train(ranks: Ranks, recipe: &Path, run: &Path, sets: &[&str]) -> Output {
    let out = command(ranks, recipe, run, sets).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let export = format!("{}\n", run.join("export").display());
    assert_eq!(String::from_utf8_lossy(&out.stdout), export);
    out
}

fn tensors(run: &Path) -> Vec<(String, Vec<f32>)> {
    let file = SafetensorsFile::open(run.join("export/model.safetensors")).unwrap();
    let get = |name: &str| file.get(name).unwrap().to_f32_vec().unwrap();
    file.infos()
        .iter()
        .map(|info| (info.name.clone(), get(&info.name)))
        .collect()
}

/// Four steps with batch 4 by one rank and batch 1 by four: every tensor within 1e-5. Adam turns a gradient that is zero
/// but for rounding into a step of the full learning rate, so its epsilon is above that noise here.
fn four_train_as_one(four: Ranks) {
    for stage in ["stage1", "stage2"] {
        let folder = tempfile::tempdir().unwrap();
        let recipe = bench(folder.path(), stage, "[optimizer]\neps = 1e-4");
        let runs = ["one", "four"].map(|run| folder.path().join(run));
        train(Ranks::One, &recipe, &runs[0], &["train.batch_size=4"]);
        train(four, &recipe, &runs[1], &["train.batch_size=1"]);
        let mut worst = 0f32;
        for ((name, a), (_, b)) in tensors(&runs[0]).iter().zip(tensors(&runs[1])) {
            for (a, b) in a.iter().zip(&b) {
                worst = worst.max((a - b).abs());
                assert!((a - b).abs() < 1e-5, "{stage} {name}: {a} and {b}");
            }
        }
        println!("{stage}: largest difference {worst:e}");
    }
}

#[test]
fn four_processes_train_as_one() {
    four_train_as_one(Ranks::Processes(4));
}

#[test]
fn four_devices_train_as_one() {
    four_train_as_one(Ranks::Devices("0,1,2,3"));
}

/// Keys in each index of a feature store.
fn indices(store: &Path) -> Vec<Vec<String>> {
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let index: serde_json::Value = match path.extension() {
            Some(kind) if kind == "json" => serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap(),
            _ => return None,
        };
        let shards = index["shards"].as_array().unwrap().iter();
        let keys = shards.flat_map(|shard| shard["keys"].as_array().unwrap());
        Some(keys.map(|key| key.as_str().unwrap().to_owned()).collect())
    };
    std::fs::read_dir(store).unwrap().filter_map(read).collect()
}

/// Image features that four ranks compute together, each picture once, train as those of one rank do.
#[test]
fn four_ranks_train_from_features_that_all_of_them_computed() {
    let folder = tempfile::tempdir().unwrap();
    let more = "[optimizer]\neps = 1e-4";
    let recipe = bench(folder.path(), "stage1", more);
    let ranks = [Ranks::One, Ranks::Devices("0,1,2,3"), Ranks::Processes(4)];
    let mut trained = Vec::new();
    for (i, ranks) in ranks.into_iter().enumerate() {
        let [run, store] = ["run", "features"].map(|name| folder.path().join(format!("{name}-{i}")));
        let batch = if i == 0 { 4 } else { 1 };
        let sets = [
            format!("train.batch_size={batch}"),
            format!("train.features={}", store.display()),
            "data.vis_processor=blip_image_eval".into(),
        ];
        let out = train(ranks, &recipe, &run, &sets.each_ref().map(String::as_str));
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(text.matches("12 pictures to encode").count(), 1, "{text}");
        let indices = indices(&store);
        // each falls to one of four at random: all to the same once in four million
        assert!((i == 0) == (indices.len() == 1), "{indices:?}");
        let mut keys = indices.concat();
        assert_eq!(keys.len(), 12);
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 12, "a picture was computed twice");
        trained.push(tensors(&run));
    }
    for other in &trained[1..] {
        for ((name, a), (_, b)) in trained[0].iter().zip(other) {
            for (a, b) in a.iter().zip(b) {
                assert!((a - b).abs() < 1e-5, "{name}: {a} and {b}");
            }
        }
    }
}

/// What cannot be asked for together is said before anything is loaded or written.
#[test]
fn devices_are_refused_where_they_cannot_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = bench(folder.path(), "stage2", "batch_size = 1");
    let run = folder.path().join("run");
    let refused = |edit: &dyn Fn(&mut Command)| {
        let mut command = command(Ranks::Devices("0,1"), &recipe, &run, &[]);
        edit(&mut command);
        let out = command.output().unwrap();
        assert_eq!(out.status.code(), Some(2));
        assert!(!run.exists());
        String::from_utf8(out.stderr).unwrap()
    };
    let text = refused(&|command| {
        command.arg("--nccl");
    });
    assert!(text.contains("leave --nccl out"), "{text}");
    let text = refused(&|command| {
        command.env("WORLD_SIZE", "2").env("RANK", "0");
    });
    assert!(text.contains("use one or the other"), "{text}");
}

/// One of three processes is killed: the launcher names it, the others stop by themselves, and two processes go on
/// from the last checkpoint.
#[cfg(unix)]
#[test]
fn a_dead_process_ends_the_run_and_another_number_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = bench(folder.path(), "stage2", "batch_size = 1\ncheckpoint_every = 1");
    let run = folder.path().join("run");
    let endless = ["schedule.max_iters=100000"];
    let mut child = command(Ranks::Processes(3), &recipe, &run, &endless)
        .spawn()
        .unwrap();
    // read all along: a full pipe would stop the run
    let error = drained(child.stderr.take().unwrap());
    let output = drained(child.stdout.take().unwrap());
    let deadline = Instant::now() + Duration::from_secs(120);
    // at least the third: two are kept, so a fast run may have deleted it between two looks
    while newest(&run) < Some(3) {
        assert!(Instant::now() < deadline, "no checkpoint appeared");
        if let Some(status) = child.try_wait().unwrap() {
            panic!("{status}: {}", error.join().unwrap());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let victim = rank_2_of(child.id());
    let killed = Instant::now();
    assert!(
        Command::new("kill")
            .args(["-KILL", &victim.to_string()])
            .status()
            .unwrap()
            .success()
    );
    let status = child.wait().unwrap();
    assert!(!status.success());
    let seconds = killed.elapsed();
    let (text, output) = (error.join().unwrap(), output.join().unwrap());
    // the launcher would end them by force after 30 s
    assert!(seconds < Duration::from_secs(30), "{seconds:?}\n{text}");
    assert_eq!(output, "", "nothing was exported");
    assert!(text.contains("rank 2 failed first"), "{text}");
    for rank in 0..2 {
        assert!(
            text.contains(&format!("error: rank {rank}: rank 2 is gone")),
            "{text}"
        );
    }
    let last = newest(&run).unwrap();
    let more = Ranks::Processes(2);
    let out = train(
        more,
        &recipe,
        &run,
        &[&format!("schedule.max_iters={}", last + 3)],
    );
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(text.contains(&format!("continues after step {last}")), "{text}");
    assert_eq!(newest(&run), Some(last + 3));
}

/// What the process writes to a pipe, until it closes it.
#[cfg(unix)]
fn drained(mut pipe: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).unwrap();
        text
    })
}

/// Step of the newest complete checkpoint, of which there may be none yet.
#[cfg(unix)]
fn newest(run: &Path) -> Option<u64> {
    let names = std::fs::read_dir(run.join("checkpoints")).ok()?;
    let steps = names.filter_map(|entry| {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        name.strip_prefix("step-")?.parse().ok()
    });
    steps.max()
}

/// Process id of the child with RANK=2 of a launcher, from the process table.
#[cfg(unix)]
fn rank_2_of(launcher: u32) -> u32 {
    let table = Command::new("ps")
        .args(["-o", "pid=", "--ppid", &launcher.to_string()])
        .output()
        .unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    let children = table.split_whitespace().map(|pid| pid.parse::<u32>().unwrap());
    let is_rank_2 = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment
            .split(|&byte| byte == 0)
            .any(|entry| entry == b"RANK=2")
    };
    children.into_iter().find(is_rank_2).expect("rank 2 runs")
}
