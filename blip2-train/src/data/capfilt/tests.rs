use super::super::source::SourceConfig;
use super::super::stream::Data;
use super::super::testing::{picture_shards, png, tar_bytes};
use super::super::webdataset::{AnyTarShard, TarFields};
use super::*;

/// Captions name the picture's width, which the scorer knows to be right.
struct Toy {
    calls: usize,
    fail_at: usize,
}

impl Captioner for Toy {
    fn caption(&mut self, images: &[RgbImage], n: usize) -> Result<Vec<Vec<String>>, ModelError> {
        self.calls += 1;
        if self.calls == self.fail_at {
            return Err("out of memory".into());
        }
        Ok(images
            .iter()
            .map(|i| {
                (0..n)
                    .map(|k| format!("width {}", i.width() + k as u32 / 2))
                    .collect()
            })
            .collect())
    }
}

struct Truth;

impl Scorer for Truth {
    fn score(&mut self, images: &[RgbImage], captions: &[Vec<String>]) -> Result<Vec<Vec<f32>>, ModelError> {
        let score =
            |i: &RgbImage, c: &String| match c.strip_prefix("width ").map(|w| w.parse::<i64>().unwrap()) {
                Some(w) => 1.0 - 0.1 * (w - i64::from(i.width())).abs() as f32,
                None => 0.95,
            };
        Ok(images
            .iter()
            .zip(captions)
            .map(|(i, cs)| cs.iter().map(|c| score(i, c)).collect())
            .collect())
    }
}

/// The job, by the toys; the keys of the samples passed over.
fn run(
    set: &ShardSet,
    folder: &Path,
    config: &CapFiltConfig,
    toy: &mut Toy,
) -> (Result<CapFiltReport, CapFiltError>, Vec<String>) {
    let mut heard = Vec::new();
    let mut models = Models {
        captioner: toy,
        scorer: &mut Truth,
        settings: Map::new(),
    };
    let report = capfilt(
        set,
        folder,
        config,
        &mut models,
        &mut |s| heard.push(s.key.clone()),
        &|_| {},
    );
    (report, heard)
}

fn config() -> CapFiltConfig {
    let mut config = CapFiltConfig {
        synthetic: 4,
        batch_size: 3,
        ..CapFiltConfig::default()
    };
    config.preparation.transform = super::super::augment::Transform::Keep;
    config
}

fn shards(dir: &tempfile::TempDir) -> ShardSet {
    let source = SourceConfig::new(format!("{}/*.tar", dir.path().display()))
        .open()
        .unwrap();
    let Data::Shards(set) = source.data else { panic!() };
    ShardSet::clone(&set)
}

#[test]
fn the_best_captions_are_kept_and_a_stopped_job_goes_on() {
    let (dir, _) = picture_shards(&[4, 8], 0);
    let set = shards(&dir);
    let out = dir.path().join("out");
    let start = |fail_at| run(&set, &out, &config(), &mut Toy { calls: 0, fail_at });
    let (stopped, heard) = start(4);
    assert!(matches!(
        stopped,
        Err(CapFiltError::Data(DataError::Model {
            stage: "captioner",
            ..
        }))
    ));
    let (report, heard_again) = start(usize::MAX);
    let want = CapFiltReport {
        shards: 1,
        present: 1,
        samples: 7,
        skipped: 1,
        synthetic: 7,
        original: 7,
        ..CapFiltReport::default()
    };
    assert_eq!(report.unwrap(), want);

    let mut shard = AnyTarShard::open(&out.join("1.tar"), &TarFields::default(), 0).unwrap();
    let first = shard.next_sample(true).unwrap().unwrap().unwrap();
    assert_eq!(
        (first.key.as_str(), first.captions),
        ("s0-4", vec!["width 24".to_owned(), "0 4".to_owned()])
    );
    assert_eq!(start(1).0.unwrap().present, 2);
    assert_eq!([heard, heard_again].concat(), ["s0-9", "s0-9"]);
}

