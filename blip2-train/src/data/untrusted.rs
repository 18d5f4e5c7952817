//! Every way in for bytes from outside, one call each: what the fuzz targets (`tests/fuzz/`) and the test of stored nasty
//! files call. None of these may panic, whatever the bytes are.

use blip2_model::processor::{Alpha, DecodeOptions, decode_bytes, read_header};
use flate2::read::MultiGzDecoder;

use super::annotations::{AnnotationConfig, AnnotationSet};
use super::formats::FORMATS;
use super::prepare::Preparation;
use super::sample::Sample;
use super::tar_reader::Sequential;
use super::webdataset::{TarFields, TarShard};

/// What came of the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Samples, files or pictures that were read.
    pub good: u64,
    /// Typed errors.
    pub bad: u64,
}

impl Tally {
    fn add<T, E>(&mut self, result: &Result<T, E>) {
        match result {
            Ok(_) => self.good += 1,
            Err(_) => self.bad += 1,
        }
    }
}

/// More samples than that are not read: a few bytes of gzip can hold very many empty ones.
const MOST: usize = 10_000;

/// As a tar stream and as a gzipped one.
pub fn tar(bytes: &[u8]) -> Tally {
    let mut tally = Tally::default();
    let mut plain = TarShard::new(Sequential(bytes), "untrusted.tar".into(), TarFields::default(), 0);
    walk(&mut tally, || plain.next_sample(true));
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let stream = Sequential(MultiGzDecoder::new(bytes));
        let mut packed = TarShard::new(stream, "untrusted.tar.gz".into(), TarFields::default(), 0);
        walk(&mut tally, || packed.next_sample(true));
    }
    tally
}

fn walk<E>(tally: &mut Tally, mut next: impl FnMut() -> Option<Result<Option<Sample>, E>>) {
    for _ in 0..MOST {
        let Some(result) = next() else { return };
        tally.add(&result);
    }
}

/// As an annotation file: every container with every format, alone and as its own answers.
pub fn json(bytes: &[u8]) -> Tally {
    let mut tally = Tally::default();
    for name in ["x.json", "x.jsonl", "x.csv", "x.tsv"] {
        for format in FORMATS {
            let config = AnnotationConfig {
                format: format.name.to_owned(),
                ..AnnotationConfig::new(name)
            };
            for answers in [None, Some(bytes)] {
                let set = AnnotationSet::from_bytes(bytes, answers, &config);
                tally.add(&set);
                let Ok(set) = set else { continue };
                (0..set.len().min(MOST))
                    .filter_map(|index| set.sample(index))
                    .for_each(|sample| tally.add(&sample));
            }
        }
    }
    tally
}

/// As a picture, decoded whole, with every way of treating transparency and damage, and prepared for training.
pub fn image(bytes: &[u8]) -> Tally {
    let mut tally = Tally::default();
    tally.add(&read_header(bytes, "untrusted"));
    for alpha in [Alpha::Drop, Alpha::OnWhite] {
        for allow_truncated in [false, true] {
            let options = DecodeOptions {
                max_pixels: 1 << 22,
                apply_orientation: true,
                alpha,
                allow_truncated,
            };
            tally.add(&decode_bytes(bytes, "untrusted", &options));
        }
    }
    let sample = Sample {
        key: "untrusted".into(),
        shard: "untrusted".into(),
        image: super::sample::ImageSource::Bytes(bytes.to_vec()),
        captions: vec!["x".into()],
        label: None,
        question: None,
        image_id: None,
        image_index: None,
    };
    let preparation = Preparation {
        max_pixels: 1 << 22,
        ..Preparation::default()
    };
    tally.add(&preparation.run(0, 0, 0, sample));
    tally
}

/// As a parquet shard, from its beginning and from its middle.
#[cfg(feature = "parquet")]
pub fn parquet(bytes: &[u8]) -> Tally {
    use super::parquet::{ParquetFields, ParquetShard};
    use std::path::Path;
    let mut tally = Tally::default();
    for row in [0, 41] {
        let bytes = bytes::Bytes::copy_from_slice(bytes);
        match ParquetShard::from_reader(
            bytes,
            Path::new("untrusted.parquet"),
            &ParquetFields::default(),
            row,
        ) {
            Ok(mut shard) => walk(&mut tally, || shard.next_sample(true)),
            Err(_) => tally.bad += 1,
        }
    }
    tally
}

#[cfg(test)]
mod tests;
