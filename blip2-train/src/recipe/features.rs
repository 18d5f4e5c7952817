//! Fills the feature store of a recipe: the frozen encoder over every training picture, once.

use std::collections::BTreeSet;
use std::path::Path;

use blip2_model::nn::Kernels;
use blip2_model::vision::{AnyEncoder, VisionConfig};
use burn::tensor::DType;

use super::feeds::Reader;
use super::{Recipe, RecipeError};
use crate::data::loader::LoaderStart;
use crate::data::prepare::Example;
use crate::params;
use crate::run::Interrupt;
use crate::run::collate::Pictures;
use crate::run::feature_cache::{FeatureMeta, FeatureStore, FeatureWriter};
use crate::run::fingerprint::module_digest;
use crate::run::progress::{Progress, Show};
use crate::stage::Images;
use crate::stage::encoded::frozen_tokens;

/// Name of a picture in the store.
fn key(example: &Example) -> String {
    format!("{}#{}", example.shard, example.key)
}

/// Pictures that the store lacks. Reading keys takes a fraction of decoding.
fn missing(reader: Reader, writer: &FeatureWriter) -> Result<usize, RecipeError> {
    let mut missing = BTreeSet::new();
    for batch in reader.blind().open(LoaderStart::Epoch(0))? {
        let examples = batch?.examples;
        missing.extend(examples.iter().map(key).filter(|key| !writer.contains(key)));
    }
    Ok(missing.len())
}

/// The work as others see it and stop it.
struct Watched<'a> {
    progress: Progress,
    interrupt: &'a Interrupt,
}

/// Opens the store in `folder`, after computing what it lacks. `None` after a request to stop: what is there by then
/// is kept, and the next call goes on behind it.
pub fn store<B: Kernels>(
    recipe: &Recipe,
    folder: &Path,
    vision: &VisionConfig,
    encoder: &AnyEncoder<B>,
    device: &B::Device,
    show: Show,
    interrupt: &Interrupt,
) -> Result<Option<FeatureStore>, RecipeError> {
    let size = vision.image_size();
    let reader = Reader::once(recipe, size)?;
    let meta = FeatureMeta {
        tokens: (size / vision.patch_size()).pow(2) + 1,
        width: vision.hidden_size(),
        encoder: module_digest(encoder),
        transform: reader.fingerprint()?,
    };
    let mut writer = FeatureWriter::open(folder, meta.clone())?;
    let missing = missing(reader.clone(), &writer)?;
    let show = match show {
        Show::Dashboard => Show::Progress, // that is for the training which follows
        other => other,
    };
    let watched = Watched {
        progress: Progress::new(show, missing as u64, interrupt),
        interrupt,
    };
    if missing > 0 {
        let text = format!("features: {missing} pictures to encode into {}", folder.display());
        watched.progress.note(&text);
        fill(
            &reader,
            &mut writer,
            &meta,
            size as u32,
            encoder,
            device,
            &watched,
        )?;
    }
    let total = writer.finish()?;
    let text = format!("features: {total} in {}", folder.display());
    watched.progress.note(&text);
    match interrupt.is_requested() {
        true => Ok(None),
        false => Ok(Some(FeatureStore::open(folder, &meta)?)),
    }
}

/// Encodes what is missing, or as much as there is time for.
fn fill<B: Kernels>(
    reader: &Reader,
    writer: &mut FeatureWriter,
    meta: &FeatureMeta,
    size: u32,
    encoder: &AnyEncoder<B>,
    device: &B::Device,
    watched: &Watched<'_>,
) -> Result<(), RecipeError> {
    let pictures = Pictures::normalised(size);
    let (mut computed, mut seen) = (0, BTreeSet::new());
    for batch in reader.open(LoaderStart::Epoch(0))? {
        if watched.interrupt.is_requested() {
            break;
        }
        let mut examples = batch?.examples;
        examples.retain(|example| !writer.contains(&key(example)) && seen.insert(key(example)));
        if examples.is_empty() {
            continue;
        }
        let keys: Vec<String> = examples.iter().map(key).collect();
        let images = pictures.images(&examples, &keys).map_err(RecipeError::Batch)?;
        let Images::Pixels(pixels) = images else { continue };
        let tokens = frozen_tokens(encoder, &pixels, device);
        let row = meta.tokens * meta.width;
        let values = params::to_host(&tokens.reshape([-1]).cast(DType::F32));
        for (key, tokens) in keys.iter().zip(values.chunks_exact(row)) {
            writer.push(key, tokens)?;
        }
        computed += keys.len() as u64;
        watched.progress.step(computed);
    }
    Ok(())
}
