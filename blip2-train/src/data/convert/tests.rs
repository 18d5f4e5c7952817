use super::super::source::SourceConfig;
use super::super::testing::{png, tar_bytes};
use super::*;

/// Everything that must survive, by caption or question.
fn contents(path: &Path) -> Vec<(Vec<String>, Vec<u8>, Value)> {
    let config = SourceConfig {
        pairs: Some(false),
        ..SourceConfig::new(path.to_string_lossy())
    };
    let mut mixture = in_order(&config.open().unwrap(), Start::Epoch(0)).unwrap();
    let mut out = Vec::new();
    while let Some(drawn) = mixture.next_sample().unwrap() {
        let mut sample = drawn.sample.unwrap();
        let bytes = picture(&mut sample).unwrap().0;
        out.push((sample.captions.clone(), bytes, Value::Object(fields(&sample))));
    }
    out
}

fn original(dir: &Path) -> Source {
    let (a, b) = (png(5, 6), png(7, 8));
    let json = br#"{"caption":["one","two"],"image_id":"7"}"#;
    let vqa = br#"{"question":"q?","question_id":3,"answer":["x","y","x"],"choices":["x","z"],"correct_choice_idx":0}"#;
    let files: [(&str, &[u8]); 9] = [
        ("../up/k.png", &a),
        ("../up/k.json", json),
        ("bad.png", b"no picture"),
        ("bad.txt", b"t"),
        ("v.PNG", &b),
        ("v.json", vqa),
        ("k.png", &b),
        ("k.txt", "ünïcode \"quoted\"".as_bytes()),
        ("z.txt", b"no picture"),
    ];
    // the tar writer refuses "..", a hostile archive does not
    let mut bytes = tar_bytes(&files.map(|(n, b)| (if n.starts_with("..") { &n[3..] } else { n }, b)));
    for at in 0..bytes.len() / 512 {
        let block = &mut bytes[at * 512..(at + 1) * 512];
        if block.starts_with(b"up/k.") {
            let mut header = tar::Header::from_byte_slice(block).clone();
            let name = [b"../", &block[..20]].concat();
            header.as_old_mut().name[..23].copy_from_slice(&name);
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
    }
    std::fs::write(dir.join("in.tar"), bytes).unwrap();
    SourceConfig::new(dir.join("in.tar").to_string_lossy())
        .open()
        .unwrap()
}

#[test]
fn round_trips_keep_everything() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let source = original(dir);
    let mut heard = Vec::new();
    let mut run = |source: &Source, target| {
        let done = convert(source, &target, &mut |s| heard.push(s.key.clone()), &|_| {}).unwrap();
        assert_eq!(done.samples, 3);
    };
    run(
        &source,
        Target::Tar {
            folder: dir.join("tar"),
            prefix: "p".into(),
            per_shard: 2,
        },
    );
    run(
        &source,
        Target::Folder {
            folder: dir.join("f"),
        },
    );
    let whole = contents(&dir.join("tar"));
    assert_eq!(whole[0].0, ["one", "two"]);
    assert_eq!(whole[2].0, ["ünïcode \"quoted\""]);
    assert_eq!(whole[1].2["answer"], json!(["x", "x", "y"]));
    assert_eq!(contents(&dir.join("f")), whole);
    assert!(dir.join("f/images/up/k.png").exists(), "no way out of the folder");
    let folder = SourceConfig {
        pairs: Some(false),
        ..SourceConfig::new(dir.join("f").to_string_lossy())
    }
    .open()
    .unwrap();
    run(
        &folder,
        Target::Json {
            folder: dir.join("j"),
        },
    );
    // rows of a file name their pictures, which tar members without an identifier do not
    let without_ids = |mut all: Vec<(Vec<String>, Vec<u8>, Value)>| {
        for (_, _, fields) in &mut all {
            fields.as_object_mut().unwrap().remove("image_id");
        }
        all
    };
    let whole = without_ids(whole);
    assert_eq!(without_ids(contents(&dir.join("j/annotations.json"))), whole);
    run(
        &folder,
        Target::Tar {
            folder: dir.join("t2"),
            prefix: "p".into(),
            per_shard: 100,
        },
    );
    assert_eq!(without_ids(contents(&dir.join("t2"))), whole);
    assert_eq!(heard, ["bad", "z", "bad", "z"]);
}

