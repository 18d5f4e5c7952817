//! Reader of one `.safetensors` file.
//!
//! Layout: u64 header length, JSON header (`name -> dtype, shape, data_offsets`), then the tensors without gaps.
//! The `safetensors` crate checks offsets and sizes; this file adds the mapping, the length of the file and names
//! in messages.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata};

use super::error::{HeaderFault, Result, WeightsError};
use super::source::{MappedFile, TensorSource, guess_content};
use super::tensor::{DType, TensorBytes, TensorInfo};

/// Limit that the format's reference implementation sets.
const MAX_HEADER: u64 = 100_000_000;

/// One mapped `.safetensors` file.
#[derive(Debug)]
pub struct SafetensorsFile {
    file: MappedFile,
    infos: Vec<TensorInfo>,
    /// name -> index in `infos`, bytes in the file
    entries: HashMap<String, (usize, Range<usize>)>,
}

impl SafetensorsFile {
    /// Maps the file and reads its header; no tensor is touched.
    ///
    /// # Errors
    /// Anything that makes the header untrustworthy, a file that is cut off, an LFS pointer, a dtype of less than
    /// a byte or an 8-bit float.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_mapped(MappedFile::open(path.as_ref())?)
    }

    pub(crate) fn from_mapped(file: MappedFile) -> Result<Self> {
        let path = file.path();
        let bytes = file.bytes();
        let truncated = |expected| WeightsError::Truncated { path: path.to_owned(), expected, found: bytes.len() as u64 };
        let bad = |fault| WeightsError::BadHeader { path: path.to_owned(), fault };

        let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
            return Err(WeightsError::NotWeights { path: path.to_owned(), found: guess_content(bytes) });
        };
        let header_len = u64::from_le_bytes(*length);
        if header_len > MAX_HEADER {
            return Err(bad(HeaderFault::TooLarge { size: header_len, limit: MAX_HEADER }));
        }
        let data_start = 8 + header_len as usize;
        let header = rest.get(..header_len as usize).ok_or_else(|| truncated(data_start as u64))?;
        let metadata: Metadata = serde_json::from_slice(header).map_err(|e| bad(HeaderFault::Invalid(e.into())))?;

        let data_len = metadata.data_len() as u64;
        let found = (bytes.len() - data_start) as u64;
        if found < data_len {
            return Err(truncated((data_start as u64).saturating_add(data_len)));
        }
        if found > data_len {
            return Err(bad(HeaderFault::TrailingBytes { bytes: found - data_len }));
        }

        let mut infos = Vec::new();
        let mut entries = HashMap::new();
        for name in metadata.offset_keys() {
            let Some(info) = metadata.info(&name) else { continue };
            let dtype = dtype_from(info.dtype).ok_or_else(|| WeightsError::UnsupportedDtype {
                path: path.to_owned(),
                tensor: name.clone(),
                dtype: info.dtype.to_string(),
            })?;
            // the crate has checked that the offsets are in order and end at `data_len`
            let range = data_start + info.data_offsets.0..data_start + info.data_offsets.1;
            entries.insert(name.clone(), (infos.len(), range));
            infos.push(TensorInfo { name, dtype, shape: info.shape.clone() });
        }
        Ok(Self { file, infos, entries })
    }
}

impl TensorSource for SafetensorsFile {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.entries.get(name).map(|(i, _)| &self.infos[*i])
    }

    fn get(&self, name: &str) -> Result<TensorBytes> {
        let Some((i, range)) = self.entries.get(name) else {
            return Err(WeightsError::NoSuchTensor { path: self.path().to_owned(), name: name.to_owned() });
        };
        let info = &self.infos[*i];
        TensorBytes::new(info.dtype, info.shape.clone(), self.file.bytes().slice(range.clone()))
    }

    fn release(&self, name: &str) {
        if let Some((_, range)) = self.entries.get(name) {
            self.file.release(range.clone());
        }
    }
}

fn dtype_from(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U64 => DType::U64,
        Dtype::U32 => DType::U32,
        Dtype::U16 => DType::U16,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        _ => return None,
    })
}

pub(crate) fn dtype_into(dtype: DType) -> Dtype {
    match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I16 => Dtype::I16,
        DType::I8 => Dtype::I8,
        DType::U64 => Dtype::U64,
        DType::U32 => Dtype::U32,
        DType::U16 => Dtype::U16,
        DType::U8 => Dtype::U8,
        DType::Bool => Dtype::BOOL,
    }
}
