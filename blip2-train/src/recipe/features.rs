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
use crate::run::collate::Pictures;
use crate::run::feature_cache::{FeatureMeta, FeatureStore, FeatureWriter};
use crate::run::fingerprint::module_digest;
use crate::stage::Images;
use crate::stage::encoded::frozen_tokens;

/// Name of a picture in the store.
fn key(example: &Example) -> String {
    format!("{}#{}", example.shard, example.key)
}

fn complete(reader: Reader, writer: &FeatureWriter) -> Result<bool, RecipeError> {
    for batch in reader.open(LoaderStart::Epoch(0))? {
        if batch?
            .examples
            .iter()
            .any(|example| !writer.contains(&key(example)))
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Opens the store in `folder`, after computing what it lacks.
pub fn store<B: Kernels>(
    recipe: &Recipe,
    folder: &Path,
    vision: &VisionConfig,
    encoder: &AnyEncoder<B>,
    device: &B::Device,
) -> Result<FeatureStore, RecipeError> {
    let size = vision.image_size();
    let reader = Reader::once(recipe, size)?;
    let meta = FeatureMeta {
        tokens: (size / vision.patch_size()).pow(2) + 1,
        width: vision.hidden_size(),
        encoder: module_digest(encoder),
        transform: reader.fingerprint()?,
    };
    let mut writer = FeatureWriter::open(folder, meta.clone())?;
    // reading keys takes a fraction of decoding
    let computed = match complete(reader.clone().blind(), &writer)? {
        true => 0,
        false => fill(&reader, &mut writer, &meta, size as u32, encoder, device)?,
    };
    let total = writer.finish()?;
    eprintln!("features: {computed} computed, {total} in {}", folder.display());
    Ok(FeatureStore::open(folder, &meta)?)
}

/// Encodes what is missing. Returns how many pictures that were.
fn fill<B: Kernels>(
    reader: &Reader,
    writer: &mut FeatureWriter,
    meta: &FeatureMeta,
    size: u32,
    encoder: &AnyEncoder<B>,
    device: &B::Device,
) -> Result<usize, RecipeError> {
    let pictures = Pictures::normalised(size);
    let (mut computed, mut seen) = (0usize, BTreeSet::new());
    for batch in reader.open(LoaderStart::Epoch(0))? {
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
        computed += keys.len();
    }
    Ok(computed)
}
