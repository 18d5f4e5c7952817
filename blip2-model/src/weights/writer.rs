//! Writer of Hugging Face safetensors: one file, or shards with an index.
//!
//! Tensors are fetched, written and dropped one at a time. Nothing has its final name before all of it is on the
//! disk, and the index comes last, so that an interrupted run leaves no folder that looks complete.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, TensorInfo as HeaderEntry};
use serde_json::json;

use super::error::{HeaderFault, Result, WeightsError};
use super::safetensors::dtype_into;
use super::shard_plan::{INDEX, existing_weights, shard_names, split};
use super::source::TensorSource;
use super::staging::StagedFile;
use super::tensor::{TensorBytes, TensorInfo};

/// How to write a folder.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Largest shard in bytes of tensors; a single larger tensor gets a shard of its own.
    pub max_shard_bytes: u64,
    /// Replace safetensors weights that are in the folder already.
    pub overwrite: bool,
}

impl Default for WriteOptions {
    /// 5 GB per shard as Hugging Face does, no overwriting.
    fn default() -> Self {
        Self {
            max_shard_bytes: 5_000_000_000,
            overwrite: false,
        }
    }
}

/// Gives the content of one tensor of the list being written; called once per tensor.
pub type Fetch<'f> = dyn FnMut(&TensorInfo) -> Result<TensorBytes> + 'f;

/// Writes `model.safetensors`, or `model-00001-of-0000N.safetensors` and `model.safetensors.index.json` when the
/// tensors exceed a shard. Returns the files written, the index last.
///
/// # Errors
/// [`WeightsError::AlreadyExists`] without `overwrite`; [`WeightsError::DiskFull`] and any error of `fetch` leave
/// the folder as it was.
pub fn write_folder(
    folder: impl AsRef<Path>,
    infos: &[TensorInfo],
    options: &WriteOptions,
    fetch: &mut Fetch<'_>,
) -> Result<Vec<PathBuf>> {
    let folder = folder.as_ref();
    std::fs::create_dir_all(folder).map_err(|e| WeightsError::io(folder, e))?;
    let stale = existing_weights(folder)?;
    if let (Some(path), false) = (stale.first(), options.overwrite) {
        return Err(WeightsError::AlreadyExists { path: path.clone() });
    }

    let shards = split(infos, options.max_shard_bytes);
    let names = shard_names(shards.len());
    let mut finished = Vec::new();
    for (name, shard) in names.iter().zip(&shards) {
        let mut file = StagedFile::create(&folder.join(name))?;
        write_tensors(&mut file, &folder.join(name), shard, fetch)?;
        finished.push(file.finish()?);
    }
    if shards.len() > 1 {
        let weight_map: BTreeMap<&str, &str> = names
            .iter()
            .zip(&shards)
            .flat_map(|(file, shard)| shard.iter().map(move |info| (info.name.as_str(), file.as_str())))
            .collect();
        let total_size: usize = infos.iter().map(TensorInfo::byte_len).sum();
        let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
        let path = folder.join(INDEX);
        let mut file = StagedFile::create(&path)?;
        writeln!(file, "{index:#}").map_err(|e| WeightsError::io(&path, e))?;
        finished.push(file.finish()?);
    }

    // Everything is on the disk. The old index goes before any shard is replaced: a run that ends here leaves
    // shards without an index, which no reader takes for a checkpoint.
    for path in stale.iter().rev() {
        std::fs::remove_file(path).map_err(|e| WeightsError::io(path, e))?;
    }
    finished.into_iter().map(|file| file.commit()).collect()
}

/// Safetensors weights that a folder holds already, one of them.
pub(crate) fn first_existing(folder: &Path) -> Result<Option<PathBuf>> {
    Ok(existing_weights(folder)?.into_iter().next())
}

/// Writes one safetensors file, replacing what is there.
pub fn write_file(path: impl AsRef<Path>, infos: &[TensorInfo], fetch: &mut Fetch<'_>) -> Result<PathBuf> {
    let path = path.as_ref();
    let infos: Vec<&TensorInfo> = infos.iter().collect();
    let mut file = StagedFile::create(path)?;
    write_tensors(&mut file, path, &infos, fetch)?;
    file.commit()
}

