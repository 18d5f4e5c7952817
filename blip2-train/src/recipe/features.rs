//! Fills the feature store of a recipe: the frozen encoder over every training picture, once, by all ranks. A picture is
//! computed by the rank to which its key falls, so that nobody needs to be told who computes what.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blip2_model::nn::Kernels;
use blip2_model::vision::{AnyEncoder, VisionConfig};
use burn::tensor::DType;

use super::feeds::Reader;
use super::start::Environment;
use super::{Recipe, RecipeError};
use crate::data::loader::LoaderStart;
use crate::data::prepare::Example;
use crate::params;
use crate::run::collate::Pictures;
use crate::run::feature_cache::{FeatureMeta, FeatureStore, FeatureWriter};
use crate::run::fingerprint::module_digest;
use crate::run::progress::{Progress, Show};
use crate::say::say;
use crate::stage::Images;
use crate::stage::encoded::frozen_tokens;
use ranks::{Ranks, hash};

pub use ranks::Pace;

mod ranks;

/// Opens the store in `folder`, after the ranks have computed what it lacks. `None`, on all ranks, after a request to
/// stop on one of them: what is there by then is kept, and the next call goes on behind it.
pub fn store<B: Kernels>(
    recipe: &Recipe,
    folder: &Path,
    vision: &VisionConfig,
    encoder: &AnyEncoder<B>,
    device: &B::Device,
    env: &Environment<'_, B>,
    pace: Pace,
) -> Result<Option<FeatureStore>, RecipeError> {
    let size = vision.image_size();
    let reader = Reader::once(recipe, size)?;
    let meta = FeatureMeta {
        tokens: vision.num_tokens(),
        width: vision.hidden_size(),
        encoder: module_digest(encoder),
        transform: reader.fingerprint()?,
    };
    let filling = Filling {
        folder,
        meta,
        reader,
        pictures: Pictures::normalised(size as u32),
        batch: recipe.train.batch_size as usize,
        encoder,
        ranks: Ranks {
            collective: env.collective,
            device,
            interrupt: &env.interrupt,
            pace,
        },
        show: match env.show {
            Show::Dashboard => Show::Progress, // that is for the training which follows
            other => other,
        },
    };
    if !filling.complete()? {
        return Ok(None);
    }
    let store = FeatureStore::open(folder, &filling.meta)?;
    if env.show != Show::Nothing && filling.ranks.rank() == 0 {
        say(format_args!("features: {} in {}", store.len(), folder.display()));
    }
    Ok(Some(store))
}

/// A store and what computes it.
struct Filling<'a, B: Kernels> {
    folder: &'a Path,
    meta: FeatureMeta,
    reader: Reader,
    pictures: Pictures,
    /// Pictures that are encoded at a time.
    batch: usize,
    encoder: &'a AnyEncoder<B>,
    ranks: Ranks<'a, B>,
    show: Show,
}

