//! The contract of `blip2-train eval` and `blip2-train data`: JSON on stdout, everything else on stderr, exit code 2 on
//! bad input; a stopped evaluation goes on, and several processes give what one gives.

mod capfilt;
mod caption;
mod data;
mod itm;
mod retrieval;
mod vqa;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

fn fixture(name: &str) -> String {
    format!("{}/../tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn call(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blip2-train"));
    command.args(args).env_remove("RANK").env_remove("WORLD_SIZE");
    command.output().expect("the command starts")
}

/// Standard output as JSON.
fn ok(args: &[&str]) -> Value {
    let out = call(args);
    assert!(
        out.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}"))
}

fn refused(args: &[&str], named: &str) {
    let out = call(args);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{args:?}: {stderr}");
    assert!(stderr.contains(named), "{args:?}: {stderr}");
    assert!(out.stdout.is_empty(), "{args:?}");
}

const PICTURES: [(&str, &str); 3] = [
    ("boat", "a small boat on the blue water"),
    ("fruit", "a red apple"),
    ("house", "a house with a red roof"),
];

/// A shard with the three fixture pictures, one of them twice, and one that is cut off.
fn shard(dir: &Path) -> String {
    let path = dir.join("pictures.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&path).expect("file"));
    let mut append = |name: String, body: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, body).expect("append");
    };
    let picture = |name: &str| std::fs::read(fixture(&format!("parity/images/{name}.png"))).expect("fixture");
    for (name, caption) in PICTURES {
        append(format!("{name}.png"), &picture(name));
        append(
            format!("{name}.json"),
            json!({"caption": [caption, "something"]}).to_string().as_bytes(),
        );
    }
    append("again.png".into(), &picture("fruit"));
    append("again.txt".into(), b"an apple, red");
    append("torn.png".into(), &picture("boat")[..200]);
    append("torn.txt".into(), b"half a boat");
    tar.finish().expect("finish");
    path.to_string_lossy().into_owned()
}

fn read(dir: &Path, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join(name)).expect(name)).expect("JSON")
}

fn score(report: &Value, metric: &str) -> f64 {
    let scores = report["scores"].as_array().expect("scores");
    let found = scores
        .iter()
        .find(|s| s["metric"] == metric)
        .unwrap_or_else(|| panic!("{metric} in {scores:?}"));
    found["value"].as_f64().expect("a number")
}

struct Place {
    dir: tempfile::TempDir,
    shard: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let shard = shard(dir.path());
        Self { dir, shard }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).to_string_lossy().into_owned()
    }
}

#[test]
fn bad_input_is_named_and_exits_with_two() {
    let place = Place::new();
    let (opt, itm, out) = (fixture("parity/opt"), fixture("parity/itm"), place.text("bad"));
    let keys = place.at("keys.txt");
    std::fs::write(&keys, "boat\nship\n").expect("write");
    let keys = keys.to_string_lossy().into_owned();
    let eval = |verb: &'static str, data: &str, model: &str, more: &[&str], named: &str| {
        let args = [&["eval", verb, data, "--model", model, "--out", &out][..], more].concat();
        refused(&args, named);
    };
    eval("caption", "no-such.tar", &opt, &[], "no-such.tar");
    eval("caption", &place.shard, "./no-such-model", &[], "no-such-model");
    eval("caption", &place.shard, &itm, &[], "language model");
    eval("caption", &place.shard, &opt, &["--keys", &keys], "ship");
    eval(
        "caption",
        &place.shard,
        &opt,
        &["--rank", "2", "--world", "2"],
        "--world",
    );
    eval("caption", &place.shard, &opt, &["--batch", "0"], "--batch");
    eval(
        "caption",
        &place.shard,
        &opt,
        &["--expected", "nonesuch"],
        "nonesuch",
    );
    eval("caption", "-", &opt, &[], "standard input");
    eval("retrieval", &place.shard, &opt, &[], "text branch");
    eval("vqa", &place.shard, &opt, &[], "questions");
    eval("itm", &place.shard, &itm, &["--negatives", "0"], "--negatives");
    refused(&["eval", "merge", &place.text("nowhere")], "nowhere");
}

#[test]
fn an_error_says_its_cause_once() {
    let out = call(&["train", "no-such.toml"]);
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{text}");
    assert_eq!(text.matches("no-such.toml").count(), 1, "{text}");
    assert_eq!(text.matches("os error 2").count(), 1, "{text}");
}
