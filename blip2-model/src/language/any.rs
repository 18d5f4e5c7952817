//! The language model of a checkpoint, whichever family it is.

use burn::module::Module;
use burn::tensor::{Int, Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use super::{
    Architecture, DecodeState, LanguageModel, Llama, LlamaConfig, Opt, OptConfig, Prompt, T5, T5Config,
};
use crate::config::ConfigError;
use crate::nn::{Context, Kernels, PadMask};

/// `text_config`, told apart by its `model_type`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "model_type")]
pub enum LanguageConfig {
    /// OPT.
    #[serde(rename = "opt")]
    Opt(OptConfig),
    /// T5 and Flan-T5.
    #[serde(rename = "t5")]
    T5(T5Config),
    /// LLaMA and Vicuna.
    #[serde(rename = "llama")]
    Llama(LlamaConfig),
}

/// A language model of a kind known at run time.
// a program holds one: a box would save nothing
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum AnyLanguageModel<B: Backend> {
    /// OPT.
    Opt(Opt<B>),
    /// T5 and Flan-T5.
    T5(T5<B>),
    /// LLaMA and Vicuna.
    Llama(Llama<B>),
}

impl LanguageConfig {
    /// Checks the values against each other and against what is implemented.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match self {
            Self::Opt(config) => config.validate(),
            Self::T5(config) => config.validate(),
            Self::Llama(config) => config.validate(),
        }
    }

    /// Width of the token embeddings, which the image projection must produce.
    pub fn embed_size(&self) -> usize {
        match self {
            Self::Opt(config) => config.embed_size(),
            Self::T5(config) => config.d_model,
            Self::Llama(config) => config.hidden_size,
        }
    }

    /// Randomly initialised, lazily; the configuration is validated first.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Result<AnyLanguageModel<B>, ConfigError> {
        Ok(match self {
            Self::Opt(config) => AnyLanguageModel::Opt(config.init(device)?),
            Self::T5(config) => AnyLanguageModel::T5(config.init(device)?),
            Self::Llama(config) => AnyLanguageModel::Llama(config.init(device)?),
        })
    }
}

/// Calls the same method on whichever model there is.
macro_rules! each {
    ($any:expr, $model:ident => $call:expr) => {
        match $any {
            AnyLanguageModel::Opt($model) => $call,
            AnyLanguageModel::T5($model) => $call,
            AnyLanguageModel::Llama($model) => $call,
        }
    };
}

impl<B: Kernels> LanguageModel<B> for AnyLanguageModel<B> {
    fn architecture(&self) -> Architecture {
        each!(self, model => model.architecture())
    }

    fn embed_size(&self) -> usize {
        each!(self, model => model.embed_size())
    }

    fn vocab_size(&self) -> usize {
        each!(self, model => model.vocab_size())
    }

    fn max_positions(&self) -> Option<usize> {
        each!(self, model => model.max_positions())
    }

    fn embed(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        each!(self, model => model.embed(ids))
    }

    fn prefill(
        &self,
        prompt: Prompt<B>,
        max_new_tokens: usize,
        ctx: &Context,
    ) -> (DecodeState<B>, Tensor<B, 2>) {
        each!(self, model => model.prefill(prompt, max_new_tokens, ctx))
    }

    fn step(&self, tokens: &[i64], state: &mut DecodeState<B>, ctx: &Context) -> Tensor<B, 2> {
        each!(self, model => model.step(tokens, state, ctx))
    }

    fn teacher_forced(
        &self,
        prompt: Prompt<B>,
        ids: &[Vec<i64>],
        mask: &PadMask,
        ctx: &Context,
    ) -> Tensor<B, 3> {
        each!(self, model => model.teacher_forced(prompt, ids, mask, ctx))
    }
}
