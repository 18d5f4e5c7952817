//! Search over a folder: order, the index and its upkeep.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::{arg, blip2, objects, path, pictures, stderr, stdout};

const TEXT: &str = "a small boat on the blue water";

fn search(folder: &Path, more: &[&str]) -> Output {
    let model = path("parity/itm");
    let args = [
        &[
            "search",
            TEXT,
            "--images",
            arg(folder),
            "--model",
            &model,
            "--json",
        ],
        more,
    ]
    .concat();
    blip2(&args)
}

fn images(hits: &[Value]) -> Vec<&str> {
    hits.iter().filter_map(|hit| hit["image"].as_str()).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

/// Scores of `match` for one picture: the two verbs must agree. 1e-4, the bound of the parity suite: the batches
/// differ in size.
fn agrees_with_match(hit: &Value) {
    let model = path("parity/itm");
    let image = hit["image"].as_str().expect("an image");
    let want = objects(blip2(&["match", image, TEXT, "--model", &model, "--json"])).remove(0);
    let cosine = number(&hit["itc"]["cosine"]);
    assert!(
        (cosine - number(&want["itc"]["cosine"])).abs() < 1e-4,
        "{hit} {want}"
    );
    let mut score = cosine;
    if !hit["itm"].is_null() {
        for i in 0..2 {
            let (got, want) = (&hit["itm"]["logits"][i], &want["itm"]["logits"][i]);
            assert!((number(got) - number(want)).abs() < 1e-4, "{got} for {want}");
        }
        score += number(&hit["itm"]["logits"][1]);
    }
    assert!((number(&hit["score"]) - score).abs() < 1e-5, "{hit}");
}

#[test]
fn the_order_is_that_of_the_scores() {
    let (dir, files) = pictures();
    let out = search(dir.path(), &[]);
    let notes = stderr(&out);
    assert!(
        notes.contains("c.png") && notes.contains("4 embedded now"),
        "{notes}"
    );
    let hits = objects(out);
    assert_eq!(hits.len(), files.len());
    hits.iter().for_each(agrees_with_match);
    let scores: Vec<f64> = hits.iter().map(|hit| number(&hit["score"])).collect();
    assert!(scores.windows(2).all(|w| w[0] >= w[1]), "{scores:?}");
    let ranks: Vec<u64> = hits.iter().filter_map(|hit| hit["rank"].as_u64()).collect();
    assert_eq!(ranks, [1, 2, 3, 4]);

    // shortlist only: by cosine; and a shortlist shorter than the folder leads the rest
    let by_cosine = objects(search(dir.path(), &["--rerank", "0"]));
    let cosines: Vec<f64> = by_cosine
        .iter()
        .map(|hit| number(&hit["itc"]["cosine"]))
        .collect();
    assert!(cosines.windows(2).all(|w| w[0] >= w[1]), "{cosines:?}");
    assert!(by_cosine.iter().all(|hit| hit["itm"].is_null()));
    let short = objects(search(dir.path(), &["--rerank", "2", "--top", "3"]));
    assert_eq!(short.len(), 3);
    let reranked: Vec<bool> = short.iter().map(|hit| !hit["itm"].is_null()).collect();
    assert_eq!(reranked, [true, true, false]);
    let mut first = images(&short)[..2].to_vec();
    first.sort_unstable();
    let mut best = images(&by_cosine)[..2].to_vec();
    best.sort_unstable();
    assert_eq!(first, best);
}

#[test]
fn the_index_follows_the_folder() {
    let (dir, files) = pictures();
    std::fs::remove_file(dir.path().join("c.png")).expect("removed");
    let notes = |out: &Output| stderr(out);
    let first = search(dir.path(), &["--rerank", "0"]);
    // two files have the same content, of which one batch embeds both
    assert!(
        notes(&first).contains("index of 4 pictures: 4 embedded"),
        "{}",
        notes(&first)
    );
    let before = objects(first);
    let index = dir.path().join(".blip2-index.safetensors");
    let written = std::fs::metadata(&index)
        .and_then(|m| m.modified())
        .expect("an index");

    let again = search(dir.path(), &["--rerank", "0"]);
    assert!(
        notes(&again).contains("4 pictures: 0 embedded now, 0 known by content, 0 gone"),
        "{}",
        notes(&again)
    );
    assert_eq!(objects(again), before);
    assert_eq!(
        std::fs::metadata(&index)
            .and_then(|m| m.modified())
            .expect("an index"),
        written
    );

    // moved: known by content; changed: embedded; deleted: gone
    std::fs::rename(&files[1], dir.path().join("moved.png")).expect("renamed");
    let mut bytes = std::fs::read(&files[0]).expect("read");
    bytes.extend_from_slice(b"bytes behind the picture are another content");
    std::fs::write(&files[2], &bytes).expect("changed");
    std::fs::remove_file(&files[3]).expect("removed");
    let after = search(dir.path(), &["--rerank", "0"]);
    let note = notes(&after);
    assert!(
        note.contains("3 pictures: 1 embedded now, 1 known by content, 2 gone"),
        "{note}"
    );
    let hits = objects(after);
    hits.iter().for_each(agrees_with_match);
    let mut names = images(&hits);
    names.sort_unstable();
    assert_eq!(
        names,
        [&files[0], &files[2], &dir.path().join("moved.png")].map(|f| arg(f))
    );
}

#[test]
fn vectors_of_another_model_or_a_damaged_file_are_not_used() {
    let (dir, _) = pictures();
    let fresh = objects(search(dir.path(), &[]));
    let index = dir.path().join(".blip2-index.safetensors");
    let model = path("parity/itm");
    // the dtype changes the numbers, so the vectors are made anew
    let other = search(dir.path(), &["--dtype", "bf16"]);
    assert!(stderr(&other).contains("4 embedded now"), "{}", stderr(&other));
    for damage in [b"".as_slice(), b"\xff\xff\xff\xff\xff\xff\xff\xff rubbish"] {
        std::fs::write(&index, damage).expect("written");
        let out = search(dir.path(), &[]);
        assert!(stderr(&out).contains("4 embedded now"), "{}", stderr(&out));
        assert_eq!(objects(out), fresh);
    }
    std::fs::write(dir.path().join(".blip2-index.json"), "{").expect("written");
    let out = search(dir.path(), &[]);
    assert!(stderr(&out).contains("4 known by content"), "{}", stderr(&out));
    assert_eq!(objects(out), fresh);
    drop(model);
}

#[test]
fn a_page_shows_the_results_and_bad_input_is_named() {
    let (dir, _) = pictures();
    let page = dir.path().join("found.html");
    let hits = objects(search(dir.path(), &["--html", arg(&page), "--top", "2"]));
    let html = std::fs::read_to_string(&page).expect("written");
    assert_eq!(html.matches("<img ").count(), 2);
    assert!(html.contains(images(&hits)[0]));
    let opt = path("parity/opt");
    let cases: [(&[&str], &str); 2] = [
        (
            &["search", TEXT, "--images", arg(dir.path()), "--model", &opt],
            "text branch",
        ),
        (
            &["search", TEXT, "--images", "no-such-folder", "--model", &opt],
            "no-such-folder",
        ),
    ];
    for (args, named) in cases {
        let out = blip2(args);
        assert_eq!(out.status.code(), Some(2), "{}", stderr(&out));
        assert!(stderr(&out).contains(named), "{}", stderr(&out));
        assert!(out.stdout.is_empty());
    }
}

/// Files below a folder.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] })
        .collect()
}

