//! `blip2 match IMAGE|DIR TEXT...`

use std::path::PathBuf;

use anyhow::Result;
use blip2_model::blip2::{ItcScore, ItmScore};
use blip2_model::nn::{Context, Kernels};
use clap::Args;
use serde::Serialize;

use super::cache::Kept;
use super::interrupt::Interrupt;
use super::{CommonArgs, Verb, cache, output, pictures};

/// Arguments of `match`.
#[derive(Debug, Args)]
#[command(after_help = "\
Two scores per pair, never mixed here:
  ITM  logits of [no match, match] from picture and text read together, and their softmax: slow, the better judge
  ITC  largest cosine between a query output of the picture and the text, in [-1, 1]: what an index can hold
`blip2 search` ranks by ITM logit + ITC cosine, as LAVIS does.

Examples:
  blip2 match photo.jpg \"a cat\" \"a dog\" --model Salesforce/blip2-itm-vit-g
  blip2 match photos/ \"a red car\" --batch 8 --json --model Salesforce/blip2-itm-vit-g")]
pub struct MatchArgs {
    /// Picture, or folder to search for them
    #[arg(value_name = "IMAGE|DIR")]
    image: PathBuf,
    /// Texts to compare it with
    #[arg(required = true, value_name = "TEXT")]
    texts: Vec<String>,
    /// Pictures at a time
    #[arg(long, default_value_t = 1, value_name = "N")]
    batch: usize,
    /// Keep encoded pictures in this folder, by content: another text then starts at the Q-Former
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Serialize)]
struct Line<'a> {
    image: &'a str,
    text: &'a str,
    itm: ItmScore,
    itc: ItcScore,
}

impl Verb for MatchArgs {
    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn run<B: Kernels>(&self, device: &B::Device) -> Result<()> {
        let files = pictures::find(std::slice::from_ref(&self.image))?;
        let interrupt = Interrupt::on_signals()?;
        let session = self.common.open::<B>(device)?;
        let ctx = Context::eval();
        let texts = session.tokenize_texts(&self.texts, None)?;
        let count = self.texts.len();
        let cache = self.common.cache(self.cache.as_deref(), Kept::Tokens)?;
        let bad = pictures::in_batches(
            &files,
            self.batch,
            self.common.quiet,
            &interrupt,
            cache::wanted(cache.as_ref()),
            |batch| {
                let (batch, images) = cache::features(&session, cache.as_ref(), batch)?;
                let itc = session.model.itc(&images, &texts, &ctx)?;
                for (row, picture) in batch.iter().enumerate() {
                    let itm = session
                        .model
                        .itm(&images.select(&vec![row; count]), &texts, &ctx)?;
                    let name = picture.path.display().to_string();
                    for ((text, itm), &itc) in self.texts.iter().zip(itm).zip(&itc[row]) {
                        if self.common.json {
                            output::json(&Line {
                                image: &name,
                                text,
                                itm,
                                itc,
                            })?;
                            continue;
                        }
                        let prefix = match files.len() {
                            1 => String::new(),
                            _ => format!("{name}: "),
                        };
                        output::line(&format!(
                            "{prefix}match {:6.2} %   cosine {:+.4}   {text}",
                            100.0 * itm.probability,
                            itc.cosine
                        ))?;
                    }
                }
                Ok(())
            },
        )?;
        pictures::conclude(&bad, files.len())
    }
}
