//! Encoded pictures kept on disk (`--cache DIR`), so that another question, prompt or search over the same
//! pictures starts at the language model. A file is found by the content of the picture and by the model, the
//! dtypes and the preprocessing that made it; what cannot be read back counts as absent.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use blip2_model::checkpoint::{DtypePolicy, ModelFiles};
use blip2_model::nn::Kernels;
use blip2_model::session::Encoded;
use blip2_model::weights::safetensors::SafetensorsFile;
use blip2_model::weights::{DType, TensorBytes, TensorInfo, TensorSource, fingerprint, writer};
use sha2::{Digest, Sha256};

use super::interrupt::Interrupt;
use super::pictures::{self, Bad, Picture};
use crate::Session;

/// Name of the tensor in a file, after that of `trace`.
const QUERIES: &str = "qformer.last_hidden_state";

/// Folder of one model in the cache.
pub(super) struct FeatureCache {
    folder: PathBuf,
}

/// What makes the same picture give other numbers: weights and settings up to the Q-Former, dtypes, backend.
pub(super) fn model_hash(model: &ModelFiles, policy: &DtypePolicy, backend: &str) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(fingerprint::vision_and_bridge(model.source.as_ref())?);
    hash.update(serde_json::to_vec(&model.config)?);
    hash.update(model.images.to_json().to_string());
    hash.update(format!("{:?} {:?} {backend}", policy.vision, policy.qformer));
    Ok(fingerprint::hex(&hash.finalize()[..8]))
}

impl FeatureCache {
    /// The cache below `root` for a model of this hash.
    pub fn open(root: &Path, model: &str) -> Result<Self> {
        let folder = root.join(model);
        std::fs::create_dir_all(&folder).with_context(|| format!("--cache {}", folder.display()))?;
        Ok(Self { folder })
    }

    fn file(&self, picture: &str) -> PathBuf {
        // folders of a few hundred files stay quick on every file system
        self.folder
            .join(&picture[..2])
            .join(format!("{picture}.safetensors"))
    }

    /// Whether a picture is there.
    pub fn has(&self, picture: &str) -> bool {
        self.file(picture).exists()
    }

    fn get(&self, picture: &str) -> Option<Vec<f32>> {
        let file = SafetensorsFile::open(self.file(picture)).ok()?;
        file.get(QUERIES).ok()?.to_f32_vec().ok()
    }

    fn put(&self, picture: &str, shape: [usize; 2], values: &[f32]) -> Result<()> {
        let path = self.file(picture);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let info = TensorInfo {
            name: QUERIES.into(),
            dtype: DType::F32,
            shape: shape.to_vec(),
        };
        writer::write_file(&path, &[info], &mut |info| {
            TensorBytes::from_f32(info.shape.clone(), values.to_vec())
        })?;
        Ok(())
    }
}

/// Encodes a batch, taking from the cache what it has. Pictures without pixels must be in the cache.
pub(super) fn encode<B: Kernels>(
    session: &Session<B>,
    cache: Option<&FeatureCache>,
    pictures: Vec<Picture>,
) -> Result<(Vec<Picture>, Encoded<B>)> {
    let Some(cache) = cache else {
        let (names, pixels) = split(pictures);
        return Ok((names, session.encode_once(&pixels)?));
    };
    let mut kept: Vec<Option<Vec<f32>>> = pictures.iter().map(|p| cache.get(&p.hash)).collect();
    let mut fresh = Vec::new();
    let mut pixels = Vec::new();
    let mut pictures = pictures;
    for (i, picture) in pictures.iter_mut().enumerate() {
        if kept[i].is_some() {
            continue;
        }
        // the file vanished or was damaged since the picture was read
        let image = match picture.pixels.take() {
            Some(image) => image,
            None => Session::<B>::read_image(&picture.path)?,
        };
        fresh.push(i);
        pixels.push(image);
    }
    if !fresh.is_empty() {
        let encoded = session.encode_once(&pixels)?;
        let [_, count, width] = encoded.queries.dims();
        let values = encoded.queries_to_host();
        for (&i, values) in fresh.iter().zip(&values) {
            cache.put(&pictures[i].hash, [count, width], values)?;
        }
        if fresh.len() == pictures.len() {
            return Ok((pictures, encoded));
        }
        for (i, values) in fresh.into_iter().zip(values) {
            kept[i] = Some(values);
        }
    }
    let kept: Vec<Vec<f32>> = kept.into_iter().flatten().collect();
    Ok((pictures, session.encoded_from_queries(&kept)?))
}

/// [`in_batches`](pictures::in_batches) with pictures encoded, or taken from the cache.
pub(super) fn encoded_batches<B: Kernels>(
    files: &[PathBuf],
    batch: usize,
    quiet: bool,
    interrupt: &Interrupt,
    session: &Session<B>,
    cache: Option<&FeatureCache>,
    mut work: impl FnMut(&[Picture], &Encoded<B>) -> Result<()>,
) -> Result<Vec<Bad>> {
    let wanted = |hash: &str| !cache.is_some_and(|cache| cache.has(hash));
    pictures::in_batches(files, batch, quiet, interrupt, wanted, |pictures| {
        let (pictures, encoded) = encode(session, cache, pictures)?;
        work(&pictures, &encoded)
    })
}

/// Takes the pixels out.
pub(super) fn split(mut pictures: Vec<Picture>) -> (Vec<Picture>, Vec<blip2_model::processor::RgbImage>) {
    let pixels = pictures.iter_mut().filter_map(|p| p.pixels.take()).collect();
    (pictures, pixels)
}
