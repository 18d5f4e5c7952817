//! Writing, interruption, damage, and training from the store.

use super::*;
use crate::stage::encoded::frozen_tokens;
use crate::stage::testing::*;
use crate::stage::{Batch, Frozen, Stage, Stage2, Stage2Config};
use blip2_model::backend::Flex;
use blip2_model::qformer::Bridge;
use burn::backend::Autodiff;

fn meta() -> FeatureMeta {
    FeatureMeta {
        tokens: 5,
        width: 12,
        encoder: "abc".into(),
        transform: "224, seed 1".into(),
    }
}

fn row(i: usize) -> Vec<f32> {
    noise(&format!("row {i}"), 60)
}

fn keys(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|i| format!("pair-{i}")).collect()
}

#[test]
fn an_interrupted_store_goes_on_behind_its_last_shard() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = FeatureWriter::with_shards_of(folder.path(), meta(), 0, 2).unwrap();
    for i in 0..5 {
        writer.push(&format!("pair-{i}"), &row(i)).unwrap();
    }
    drop(writer); // the fifth is lost
    let mut writer = FeatureWriter::with_shards_of(folder.path(), meta(), 0, 2).unwrap();
    assert!(writer.contains("pair-3") && !writer.contains("pair-4"));
    for i in 0..7 {
        writer.push(&format!("pair-{i}"), &row(i)).unwrap();
    }
    writer.finish().unwrap();
    let store = FeatureStore::open(folder.path(), &meta()).unwrap();
    assert_eq!(store.len(), 7);
    let wanted = ["pair-6", "pair-0", "pair-6"].map(String::from);
    let Images::Features(data) = store.images(&wanted).unwrap() else {
        unreachable!()
    };
    let values: Vec<f32> = data.iter::<f32>().collect();
    let expected = [row(6), row(0), row(6)].concat();
    for (a, b) in values.iter().zip(expected) {
        // half a unit in the last place of an f16 below 1
        assert!((a - b).abs() <= 2f32.powi(-12));
    }
}

#[test]
fn damage_other_encoders_and_unknown_keys_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = FeatureWriter::with_shards_of(folder.path(), meta(), 0, 2).unwrap();
    for i in 0..2 {
        writer.push(&format!("pair-{i}"), &row(i)).unwrap();
    }
    assert!(matches!(writer.push("x", &[0.0]), Err(FeatureError::Size { .. })));
    writer.finish().unwrap();
    let other = FeatureMeta {
        encoder: "def".into(),
        ..meta()
    };
    let error = FeatureStore::open(folder.path(), &other).err().unwrap();
    let index = folder.path().join("index-rank-0.json");
    assert!(matches!(error, FeatureError::OtherFeatures { path, .. } if path == index));

    let path = folder.path().join("features-rank-0-00000.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 4;
    std::fs::write(&path, bytes).unwrap();
    let store = FeatureStore::open(folder.path(), &meta()).unwrap();
    assert!(store.images(&keys(0..1)).is_ok());
    let error = store.images(&keys(1..2)).unwrap_err();
    assert!(error.to_string().contains("index-rank-0.json"), "{error}");
    assert!(
        matches!(error, FeatureError::Damaged { key, path: found, .. } if key == "pair-1" && found == path)
    );
    assert!(matches!(
        store.images(&keys(2..3)),
        Err(FeatureError::Missing { .. })
    ));
}

/// Bits of a picture's tokens.
fn bits(store: &FeatureStore, key: &str) -> Vec<u8> {
    let Images::Features(data) = store.images(&[key.into()]).unwrap() else {
        unreachable!()
    };
    data.as_bytes().to_vec()
}

fn write(folder: &Path, rank: usize, rows: impl IntoIterator<Item = usize>) {
    let mut writer = FeatureWriter::with_shards_of(folder, meta(), rank, 2).unwrap();
    for i in rows {
        writer.push(&format!("pair-{i}"), &row(i)).unwrap();
    }
    writer.finish().unwrap();
}

/// Files of one writer for all, as they were named before there were several.
fn rename_to_whole(folder: &Path) {
    let index = folder.join("index-rank-0.json");
    let text = std::fs::read_to_string(&index).unwrap();
    std::fs::write(
        folder.join("index.json"),
        text.replace("features-rank-0-", "features-"),
    )
    .unwrap();
    std::fs::remove_file(index).unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some(rest) = name.strip_prefix("features-rank-0-") {
            std::fs::rename(folder.join(&name), folder.join(format!("features-{rest}"))).unwrap();
        }
    }
}

