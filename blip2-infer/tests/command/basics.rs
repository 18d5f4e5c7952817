//! Objects, scores and errors that every verb shares.

use serde_json::Value;

use crate::{blip2, path, stderr};

#[test]
fn caption_prints_one_json_object_per_picture() {
    let (boat, house, model) = (
        path("parity/images/boat.png"),
        path("parity/images/house.png"),
        path("parity/opt"),
    );
    let out = blip2(&["caption", &boat, &house, "--model", &model, "--json"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let stdout = String::from_utf8(out.stdout).expect("UTF-8");
    let lines: Vec<Value> = stdout
        .lines()
        .map(|l| serde_json::from_str(l).expect("one object per line"))
        .collect();
    assert_eq!(lines.len(), 2);
    for line in &lines {
        assert!(
            line["outputs"][0]["token_ids"]
                .as_array()
                .is_some_and(|ids| !ids.is_empty())
        );
        for key in ["load", "preprocess", "vision", "qformer", "prefill", "decode"] {
            assert!(line["timing_ms"][key].is_number(), "{key}");
        }
    }
}

#[test]
fn match_prints_both_scores() {
    let (boat, model) = (path("parity/images/boat.png"), path("parity/itm"));
    let text = "a small boat on the blue water";
    let out = blip2(&["match", &boat, text, "fruit", "--model", &model, "--json"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let stdout = String::from_utf8(out.stdout).expect("UTF-8");
    let first: Value = serde_json::from_str(stdout.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["text"], text);
    let file = std::fs::read(path("parity/itm/expected.safetensors")).expect("fixture");
    let expected = safetensors::SafeTensors::deserialize(&file).expect("fixture");
    let value = |name: &str, index: usize| {
        let data = expected.tensor(name).expect("tensor").data();
        f64::from(f32::from_le_bytes(
            data[4 * index..][..4].try_into().expect("4 bytes"),
        ))
    };
    // file -> pixels -> scores, so the bound covers the whole way; 1e-4 as for the model alone
    for (i, got) in first["itm"]["logits"].as_array().expect("two").iter().enumerate() {
        let want = value("itm.logits", i);
        assert!(
            (got.as_f64().expect("a number") - want).abs() < 1e-4,
            "{got} for {want}"
        );
    }
    let cosine = first["itc"]["cosine"].as_f64().expect("a number");
    assert!((cosine - value("itc.cosine", 0)).abs() < 1e-4);
}

#[test]
fn bad_input_is_named_and_exits_with_two() {
    let (boat, opt, itm) = (
        path("parity/images/boat.png"),
        path("parity/opt"),
        path("parity/itm"),
    );
    let cases: [(&[&str], &str); 5] = [
        (&["caption", "no-such.png", "--model", &opt], "no-such.png"),
        (
            &["caption", &boat, "--model", "./no-such-folder"],
            "no-such-folder",
        ),
        (&["caption", &boat, "--model", &itm], "language model"),
        (&["match", &boat, "a", "--model", &opt], "text branch"),
        (&["caption", &boat, "--model", &opt, "--dtype", "f8"], "f8"),
    ];
    for (args, named) in cases {
        let out = blip2(args);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(named), "{args:?}: {stderr}");
        assert!(out.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn an_error_says_its_cause_once() {
    let (boat, opt) = (path("parity/images/boat.png"), path("parity/opt"));
    let offline = ["caption", &boat, "--model", "no/such", "--offline"];
    let text = stderr(&blip2(&offline));
    assert_eq!(text.matches("not in the cache").count(), 1, "{text}");
    let text = stderr(&blip2(&["caption", "no-such.png", "--model", &opt, "--quiet"]));
    let first = text.lines().next().expect("a line");
    assert_eq!(first.matches("no-such.png").count(), 1, "{text}");
    assert_eq!(first.matches("os error 2").count(), 1, "{text}");
}
