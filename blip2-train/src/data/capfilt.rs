//! CapFilt: caption web pictures, score original and synthetic captions, keep the best (BLIP section 4; for BLIP-2 ten
//! synthetic captions and the top two, section 6.1 of the format notes).
//!
//! One shard in, one shard out, under the same name; `json` is the list of captions, best first, which is what
//! section 7.3 reads; scores, the captions that were there and the JSON fields of the input are in `capfilt` beside it.
//! The models are behind two traits. A shard that exists is done: rerun to go on after a stop, run several processes
//! with different ranks to go faster. A damaged shard is not written. [`record`] keeps a folder to one set of settings.

pub mod error;
mod fields;
mod job;
pub mod models;
pub mod record;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use image::RgbImage;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use self::error::{CapFiltError, LostShard};
use self::job::Job;
use self::record::Record;
use super::prepare::{Needs, Preparation};
use super::sample::{DataError, Skipped};
use super::shard::ShardSet;

/// What a model may fail with.
pub type ModelError = Box<dyn std::error::Error + Send + Sync>;

/// Writes captions for pictures.
pub trait Captioner {
    /// `n` captions for each of the B pictures.
    fn caption(&mut self, images: &[RgbImage], n: usize) -> Result<Vec<Vec<String>>, ModelError>;
}

/// Judges captions.
pub trait Scorer {
    /// For each of the B pictures one score per caption, higher is better (ITM probability or ITC cosine).
    fn score(&mut self, images: &[RgbImage], captions: &[Vec<String>]) -> Result<Vec<Vec<f32>>, ModelError>;
}

/// Settings of a CapFilt job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CapFiltConfig {
    /// Synthetic captions for each picture.
    pub synthetic: usize,
    /// Captions kept.
    pub keep: usize,
    /// Captions below this score are dropped even if fewer than `keep` remain.
    pub min_score: Option<f32>,
    /// Pictures per model call.
    pub batch_size: usize,
    /// Decode threads; 0 means one per processor.
    pub threads: usize,
    /// Share of a shard's samples that may be bad, 0 to 1; a few may always be. A shard with more is not written.
    pub max_bad: f64,
    /// This process and the number of processes; shards are dealt out in turn.
    pub rank: u32,
    /// Number of processes.
    pub world: u32,
    /// How pictures are prepared for the models; captions are cleaned neither here nor there.
    pub preparation: Preparation,
}

impl Default for CapFiltConfig {
    fn default() -> Self {
        let preparation = Preparation {
            clean: false,
            needs: Needs::Image,
            ..Preparation::default()
        };
        Self {
            synthetic: 10,
            keep: 2,
            min_score: None,
            batch_size: 32,
            threads: 0,
            max_bad: 0.01,
            rank: 0,
            world: 1,
            preparation,
        }
    }
}

impl CapFiltConfig {
    fn check(&self) -> Result<(), DataError> {
        let bad = |field, value: String, remedy| Err(DataError::Setting { field, value, remedy });
        match () {
            () if self.keep == 0 => bad("keep", "0".into(), "at least 1"),
            () if self.batch_size == 0 => bad("batch size", "0".into(), "at least 1"),
            () if !(0.0..=1.0).contains(&self.max_bad) => {
                bad("max_bad", self.max_bad.to_string(), "from 0 to 1")
            }
            () if self.rank >= self.world => {
                bad("rank", self.rank.to_string(), "below the number of processes")
            }
            () => self.preparation.transform.check(),
        }
    }
}

/// Counts of a CapFilt job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CapFiltReport {
    /// Shards written.
    pub shards: u64,
    /// Shards that existed already.
    pub present: u64,
    /// Samples written.
    pub samples: u64,
    /// Samples passed over.
    pub skipped: u64,
    /// Samples of which no caption reached the least score.
    pub rejected: u64,
    /// Kept captions that are synthetic.
    pub synthetic: u64,
    /// Kept captions that were there before.
    pub original: u64,
    /// Shards that are not written because they cannot be used; their samples are counted nowhere.
    pub lost: Vec<LostShard>,
}

impl CapFiltReport {
    fn add(&mut self, shard: &Self) {
        self.shards += shard.shards;
        self.samples += shard.samples;
        self.skipped += shard.skipped;
        self.rejected += shard.rejected;
        self.synthetic += shard.synthetic;
        self.original += shard.original;
    }
}

/// Captions with scores, best first; the order of equal scores is kept, so originals win ties.
pub fn rank(captions: Vec<String>, scores: &[f32]) -> Vec<(String, f32)> {
    let mut ranked: Vec<(String, f32)> = captions.into_iter().zip(scores.iter().copied()).collect();
    // a NaN is no recommendation
    let value = |s: f32| if s.is_nan() { f32::NEG_INFINITY } else { s };
    ranked.sort_by(|a, b| value(b.1).total_cmp(&value(a.1)));
    ranked
}

/// The models in their roles.
pub struct Models<'a> {
    /// Writes captions.
    pub captioner: &'a mut dyn Captioner,
    /// Judges them.
    pub scorer: &'a mut dyn Scorer,
    /// What tells these models and the way they are asked from others, for the [`record`].
    pub settings: Map<String, Value>,
}

/// Runs the job over the shards of `set`, writing to `folder`. `skipped` hears of samples passed over, `progress` of
/// samples done. Shards that cannot be used are in the report; the others are done all the same.
pub fn capfilt(
    set: &ShardSet,
    folder: &Path,
    config: &CapFiltConfig,
    models: &mut Models,
    skipped: &mut dyn FnMut(&Skipped),
    progress: &dyn Fn(u64),
) -> Result<CapFiltReport, CapFiltError> {
    config.check()?;
    let mut shards: BTreeMap<PathBuf, &PathBuf> = BTreeMap::new();
    for path in &set.paths {
        let name = shard_name(path);
        if shards.insert(name.clone(), path).is_some() {
            return Err(CapFiltError::OneName {
                name: name.to_string_lossy().into_owned(),
            });
        }
    }
    Record::new(config, models.settings.clone()).claim(folder, shards.keys().map(PathBuf::as_path))?;
    let mut report = CapFiltReport::default();
    for path in set
        .paths
        .iter()
        .skip(config.rank as usize)
        .step_by(config.world as usize)
    {
        let name = shard_name(path);
        let out = folder.join(&name);
        if out.exists() {
            report.present += 1;
            continue;
        }
        let one = ShardSet {
            paths: vec![path.clone()],
            samples: None,
            ..set.clone()
        };
        let job = Job {
            config,
            models,
            shard: name.to_string_lossy().into_owned(),
            report: CapFiltReport::default(),
        };
        let before = report.samples;
        match job.run(one, &out, skipped, &|samples| progress(before + samples))? {
            Ok(done) => report.add(&done),
            Err(loss) => report.lost.push(LostShard {
                shard: path.to_string_lossy().into_owned(),
                reason: loss.to_string(),
            }),
        }
    }
    Ok(report)
}

fn shard_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.find('.').map_or(&*name, |dot| &name[..dot]);
    PathBuf::from(format!("{}.tar", if stem == "-" { "stdin" } else { stem }))
}

/// Captions without blank and repeated ones (case and outer space do not count).
fn distinct(captions: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    captions
        .filter(|c| !c.trim().is_empty() && seen.insert(c.trim().to_lowercase()))
        .collect()
}

#[cfg(test)]
mod tests;
