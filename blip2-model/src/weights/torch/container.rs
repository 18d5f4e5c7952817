//! The two containers that torch has used: where the pickle is and where each storage's bytes are.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

use zip::{CompressionMethod, ZipArchive};

use super::super::error::{Result, TorchFault, WeightsError};
use super::super::pickle::{Node, Pickle};
use super::super::source::guess_content;
use super::state_dict::element_size;

/// First pickle of the stream format: `0x1950a86a20f9469cfc6c`.
const STREAM_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";

/// A parsed torch file, without its tensors.
pub(super) struct Container<'a> {
    pub pickle: Pickle<'a>,
    /// storage key -> bytes in the file
    pub storages: HashMap<String, Range<usize>>,
    pub big_endian: bool,
}

impl<'a> Container<'a> {
    pub fn recognises(bytes: &[u8]) -> bool {
        bytes.starts_with(ZIP_MAGIC) || is_stream(bytes) || is_tar(bytes)
    }

    pub fn parse(path: &Path, bytes: &'a [u8]) -> Result<Self> {
        if bytes.starts_with(ZIP_MAGIC) {
            Self::zip(path, bytes)
        } else if is_stream(bytes) {
            Self::stream(path, bytes)
        } else if is_tar(bytes) {
            Err(WeightsError::torch(path, TorchFault::TarFormat))
        } else {
            Err(WeightsError::NotWeights {
                path: path.to_owned(),
                found: guess_content(bytes),
            })
        }
    }

    /// Torch 1.6 and later: `NAME/data.pkl`, `NAME/data/KEY`, `NAME/byteorder`, all stored without compression.
    fn zip(path: &Path, bytes: &'a [u8]) -> Result<Self> {
        let fault = |fault: TorchFault| WeightsError::torch(path, fault);
        // without this a file that is cut off would be searched from end to start
        const END_RECORD: usize = 22 + u16::MAX as usize;
        let tail = &bytes[bytes.len().saturating_sub(END_RECORD)..];
        if !tail.windows(4).any(|w| w == b"PK\x05\x06") {
            return Err(fault(
                zip::result::ZipError::InvalidArchive("no end record".into()).into(),
            ));
        }
        let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|e| fault(e.into()))?;
        let mut entries = HashMap::new();
        for i in 0..archive.len() {
            let entry = archive.by_index_raw(i).map_err(|e| fault(e.into()))?;
            let name = entry.name().to_owned();
            if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
                return Err(fault(TorchFault::CompressedEntry(name)));
            }
            let range = usize::try_from(entry.data_start())
                .ok()
                .zip(usize::try_from(entry.size()).ok())
                .and_then(|(start, len)| Some(start..start.checked_add(len)?))
                .filter(|range| range.end <= bytes.len())
                .ok_or_else(|| {
                    fault(zip::result::ZipError::InvalidArchive("an entry leaves the file".into()).into())
                })?;
            entries.insert(name, range);
        }

        let is_root =
            |name: &&String| name.split_once('/').map_or(name.as_str(), |(_, rest)| rest) == "data.pkl";
        let root = entries
            .keys()
            .filter(is_root)
            .min()
            .cloned()
            .ok_or_else(|| fault(TorchFault::MissingEntry("data.pkl".into())))?;
        let prefix = root.strip_suffix("data.pkl").unwrap_or_default();
        let pickle = Pickle::parse(&bytes[entries[&root].clone()]).map_err(|e| fault(e.into()))?;
        let big_endian = entries
            .get(&format!("{prefix}byteorder"))
            .is_some_and(|r| &bytes[r.clone()] == b"big");
        let data = format!("{prefix}data/");
        let storages = entries
            .into_iter()
            .filter_map(|(name, range)| Some((name.strip_prefix(&data)?.to_owned(), range)))
            .collect();
        Ok(Self {
            pickle,
            storages,
            big_endian,
        })
    }

    /// Before torch 1.6: magic, version, system info, the object, the storage keys, then for every key its number
    /// of elements and its bytes, which are little-endian whatever the writing machine was.
    fn stream(path: &Path, bytes: &'a [u8]) -> Result<Self> {
        let mut at = 0;
        let mut next = || -> Result<Pickle<'a>> {
            let pickle = Pickle::parse(&bytes[at..]).map_err(|e| WeightsError::torch(path, e))?;
            at += pickle.consumed();
            Ok(pickle)
        };
        let (_magic, _version, _system) = (next()?, next()?, next()?);
        let pickle = next()?;
        let keys = next()?;

        let mut element_sizes = HashMap::new();
        for id in pickle.ids() {
            if let Node::Persistent(id) = pickle.node(id)
                && let Some([tag, class, key, ..]) = pickle.as_items(*id)
                && pickle.as_str(*tag) == Some("storage")
                && let (Some((_, class)), Some(key)) = (pickle.as_global(*class), pickle.as_str(*key))
            {
                element_sizes.insert(key, element_size(class));
            }
        }

        let bad = |what| {
            WeightsError::torch(
                path,
                TorchFault::InvalidTensor {
                    tensor: "(storage list)".into(),
                    what,
                },
            )
        };
        let mut storages = HashMap::new();
        for &key in keys
            .as_items(keys.root())
            .ok_or_else(|| bad("no list of storage keys"))?
        {
            let key = keys.as_str(key).ok_or_else(|| bad("a storage key is no text"))?;
            let size = element_sizes
                .get(key)
                .copied()
                .flatten()
                .ok_or_else(|| bad("a storage of unknown type"))?;
            let truncated = |expected: usize| WeightsError::Truncated {
                path: path.to_owned(),
                expected: expected as u64,
                found: bytes.len() as u64,
            };
            let count = *bytes[at..]
                .first_chunk::<8>()
                .ok_or_else(|| truncated(at.saturating_add(8)))?;
            at += 8;
            let count =
                usize::try_from(i64::from_le_bytes(count)).map_err(|_| bad("a storage of negative size"))?;
            let end = count
                .checked_mul(size)
                .and_then(|len| at.checked_add(len))
                .ok_or_else(|| bad("a storage of absurd size"))?;
            if end > bytes.len() {
                return Err(truncated(end));
            }
            storages.insert(key.to_owned(), at..end);
            at = end;
        }
        Ok(Self {
            pickle,
            storages,
            big_endian: false,
        })
    }
}

fn is_stream(bytes: &[u8]) -> bool {
    // PROTO n, LONG1 of ten bytes
    matches!(bytes, [0x80, _, 0x8a, 10, rest @ ..] if rest.starts_with(&STREAM_MAGIC))
}

fn is_tar(bytes: &[u8]) -> bool {
    bytes.get(257..262) == Some(b"ustar")
}