#[test]
fn rows_of_one_picture_share_its_file_and_keep_their_labels() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let mut text = String::new();
    for picture in 0..3 {
        std::fs::write(dir.join(format!("{picture}.png")), png(5 + picture, 6)).unwrap();
        for caption in 0..5 {
            let row = json!({
                "image": format!("{picture}.png"), "caption": format!("{picture} {caption}"), "label": caption % 2,
                "question": "q?", "answer": ["x"], "answer_type": "other", "question_type": "what"
            });
            text += &format!("{row}\n");
        }
    }
    std::fs::write(dir.join("rows.jsonl"), text).unwrap();
    let source = SourceConfig::new(dir.join("rows.jsonl").to_string_lossy())
        .open()
        .unwrap();
    let to = |target| convert(&source, &target, &mut |s| panic!("{s}"), &|_| {}).unwrap();
    to(Target::Json {
        folder: dir.join("j"),
    });
    to(Target::Folder {
        folder: dir.join("f"),
    });
    to(Target::Tar {
        folder: dir.join("t"),
        prefix: "p".into(),
        per_shard: 100,
    });
    let files = |folder: &str| {
        std::fs::read_dir(dir.join(folder).join("images"))
            .unwrap()
            .count()
    };
    assert_eq!((files("j"), files("f")), (3, 3));
    let list: Vec<Value> =
        serde_json::from_slice(&std::fs::read(dir.join("j/annotations.json")).unwrap()).unwrap();
    assert_eq!(list.len(), 15);
    for (i, row) in list.iter().enumerate() {
        assert_eq!(row["image_id"], format!("{:08}", i / 5));
        assert_eq!(row["image"], format!("images/{:08}.png", i / 5));
        assert_eq!(row["label"], i % 5 % 2);
        assert_eq!(
            (&row["answer_type"], &row["question_type"]),
            (&json!("other"), &json!("what"))
        );
    }
    for from in ["j/annotations.json", "f", "t"] {
        let ids: std::collections::BTreeSet<String> = contents(&dir.join(from))
            .into_iter()
            .map(|(_, _, fields)| fields["image_id"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(ids.len(), 3, "{from}");
    }
}

#[test]
fn a_stopped_conversion_goes_on() {
    let (dir, set) = super::super::testing::picture_shards(&[8, 8], 0);
    let source = Source {
        name: "s".into(),
        data: super::super::stream::Data::Shards(Arc::new(set)),
        ratio: None,
    };
    let out = dir.path().join("out");
    let target = Target::Tar {
        folder: out.clone(),
        prefix: "p".into(),
        per_shard: 3,
    };
    let run = |progress: &dyn Fn(u64)| convert(&source, &target, &mut |_| {}, progress).unwrap();
    let whole = run(&|_| {});
    // pictures 9 is cut in half, which its header does not show
    assert_eq!(
        whole,
        Converted {
            samples: 16,
            skipped: 0,
            shards: 6
        }
    );
    let files = || -> Vec<Vec<u8>> {
        (0..6)
            .map(|i| std::fs::read(out.join(format!("p-{i:05}.tar"))).unwrap())
            .collect()
    };
    let first = files();
    std::fs::remove_dir_all(&out).unwrap();
    let stop = std::panic::AssertUnwindSafe(|| run(&|n| assert!(n < 8, "power cut")));
    assert!(std::panic::catch_unwind(stop).is_err());
    assert_eq!(
        std::fs::read_dir(&out).unwrap().count(),
        3,
        "two shards and the state"
    );
    let seen = std::cell::Cell::new(u64::MAX);
    assert_eq!(run(&|n| seen.set(seen.get().min(n))), whole);
    assert_eq!(seen.get(), 6, "went on after the second shard");
    assert_eq!(files(), first);
    assert_eq!(run(&|_| panic!("nothing left to read")), whole);
}
