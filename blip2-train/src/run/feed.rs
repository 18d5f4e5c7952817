//! From the data loader to the stages: a resumable [`BatchSource`] over a [`Loader`], with the part that
//! turns pictures and texts into tensors' contents left to a [`Collate`].

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize as _;
use serde_json::Value;

use super::{BatchSource, SourceError};
use crate::data::loader::{Batch, Loader, LoaderCursor, LoaderStart};
use crate::data::sample::{DataError, Skipped};

/// Turns a loader's batch into a stage's.
pub trait Collate {
    /// What the stage takes.
    type Batch;

    /// The batch of the stage; must depend on its argument alone.
    fn collate(&mut self, batch: Batch) -> Result<Self::Batch, SourceError>;
}

/// Opens the loader at a position. The mixture must repeat, so that batches never end.
pub type OpenLoader = Box<dyn FnMut(LoaderStart) -> Result<Loader, DataError>>;

/// The stream ended although training goes on.
#[derive(Debug, thiserror::Error)]
#[error("the data ended; training needs a mixture with `repeat = true` and at least one full batch")]
pub struct DataEnded;

/// What differs between the cursors of different numbers of processes.
const PROCESSES: [&str; 2] = ["number of processes", "rank"];

/// Batches of a stage, from a loader.
pub struct Feed<C> {
    open: OpenLoader,
    loader: Option<Loader>,
    cursor: Option<LoaderCursor>,
    collate: C,
    skipped: Box<dyn FnMut(Vec<Skipped>)>,
}

impl<C: Collate> Feed<C> {
    /// Opens nothing yet: the first batch does, or [`BatchSource::seek`]. `skipped` hears of bad samples.
    pub fn new(open: OpenLoader, collate: C, skipped: Box<dyn FnMut(Vec<Skipped>)>) -> Self {
        Self {
            open,
            loader: None,
            cursor: None,
            collate,
            skipped,
        }
    }
}

impl<C: Collate> BatchSource<C::Batch> for Feed<C> {
    fn next_batch(&mut self) -> Result<C::Batch, SourceError> {
        let loader = match &mut self.loader {
            Some(loader) => loader,
            None => {
                let loader = match &self.cursor {
                    Some(cursor) => match (self.open)(LoaderStart::After(cursor.clone())) {
                        // the shares of another number of processes are others: the epoch begins anew
                        Err(DataError::CursorMismatch { field, .. }) if PROCESSES.contains(&field) => {
                            (self.open)(LoaderStart::Epoch(cursor.epoch()))?
                        }
                        loader => loader?,
                    },
                    None => (self.open)(LoaderStart::Epoch(0))?,
                };
                self.loader.insert(loader)
            }
        };
        let mut batch = loader.next().ok_or(DataEnded)??;
        let skipped = std::mem::take(&mut batch.skipped);
        if !skipped.is_empty() {
            (self.skipped)(skipped);
        }
        self.cursor = Some(batch.cursor.clone());
        self.collate.collate(batch)
    }

    fn cursor(&self) -> Value {
        serde_json::to_value(&self.cursor).unwrap_or_default()
    }

    fn seek(&mut self, cursor: &Value) -> Result<(), SourceError> {
        self.cursor = serde_json::from_value(cursor.clone())?;
        self.loader = None;
        Ok(())
    }
}

/// What was passed over since the very start of a run, over all its processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skips {
    /// Samples that could not be used.
    pub samples: u64,
    /// Shards that cannot be read to their end; processes may have met the same one.
    pub lost: BTreeSet<String>,
}

impl Skips {
    /// As the processes' places in the data say; `None` for data without samples that could be skipped.
    pub fn of(cursors: &[Value]) -> Option<Self> {
        let mut places = cursors
            .iter()
            .filter_map(|cursor| LoaderCursor::deserialize(cursor).ok())
            .peekable();
        places.peek()?;
        let mut skips = Self::default();
        for place in places {
            skips.samples += place.bad();
            skips.lost.extend(place.lost().iter().cloned());
        }
        Some(skips)
    }

    /// Nothing was passed over.
    pub fn is_empty(&self) -> bool {
        self.samples == 0 && self.lost.is_empty()
    }
}

