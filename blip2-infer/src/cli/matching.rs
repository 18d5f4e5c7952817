//! `blip2 match IMAGE TEXT...`

use std::path::PathBuf;

use anyhow::Result;
use blip2_model::blip2::ImageFeatures;
use blip2_model::blip2::conditional::select_rows;
use blip2_model::blip2::{ItcScore, ItmScore};
use blip2_model::nn::{Context, Kernels};
use burn::tensor::Tensor;
use clap::Args;
use serde::Serialize;

use super::{CommonArgs, Verb};
use crate::Session;

/// Arguments of `match`.
#[derive(Debug, Args)]
pub struct MatchArgs {
    /// Picture
    image: PathBuf,
    /// Texts to compare it with
    #[arg(required = true)]
    texts: Vec<String>,
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
        let picture = Session::<B>::read_image(&self.image)?;
        let session = self.common.open::<B>(device)?;
        let ctx = Context::eval();
        let image = session.encode(&[picture], &ctx)?;
        let texts = session.tokenize_texts(&self.texts, None)?;
        let itc = session.model.itc(&image, &texts, &ctx)?;
        let rows = vec![0; self.texts.len()];
        let index: Vec<i64> = vec![0; self.texts.len()];
        let repeated = ImageFeatures {
            embeds: select_rows(image.embeds, &rows),
            keys: image.keys.select(Tensor::from_data(index.as_slice(), device)),
        };
        let itm = session.model.itm(&repeated, &texts, &ctx)?;
        let name = self.image.display().to_string();
        for ((text, itm), itc) in self.texts.iter().zip(itm).zip(itc.into_iter().flatten()) {
            match self.common.json {
                true => println!(
                    "{}",
                    serde_json::to_string(&Line {
                        image: &name,
                        text,
                        itm,
                        itc
                    })?
                ),
                false => println!(
                    "match {:6.2} %   cosine {:+.4}   {text}",
                    100.0 * itm.probability,
                    itc.cosine
                ),
            }
        }
        Ok(())
    }
}
