//! Reader of torch files: `pytorch_model.bin` and LAVIS `.pth`, zip (torch 1.6 and later) or the older stream.
//!
//! The pickle inside is interpreted as data only (see [`pickle`](super::pickle)). The state dict is the top-level
//! dictionary, or the one under a key such as `model`; everything else in the file (optimizer, scaler, config) is
//! left alone. Contiguous tensors are windows into the mapped file.

mod container;
mod state_dict;

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;

use self::container::Container;
use self::state_dict::{Layout, StateDict};
use super::error::{Result, WeightsError};
use super::source::{MappedFile, TensorSource};
use super::tensor::{TensorBytes, TensorInfo};

/// One mapped torch file.
#[derive(Debug)]
pub struct TorchFile {
    file: MappedFile,
    infos: Vec<TensorInfo>,
    layouts: Vec<Layout>,
    by_name: HashMap<String, usize>,
    swap_bytes: bool,
    top_key: Option<&'static str>,
    ignored: Vec<String>,
}

impl TorchFile {
    /// Maps the file and reads its pickle; no tensor is touched.
    ///
    /// # Errors
    /// Damaged or cut-off files, files without a dictionary of tensors, tensors of a kind or dtype that is not
    /// supported, LFS pointers.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_mapped(MappedFile::open(path.as_ref())?)
    }

    pub(crate) fn from_mapped(file: MappedFile) -> Result<Self> {
        let container = Container::parse(file.path(), file.bytes())?;
        let StateDict { infos, layouts, top_key, ignored } = state_dict::read(file.path(), &container)?;
        let by_name = infos.iter().enumerate().map(|(i, info)| (info.name.clone(), i)).collect();
        let swap_bytes = container.big_endian;
        Ok(Self { infos, layouts, by_name, swap_bytes, top_key, ignored, file })
    }

    /// Whether a file starts like one that torch wrote.
    pub(crate) fn recognises(bytes: &[u8]) -> bool {
        Container::recognises(bytes)
    }

    /// Key of the top-level dictionary under which the tensors were found; `None` if they are the top level.
    pub fn top_key(&self) -> Option<&'static str> {
        self.top_key
    }

    /// Names of the entries of the state dict that are not tensors.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }
}

impl TensorSource for TorchFile {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.infos[i])
    }

    fn get(&self, name: &str) -> Result<TensorBytes> {
        let Some(&i) = self.by_name.get(name) else {
            return Err(WeightsError::NoSuchTensor { path: self.path().to_owned(), name: name.to_owned() });
        };
        let TensorInfo { dtype, shape, .. } = &self.infos[i];
        let mut bytes = match &self.layouts[i] {
            Layout::Contiguous(range) => self.file.bytes().slice(range.clone()),
            Layout::Strided { storage, offset, strides } => {
                let storage = &self.file.bytes()[storage.clone()];
                Bytes::from(gather(storage, dtype.size(), *offset, shape, strides))
            }
        };
        if self.swap_bytes && dtype.size() > 1 {
            let mut swapped = bytes.to_vec();
            swapped.chunks_exact_mut(dtype.size()).for_each(<[u8]>::reverse);
            bytes = swapped.into();
        }
        TensorBytes::new(*dtype, shape.clone(), bytes)
    }

    fn release(&self, name: &str) {
        if let Some(&i) = self.by_name.get(name) {
            match &self.layouts[i] {
                Layout::Contiguous(range) => self.file.release(range.clone()),
                Layout::Strided { storage, .. } => self.file.release(storage.clone()),
            }
        }
    }
}

/// Copies a strided view into row-major order. `offset` and `strides` are in elements; bounds have been checked.
fn gather(storage: &[u8], element: usize, offset: usize, shape: &[usize], strides: &[usize]) -> Vec<u8> {
    let count: usize = shape.iter().product();
    let mut out = Vec::with_capacity(count * element);
    let (Some((&inner, outer_shape)), Some((&inner_stride, outer_strides))) = (shape.split_last(), strides.split_last()) else {
        out.extend_from_slice(&storage[offset * element..(offset + 1) * element]);
        return out;
    };
    let mut index = vec![0; outer_shape.len()];
    let rows = if inner == 0 { 0 } else { count / inner };
    for _ in 0..rows {
        let start = offset + index.iter().zip(outer_strides).map(|(i, s)| i * s).sum::<usize>();
        if inner_stride == 1 {
            out.extend_from_slice(&storage[start * element..(start + inner) * element]);
        } else {
            for i in 0..inner {
                let at = (start + i * inner_stride) * element;
                out.extend_from_slice(&storage[at..at + element]);
            }
        }
        for (i, &size) in index.iter_mut().zip(outer_shape).rev() {
            *i += 1;
            if *i < size {
                break;
            }
            *i = 0;
        }
    }
    out
}