#[test]
fn ranks_share_the_shards_and_a_threshold_rejects() {
    let (dir, _) = picture_shards(&[2, 2, 2], 0);
    let set = shards(&dir);
    let start = |folder: &str, config: CapFiltConfig| {
        let toy = &mut Toy { calls: 0, fail_at: 0 };
        run(&set, &dir.path().join(folder), &config, toy).0.unwrap()
    };
    let of_two = |rank| CapFiltConfig {
        rank,
        world: 2,
        ..config()
    };
    assert_eq!(
        (start("a", of_two(0)).shards, start("a", of_two(1)).shards),
        (2, 1)
    );
    let strict = CapFiltConfig {
        min_score: Some(1.5),
        ..config()
    };
    let strict = start("b", strict);
    assert_eq!((strict.samples, strict.rejected), (0, 6));
    let ranked = rank(
        vec!["a".into(), "b".into(), "c".into(), "d".into()],
        &[0.5, f32::NAN, 0.9, 0.5],
    );
    assert_eq!(ranked.iter().map(|(c, _)| c.as_str()).collect::<String>(), "cadb");
    assert_eq!(
        distinct(["A b", " ", "a B ", "c"].map(str::to_owned).into_iter()),
        ["A b", "c"]
    );
}

#[test]
fn a_shard_that_cannot_be_used_is_not_written_and_costs_no_other() {
    let (dir, _) = picture_shards(&[3, 3, 3, 3, 3, 3], 0);
    let at = |name: &str| dir.path().join(name);
    let good = std::fs::read(at("1.tar")).unwrap();
    std::fs::write(at("0.tar"), [7; 5000]).unwrap(); // no archive at all
    std::fs::write(at("1.tar"), &good[..good.len() / 2 - 300]).unwrap(); // a broken download
    std::fs::write(at("2.tar"), [0; 1024]).unwrap(); // an archive of nothing
    let mut inside = good.clone();
    inside[..512].fill(1); // its first member is gone
    std::fs::write(at("3.tar"), inside).unwrap();
    std::fs::write(
        at("4.tar"),
        tar_bytes(&[("a.png", b"no picture"), ("a.txt", b"a")]),
    )
    .unwrap();
    let set = shards(&dir);
    let start = |config: &CapFiltConfig| run(&set, &at("out"), config, &mut Toy { calls: 0, fail_at: 0 });
    let (report, _) = start(&config());
    let report = report.unwrap();
    assert_eq!((report.shards, report.samples, report.skipped), (1, 3, 0));
    let lost: Vec<(&str, &str)> = report
        .lost
        .iter()
        .map(|l| (l.shard.rsplit('/').next().unwrap(), l.reason.as_str()))
        .collect();
    let want = [
        ("0.tar", "no valid tar header"),
        ("1.tar", "the shard ends at byte"),
        ("2.tar", "holds no sample"),
        ("3.tar", "no valid tar header at byte 0"),
        ("4.tar", "1 of 1 samples cannot be used"),
    ];
    assert_eq!(lost.len(), want.len(), "{lost:?}");
    for ((name, reason), (shard, begins)) in lost.iter().zip(want) {
        assert!(*name == shard && reason.starts_with(begins), "{name}: {reason}");
    }
    let mut written: Vec<_> = std::fs::read_dir(at("out"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    written.sort();
    assert_eq!(written, ["5.tar", "capfilt.json"]);
    // fetched again, it is done; the others still are not
    std::fs::write(at("1.tar"), good).unwrap();
    let again = start(&config()).0.unwrap();
    assert_eq!((again.shards, again.present, again.lost.len()), (1, 1, 4));
}

#[test]
fn too_many_bad_samples_lose_a_shard() {
    let dir = tempfile::tempdir().unwrap();
    let picture = png(20, 30);
    let files: Vec<(String, &[u8])> = (0..20)
        .flat_map(|i| {
            let body = if i < 6 { &picture[..40] } else { &picture };
            [(format!("{i}.png"), body), (format!("{i}.txt"), &b"a"[..])]
        })
        .collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, body)| (name.as_str(), *body)).collect();
    std::fs::write(dir.path().join("0.tar"), tar_bytes(&files)).unwrap();
    let set = shards(&dir);
    let start = |max_bad| {
        let config = CapFiltConfig { max_bad, ..config() };
        let toy = &mut Toy { calls: 0, fail_at: 0 };
        run(&set, &dir.path().join("out"), &config, toy).0
    };
    let lost = start(0.25).unwrap().lost;
    assert!(
        lost[0]
            .reason
            .starts_with("6 of 20 samples cannot be used, of which 5 may"),
        "{lost:?}"
    );
    let report = start(0.3).unwrap();
    assert_eq!((report.samples, report.skipped, report.lost), (14, 6, Vec::new()));
    assert!(matches!(
        start(1.5),
        Err(CapFiltError::Data(DataError::Setting { field: "max_bad", .. }))
    ));
}

