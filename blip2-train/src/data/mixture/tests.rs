use std::sync::Arc;

use super::super::testing::{numbered_shards, rows};
use super::*;
use crate::data::stream::Data;
use proptest::prelude::*;

fn source(name: &str, data: Data, ratio: Option<f64>) -> Source {
    Source {
        name: name.into(),
        data,
        ratio,
    }
}

fn take(mixture: &mut Mixture, n: usize) -> Vec<(u32, String)> {
    let next = || {
        mixture
            .next_sample()
            .unwrap()
            .map(|d| (d.source, d.sample.unwrap().captions[0].clone()))
    };
    std::iter::from_fn(next).take(n).collect()
}

#[test]
fn ratios_are_kept_for_samples_and_batches() {
    let sources = [
        source("a", Data::Rows(rows(7)), Some(3.0)),
        source("b", Data::Rows(rows(50)), Some(1.0)),
    ];
    for draw in [Draw::Sample, Draw::Batch(8)] {
        let config = MixtureConfig {
            draw,
            repeat: true,
            ..MixtureConfig::default()
        };
        let drawn = take(
            &mut Mixture::new(&sources, config, Start::Epoch(0)).unwrap(),
            8000,
        );
        let first = drawn.iter().filter(|d| d.0 == 0).count();
        // 1000 draws of batches: 750 +- 3 sigma of 13.7, times 8; sampling by sample lies well inside
        assert!((5670..=6330).contains(&first), "{draw:?} {first}");
        if let Draw::Batch(n) = draw {
            assert!(drawn.chunks(n as usize).all(|c| c.iter().all(|d| d.0 == c[0].0)));
        }
    }
}

#[test]
fn without_ratios_it_is_a_uniform_shuffle_of_all() {
    let sources = [
        source("a", Data::Rows(rows(300)), None),
        source("b", Data::Rows(rows(100)), None),
    ];
    let drawn = take(
        &mut Mixture::new(&sources, MixtureConfig::default(), Start::Epoch(0)).unwrap(),
        usize::MAX,
    );
    assert_eq!(drawn.len(), 400);
    for half in drawn.chunks(200) {
        let first = half.iter().filter(|d| d.0 == 0).count();
        assert!((135..=165).contains(&first), "{first}"); // hypergeometric, 150 +- 15 is about 4 sigma
    }
}

#[test]
fn settings_are_checked() {
    let rows = Data::Rows(rows(3));
    let (_dir, mut set) = numbered_shards(&[2, 2], false);
    set.samples = None;
    let shards = Data::Shards(Arc::new(set));
    let new = |sources: &[Source], config| Mixture::new(sources, config, Start::Epoch(0)).err();
    let default = MixtureConfig::default();
    assert!(matches!(new(&[], default), Some(DataError::Ratios { .. })));
    let mixed = |a, b| [source("a", rows.clone(), a), source("b", shards.clone(), b)];
    assert!(matches!(
        new(&mixed(None, None), default),
        Some(DataError::Ratios { .. })
    ));
    assert!(matches!(
        new(&mixed(Some(1.0), None), default),
        Some(DataError::Ratios { .. })
    ));
    assert!(matches!(
        new(&mixed(Some(1.0), Some(-1.0)), default),
        Some(DataError::Ratios { .. })
    ));
    assert!(new(&mixed(Some(1.0), Some(2.0)), default).is_none());
    assert!(
        new(
            &mixed(None, None),
            MixtureConfig {
                draw: Draw::Batch(2),
                ..default
            }
        )
        .is_none()
    );
    let split = Split {
        rank: 2,
        world: 2,
        workers: 1,
    };
    assert!(matches!(
        new(&mixed(Some(1.0), Some(1.0)), MixtureConfig { split, ..default }),
        Some(DataError::Setting { .. })
    ));

    let one = [source("a", rows.clone(), None)];
    let cursor = Mixture::new(&one, default, Start::Epoch(0)).unwrap().cursor();
    let other = MixtureConfig {
        order: Order {
            seed: 7,
            ..Order::default()
        },
        ..default
    };
    let error = Mixture::new(&one, other, Start::At(cursor)).err();
    assert!(matches!(error, Some(DataError::CursorMismatch { .. })));
    // forced whole shards and more processes than shards: an endless run must say so rather than spin
    let split = Split {
        rank: 3,
        world: 4,
        workers: 1,
    };
    let order = Order {
        split_by: super::super::stream::SplitBy::Shard,
        ..Order::default()
    };
    let config = MixtureConfig {
        split,
        order,
        repeat: true,
        ..default
    };
    for ratio in [None, Some(1.0)] {
        let mut mixture =
            Mixture::new(&[source("b", shards.clone(), ratio)], config, Start::Epoch(0)).unwrap();
        let error = mixture.next_sample().err();
        assert!(matches!(error, Some(DataError::Empty { .. })), "{error:?}");
    }
}

