//! `data capfilt`: the best captions, shares of the work, what cannot be used.

use serde_json::json;

use crate::{Place, call, fixture, ok, refused};

/// What every run of it here names.
fn filter<'a>(shards: &'a str, captioner: &'a str, judge: &'a str, out: &'a str) -> Vec<&'a str> {
    let names = ["data", "capfilt", shards, "--model", captioner];
    [&names[..], &["--scorer", judge, "--out", out, "--json"]].concat()
}

#[test]
fn capfilt_writes_the_best_captions_and_goes_on() {
    let place = Place::new();
    let (captioner, judge, out) = (fixture("parity/opt"), fixture("parity/itm"), place.text("clean"));
    let mut args = filter(&place.shard, &captioner, &judge, &out);
    args.extend([
        "--synthetic",
        "3",
        "--keep",
        "2",
        "--max-new-tokens",
        "5",
        "--seed",
        "1",
    ]);
    let report = ok(&args);
    assert_eq!(
        (&report["samples"], &report["skipped"], &report["shards"]),
        (&json!(4), &json!(1), &json!(1))
    );
    let kept = report["synthetic"].as_u64().expect("number") + report["original"].as_u64().expect("number");
    assert!((4..=8).contains(&kept), "{report}");
    assert_eq!(ok(&args)["present"], 1);
    let stats = ok(&["data", "stats", &format!("{out}/pictures.tar"), "--json"]);
    assert_eq!(stats["samples"], 4);
    refused(
        &[
            "data",
            "capfilt",
            &fixture("parity/images"),
            "--model",
            &captioner,
            "--out",
            &out,
        ],
        "data convert",
    );
    refused(
        &[
            "data",
            "capfilt",
            &place.shard,
            "--model",
            &captioner,
            "--out",
            &out,
        ],
        "--scorer",
    );
}

#[test]
fn capfilt_shares_out_its_shards_and_names_those_it_cannot_use() {
    let place = Place::new();
    for name in ["web-0.tar", "web-1.tar"] {
        std::fs::copy(&place.shard, place.at(name)).expect("copy");
    }
    std::fs::write(place.at("web-2.tar"), [7; 2000]).expect("write");
    let (captioner, judge, out) = (fixture("parity/opt"), fixture("parity/itm"), place.text("clean"));
    let shards = place.text("web-*.tar");
    let mut filter = filter(&shards, &captioner, &judge, &out);
    filter.extend(["--synthetic", "1", "--max-new-tokens", "3"]);
    let launched = call(&[&["launch", "--nproc", "2", "--"], &filter[..]].concat());
    let stderr = String::from_utf8_lossy(&launched.stderr);
    assert_eq!(launched.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("web-2.tar: no valid tar header") && stderr.contains("data convert"),
        "{stderr}"
    );
    // one shard each, and the third is nobody's
    let stdout = String::from_utf8_lossy(&launched.stdout);
    assert_eq!(stdout.matches("\"shards\": 1").count(), 2, "{stdout}");
    assert!(place.at("clean/web-1.tar").exists() && !place.at("clean/web-2.tar").exists());
    // repaired, it is done by whoever comes, with the same settings only
    std::fs::copy(&place.shard, place.at("web-2.tar")).expect("copy");
    refused(
        &[&filter[..], &["--keep", "1"]].concat(),
        "`keep` was 2 and is now 1",
    );
    refused(
        &[&filter[..], &["--top-p", "0.5"]].concat(),
        "`generation.top_p` was",
    );
    let report = ok(&[&filter[..], &["--batch", "3"]].concat());
    assert_eq!((&report["shards"], &report["present"]), (&json!(1), &json!(2)));
}
