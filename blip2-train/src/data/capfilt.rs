//! CapFilt: caption web pictures, score original and synthetic captions, keep the best (BLIP section 4; for BLIP-2 ten
//! synthetic captions and the top two, section 6.1 of the format notes).
//!
//! One shard in, one shard out, under the same name; `json` is the list of captions, best first, which is what
//! section 7.3 reads. The models are behind two traits. A shard that exists is done: rerun to go on after a stop, run
//! several processes with different ranks to go faster.

pub mod models;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::RgbImage;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::facts::in_order;
use super::mixture::Source;
use super::output::{AtomicFile, Unique, append, safe_key};
use super::pipeline::Work;
use super::prepare::{Needs, Preparation};
use super::sample::{DataError, ImageSource, Skipped};
use super::shard::ShardSet;
use super::stream::Data;

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
            rank: 0,
            world: 1,
            preparation,
        }
    }
}

/// Counts of a CapFilt job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
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
}

/// A picture on its way through the models.
struct Candidate {
    key: String,
    bytes: Vec<u8>,
    image: RgbImage,
    originals: Vec<String>,
}

/// Captions with scores, best first; the order of equal scores is kept, so originals win ties.
pub fn rank(captions: Vec<String>, scores: &[f32]) -> Vec<(String, f32)> {
    let mut ranked: Vec<(String, f32)> = captions.into_iter().zip(scores.iter().copied()).collect();
    // a NaN is no recommendation
    let value = |s: f32| if s.is_nan() { f32::NEG_INFINITY } else { s };
    ranked.sort_by(|a, b| value(b.1).total_cmp(&value(a.1)));
    ranked
}

/// Runs the job over the shards of `set`, writing to `folder`. `skipped` hears of samples passed over, `progress` of
/// samples done.
pub fn capfilt(
    set: &ShardSet,
    folder: &Path,
    config: &CapFiltConfig,
    captioner: &mut dyn Captioner,
    scorer: &mut dyn Scorer,
    skipped: &mut dyn FnMut(&Skipped),
    progress: &dyn Fn(u64),
) -> Result<CapFiltReport, DataError> {
    let bad = |field, value: usize, remedy| {
        Err(DataError::Setting {
            field,
            value: value.to_string(),
            remedy,
        })
    };
    match () {
        () if config.keep == 0 => return bad("keep", 0, "at least 1"),
        () if config.batch_size == 0 => return bad("batch size", 0, "at least 1"),
        () if config.rank >= config.world => {
            return bad("rank", config.rank as usize, "below the number of processes");
        }
        () => config.preparation.transform.check()?,
    }
    let mut names = std::collections::HashSet::new();
    let mut report = CapFiltReport::default();
    for (i, path) in set.paths.iter().enumerate() {
        let name = shard_name(path);
        if !names.insert(name.clone()) {
            return bad(
                "shards with one name",
                i,
                "put shards of equal name into separate runs",
            );
        }
        if i as u64 % u64::from(config.world) != u64::from(config.rank) {
            continue;
        }
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
        let mut job = Job {
            config,
            captioner,
            scorer,
            report: &mut report,
            shard: name,
        };
        job.run(one, &out, skipped, progress)?;
    }
    Ok(report)
}

fn shard_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.find('.').map_or(&*name, |dot| &name[..dot]);
    PathBuf::from(format!("{}.tar", if stem == "-" { "stdin" } else { stem }))
}

/// One shard in work.
struct Job<'a> {
    config: &'a CapFiltConfig,
    captioner: &'a mut dyn Captioner,
    scorer: &'a mut dyn Scorer,
    report: &'a mut CapFiltReport,
    shard: PathBuf,
}

