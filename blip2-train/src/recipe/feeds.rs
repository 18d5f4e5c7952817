//! Batches of a recipe: readers over its data sets, and what turns samples into a stage's batches.

use std::collections::HashSet;
use std::sync::Arc;

use blip2_model::config::Blip2Config;
use blip2_model::language::LanguageConfig;
use blip2_model::processor::EncodeOptions;
use blip2_model::processor::text::blip_caption;

use super::data::{TextProcessor, TrainSource, VisProcessor};
use super::tokens::{Found, Tokenizers};
use super::train::TextTask;
use super::{Recipe, RecipeError, StageKind};
use crate::data::loader::{Loader, LoaderConfig, LoaderStart, Tally};
use crate::data::mixture::{Draw, Mixture, MixtureConfig, Source, Start};
use crate::data::prepare::{Needs, Preparation};
use crate::data::sample::{DataError, Skipped};
use crate::data::stream::{Order, Split};
use crate::run::collate::{LmCollate, LmLayout, PairCollate, Pictures};
use crate::run::feed::{Collate, Feed, OpenLoader};
use crate::run::text_feed::{TextFeed, TextFeedConfig};
use crate::say::say;

/// This process among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// `0..world`.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
}

/// Data sets with their preparation, ready to be read any number of times.
#[derive(Clone)]
pub struct Reader {
    sources: Vec<Source>,
    preparations: Vec<Preparation>,
    mixture: MixtureConfig,
    loader: LoaderConfig,
}

impl Reader {
    /// The training data as this process reads it.
    pub fn train(recipe: &Recipe, size: usize, place: Place) -> Result<Self, RecipeError> {
        let (data, train) = (&recipe.data, &recipe.train);
        Self::new(recipe, &data.train, &data.vis_processor, size, |reader| {
            reader.mixture = MixtureConfig {
                order: Order {
                    seed: train.seed,
                    shuffle: data.shuffle,
                    buffer: data.buffer,
                    resample: data.resample,
                    ..Order::default()
                },
                split: split(place, data.workers),
                draw: match data.pure_batches {
                    true => Draw::Batch(train.batch_size),
                    false => Draw::Sample,
                },
                repeat: true,
            };
        })
    }

    /// Leaves out the pictures.
    pub fn blind(self) -> Self {
        self.only(Arc::default())
    }

    /// Leaves out all pictures but those of these samples (see [`Preparation::only`]).
    pub fn only(mut self, keys: Arc<HashSet<String>>) -> Self {
        for preparation in &mut self.preparations {
            preparation.only = Some(keys.clone());
        }
        self
    }

    /// The same data once, in file order, to the last sample: for computing features.
    pub fn once(recipe: &Recipe, size: usize) -> Result<Self, RecipeError> {
        let data = &recipe.data;
        Self::new(recipe, &data.train, &data.vis_processor, size, |reader| {
            reader.mixture.order = Order {
                seed: recipe.train.seed,
                shuffle: false,
                ..Order::default()
            };
            reader.loader.drop_last = false;
        })
    }

    /// Held-out data, in file order.
    pub fn validation(recipe: &Recipe, size: usize, place: Place) -> Result<Option<Self>, RecipeError> {
        let Some(section) = &recipe.validation else {
            return Ok(None);
        };
        let reader = Self::new(recipe, &section.data, &section.vis_processor, size, |reader| {
            reader.mixture.order = Order {
                seed: recipe.train.seed,
                shuffle: false,
                ..Order::default()
            };
            reader.mixture.split = split(place, 1);
            reader.loader.batch_size = section.batch_size.unwrap_or(recipe.train.batch_size);
        });
        reader.map(Some)
    }

