//! `eval itm`: drawn pairs and labelled ones.

use serde_json::json;

use crate::{Place, fixture, ok, read, refused, score};

#[test]
fn itm_measures_pairs() {
    let place = Place::new();
    let model = fixture("parity/itm");
    let report = ok(&[
        "eval",
        "itm",
        &place.shard,
        "--model",
        &model,
        "--out",
        &place.text("i"),
        "--json",
        "--negatives",
        "2",
    ]);
    assert_eq!(report["items"], 21, "seven captions, each with two others");
    for metric in ["ITM accuracy", "ITM AUC", "ITC AUC"] {
        assert!((0.0..=100.0).contains(&score(&report, metric)), "{metric}");
    }
}

/// Pairs with labels of their own; of a damaged row and an unreadable picture nothing is scored.
#[test]
fn itm_reads_labelled_pairs() {
    let place = Place::new();
    let (model, images) = (fixture("parity/itm"), fixture("parity/images"));
    let rows = |last: &str| {
        let pair = |image: &str, caption: &str, label: &str| {
            format!("{{\"image\":\"{image}.png\",\"caption\":\"{caption}\",\"label\":{label}}}\n")
        };
        let path = place.at("pairs.jsonl");
        let text = [
            pair("boat", "a small boat on the blue water", "1"),
            pair("boat", "a red apple", "0"),
            "{ this is no JSON\n".to_string(),
            pair("fruit", "a red apple", "true"),
            pair("none", "a red apple", "1"),
            pair("house", "a small boat on the blue water", "\"0\""),
            last.to_string(),
        ];
        std::fs::write(&path, text.concat()).expect("write");
        path.to_string_lossy().into_owned()
    };
    let args = |data: &str, out: &str| -> Vec<String> {
        [
            "eval",
            "itm",
            data,
            "--labelled",
            "--images",
            &images,
            "--model",
            &model,
            "--json",
            "--out",
            out,
        ]
        .map(str::to_owned)
        .to_vec()
    };
    let call_with = |data: &str, out: &str| {
        let args = args(data, &place.text(out));
        ok(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let report = call_with(&rows(""), "labelled");
    assert_eq!(report["items"], 4);
    let predictions = read(&place.at("labelled"), "predictions.json");
    let boat = &predictions[0];
    assert_eq!(
        boat["captions"],
        json!(["a small boat on the blue water", "a red apple"])
    );
    assert_eq!(boat["matches"], json!([true, false]));
    // the figures from the probabilities that the run reports
    let mut pairs: Vec<(f64, bool)> = Vec::new();
    for line in predictions.as_array().expect("list") {
        let matches = line["matches"].as_array().expect("list");
        for (p, label) in line["probability"].as_array().expect("list").iter().zip(matches) {
            pairs.push((p.as_f64().expect("number"), label.as_bool().expect("label")));
        }
    }
    let right = pairs.iter().filter(|(p, label)| (*p > 0.5) == *label).count() as f64;
    assert_eq!(score(&report, "ITM accuracy"), 100.0 * right / pairs.len() as f64);
    let (yes, no): (Vec<_>, Vec<_>) = pairs.iter().partition(|(_, label)| *label);
    let won = yes
        .iter()
        .flat_map(|(a, _)| no.iter().map(move |(b, _)| a > b))
        .filter(|w| *w)
        .count();
    let all = (yes.len() * no.len()) as f64;
    assert!((score(&report, "ITM AUC") - 100.0 * won as f64 / all).abs() < 1e-9);
    assert!((0.0..=100.0).contains(&score(&report, "ITM AP")));
    // the same pairs out of a shard
    let (pairs, folder) = (rows(""), place.text("shards"));
    ok(&[
        "data", "convert", &pairs, "--images", &images, "--to", "tar", "--out", &folder, "--json",
    ]);
    let shards = call_with(&format!("{folder}/*.tar"), "labelled-shards");
    assert_eq!(shards["items"], 4);
    for figure in ["ITM accuracy", "ITM AUC", "ITM AP", "ITC AUC"] {
        assert_eq!(score(&shards, figure), score(&report, figure), "{figure}");
    }

    let without = rows("{\"image\":\"boat.png\",\"caption\":\"x\"}\n");
    let args = args(&without, &place.text("x"));
    refused(
        &args.iter().map(String::as_str).collect::<Vec<_>>(),
        "sample 6 has no `label`",
    );
    refused(
        &[
            "eval",
            "itm",
            &place.shard,
            "--labelled",
            "--model",
            &model,
            "--out",
            &place.text("y"),
        ],
        "sample boat has no `label` of 0 or 1",
    );
}