impl fmt::Display for Skips {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let plural = |count: u64| if count == 1 { "" } else { "s" };
        let (samples, lost) = (self.samples, self.lost.len() as u64);
        write!(
            f,
            "skipped {samples} sample{}, lost {lost} shard{}",
            plural(samples),
            plural(lost)
        )?;
        match self.lost.first() {
            Some(first) if lost > 1 => write!(f, " ({first} and others)"),
            Some(only) => write!(f, " ({only})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use blip2_model::backend::Flex;
    use blip2_model::checkpoint::huggingface;
    use blip2_model::config::Blip2Config;
    use blip2_model::processor::{TextTokenizer, TokenizerKind};
    use blip2_model::qformer::{Bridge, BridgeConfig};
    use burn::backend::Autodiff;

    use super::*;
    use crate::data::annotations::{AnnotationConfig, AnnotationSet};
    use crate::data::augment::Transform;
    use crate::data::loader::LoaderConfig;
    use crate::data::mixture::{MixtureConfig, Source};
    use crate::data::prepare::Preparation;
    use crate::data::stream::Data;
    use crate::initial::{bridge_rule, initialise};
    use crate::params;
    use crate::run::collate::{PairCollate, Pictures};
    use crate::run::trainer::{RunParts, Trainer, TrainerConfig};
    use crate::stage::testing::{encoder, qformer, without_dropout};
    use crate::stage::{Stage1, Stage1Config};

    type Ad = Autodiff<Flex>;

    fn tokenizer() -> TextTokenizer {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/parity/itm");
        TextTokenizer::from_folder(folder, TokenizerKind::Bert).unwrap()
    }

    /// Eleven pictures in files with a caption each, augmented, in batches of three.
    fn feed(folder: &std::path::Path) -> Feed<PairCollate> {
        feed_without(folder, &[], |skipped| panic!("{skipped:?}"))
    }

    /// As [`feed`], with files missing.
    fn feed_without(
        folder: &std::path::Path,
        missing: &[usize],
        skipped: impl FnMut(Vec<Skipped>) + 'static,
    ) -> Feed<PairCollate> {
        let folder = folder.to_owned();
        let rows: String = (0..11)
            .map(|i| {
                let picture =
                    image::RgbImage::from_fn(12, 10, |x, y| image::Rgb([x as u8 * 20, y as u8 * 20, i * 20]));
                picture.save(folder.join(format!("{i}.png"))).unwrap();
                format!("{{\"image\":\"{i}.png\",\"caption\":\"a red house {i}\"}}\n")
            })
            .collect();
        for i in missing {
            std::fs::remove_file(folder.join(format!("{i}.png"))).unwrap();
        }
        let config = AnnotationConfig {
            images: Some(folder),
            ..AnnotationConfig::new("captions.jsonl")
        };
        let rows = Arc::new(AnnotationSet::from_bytes(rows.as_bytes(), None, &config).unwrap());
        let open = move |start| {
            let source = Source {
                name: "pictures".into(),
                data: Data::Rows(rows.clone()),
                ratio: None,
            };
            let preparation = Preparation {
                transform: Transform::named("blip2_image_train", 8).unwrap(),
                ..Preparation::default()
            };
            let mixture = MixtureConfig {
                repeat: true,
                ..MixtureConfig::default()
            };
            let config = LoaderConfig {
                batch_size: 3,
                ..LoaderConfig::default()
            };
            Loader::new(&[source], &[preparation], mixture, config, start)
        };
        let collate = PairCollate {
            pictures: Pictures::normalised(8),
            tokenizer: tokenizer(),
            max_tokens: 10,
        };
        Feed::new(Box::new(open), collate, Box::new(skipped))
    }

    fn train(data: &std::path::Path, run: &std::path::Path, steps: u64, stop: bool) -> params::Named<Flex> {
        train_on(feed(data), run, steps, stop)
    }

    fn train_on(
        mut feed: Feed<PairCollate>,
        run: &std::path::Path,
        steps: u64,
        stop: bool,
    ) -> params::Named<Flex> {
        let device = Default::default();
        let tokenizer = tokenizer();
        let mut sizes = without_dropout(qformer());
        sizes.vocab_size = tokenizer.vocab_size();
        let bridge = BridgeConfig::stage1(sizes, 4, 1e-5, 8).init::<Ad>(&device);
        let module: Bridge<Ad> = initialise(bridge, 1, bridge_rule);
        let options = Stage1Config {
            dec_token: i64::from(tokenizer.special().dec.unwrap()),
            pad_token: i64::from(tokenizer.special().pad.unwrap()),
            ..Stage1Config::default()
        };
        let stage = Stage1::<Ad, Bridge<Ad>>::new(encoder(&device), options, device);
        let keys = huggingface::keys(&Blip2Config::from_json("{}").unwrap());
        let parts = RunParts::new(run, keys);
        if stop {
            parts.interrupt.request();
        }
        let text = format!("steps = {steps}\nlog_every = 1\nschedule = {{ peak = 1e-3 }}");
        let config: TrainerConfig = toml::from_str(&text).unwrap();
        let mut trainer = Trainer::open(config, parts, stage, module, device).unwrap();
        trainer.run(&mut feed, &mut ()).unwrap();
        params::values(trainer.module())
            .into_iter()
            .map(|(name, value)| (name, value.inner()))
            .collect()
    }

    /// From files to weights and back: stopped after every step or not at all, the same bits.
    #[test]
    fn a_run_over_files_resumes_in_the_middle_of_an_epoch() {
        let data = tempfile::tempdir().unwrap();
        let runs = tempfile::tempdir().unwrap();
        let whole = train(data.path(), &runs.path().join("whole"), 6, false);
        let mut parts = Default::default();
        for _ in 0..6 {
            parts = train(data.path(), &runs.path().join("parts"), 6, true);
        }
        for (name, value) in whole {
            assert_eq!(params::to_host(&value), params::to_host(&parts[&name]), "{name}");
        }
    }

    /// Stopped in between, the count goes on where it was.
    #[test]
    fn what_is_skipped_is_counted_in_the_metrics_and_the_report() {
        let data = tempfile::tempdir().unwrap();
        let run = tempfile::tempdir().unwrap();
        let heard = std::rc::Rc::new(std::cell::Cell::new(0));
        for stop in [true, false] {
            let counter = heard.clone();
            let count = move |skipped: Vec<Skipped>| counter.set(counter.get() + skipped.len());
            train_on(feed_without(data.path(), &[2, 5], count), run.path(), 6, stop);
        }
        let rows = crate::run::log::read(run.path()).unwrap();
        let counts: Vec<f64> = rows
            .iter()
            .map(|row| row["samples_skipped"].as_f64().unwrap())
            .collect();
        assert_eq!(counts.len(), 6);
        assert!(counts.is_sorted() && counts[5] >= 2.0, "{counts:?}");
        assert_eq!(counts[5], heard.get() as f64);
        assert!(rows.iter().all(|row| row["shards_lost"] == 0.0));
        let report = crate::run::report::write(run.path()).unwrap();
        let page = std::fs::read_to_string(report).unwrap();
        assert!(page.contains("train samples_skipped (last: "), "{page}");
    }

    #[test]
    fn skips_of_several_processes_are_summed_and_a_shard_is_lost_once() {
        let place = |rank: u32, bad: u64, lost: &[&str]| {
            serde_json::json!({
                "mixture": {
                    "setup": "", "rank": rank, "world": 2, "epoch": 0, "draws": 0, "current": 0, "left": 0,
                    "done": [], "sources": []
                },
                "passed_over": [], "seen": 9, "bad": bad, "shards": 3, "lost": lost
            })
        };
        let skips = Skips::of(&[place(0, 3, &["a.tar"]), place(1, 4, &["a.tar", "b.tar"])]).unwrap();
        assert_eq!(
            skips.to_string(),
            "skipped 7 samples, lost 2 shards (a.tar and others)"
        );
        let nothing = Skips::of(&[place(0, 0, &[])]).unwrap();
        assert!(nothing.is_empty());
        // a feed of plain texts skips nothing and has another kind of place
        assert_eq!(Skips::of(&[serde_json::json!({"epoch": 0, "batch": 3})]), None);
        assert_eq!(Skips::of(&[Value::Null]), None);
    }
}
