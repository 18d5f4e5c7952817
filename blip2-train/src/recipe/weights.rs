//! Initial weights of a run, put together from several places: every tensor of the model has exactly one
//! origin, and the run says which.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use blip2_model::checkpoint::{DtypePolicy, Keys, Loader, huggingface};
use blip2_model::config::Blip2Config;
use blip2_model::nn::Kernels;
use blip2_model::vision::VisionConfig;
use blip2_model::vision::position::resize_table;
use blip2_model::weights::{DType, TensorBytes, TensorInfo, TensorSource, WeightsError};
use burn::module::Module;
use burn::tensor::backend::Backend;

use super::drawn::{self, Root};
use super::model::Init;
use super::origins::{self, Role};
use super::{Recipe, RecipeError, StageKind, architecture};
use crate::initial::{Draw, Shapes};
use crate::params::{self, ParamInfo};

/// The model of a recipe before it is loaded: configuration and all tensors, mapped or drawn on demand.
pub struct Assembly {
    /// Architecture.
    pub config: Blip2Config,
    /// Names in files.
    pub keys: Keys,
    /// What came from where, one sentence each.
    pub notes: Vec<String>,
    sources: Vec<Arc<dyn TensorSource>>,
    infos: Vec<TensorInfo>,
    tensors: HashMap<String, Tensor>,
    shapes: BTreeMap<Root, Shapes>,
    seed: u64,
}

/// A tensor of the model.
struct Tensor {
    root: Root,
    info: ParamInfo,
    origin: Origin,
}

enum Origin {
    /// In a source under a name, in the wanted shape.
    File(usize, String),
    /// A position table for pictures of another size.
    Positions(usize, String),
    /// A table with one row less: `[DEC]` is new.
    Extended(usize, String),
    /// Nowhere.
    Drawn,
}

/// Parts that a stage has.
fn roots(stage: StageKind) -> &'static [Root] {
    match stage {
        StageKind::Stage1 => &[Root::Vision, Root::Bridge],
        StageKind::Stage2 => &[Root::Vision, Root::Bridge, Root::Language],
        StageKind::LanguageModel => &[Root::Language],
    }
}

/// Parameters of a part, without allocating any.
pub fn list<B: Backend>(config: &Blip2Config, root: Root) -> Result<Vec<ParamInfo>, RecipeError> {
    let device = B::Device::default();
    Ok(match (root, config.language()) {
        (Root::Vision, _) => params::list(&config.vision_config.init::<B>(&device)),
        (Root::Bridge, _) => params::list(&config.bridge().init::<B>(&device)),
        (Root::Language, Some(language)) => params::list(&language.init::<B>(&device)?),
        (Root::Language, None) => Vec::new(),
    })
}