    fn new(
        recipe: &Recipe,
        sets: &[TrainSource],
        processor: &VisProcessor,
        size: usize,
        adapt: impl FnOnce(&mut Self),
    ) -> Result<Self, RecipeError> {
        let data = &recipe.data;
        let mut sources = Vec::new();
        let mut preparations = Vec::new();
        for set in sets {
            sources.push(set.source.open()?);
            let processor = set.vis_processor.as_ref().unwrap_or(processor);
            preparations.push(Preparation {
                transform: processor.transform(size)?,
                pick: data.pick,
                clean: data.text_processor == TextProcessor::BlipCaption,
                prompt: data.prompt.clone(),
                max_words: data.max_words,
                needs: match (recipe.stage, recipe.stage2.task) {
                    (StageKind::Stage2, TextTask::Answer) => Needs::Question,
                    _ => Needs::Caption,
                },
                on_white: data.on_white,
                orientation: data.orientation,
                ..Preparation::default()
            });
        }
        let mut reader = Self {
            sources,
            preparations,
            mixture: MixtureConfig::default(),
            loader: LoaderConfig {
                batch_size: recipe.train.batch_size,
                drop_last: true,
                threads: data.threads,
                prefetch: data.prefetch,
                errors: data.errors,
            },
        };
        adapt(&mut reader);
        Ok(reader)
    }

    /// How samples are prepared, as text: equal text, equal pictures. Data sets that are all prepared alike count as one,
    /// so that more of them may join.
    pub fn fingerprint(&self) -> Result<String, RecipeError> {
        let seed = self.mixture.order.seed;
        let mut transforms: Vec<_> = self
            .preparations
            .iter()
            .map(|p| (p.transform, p.on_white, p.orientation))
            .collect();
        if transforms.iter().all(|other| *other == transforms[0]) {
            transforms.truncate(1);
        }
        Ok(serde_json::to_string(&(seed, transforms))?)
    }

    /// Micro-batches of an epoch on this process, where sizes are known.
    pub fn batches_per_epoch(&self) -> Result<Option<u64>, RecipeError> {
        let mixture = Mixture::new(&self.sources, self.mixture, Start::Epoch(0))?;
        Ok(mixture
            .share()
            .map(|share| share / u64::from(self.loader.batch_size)))
    }

    /// A loader at a position.
    pub fn open(&self, start: LoaderStart) -> Result<Loader, DataError> {
        Loader::new(
            &self.sources,
            &self.preparations,
            self.mixture,
            self.loader,
            start,
        )
    }

    /// An endless feed. Skipped samples are named on standard error.
    pub fn feed<C: Collate>(self, collate: C) -> Feed<C> {
        let open: OpenLoader = Box::new(move |start| self.open(start));
        let skipped = |skipped: Vec<Skipped>| {
            for sample in skipped {
                say(format_args!("skipped: {sample}"));
            }
        };
        Feed::new(open, collate, Box::new(skipped))
    }

    /// The first `count` batches.
    pub fn batches<C: Collate>(&self, count: usize, collate: &mut C) -> Result<Vec<C::Batch>, RecipeError> {
        let loader = self.open(LoaderStart::Epoch(0))?;
        let mut batches = Vec::new();
        for batch in loader.take(count) {
            batches.push(collate.collate(batch?).map_err(RecipeError::Batch)?);
        }
        Ok(batches)
    }
}

fn split(place: Place, workers: u32) -> Split {
    Split {
        rank: place.rank as u32,
        world: place.world as u32,
        workers,
    }
}

/// Pairs of stage 1.
pub fn pairs(
    recipe: &Recipe,
    tokenizers: &Tokenizers,
    pictures: Pictures,
) -> Result<PairCollate, RecipeError> {
    let found = wanted(&tokenizers.qformer, "model.qformer_tokenizer")?;
    Ok(PairCollate {
        pictures,
        tokenizer: found.tokenizer.clone(),
        max_tokens: recipe.data.max_txt_len,
    })
}

