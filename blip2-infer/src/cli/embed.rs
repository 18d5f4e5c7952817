//! `blip2 embed` and `blip2 trace`: tensors to a safetensors file, f32, by the names of the documentation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use blip2_model::language::LanguageModel;
use blip2_model::nn::{Context, Kernels};
use blip2_model::weights::writer;
use blip2_model::weights::{DType, TensorBytes, TensorInfo};
use burn::tensor::TensorData;
use clap::{Args, ValueEnum};

use super::cache::Kept;
use super::{CommonArgs, Verb, cache, pictures};
use crate::Session;

/// What to embed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Query outputs `[1, Q, D]`, and in the contrastive space (unit length) where the checkpoint has it
    Image,
    /// Every token `[1, T, D]`, and in the contrastive space; token 0 stands for the text
    Text,
    /// Query outputs after seeing picture and text `[1, Q, D]`
    Multimodal,
}

/// Arguments of `embed`.
#[derive(Debug, Args)]
pub struct EmbedArgs {
    kind: Kind,
    /// Picture
    #[arg(long, required_if_eq_any([("kind", "image"), ("kind", "multimodal")]))]
    image: Option<PathBuf>,
    /// Text
    #[arg(long, required_if_eq_any([("kind", "text"), ("kind", "multimodal")]))]
    text: Option<String>,
    /// File to write
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
    /// Keep the encoded picture in this folder, by content: another text then starts at the Q-Former
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Arguments of `trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Picture
    image: PathBuf,
    /// Text for the language model
    #[arg(long, default_value = "")]
    prompt: String,
    /// Text for the Q-Former, where the checkpoint's reads the question
    #[arg(long, default_value = "")]
    question: String,
    /// File to write
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
    #[command(flatten)]
    common: CommonArgs,
}

impl Verb for EmbedArgs {
    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn run<B: Kernels>(&self, device: &B::Device) -> Result<()> {
        let session = self.common.open::<B>(device)?;
        let ctx = Context::tracing();
        let image = match (&self.image, self.kind) {
            (Some(path), Kind::Image | Kind::Multimodal) => {
                let cache = self.common.cache(self.cache.as_deref(), Kept::Tokens)?;
                let picture = pictures::read(path, cache::wanted(cache.as_ref()))?;
                let (_, image) = cache::features(&session, cache.as_ref(), vec![picture])?;
                ctx.record("vision.last_hidden_state", &image.embeds);
                Some(image)
            }
            _ => None,
        };
        let text = match (&self.text, self.kind) {
            (Some(text), Kind::Text | Kind::Multimodal) => {
                Some(session.tokenize_texts(std::slice::from_ref(text), None)?)
            }
            _ => None,
        };
        match (&image, &text) {
            (Some(image), Some(text)) => {
                let both = session.model.embed_multimodal(image, text, &ctx)?;
                ctx.record("multimodal.last_hidden_state", &both);
            }
            (Some(image), None) => drop(session.model.embed_images(image, &ctx)),
            (None, Some(text)) => drop(session.model.embed_texts(text, &ctx)?),
            (None, None) => {}
        }
        let mut tensors = ctx.into_trace();
        tensors.retain(|name, _| name.ends_with("last_hidden_state") || name.starts_with("projected."));
        write(&self.out, tensors)
    }
}

impl Verb for TraceArgs {
    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn run<B: Kernels>(&self, device: &B::Device) -> Result<()> {
        let session = self.common.open::<B>(device)?;
        let ctx = Context::tracing();
        let image = session.encode(&[Session::<B>::read_image(&self.image)?], &ctx)?;
        let model = &session.model;
        match model.language.is_some() {
            true => {
                let soft = session.soft_tokens(&image, &[0], std::slice::from_ref(&self.question), &ctx)?;
                let prompt = model.prompt(
                    soft,
                    &session.tokenize_prompts(std::slice::from_ref(&self.prompt))?,
                )?;
                let (_, logits) = model.language()?.prefill(prompt, 1, &ctx);
                ctx.record("logits", &logits);
            }
            false => drop(model.embed_images(&image, &ctx)),
        }
        write(&self.out, ctx.into_trace())
    }
}

fn write(path: &Path, tensors: BTreeMap<String, TensorData>) -> Result<()> {
    let infos: Vec<TensorInfo> = tensors
        .iter()
        .map(|(name, data)| TensorInfo {
            name: name.clone(),
            dtype: DType::F32,
            shape: data.shape.iter().copied().collect(),
        })
        .collect();
    writer::write_file(path, &infos, &mut |info| {
        let values = tensors[&info.name].to_vec::<f32>().unwrap_or_default();
        TensorBytes::from_f32(info.shape.clone(), values)
    })?;
    Ok(())
}
