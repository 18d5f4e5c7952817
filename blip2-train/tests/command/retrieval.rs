//! `eval retrieval`: both directions, several processes, stored embeddings.

use blip2_train::run::crc32c::crc32c;
use serde_json::Value;

use crate::{Place, call, fixture, ok, read, score};

#[test]
fn retrieval_ranks_both_ways_and_processes_agree() {
    let place = Place::new();
    let (model, out) = (fixture("parity/itm"), place.text("one"));
    let common = ["eval", "retrieval", &place.shard, "--model", &model, "--json"];
    let report = ok(&[&common[..], &["--out", &out, "--k", "3"]].concat());
    for metric in ["TR@1", "TR@10", "IR@1", "IR@10", "ITC TR@1", "ITC IR@5", "mean"] {
        assert!((0.0..=100.0).contains(&score(&report, metric)), "{metric}");
    }
    assert_eq!(score(&report, "IR@5"), 100.0, "there are four pictures");
    let predictions = read(&place.at("one"), "predictions.json");
    assert_eq!(predictions["image_to_text"].as_array().map(Vec::len), Some(4));
    let texts = predictions["text_to_image"].as_array().expect("list");
    assert_eq!(texts.len(), 7);

    let two = place.text("two");
    for rank in ["1", "0"] {
        let part = call(
            &[
                &common[..],
                &["--out", &two, "--k", "3", "--rank", rank, "--world", "2"],
            ]
            .concat(),
        );
        assert!(part.status.success(), "{}", String::from_utf8_lossy(&part.stderr));
    }
    assert_eq!(ok(&["eval", "merge", &two, "--json"])["scores"], report["scores"]);
    assert_eq!(read(&place.at("two"), "predictions.json"), predictions);

    let contrastive = ok(&[&common[..], &["--out", &place.text("itc"), "--k", "0"]].concat());
    assert_eq!(score(&contrastive, "TR@1"), score(&report, "ITC TR@1"));
    // equal captions of other pictures count too, if that is asked for: one text, one rank
    ok(&[
        &common[..],
        &["--out", &place.text("shared"), "--k", "3", "--shared-captions"],
    ]
    .concat());
    let shared = read(&place.at("shared"), "predictions.json");
    let texts = shared["text_to_image"].as_array().expect("list").iter();
    let ranks: Vec<&Value> = texts
        .filter(|t| t["caption"] == "something")
        .map(|t| &t["rank"])
        .collect();
    assert!(
        ranks.len() > 1 && ranks.windows(2).all(|pair| pair[0] == pair[1]),
        "{ranks:?}"
    );
}

#[test]
fn the_matching_scores_are_those_of_the_match_command() {
    let place = Place::new();
    let model = fixture("parity/itm");
    let out = place.text("m");
    ok(&[
        "eval",
        "retrieval",
        &place.shard,
        "--model",
        &model,
        "--json",
        "--out",
        &out,
        "--no-clean",
        "--limit",
        "1",
    ]);
    let journal = std::fs::read_to_string(place.at("m/pairs.0.jsonl")).expect("journal");
    let line: Value = serde_json::from_str(journal.lines().next().expect("a line")).expect("JSON");
    let file = std::fs::read(fixture("parity/itm/expected.safetensors")).expect("fixture");
    let expected = safetensors::SafeTensors::deserialize(&file).expect("fixture");
    let value = |name: &str, index: usize| {
        let data = expected.tensor(name).expect("tensor").data();
        f64::from(f32::from_le_bytes(
            data[4 * index..][..4].try_into().expect("4 bytes"),
        ))
    };
    // boat.png with its text is the first pair of transformers' record; 1e-4 as for the model alone
    assert!(
        (line["itm"][0].as_f64().expect("number") - value("itm.logits", 1)).abs() < 1e-4,
        "{line}"
    );
    assert!(
        (line["cosine"][0].as_f64().expect("number") - value("itc.cosine", 0)).abs() < 1e-4,
        "{line}"
    );
}

/// A run that was stopped takes the embeddings that it had, and ranks to the same bits.
#[test]
fn retrieval_goes_on_with_stored_embeddings() {
    let place = Place::new();
    let (model, out) = (fixture("parity/itm"), place.text("r"));
    let args = [
        "eval",
        "retrieval",
        &place.shard,
        "--model",
        &model,
        "--json",
        "--k",
        "2",
        "--batch",
        "1",
        "--out",
        &out,
    ];
    let report = ok(&args);
    let file = |name: &str| std::fs::read(place.at(&format!("r/{name}"))).expect("file");
    let (images, texts, pairs) = (file("images.0.bin"), file("texts.0.bin"), file("pairs.0.jsonl"));
    let contrastive = file("contrastive.json");
    // stopped while the third picture was being written: half of the embeddings are there
    std::fs::write(place.at("r/images.0.bin"), &images[..images.len() / 2 + 5]).expect("cut");
    std::fs::write(place.at("r/texts.0.bin"), &texts[..texts.len() / 2 + 5]).expect("cut");
    std::fs::remove_file(place.at("r/pairs.0.jsonl")).expect("remove");
    std::fs::remove_file(place.at("r/contrastive.json")).expect("remove");
    assert_eq!(ok(&args)["scores"], report["scores"]);
    assert_eq!(
        (file("images.0.bin"), file("texts.0.bin")),
        (images.clone(), texts.clone())
    );
    assert_eq!(file("contrastive.json"), contrastive);
    let sorted = |bytes: &[u8]| {
        let mut lines: Vec<String> = String::from_utf8_lossy(bytes)
            .lines()
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&file("pairs.0.jsonl")), sorted(&pairs));

    // the embeddings are what it takes: with two pictures' exchanged the ranking follows them
    let record = images.len() / 4;
    let mut exchanged = images.clone();
    let (a, b) = (8 + 8, record - 4);
    for at in a..b {
        exchanged.swap(at, record + at);
    }
    for first in [0, record] {
        let sum = crc32c(&exchanged[first..first + record - 4]).to_le_bytes();
        exchanged[first + record - 4..first + record].copy_from_slice(&sum);
    }
    std::fs::write(place.at("r/images.0.bin"), exchanged).expect("write");
    ok(&args);
    assert_ne!(file("contrastive.json"), contrastive);
}
