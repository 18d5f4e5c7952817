//! `eval caption`: results, resuming, merging, the published figures, bad samples.

use serde_json::{Value, json};

use crate::{PICTURES, Place, call, fixture, ok, read, refused, score};

#[test]
fn caption_writes_results_resumes_and_merges() {
    let place = Place::new();
    let (model, out) = (fixture("parity/opt"), place.text("one"));
    let common = [
        "eval",
        "caption",
        &place.shard,
        "--model",
        &model,
        "--json",
        "--max-new-tokens",
        "4",
    ];
    let report = ok(&[&common[..], &["--out", &out, "--prompt", "a", "--batch", "2"]].concat());
    assert_eq!(
        (report["items"].as_u64(), report["skipped"].as_u64()),
        (Some(4), Some(1))
    );
    for metric in ["BLEU-4", "ROUGE-L", "CIDEr", "exact match"] {
        assert!(score(&report, metric) >= 0.0);
    }
    assert_eq!(
        report["config"]["generation"]["num_beams"], 5,
        "LAVIS is the default"
    );
    let predictions = read(&place.at("one"), "predictions.json");
    let ids: Vec<&Value> = predictions
        .as_array()
        .expect("list")
        .iter()
        .map(|p| &p["image_id"])
        .collect();
    assert_eq!(ids, ["boat", "fruit", "house", "again"]);
    assert!(
        predictions
            .as_array()
            .expect("list")
            .iter()
            .all(|p| p["caption"].is_string())
    );
    let page = std::fs::read_to_string(place.at("one/index.html")).expect("page");
    assert!(page.contains("data:image/png;base64,") && page.contains("a small boat on the blue water"));
    assert_eq!(read(&place.at("one"), "scores.json")["scores"], report["scores"]);

    // killed after the first prediction, inside a line
    let journal = place.at("one/predictions.0.jsonl");
    let text = std::fs::read_to_string(&journal).expect("journal");
    let first = text.find('\n').expect("a line") + 1;
    std::fs::write(&journal, &text[..first + 7]).expect("cut");
    let again = ok(&[&common[..], &["--out", &out, "--prompt", "a", "--batch", "1"]].concat());
    assert_eq!(again["scores"], report["scores"]);
    assert_eq!(read(&place.at("one"), "predictions.json"), predictions);

    // another prompt is another evaluation
    refused(
        &[&common[..], &["--out", &out, "--prompt", "b"]].concat(),
        "prompt",
    );

    let two = place.text("two");
    for rank in ["0", "1"] {
        let part = [
            &common[..],
            &["--out", &two, "--prompt", "a", "--rank", rank, "--world", "2"],
        ]
        .concat();
        if rank == "1" {
            refused(&["eval", "merge", &two], "of 4 are done");
        }
        let part = call(&part);
        assert!(part.status.success(), "{}", String::from_utf8_lossy(&part.stderr));
        assert!(part.stdout.is_empty());
    }
    let merged = ok(&["eval", "merge", &two, "--json"]);
    assert_eq!(
        (&merged["scores"], merged["processes"].as_u64()),
        (&report["scores"], Some(2))
    );
    assert_eq!(read(&place.at("two"), "predictions.json"), predictions);
}

#[test]
fn published_figures_stand_beside_the_result() {
    let rows = ok(&["eval", "--expected", "ret_coco", "--json"]);
    assert_eq!(
        (&rows[0]["metric"], &rows[0]["published"], &rows[0]["measured"]),
        (&json!("TR@1"), &json!(85.4), &Value::Null)
    );
    let place = Place::new();
    let out = place.text("r");
    let model = fixture("parity/itm");
    let report = ok(&[
        "eval",
        "retrieval",
        &place.shard,
        "--model",
        &model,
        "--out",
        &out,
        "--json",
        "--expected",
        "ret_coco",
    ]);
    assert_eq!(report["scores"][0]["published"], 85.4);
    let rows = ok(&["eval", "--expected", "ret_coco", "--out", &out, "--json"]);
    assert_eq!(rows[0]["measured"], report["scores"][0]["value"]);
    refused(&["eval", "--expected", "nonesuch"], "ret_coco");
    refused(&["eval"], "name a verb");
}

/// Samples without usable text are named as unreadable pictures are, and too many of them end an evaluation.
#[test]
fn bad_samples_are_named_and_too_many_stop_an_evaluation() {
    let place = Place::new();
    let (model, images) = (fixture("parity/opt"), fixture("parity/images"));
    let data = |name: &str, bad: usize| {
        let rows = PICTURES
            .map(|(image, caption)| format!("{{\"image\":\"{image}.png\",\"caption\":\"{caption}\"}}\n"))
            .concat();
        std::fs::write(place.at(name), rows + &"{ no JSON\n".repeat(bad)).expect("write");
        place.text(name)
    };
    let evaluate = |data: &str, out: &str, more: &[&str]| -> Vec<String> {
        let common = ["eval", "caption", data, "--images", &images, "--model", &model];
        let rest = ["--json", "--max-new-tokens", "4", "--out", out];
        [&common[..], &rest, more]
            .concat()
            .iter()
            .map(|a| a.to_string())
            .collect()
    };
    let few = evaluate(&data("few.jsonl", 2), &place.text("few"), &[]);
    let out = call(&few.iter().map(String::as_str).collect::<Vec<_>>());
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{stderr}");
    assert_eq!(stderr.matches("few.jsonl: `3`").count(), 1, "{stderr}");
    assert_eq!(stderr.matches("few.jsonl: `4`").count(), 1, "{stderr}");
    let report: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!((&report["items"], &report["skipped"]), (&json!(3), &json!(2)));
    let lines = std::fs::read_to_string(place.at("few/skipped.0.jsonl")).expect("journal");
    assert_eq!(lines.matches("\"text\":true").count(), 2, "{lines}");
    let page = std::fs::read_to_string(place.at("few/index.html")).expect("page");
    assert!(page.contains("<h2>Left out</h2>"));

    let many = data("many.jsonl", 6);
    let args = evaluate(&many, &place.text("many"), &[]);
    refused(
        &args.iter().map(String::as_str).collect::<Vec<_>>(),
        "raise --max-bad",
    );
    let args = evaluate(&many, &place.text("many"), &["--max-bad", "1"]);
    assert_eq!(
        ok(&args.iter().map(String::as_str).collect::<Vec<_>>())["skipped"],
        6
    );
}
