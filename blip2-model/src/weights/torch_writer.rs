//! Writer of torch files in the form of LAVIS: a zip archive with `{"model": OrderedDict of tensors}`, readable by
//! `torch.load(..., weights_only=True)`.
//!
//! Each tensor gets a storage of its own, aligned to 64 bytes as torch does, and tensors are fetched, written and
//! dropped one at a time.

use std::io::Write;
use std::path::{Path, PathBuf};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::error::{HeaderFault, Result, WeightsError};
use super::staging::StagedFile;
use super::tensor::{DType, TensorInfo};
use super::writer::{Fetch, checked_fetch};

/// Entries of 4 GiB and more need the large form of their zip header.
const LARGE: usize = 0xffff_ffff;

/// Writes a `.pth` file with the tensors under the top-level key `model`, in the given order, replacing what is
/// there.
///
/// # Errors
/// [`WeightsError::DiskFull`] and any error of `fetch` leave no file behind;
/// [`WeightsError::UnsupportedDtype`] for unsigned integers wider than a byte, which have no storage class.
pub fn write_pth(path: impl AsRef<Path>, infos: &[TensorInfo], fetch: &mut Fetch<'_>) -> Result<PathBuf> {
    let path = path.as_ref();
    let io = |e: std::io::Error| WeightsError::io(path, e);
    let zip_error = |e: zip::result::ZipError| match e {
        zip::result::ZipError::Io(e) => io(e),
        other => WeightsError::torch(path, other),
    };
    let mut names: Vec<&str> = infos.iter().map(|info| info.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(WeightsError::BadHeader {
            path: path.to_owned(),
            fault: HeaderFault::DuplicateName(pair[0].to_owned()),
        });
    }
    let pickle = state_dict_pickle(path, infos)?;

    let mut zip = ZipWriter::new(StagedFile::create(path)?);
    let stored = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .with_alignment(64);
    let small: [(&str, &[u8]); 3] = [
        ("archive/data.pkl", &pickle),
        ("archive/byteorder", b"little"),
        ("archive/version", b"3\n"),
    ];
    for (name, content) in small {
        zip.start_file(name, stored).map_err(zip_error)?;
        zip.write_all(content).map_err(io)?;
    }
    for (key, info) in infos.iter().enumerate() {
        let tensor = checked_fetch(info, fetch)?;
        let options = stored.large_file(info.byte_len() >= LARGE);
        zip.start_file(format!("archive/data/{key}"), options)
            .map_err(zip_error)?;
        zip.write_all(tensor.bytes()).map_err(io)?;
    }
    zip.finish().map_err(zip_error)?.commit()
}

