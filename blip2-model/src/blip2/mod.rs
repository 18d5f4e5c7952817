//! The compositions: image encoder, bridge and language model put together for captioning and question
//! answering ([`conditional`]), matching and retrieval ([`retrieval`]) and embeddings ([`features`]).
//! Between them they do the jobs of the seven Hugging Face classes and of LAVIS's five.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use crate::checkpoint::huggingface;
use crate::checkpoint::{DtypePolicy, LoadReport, Loader};
use crate::config::{Blip2Config, Task};
use crate::language::AnyLanguageModel;
use crate::nn::kernels::as_dtype;
use crate::nn::{Context, Kernels};
use crate::qformer::{Bridge, ImageKeys};
use crate::vision::{AnyEncoder, ImageEncoder};
use crate::weights::{TensorSource, WeightsError};

pub mod conditional;
pub mod error;
pub mod features;
pub mod retrieval;

use conditional::select_rows;
pub use error::Blip2Error;
pub use features::{ImageEmbedding, TextEmbedding};
pub use retrieval::{ItcScore, ItmScore};

/// A complete model; which parts it has depends on the checkpoint.
#[derive(Clone, Debug)]
pub struct Blip2<B: Backend> {
    /// The configuration it was made from.
    pub config: Blip2Config,
    /// Image encoder; absent in a text-only checkpoint.
    pub vision: Option<AnyEncoder<B>>,
    /// Everything that BLIP-2 trains.
    pub bridge: Bridge<B>,
    /// Language model; absent in retrieval checkpoints.
    pub language: Option<AnyLanguageModel<B>>,
    /// Where it lives.
    pub device: B::Device,
}

/// An encoded batch of pictures: what every later step needs, computed once.
#[derive(Clone, Debug)]
pub struct ImageFeatures<B: Backend> {
    /// Tokens after `ln_vision`, `[B, N, C]`.
    pub embeds: Tensor<B, 3>,
    /// Their keys and values in the Q-Former.
    pub keys: ImageKeys<B>,
}

impl<B: Kernels> Blip2<B> {
    /// A model with lazily drawn random weights.
    pub fn new(config: Blip2Config, device: &B::Device) -> Result<Self, Blip2Error> {
        config.validate()?;
        let vision = config.has_vision().then(|| config.vision_config.init(device));
        let language = config.language().map(|text| text.init(device)).transpose()?;
        Ok(Self {
            bridge: config.bridge().init(device),
            vision,
            language,
            device: device.clone(),
            config,
        })
    }

    /// Loads every part from a source with Hugging Face names; complete or an error, unless `allow_partial`.
    pub fn load(
        config: Blip2Config,
        source: &dyn TensorSource,
        policy: DtypePolicy,
        allow_partial: bool,
        device: &B::Device,
    ) -> Result<(Self, LoadReport), Blip2Error> {
        let keys = huggingface::keys(&config);
        let mut model = Self::new(config, device)?;
        let mut loader = Loader::new(source, &keys, policy);
        model.vision = model.vision.map(|vision| loader.load(vision, "vision"));
        model.bridge = loader.load(model.bridge, "bridge");
        model.language = model.language.map(|language| loader.load(language, "language"));
        let report = loader.finish(allow_partial)?;
        Ok((model, report))
    }

    /// The module tree under the roots of the key table, for export and counting.
    pub fn num_params(&self) -> usize {
        self.vision.as_ref().map_or(0, Module::num_params)
            + self.bridge.num_params()
            + self.language.as_ref().map_or(0, Module::num_params)
    }

    /// Pixels `[B, 3, H, W]`, normalised -> features. Casts to the dtype of the encoder at the border.
    pub fn encode_images(&self, pixels: Tensor<B, 4>, ctx: &Context) -> Result<ImageFeatures<B>, Blip2Error> {
        let vision = self.vision.as_ref().ok_or(Blip2Error::MissingPart {
            part: "an image encoder",
        })?;
        let [_, _, height, width] = pixels.dims();
        let patch = self.config.vision_config.patch_size();
        if !height.is_multiple_of(patch) || !width.is_multiple_of(patch) {
            return Err(Blip2Error::ImageSize { height, width, patch });
        }
        ctx.record("pixel_values", &pixels);
        let tokens = ctx.scoped("vision", || {
            vision.forward(as_dtype(pixels, vision.compute_dtype()), ctx)
        });
        Ok(self.image_features(tokens, ctx))
    }

    /// Encoder tokens `[B, N, C]` (for example from a feature store) -> features.
    pub fn image_features(&self, tokens: Tensor<B, 3>, ctx: &Context) -> ImageFeatures<B> {
        let tokens = as_dtype(tokens, self.bridge.compute_dtype());
        self.features_of(self.bridge.image_embeds(tokens, ctx))
    }

    /// [`ImageFeatures::embeds`] kept from an earlier run, `[B, N, C]` -> features.
    pub fn features_of(&self, embeds: Tensor<B, 3>) -> ImageFeatures<B> {
        let keys = self.bridge.qformer.image_keys(embeds.clone());
        ImageFeatures { embeds, keys }
    }

    /// Whether the Q-Former reads the question beside the picture, as it does when fine-tuned for question answering
    /// (paper section 4.3); the language model then gets other queries for every question. A checkpoint that also
    /// retrieves has the text branch for that, and captions without text.
    pub fn reads_questions(&self) -> bool {
        self.config.task() == Task::ConditionalGeneration && self.bridge.qformer.has_text_branch()
    }
}

impl<B: Kernels> ImageFeatures<B> {
    /// Number of pictures.
    pub fn batch(&self) -> usize {
        self.embeds.dims()[0]
    }

    /// Pictures `index` of the batch, in that order, repeats allowed: one picture, several texts.
    pub fn select(&self, index: &[usize]) -> Self {
        Self {
            embeds: select_rows(self.embeds.clone(), index),
            keys: self.keys.select(index),
        }
    }
}

impl From<WeightsError> for Blip2Error {
    fn from(error: WeightsError) -> Self {
        Self::Weights(Box::new(error))
    }
}
