//! Reader of one `.safetensors` file.
//!
//! Layout: u64 header length, JSON header (`name -> dtype, shape, data_offsets`), then the tensors without gaps.
//! The `safetensors` crate checks offsets and sizes; this file adds the mapping, the length of the file and names
//! in messages.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use safetensors::tensor::{Dtype, Metadata};

use super::error::{FileGuess, HeaderFault, Result, WeightsError};
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

    /// Reads a file whose bytes are in memory, such as one compiled into the program; `name` is for messages.
    pub fn from_bytes(name: impl AsRef<Path>, bytes: Bytes) -> Result<Self> {
        Self::from_mapped(MappedFile::in_memory(name.as_ref(), bytes))
    }

    pub(crate) fn from_mapped(file: MappedFile) -> Result<Self> {
        let path = file.path();
        let bytes = file.bytes();
        let truncated = |expected| WeightsError::Truncated {
            path: path.to_owned(),
            expected,
            found: bytes.len() as u64,
        };
        let bad = |fault| WeightsError::BadHeader {
            path: path.to_owned(),
            fault,
        };

        let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
            return Err(WeightsError::NotWeights {
                path: path.to_owned(),
                found: guess_content(bytes),
            });
        };
        let header_len = u64::from_le_bytes(*length);
        if header_len > MAX_HEADER {
            // text read as a length is always too large: say what the file is instead
            let found = guess_content(bytes);
            if found != FileGuess::Unknown {
                return Err(WeightsError::NotWeights {
                    path: path.to_owned(),
                    found,
                });
            }
            return Err(bad(HeaderFault::TooLarge {
                size: header_len,
                limit: MAX_HEADER,
            }));
        }
        let data_start = 8 + header_len as usize;
        let header = rest
            .get(..header_len as usize)
            .ok_or_else(|| truncated(data_start as u64))?;
        let metadata: Metadata =
            serde_json::from_slice(header).map_err(|e| bad(HeaderFault::Invalid(e.into())))?;

        let data_len = metadata.data_len() as u64;
        let found = (bytes.len() - data_start) as u64;
        if found < data_len {
            return Err(truncated((data_start as u64).saturating_add(data_len)));
        }
        if found > data_len {
            return Err(bad(HeaderFault::TrailingBytes {
                bytes: found - data_len,
            }));
        }

        let mut infos = Vec::new();
        let mut entries = HashMap::new();
        for name in metadata.offset_keys() {
            let Some(info) = metadata.info(&name) else {
                continue;
            };
            let dtype = dtype_from(info.dtype).ok_or_else(|| WeightsError::UnsupportedDtype {
                path: path.to_owned(),
                tensor: name.clone(),
                dtype: info.dtype.to_string(),
            })?;
            // the crate has checked that the offsets are in order and end at `data_len`
            let range = data_start + info.data_offsets.0..data_start + info.data_offsets.1;
            entries.insert(name.clone(), (infos.len(), range));
            infos.push(TensorInfo {
                name,
                dtype,
                shape: info.shape.clone(),
            });
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
            return Err(WeightsError::NoSuchTensor {
                path: self.path().to_owned(),
                name: name.to_owned(),
            });
        };
        let info = &self.infos[*i];
        TensorBytes::new(
            info.dtype,
            info.shape.clone(),
            self.file.bytes().slice(range.clone()),
        )
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixtures;
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn open(bytes: &[u8]) -> Result<SafetensorsFile> {
        SafetensorsFile::from_bytes("test", Bytes::copy_from_slice(bytes))
    }

    fn header_fault(header: &str, data: &[u8]) -> HeaderFault {
        match open(&file(header, data)) {
            Err(WeightsError::BadHeader { fault, .. }) => fault,
            other => panic!("{header}: {other:?}"),
        }
    }

    #[test]
    fn every_dtype_is_read_in_place() {
        let source = SafetensorsFile::open(fixtures::path("dtypes.safetensors")).unwrap();
        fixtures::assert_holds(&source, "dtypes.safetensors");
        let window = source.get("t.F32").unwrap();
        let map = source.file.bytes().as_ptr_range();
        assert!(map.contains(&window.bytes().as_ptr()), "copied");
    }

    #[test]
    fn unknown_dtypes_and_names_are_named() {
        let err = SafetensorsFile::open(fixtures::path("float8.safetensors")).unwrap_err();
        assert!(
            matches!(&err, WeightsError::UnsupportedDtype { tensor, dtype, .. } if tensor == "f8" && dtype == "F8_E4M3"),
            "{err}"
        );
        let source = SafetensorsFile::open(fixtures::path("dtypes.safetensors")).unwrap();
        assert!(matches!(source.get("nope"), Err(WeightsError::NoSuchTensor { name, .. }) if name == "nope"));
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error() {
        let bytes = std::fs::read(fixtures::path("dtypes.safetensors")).unwrap();
        for len in 1..bytes.len() {
            assert!(open(&bytes[..len]).is_err(), "{len}");
        }
        let err = open(&bytes[..bytes.len() - 1]).unwrap_err();
        assert!(
            matches!(err, WeightsError::Truncated { expected, found, .. } if expected == bytes.len() as u64 && found + 1 == expected)
        );
        let err = open(&bytes[..100]).unwrap_err();
        assert!(matches!(err, WeightsError::Truncated { found: 100, .. }), "{err}");
    }

    #[test]
    fn hostile_headers_are_faults() {
        let huge = [u64::MAX.to_le_bytes().as_slice(), b"{}"].concat();
        assert!(matches!(
            open(&huge),
            Err(WeightsError::BadHeader {
                fault: HeaderFault::TooLarge { size: u64::MAX, .. },
                ..
            })
        ));
        let entry = |shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        // size and offsets disagree; a gap; backwards; overflow
        for (shape, offsets) in [
            ("[2]", "[0,4]"),
            ("[1]", "[4,8]"),
            ("[1]", "[4,0]"),
            ("[4294967296,4294967296,4]", "[0,8]"),
            ("[9223372036854775807]", "[0,8]"),
        ] {
            let fault = header_fault(&entry(shape, offsets), &[0; 8]);
            assert!(
                matches!(fault, HeaderFault::Invalid(_)),
                "{shape} {offsets}: {fault}"
            );
        }
        // two tensors over the same bytes
        let overlap = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
        assert!(matches!(header_fault(overlap, &[0; 6]), HeaderFault::Invalid(_)));
        assert!(matches!(
            header_fault(&entry("[1]", "[0,4]"), &[0; 9]),
            HeaderFault::TrailingBytes { bytes: 5 }
        ));
        assert!(matches!(header_fault("[]", &[]), HeaderFault::Invalid(_)));
        assert!(matches!(
            header_fault(&"[".repeat(100_000), &[]),
            HeaderFault::Invalid(_)
        ));
        // 2^64 - 8 elements of one byte: the end of the file wraps around if it is added up carelessly
        let wrap = entry("[18446744073709551608]", "[0,18446744073709551608]").replace("F32", "U8");
        assert!(matches!(
            open(&file(&wrap, &[])),
            Err(WeightsError::BadHeader {
                fault: HeaderFault::Invalid(_),
                ..
            })
        ));
        // as large as a size can be without an overflow in bits
        let large = entry("[2305843009213693951]", "[0,2305843009213693951]").replace("F32", "U8");
        assert!(matches!(
            open(&file(&large, &[])),
            Err(WeightsError::Truncated { .. })
        ));
    }

    #[test]
    fn a_web_page_or_lfs_pointer_is_no_header() {
        let err = open(b"<!DOCTYPE html><html>Sign in to continue</html>").unwrap_err();
        assert!(
            matches!(
                err,
                WeightsError::NotWeights {
                    found: FileGuess::Html,
                    ..
                }
            ),
            "{err}"
        );
    }

    proptest! {
        #[test]
        fn mutated_files_never_panic(flips in proptest::collection::vec((0usize..1346, any::<u8>()), 1..6), cut in 0usize..1400) {
            let mut bytes = std::fs::read(fixtures::path("dtypes.safetensors")).unwrap();
            for (at, value) in flips {
                bytes[at] = value;
            }
            bytes.truncate(cut);
            if let Ok(source) = open(&bytes) {
                fixtures::read_all(&source);
            }
        }
    }
}