/// Pickle protocol 2 of `{"model": OrderedDict((name, tensor), ...)}`.
fn state_dict_pickle(path: &Path, infos: &[TensorInfo]) -> Result<Vec<u8>> {
    let mut p = Vec::with_capacity(256 * infos.len() + 128);
    p.extend_from_slice(b"\x80\x02}");
    text(&mut p, "model");
    p.extend_from_slice(b"ccollections\nOrderedDict\n)R(");
    for (key, info) in infos.iter().enumerate() {
        let class = storage_class(info.dtype).ok_or_else(|| WeightsError::UnsupportedDtype {
            path: path.to_owned(),
            tensor: info.name.clone(),
            dtype: info.dtype.to_string(),
        })?;
        text(&mut p, &info.name);
        p.extend_from_slice(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        // persistent id of the storage
        text(&mut p, "storage");
        p.extend_from_slice(format!("ctorch\n{class}\n").as_bytes());
        text(&mut p, &key.to_string());
        text(&mut p, "cpu");
        int(&mut p, info.num_elements());
        p.extend_from_slice(b"tQ");
        // storage offset, shape, strides
        int(&mut p, 0);
        p.push(b'(');
        info.shape.iter().for_each(|&size| int(&mut p, size));
        p.extend_from_slice(b"t(");
        for dim in 0..info.shape.len() {
            int(
                &mut p,
                info.shape[dim + 1..].iter().map(|&size| size.max(1)).product(),
            );
        }
        // no gradient, no backward hooks
        p.extend_from_slice(b"t\x89ccollections\nOrderedDict\n)RtR");
    }
    p.extend_from_slice(b"us.");
    Ok(p)
}

fn text(p: &mut Vec<u8>, text: &str) {
    p.push(b'X');
    p.extend_from_slice(&(text.len() as u32).to_le_bytes());
    p.extend_from_slice(text.as_bytes());
}

fn int(p: &mut Vec<u8>, value: usize) {
    match i32::try_from(value) {
        Ok(small) => {
            p.push(b'J');
            p.extend_from_slice(&small.to_le_bytes());
        }
        // LONG1: as few bytes as leave the sign bit clear
        Err(_) => {
            let bytes = (value as u64).to_le_bytes();
            let used = 8 - value.leading_zeros() as usize / 8;
            let sign = usize::from(bytes[used - 1] & 0x80 != 0);
            p.extend_from_slice(&[0x8a, (used + sign) as u8]);
            p.extend_from_slice(&bytes[..used]);
            p.extend_from_slice(&[0][..sign]);
        }
    }
}

fn storage_class(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::F64 => "DoubleStorage",
        DType::F32 => "FloatStorage",
        DType::F16 => "HalfStorage",
        DType::BF16 => "BFloat16Storage",
        DType::I64 => "LongStorage",
        DType::I32 => "IntStorage",
        DType::I16 => "ShortStorage",
        DType::I8 => "CharStorage",
        DType::U8 => "ByteStorage",
        DType::Bool => "BoolStorage",
        DType::U64 | DType::U32 | DType::U16 => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::super::pickle::Pickle;
    use super::super::source::TensorSource;
    use super::super::tensor::TensorBytes;
    use super::super::torch::TorchFile;
    use super::super::writer::copy_from;
    use super::*;

    #[test]
    fn a_round_trip_keeps_every_bit() {
        let dir = tempfile::tempdir().unwrap();
        for fixture in ["views.pth", "lavis.pth"] {
            let source = TorchFile::open(fixtures::path(fixture)).unwrap();
            let path = write_pth(dir.path().join(fixture), source.infos(), &mut copy_from(&source)).unwrap();
            let back = TorchFile::open(path).unwrap();
            assert_eq!(back.top_key(), Some("model"));
            assert_eq!(back.infos(), source.infos());
            fixtures::assert_holds(&back, fixture);
        }
    }

    #[test]
    fn integers_of_any_size_are_read_back() {
        for value in [
            0,
            1,
            i32::MAX as usize,
            1 << 31,
            u32::MAX as usize,
            4_500_000_000,
            1 << 47,
            i64::MAX as usize,
        ] {
            let mut program = Vec::new();
            int(&mut program, value);
            program.push(b'.');
            let pickle = Pickle::parse(&program).unwrap();
            assert_eq!(pickle.as_int(pickle.root()), Some(value as i64));
        }
    }

    #[test]
    fn storages_are_aligned() {
        let dir = tempfile::tempdir().unwrap();
        let source = TorchFile::open(fixtures::path("lavis.pth")).unwrap();
        let path = write_pth(dir.path().join("f.pth"), source.infos(), &mut copy_from(&source)).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let mut archive = zip::ZipArchive::new(std::io::Cursor::new(bytes)).unwrap();
        for i in 0..archive.len() {
            let entry = archive.by_index(i).unwrap();
            assert_eq!(entry.data_start() % 64, 0, "{}", entry.name());
        }
    }

    #[test]
    fn failures_leave_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.pth");
        let info = |name: &str, dtype| TensorInfo {
            name: name.into(),
            dtype,
            shape: vec![2],
        };
        let mut ones = |info: &TensorInfo| match info.name.as_str() {
            "bad" => Err(WeightsError::DiskFull {
                path: "elsewhere".into(),
            }),
            _ => TensorBytes::from_f32(vec![2], vec![1.0; 2]),
        };
        let err = write_pth(
            &path,
            &[info("a", DType::F32), info("bad", DType::F32)],
            &mut ones,
        )
        .unwrap_err();
        assert!(matches!(err, WeightsError::DiskFull { .. }), "{err}");
        let err = write_pth(&path, &[info("a", DType::U32)], &mut ones).unwrap_err();
        assert!(matches!(err, WeightsError::UnsupportedDtype { .. }), "{err}");
        let err = write_pth(&path, &[info("a", DType::F32), info("a", DType::F32)], &mut ones).unwrap_err();
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
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// `BLIP2_PYTHON=python3 cargo test -- --ignored torch_itself`, with torch installed.
    #[test]
    #[ignore = "needs Python with torch"]
    fn torch_itself_reads_the_file() {
        const CHECK: &str = "
import json, sys, torch
model = torch.load(sys.argv[1], weights_only=True)['model']
torch.load(sys.argv[1], weights_only=True, mmap=True)
expected = json.load(open(sys.argv[2]))[sys.argv[3]]
assert sorted(model) == sorted(expected)
for name, t in model.items():
    assert t.is_contiguous() and list(t.shape) == expected[name]['shape'], name
    assert t.reshape(-1).view(torch.uint8).numpy().tobytes().hex() == expected[name]['hex'], name
";
        let python = std::env::var("BLIP2_PYTHON").unwrap_or_else(|_| "python3".into());
        let dir = tempfile::tempdir().unwrap();
        for fixture in ["dtypes.pth", "views.pth", "lavis.pth"] {
            let source = TorchFile::open(fixtures::path(fixture)).unwrap();
            // torch has no storage class for these
            let infos: Vec<TensorInfo> = source
                .infos()
                .iter()
                .filter(|info| storage_class(info.dtype).is_some())
                .cloned()
                .collect();
            let path = write_pth(dir.path().join(fixture), &infos, &mut copy_from(&source)).unwrap();
            let check = match fixture {
                "dtypes.pth" => CHECK.replace("assert sorted", "expected = {k: v for k, v in expected.items() if v['dtype'] not in ('U64', 'U32', 'U16')}\nassert sorted"),
                _ => CHECK.to_owned(),
            };
            let output = std::process::Command::new(&python)
                .arg("-c")
                .arg(check)
                .args([&path, &fixtures::path("expected.json")])
                .arg(fixture)
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{fixture}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
}