impl Job<'_> {
    fn run(
        &mut self,
        set: ShardSet,
        out: &Path,
        skipped: &mut dyn FnMut(&Skipped),
        progress: &dyn Fn(u64),
    ) -> Result<(), DataError> {
        let source = Source {
            name: set.paths[0].to_string_lossy().into(),
            data: Data::Shards(Arc::new(set)),
            ratio: None,
        };
        let preparation = self.config.preparation.clone();
        let work: Work<Candidate> = Arc::new(move |source, pass, mut sample| {
            let bytes = sample.image.read(preparation.max_bytes)?;
            sample.image = ImageSource::Bytes(bytes.clone());
            let originals = sample.captions.clone();
            let example = preparation.run(0, source, pass, sample)?;
            Ok(Candidate {
                key: example.key,
                bytes,
                image: example.image,
                originals,
            })
        });
        let mut tar = tar::Builder::new(AtomicFile::create(out)?);
        let mut keys = Unique::default();
        let mut batch = Vec::new();
        for item in in_order(&source, self.config.threads, work)? {
            match item?.outcome {
                Ok(candidate) => batch.push(candidate),
                Err(skip) => {
                    self.report.skipped += 1;
                    skipped(&skip);
                }
            }
            if batch.len() == self.config.batch_size {
                self.batch(&mut batch, &mut tar, &mut keys, out)?;
                progress(self.report.samples);
            }
        }
        self.batch(&mut batch, &mut tar, &mut keys, out)?;
        progress(self.report.samples);
        tar.into_inner().map_err(DataError::io(out))?.commit()?;
        self.report.shards += 1;
        Ok(())
    }

    fn batch(
        &mut self,
        batch: &mut Vec<Candidate>,
        tar: &mut tar::Builder<AtomicFile>,
        keys: &mut Unique,
        out: &Path,
    ) -> Result<(), DataError> {
        if batch.is_empty() {
            return Ok(());
        }
        let images: Vec<RgbImage> = batch.iter_mut().map(|w| std::mem::take(&mut w.image)).collect();
        let synthetic = self.captioner.caption(&images, self.config.synthetic);
        let synthetic = self.checked("captioner", synthetic, |_| self.config.synthetic, images.len())?;
        let candidates: Vec<Vec<String>> = batch
            .iter()
            .zip(synthetic)
            .map(|(w, s)| distinct(w.originals.iter().cloned().chain(s)))
            .collect();
        let scores = self.scorer.score(&images, &candidates);
        let scores = self.checked("scorer", scores, |i| candidates[i].len(), images.len())?;
        for ((work, captions), scores) in batch.drain(..).zip(candidates).zip(scores) {
            let mut ranked = rank(captions, &scores);
            ranked.retain(|(_, score)| self.config.min_score.is_none_or(|least| *score >= least));
            ranked.truncate(self.config.keep);
            if ranked.is_empty() {
                self.report.rejected += 1;
                continue;
            }
            let ours = ranked.iter().filter(|(c, _)| !work.originals.contains(c)).count() as u64;
            self.report.synthetic += ours;
            self.report.original += ranked.len() as u64 - ours;
            let key = keys.of(safe_key(&work.key));
            let captions: Vec<&String> = ranked.iter().map(|(c, _)| c).collect();
            let notes: Vec<_> = ranked
                .iter()
                .map(|(caption, score)| json!({"score": score, "synthetic": !work.originals.contains(caption)}))
                .collect();
            let notes = json!({"original": work.originals, "kept": notes}).to_string();
            let list = json!(captions).to_string();
            let extension = match image::guess_format(&work.bytes) {
                Ok(format) => super::facts::extension_of(format),
                Err(_) => "jpg", // decoded above, so this does not happen
            };
            let members = [
                (extension, &work.bytes[..]),
                ("json", list.as_bytes()),
                ("capfilt", notes.as_bytes()),
            ];
            for (extension, body) in members {
                append(tar, &format!("{key}.{extension}"), body).map_err(DataError::io(out))?;
            }
            self.report.samples += 1;
        }
        Ok(())
    }

    /// A model that answers with another number of rows than asked is broken; its words cannot be matched to pictures.
    fn checked<T>(
        &self,
        stage: &'static str,
        answer: Result<Vec<Vec<T>>, ModelError>,
        wanted: impl Fn(usize) -> usize,
        rows: usize,
    ) -> Result<Vec<Vec<T>>, DataError> {
        let shard = || self.shard.to_string_lossy().into_owned();
        let answer = answer.map_err(|source| DataError::Model {
            stage,
            shard: shard(),
            source,
        })?;
        let wrong = answer.len() != rows || answer.iter().enumerate().any(|(i, row)| row.len() != wanted(i));
        if wrong {
            let source = ModelError::from("the number of results differs from the number asked for");
            return Err(DataError::Model {
                stage,
                shard: shard(),
                source,
            });
        }
        Ok(answer)
    }
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
