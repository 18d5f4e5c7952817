//! Folders of pictures: order, bad files, the three kinds of output, resuming, Ctrl-C, the cache.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::{arg, blip2, command, objects, path, pictures, stderr, stdout, text};

#[test]
fn a_folder_comes_in_order_and_bad_files_are_named_at_the_end() {
    let (dir, files) = pictures();
    let model = path("parity/opt");
    let singles: Vec<String> = files
        .iter()
        .map(|file| {
            text(&objects(blip2(&["caption", arg(file), "--model", &model, "--json"]))[0]).to_string()
        })
        .collect();
    for batch in ["1", "3"] {
        let out = blip2(&[
            "caption",
            arg(dir.path()),
            "--model",
            &model,
            "--json",
            "--batch",
            batch,
        ]);
        let notes = stderr(&out);
        assert!(notes.contains("c.png") && notes.contains("skipped"), "{notes}");
        let answers = objects(out);
        let images: Vec<&str> = answers.iter().filter_map(|a| a["image"].as_str()).collect();
        assert_eq!(images, files.each_ref().map(|f| arg(f)), "batch {batch}");
        let texts: Vec<&str> = answers.iter().map(text).collect();
        assert_eq!(texts, singles, "batch {batch}");
    }
}

#[test]
fn every_kind_of_output_goes_on_where_it_was() {
    let (dir, files) = pictures();
    let model = path("parity/opt");
    let all: BTreeSet<String> = files.iter().map(|f| arg(f).to_string()).collect();
    for name in ["out.jsonl", "out.csv"] {
        let out_file = tempfile::tempdir().expect("a folder");
        let out = out_file.path().join(name);
        // as if a first run had been cut off after two pictures, within a record
        let first = blip2(&[
            "caption",
            arg(&files[0]),
            arg(&files[2]),
            "--model",
            &model,
            "--out",
            arg(&out),
        ]);
        assert_eq!(stdout(first), "", "{name}");
        let before = std::fs::read_to_string(&out).expect("written");
        std::fs::write(&out, format!("{before}{{\"image\":\"")).expect("written");
        let run = || blip2(&["caption", arg(dir.path()), "--model", &model, "--out", arg(&out)]);
        stdout(run());
        let after = std::fs::read_to_string(&out).expect("written");
        assert!(after.starts_with(&before), "{name}");
        let images: Vec<String> = match name {
            "out.csv" => csv::Reader::from_reader(after.as_bytes())
                .records()
                .map(|r| r.expect("a record")[0].to_string())
                .collect(),
            _ => after
                .lines()
                .map(|l| serde_json::from_str::<serde_json::Value>(l).expect("JSON")["image"].to_string())
                .map(|quoted| quoted.trim_matches('"').to_string())
                .collect(),
        };
        assert_eq!(images.len(), files.len(), "{name}: {after}");
        assert_eq!(images.into_iter().collect::<BTreeSet<_>>(), all, "{name}");
        // only the bad file is left: nothing can be read, which is an error, and nothing is written twice
        assert_eq!(run().status.code(), Some(2), "{name}");
        assert_eq!(std::fs::read_to_string(&out).expect("read"), after, "{name}");
    }
}

#[test]
fn sidecars_stand_beside_their_pictures_and_are_not_written_twice() {
    let (dir, files) = pictures();
    std::fs::remove_file(dir.path().join("c.png")).expect("removed");
    let model = path("parity/opt");
    std::fs::write(files[1].with_extension("txt"), "mine\n").expect("written");
    let args = ["caption", arg(dir.path()), "--model", &model, "--out", "sidecar"];
    stdout(blip2(&args));
    assert_eq!(
        std::fs::read_to_string(files[1].with_extension("txt")).expect("read"),
        "mine\n"
    );
    let caption = std::fs::read_to_string(files[3].with_extension("txt")).expect("written");
    let single = blip2(&["caption", arg(&files[3]), "--model", &model]);
    assert_eq!(caption, stdout(single));
    std::fs::copy(&files[0], dir.path().join("a.jpg")).expect("copied");
    let out = blip2(&args);
    assert_eq!(out.status.code(), Some(2));
    assert!(stderr(&out).contains("a.txt"), "{}", stderr(&out));
}

#[test]
fn a_cached_picture_is_not_encoded_again_and_gives_the_same_answer() {
    let (dir, files) = pictures();
    let cache = dir.path().join("cache");
    let model = path("parity/opt");
    let run = |prompt: &str| {
        let args = [
            "caption",
            arg(&files[0]),
            "--model",
            &model,
            "--json",
            "--prompt",
            prompt,
        ];
        let cached = [args.as_slice(), &["--cache", arg(&cache)]].concat();
        (objects(blip2(&args)).remove(0), objects(blip2(&cached)).remove(0))
    };
    let (plain, first) = run("");
    let (plain_again, second) = run("a photo of");
    assert_eq!(plain["outputs"], first["outputs"]);
    assert_eq!(plain_again["outputs"], second["outputs"]);
    assert!(first["timing_ms"]["vision"].as_f64() > Some(0.0));
    assert_eq!(second["timing_ms"]["vision"], 0.0);
    assert_eq!(second["timing_ms"]["preprocess"], 0.0);
    // another model has a place of its own
    let t5 = path("parity/t5");
    let other = blip2(&[
        "caption",
        arg(&files[0]),
        "--model",
        &t5,
        "--json",
        "--cache",
        arg(&cache),
    ]);
    assert!(objects(other)[0]["timing_ms"]["vision"].as_f64() > Some(0.0));
}

#[cfg(unix)]
#[test]
fn ctrl_c_finishes_the_batch_and_the_next_run_the_rest() {
    let dir = tempfile::tempdir().expect("a folder");
    let count = 400;
    for i in 0..count {
        let file = dir.path().join(format!("{i:04}.png"));
        std::fs::copy(path("parity/images/boat.png"), file).expect("copied");
    }
    let (out, model) = (dir.path().join("out.jsonl"), path("parity/opt"));
    let args = [
        "caption",
        arg(dir.path()),
        "--model",
        &model,
        "--out",
        arg(&out),
        "--batch",
        "2",
    ];
    let child = command(&args)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the command starts");
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::fs::metadata(&out).map_or(0, |m| m.len()) == 0 {
        assert!(Instant::now() < deadline, "nothing was written");
        std::thread::sleep(Duration::from_millis(5));
    }
    let kill = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(kill.expect("kill runs").success());
    let ended = child.wait_with_output().expect("the command ends");
    let notes = stderr(&ended);
    assert_eq!(ended.status.code(), Some(130), "{notes}");
    assert!(notes.contains("run the same command again"), "{notes}");
    let written = std::fs::read_to_string(&out).expect("read");
    assert!(written.ends_with('\n'));
    let done = written.lines().count();
    assert!(done > 0 && done < count && done.is_multiple_of(2), "{done}");
    assert!(notes.contains(&format!("after {done} of {count}")), "{notes}");
    stdout(blip2(&args));
    let all = std::fs::read_to_string(&out).expect("read");
    let images: BTreeSet<&str> = all.lines().collect();
    assert_eq!((all.lines().count(), images.len()), (count, count));
}