/// Captions or answers of stage 2.
pub fn texts(
    recipe: &Recipe,
    config: &Blip2Config,
    tokenizers: &Tokenizers,
    pictures: Pictures,
) -> Result<LmCollate, RecipeError> {
    let found = wanted(&tokenizers.language, "model.tokenizer")?;
    let layout = match &config.text_config {
        Some(LanguageConfig::T5(_)) => LmLayout::EncoderDecoder,
        Some(LanguageConfig::Llama(_)) => LmLayout::DecoderOnlyEos,
        _ => LmLayout::DecoderOnly,
    };
    if recipe.stage2.task == TextTask::Prefix && layout != LmLayout::EncoderDecoder {
        return Err(RecipeError::setting(
            "stage2.task",
            "prefix",
            "only an encoder-decoder language model reads a prefix; use \"caption\"",
        ));
    }
    Ok(LmCollate {
        pictures,
        tokenizer: found.tokenizer.clone(),
        layout,
        task: recipe.stage2.task(),
        max_tokens: recipe.data.max_txt_len,
        qformer_tokenizer: tokenizers.qformer.as_ref().map(|found| found.tokenizer.clone()),
        seed: recipe.train.seed,
    })
}

fn wanted<'a>(found: &'a Option<Found>, key: &'static str) -> Result<&'a Found, RecipeError> {
    found
        .as_ref()
        .ok_or_else(|| RecipeError::missing(key, "this stage reads text"))
}

/// Plain texts of data sets, tokenised as stage 2 will see them.
pub fn plain(
    recipe: &Recipe,
    sets: &[TrainSource],
    config: &Blip2Config,
    tokenizers: &Tokenizers,
    place: Place,
    train: bool,
) -> Result<TextFeed, RecipeError> {
    let tokenizer = &wanted(&tokenizers.language, "model.tokenizer")?.tokenizer;
    let special = tokenizer.special();
    let end = match &config.text_config {
        Some(LanguageConfig::Opt(_)) => special.newline.or(special.eos),
        _ => special.eos,
    };
    let end = end.ok_or_else(|| RecipeError::missing("eos_token", "the tokenizer has no end of text"))?;
    let mut rows = Vec::new();
    for text in corpus(recipe, sets)? {
        let mut ids = tokenizer.encode(&text, &EncodeOptions::default())?;
        ids.push(end);
        rows.push(ids);
    }
    let section = recipe.validation.as_ref();
    let batch = match train {
        true => recipe.train.batch_size,
        false => section
            .and_then(|v| v.batch_size)
            .unwrap_or(recipe.train.batch_size),
    };
    let feed = TextFeed::new(
        rows,
        TextFeedConfig {
            batch_size: batch as usize,
            length: recipe.data.max_txt_len,
            pack: recipe.data.pack,
            seed: recipe.train.seed,
            shuffle: train && recipe.data.shuffle,
            pad: i64::from(special.pad.unwrap_or(end)),
            rank: place.rank,
            world: place.world,
        },
    );
    feed.map_err(|error| RecipeError::Batch(Box::new(error)))
}

/// Every text of the data sets, in file order: lines of text files, all captions of the others.
fn corpus(recipe: &Recipe, sets: &[TrainSource]) -> Result<Vec<String>, RecipeError> {
    let data = &recipe.data;
    let clean = |text: &str| match data.text_processor {
        TextProcessor::BlipCaption => blip_caption(text, &data.prompt, data.max_words),
        TextProcessor::None => format!("{}{}", data.prompt, text.trim()),
    };
    let mut texts = Vec::new();
    for set in sets {
        if set.source.path.ends_with(".txt") {
            for path in crate::data::pattern::expand(&set.source.path)? {
                let text = std::fs::read_to_string(&path).map_err(RecipeError::io(&path))?;
                texts.extend(text.lines().map(clean));
            }
            continue;
        }
        let order = Order {
            shuffle: false,
            ..Order::default()
        };
        let config = MixtureConfig {
            order,
            ..MixtureConfig::default()
        };
        let sources = [set.source.open()?];
        let mut tally = Tally::new(data.errors, &sources, None)?;
        let mut mixture = Mixture::new(&sources, config, Start::Epoch(0))?;
        while let Some(drawn) = mixture.next_sample()? {
            match drawn.sample {
                Ok(sample) => {
                    tally.good(&sample.shard);
                    texts.extend(sample.captions.iter().map(|caption| clean(caption)));
                }
                Err(skipped) => say(format_args!("skipped: {}", tally.skipped(skipped)?)),
            }
        }
    }
    texts.retain(|text| !text.trim().is_empty());
    Ok(texts)
}
