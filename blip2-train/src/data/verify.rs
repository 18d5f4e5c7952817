//! Finds samples that training would pass over, and duplicates. Every picture is decoded.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::facts::{Look, survey};
use super::mixture::Source;
use super::prepare::{Needs, Preparation};
use super::sample::DataError;

/// A sample by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Name {
    /// File it is in.
    pub shard: String,
    /// Key inside it.
    pub key: String,
}

/// A sample that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bad {
    /// Which.
    #[serde(flatten)]
    pub name: Name,
    /// Kind of problem.
    pub kind: &'static str,
    /// The problem in words.
    pub reason: String,
}

/// Samples that are the same in some respect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Duplicates {
    /// Distinct values that occur more than once.
    pub groups: u64,
    /// Samples beyond the first of each group.
    pub extra: u64,
    /// Some pairs (first, later one).
    pub examples: Vec<(Name, Name)>,
}

/// What `data verify` reports.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    /// Samples looked at.
    pub seen: u64,
    /// Usable ones.
    pub good: u64,
    /// Unusable ones by kind.
    pub kinds: BTreeMap<&'static str, u64>,
    /// The unusable ones, as many as were asked for.
    pub bad: Vec<Bad>,
    /// Pictures with the same bytes. Several captions of one picture in an annotation file count here.
    pub same_image: Duplicates,
    /// Same picture and same first caption.
    pub same_pair: Duplicates,
    /// Same first caption.
    pub same_caption: Duplicates,
}

/// First sample of each value; about 100 bytes a sample.
struct Seen {
    first: HashMap<[u8; 16], (u32, Box<str>, bool)>,
    found: Duplicates,
    limit: usize,
}

impl Seen {
    fn new(limit: usize) -> Self {
        Self {
            first: HashMap::new(),
            found: Duplicates {
                groups: 0,
                extra: 0,
                examples: Vec::new(),
            },
            limit,
        }
    }

    fn add(&mut self, value: [u8; 16], shard: u32, key: &str, shards: &[String]) {
        let Some((first_shard, first_key, repeated)) = self.first.get_mut(&value) else {
            self.first.insert(value, (shard, key.into(), false));
            return;
        };
        self.found.extra += 1;
        self.found.groups += u64::from(!*repeated);
        *repeated = true;
        if self.found.examples.len() < self.limit {
            let name = |shard: u32, key: &str| Name {
                shard: shards[shard as usize].clone(),
                key: key.to_owned(),
            };
            self.found
                .examples
                .push((name(*first_shard, first_key), name(shard, key)));
        }
    }
}

fn half_digest(parts: &[&[u8]]) -> [u8; 16] {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    parts.iter().for_each(|p| hash.update(p));
    let mut out = [0; 16];
    out.copy_from_slice(&hash.finalize()[..16]);
    out
}

/// What to look for.
#[derive(Clone, Copy, Debug)]
pub struct VerifyOptions {
    /// What a good sample has.
    pub needs: Needs,
    /// Larger pictures are bad.
    pub max_pixels: u64,
    /// Threads; 0 means one per processor.
    pub threads: usize,
    /// Bad samples and duplicate pairs to list.
    pub list: usize,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            needs: Needs::Caption,
            max_pixels: Preparation::default().max_pixels,
            threads: 0,
            list: 100,
        }
    }
}

/// Goes through `source` once. `progress` is called with the samples seen so far.
pub fn verify(
    source: &Source,
    options: VerifyOptions,
    progress: &dyn Fn(u64),
) -> Result<Verification, DataError> {
    let VerifyOptions {
        needs,
        max_pixels,
        threads,
        list,
    } = options;
    let look = Look {
        decode: true,
        needs,
        max_pixels,
        max_bytes: Preparation::default().max_bytes,
        threads,
    };
    let (mut seen, mut good) = (0, 0);
    let (mut kinds, mut bad) = (BTreeMap::new(), Vec::new());
    let (mut images, mut pairs, mut captions) = (Seen::new(list), Seen::new(list), Seen::new(list));
    let mut shards: Vec<String> = Vec::new();
    survey(source, look, &mut |outcome| {
        seen += 1;
        progress(seen);
        let facts = match outcome {
            Ok(facts) => facts,
            Err(skipped) => {
                *kinds.entry(skipped.problem.kind()).or_default() += 1;
                if bad.len() < list {
                    let name = Name {
                        shard: skipped.shard.to_string(),
                        key: skipped.key,
                    };
                    bad.push(Bad {
                        name,
                        kind: skipped.problem.kind(),
                        reason: skipped.problem.to_string(),
                    });
                }
                return;
            }
        };
        good += 1;
        if shards.last().map(String::as_str) != Some(&*facts.shard) {
            shards.push(facts.shard.to_string());
        }
        let shard = shards.len() as u32 - 1;
        images.add(facts.digest, shard, &facts.key, &shards);
        if let Some(caption) = facts.captions.first() {
            captions.add(half_digest(&[caption.as_bytes()]), shard, &facts.key, &shards);
            pairs.add(
                half_digest(&[&facts.digest, caption.as_bytes()]),
                shard,
                &facts.key,
                &shards,
            );
        }
    })?;
    let (same_image, same_pair, same_caption) = (images.found, pairs.found, captions.found);
    Ok(Verification {
        seen,
        good,
        kinds,
        bad,
        same_image,
        same_pair,
        same_caption,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::shard::ShardSet;
    use super::super::stream::Data;
    use super::super::testing::{png, tar_bytes};
    use super::*;

    #[test]
    fn bad_samples_and_duplicates_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (png(9, 9), png(8, 9));
        let first = [
            ("0.png", a.as_slice()),
            ("0.txt", b"cat"),
            ("1.png", &a[..60]),
            ("1.txt", b"dog"),
            ("2.png", &b),
            ("2.txt", b"cat"),
        ];
        let second = [
            ("0.png", a.as_slice()),
            ("0.txt", b"cat"),
            ("1.png", &a),
            ("1.txt", b"cow"),
            ("2.png", &b),
        ];
        let paths: Vec<_> = [("x.tar", tar_bytes(&first)), ("y.tar", tar_bytes(&second))]
            .into_iter()
            .map(|(name, bytes)| {
                std::fs::write(dir.path().join(name), bytes).unwrap();
                dir.path().join(name)
            })
            .collect();
        let data = Data::Shards(Arc::new(ShardSet::new(paths).unwrap()));
        let source = Source {
            name: "s".into(),
            data,
            ratio: None,
        };
        let got = verify(&source, VerifyOptions::default(), &|_| {}).unwrap();
        assert_eq!((got.seen, got.good), (6, 4));
        assert_eq!(got.kinds, BTreeMap::from([("decode", 1), ("missing_caption", 1)]));
        assert_eq!(
            (got.bad[0].name.key.as_str(), got.bad[1].name.key.as_str()),
            ("1", "2")
        );
        assert!(got.bad[1].name.shard.ends_with("y.tar"));
        let counts = |d: &Duplicates| (d.groups, d.extra);
        assert_eq!(counts(&got.same_image), (1, 2));
        assert_eq!(counts(&got.same_pair), (1, 1));
        assert_eq!(counts(&got.same_caption), (1, 2));
        let (one, other) = &got.same_pair.examples[0];
        assert!(one.shard.ends_with("x.tar") && other.shard.ends_with("y.tar") && other.key == "0");
    }
}
