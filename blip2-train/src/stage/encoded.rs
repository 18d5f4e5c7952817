//! The border between image encoder and trainable module. Where the encoder is frozen, tokens cross it
//! as constants; where it trains, the backward pass stops at the border, the processes add up what each
//! of them wants from every picture, and the encoder's own backward pass starts from that sum.

use blip2_model::checkpoint::Keys;
use blip2_model::nn::kernels::as_dtype;
use blip2_model::nn::{Context, Kernels};
use blip2_model::qformer::Bridge;
use blip2_model::vision::{AnyEncoder, ImageEncoder};
use burn::module::Module;
use burn::tensor::{
    DType, Tensor, TensorData,
    backend::{AutodiffBackend, Backend},
};

use super::graph::Recording;
use super::{Images, LossParts, StageError, StepContext, StepOutput};
use crate::distributed::Collective;
use crate::params::{self, Named};

/// A module all of whose parameters train.
pub trait Trained<B: AutodiffBackend>: Module<B> {
    /// Name in files of a parameter of this module.
    fn file_name(&self, keys: &Keys, name: &str) -> Option<String>;

    /// Last word on gradients before they leave the step.
    fn adjust_gradients(&self, _gradients: &mut Named<B::InnerBackend>) {}
}

/// A trained module around a Q-Former.
pub trait Trainable<B: AutodiffBackend>: Trained<B> {
    /// The frozen image encoder that stands beside the module; `()` where the encoder is inside.
    type Encoder;

    /// The Q-Former with heads; a cheap copy that shares its tensors.
    fn bridge(&self) -> Bridge<B>;

    /// Pictures to tokens `[B, N, C]` in f32.
    fn encode(
        &self,
        encoder: &Self::Encoder,
        images: &Images,
        device: &B::Device,
        ctx: &Context,
    ) -> Result<Encoded<B>, StageError>;

    /// The language model to use instead of the frozen one, if this module adapts it.
    fn language_model<L: Module<B>>(&self, _frozen: &L) -> Option<L> {
        None
    }
}

/// Pixels `[B, 3, H, W]` -> tokens `[B, N, C]` of a frozen encoder, in f32.
pub fn frozen_tokens<B: Kernels>(
    encoder: &AnyEncoder<B>,
    pixels: &TensorData,
    device: &B::Device,
) -> Tensor<B, 3> {
    let pixels = Tensor::from_data(pixels.clone(), (device, encoder.compute_dtype()));
    as_dtype(encoder.forward(pixels, &Context::eval()), DType::F32)
}

/// Stage 1 and stage 2: the encoder is frozen, on the inner backend.
impl<B> Trainable<B> for Bridge<B>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    type Encoder = AnyEncoder<B::InnerBackend>;

    fn bridge(&self) -> Bridge<B> {
        self.clone()
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

impl<B: AutodiffBackend> Trained<B> for Bridge<B> {
    fn file_name(&self, keys: &Keys, name: &str) -> Option<String> {
        keys.name(&format!("bridge.{name}"))
    }
}

/// Fine-tuning: the encoder trains too, so it is a module of the autodiff backend.
#[derive(Module, Debug)]
pub struct WithEncoder<B: Backend> {
    /// The image encoder.
    pub encoder: AnyEncoder<B>,
    /// The Q-Former with heads.
    pub bridge: Bridge<B>,
}

impl<B> Trainable<B> for WithEncoder<B>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    type Encoder = ();

    fn bridge(&self) -> Bridge<B> {
        self.bridge.clone()
    }

    fn encode(
        &self,
        _encoder: &(),
        images: &Images,
        device: &B::Device,
        ctx: &Context,
    ) -> Result<Encoded<B>, StageError> {
        let Images::Pixels(pixels) = images else {
            return Err(StageError::FeaturesForTrainedEncoder);
        };
        let pixels = Tensor::from_data(pixels.clone(), (device, DType::F32));
        let graph = self.encoder.forward(pixels, ctx);
        Ok(Encoded {
            tokens: graph.clone().inner(),
            graph: Some(graph),
        })
    }
}

impl<B: AutodiffBackend> Trained<B> for WithEncoder<B> {
    fn file_name(&self, keys: &Keys, name: &str) -> Option<String> {
        match name.strip_prefix("encoder.") {
            Some(rest) => keys.name(&format!("vision.{rest}")),
            None => keys.name(name),
        }
    }

    /// The key bias is no parameter of EVA-CLIP: attention does not change with it, its gradient is
    /// rounding noise, and Adam would turn noise into full steps.
    fn adjust_gradients(&self, gradients: &mut Named<B::InnerBackend>) {
        for (name, grad) in gradients.iter_mut() {
            if name.ends_with("self_attn.qkv.bias") {
                let width = grad.dims()[0] / 3;
                let part = |i: usize| grad.clone().narrow(0, i * width, width);
                *grad = Tensor::cat(vec![part(0), part(1).zeros_like(), part(2)], 0);
            }
        }
    }
}

