//! Parts of a run: modules filled from the assembly, batches from the data.

use super::*;

impl<B> Run<'_, B>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    pub(super) fn policy(&self) -> DtypePolicy {
        DtypePolicy {
            vision: self.recipe.model.vit_precision.into(),
            qformer: PartDtype::F32,
            llm: self.recipe.model.llm_precision.into(),
            widen_f16_llm: false,
        }
    }

    /// Everything BLIP-2 trains, with gradients.
    pub(super) fn bridge(&self) -> Result<Bridge<B>, RecipeError> {
        let bridge = self.assembly.config.bridge().init::<B>(&self.device);
        Ok(trainable::<B, _>(self.assembly.load(
            bridge,
            Root::Bridge,
            DtypePolicy::f32(),
        )?))
    }

    pub(super) fn vision(&self) -> &VisionConfig {
        &self.assembly.config.vision_config
    }

    pub(super) fn frozen_encoder(&self) -> Result<AnyEncoder<B::InnerBackend>, RecipeError> {
        let encoder = self.vision().init::<B::InnerBackend>(&self.device);
        self.assembly.load(encoder, Root::Vision, self.policy())
    }

    pub(super) fn trained_encoder(&self) -> Result<AnyEncoder<B>, RecipeError> {
        let encoder = self.vision().init::<B>(&self.device);
        Ok(trainable::<B, _>(self.assembly.load(
            encoder,
            Root::Vision,
            DtypePolicy::f32(),
        )?))
    }

    pub(super) fn language(&self) -> Result<AnyLanguageModel<B>, RecipeError> {
        self.language_as(self.policy())
    }

    pub(super) fn language_as(&self, policy: DtypePolicy) -> Result<AnyLanguageModel<B>, RecipeError> {
        let config = self.assembly.config.language();
        let config = config.ok_or_else(|| RecipeError::missing("model.text_config", "no language model"))?;
        self.assembly
            .load(config.init::<B>(&self.device)?, Root::Language, policy)
    }

    pub(super) fn pixels(&self) -> Pictures {
        Pictures::normalised(self.vision().image_size() as u32)
    }

    /// Pixels, or the store the recipe asks for. `None`, on all ranks, if there was a request to stop while it was filled.
    pub(super) fn pictures(
        &self,
        encoder: &AnyEncoder<B::InnerBackend>,
    ) -> Result<Option<Pictures>, RecipeError> {
        let Some(folder) = &self.recipe.train.features else {
            return Ok(Some(self.pixels()));
        };
        let store = features::store(
            self.recipe,
            folder,
            self.vision(),
            encoder,
            &self.device,
            self.env,
            features::Pace::default(),
        )?;
        Ok(store.map(Pictures::Store))
    }

    pub(super) fn reader(&self) -> Result<Reader, RecipeError> {
        let reader = Reader::train(self.recipe, self.vision().image_size(), self.place)?;
        Ok(match self.recipe.train.features {
            Some(_) => reader.blind(),
            None => reader,
        })
    }

    pub(super) fn held_out<C: crate::run::feed::Collate>(
        &self,
        mut collate: C,
    ) -> Result<Vec<C::Batch>, RecipeError> {
        let reader = Reader::validation(self.recipe, self.vision().image_size(), self.place)?;
        let count = self
            .recipe
            .validation
            .as_ref()
            .map_or(0, |section| section.batches);
        reader.map_or(Ok(Vec::new()), |reader| reader.batches(count, &mut collate))
    }

    pub(super) fn pairs(
        &self,
        pictures: Pictures,
        encoder: Option<&AnyEncoder<B::InnerBackend>>,
    ) -> Result<
        Supply<impl BatchSource<crate::stage::PairBatch> + use<B>, crate::stage::PairBatch>,
        RecipeError,
    > {
        let reader = self.reader()?;
        let collate = |pictures| feeds::pairs(self.recipe, &self.tokenizers, pictures);
        let held_out = self.held_out(collate(self.pixels())?)?;
        let per_epoch = reader.batches_per_epoch()?;
        let source = reader.feed(collate(pictures)?);
        Ok(self.supply(source, held_out, per_epoch, encoder, None))
    }

    pub(super) fn texts(
        &self,
        pictures: Pictures,
        encoder: Option<&AnyEncoder<B::InnerBackend>>,
        llm: &AnyLanguageModel<B>,
    ) -> Result<Supply<impl BatchSource<crate::stage::LmBatch> + use<B>, crate::stage::LmBatch>, RecipeError>
    {
        let reader = self.reader()?;
        let config = &self.assembly.config;
        let collate = |pictures| feeds::texts(self.recipe, config, &self.tokenizers, pictures);
        let held_out = self.held_out(collate(self.pixels())?)?;
        let per_epoch = reader.batches_per_epoch()?;
        let source = reader.feed(collate(pictures)?);
        Ok(self.supply(source, held_out, per_epoch, encoder, Some(llm)))
    }

    pub(super) fn supply<S, T>(
        &self,
        source: S,
        held_out: Vec<T>,
        per_epoch: Option<u64>,
        encoder: Option<&AnyEncoder<B::InnerBackend>>,
        llm: Option<&AnyLanguageModel<B>>,
    ) -> Supply<S, T> {
        let (mut frozen, mut sizes) = (BTreeMap::new(), Vec::new());
        if let Some(encoder) = encoder {
            sizes.push(("image encoder", params::count(encoder), dry::bytes(encoder)));
            frozen.insert(
                "image encoder".to_string(),
                encoder_digest(self.env.dry_run, encoder),
            );
        }
        if let Some(llm) = llm {
            sizes.push(("language model", params::count(llm), dry::bytes(llm)));
            frozen.insert(
                "language model".to_string(),
                encoder_digest(self.env.dry_run, llm),
            );
        }
        Supply {
            source,
            held_out,
            per_epoch,
            frozen,
            sizes,
        }
    }
}

/// Weights as loaded ask for no gradient; these do.
pub(super) fn trainable<B: AutodiffBackend, M: Module<B>>(module: M) -> M {
    params::update(module, |_, value| value)
}

/// A dry run compares nothing, and hashing takes a while.
fn encoder_digest<B: Backend, M: Module<B>>(dry_run: bool, module: &M) -> String {
    if dry_run {
        String::new()
    } else {
        module_digest(module)
    }
}
