//! Encoded pictures kept on disk (`--cache DIR`), so that another question, prompt or search over the same
//! pictures starts at the language model. A file is found by the content of the picture and by the model, the
//! dtypes and the preprocessing that made it; what cannot be read back counts as absent.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use blip2_model::blip2::ImageFeatures;
use blip2_model::checkpoint::{DtypePolicy, ModelFiles};
use blip2_model::nn::{Context, Kernels};
use blip2_model::processor::RgbImage;
use blip2_model::session::{Encoded, rows_to_host};
use blip2_model::weights::safetensors::SafetensorsFile;
use blip2_model::weights::{DType, TensorBytes, TensorInfo, TensorSource, fingerprint, writer};
use burn::tensor::Tensor;
use sha2::{Digest, Sha256};

use super::interrupt::Interrupt;
use super::pictures::{self, Bad, Picture};
use crate::Session;

/// What of a picture is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// Outputs of the Q-Former, enough for captions and for the index: `Q * D` numbers.
    Queries,
    /// Image tokens that the Q-Former attends to, for texts that it reads beside the picture: `N * C` numbers.
    Tokens,
}

impl Kept {
    /// Name of the tensor in a file, after that of `trace`.
    fn tensor(self) -> &'static str {
        match self {
            Self::Queries => "qformer.last_hidden_state",
            Self::Tokens => "vision.last_hidden_state",
        }
    }

    fn ending(self) -> &'static str {
        match self {
            Self::Queries => "safetensors",
            Self::Tokens => "tokens.safetensors",
        }
    }
}

/// What captions and answers of a model start from.
pub(super) fn needed_to_answer<B: Kernels>(session: &Session<B>) -> Kept {
    match session.model.reads_questions() {
        true => Kept::Tokens,
        false => Kept::Queries,
    }
}

/// Folder of one model in the cache.
pub(super) struct FeatureCache {
    folder: PathBuf,
    kept: Kept,
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
    pub fn open(root: &Path, model: &str, kept: Kept) -> Result<Self> {
        let folder = root.join(model);
        std::fs::create_dir_all(&folder).with_context(|| format!("--cache {}", folder.display()))?;
        Ok(Self { folder, kept })
    }

    fn file(&self, picture: &str) -> PathBuf {
        // folders of a few hundred files stay quick on every file system
        self.folder
            .join(&picture[..2])
            .join(format!("{picture}.{}", self.kept.ending()))
    }

    /// Whether a picture is there.
    pub fn has(&self, picture: &str) -> bool {
        self.file(picture).exists()
    }

    fn get(&self, picture: &str) -> Option<Vec<f32>> {
        let file = SafetensorsFile::open(self.file(picture)).ok()?;
        file.get(self.kept.tensor()).ok()?.to_f32_vec().ok()
    }

    fn put(&self, picture: &str, shape: [usize; 2], values: &[f32]) -> Result<()> {
        let path = self.file(picture);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let info = TensorInfo {
            name: self.kept.tensor().into(),
            dtype: DType::F32,
            shape: shape.to_vec(),
        };
        writer::write_file(&path, &[info], &mut |info| {
            TensorBytes::from_f32(info.shape.clone(), values.to_vec())
        })?;
        Ok(())
    }
}

/// Tensors of one row per picture.
enum Rows<T> {
    /// Nothing was in the cache.
    Computed(T),
    /// Numbers of every picture, of which some were.
    Host(Vec<Vec<f32>>),
}

/// Takes from the cache what it has, computes the rest and keeps it. Pictures without pixels must be in the cache.
fn look_up<B: Kernels, T>(
    cache: &FeatureCache,
    pictures: &mut [Picture],
    compute: impl FnOnce(&[RgbImage]) -> Result<T>,
    rows: impl Fn(&T) -> Tensor<B, 3>,
) -> Result<Rows<T>> {
    let mut kept: Vec<Option<Vec<f32>>> = pictures.iter().map(|p| cache.get(&p.hash)).collect();
    let mut fresh = Vec::new();
    let mut pixels = Vec::new();
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
        let computed = compute(&pixels)?;
        let tensor = rows(&computed);
        let [_, count, width] = tensor.dims();
        let values = rows_to_host(&tensor);
        for (&i, values) in fresh.iter().zip(&values) {
            cache.put(&pictures[i].hash, [count, width], values)?;
        }
        if fresh.len() == pictures.len() {
            return Ok(Rows::Computed(computed));
        }
        for (i, values) in fresh.into_iter().zip(values) {
            kept[i] = Some(values);
        }
    }
    Ok(Rows::Host(kept.into_iter().flatten().collect()))
}

/// Encodes a batch up to the Q-Former's outputs, taking from the cache what it has.
pub(super) fn encode<B: Kernels>(
    session: &Session<B>,
    cache: Option<&FeatureCache>,
    mut pictures: Vec<Picture>,
) -> Result<(Vec<Picture>, Encoded<B>)> {
    match cache {
        None => {
            let (names, pixels) = split(pictures);
            Ok((names, session.encode_once(&pixels)?))
        }
        Some(cache) if cache.kept == Kept::Tokens => {
            let (pictures, features) = features(session, Some(cache), pictures)?;
            Ok((pictures, session.encoded_from_features(features)))
        }
        Some(cache) => {
            let compute = |pixels: &[RgbImage]| Ok(session.encode_once(pixels)?);
            let encoded = match look_up::<B, _>(cache, &mut pictures, compute, |e| e.queries.clone())? {
                Rows::Computed(encoded) => encoded,
                Rows::Host(kept) => session.encoded_from_queries(&kept)?,
            };
            Ok((pictures, encoded))
        }
    }
}

/// Encodes a batch up to the image tokens, taking from the cache what it has.
///
/// # Panics
/// If the cache is one of queries.
pub(super) fn features<B: Kernels>(
    session: &Session<B>,
    cache: Option<&FeatureCache>,
    mut pictures: Vec<Picture>,
) -> Result<(Vec<Picture>, ImageFeatures<B>)> {
    let ctx = Context::eval();
    let Some(cache) = cache else {
        let (names, pixels) = split(pictures);
        return Ok((names, session.encode(&pixels, &ctx)?));
    };
    assert_eq!(cache.kept, Kept::Tokens, "the caller opened the cache for this");
    let compute = |pixels: &[RgbImage]| Ok(session.encode(pixels, &ctx)?);
    let features = match look_up::<B, _>(cache, &mut pictures, compute, |f| f.embeds.clone())? {
        Rows::Computed(features) => features,
        Rows::Host(kept) => session.features_from_tokens(&kept)?,
    };
    Ok((pictures, features))
}

/// Whether a picture's pixels are needed.
pub(super) fn wanted(cache: Option<&FeatureCache>) -> impl Fn(&str) -> bool + Sync {
    move |hash| !cache.is_some_and(|cache| cache.has(hash))
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
    pictures::in_batches(files, batch, quiet, interrupt, wanted(cache), |pictures| {
        let (pictures, encoded) = encode(session, cache, pictures)?;
        work(&pictures, &encoded)
    })
}

/// Takes the pixels out.
fn split(mut pictures: Vec<Picture>) -> (Vec<Picture>, Vec<RgbImage>) {
    let pixels = pictures.iter_mut().filter_map(|p| p.pixels.take()).collect();
    (pictures, pixels)
}
