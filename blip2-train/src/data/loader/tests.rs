use super::super::augment::Transform;
use super::super::stream::{Data, Order, Split};
use super::super::testing::picture_shards;
use super::*;
use proptest::prelude::*;

/// (pictures' bytes, captions) of a batch, enough to compare.
fn digest(batch: &Batch) -> Vec<(String, u64)> {
    let sum = |e: &Example| {
        e.image
            .as_raw()
            .iter()
            .enumerate()
            .map(|(i, &v)| i as u64 * u64::from(v))
            .sum()
    };
    batch
        .examples
        .iter()
        .map(|e| (e.caption.clone(), sum(e)))
        .collect()
}

fn sources(dirs: &mut Vec<tempfile::TempDir>, sizes: &[&[usize]], ratio: Option<f64>) -> Vec<Source> {
    sizes
        .iter()
        .enumerate()
        .map(|(i, sizes)| {
            let (dir, set) = picture_shards(sizes, i);
            dirs.push(dir);
            Source {
                name: format!("s{i}"),
                data: Data::Shards(Arc::new(set)),
                ratio,
            }
        })
        .collect()
}

fn preparation() -> Preparation {
    Preparation {
        transform: Transform::named("blip_image_train", 16).unwrap(),
        ..Preparation::default()
    }
}

#[test]
fn results_do_not_depend_on_threads_and_bad_samples_are_counted() {
    let mut dirs = Vec::new();
    let sources = sources(&mut dirs, &[&[20, 20, 11]], None);
    let run = |threads| {
        let config = LoaderConfig {
            batch_size: 8,
            threads,
            drop_last: false,
            ..LoaderConfig::default()
        };
        let mixture = MixtureConfig {
            split: Split {
                workers: 2,
                ..Split::default()
            },
            ..MixtureConfig::default()
        };
        let mut loader =
            Loader::new(&sources, &[preparation()], mixture, config, LoaderStart::Epoch(3)).unwrap();
        assert_eq!(loader.batches_per_epoch(), Some(7));
        let batches: Vec<Batch> = loader.by_ref().map(|b| b.unwrap()).collect();
        let names: Vec<String> = batches
            .iter()
            .flat_map(|b| &b.skipped)
            .map(|s| s.key.clone())
            .collect();
        (
            batches.iter().map(digest).collect::<Vec<_>>(),
            names,
            loader.counts().clone(),
        )
    };
    let (batches, names, counts) = run(1);
    // every tenth picture is damaged
    assert_eq!((counts.seen, counts.bad, counts.kinds["decode"]), (51, 5, 5));
    assert_eq!(names.len(), 5);
    assert_eq!(
        batches.iter().map(Vec::len).collect::<Vec<_>>(),
        [8, 8, 8, 8, 8, 6]
    );
    for threads in [2, 7] {
        assert_eq!(run(threads), (batches.clone(), names.clone(), counts.clone()));
    }
}

#[test]
fn too_many_bad_samples_stop_the_run() {
    let mut dirs = Vec::new();
    let sources = sources(&mut dirs, &[&[40]], None);
    let run = |errors| {
        let config = LoaderConfig {
            batch_size: 4,
            errors,
            ..LoaderConfig::default()
        };
        let order = Order {
            shuffle: false,
            ..Order::default()
        };
        let mixture = MixtureConfig {
            order,
            ..MixtureConfig::default()
        };
        Loader::new(&sources, &[preparation()], mixture, config, LoaderStart::Epoch(0))
            .unwrap()
            .collect::<Vec<_>>()
    };
    let strict = run(ErrorPolicy {
        allowed: 1,
        share: 0.0,
        ..ErrorPolicy::default()
    });
    match strict.last() {
        Some(Err(DataError::TooManyBad { bad: 2, last, .. })) => assert_eq!(last.key, "s0-19"),
        other => panic!("{other:?}"),
    }
    assert!(
        run(ErrorPolicy {
            allowed: 0,
            share: 0.11,
            ..ErrorPolicy::default()
        })
        .iter()
        .all(Result::is_ok)
    );
    assert!(
        run(ErrorPolicy {
            allowed: 0,
            share: 0.05,
            ..ErrorPolicy::default()
        })
        .iter()
        .any(Result::is_err)
    );
    assert!(run(ErrorPolicy::LENIENT).iter().all(Result::is_ok));
}