impl Assembly {
    /// Opens every place the recipe names; reads no tensor yet.
    pub fn open<B: Backend>(recipe: &Recipe) -> Result<Self, RecipeError> {
        let config = architecture::configuration(&recipe.model, recipe.stage)?;
        let keys = huggingface::keys(&config);
        let sources = open_sources(recipe, &config)?;
        let by_name: Vec<HashMap<&str, &TensorInfo>> = sources
            .iter()
            .map(|(_, source)| {
                source
                    .infos()
                    .iter()
                    .map(|info| (info.name.as_str(), info))
                    .collect()
            })
            .collect();
        let mut infos = Vec::new();
        let mut tensors = HashMap::new();
        let mut shapes = BTreeMap::new();
        let mut taken = vec![0usize; sources.len()];
        let mut drawn: BTreeMap<Root, Vec<String>> = BTreeMap::new();
        for &root in roots(recipe.stage) {
            let listed = list::<B>(&config, root)?;
            let of_root: Shapes = listed.iter().map(|i| (i.name.clone(), i.shape.clone())).collect();
            shapes.insert(root, of_root);
            for info in listed {
                let path = format!("{}.{}", root.name(), info.name);
                let name = keys.name(&path).unwrap_or(path);
                let names = std::iter::once(name.clone()).chain(keys.alias_of(&name));
                let mut places = names.flat_map(|name| (0..sources.len()).map(move |i| (i, name.clone())));
                let found = places.find_map(|(i, name)| by_name[i].get(name.as_str()).map(|f| (i, name, *f)));
                let (origin, dtype) = match found {
                    Some((i, stored, file)) => {
                        taken[i] += 1;
                        (fit(&info, i, stored, file)?, file.dtype)
                    }
                    None => {
                        drawn.entry(root).or_default().push(name.clone());
                        (Origin::Drawn, DType::F32)
                    }
                };
                let as_stored = matches!(origin, Origin::File(..));
                infos.push(TensorInfo {
                    name: name.clone(),
                    dtype: if as_stored { dtype } else { DType::F32 },
                    shape: info.shape.clone(),
                });
                tensors.insert(name, Tensor { root, info, origin });
            }
        }
        check_drawn(recipe, &drawn)?;
        let mut notes = Vec::new();
        for ((label, source), count) in sources.iter().zip(taken) {
            let left = source.infos().len().saturating_sub(count);
            let rest = if left > 0 {
                format!(", {left} have no place here")
            } else {
                String::new()
            };
            notes.push(format!("{label}: {count} tensors{rest}"));
        }
        for (root, names) in &drawn {
            let some = names
                .iter()
                .take(3)
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ");
            let more = if names.len() > 3 { ", ..." } else { "" };
            let (part, seed) = (root.title(), recipe.train.seed);
            notes.push(format!(
                "drawn from seed {seed}: {} tensors of the {part} ({some}{more})",
                names.len()
            ));
        }
        Ok(Self {
            config,
            keys,
            notes,
            sources: sources.into_iter().map(|(_, source)| source).collect(),
            infos,
            tensors,
            shapes,
            seed: recipe.train.seed,
        })
    }

    /// Fills `module`, whose parameters live under `root`.
    pub fn load<B: Kernels, M: Module<B>>(
        &self,
        module: M,
        root: Root,
        policy: DtypePolicy,
    ) -> Result<M, RecipeError> {
        let policy = policy.for_config(&self.config)?.on::<B>()?;
        let mut loader = Loader::new(self, &self.keys, policy);
        let module = loader.load(module, root.name());
        // the other parts' tensors are unused here; nothing can be missing
        loader.finish(true)?;
        Ok(module)
    }

    /// Part and parameter behind a file name.
    pub fn parameter(&self, name: &str) -> Option<(Root, &ParamInfo)> {
        self.tensors.get(name).map(|tensor| (tensor.root, &tensor.info))
    }

    fn draw(&self, tensor: &Tensor) -> Draw {
        let none = Shapes::new();
        let shapes = self.shapes.get(&tensor.root).unwrap_or(&none);
        drawn::rule(&self.config, tensor.root, &tensor.info, shapes)
    }
}

impl TensorSource for Assembly {
    fn path(&self) -> &Path {
        self.sources
            .first()
            .map_or(Path::new("recipe"), |source| source.path())
    }

    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)?;
        self.infos.iter().find(|info| info.name == name)
    }

    fn get(&self, name: &str) -> Result<TensorBytes, WeightsError> {
        let tensor = self.tensors.get(name).ok_or_else(|| WeightsError::NoSuchTensor {
            path: self.path().to_owned(),
            name: name.to_string(),
        })?;
        let (info, shape) = (&tensor.info, &tensor.info.shape);
        match &tensor.origin {
            Origin::File(i, stored) => self.sources[*i].get(stored),
            Origin::Positions(i, stored) => {
                let table = self.sources[*i].get(stored)?.to_f32_vec()?;
                let (count, width) = (shape[1], shape[2]);
                let side = |tokens: usize| ((tokens - 1) as f64).sqrt().round() as usize;
                let (from, to) = (side(table.len() / width), side(count));
                let aligned = matches!(self.config.vision_config, VisionConfig::Clip(_));
                let values = resize_table(&table, width, from, (to, to), aligned);
                TensorBytes::from_f32(shape.clone(), values)
            }
            Origin::Extended(i, stored) => {
                let mut values = self.sources[*i].get(stored)?.to_f32_vec()?;
                let missing = info.len() - values.len();
                // a new row of a bias says nothing about its token
                let draw = match shape.len() {
                    1 => Draw::Constant(0.0),
                    _ => self.draw(tensor),
                };
                values.extend(draw.values(self.seed, &format!("new rows of {}", info.name), missing));
                TensorBytes::from_f32(shape.clone(), values)
            }
            Origin::Drawn => {
                let values = self.draw(tensor).values(self.seed, &info.name, info.len());
                TensorBytes::from_f32(shape.clone(), values)
            }
        }
    }

    fn release(&self, name: &str) {
        if let Some(Tensor { origin, .. }) = self.tensors.get(name)
            && let Origin::File(i, stored) | Origin::Positions(i, stored) | Origin::Extended(i, stored) =
                origin
        {
            self.sources[*i].release(stored);
        }
    }
}