impl<B: Kernels> Filling<'_, B> {
    /// Computes what the store lacks, on all ranks. False after a request to stop on one of them.
    fn complete(&self) -> Result<bool, RecipeError> {
        let ranks = &self.ranks;
        let writer = self.writer()?;
        let Some(mut missing) = self.missing(&writer)? else {
            return Ok(false);
        };
        let mine: HashSet<String> = missing.iter().filter(|key| ranks.own(key)).cloned().collect();
        let progress = match ranks.rank() {
            0 => self.progress(mine.len()),
            _ => Progress::hidden(),
        };
        if !missing.is_empty() {
            let share = match ranks.world() {
                1 => String::new(),
                world => format!(", {} of them by this rank of {world}", mine.len()),
            };
            let (count, folder) = (missing.len(), self.folder.display());
            progress.note(&format!(
                "features: {count} pictures to encode into {folder}{share}"
            ));
        }
        let Some(unreadable) = self.fill(writer, mine, &progress)? else {
            return Ok(false);
        };
        let alone = self.lacks_others(&mut missing, unreadable)?;
        if ranks.sum(u64::from(alone))? == 0 {
            return Ok(true);
        }
        self.complete_apart(missing)
    }

    /// Where ranks have folders of their own: each completes what it sees, in turn, because some may see the same one.
    fn complete_apart(&self, missing: HashSet<String>) -> Result<bool, RecipeError> {
        for rank in 0..self.ranks.world() {
            let writer = self.writer()?;
            let mut rest = HashSet::new();
            if rank == self.ranks.rank() {
                rest.extend(missing.iter().filter(|key| !writer.contains(key)).cloned());
            }
            let progress = match rest.len() {
                0 => Progress::hidden(),
                count => self.progress(count),
            };
            progress.note(&format!(
                "features: rank {rank} does not see in {} what other ranks computed and encodes {} pictures itself; a folder that all ranks share saves that",
                self.folder.display(),
                rest.len()
            ));
            if self.fill(writer, rest, &progress)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the store still lacks pictures that others have computed, leaving in `missing` what it lacks. Those that
    /// nobody could read are known by the sum of their keys' hashes, which unlike their number fits no others.
    fn lacks_others(&self, missing: &mut HashSet<String>, unreadable: u64) -> Result<bool, RecipeError> {
        let end = Instant::now() + self.ranks.pace.patience;
        while !missing.is_empty() {
            let writer = self.writer()?;
            missing.retain(|key| !writer.contains(key));
            if sum_of_hashes(missing.iter()) == unreadable {
                return Ok(false);
            }
            if Instant::now() >= end || self.ranks.interrupt.is_requested() {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_secs(1).min(self.ranks.pace.patience));
        }
        Ok(false)
    }

    fn writer(&self) -> Result<FeatureWriter, RecipeError> {
        let rank = self.ranks.rank();
        Ok(FeatureWriter::open(self.folder, self.meta.clone(), rank)?)
    }

    fn progress(&self, total: usize) -> Progress {
        Progress::new(self.show, total as u64, self.ranks.interrupt)
    }

    /// Pictures that the store lacks, whoever is to compute them; `None` if a rank was asked to stop. Reading keys takes
    /// a fraction of decoding.
    fn missing(&self, writer: &FeatureWriter) -> Result<Option<HashSet<String>>, RecipeError> {
        let mut missing = HashSet::new();
        let all = self.read(self.reader.clone().blind(), |examples| {
            let keys = examples.iter().map(Example::full_key);
            missing.extend(keys.filter(|key| !writer.contains(key)));
            Ok(false)
        })?;
        Ok(all.then_some(missing))
    }

    /// Reads to the end, which is an empty batch, or until `take` has enough. False if a rank was asked to stop.
    fn read(
        &self,
        reader: Reader,
        mut take: impl FnMut(Vec<Example>) -> Result<bool, RecipeError>,
    ) -> Result<bool, RecipeError> {
        let mut loader = reader.open(LoaderStart::Epoch(0))?;
        self.ranks.together(|go_on| {
            loop {
                let batch = loader.next().transpose()?;
                let last = batch.is_none();
                if take(batch.map_or(Vec::new(), |batch| batch.examples))? || last {
                    return Ok(true);
                }
                if !go_on() {
                    return Ok(false);
                }
            }
        })
    }

    /// Encodes the pictures of `wanted`, or as many as there is time for, and gives the sum over all ranks of the hashes of
    /// those that cannot be read; `None` if a rank was asked to stop.
    fn fill(
        &self,
        writer: FeatureWriter,
        wanted: HashSet<String>,
        progress: &Progress,
    ) -> Result<Option<u64>, RecipeError> {
        let wanted = Arc::new(wanted);
        let mut queue = Queue {
            writer,
            keys: Vec::new(),
            examples: Vec::new(),
            done: 0,
        };
        let filled = match wanted.is_empty() {
            true => self.ranks.together(|_| Ok(true)),
            false => self.read(self.reader.clone().only(wanted.clone()), |batch| {
                let last = batch.is_empty();
                for example in batch {
                    queue.add(example, &wanted);
                    if queue.keys.len() == self.batch {
                        self.encode(&mut queue, progress)?;
                    }
                }
                let enough = last || queue.done + queue.keys.len() == wanted.len();
                if enough {
                    self.encode(&mut queue, progress)?;
                }
                Ok(enough)
            }),
        };
        let writer = queue.writer;
        let unreadable = sum_of_hashes(wanted.iter().filter(|key| !writer.contains(key)));
        // kept whatever happened, here or to another rank
        let kept = writer.finish();
        let all = filled?;
        kept?;
        match all {
            // all have written theirs when they have this sum
            true => Ok(Some(self.ranks.sum(unreadable)?)),
            false => Ok(None),
        }
    }

    /// All that wait.
    fn encode(&self, queue: &mut Queue, progress: &Progress) -> Result<(), RecipeError> {
        let (keys, examples) = (
            std::mem::take(&mut queue.keys),
            std::mem::take(&mut queue.examples),
        );
        if keys.is_empty() {
            return Ok(());
        }
        let images = self.pictures.images(&examples, &keys);
        let Images::Pixels(pixels) = images.map_err(RecipeError::Batch)? else {
            return Ok(());
        };
        let tokens = frozen_tokens(self.encoder, &pixels, self.ranks.device);
        let values = params::to_host(&tokens.reshape([-1]).cast(DType::F32));
        let rows = values.chunks_exact(self.meta.tokens * self.meta.width);
        for (key, tokens) in keys.iter().zip(rows) {
            queue.writer.push(key, tokens)?;
        }
        queue.done += keys.len();
        progress.step(queue.done as u64);
        Ok(())
    }
}

/// Pictures that wait for a batch to be full: what falls to a rank is scattered over the data.
struct Queue {
    writer: FeatureWriter,
    keys: Vec<String>,
    examples: Vec<Example>,
    /// Encoded so far.
    done: usize,
}

impl Queue {
    /// Unless it is another rank's, or there already.
    fn add(&mut self, example: Example, wanted: &HashSet<String>) {
        let key = example.full_key();
        if wanted.contains(&key) && !self.writer.contains(&key) && !self.keys.contains(&key) {
            self.keys.push(key);
            self.examples.push(example);
        }
    }
}

fn sum_of_hashes<'k>(keys: impl Iterator<Item = &'k String>) -> u64 {
    keys.fold(0, |sum, key| sum.wrapping_add(hash(key)))
}

#[cfg(test)]
mod tests;