/// A loader over shards `0.tar`, `1.tar`, ... to whose files `damage` was done.
fn over_damaged(
    sizes: &[usize],
    errors: ErrorPolicy,
    repeat: bool,
    damage: impl Fn(&std::path::Path),
) -> (tempfile::TempDir, Loader) {
    let (dir, set) = picture_shards(sizes, 0);
    damage(dir.path());
    let source = Source {
        name: "s".into(),
        data: Data::Shards(Arc::new(set)),
        ratio: None,
    };
    let config = LoaderConfig {
        batch_size: 2,
        errors,
        ..LoaderConfig::default()
    };
    let mixture = MixtureConfig {
        repeat,
        ..MixtureConfig::default()
    };
    let loader = Loader::new(
        &[source],
        &[preparation()],
        mixture,
        config,
        LoaderStart::Epoch(0),
    );
    (dir, loader.unwrap())
}

/// Not a tar, broken off, cut gzip, vanished.
fn four_losses(dir: &std::path::Path) {
    let noise: Vec<u8> = (0..5000u32).map(|i| ((i * i) >> 3) as u8).collect();
    std::fs::write(dir.join("0.tar"), &noise).unwrap();
    let whole = std::fs::read(dir.join("1.tar")).unwrap();
    std::fs::write(dir.join("1.tar"), &whole[..whole.len() / 1024 * 512 + 100]).unwrap();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &whole).unwrap();
    let packed = packed.finish().unwrap();
    std::fs::write(dir.join("2.tar"), &packed[..packed.len() / 2]).unwrap();
    std::fs::remove_file(dir.join("3.tar")).unwrap();
}

