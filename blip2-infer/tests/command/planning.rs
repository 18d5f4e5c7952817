//! What can be known before a model is loaded: `models`, `memory`, and `--model nano`.

use std::process::Command;

use serde_json::Value;

use crate::{blip2, command, objects, path, stderr, stdout, text};

/// `models` has no backend of its own to choose.
fn bare(args: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_blip2"))
        .args(args)
        .env("HF_HOME", "/nowhere")
        .output()
        .expect("the command starts")
}

#[test]
fn models_lists_the_published_checkpoints() {
    let lines = objects(bare(&["models", "--json"]));
    let find = |id: &str| lines.iter().find(|l| l["model"] == id).expect("listed");
    let opt = find("Salesforce/blip2-opt-2.7b");
    // transformers counts 3,744,679,936 with the first vocabulary; today's files have 32 rows more
    assert_eq!(opt["parameters"], 3_744_679_936_u64 + 32 * 2560);
    assert_eq!(opt["folder"], Value::Null);
    assert!(opt["licence"].as_str().is_some_and(|l| l.contains("OPT")));
    assert_eq!(
        find("Salesforce/blip2-itm-vit-g")["parameters"],
        1_172_032_258_u64
    );
    let table = stdout(bare(&["models"]));
    assert!(
        table.lines().count() > 9 && table.contains("blip2-flan-t5-xxl"),
        "{table}"
    );
}

#[test]
fn memory_knows_published_names_and_local_folders() {
    let lines = objects(blip2(&[
        "memory",
        "--model",
        "blip2-opt-2.7b",
        "--json",
        "--batch",
        "1,4",
        "--dtype",
        "bf16,f32",
    ]));
    assert_eq!(lines.len(), 4);
    for line in &lines {
        let parts: u64 = ["vision", "qformer", "llm"]
            .iter()
            .filter_map(|part| line["weights"][part].as_u64())
            .sum();
        let sum = parts + line["cache"].as_u64().unwrap_or(0) + line["activations"].as_u64().unwrap_or(0);
        assert_eq!(line["total"], sum);
    }
    let llm = |i: usize| lines[i]["weights"]["llm"].as_u64().expect("bytes");
    let ratio = llm(2) as f64 / llm(0) as f64;
    assert!((ratio - 2.0).abs() < 0.01, "{ratio}");
    let table = stdout(blip2(&["memory", "--model", &path("parity/opt")]));
    assert_eq!(table.lines().count(), 7, "{table}");
    let out = blip2(&["memory", "--model", "blip2-flan-t5-xl"]);
    assert!(stderr(&out).contains("T5 overflows in f16"), "{}", stderr(&out));
    assert_eq!(stdout(out).lines().count(), 5);
    assert_eq!(blip2(&["memory", "--model", "./nothing"]).status.code(), Some(2));
}

/// `BLIP2_NANO` names the folder of the bundled model, and `--model nano` is what is used without `--model`.
#[test]
fn nano_is_the_default_model() {
    let boat = path("parity/images/boat.png");
    let run = |nano: &str, more: &[&str]| {
        command(&[&["caption", &boat, "--json"], more].concat())
            .env("BLIP2_NANO", nano)
            .output()
            .expect("the command starts")
    };
    let opt = path("parity/opt");
    let want = objects(blip2(&["caption", &boat, "--json", "--model", &opt]));
    for more in [&[][..], &["--model", "nano"]] {
        let got = objects(run(&opt, more));
        assert_eq!(text(&got[0]), text(&want[0]));
    }
    // what compares pictures and texts takes `nano-itm`, which lies beside
    let place = tempfile::tempdir().expect("a folder");
    let copy = place.path().join("nano-itm");
    std::fs::create_dir(&copy).expect("a folder");
    for entry in std::fs::read_dir(path("parity/itm")).expect("the fixture") {
        let file = entry.expect("an entry").path();
        std::fs::copy(&file, copy.join(file.file_name().expect("a name"))).expect("a copy");
    }
    let words = ["match", &boat, "fruit", "--json", "--quiet"];
    let beside = command(&words)
        .env("BLIP2_NANO", place.path().join("nano"))
        .output()
        .expect("the command starts");
    let named = blip2(&[&words[..], &["--model", &path("parity/itm")]].concat());
    assert_eq!(objects(beside), objects(named));
    // without a model anywhere, the sentence says where it was looked for and what to do
    let bundled = path("../../assets/models/nano/config.json");
    if !std::path::Path::new(&bundled).exists() {
        let out = run("/nowhere/nano", &[]);
        assert_eq!(out.status.code(), Some(2));
        let note = stderr(&out);
        for word in ["/nowhere/nano", "--model", "BLIP2_NANO"] {
            assert!(note.contains(word), "{note}");
        }
    }
}
