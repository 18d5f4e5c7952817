//! `blip2 vqa IMAGE QUESTION [--candidates FILE]`

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use blip2_model::nn::Kernels;
use blip2_model::processor::text::fill_template;
use clap::Args;

use super::{CommonArgs, GenerationArgs, Verb};
use crate::{Request, Session};

/// Arguments of `vqa`.
#[derive(Debug, Args)]
pub struct VqaArgs {
    /// Picture
    image: PathBuf,
    /// Question, in plain words
    question: String,
    /// Template around the question; `{}` stands for it
    #[arg(long, default_value = "Question: {} Answer:")]
    prompt: String,
    /// File with one answer per line: rank them by exact log-likelihood instead of generating
    #[arg(long, value_name = "FILE")]
    candidates: Option<PathBuf>,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    common: CommonArgs,
}

impl Verb for VqaArgs {
    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn run<B: Kernels>(&self, device: &B::Device) -> Result<()> {
        let image = Session::<B>::read_image(&self.image)?;
        let prompt = fill_template(&self.prompt, &[&self.question]);
        let session = self.common.open::<B>(device)?;
        if let Some(path) = &self.candidates {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let candidates: Vec<String> = text
                .lines()
                .map(|l| l.trim().to_string())
                .filter(|l| !l.is_empty())
                .collect();
            if candidates.is_empty() {
                bail!("{}: no candidate answers; write one per line", path.display());
            }
            for ranked in session.rank(&image, &prompt, &candidates)? {
                match self.common.json {
                    true => println!("{}", serde_json::to_string(&ranked)?),
                    false => println!("{:9.3}  {}", ranked.log_likelihood, ranked.text),
                }
            }
            return Ok(());
        }
        let options = self
            .generation
            .options(session.generation.as_ref(), session.architecture()?, true);
        let request = Request {
            image: self.image.display().to_string(),
            prompt,
            options,
        };
        for answer in session.answer(&[image], &[request])? {
            if self.common.json {
                println!("{}", serde_json::to_string(&answer)?);
                continue;
            }
            for output in &answer.outputs {
                match output.text.is_empty() {
                    true => println!(
                        "(empty: the model ended at once; try --min-new-tokens 1 or another --prompt)"
                    ),
                    false => println!("{}", output.text),
                }
            }
        }
        Ok(())
    }
}