/// Places in the order in which they win.
fn open_sources(
    recipe: &Recipe,
    config: &Blip2Config,
) -> Result<Vec<(String, Arc<dyn TensorSource>)>, RecipeError> {
    let model = &recipe.model;
    let layers = config.vision_config.num_hidden_layers();
    let mut sources = Vec::new();
    let mut add = |key: &str, place: Option<&str>, role| {
        if let Some(text) = place {
            let source = origins::open(text, role, layers, config.text_config.as_ref())?;
            sources.push((format!("{key} = {text}"), source));
        }
        Ok::<_, RecipeError>(())
    };
    if recipe.stage != StageKind::LanguageModel {
        // an encoder that was trained with its Q-Former comes before the one both started from
        for place in model.bridge_from.iter() {
            add("bridge_from", Some(place), Role::Bridge)?;
        }
        add("vision_from", model.vision_from.as_deref(), Role::Vision)?;
    }
    if recipe.stage != StageKind::Stage1 {
        add("language_from", model.language_from.as_deref(), Role::Language)?;
        // the published model's weights, unless all is to be drawn or came from elsewhere
        let wanted = model.init == Init::Weights && model.language_from.is_none();
        let named = model.language_model().filter(|_| wanted);
        add("language model", named, Role::Language)?;
    }
    add("base", model.base.as_deref(), Role::Base)?;
    if recipe.stage != StageKind::LanguageModel {
        add("qformer_from", model.qformer_from.as_deref(), Role::Bert)?;
    }
    Ok(sources)
}

fn check_drawn(recipe: &Recipe, drawn: &BTreeMap<Root, Vec<String>>) -> Result<(), RecipeError> {
    for (root, part, key) in [
        (Root::Vision, "image encoder", "vision_from"),
        (Root::Language, "language model", "language_from"),
    ] {
        let names = drawn.get(&root).map_or(&[][..], Vec::as_slice);
        if let (Some(first), Init::Weights) = (names.first(), recipe.model.init) {
            return Err(RecipeError::NoWeights {
                part,
                count: names.len(),
                first: first.clone(),
                key,
            });
        }
    }
    Ok(())
}

/// How a stored tensor becomes the wanted one.
fn fit(wanted: &ParamInfo, source: usize, stored: String, file: &TensorInfo) -> Result<Origin, RecipeError> {
    let squeezed = |shape: &[usize]| shape.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>();
    let (want, have) = (squeezed(&wanted.shape), squeezed(&file.shape));
    if want == have {
        return Ok(Origin::File(source, stored));
    }
    let square = |tokens: usize| ((tokens.max(1) - 1) as f64).sqrt().fract() == 0.0;
    if wanted.name.ends_with("position_embedding")
        && let ([want, width], [have, old]) = (want.as_slice(), have.as_slice())
        && width == old
        && square(*want)
        && square(*have)
    {
        return Ok(Origin::Positions(source, stored));
    }
    let table = wanted.name.ends_with("word_embeddings.weight") || wanted.name == "lm_head.bias";
    if table && want[1..] == have[1..] && want[0] == have[0] + 1 {
        return Ok(Origin::Extended(source, stored));
    }
    Err(WeightsError::ShapeMismatches {
        path: file.name.clone().into(),
        mismatches: vec![blip2_model::weights::ShapeMismatch {
            name: stored,
            expected: wanted.shape.clone(),
            found: file.shape.clone(),
        }],
    }
    .into())
}
