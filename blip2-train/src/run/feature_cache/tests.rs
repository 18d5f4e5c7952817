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
    let mut writer = FeatureWriter::with_shards_of(folder.path(), meta(), 2).unwrap();
    for i in 0..5 {
        writer.push(&format!("pair-{i}"), &row(i)).unwrap();
    }
    drop(writer); // the fifth is lost
    let mut writer = FeatureWriter::with_shards_of(folder.path(), meta(), 2).unwrap();
    assert!(writer.contains("pair-3") && !writer.contains("pair-4"));
    for i in 0..7 {
        writer.push(&format!("pair-{i}"), &row(i)).unwrap();
    }
    assert_eq!(writer.finish().unwrap(), 7);
    let store = FeatureStore::open(folder.path(), &meta()).unwrap();
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
    let mut writer = FeatureWriter::with_shards_of(folder.path(), meta(), 2).unwrap();
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
    assert!(matches!(error, FeatureError::OtherFeatures { .. }));

    let path = folder.path().join("features-00000.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 4;
    std::fs::write(&path, bytes).unwrap();
    let store = FeatureStore::open(folder.path(), &meta()).unwrap();
    assert!(store.images(&keys(0..1)).is_ok());
    let error = store.images(&keys(1..2)).unwrap_err();
    assert!(matches!(error, FeatureError::Damaged { key, .. } if key == "pair-1"));
    assert!(matches!(
        store.images(&keys(2..3)),
        Err(FeatureError::Missing { .. })
    ));
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
    let mut writer = FeatureWriter::open(folder.path(), meta()).unwrap();
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
