//! Which packed pages this build can unpack, told when a file is opened: the library itself says so at the first page, and
//! then every file of the kind would be lost one by one.

use std::path::Path;

use parquet::basic::Compression;
use parquet::file::reader::FileReader;

use crate::data::sample::DataError;

/// Checks the columns with these numbers, in all row groups of `file`; `path` is for the message.
pub(super) fn check(file: &dyn FileReader, columns: &[usize], path: &Path) -> Result<(), DataError> {
    let mut chunks = file
        .metadata()
        .row_groups()
        .iter()
        .flat_map(|group| columns.iter().filter_map(|&index| group.columns().get(index)));
    let Some(chunk) = chunks.find(|chunk| !unpacks(chunk.compression())) else {
        return Ok(());
    };
    Err(DataError::Codec {
        path: path.to_owned(),
        column: chunk.column_path().string(),
        codec: name(chunk.compression()),
        remedy: match chunk.compression() {
            Compression::ZSTD(_) => {
                "build with `--features parquet-zstd`, or write the file with snappy or gzip"
            }
            _ => "write the file with snappy or gzip",
        },
    })
}

fn unpacks(codec: Compression) -> bool {
    match codec {
        Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_) => true,
        Compression::ZSTD(_) => cfg!(feature = "parquet-zstd"),
        _ => false,
    }
}

/// `zstd`, without the level that the library writes behind it.
fn name(codec: Compression) -> String {
    let name = codec.to_string().to_ascii_lowercase();
    name.split('(').next().unwrap_or_default().to_owned()
}