/// A [`Fetch`] that copies from another checkpoint and keeps no more than one of its tensors resident.
pub fn copy_from(source: &dyn TensorSource) -> impl FnMut(&TensorInfo) -> Result<TensorBytes> {
    let mut previous: Option<String> = None;
    move |info| {
        if let Some(name) = previous.replace(info.name.clone()) {
            source.release(&name);
        }
        source.get(&info.name)
    }
}

/// Header and tensors, in the order of the reference writer: wider elements first, so that every tensor is aligned
/// for its element type, then by name.
fn write_tensors(
    file: &mut impl Write,
    path: &Path,
    infos: &[&TensorInfo],
    fetch: &mut Fetch<'_>,
) -> Result<()> {
    let io = |e| WeightsError::io(path, e);
    let bad = |fault| WeightsError::BadHeader {
        path: path.to_owned(),
        fault,
    };
    let mut infos = infos.to_vec();
    infos.sort_by(|a, b| {
        dtype_into(b.dtype)
            .cmp(&dtype_into(a.dtype))
            .then_with(|| a.name.cmp(&b.name))
    });
    if let Some(pair) = infos.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(bad(HeaderFault::DuplicateName(pair[0].name.clone())));
    }

    let mut end = 0;
    let entries = infos.iter().map(|info| {
        let start = end;
        end += info.byte_len();
        let entry = HeaderEntry {
            dtype: dtype_into(info.dtype),
            shape: info.shape.clone(),
            data_offsets: (start, end),
        };
        (info.name.clone(), entry)
    });
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), entries.collect()).map_err(|e| bad(e.into()))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| io(e.into()))?;
    header.resize(header.len().next_multiple_of(8), b' ');

    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    file.write_all(&header).map_err(io)?;
    for info in infos {
        file.write_all(checked_fetch(info, fetch)?.bytes()).map_err(io)?;
    }
    Ok(())
}