#[test]
fn the_inputs_own_fields_stay_with_their_picture() {
    let dir = tempfile::tempdir().unwrap();
    let picture = png(20, 30);
    let (first, third) = (
        r#"{"caption":"a","url":"http://a/1","width":20}"#,
        "\u{feff}{\"url\":\"http://a/3\"}",
    );
    let files: [(&str, &[u8]); 8] = [
        ("k.png", &picture),
        ("k.json", first.as_bytes()),
        ("bad.png", b"no picture"),
        ("bad.json", br#"{"url":"http://a/2"}"#),
        ("list.png", &picture),
        ("list.json", br#"["b","c"]"#),
        // the key of the first again
        ("k.json", third.as_bytes()),
        ("k.png", &picture),
    ];
    std::fs::write(dir.path().join("0.tar"), tar_bytes(&files)).unwrap();
    let out = dir.path().join("out");
    let report = run(&shards(&dir), &out, &config(), &mut Toy { calls: 0, fail_at: 0 }).0;
    assert_eq!(report.unwrap().samples, 3);
    let mut tar = tar::Archive::new(std::fs::File::open(out.join("0.tar")).unwrap());
    let mut inputs = Vec::new();
    for entry in tar.entries().unwrap() {
        let entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        if name.ends_with(".capfilt") {
            let notes: Value = serde_json::from_reader(entry).unwrap();
            inputs.push((
                name,
                notes["input"]["url"].clone(),
                notes["input"]["width"].clone(),
            ));
        } else if name.ends_with(".json") {
            let list: Value = serde_json::from_reader(entry).unwrap();
            assert!(list.is_array(), "what LAVIS reads: {list}");
        }
    }
    let want = [
        ("k.capfilt".to_owned(), Value::from("http://a/1"), Value::from(20)),
        ("list.capfilt".to_owned(), Value::Null, Value::Null),
        ("k-2.capfilt".to_owned(), Value::from("http://a/3"), Value::Null),
    ];
    assert_eq!(inputs, want);
}

#[test]
fn other_settings_need_another_folder() {
    let (dir, _) = picture_shards(&[2, 2], 0);
    let (set, out) = (shards(&dir), dir.path().join("out"));
    let start = |keep| {
        let config = CapFiltConfig { keep, ..config() };
        run(&set, &out, &config, &mut Toy { calls: 0, fail_at: 0 }).0
    };
    std::fs::create_dir(&out).unwrap();
    // what a killed run leaves
    std::fs::write(out.join(".0.tar.aB3dE6.tmp"), b"half").unwrap();
    assert_eq!(start(2).unwrap().shards, 2);
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 3);
    let error = start(1).unwrap_err().to_string();
    assert!(error.contains("`keep` was 2 and is now 1"), "{error}");
    assert_eq!(start(2).unwrap().present, 2);
    std::fs::remove_file(out.join("capfilt.json")).unwrap();
    assert!(matches!(start(2), Err(CapFiltError::NoRecord { .. })));
}

#[test]
fn shards_that_would_become_one_are_refused() {
    let (dir, _) = picture_shards(&[1], 0);
    let mut set = shards(&dir);
    set.paths.push(dir.path().join("other/0.tar.gz"));
    let error = run(
        &set,
        &dir.path().join("out"),
        &config(),
        &mut Toy { calls: 0, fail_at: 0 },
    )
    .0;
    let error = error.unwrap_err().to_string();
    assert!(
        error.starts_with("two of the shards would become 0.tar"),
        "{error}"
    );
}