#[test]
fn lost_shards_have_a_limit_of_their_own() {
    let (_dir, loader) = over_damaged(&[3; 6], ErrorPolicy::default(), false, four_losses);
    let error = loader.filter_map(Result::err).last().expect("too many are lost");
    assert!(matches!(error, DataError::TooManyLost { lost: 2, .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(".tar: ") && text.contains("data.errors.lost_shards"),
        "{text}"
    );

    let (_dir, mut loader) = over_damaged(
        &[3; 6],
        ErrorPolicy {
            lost_shards: 4,
            ..ErrorPolicy::default()
        },
        false,
        four_losses,
    );
    let skipped: Vec<Skipped> = loader.by_ref().flat_map(|b| b.unwrap().skipped).collect();
    let rest = loader.take_skipped();
    let mut kinds: Vec<&str> = skipped
        .iter()
        .chain(&rest)
        .filter(|s| s.problem.loses_shard())
        .map(|s| s.problem.kind())
        .collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["io", "io", "not_tar", "truncated"]);
    let counts = loader.counts();
    assert_eq!((counts.shards, counts.lost), (6, 4));
    assert!(!counts.kinds.contains_key("io"), "no bad samples: {counts:?}");
}

#[test]
fn one_lost_shard_is_counted_once_in_many_epochs_and_after_a_resumption() {
    let lose_one = |dir: &std::path::Path| std::fs::write(dir.join("0.tar"), [7; 2000]).unwrap();
    let (dir, set) = picture_shards(&[3, 3, 3], 0);
    lose_one(dir.path());
    let source = [Source {
        name: "s".into(),
        data: Data::Shards(Arc::new(set)),
        ratio: None,
    }];
    let open = |start| {
        let mixture = MixtureConfig {
            repeat: true,
            ..MixtureConfig::default()
        };
        let config = LoaderConfig {
            batch_size: 2,
            ..LoaderConfig::default()
        };
        Loader::new(&source, &[preparation()], mixture, config, start).unwrap()
    };
    let mut loader = open(LoaderStart::Epoch(0));
    let last = (0..20).map(|_| loader.next().unwrap().unwrap()).last().unwrap();
    assert_eq!((loader.counts().shards, loader.counts().lost), (3, 1));
    let saved = serde_json::to_value(&last.cursor).unwrap();
    let mut loader = open(LoaderStart::After(serde_json::from_value(saved.clone()).unwrap()));
    assert!((0..20).all(|_| loader.next().unwrap().is_ok()));
    assert_eq!((loader.counts().shards, loader.counts().lost), (3, 1));
    // a position that was saved before shards were counted
    let mut old = saved;
    for name in ["shards", "lost"] {
        old.as_object_mut().unwrap().remove(name);
    }
    assert!(
        open(LoaderStart::After(serde_json::from_value(old).unwrap()))
            .take(20)
            .all(|b| b.is_ok())
    );
}

#[test]
fn a_set_without_any_readable_shard_ends() {
    let lose = |dir: &std::path::Path| std::fs::write(dir.join("0.tar"), [7; 2000]).unwrap();
    for errors in [ErrorPolicy::default(), ErrorPolicy::LENIENT] {
        let (_dir, mut loader) = over_damaged(&[4], errors, true, lose);
        assert!(matches!(
            loader.next(),
            Some(Err(DataError::TooManyLost { lost: 1, .. }))
        ));
    }
}

#[test]
fn limits_of_lost_shards_are_settings_and_others_are_none() {
    let read = |text: &str| toml::from_str::<ErrorPolicy>(text);
    let old = read("allowed = 5\nshare = 0.5").unwrap();
    assert_eq!((old.lost_shards, old.lost_share), (1, 0.01));
    assert_eq!(read("lost_shards = 9").unwrap().lost_shards, 9);
    assert!(read("lost = 9").is_err());
    let policy = ErrorPolicy::default();
    assert!(!policy.too_many_lost(1, 1) && policy.too_many_lost(2, 9));
    assert!(!policy.too_many_lost(5, 500) && policy.too_many_lost(6, 500));
    let bad = ErrorPolicy {
        lost_share: 1.5,
        ..policy
    };
    assert!(bad.check().is_err());
}

#[test]
fn settings_are_checked() {
    let mut dirs = Vec::new();
    let sources = sources(&mut dirs, &[&[2], &[2]], Some(1.0));
    let new = |preparations: &[Preparation], config, draw| {
        let mixture = MixtureConfig {
            draw,
            ..MixtureConfig::default()
        };
        Loader::new(&sources, preparations, mixture, config, LoaderStart::Epoch(0)).err()
    };
    let good = LoaderConfig::default();
    let p = preparation;
    assert!(new(&[p()], good, Draw::Sample).is_none());
    assert!(new(&[p(), p()], good, Draw::Batch(32)).is_none());
    assert!(new(&[p(), p(), p()], good, Draw::Sample).is_some());
    assert!(new(&[p()], good, Draw::Batch(5)).is_some());
    assert!(
        new(
            &[p()],
            LoaderConfig {
                batch_size: 0,
                ..good
            },
            Draw::Sample
        )
        .is_some()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn resume_after_any_batch_is_exact(
        stop in 1usize..12, pure in any::<bool>(), batch_size in 1u32..6, repeat in any::<bool>(),
        threads in 1usize..4, drop_last in any::<bool>(),
    ) {
        let mut dirs = Vec::new();
        let sources = sources(&mut dirs, &[&[9, 12, 7], &[13, 4]], pure.then_some(1.0));
        let mixture = MixtureConfig {
            order: Order { buffer: 6, ..Order::default() },
            split: Split { workers: 2, ..Split::default() },
            draw: if pure { Draw::Batch(batch_size) } else { Draw::Sample },
            repeat,
        };
        let config =
            LoaderConfig { batch_size, threads, drop_last, errors: ErrorPolicy::LENIENT, ..LoaderConfig::default() };
        let run = |start, n: usize| -> Vec<Batch> {
            let loader = Loader::new(&sources, &[preparation()], mixture, config, start).unwrap();
            loader.take(n).map(|b| b.unwrap()).collect()
        };
        let whole = run(LoaderStart::Epoch(0), 30);
        let stop = stop.min(whole.len());
        let saved = serde_json::to_string(&whole[stop - 1].cursor).unwrap();
        let rest = run(LoaderStart::After(serde_json::from_str(&saved).unwrap()), 30 - stop);
        prop_assert_eq!(rest.len(), whole.len() - stop);
        for (a, b) in rest.iter().zip(&whole[stop..]) {
            prop_assert_eq!(digest(a), digest(b));
            prop_assert_eq!((a.cursor.seen, a.cursor.bad), (b.cursor.seen, b.cursor.bad));
        }
        if pure {
            for b in &whole {
                prop_assert!(b.examples.iter().all(|e| e.source == b.examples[0].source));
            }
        }
        if !repeat && !drop_last {
            let mut all: Vec<_> = whole.iter().flat_map(digest).map(|d| d.0).collect();
            all.sort();
            all.dedup();
            prop_assert!(whole.len() == 30 || all.len() == 28 - 2 + 17 - 1); // every tenth of each set is bad
        }
    }
}
