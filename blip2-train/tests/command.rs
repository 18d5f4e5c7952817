//! The contract of `blip2-train eval` and `blip2-train data`: JSON on stdout, everything else on stderr, exit code 2 on
//! bad input; a stopped evaluation goes on, and several processes give what one gives.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use blip2_model::backend::Flex;
use blip2_model::checkpoint::DtypePolicy;
use blip2_model::generate::GenerateOptions;
use blip2_model::session::{Request, Session};
use blip2_train::run::crc32c::crc32c;
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

/// Three questions about two pictures, as LAVIS and A-OKVQA write them.
fn questions(place: &Place) -> String {
    let path = place.at("questions.json");
    let row = |id: u64, image: &str, question: &str, answer: &str| {
        json!({"question_id": id, "image": format!("{image}.png"), "question": question, "answer": vec![answer; 10],
            "answer_type": if id == 3 { "number" } else { "other" }, "choices": ["boat", "cat"], "correct_choice_idx": 0})
    };
    let rows = json!([
        row(1, "boat", "What is this?", "boat"),
        row(2, "boat", "What colour is the water?", "blue"),
        row(3, "house", "How many?", "1"),
    ]);
    std::fs::write(&path, rows.to_string()).expect("write");
    path.to_string_lossy().into_owned()
}

#[test]
fn vqa_generates_or_ranks() {
    let place = Place::new();
    let (data, images, model) = (questions(&place), fixture("parity/images"), fixture("parity/t5"));
    let common = [
        "eval", "vqa", &data, "--images", &images, "--model", &model, "--json",
    ];
    let report = ok(&[&common[..], &["--out", &place.text("g")]].concat());
    assert_eq!(
        report["config"]["answers"]["generate"]["length_penalty"], -1.0,
        "LAVIS for T5"
    );
    assert_eq!(report["config"]["prompt"], "Question: {} Short answer:");
    assert!(score(&report, "overall") >= 0.0 && score(&report, "number") >= 0.0);
    let predictions = read(&place.at("g"), "predictions.json");
    let ids: Vec<&Value> = predictions
        .as_array()
        .expect("list")
        .iter()
        .map(|p| &p["question_id"])
        .collect();
    assert_eq!(ids, [1, 2, 3]);

    let list = place.at("plural.txt");
    std::fs::write(&list, "boats\n").expect("write");
    let list = list.to_string_lossy().into_owned();
    for (out, flags, answer, overall) in [
        ("p", &[][..], "boats", 0.0),
        ("l", &["--lemmatise"][..], "boat", 33.33),
    ] {
        let report = ok(&[
            &common[..],
            &["--out", &place.text(out), "--candidates", &list],
            flags,
        ]
        .concat());
        assert_eq!(score(&report, "overall"), overall);
        let predictions = read(&place.at(out), "predictions.json");
        assert!(
            predictions
                .as_array()
                .expect("list")
                .iter()
                .all(|line| line["answer"] == answer)
        );
    }

    let list = place.at("answers.txt");
    std::fs::write(&list, "boat\nblue\n1\n").expect("write");
    let list = list.to_string_lossy().into_owned();
    ok(&[&common[..], &["--out", &place.text("r"), "--candidates", &list]].concat());
    for line in read(&place.at("r"), "predictions.json").as_array().expect("list") {
        assert!(
            ["boat", "blue", "1"].contains(&line["answer"].as_str().expect("text")),
            "{line}"
        );
    }
    let choices = ok(&[
        &common[..],
        &[
            "--out",
            &place.text("c"),
            "--candidates",
            "choices",
            "--batch",
            "1",
        ],
    ]
    .concat());
    assert!((0.0..=100.0).contains(&score(&choices, "multiple choice")));
    refused(
        &[
            &common[..],
            &["--out", &place.text("x"), "--candidates", "none.txt"],
        ]
        .concat(),
        "none.txt",
    );
}

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