/// Fetches a tensor and makes sure that it is the one announced in the header.
pub(super) fn checked_fetch(info: &TensorInfo, fetch: &mut Fetch<'_>) -> Result<TensorBytes> {
    let tensor = fetch(info)?;
    if tensor.dtype() != info.dtype || tensor.shape() != info.shape {
        let TensorInfo { name, dtype, shape } = info.clone();
        let (found_dtype, found_shape) = (tensor.dtype(), tensor.shape().to_vec());
        return Err(WeightsError::NotAsAnnounced {
            name,
            dtype,
            shape,
            found_dtype,
            found_shape,
        });
    }
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::super::safetensors::SafetensorsFile;
    use super::super::sharded::ShardedSource;
    use super::super::tensor::DType;
    use super::*;

    fn names_in(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn options(max_shard_bytes: u64, overwrite: bool) -> WriteOptions {
        WriteOptions {
            max_shard_bytes,
            overwrite,
        }
    }

    #[test]
    fn a_round_trip_keeps_every_bit() {
        let dir = tempfile::tempdir().unwrap();
        let source = SafetensorsFile::open(fixtures::path("dtypes.safetensors")).unwrap();
        let written = write_folder(
            dir.path(),
            source.infos(),
            &WriteOptions::default(),
            &mut copy_from(&source),
        )
        .unwrap();
        assert_eq!(written, [dir.path().join("model.safetensors")]);
        let back = SafetensorsFile::open(&written[0]).unwrap();
        fixtures::assert_holds(&back, "dtypes.safetensors");
        // the order within a file follows the reference writer, so even the files are equal
        assert!(
            std::fs::read(&written[0]).unwrap()
                == std::fs::read(fixtures::path("dtypes.safetensors")).unwrap()
        );
    }

    #[test]
    fn shards_are_cut_and_indexed_as_hugging_face_does() {
        let dir = tempfile::tempdir().unwrap();
        let source = ShardedSource::open(fixtures::path("sharded/model.safetensors.index.json")).unwrap();
        write_folder(
            dir.path(),
            source.infos(),
            &options(300, false),
            &mut copy_from(&source),
        )
        .unwrap();
        let index = dir.path().join("model.safetensors.index.json");
        fixtures::assert_holds(&ShardedSource::open(&index).unwrap(), "sharded");
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
        assert_eq!(json["metadata"]["total_size"], 5 * 128 + 12);
        assert_eq!(json["weight_map"]["bias"], "model-00001-of-00003.safetensors");
        assert_eq!(names_in(dir.path()).len(), 4);
    }

    #[test]
    fn overwriting_leaves_nothing_of_the_old_layout() {
        let dir = tempfile::tempdir().unwrap();
        let source = ShardedSource::open(fixtures::path("sharded/model.safetensors.index.json")).unwrap();
        let write = |options: WriteOptions| {
            write_folder(dir.path(), source.infos(), &options, &mut copy_from(&source))
        };
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        write(options(300, false)).unwrap();
        let before = names_in(dir.path());
        assert!(matches!(
            write(options(u64::MAX, false)),
            Err(WeightsError::AlreadyExists { .. })
        ));
        assert_eq!(names_in(dir.path()), before);
        write(options(u64::MAX, true)).unwrap();
        assert_eq!(names_in(dir.path()), ["config.json", "model.safetensors"]);
        write(options(200, true)).unwrap();
        assert_eq!(names_in(dir.path()).len(), 7);
        assert!(!dir.path().join("model.safetensors").exists());
    }

    #[test]
    fn a_tensor_that_cannot_be_had_leaves_the_folder_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let source = ShardedSource::open(fixtures::path("sharded/model.safetensors.index.json")).unwrap();
        write_folder(
            dir.path(),
            source.infos(),
            &options(u64::MAX, false),
            &mut copy_from(&source),
        )
        .unwrap();
        let before = std::fs::read(dir.path().join("model.safetensors")).unwrap();
        let mut left = 4;
        let mut failing = |info: &TensorInfo| {
            left -= 1;
            if left == 0 {
                Err(WeightsError::DiskFull {
                    path: "elsewhere".into(),
                })
            } else {
                source.get(&info.name)
            }
        };
        let err = write_folder(dir.path(), source.infos(), &options(300, true), &mut failing).unwrap_err();
        assert!(matches!(err, WeightsError::DiskFull { .. }), "{err}");
        assert_eq!(names_in(dir.path()), ["model.safetensors"]);
        assert_eq!(
            std::fs::read(dir.path().join("model.safetensors")).unwrap(),
            before
        );
    }

    #[test]
    fn a_full_disk_is_reported_as_such() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
                self.0 = self
                    .0
                    .checked_sub(buf.len())
                    .ok_or(std::io::ErrorKind::StorageFull)?;
                Ok(buf.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let source = SafetensorsFile::open(fixtures::path("dtypes.safetensors")).unwrap();
        let infos: Vec<&TensorInfo> = source.infos().iter().collect();
        for room in [0, 8, 100, 1300] {
            let err = write_tensors(&mut Full(room), Path::new("out"), &infos, &mut copy_from(&source))
                .unwrap_err();
            assert!(
                matches!(&err, WeightsError::DiskFull { path } if path == Path::new("out")),
                "{err}"
            );
        }
    }

    #[test]
    fn what_arrives_must_be_what_was_announced() {
        let dir = tempfile::tempdir().unwrap();
        let infos = [TensorInfo {
            name: "a".into(),
            dtype: DType::F16,
            shape: vec![2],
        }];
        let mut other =
            |_: &TensorInfo| TensorBytes::new(DType::BF16, vec![2], bytes::Bytes::from_static(&[0; 4]));
        let err = write_file(dir.path().join("f"), &infos, &mut other).unwrap_err();
        assert!(matches!(err, WeightsError::NotAsAnnounced { .. }), "{err}");
        let twice = [infos[0].clone(), infos[0].clone()];
        let err = write_file(dir.path().join("f"), &twice, &mut other).unwrap_err();
        assert!(
            matches!(
                err,
                WeightsError::BadHeader {
                    fault: HeaderFault::DuplicateName(_),
                    ..
                }
            ),
            "{err}"
        );
        assert!(names_in(dir.path()).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn files_are_readable_by_others_as_the_umask_allows() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = write_file(dir.path().join("f"), &[], &mut |_: &TensorInfo| unreachable!()).unwrap();
        std::fs::write(dir.path().join("plain"), "").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&dir.path().join("plain")));
    }
}
