//! What `data stats` and `data verify` want to know of each sample, gathered in one parallel pass.

use std::collections::BTreeMap;
use std::sync::Arc;

use blip2_model::processor::{DecodeOptions, decode_bytes, read_header};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::mixture::{Mixture, MixtureConfig, Source, Start};
use super::pipeline::{Capacity, Pipeline, Work};
use super::prepare::Needs;
use super::sample::{DataError, Problem, Sample, Skipped};
use super::stream::Order;

/// Measured on one sample.
#[derive(Clone, Debug)]
pub struct Facts {
    /// File it came from.
    pub shard: Arc<str>,
    /// Key inside it.
    pub key: String,
    /// First half of the SHA-256 of the encoded picture.
    pub digest: [u8; 16],
    /// Encoded size, bytes.
    pub bytes: u64,
    /// "jpg", "png" or "webp".
    pub format: &'static str,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// All captions.
    pub captions: Vec<String>,
    /// Has a question.
    pub question: bool,
    /// Distinct answers.
    pub answers: u32,
}

/// How thoroughly to look.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Decode every picture; otherwise only its header is read.
    pub decode: bool,
    /// What a good sample has.
    pub needs: Needs,
    /// Largest picture that is good, pixels.
    pub max_pixels: u64,
    /// Largest picture file, bytes.
    pub max_bytes: u64,
    /// Threads; 0 means one per processor.
    pub threads: usize,
}

impl Look {
    fn at(&self, sample: Sample) -> Result<Facts, Problem> {
        let blank = |c: &String| c.trim().is_empty();
        match self.needs {
            Needs::Caption if sample.captions.iter().all(blank) => return Err(Problem::MissingCaption),
            Needs::Question if sample.question.is_none() => return Err(Problem::MissingQuestion),
            _ => {}
        }
        let bytes = sample.image.read(self.max_bytes)?;
        let refused = |e| Problem::Decode(Arc::new(e));
        let header = read_header(&bytes, "image").map_err(refused)?;
        if self.decode {
            let options = DecodeOptions {
                max_pixels: self.max_pixels,
                ..DecodeOptions::default()
            };
            decode_bytes(&bytes, "image", &options).map_err(refused)?;
        }
        let mut digest = [0; 16];
        digest.copy_from_slice(&Sha256::digest(&bytes)[..16]);
        Ok(Facts {
            shard: sample.shard,
            key: sample.key,
            digest,
            bytes: bytes.len() as u64,
            format: extension_of(header.format),
            width: header.width,
            height: header.height,
            captions: sample.captions,
            question: sample.question.is_some(),
            answers: sample.question.map_or(0, |q| q.answers.len() as u32),
        })
    }
}

/// File extension of a picture format.
pub(super) fn extension_of(format: image::ImageFormat) -> &'static str {
    match format {
        image::ImageFormat::Jpeg => "jpg",
        image::ImageFormat::Png => "png",
        image::ImageFormat::WebP => "webp",
        _ => "other",
    }
}

/// A source read once from beginning to end, in file order, with `work` done on every sample.
pub fn in_order<T: Send + 'static>(
    source: &Source,
    threads: usize,
    work: Work<T>,
) -> Result<Pipeline<T>, DataError> {
    in_order_without(source, threads, Vec::new(), work)
}

/// As [`in_order`], without the samples whose numbers are in `passed_over` (ascending).
pub fn in_order_without<T: Send + 'static>(
    source: &Source,
    threads: usize,
    passed_over: Vec<u64>,
    work: Work<T>,
) -> Result<Pipeline<T>, DataError> {
    let order = Order {
        shuffle: false,
        ..Order::default()
    };
    let config = MixtureConfig {
        order,
        ..MixtureConfig::default()
    };
    let mixture = Mixture::new(std::slice::from_ref(source), config, Start::Epoch(0))?;
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        given => given,
    };
    Ok(Pipeline::new(
        mixture,
        passed_over,
        Capacity {
            threads,
            in_flight: 64 + 2 * threads,
        },
        work,
    ))
}

/// Looks at every sample of `source`; `each` gets the facts or the reason there are none, in file order.
pub fn survey(
    source: &Source,
    look: Look,
    each: &mut dyn FnMut(Result<Facts, Skipped>),
) -> Result<(), DataError> {
    let work: Work<Facts> = Arc::new(move |_, _, sample| look.at(sample));
    for item in in_order(source, look.threads, work)? {
        each(item?.outcome);
    }
    Ok(())
}

/// A histogram over half-open classes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Histogram {
    /// Lower bound of each class that occurs, and how often.
    pub classes: BTreeMap<u64, u64>,
    /// Values.
    pub count: u64,
    /// Their sum.
    pub sum: u64,
    /// The smallest; 0 without values.
    pub min: u64,
    /// The largest.
    pub max: u64,
}

impl Histogram {
    /// Counts `value` in the class that starts at `class`.
    pub fn add(&mut self, value: u64, class: u64) {
        *self.classes.entry(class).or_default() += 1;
        self.min = if self.count == 0 {
            value
        } else {
            self.min.min(value)
        };
        self.max = self.max.max(value);
        self.count += 1;
        self.sum += value;
    }

    /// Mean value; 0 without values.
    pub fn mean(&self) -> f64 {
        if self.count == 0 {
            0.0
        } else {
            self.sum as f64 / self.count as f64
        }
    }

    /// Lower bound of the class in which the share `q` of all values is reached.
    pub fn quantile(&self, q: f64) -> u64 {
        let target = (q * self.count as f64).ceil().max(1.0) as u64;
        let mut passed = 0;
        let class = self.classes.iter().find(|&(_, &n)| {
            passed += n;
            passed >= target
        });
        class.map_or(0, |(&class, _)| class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_sums() {
        let mut h = Histogram::default();
        assert_eq!((h.mean(), h.quantile(0.5)), (0.0, 0));
        for v in [3, 5, 5, 9, 100] {
            h.add(v, v / 5 * 5);
        }
        assert_eq!((h.min, h.max, h.mean()), (3, 100, 24.4));
        assert_eq!((h.quantile(0.2), h.quantile(0.5), h.quantile(1.0)), (0, 5, 100));
    }
}
