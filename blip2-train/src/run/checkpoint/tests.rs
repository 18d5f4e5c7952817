//! Folders that appear whole, and what happens when one is damaged.

use super::*;

fn contents(step: u64, best: Option<Best>) -> Contents<'static> {
    let tensor = |name: &str| Pending {
        name: name.into(),
        shape: vec![2],
        fetch: Box::new(move || vec![step as f32, 0.5]),
    };
    Contents {
        state: TrainState {
            version: 0,
            step,
            samples: 4 * step,
            seed: 1,
            scaler: None,
            best,
            cursors: vec![Value::from(step)],
            updates: BTreeMap::new(),
            config: Value::Null,
            frozen: BTreeMap::new(),
            files: BTreeMap::new(),
        },
        model: vec![tensor("a"), tensor("b")],
        optimizer: vec![tensor("m.a")],
        config_json: Some("{}"),
    }
}

#[test]
fn the_newest_and_the_best_are_kept_and_nothing_else() {
    let run = tempfile::tempdir().unwrap();
    let store = CheckpointStore::open(run.path(), 2).unwrap();
    let best = Some(Best { step: 2, value: 0.5 });
    for step in 1..=5 {
        store.save(contents(step, best)).unwrap();
    }
    assert_eq!(store.steps().unwrap(), [2, 4, 5]);
    let (found, skipped) = store.latest().unwrap();
    let found = found.unwrap();
    assert!(skipped.is_empty());
    assert_eq!(found.state.step, 5);
    let tensors = read_tensors(&found.folder.join(MODEL)).unwrap();
    assert_eq!(tensors["b"], (vec![2], vec![5.0, 0.5]));
}

#[test]
fn a_damaged_checkpoint_is_skipped_and_named() {
    let run = tempfile::tempdir().unwrap();
    let store = CheckpointStore::open(run.path(), 3).unwrap();
    store.save(contents(1, None)).unwrap();
    let newest = store.save(contents(2, None)).unwrap();
    let path = newest.join(OPTIMIZER);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (found, skipped) = store.latest().unwrap();
    assert_eq!(found.unwrap().state.step, 1);
    assert!(matches!(&skipped[..], [CheckpointError::Damaged { path: p }] if *p == path));
}

#[test]
fn leftovers_of_a_kill_are_no_checkpoints_and_go_away() {
    let run = tempfile::tempdir().unwrap();
    let store = CheckpointStore::open(run.path(), 3).unwrap();
    store.save(contents(1, None)).unwrap();
    std::fs::create_dir(run.path().join("checkpoints/.writing-00000002")).unwrap();
    std::fs::create_dir(run.path().join("checkpoints/.deleting-step-00000000")).unwrap();
    assert_eq!(store.latest().unwrap().0.unwrap().state.step, 1);
    store.remove_leftovers().unwrap();
    assert_eq!(store.names().unwrap(), ["step-00000001"]);
}

#[test]
fn the_same_step_can_be_saved_again() {
    let run = tempfile::tempdir().unwrap();
    let store = CheckpointStore::open(run.path(), 3).unwrap();
    store.save(contents(1, None)).unwrap();
    store
        .save(contents(1, Some(Best { step: 1, value: 2.0 })))
        .unwrap();
    assert_eq!(store.latest().unwrap().0.unwrap().state.best.unwrap().value, 2.0);
}
