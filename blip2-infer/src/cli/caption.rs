//! `blip2 caption IMAGES|DIR`

use std::path::PathBuf;

use anyhow::Result;
use blip2_model::nn::Kernels;
use blip2_model::session;
use clap::Args;

use super::interrupt::Interrupt;
use super::sink::{Sink, check_sidecars, sidecar};
use super::{CommonArgs, GenerationArgs, Verb, cache, pictures};
use crate::Request;

/// Arguments of `caption`.
#[derive(Debug, Args)]
#[command(after_help = "\
Folders are searched recursively, in order of name, and captions come in that order. A run with --out that was
stopped (Ctrl-C finishes the batch under way, exit code 130) or cut off goes on where it was when it is started
again. Files that cannot be read are named at the end; they do not stop the run.

Examples:
  blip2 caption photo.jpg
  blip2 caption photos/ --batch 8 --out captions.csv
  blip2 caption photos/ --out sidecar --prompt \"a photo of\"
  blip2 caption photo.jpg --num-beams 5 --num-return-sequences 3 --json")]
pub struct CaptionArgs {
    /// Pictures, or folders to search for them
    #[arg(required = true, value_name = "IMAGES|DIR")]
    images: Vec<PathBuf>,
    /// Beginning of the caption
    #[arg(long, default_value = "")]
    prompt: String,
    /// Pictures at a time
    #[arg(long, default_value_t = 1, value_name = "N")]
    batch: usize,
    /// Write to FILE.jsonl or FILE.csv, or to a .txt beside each picture (`sidecar`), instead of stdout; pictures that are
    /// there already are skipped
    #[arg(long, value_name = "FILE.jsonl|FILE.csv|sidecar")]
    out: Option<PathBuf>,
    /// Keep encoded pictures in this folder, by content: another prompt then starts at the language model
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    common: CommonArgs,
}

impl Verb for CaptionArgs {
    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn run<B: Kernels>(&self, device: &B::Device) -> Result<()> {
        let mut files = pictures::find(&self.images)?;
        let found = files.len();
        let (mut sink, finished) = Sink::open(self.out.as_deref(), self.common.json, found > 1)?;
        files.retain(|file| !finished.has(&file.display().to_string(), &self.prompt));
        if let Sink::Sidecar = sink {
            check_sidecars(&files)?;
            files.retain(|file| !sidecar(file).exists());
        }
        if files.len() < found && !self.common.quiet {
            eprintln!(
                "{} of {found} pictures have a caption already",
                found - files.len()
            );
        }
        if files.is_empty() {
            return Ok(());
        }
        let interrupt = Interrupt::on_signals()?;
        let session = self.common.open::<B>(device)?;
        let kept = cache::needed_to_answer(&session);
        let cache = self.common.cache(self.cache.as_deref(), kept)?;
        let options = self
            .generation
            .options(session.generation.as_ref(), session.architecture()?, false);
        self.generation.warn(&options, self.common.quiet);
        let result = cache::encoded_batches(
            &files,
            self.batch,
            self.common.quiet,
            &interrupt,
            &session,
            cache.as_ref(),
            |batch, encoded| {
                let requests: Vec<Request> = batch
                    .iter()
                    .map(|picture| Request {
                        image: picture.path.display().to_string(),
                        prompt: self.prompt.clone(),
                        question: String::new(),
                        options: options.clone(),
                    })
                    .collect();
                let rows: Vec<usize> = (0..requests.len()).collect();
                let answers = session.answer_encoded(encoded, &rows, &requests, &mut session::ignore)?;
                answers.iter().try_for_each(|answer| sink.write(answer))
            },
        );
        sink.sync()?;
        pictures::conclude(&result?, files.len())
    }
}
