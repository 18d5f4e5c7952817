//! A loaded model -> a complete Hugging Face folder: weights of every part, `config.json`, and the files that
//! are handed over. The counterpart of [`Loader`](super::Loader), with the same key table and dtype policy.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType as BurnDType, Tensor, TensorData, backend::Backend};
use bytes::Bytes;

use super::expected::visit_parts;
use super::policy::PolicyError;
use super::{Companions, DtypePolicy, huggingface};
use crate::blip2::Blip2;
use crate::config::Blip2Config;
use crate::weights::writer::{self, WriteOptions};
use crate::weights::{DType, TensorBytes, TensorInfo, WeightsError};

/// How to write a model.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// Dtype of every part's matrices in the file; `auto` is the dtype that the model holds. Vectors stay f32.
    /// The default keeps the frozen parts as held and the Q-Former in f32.
    pub policy: DtypePolicy,
    /// Size of shards, and whether to replace weights that are there.
    pub write: WriteOptions,
    /// Files beside the weights (see [`Companions::of_folder`]). A `config.json` among them is used if it
    /// describes this model, so that fields that mean nothing here survive; otherwise one is written from the
    /// model's configuration.
    pub companions: Companions,
}

/// Why a model cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// A parameter is in no key table.
    #[error("the parameter {path} has no name in Hugging Face files")]
    Unnamed {
        /// Path in the module.
        path: String,
    },
    /// The dtypes asked for do not fit the model.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Files could not be written.
    #[error(transparent)]
    Weights(#[from] Box<WeightsError>),
}

impl From<WeightsError> for ExportError {
    fn from(error: WeightsError) -> Self {
        Self::Weights(Box::new(error))
    }
}

/// Writes every part of `model` and its companions to `folder`; returns the files, the weights (or their index)
/// last. Tensors are read back from the device and written one at a time.
///
/// # Errors
/// [`WeightsError::AlreadyExists`] for weights or other files in the way unless `write.overwrite` is set,
/// [`WeightsError::DiskFull`]; neither leaves half a file behind.
pub fn export_folder<B: Backend>(
    model: &Blip2<B>,
    folder: impl AsRef<Path>,
    options: &ExportOptions,
) -> Result<Vec<PathBuf>, ExportError> {
    let folder = folder.as_ref();
    let policy = options.policy.for_config(&model.config)?;
    let keys = huggingface::keys(&model.config);
    let mut tensors: BTreeMap<String, (Tensor<B, 1>, TensorInfo)> = BTreeMap::new();
    let mut unnamed = None;
    visit_parts(model, |path, value, shape| match keys.name(path) {
        Some(name) => {
            let value = value();
            let held = file_dtype(value.dtype());
            let info = TensorInfo {
                name: name.clone(),
                dtype: policy.resolve(path, shape.len(), held),
                shape,
            };
            tensors.insert(name, (value, info));
        }
        None => unnamed = Some(path.to_string()),
    });
    if let Some(path) = unnamed {
        return Err(ExportError::Unnamed { path });
    }
    let infos: Vec<_> = tensors.values().map(|(_, info)| info.clone()).collect();
    let companions = with_config(&options.companions, &model.config);
    write_checkpoint(folder, &infos, &companions, &options.write, &mut |info| {
        let Some((value, _)) = tensors.get(&info.name) else {
            return Err(WeightsError::NoSuchTensor {
                path: folder.to_owned(),
                name: info.name.clone(),
            });
        };
        from_burn(value.clone().into_data(), info.shape.clone())?.convert(info.dtype)
    })
    .map_err(Into::into)
}

/// Companions, then weights: a folder without weights is not taken for a checkpoint.
pub(super) fn write_checkpoint(
    folder: &Path,
    infos: &[TensorInfo],
    companions: &Companions,
    options: &WriteOptions,
    fetch: &mut writer::Fetch<'_>,
) -> Result<Vec<PathBuf>, WeightsError> {
    std::fs::create_dir_all(folder).map_err(|e| WeightsError::io(folder, e))?;
    if !options.overwrite {
        let conflict = writer::first_existing(folder)?;
        let conflict = conflict.map_or_else(|| companions.conflict(folder), |path| Ok(Some(path)))?;
        if let Some(path) = conflict {
            return Err(WeightsError::AlreadyExists { path });
        }
    }
    let mut written = companions.write(folder)?;
    written.extend(writer::write_folder(folder, infos, options, fetch)?);
    Ok(written)
}

/// The companions with a `config.json` that describes the model.
pub(super) fn with_config(companions: &Companions, config: &Blip2Config) -> Companions {
    let given = companions.text("config.json");
    let same = given.and_then(|text| Blip2Config::from_json(&text).ok());
    if same.as_ref() == Some(config) {
        return companions.clone();
    }
    companions.clone().with_text("config.json", config_json(config))
}

/// Text of a `config.json` that transformers and [`Blip2Config::from_json`] read.
pub fn config_json(config: &Blip2Config) -> String {
    // plain data: numbers, strings and maps with string keys cannot fail to serialise
    serde_json::to_string_pretty(config).unwrap_or_default() + "\n"
}

/// File dtype of a tensor that a model holds.
fn file_dtype(dtype: BurnDType) -> DType {
    match dtype {
        BurnDType::F64 => DType::F64,
        BurnDType::F16 => DType::F16,
        BurnDType::BF16 => DType::BF16,
        _ => DType::F32,
    }
}

/// Bytes of a tensor read back from a device; a dtype that files do not have becomes f32.
fn from_burn(data: TensorData, shape: Vec<usize>) -> Result<TensorBytes, WeightsError> {
    struct Owned(burn::tensor::Bytes);
    impl AsRef<[u8]> for Owned {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let dtype = file_dtype(data.dtype);
    let data = data.convert_dtype(super::apply::burn_dtype(dtype));
    TensorBytes::new(dtype, shape, Bytes::from_owner(Owned(data.bytes)))
}
