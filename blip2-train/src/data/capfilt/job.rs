//! One shard in work: read, captioned, judged and written; or lost, and then nothing is written.

use std::path::Path;
use std::sync::Arc;

use image::RgbImage;
use serde_json::{Map, Value, json};

use super::error::{CapFiltError, Loss};
use super::fields::InputFields;
use super::{CapFiltConfig, CapFiltReport, ModelError, Models, distinct, rank};
use crate::data::facts::{extension_of, in_order};
use crate::data::mixture::Source;
use crate::data::output::{AtomicFile, Unique, append, safe_key};
use crate::data::pipeline::Work;
use crate::data::sample::{DataError, ImageSource, Skipped};
use crate::data::shard::ShardSet;
use crate::data::stream::Data;

/// Bad samples that every shard may have, however small it is.
const BAD_ALLOWED: u64 = 5;

/// A picture on its way through the models.
struct Candidate {
    key: String,
    bytes: Vec<u8>,
    image: RgbImage,
    originals: Vec<String>,
}

/// One shard in work.
pub(super) struct Job<'a, 'm> {
    pub config: &'a CapFiltConfig,
    pub models: &'a mut Models<'m>,
    /// Name of the new shard, for messages.
    pub shard: String,
    /// Counts of this shard.
    pub report: CapFiltReport,
}

impl Job<'_, '_> {
    /// The counts, or why the shard is lost. `set` holds this shard only; `progress` hears of the samples of it.
    pub fn run(
        mut self,
        set: ShardSet,
        out: &Path,
        skipped: &mut dyn FnMut(&Skipped),
        progress: &dyn Fn(u64),
    ) -> Result<Result<CapFiltReport, Loss>, CapFiltError> {
        let mut inputs = InputFields::open(&set);
        let source = Source {
            name: set.paths[0].to_string_lossy().into(),
            data: Data::Shards(Arc::new(set)),
            ratio: None,
        };
        let mut tar = tar::Builder::new(AtomicFile::create(out)?);
        let mut keys = Unique::default();
        let mut batch = Vec::new();
        let (mut seen, mut last_bad) = (0, None);
        for item in in_order(&source, self.config.threads, self.work())? {
            let outcome = match item {
                Ok(item) => item.outcome,
                Err(error) => return Ok(Err(error.into())),
            };
            seen += 1;
            let fields = inputs.next(outcome.as_ref().ok().map(|candidate| candidate.key.as_str()));
            match outcome {
                Ok(candidate) => batch.push((candidate, fields)),
                Err(skip) => {
                    skipped(&skip);
                    if Loss::is_of_the_shard(&skip.problem) {
                        return Ok(Err(Loss::Damaged(skip.problem)));
                    }
                    self.report.skipped += 1;
                    last_bad = Some(skip);
                }
            }
            if batch.len() == self.config.batch_size {
                self.batch(&mut batch, &mut tar, &mut keys, out)?;
                progress(self.report.samples);
            }
        }
        if let Some(loss) = self.too_little(seen, last_bad) {
            return Ok(Err(loss));
        }
        self.batch(&mut batch, &mut tar, &mut keys, out)?;
        progress(self.report.samples);
        tar.into_inner().map_err(DataError::io(out))?.commit()?;
        self.report.shards = 1;
        Ok(Ok(self.report))
    }

    fn work(&self) -> Work<Candidate> {
        let preparation = self.config.preparation.clone();
        Arc::new(move |source, pass, mut sample| {
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
        })
    }

    /// Whether so few samples are good that the shard cannot be what it should be.
    fn too_little(&self, seen: u64, last_bad: Option<Skipped>) -> Option<Loss> {
        let bad = self.report.skipped;
        let allowed = BAD_ALLOWED.max((self.config.max_bad * seen as f64) as u64);
        match last_bad {
            _ if seen == 0 => Some(Loss::Empty),
            Some(last) if bad > allowed || bad == seen => Some(Loss::TooManyBad {
                bad,
                seen,
                allowed: allowed.min(seen - 1),
                key: last.key,
                problem: last.problem,
            }),
            _ => None,
        }
    }

    fn batch(
        &mut self,
        batch: &mut Vec<(Candidate, Option<Map<String, Value>>)>,
        tar: &mut tar::Builder<AtomicFile>,
        keys: &mut Unique,
        out: &Path,
    ) -> Result<(), DataError> {
        if batch.is_empty() {
            return Ok(());
        }
        let images: Vec<RgbImage> = batch
            .iter_mut()
            .map(|(work, _)| std::mem::take(&mut work.image))
            .collect();
        let synthetic = self.models.captioner.caption(&images, self.config.synthetic);
        let synthetic = self.checked("captioner", synthetic, |_| self.config.synthetic, images.len())?;
        let candidates: Vec<Vec<String>> = batch
            .iter()
            .zip(synthetic)
            .map(|((work, _), s)| distinct(work.originals.iter().cloned().chain(s)))
            .collect();
        let scores = self.models.scorer.score(&images, &candidates);
        let scores = self.checked("scorer", scores, |i| candidates[i].len(), images.len())?;
        for (((work, fields), captions), scores) in batch.drain(..).zip(candidates).zip(scores) {
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
            for (extension, body) in members(work, &ranked, fields) {
                append(tar, &format!("{key}.{extension}"), &body).map_err(DataError::io(out))?;
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
        let failed = |source| DataError::Model {
            stage,
            shard: self.shard.clone(),
            source,
        };
        let answer = answer.map_err(failed)?;
        let wrong = answer.len() != rows || answer.iter().enumerate().any(|(i, row)| row.len() != wanted(i));
        match wrong {
            true => Err(failed(
                "the number of results differs from the number asked for".into(),
            )),
            false => Ok(answer),
        }
    }
}

/// The files of a sample: the picture, the list of captions that the readers of section 7.3 expect, and beside it what
/// they have no place for.
fn members(
    work: Candidate,
    ranked: &[(String, f32)],
    fields: Option<Map<String, Value>>,
) -> [(&'static str, Vec<u8>); 3] {
    let captions: Vec<&String> = ranked.iter().map(|(caption, _)| caption).collect();
    let kept: Vec<Value> = ranked
        .iter()
        .map(|(caption, score)| json!({"score": score, "synthetic": !work.originals.contains(caption)}))
        .collect();
    let mut notes = json!({"original": work.originals, "kept": kept});
    if let Some(fields) = fields {
        notes["input"] = Value::Object(fields);
    }
    let extension = match image::guess_format(&work.bytes) {
        Ok(format) => extension_of(format),
        Err(_) => "jpg", // decoded before, so this does not happen
    };
    [
        (extension, work.bytes),
        ("json", json!(captions).to_string().into_bytes()),
        ("capfilt", notes.to_string().into_bytes()),
    ]
}
