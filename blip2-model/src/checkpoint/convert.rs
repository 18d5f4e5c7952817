//! Checkpoint files -> checkpoint files, without building the model: any container to Hugging Face safetensors, and
//! to a LAVIS `.pth`. Bytes of tensors are carried over unless another dtype is asked for.

use std::path::{Path, PathBuf};

use super::expected::ExpectedTensor;
use super::export::write_checkpoint;
use super::lavis::{Family, LavisError, under_lavis_names};
use super::policy::PolicyError;
use super::view::{Origin, View};
use super::{Companions, DtypePolicy, ModelFiles, Part, PartDtype, huggingface};
use crate::language::LanguageConfig;
use crate::vision::VisionConfig;
use crate::weights::writer::{WriteOptions, copy_from};
use crate::weights::{DType, ShapeMismatch, TensorInfo, TensorSource, WeightsError, torch_writer};

/// How to convert.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// Dtype for the matrices of encoder and language model; `auto` keeps every tensor as it is. Vectors and what
    /// BLIP-2 trains stay as they are in any case.
    pub dtype: PartDtype,
    /// Size of shards (Hugging Face only), and whether to replace what is there.
    pub write: WriteOptions,
    /// Leave out tensors that have no place, and go without those that are missing.
    pub allow_partial: bool,
    /// For LAVIS: leave encoder and language model out, as LAVIS does.
    pub trained_only: bool,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self {
            dtype: PartDtype::Auto,
            write: WriteOptions::default(),
            allow_partial: false,
            trained_only: false,
        }
    }
}

/// Why a checkpoint cannot be converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The dtype asked for does not fit the model.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Tensors are missing or mis-shaped, or files cannot be written.
    #[error(transparent)]
    Weights(#[from] Box<WeightsError>),
    /// LAVIS has no such model.
    #[error(transparent)]
    Lavis(#[from] LavisError),
}

impl From<WeightsError> for ConvertError {
    fn from(error: WeightsError) -> Self {
        Self::Weights(Box::new(error))
    }
}

/// What a conversion did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Converted {
    /// Files written, weights last.
    pub files: Vec<PathBuf>,
    /// Number of tensors written.
    pub tensors: usize,
    /// Bytes of tensors written.
    pub bytes: usize,
}

/// Writes a complete Hugging Face folder. `expected` are the tensors of the model (see
/// [`expected_tensors`](super::expected::expected_tensors)).
///
/// # Errors
/// Any missing, unused or mis-shaped tensor (names with shapes); files in the way; a full disk, which leaves nothing
/// half written.
pub fn to_huggingface(
    files: ModelFiles,
    expected: &[ExpectedTensor],
    folder: &Path,
    options: &ConvertOptions,
) -> Result<Converted, ConvertError> {
    let companions: Companions = files.companions.clone();
    let view = complete(files, expected, options)?;
    let fetch = &mut copy_from(&view);
    let written = write_checkpoint(folder, view.infos(), &companions, &options.write, fetch)?;
    Ok(summary(written, &view))
}

/// Writes a LAVIS checkpoint: one `.pth` with the tensors under `model`.
///
/// # Errors
/// As [`to_huggingface`]; a model that LAVIS does not have.
pub fn to_lavis(
    files: ModelFiles,
    expected: &[ExpectedTensor],
    path: &Path,
    options: &ConvertOptions,
) -> Result<Converted, ConvertError> {
    if path.exists() && !options.write.overwrite {
        return Err(WeightsError::AlreadyExists { path: path.into() }.into());
    }
    let family = Family::of(&files.config).ok_or(LavisError::NoSuchFamily {
        family: match (&files.config.vision_config, files.config.language()) {
            (VisionConfig::Dinov2(_), _) => "DINOv2",
            (_, Some(LanguageConfig::Llama(_))) => "LLaMA",
            _ => "something else",
        },
    })?;
    let view = complete(files, expected, options)?;
    let view = under_lavis_names(Box::new(view), family, !options.trained_only)?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| WeightsError::io(folder, e))?;
    }
    let written = torch_writer::write_pth(path, view.infos(), &mut copy_from(&view))?;
    Ok(summary(vec![written], &view))
}

fn summary(files: Vec<PathBuf>, view: &View) -> Converted {
    Converted {
        files,
        tensors: view.infos().len(),
        bytes: view.infos().iter().map(TensorInfo::byte_len).sum(),
    }
}

/// The tensors of the model out of `files`, under Hugging Face names, in the shapes and dtypes to write.
fn complete(
    files: ModelFiles,
    expected: &[ExpectedTensor],
    options: &ConvertOptions,
) -> Result<View, ConvertError> {
    let keys = huggingface::keys(&files.config);
    let policy = DtypePolicy::frozen(options.dtype).for_config(&files.config)?;
    let path = files.source.path().to_owned();
    let mut used = std::collections::HashSet::new();
    let (mut missing, mut mismatches) = (Vec::new(), Vec::new());
    let mut view = View::new(files.source);
    for tensor in expected {
        let mut names = std::iter::once(tensor.name.clone()).chain(keys.alias_of(&tensor.name));
        let Some(info) = names.find_map(|name| view.inner().info(&name).cloned()) else {
            missing.push(tensor.name.clone());
            continue;
        };
        used.insert(info.name.clone());
        let squeezed = |shape: &[usize]| shape.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>();
        if squeezed(&info.shape) != squeezed(&tensor.shape) {
            mismatches.push(ShapeMismatch {
                name: info.name,
                expected: tensor.shape.clone(),
                found: info.shape,
            });
            continue;
        }
        let target = TensorInfo {
            name: tensor.name.clone(),
            dtype: written_dtype(policy, options.dtype, tensor, info.dtype),
            shape: tensor.shape.clone(),
        };
        view.add(target, Origin::Tensor(info.name));
    }
    let inner = view.inner().infos().iter();
    let unused: Vec<String> = inner
        .filter(|info| !used.contains(&info.name) && !keys.is_redundant(&info.name))
        .map(|info| info.name.clone())
        .collect();
    if !mismatches.is_empty() {
        return Err(WeightsError::ShapeMismatches { path, mismatches }.into());
    }
    if !options.allow_partial && !missing.is_empty() {
        return Err(WeightsError::MissingTensors { path, names: missing }.into());
    }
    if !options.allow_partial && !unused.is_empty() {
        return Err(WeightsError::UnusedTensors { path, names: unused }.into());
    }
    Ok(view)
}

fn written_dtype(policy: DtypePolicy, asked: PartDtype, tensor: &ExpectedTensor, stored: DType) -> DType {
    let trained = Part::of(&tensor.path) == Part::QFormer;
    match asked {
        PartDtype::Auto => stored,
        _ if trained || tensor.shape.len() < 2 || !stored.is_float() => stored,
        _ => policy.resolve(&tensor.path, tensor.shape.len(), stored),
    }
}
