//! Trainable modules with adapters: a bridge whose Q-Former is frozen but adapted, and any trainable
//! module next to an adapted language model.

use blip2_model::checkpoint::Keys;
use blip2_model::nn::{Context, Kernels, LayerNorm, Linear};
use blip2_model::qformer::{Bridge, LmHead, Projection, QFormer};
use blip2_model::vision::AnyEncoder;
use burn::module::{Module, ModuleDisplay, Param};
use burn::tensor::{Tensor, backend::AutodiffBackend, backend::Backend};

use super::{Adapters, Beside, LoraConfig, NoTargets};
use crate::params::Named;
use crate::stage::encoded::Encoded;
use crate::stage::{Frozen, Images, StageError, Trainable, Trained};

/// Everything of a bridge but the Q-Former, whose place adapters take.
#[derive(Module, Debug)]
pub struct BridgeAdapters<B: Backend> {
    ln_vision: LayerNorm<B>,
    query_tokens: Param<Tensor<B, 3>>,
    vision_projection: Option<Projection<B>>,
    text_projection: Option<Projection<B>>,
    itm_head: Option<Linear<B>>,
    lm_head: Option<LmHead<B>>,
    temp: Option<Param<Tensor<B, 1>>>,
    language_projection: Option<Linear<B>>,
    lora: Adapters<B>,
}

impl<B: Backend> BridgeAdapters<B> {
    /// Paths of the adapted matrices in the Q-Former.
    pub fn lora_targets(&self) -> &[String] {
        self.lora.targets()
    }
}

/// A bridge of which the Q-Former trains through adapters only.
pub type AdaptedBridge<B> = Beside<BridgeAdapters<B>, Frozen<QFormer<B>>>;

/// Freezes a bridge's Q-Former and puts adapters on its attention.
pub fn adapt_bridge<B: AutodiffBackend>(
    bridge: Bridge<B>,
    config: &LoraConfig,
    seed: u64,
    device: &B::Device,
) -> Result<AdaptedBridge<B>, NoTargets> {
    let lora = Adapters::new(&bridge.qformer, config, seed, device)?;
    Ok(Beside {
        trained: BridgeAdapters {
            ln_vision: bridge.ln_vision,
            query_tokens: bridge.query_tokens,
            vision_projection: bridge.vision_projection,
            text_projection: bridge.text_projection,
            itm_head: bridge.itm_head,
            lm_head: bridge.lm_head,
            temp: bridge.temp,
            language_projection: bridge.language_projection,
            lora,
        },
        frozen: Frozen::new::<B>(bridge.qformer),
    })
}

impl<B> Trainable<B> for AdaptedBridge<B>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    type Encoder = AnyEncoder<B::InnerBackend>;

    fn bridge(&self) -> Bridge<B> {
        let own = self.trained.clone();
        Bridge {
            ln_vision: own.ln_vision,
            query_tokens: own.query_tokens,
            qformer: own.lora.apply(&*self.frozen),
            vision_projection: own.vision_projection,
            text_projection: own.text_projection,
            itm_head: own.itm_head,
            lm_head: own.lm_head,
            temp: own.temp,
            language_projection: own.language_projection,
        }
    }

    fn encode(
        &self,
        encoder: &Self::Encoder,
        images: &Images,
        device: &B::Device,
        _ctx: &Context,
    ) -> Result<Encoded<B>, StageError> {
        Ok(Encoded::frozen(encoder, images, device))
    }
}

impl<B: AutodiffBackend> Trained<B> for AdaptedBridge<B> {
    fn file_name(&self, keys: &Keys, name: &str) -> Option<String> {
        match name.strip_prefix("lora.") {
            Some(name) => {
                let target = |path: &str| keys.name(&format!("bridge.qformer.{path}"));
                self.trained.lora.file_name(name, target)
            }
            None => keys.name(&format!("bridge.{name}")),
        }
    }
}

/// A trainable module and adapters of the frozen language model.
#[derive(Module, Debug)]
pub struct WithLanguageAdapters<B: Backend, M> {
    /// Trains as it would alone.
    pub inner: M,
    /// On the language model.
    pub lora: Adapters<B>,
}

impl<B, M> Trainable<B> for WithLanguageAdapters<B, M>
where
    B: AutodiffBackend,
    M: Trainable<B> + ModuleDisplay,
{
    type Encoder = M::Encoder;

    fn bridge(&self) -> Bridge<B> {
        self.inner.bridge()
    }

    fn encode(
        &self,
        encoder: &Self::Encoder,
        images: &Images,
        device: &B::Device,
        ctx: &Context,
    ) -> Result<Encoded<B>, StageError> {
        self.inner.encode(encoder, images, device, ctx)
    }

    fn language_model<L: Module<B>>(&self, frozen: &L) -> Option<L> {
        Some(self.lora.apply(frozen))
    }
}

impl<B, M> Trained<B> for WithLanguageAdapters<B, M>
where
    B: AutodiffBackend,
    M: Trained<B> + ModuleDisplay,
{
    fn file_name(&self, keys: &Keys, name: &str) -> Option<String> {
        if let Some(name) = name.strip_prefix("lora.") {
            let target = |path: &str| keys.name(&format!("language.{path}"));
            return self.lora.file_name(name, target);
        }
        self.inner.file_name(keys, name.strip_prefix("inner.")?)
    }

    fn adjust_gradients(&self, gradients: &mut Named<B::InnerBackend>) {
        self.inner.adjust_gradients(gradients);
    }
}
