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

    /// Reads a file whose bytes are in memory, such as one compiled into the program; `name` is for messages.
    pub fn from_bytes(name: impl AsRef<Path>, bytes: Bytes) -> Result<Self> {
        Self::from_mapped(MappedFile::in_memory(name.as_ref(), bytes))
    }

    pub(crate) fn from_mapped(file: MappedFile) -> Result<Self> {
        let container = Container::parse(file.path(), file.bytes())?;
        let StateDict {
            infos,
            layouts,
            top_key,
            ignored,
        } = state_dict::read(file.path(), &container)?;
        let by_name = infos
            .iter()
            .enumerate()
            .map(|(i, info)| (info.name.clone(), i))
            .collect();
        let swap_bytes = container.big_endian;
        Ok(Self {
            infos,
            layouts,
            by_name,
            swap_bytes,
            top_key,
            ignored,
            file,
        })
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
            return Err(WeightsError::NoSuchTensor {
                path: self.path().to_owned(),
                name: name.to_owned(),
            });
        };
        let TensorInfo { dtype, shape, .. } = &self.infos[i];
        let mut bytes = match &self.layouts[i] {
            Layout::Contiguous(range) => self.file.bytes().slice(range.clone()),
            Layout::Strided {
                storage,
                offset,
                strides,
            } => {
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
    let mut out = Vec::with_capacity(shape.iter().product::<usize>() * element);
    let (Some((&inner, outer_shape)), Some((&inner_stride, outer_strides))) =
        (shape.split_last(), strides.split_last())
    else {
        out.extend_from_slice(&storage[offset * element..(offset + 1) * element]);
        return out;
    };
    let mut index = vec![0; outer_shape.len()];
    for _ in 0..outer_shape.iter().product() {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::error::{FileGuess, TorchFault};
    use super::super::fixtures;
    use super::*;

    fn open(name: &str) -> Result<TorchFile> {
        TorchFile::open(fixtures::path(name))
    }

    fn opened(bytes: &[u8]) -> Result<TorchFile> {
        TorchFile::from_bytes("test", Bytes::copy_from_slice(bytes))
    }

    fn fault(result: Result<TorchFile>) -> TorchFault {
        match result {
            Err(WeightsError::BadTorch { fault, .. }) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_container_and_view_reads_exactly() {
        let names = [
            "dtypes.pth",
            "views.pth",
            "views_protocol4.pth",
            "views_legacy.pth",
            "big_endian.pth",
            "mixed.pth",
        ];
        for name in names {
            let file = open(name).unwrap();
            fixtures::assert_holds(&file, name);
            assert_eq!(file.top_key(), None, "{name}");
        }
    }

    #[test]
    fn lavis_files_give_the_model_and_nothing_else() {
        for name in ["lavis.pth", "lavis_legacy.pth"] {
            let file = open(name).unwrap();
            fixtures::assert_holds(&file, name);
            assert_eq!(file.top_key(), Some("model"), "{name}");
            assert!(file.ignored().is_empty(), "{:?}", file.ignored());
        }
    }

    #[test]
    fn entries_that_are_no_tensors_are_listed() {
        assert_eq!(
            open("mixed.pth").unwrap().ignored(),
            ["steps", "note", "nested", "value"]
        );
    }

    #[test]
    fn contiguous_tensors_stay_in_the_file() {
        let file = open("views.pth").unwrap();
        let map = file.file.bytes().as_ptr_range();
        for name in ["whole", "tied", "row", "ones_dim"] {
            assert!(
                map.contains(&file.get(name).unwrap().bytes().as_ptr()),
                "{name} was copied"
            );
        }
        assert_eq!(
            file.get("whole").unwrap().bytes().as_ptr(),
            file.get("tied").unwrap().bytes().as_ptr()
        );
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let f = fault(open("sparse.pth"));
        assert!(
            matches!(&f, TorchFault::UnsupportedGlobal { tensor, global } if tensor == "s" && global == "torch._utils._rebuild_sparse_tensor"),
            "{f}"
        );
        assert!(matches!(fault(open("module.pth")), TorchFault::NotADict));
        let err = open("complex.pth").unwrap_err();
        assert!(
            matches!(&err, WeightsError::UnsupportedDtype { dtype, .. } if dtype == "torch.ComplexFloatStorage"),
            "{err}"
        );
        let err = open("float8.pth").unwrap_err();
        assert!(
            matches!(&err, WeightsError::UnsupportedDtype { dtype, .. } if dtype == "torch.Float8_e4m3fnStorage" || dtype == "torch.float8_e4m3fn"),
            "{err}"
        );
        let err = open("dtypes.safetensors").unwrap_err();
        assert!(
            matches!(
                err,
                WeightsError::NotWeights {
                    found: FileGuess::Unknown,
                    ..
                }
            ),
            "{err}"
        );
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error() {
        for name in ["mixed.pth", "views_legacy.pth"] {
            let bytes = std::fs::read(fixtures::path(name)).unwrap();
            for len in 1..bytes.len() {
                assert!(opened(&bytes[..len]).is_err(), "{name} {len}");
            }
        }
    }

    /// A stream file around one tensor of four floats.
    fn stream(storage: &str, size: &str, stride: &str, offset: &str, data: &[u8]) -> Vec<u8> {
        let mut out = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.".to_vec();
        let pickle = format!(
            "\x02}}X\x01\0\0\0tctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\n{storage}\nX\x01\0\0\0kX\x03\0\0\0cpuK\x04NtQ{offset}{size}{stride}\u{89}}}tRs."
        );
        out.push(0x80);
        // one char per byte
        out.extend(pickle.chars().map(|c| c as u8));
        out.extend_from_slice(b"\x80\x02]X\x01\0\0\0ka.");
        out.extend_from_slice(&4u64.to_le_bytes());
        out.extend_from_slice(data);
        out
    }

    #[test]
    fn hostile_views_are_faults() {
        let open =
            |storage, size, stride, offset, data: &[u8]| opened(&stream(storage, size, stride, offset, data));
        let good = open("FloatStorage", "K\x04\u{85}", "K\x01\u{85}", "K\0", &[1; 16]).unwrap();
        assert_eq!(good.get("t").unwrap().bytes()[..], [1; 16]);
        // reaches past the end: by size, offset, stride
        for (size, stride, offset) in [
            ("K\x05\u{85}", "K\x01\u{85}", "K\0"),
            ("K\x04\u{85}", "K\x01\u{85}", "K\x01"),
            ("K\x04\u{85}", "K\x02\u{85}", "K\0"),
        ] {
            assert!(matches!(
                fault(open("FloatStorage", size, stride, offset, &[1; 16])),
                TorchFault::OutOfStorage { .. }
            ));
        }
        // 2^30 copies of one element
        let f = fault(open(
            "FloatStorage",
            "J\0\0\0\x40\u{85}",
            "K\0\u{85}",
            "K\0",
            &[1; 16],
        ));
        assert!(
            matches!(
                f,
                TorchFault::Oversized {
                    bytes: 4294967296,
                    ..
                }
            ),
            "{f}"
        );
        // 2^64 elements; a negative size; stride count
        for (size, stride) in [
            ("J\0\0\0\x40J\0\0\0\x40J\0\0\0\x40\u{87}", "K\0K\0K\0\u{87}"),
            ("J\u{ff}\u{ff}\u{ff}\u{ff}\u{85}", "K\x01\u{85}"),
            ("K\x04\u{85}", ")"),
        ] {
            assert!(matches!(
                fault(open("FloatStorage", size, stride, "K\0", &[1; 16])),
                TorchFault::InvalidTensor { .. }
            ));
        }
        // an offset whose product with the stride wraps around
        let f = fault(open(
            "FloatStorage",
            "K\x04\u{85}",
            "\u{8a}\x08\u{ff}\u{ff}\u{ff}\u{ff}\u{ff}\u{ff}\u{ff}\x7f\u{85}",
            "K\0",
            &[1; 16],
        ));
        assert!(matches!(f, TorchFault::OutOfStorage { .. }), "{f}");
        let err = open("FloatStorage", "K\x04\u{85}", "K\x01\u{85}", "K\0", &[1; 15]).unwrap_err();
        assert!(matches!(err, WeightsError::Truncated { .. }), "{err}");
    }

    proptest! {
        #[test]
        fn mutated_files_never_panic(
            name in proptest::sample::select(vec!["views.pth", "views_legacy.pth", "lavis.pth"]),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in proptest::option::weighted(0.3, any::<prop::sample::Index>()),
        ) {
            let mut bytes = std::fs::read(fixtures::path(name)).unwrap();
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()) + 1);
            }
            if let Ok(file) = opened(&bytes) {
                fixtures::read_all(&file);
            }
        }
    }
}
