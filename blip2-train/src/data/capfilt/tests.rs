use super::super::source::SourceConfig;
use super::super::testing::picture_shards;
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
    let mut heard = Vec::new();
    let mut run = |fail_at| {
        let mut toy = Toy { calls: 0, fail_at };
        capfilt(
            &set,
            &out,
            &config(),
            &mut toy,
            &mut Truth,
            &mut |s| heard.push(s.key.clone()),
            &|_| {},
        )
    };
    assert!(matches!(
        run(4),
        Err(DataError::Model {
            stage: "captioner",
            ..
        })
    ));
    let report = run(usize::MAX).unwrap();
    let want = CapFiltReport {
        shards: 1,
        present: 1,
        samples: 7,
        skipped: 1,
        rejected: 0,
        synthetic: 7,
        original: 7,
    };
    assert_eq!(report, want);

    let mut shard = AnyTarShard::open(&out.join("1.tar"), &TarFields::default(), 0).unwrap();
    let first = shard.next_sample(true).unwrap().unwrap().unwrap();
    assert_eq!(
        (first.key.as_str(), first.captions),
        ("s0-4", vec!["width 24".to_owned(), "0 4".to_owned()])
    );
    assert_eq!(run(1).unwrap().present, 2);
    assert_eq!(heard, ["s0-9", "s0-9"]);
}

#[test]
fn ranks_share_the_shards_and_a_threshold_rejects() {
    let (dir, _) = picture_shards(&[2, 2, 2], 0);
    let set = shards(&dir);
    let run = |folder: &str, config: CapFiltConfig| {
        let mut toy = Toy { calls: 0, fail_at: 0 };
        capfilt(
            &set,
            &dir.path().join(folder),
            &config,
            &mut toy,
            &mut Truth,
            &mut |_| {},
            &|_| {},
        )
        .unwrap()
    };
    assert_eq!(
        run(
            "a",
            CapFiltConfig {
                rank: 0,
                world: 2,
                ..config()
            }
        )
        .shards,
        2
    );
    assert_eq!(
        run(
            "a",
            CapFiltConfig {
                rank: 1,
                world: 2,
                ..config()
            }
        )
        .shards,
        1
    );
    let strict = run(
        "b",
        CapFiltConfig {
            min_score: Some(1.5),
            ..config()
        },
    );
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