#[test]
fn a_position_in_other_data_sets_names_both() {
    let new = |name: &str, n, start| {
        let sources = [source(name, Data::Rows(rows(n)), None)];
        Mixture::new(&sources, MixtureConfig::default(), start)
    };
    let cursor = new("old.jsonl", 3, Start::Epoch(0)).unwrap().cursor();
    let saved = serde_json::to_value(&cursor).unwrap();
    let error = new("new.jsonl", 4, Start::At(cursor)).err().unwrap().to_string();
    assert!(
        error.contains("was old.jsonl (") && error.contains("is now new.jsonl ("),
        "{error}"
    );
    // saved before names were
    let mut old = saved;
    old.as_object_mut().unwrap().remove("names");
    let start = Start::At(serde_json::from_value(old).unwrap());
    assert!(new("old.jsonl", 3, start).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn once_per_epoch_over_ranks_and_exact_resume(
        sizes in prop::collection::vec(1usize..8, 1..6), n_rows in 1usize..30, world in 1u32..4, workers in 1u32..3,
        batch in prop::option::of(1u32..5), ratio in prop::option::of(0.1f64..5.0), stop in 0usize..60,
        repeat in any::<bool>(),
    ) {
        let (_dir, set) = numbered_shards(&sizes, false);
        let total: usize = sizes.iter().sum();
        let sources = [
            source("shards", Data::Shards(Arc::new(set)), ratio),
            source("rows", Data::Rows(rows(n_rows)), ratio.map(|_| 1.0)),
        ];
        let mut seen = [vec![0; total], vec![0; n_rows]];
        for rank in 0..world {
            let config = MixtureConfig {
                order: Order { buffer: 5, split_by: super::super::stream::SplitBy::Sample, ..Order::default() },
                split: Split { rank, world, workers },
                draw: batch.map_or(Draw::Sample, Draw::Batch),
                repeat,
            };
            prop_assume!(!repeat || (total as u32 >= world && n_rows as u32 >= world));
            let limit = if repeat { 150 } else { usize::MAX };
            let whole = take(&mut Mixture::new(&sources, config, Start::Epoch(1)).unwrap(), limit);
            let mut first = Mixture::new(&sources, config, Start::Epoch(1)).unwrap();
            let mut got = take(&mut first, stop);
            let saved = serde_json::to_string(&first.cursor()).unwrap();
            let start = Start::At(serde_json::from_str(&saved).unwrap());
            let mut second = Mixture::new(&sources, config, start).unwrap();
            got.extend(take(&mut second, limit - got.len().min(limit)));
            prop_assert_eq!(&got, &whole);
            whole.iter().for_each(|(s, k)| seen[*s as usize][k.parse::<usize>().unwrap()] += 1);
        }
        if !repeat {
            prop_assert!(seen.iter().flatten().all(|&n| n == 1), "{:?}", seen);
        }
    }
}
