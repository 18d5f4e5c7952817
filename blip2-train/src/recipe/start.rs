//! From recipe to run: loads the parts, wires stage, module and data together and hands them to the trainer.

use std::collections::BTreeMap;
use std::path::PathBuf;

use blip2_model::checkpoint::{DtypePolicy, PartDtype};
use blip2_model::language::AnyLanguageModel;
use blip2_model::nn::Kernels;
use blip2_model::qformer::Bridge;
use blip2_model::vision::{AnyEncoder, VisionConfig};
use burn::module::Module;
use burn::tensor::backend::{AutodiffBackend, Backend};
use serde_json::Value;

use super::drawn::Root;
use super::feeds::{self, Place, Reader};
use super::tokens::Tokenizers;
use super::train::LoraTarget;
use super::weights::Assembly;
use super::{Recipe, RecipeError, StageKind, cost, export, features};
use crate::distributed::Collective;
use crate::optim::{GroupRule, LayerDecay};
use crate::params;
use crate::run::checkpoint::load_state;
use crate::run::collate::Pictures;
use crate::run::fingerprint::module_digest;
use crate::run::guard::write_atomically;
use crate::run::progress::{Progress, Show};
use crate::run::{BatchSource, Interrupt, LossValidation, Outcome, RunParts, Trainer, report};
use crate::stage::lora::{Adapters, WithLanguageAdapters, adapt_bridge};
use crate::stage::{
    Frozen, LanguageModelling, Stage, Stage1, Stage1Config, Stage2, Stage2Config, WithEncoder,
};

mod dry;
mod parts;

pub use dry::{Estimate, SupplyRates};
use parts::trainable;

/// What surrounds a run.
pub struct Environment<'a, B: Backend> {
    /// Folder of the run.
    pub folder: PathBuf,
    /// The other processes.
    pub collective: &'a dyn Collective<B>,
    /// Request to stop.
    pub interrupt: Interrupt,
    /// Only say what would be done, after a few timed steps.
    pub dry_run: bool,
    /// How much is shown.
    pub show: Show,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub enum Ended {
    /// All steps done; the model is in this folder.
    Finished(PathBuf),
    /// Asked to stop; everything up to this step is saved.
    Interrupted(u64),
    /// A dry run.
    Estimated(Box<Estimate>),
}

/// A recipe with its parts opened.
struct Run<'a, B: AutodiffBackend> {
    recipe: &'a Recipe,
    env: &'a Environment<'a, B::InnerBackend>,
    assembly: Assembly,
    tokenizers: Tokenizers,
    place: Place,
    device: B::Device,
}

/// What the trainer needs besides stage and module.
struct Supply<S, T> {
    source: S,
    held_out: Vec<T>,
    /// Micro-batches in an epoch of this process.
    per_epoch: Option<u64>,
    frozen: BTreeMap<String, String>,
    /// Parameters of frozen parts by name, for the estimate.
    sizes: Vec<(&'static str, usize, u64)>,
}

/// Runs a recipe.
pub fn run<B>(
    recipe: &Recipe,
    env: &Environment<'_, B::InnerBackend>,
    device: &B::Device,
) -> Result<Ended, RecipeError>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    let assembly = Assembly::open::<B>(recipe)?;
    let tokenizers = Tokenizers::open(recipe, &assembly.config)?;
    let place = Place {
        rank: env.collective.rank(),
        world: env.collective.world_size(),
    };
    if env.show != Show::Nothing && place.rank == 0 {
        assembly.notes.iter().for_each(|note| eprintln!("{note}"));
    }
    let run = Run::<B> {
        recipe,
        env,
        assembly,
        tokenizers,
        place,
        device: device.clone(),
    };
    match recipe.stage {
        StageKind::Stage1 => run.stage1(),
        StageKind::Stage2 => run.stage2(),
        StageKind::LanguageModel => run.language_model(),
    }
}

