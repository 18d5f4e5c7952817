//! Small archives and pictures for the tests of this module.

use std::sync::Arc;

use super::annotations::{AnnotationConfig, AnnotationSet};
use super::shard::ShardSet;

/// A tar with these files in this order; equal names are allowed.
pub fn tar_bytes(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, body) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *body).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Shards `0.tar`, `1.tar`... of these sizes; the caption of each sample is its number over all shards.
pub fn numbered_shards(sizes: &[usize], gzip: bool) -> (tempfile::TempDir, ShardSet) {
    let dir = tempfile::tempdir().unwrap();
    let mut number = 0;
    let mut paths = Vec::new();
    for (i, &size) in sizes.iter().enumerate() {
        let mut builder = tar::Builder::new(Vec::new());
        for _ in 0..size {
            for (extension, body) in [("jpg", "x".to_owned()), ("txt", number.to_string())] {
                let mut header = tar::Header::new_gnu();
                header.set_size(body.len() as u64);
                builder.append_data(&mut header, format!("k{number}.{extension}"), body.as_bytes()).unwrap();
            }
            number += 1;
        }
        let mut bytes = builder.into_inner().unwrap();
        let path = dir.path().join(format!("{i}.tar{}", if gzip { ".gz" } else { "" }));
        if gzip {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut encoder, &bytes).unwrap();
            bytes = encoder.finish().unwrap();
        }
        std::fs::write(&path, bytes).unwrap();
        paths.push(path);
    }
    let mut set = ShardSet::new(paths).unwrap();
    set.samples = Some(number as u64);
    (dir, set)
}

/// `n` rows whose caption is their number.
pub fn rows(n: usize) -> Arc<AnnotationSet> {
    let lines: String = (0..n).map(|i| format!("{{\"image\":\"x.jpg\",\"caption\":\"{i}\"}}\n")).collect();
    Arc::new(AnnotationSet::from_bytes(lines.as_bytes(), None, &AnnotationConfig::new("r.jsonl")).unwrap())
}
