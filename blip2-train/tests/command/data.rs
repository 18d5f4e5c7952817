//! `data`: inspection, statistics, conversion, the speed of the loader.

use std::path::Path;

use serde_json::{Value, json};

use crate::{Place, call, fixture, ok, refused};

#[test]
fn the_loader_is_measured_against_the_steps_of_a_recipe() {
    let place = Place::new();
    let rows: String = ["boat", "fruit", "house", "boat"]
        .map(|name| format!("{{\"image\":\"{name}.png\",\"caption\":\"a {name}\"}}\n"))
        .concat();
    std::fs::write(place.at("captions.jsonl"), rows).expect("write");
    let text = format!(
        "stage = \"stage2\"\n[model]\nbase = \"{}\"\n[data]\nmax_txt_len = 12\n[[data.train]]\npath = \"{}\"\nimages = \"{}\"\n[schedule]\nmax_iters = 4\nwarmup_steps = 0\n[train]\nbatch_size = 1\n",
        fixture("parity/opt"),
        place.text("captions.jsonl"),
        fixture("parity/images")
    );
    std::fs::write(place.at("recipe.toml"), text).expect("write");
    let recipe = place.text("recipe.toml");
    let rates = ok(&[
        "data",
        "bench",
        &recipe,
        "--json",
        "--backend",
        "flex",
        "--set",
        "train.batch_size=2",
    ]);
    let number = |name: &str| rates[name].as_f64().expect("number");
    let (loader, step) = (
        number("loader_samples_per_second"),
        number("step_samples_per_second"),
    );
    assert!(loader > 0.0 && step > 0.0, "{rates}");
    assert!((number("ratio") - loader / step).abs() < 1e-9 * number("ratio"));
    // nothing is written, and a data set takes none of a recipe's options
    assert!(!Path::new("runs").join("recipe").exists());
    refused(
        &["data", "bench", &place.shard, "--set", "train.batch_size=2"],
        "--set and --backend",
    );
    refused(
        &["data", "bench", &recipe, "--set", "train.batch=2"],
        "unknown field `batch`",
    );
}

#[test]
fn data_verbs_print_json() {
    let place = Place::new();
    let sheet = place.text("sheet.png");
    assert_eq!(ok(&["data", "stats", &place.shard, "--json"])["samples"], 5);
    assert_eq!(
        ok(&["data", "inspect", &place.shard, "--json", "--out", &sheet])["skipped"],
        1
    );
    assert_eq!(
        ok(&[
            "data",
            "convert",
            &place.shard,
            "--json",
            "--to",
            "folder",
            "--out",
            &place.text("f")
        ])["samples"],
        5
    );
    assert!(
        ok(&["data", "bench", &place.shard, "--json", "--size", "32"])["images_per_second"].as_f64()
            > Some(0.0)
    );
    let out = call(&["data", "verify", &place.shard, "--json"]);
    assert_eq!(out.status.code(), Some(2), "a bad sample is a failure");
    let found: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!((&found["seen"], &found["good"]), (&json!(5), &json!(4)));
    refused(&["data", "stats", "no-such.tar"], "no-such.tar");
    refused(
        &["data", "stats", &format!("{}/*.tar", place.text("f"))],
        "matches no file",
    );
}

/// What a shard that breaks off still gives is written, and the exit code says that it is not all.
#[test]
fn conversion_says_that_a_shard_is_lost() {
    let place = Place::new();
    let shard = std::fs::read(&place.shard).expect("shard");
    std::fs::write(place.at("cut.tar"), &shard[..shard.len() / 2 + 100]).expect("write");
    let (data, out) = (place.text("cut.tar"), place.text("converted"));
    let done = call(&[
        "data", "convert", &data, "--to", "folder", "--out", &out, "--json",
    ]);
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("cut.tar") && stderr.contains("whole shards"),
        "{stderr}"
    );
    let report: Value = serde_json::from_slice(&done.stdout).expect("JSON");
    assert!(report["samples"].as_u64() > Some(0), "{report}");
}