#[test]
fn three_ranks_write_what_one_writes_and_go_on_behind_a_store_of_one() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [one, three] = folders.each_ref().map(|folder| folder.path());
    write(one, 0, 0..11);
    write(three, 0, 0..3);
    rename_to_whole(three);
    let old = std::fs::read(three.join("index.json")).unwrap();
    for rank in 0..3 {
        // all of them know what is there, whoever wrote it
        let writer = FeatureWriter::open(three, meta(), rank).unwrap();
        assert!((0..3).all(|i| writer.contains(&format!("pair-{i}"))));
        write(three, rank, (0..11).filter(|i| *i < 3 || i % 3 == rank));
    }
    let [one, store] = [one, three].map(|folder| FeatureStore::open(folder, &meta()).unwrap());
    assert_eq!((one.len(), store.len()), (11, 11));
    for key in keys(0..11) {
        assert_eq!(bits(&one, &key), bits(&store, &key), "{key}");
    }
    assert_eq!(std::fs::read(three.join("index.json")).unwrap(), old);
    let indices = index::read_all(three, &meta()).unwrap();
    let listed: usize = indices
        .iter()
        .flat_map(|(_, index)| &index.shards)
        .map(|shard| shard.keys.len())
        .sum();
    assert_eq!((indices.len(), listed), (4, 11), "every key in one index");

    // what is damaged or foreign in any index is found by all, and named
    let foreign = three.join("index-rank-2.json");
    let text = std::fs::read_to_string(&foreign).unwrap();
    std::fs::write(&foreign, text.replace("\"abc\"", "\"def\"")).unwrap();
    let error = FeatureWriter::open(three, meta(), 0).unwrap_err();
    assert!(matches!(error, FeatureError::OtherFeatures { path, .. } if path == foreign));
    std::fs::write(&foreign, "{").unwrap();
    let error = FeatureStore::open(three, &meta()).err().unwrap();
    assert!(matches!(error, FeatureError::Index { path, .. } if path == foreign));
}

/// The remedy for a damaged shard: what is computed again takes no other shard's file.
#[test]
fn a_shard_whose_entry_was_deleted_is_computed_again() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 1, 0..6);
    let path = index::path_of(folder.path(), 1);
    let (_, mut own) = index::read_all(folder.path(), &meta()).unwrap().remove(0);
    own.shards.remove(0);
    index::write(&path, &own).unwrap();
    write(folder.path(), 1, 0..6);
    let store = FeatureStore::open(folder.path(), &meta()).unwrap();
    assert_eq!(store.len(), 6);
    assert!(store.images(&keys(0..6)).is_ok());
}

#[test]
fn training_from_the_store_is_training_from_pixels() {
    type Ad = Autodiff<Flex>;
    let device = Default::default();
    let encoder = encoder::<Flex>(&device);
    let mut batch = captions(0, 3);
    let Images::Pixels(pixels) = &batch.images else {
        unreachable!()
    };
    let folder = tempfile::tempdir().unwrap();
    let mut writer = FeatureWriter::open(folder.path(), meta(), 0).unwrap();
    let tokens: Vec<f32> = frozen_tokens(&encoder, pixels, &device)
        .into_data()
        .iter::<f32>()
        .collect();
    for (key, row) in batch.keys().iter().zip(tokens.chunks(60)) {
        writer.push(key, row).unwrap();
    }
    writer.finish().unwrap();
    let store = FeatureStore::open(folder.path(), &meta()).unwrap();

    let llm = Frozen::new::<Ad>(toy_lm::<Ad>(&device));
    let module = stage2_bridge::<Ad>(without_dropout(qformer()), &device);
    let options = Stage2Config { llm_dropout: false };
    let stage = Stage2::<Ad, Bridge<Ad>, _>::new(encoder, llm, options, device);
    let step = context(stage.target_count(&batch) as f64);
    let loss = |batch: &_| -> f32 {
        stage.step(&module, batch, &step).unwrap().losses[0]
            .1
            .clone()
            .into_scalar()
    };
    let computed = loss(&batch);
    batch.images = store.images(batch.keys()).unwrap();
    // features of order 1 rounded to 11 bits move the loss by far less than that
    assert!((computed - loss(&batch)).abs() < 1e-3);
}