impl<B> Run<'_, B>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    fn stage1(&self) -> Result<Ended, RecipeError> {
        let options = &self.recipe.stage1;
        let special = self
            .tokenizers
            .qformer
            .as_ref()
            .map(|found| found.tokenizer.special());
        let id = |id: Option<u32>, key| {
            id.map(i64::from)
                .ok_or_else(|| RecipeError::missing(key, "the Q-Former's tokenizer has no such token"))
        };
        let config = Stage1Config {
            label_smoothing: options.label_smoothing,
            itc_weight: options.itc_weight,
            itm_weight: options.itm_weight,
            itg_weight: options.itg_weight,
            image_ids: options.image_ids,
            caption_ids: options.caption_ids,
            text_only: options.text_only,
            min_temp: options.min_temp,
            dec_token: id(special.and_then(|s| s.dec), "[DEC]")?,
            pad_token: id(special.and_then(|s| s.pad), "[PAD]")?,
        };
        let device = self.device.clone();
        let bridge = self.bridge()?;
        if self.recipe.train.train_vision {
            let module = WithEncoder {
                encoder: self.trained_encoder()?,
                bridge,
            };
            let stage = Stage1::<B, WithEncoder<B>>::new((), config, device);
            let supply = self.pairs(self.pixels(), None)?;
            return self.finish(stage, module, supply);
        }
        let encoder = self.frozen_encoder()?;
        let Some(pictures) = self.pictures(&encoder)? else {
            return Ok(Ended::Interrupted(0));
        };
        let supply = self.pairs(pictures, Some(&encoder))?;
        match &self.recipe.train.lora {
            Some(lora) => {
                let module = adapt_bridge(bridge, &lora.config(), self.recipe.train.seed, &device)?;
                self.finish(Stage1::new(encoder, config, device), module, supply)
            }
            None => self.finish(
                Stage1::<B, Bridge<B>>::new(encoder, config, device),
                bridge,
                supply,
            ),
        }
    }

    fn stage2(&self) -> Result<Ended, RecipeError> {
        let config = Stage2Config {
            llm_dropout: self.recipe.stage2.llm_dropout,
        };
        let (device, seed) = (self.device.clone(), self.recipe.train.seed);
        let bridge = self.bridge()?;
        let llm = Frozen::new::<B>(self.language()?);
        if self.recipe.train.train_vision {
            let module = WithEncoder {
                encoder: self.trained_encoder()?,
                bridge,
            };
            let supply = self.texts(self.pixels(), None, &llm)?;
            let stage = Stage2::<B, WithEncoder<B>, _>::new((), llm, config, device);
            return self.finish(stage, module, supply);
        }
        let encoder = self.frozen_encoder()?;
        let Some(pictures) = self.pictures(&encoder)? else {
            return Ok(Ended::Interrupted(0));
        };
        let supply = self.texts(pictures, Some(&encoder), &llm)?;
        match &self.recipe.train.lora {
            None => {
                let stage = Stage2::<B, Bridge<B>, _>::new(encoder, llm, config, device);
                self.finish(stage, bridge, supply)
            }
            Some(lora) if lora.target == LoraTarget::Qformer => {
                let module = adapt_bridge(bridge, &lora.config(), seed, &device)?;
                self.finish(Stage2::new(encoder, llm, config, device), module, supply)
            }
            Some(lora) => {
                let module = WithLanguageAdapters {
                    inner: bridge,
                    lora: Adapters::new(&*llm, &lora.config(), seed, &device)?,
                };
                let stage =
                    Stage2::<B, WithLanguageAdapters<B, Bridge<B>>, _>::new(encoder, llm, config, device);
                self.finish(stage, module, supply)
            }
        }
    }

    fn language_model(&self) -> Result<Ended, RecipeError> {
        let module = trainable::<B, _>(self.language_as(DtypePolicy::f32())?);
        let (recipe, config) = (self.recipe, &self.assembly.config);
        let open =
            |sets: &[_], train| feeds::plain(recipe, sets, config, &self.tokenizers, self.place, train);
        let source = open(&recipe.data.train, true)?;
        let mut held_out = Vec::new();
        if let Some(section) = &recipe.validation {
            let mut feed = open(&section.data, false)?;
            let count = feed.batches_per_epoch().min(section.batches as u64);
            for _ in 0..count {
                held_out.push(feed.next_batch().map_err(RecipeError::Batch)?);
            }
        }
        let supply = Supply {
            per_epoch: Some(source.batches_per_epoch()),
            source,
            held_out,
            frozen: BTreeMap::new(),
            sizes: Vec::new(),
        };
        self.finish(LanguageModelling::<B>::new(self.device.clone()), module, supply)
    }

    fn groups(&self) -> GroupRule {
        let rate = self.recipe.optimizer.lr_layer_decay;
        let layers = (self.recipe.train.train_vision && rate != 1.0).then(|| LayerDecay {
            rate,
            layers: self.vision().num_hidden_layers(),
            clip: matches!(self.vision(), VisionConfig::Clip(_)),
        });
        GroupRule { layers }
    }

    /// Trains, or measures a few steps.
    fn finish<S, T>(
        &self,
        stage: S,
        module: S::Module,
        supply: Supply<T, S::Batch>,
    ) -> Result<Ended, RecipeError>
    where
        S: Stage<B>,
        T: BatchSource<S::Batch>,
    {
        let (recipe, env) = (self.recipe, self.env);
        let steps_per_epoch = supply
            .per_epoch
            .map(|batches| batches / recipe.train.accumulate as u64);
        let mut config = recipe.trainer(steps_per_epoch)?;
        let language = match recipe.stage {
            StageKind::LanguageModel => params::count(&module),
            _ => supply
                .sizes
                .iter()
                .find(|size| size.0 == "language model")
                .map_or(0, |size| size.1),
        };
        let flops = cost::flops(recipe, &self.assembly.config, language);
        config.flops = recipe.train.peak_flops.map(|peak| (flops, peak));
        let mut source = supply.source;
        if env.dry_run {
            let measured = dry::Measured {
                config: &config,
                groups: self.groups(),
                steps_per_epoch,
                flops,
                sizes: supply.sizes,
            };
            return self.estimate(&stage, module, &mut source, measured);
        }
        let json = recipe_json(recipe)?;
        std::fs::create_dir_all(&env.folder).map_err(RecipeError::io(&env.folder))?;
        let steps = config.steps;
        let parts = RunParts::<B> {
            folder: env.folder.clone(),
            groups: self.groups(),
            keys: self.assembly.keys.clone(),
            frozen: supply.frozen,
            config: json.clone(),
            config_json: Some(serde_json::to_string_pretty(&self.assembly.config)?),
            collective: env.collective,
            interrupt: env.interrupt.clone(),
            progress: match self.place.rank {
                0 => Progress::new(env.show, steps, &env.interrupt),
                _ => Progress::hidden(),
            },
        };
        let mut trainer = Trainer::open(config, parts, stage, module, self.device.clone())?;
        if self.place.rank == 0 {
            save_recipe(&env.folder, &json)?;
            if trainer.step() > 0 && env.show != Show::Nothing {
                eprintln!(
                    "{}: continues after step {}",
                    env.folder.display(),
                    trainer.step()
                );
            }
        }
        let mut validation = LossValidation::new(supply.held_out, recipe.train.seed);
        match trainer.run(&mut source, &mut validation)? {
            Outcome::Interrupted { step } => Ok(Ended::Interrupted(step)),
            Outcome::Finished => {
                let out = env.folder.join("export");
                if self.place.rank == 0 {
                    drop(trainer);
                    let found = super::origins::checkpoint_of(&env.folder)?;
                    export::export::<B>(&load_state(&found.folder)?, &out, None)?;
                    report::write(&env.folder)?;
                }
                Ok(Ended::Finished(out))
            }
        }
    }
}

/// The recipe as checkpoints carry it: JSON without absent values, which TOML does not know.
fn recipe_json(recipe: &Recipe) -> Result<Value, RecipeError> {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.retain(|_, value| !value.is_null());
                map.values_mut().for_each(strip);
            }
            Value::Array(list) => list.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(recipe)?;
    strip(&mut value);
    Ok(value)
}

/// `recipe.toml` of a run: what was really run, `--set` included.
fn save_recipe(folder: &std::path::Path, json: &Value) -> Result<(), RecipeError> {
    let table = toml::Value::try_from(json).ok();
    let text = table
        .and_then(|table| toml::to_string_pretty(&table).ok())
        .unwrap_or_default();
    let path = folder.join("recipe.toml");
    write_atomically(&path, text.as_bytes()).map_err(RecipeError::io(&path))
}
