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
    });
    match strict.last() {
        Some(Err(DataError::TooManyBad { bad: 2, last, .. })) => assert_eq!(last.key, "s0-19"),
        other => panic!("{other:?}"),
    }
    assert!(
        run(ErrorPolicy {
            allowed: 0,
            share: 0.11
        })
        .iter()
        .all(Result::is_ok)
    );
    assert!(
        run(ErrorPolicy {
            allowed: 0,
            share: 0.05
        })
        .iter()
        .any(Result::is_err)
    );
    assert!(run(ErrorPolicy::LENIENT).iter().all(Result::is_ok));
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
