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
                builder
                    .append_data(&mut header, format!("k{number}.{extension}"), body.as_bytes())
                    .unwrap();
            }
            number += 1;
        }
        let mut bytes = builder.into_inner().unwrap();
        let path = dir
            .path()
            .join(format!("{i}.tar{}", if gzip { ".gz" } else { "" }));
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
    let lines: String = (0..n)
        .map(|i| format!("{{\"image\":\"x.jpg\",\"caption\":\"{i}\"}}\n"))
        .collect();
    Arc::new(AnnotationSet::from_bytes(lines.as_bytes(), None, &AnnotationConfig::new("r.jsonl")).unwrap())
}

/// A PNG of noise-free colours.
pub fn png(width: u32, height: u32) -> Vec<u8> {
    let image = image::RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([x as u8, y as u8, (x * y) as u8])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Shards of small pictures `s<set>-<number>` with caption `<set> <number>`; every tenth picture is damaged.
pub fn picture_shards(sizes: &[usize], set: usize) -> (tempfile::TempDir, ShardSet) {
    let dir = tempfile::tempdir().unwrap();
    let mut number = 0;
    let mut paths = Vec::new();
    for (i, &size) in sizes.iter().enumerate() {
        let mut files = Vec::new();
        for _ in 0..size {
            let mut bytes = png(20 + number as u32, 30);
            if number % 10 == 9 {
                bytes.truncate(bytes.len() / 2);
            }
            files.push((format!("s{set}-{number}.png"), bytes));
            files.push((
                format!("s{set}-{number}.txt"),
                format!("{set} {number}").into_bytes(),
            ));
            number += 1;
        }
        let files: Vec<(&str, &[u8])> = files.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
        let path = dir.path().join(format!("{i}.tar"));
        std::fs::write(&path, tar_bytes(&files)).unwrap();
        paths.push(path);
    }
    let mut shards = ShardSet::new(paths).unwrap();
    shards.samples = Some(number as u64);
    (dir, shards)
}