/// The numbers of `match`, `search` and `embed` are the same with encoded pictures from a cache, whichever of the
/// three filled it.
#[test]
fn cached_pictures_give_equal_numbers() {
    let (dir, files) = pictures();
    let (cache, model) = (dir.path().join("cache"), path("parity/itm"));
    let kept = ["--cache", arg(&cache)];
    let tokens = || {
        let of_tokens = |file: &PathBuf| file.to_string_lossy().ends_with(".tokens.safetensors");
        walk(&cache).iter().filter(|file| of_tokens(file)).count()
    };

    let of_match = [
        "match",
        arg(&files[0]),
        TEXT,
        "fruit",
        "--model",
        &model,
        "--json",
    ];
    let plain = objects(blip2(&of_match));
    for _ in 0..2 {
        assert_eq!(objects(blip2(&[&of_match[..], &kept].concat())), plain);
        assert_eq!(tokens(), 1);
    }

    // batches of one, so that the same pictures are computed together with and without the cache
    let one = ["--batch", "1"];
    let want = objects(search(dir.path(), &one));
    for _ in 0..2 {
        std::fs::remove_file(dir.path().join(".blip2-index.safetensors")).expect("removed");
        let got = search(dir.path(), &[&one[..], &kept].concat());
        assert!(stderr(&got).contains("3 embedded now"), "{}", stderr(&got));
        assert_eq!(objects(got), want);
        // two of the four files have the same content
        assert_eq!(tokens(), 3);
    }

    for kind in ["image", "multimodal"] {
        let write = |name: &str, more: &[&str]| {
            let out = dir.path().join(name);
            let args = [
                "embed",
                kind,
                "--image",
                arg(&files[2]),
                "--text",
                TEXT,
                "--model",
                &model,
            ];
            stdout(blip2(&[&args[..], &["--out", arg(&out)], more].concat()));
            std::fs::read(out).expect("written")
        };
        assert_eq!(write("cached", &kept), write("plain", &[]), "{kind}");
    }

    // a damaged file counts as absent
    for file in walk(&cache) {
        std::fs::write(file, "no tensors").expect("written");
    }
    assert_eq!(objects(blip2(&[&of_match[..], &kept].concat())), plain);
}