#[test]
fn capfilt_writes_the_best_captions_and_goes_on() {
    let place = Place::new();
    let (captioner, judge, out) = (fixture("parity/opt"), fixture("parity/itm"), place.text("clean"));
    let args = [
        "data",
        "capfilt",
        &place.shard,
        "--model",
        &captioner,
        "--scorer",
        &judge,
        "--out",
        &out,
        "--json",
        "--synthetic",
        "3",
        "--keep",
        "2",
        "--max-new-tokens",
        "5",
        "--seed",
        "1",
    ];
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

/// Trained with the question in the Q-Former, exported, and evaluated: the answers are those of a session, which
/// `blip2 vqa` is, given the same words.
#[test]
fn an_evaluation_answers_as_a_session_with_the_question_in_the_q_former() {
    let place = Place::new();
    let (opt, itm) = (fixture("parity/opt"), fixture("parity/itm"));
    let config = std::fs::read_to_string(format!("{opt}/config.json")).expect("read");
    let config = config.replace("\"vocab_size\": 97", "\"vocab_size\": 321");
    std::fs::write(place.at("config.json"), config).expect("written");
    let (data, images) = (questions(&place), fixture("parity/images"));
    let recipe = format!(
        "stage = \"stage2\"\n[model]\nconfig = \"{}\"\nvision_from = \"{opt}\"\nlanguage_from = \"{opt}\"\n\
         bridge_from = [\"{opt}\"]\nqformer_tokenizer = \"{itm}\"\nqformer_text_input = true\n\
         [stage2]\ntask = \"answer\"\ntemplate = \"Question: {{}} Answer:\"\n\
         [data]\nmax_txt_len = 24\n[[data.train]]\npath = \"{data}\"\nimages = \"{images}\"\n\
         [train]\nbatch_size = 3\n[schedule]\nmax_iters = 4\nwarmup_steps = 0\ninit_lr = 1e-2\n",
        place.text("config.json")
    );
    std::fs::write(place.at("recipe.toml"), recipe).expect("written");
    let (run, out) = (place.text("run"), place.text("answers"));
    let trained = call(&["train", &place.text("recipe.toml"), "--out", &run]);
    assert!(
        trained.status.success(),
        "{}",
        String::from_utf8_lossy(&trained.stderr)
    );
    let model = place.at("run").join("export");
    let args = [
        "eval",
        "vqa",
        &data,
        "--images",
        &images,
        "--model",
        model.to_str().expect("UTF-8"),
        "--out",
        &out,
        "--json",
        "--prompt",
        "Question: {} Answer:",
        "--min-new-tokens",
        "5",
    ];
    let report = ok(&args);
    let options: GenerateOptions =
        serde_json::from_value(report["config"]["answers"]["generate"].clone()).expect("options");
    assert_eq!(report["config"]["clean"], true);
    let predictions = read(Path::new(&out), "predictions.json");

    let session = Session::<Flex>::open(&model, DtypePolicy::default(), false, &Default::default());
    let session = session.unwrap_or_else(|e| panic!("{e}"));
    let asked = [
        ("boat", "what is this?"),
        ("boat", "what colour is the water?"),
        ("house", "how many?"),
    ];
    for ((image, question), line) in asked.iter().zip(predictions.as_array().expect("list")) {
        let image = format!("{images}/{image}.png");
        let picture = Session::<Flex>::read_image(Path::new(&image)).expect("a picture");
        let mut request = Request {
            image,
            prompt: format!("Question: {question} Answer:"),
            question: question.to_string(),
            options: options.clone(),
        };
        let answers = session.answer(std::slice::from_ref(&picture), std::slice::from_ref(&request));
        assert_eq!(
            line["answer"],
            answers.expect("an answer")[0].outputs[0].text,
            "{question}"
        );
        // the text matters: without it the same prompt has another likelihood
        let candidates = ["boat".to_string()];
        let with = session.rank(&picture, &request, &candidates).expect("ranked");
        request.question.clear();
        let without = session.rank(&picture, &request, &candidates).expect("ranked");
        let moved = with[0].log_likelihood - without[0].log_likelihood;
        assert!(moved.abs() > 1e-4, "{question}: {moved:e}");
    }
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
    let filter = [
        "data",
        "capfilt",
        &shards,
        "--model",
        &captioner,
        "--scorer",
        &judge,
        "--out",
        &out,
        "--json",
        "--synthetic",
        "1",
        "--max-new-tokens",
        "3",
    ];
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
