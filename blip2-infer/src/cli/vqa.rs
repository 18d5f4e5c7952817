//! `blip2 vqa IMAGE|DIR QUESTION... [--candidates FILE]`

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use blip2_model::nn::Kernels;
use blip2_model::processor::text::fill_template;
use blip2_model::session::{self, RankedAnswer};
use clap::Args;
use serde::Serialize;

use super::interrupt::Interrupt;
use super::sink::Sink;
use super::{CommonArgs, GenerationArgs, Verb, cache, output, pictures};
use crate::Request;

/// Arguments of `vqa`.
#[derive(Debug, Args)]
#[command(after_help = "\
A picture is encoded once, however many questions are asked about it; the questions of a batch are answered together.

Examples:
  blip2 vqa photo.jpg \"how many dogs are there?\" \"what colour is the car?\"
  blip2 vqa photos/ \"is it indoors?\" --out answers.csv --batch 8
  blip2 vqa photo.jpg \"what is it?\" --candidates animals.txt
  blip2 vqa photo.jpg \"what is it?\" --prompt \"Question: {} Short answer:\" --preset lavis")]
pub struct VqaArgs {
    /// Picture, or folder to search for them
    #[arg(value_name = "IMAGE|DIR")]
    image: PathBuf,
    /// Questions, in plain words
    #[arg(required = true, value_name = "QUESTION")]
    questions: Vec<String>,
    /// Template around the question; `{}` stands for it
    #[arg(long, default_value = "Question: {} Answer:")]
    prompt: String,
    /// File with one answer per line: rank them by exact log-likelihood instead of generating
    #[arg(long, value_name = "FILE", conflicts_with = "out")]
    candidates: Option<PathBuf>,
    /// Pictures at a time
    #[arg(long, default_value_t = 1, value_name = "N")]
    batch: usize,
    /// Write to this file instead of stdout; questions that it has answers to are skipped
    #[arg(long, value_name = "FILE.jsonl|FILE.csv")]
    out: Option<PathBuf>,
    /// Keep encoded pictures in this folder, by content: another question then starts at the language model
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// One ranked candidate with `--json`.
#[derive(Serialize)]
struct Ranked<'a> {
    image: &'a str,
    question: &'a str,
    #[serde(flatten)]
    answer: RankedAnswer,
}

impl Verb for VqaArgs {
    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn run<B: Kernels>(&self, device: &B::Device) -> Result<()> {
        let files = pictures::find(std::slice::from_ref(&self.image))?;
        let candidates = self.read_candidates()?;
        let named = files.len() > 1 || self.questions.len() > 1;
        let (mut sink, finished) = Sink::open(self.out.as_deref(), self.common.json, files.len() > 1)?;
        if let Sink::Sidecar = sink {
            bail!("--out sidecar is for captions; use a name that ends in .jsonl or .csv");
        }
        let prompts: Vec<String> = self
            .questions
            .iter()
            .map(|question| fill_template(&self.prompt, &[question]))
            .collect();
        let open = |image: &str| {
            let prompts = prompts.iter().enumerate();
            let open = prompts.filter(|(_, prompt)| !finished.has(image, prompt));
            open.map(|(i, _)| i).collect::<Vec<_>>()
        };
        let todo: Vec<PathBuf> = files
            .iter()
            .filter(|file| !open(&file.display().to_string()).is_empty())
            .cloned()
            .collect();
        if todo.is_empty() {
            return Ok(());
        }
        let interrupt = Interrupt::on_signals()?;
        let session = self.common.open::<B>(device)?;
        let kept = cache::needed_to_answer(&session);
        let cache = self.common.cache(self.cache.as_deref(), kept)?;
        let options = self
            .generation
            .options(session.generation.as_ref(), session.architecture()?, true);
        self.generation.warn(&options, self.common.quiet);
        let ask = |image: &str, i: usize| Request {
            image: image.to_string(),
            prompt: prompts[i].clone(),
            question: self.questions[i].clone(),
            options: options.clone(),
        };
        let result = cache::encoded_batches(
            &todo,
            self.batch,
            self.common.quiet,
            &interrupt,
            &session,
            cache.as_ref(),
            |batch, encoded| {
                let (mut rows, mut requests) = (Vec::new(), Vec::new());
                for (row, picture) in batch.iter().enumerate() {
                    let image = picture.path.display().to_string();
                    if let Some(candidates) = &candidates {
                        for (i, question) in self.questions.iter().enumerate() {
                            let ranked = session.rank_encoded(encoded, row, &ask(&image, i), candidates)?;
                            self.print_ranked(&image, question, ranked, named)?;
                        }
                        continue;
                    }
                    for i in open(&image) {
                        rows.push(row);
                        requests.push(ask(&image, i));
                    }
                }
                if requests.is_empty() {
                    return Ok(());
                }
                let answers = session.answer_encoded(encoded, &rows, &requests, &mut session::ignore)?;
                answers.iter().try_for_each(|answer| sink.write(answer))
            },
        );
        sink.sync()?;
        pictures::conclude(&result?, todo.len())
    }
}

impl VqaArgs {
    fn read_candidates(&self) -> Result<Option<Vec<String>>> {
        let Some(path) = &self.candidates else {
            return Ok(None);
        };
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let candidates: Vec<String> = lines.map(str::to_string).collect();
        if candidates.is_empty() {
            bail!("{}: no candidate answers; write one per line", path.display());
        }
        Ok(Some(candidates))
    }

    fn print_ranked(
        &self,
        image: &str,
        question: &str,
        ranked: Vec<RankedAnswer>,
        named: bool,
    ) -> Result<()> {
        if named && !self.common.json {
            output::line(&format!("{image}: {question}"))?;
        }
        for answer in ranked {
            match self.common.json {
                true => output::json(&Ranked {
                    image,
                    question,
                    answer,
                })?,
                false => output::line(&format!("{:9.3}  {}", answer.log_likelihood, answer.text))?,
            }
        }
        Ok(())
    }
}