/// Tokens of this process's pictures, with the encoder's graph where it trains.
pub struct Encoded<B: AutodiffBackend> {
    tokens: Tensor<B::InnerBackend, 3>,
    graph: Option<Tensor<B, 3>>,
}

/// Tokens on the autodiff side of the border.
pub struct Border<B: AutodiffBackend> {
    leaf: Tensor<B, 3>,
    graph: Option<Tensor<B, 3>>,
    offset: usize,
    batch: usize,
}

impl<B> Encoded<B>
where
    B: AutodiffBackend,
    B::InnerBackend: Kernels,
{
    /// Tokens of a frozen encoder, or stored ones.
    pub fn frozen(encoder: &AnyEncoder<B::InnerBackend>, images: &Images, device: &B::Device) -> Self {
        let tokens = match images {
            Images::Pixels(pixels) => frozen_tokens(encoder, pixels, device),
            Images::Features(tokens) => Tensor::from_data(tokens.clone(), (device, DType::F32)),
        };
        Self { tokens, graph: None }
    }
}

impl<B: AutodiffBackend> Encoded<B> {
    /// Crosses the border with this process's pictures, `[B, N, C]`.
    pub fn local(self) -> Border<B> {
        let batch = self.tokens.dims()[0];
        Border::new(self.tokens, self.graph, 0, batch)
    }

    /// Crosses the border with the pictures of all processes, `[K, N, C]`.
    pub fn global(self, collective: &dyn Collective<B::InnerBackend>) -> Result<Border<B>, StageError> {
        let [batch, count, width] = self.tokens.dims();
        let rows = collective.all_gather_rows(self.tokens.reshape([batch, count * width]))?;
        let global = rows.dims()[0];
        let all = rows.reshape([global, count, width]);
        let offset = collective.rank() * batch;
        Ok(Border::new(all, self.graph, offset, batch))
    }
}

impl<B: AutodiffBackend> Border<B> {
    fn new(
        tokens: Tensor<B::InnerBackend, 3>,
        graph: Option<Tensor<B, 3>>,
        offset: usize,
        batch: usize,
    ) -> Self {
        let leaf = Tensor::from_inner(tokens);
        Self {
            leaf: match graph {
                Some(_) => leaf.require_grad(),
                None => leaf,
            },
            graph,
            offset,
            batch,
        }
    }

    /// This process's pictures, `[B, N, C]`.
    pub fn tokens(&self) -> Tensor<B, 3> {
        if self.leaf.dims()[0] == self.batch {
            return self.leaf.clone();
        }
        self.leaf.clone().narrow(0, self.offset, self.batch)
    }

    /// Every picture that crossed, `[B, N, C]` or `[K, N, C]`.
    pub fn all_tokens(&self) -> Tensor<B, 3> {
        self.leaf.clone()
    }

    /// Ends `recording` with the backward pass of the sum of `losses`, then of the encoder if it trains.
    pub fn finish<M: Trained<B>>(
        self,
        recording: Recording,
        module: &M,
        losses: LossParts<B>,
        step: &StepContext<'_, B>,
    ) -> Result<StepOutput<B>, StageError> {
        let mut gradients = Named::new();
        if step.train {
            let total = losses.iter().map(|(_, loss)| loss.clone()).reduce(|a, b| a + b);
            if let Some(total) = total {
                let mut grads = recording.backward(total * step.loss_scale);
                gradients = params::gradients(module, &mut grads);
                self.encoder_backward(module, &mut grads, &mut gradients, step)?;
            }
            module.adjust_gradients(&mut gradients);
        }
        Ok(StepOutput {
            losses: losses.into_iter().map(|(n, l)| (n, l.inner())).collect(),
            gradients,
        })
    }

    fn encoder_backward<M: Trained<B>>(
        self,
        module: &M,
        grads: &mut B::Gradients,
        gradients: &mut Named<B::InnerBackend>,
        step: &StepContext<'_, B>,
    ) -> Result<(), StageError> {
        let Some(graph) = self.graph else {
            return Ok(());
        };
        let Some(grad) = self.leaf.grad_remove(grads) else {
            return Ok(());
        };
        let [all, count, width] = grad.dims();
        let grad = if all == self.batch {
            grad
        } else {
            let sum = step.collective.all_reduce_sum(grad.reshape([-1]))?;
            let sum = sum.reshape([all, count, width]);
            sum.narrow(0, self.offset, self.batch)
        };
        // d(sum(tokens * g)) = g: continues the chain rule where the first pass stopped
        let recording = Recording::start();
        let mut grads = recording.backward((graph * Tensor::from_inner(grad)).sum());
        for (name, grad) in params::gradients(module, &mut grads) {
            let sum = match gradients.remove(&name) {
                Some(old) => old + grad,
                None => grad,
            };
            gradients.insert(name, sum);
        }
        Ok(())
    }
}
