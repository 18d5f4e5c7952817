//! `blip2 search "TEXT" --images DIR`: contrastive shortlist from an index, re-ranked by the matching head
//! (`compute_sim_matrix` of LAVIS: ITM logit of "match" plus ITC cosine).

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use blip2_model::blip2::retrieval::first_token;
use blip2_model::blip2::{ItcScore, ItmScore};
use blip2_model::nn::{Context, Kernels};
use clap::Args;
use serde::Serialize;

use super::cache::Kept;
use super::index::Index;
use super::interrupt::Interrupt;
use super::{CommonArgs, Verb, cache, output, pictures, sink};
use crate::Session;

/// Arguments of `search`.
#[derive(Debug, Args)]
#[command(after_help = "\
Every picture of the folder is embedded once; the vectors are kept in an index, so that the next search costs one text.
New, changed, moved and deleted files are noticed. The order is that of the paper's retrieval: the largest cosine over
the query outputs gives a shortlist, and its best pictures are ordered by
  score = ITM logit of \"match\" + ITC cosine
Files that cannot be read are named at the end.

Examples:
  blip2 search \"a dog on a beach\" --images photos/ --model Salesforce/blip2-itm-vit-g
  blip2 search \"sunset\" --images photos/ --top 50 --rerank 0 --json
  blip2 search \"a red car\" --images photos/ --html found.html")]
pub struct SearchArgs {
    /// What to look for
    text: String,
    /// Folder of pictures, searched recursively
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Number of results
    #[arg(long, default_value_t = 10, value_name = "N")]
    top: usize,
    /// Re-rank this many of the shortlist with the matching head, which encodes them anew unless --cache has them; 0 leaves it out
    #[arg(long, default_value_t = 16, value_name = "K")]
    rerank: usize,
    /// Index file; default: .blip2-index.safetensors in the folder
    #[arg(long, value_name = "FILE.safetensors")]
    index: Option<PathBuf>,
    /// Write a page that shows the results
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
    /// Pictures at a time
    #[arg(long, default_value_t = 8, value_name = "N")]
    batch: usize,
    /// Keep encoded pictures in this folder, by content
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

/// One result.
#[derive(Serialize)]
struct Hit {
    rank: usize,
    image: String,
    text: String,
    /// What the order is by: with re-ranking ITM logit + cosine, without the cosine.
    score: f32,
    itc: ItcScore,
    itm: Option<ItmScore>,
}

impl Verb for SearchArgs {
    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn run<B: Kernels>(&self, device: &B::Device) -> Result<()> {
        if !self.images.is_dir() {
            bail!("--images {}: not a folder", self.images.display());
        }
        let files = pictures::find(std::slice::from_ref(&self.images))?;
        let interrupt = Interrupt::on_signals()?;
        let session = self.common.open::<B>(device)?;
        let ctx = Context::eval();
        // first, so that a checkpoint that cannot search is told before the work
        let tokens = session.tokenize_texts(std::slice::from_ref(&self.text), None)?;
        let text = session.model.embed_texts(&tokens, &ctx)?.projected;
        let text =
            text.context("this checkpoint has no contrastive projection; use one such as blip2-itm-vit-g")?;
        let text: Vec<f32> = first_token(text).into_data().convert::<f32>().into_vec()?;
        let model = self.common.model_hash()?;
        let cache = self.common.cache(self.cache.as_deref(), Kept::Queries)?;
        let mut index = Index::open(&self.images, self.index.as_deref(), &model);
        let quiet = self.common.quiet;
        let (changes, mut bad) =
            index.update(&files, &session, cache.as_ref(), self.batch, quiet, &interrupt)?;
        if !quiet {
            eprintln!(
                "index of {} pictures: {} embedded now, {} known by content, {} gone",
                index.len(),
                changes.embedded,
                changes.known,
                changes.removed
            );
        }
        let found = index.search(&text)?;
        let hits = self.ranked(&session, found, &interrupt, &mut bad)?;
        for hit in &hits {
            if self.common.json {
                output::json(hit)?;
                continue;
            }
            let itm = hit.itm.map_or(String::new(), |itm| {
                format!("match {:6.2} %  ", 100.0 * itm.probability)
            });
            output::line(&format!(
                "{:3}  {itm}cosine {:+.4}  {}",
                hit.rank, hit.itc.cosine, hit.image
            ))?;
        }
        if let Some(path) = &self.html {
            sink::replace(path, &page(&self.text, &hits))?;
        }
        pictures::conclude(&bad, files.len())
    }
}

impl SearchArgs {
    /// The best of the shortlist in their final order: re-ranked ones before the others.
    fn ranked<B: Kernels>(
        &self,
        session: &Session<B>,
        found: Vec<(f32, PathBuf)>,
        interrupt: &Interrupt,
        bad: &mut Vec<pictures::Bad>,
    ) -> Result<Vec<Hit>> {
        let can_match = session.model.bridge.itm_head.is_some();
        if self.rerank > 0 && !can_match && !self.common.quiet {
            eprintln!("note: this checkpoint has no matching head; the order is that of the cosines");
        }
        let shortlist = if can_match {
            self.rerank.min(found.len())
        } else {
            0
        };
        let hit = |cosine: f32, image: &Path, itm: Option<ItmScore>| Hit {
            rank: 0,
            image: image.display().to_string(),
            text: self.text.clone(),
            score: itm.map_or(cosine, |itm| itm.logits[1] + cosine),
            itc: ItcScore { cosine },
            itm,
        };
        let ctx = Context::eval();
        let cache = self.common.cache(self.cache.as_deref(), Kept::Tokens)?;
        let files: Vec<PathBuf> = found[..shortlist].iter().map(|(_, file)| file.clone()).collect();
        let mut hits = Vec::new();
        let skipped = pictures::in_batches(
            &files,
            self.batch,
            true,
            interrupt,
            cache::wanted(cache.as_ref()),
            |batch| {
                let (batch, images) = cache::features(session, cache.as_ref(), batch)?;
                let texts = session.tokenize_texts(&vec![self.text.clone(); batch.len()], None)?;
                for (picture, itm) in batch.iter().zip(session.model.itm(&images, &texts, &ctx)?) {
                    let cosine = found.iter().find(|(_, file)| *file == picture.path);
                    let cosine = cosine.map_or(f32::NAN, |(cosine, _)| *cosine);
                    hits.push(hit(cosine, &picture.path, Some(itm)));
                }
                Ok(())
            },
        )?;
        bad.extend(skipped);
        hits.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.image.cmp(&b.image)));
        let rest = found[shortlist..].iter();
        hits.extend(rest.map(|(cosine, file)| hit(*cosine, file, None)));
        hits.truncate(self.top);
        for (i, hit) in hits.iter_mut().enumerate() {
            hit.rank = i + 1;
        }
        Ok(hits)
    }
}

/// A page with the pictures in their order; it refers to the files where they are.
fn page(text: &str, hits: &[Hit]) -> String {
    let title = escape(text);
    let mut out = format!(
        "<!doctype html><meta charset=\"utf-8\"><title>{title}</title>\n<style>body{{font:14px sans-serif}}figure{{\
         display:inline-block;width:220px;margin:8px;vertical-align:top}}img{{max-width:220px;max-height:220px}}\
         </style>\n<h1>{title}</h1>\n"
    );
    for hit in hits {
        let path = std::fs::canonicalize(&hit.image).unwrap_or_else(|_| PathBuf::from(&hit.image));
        let itm = hit.itm.map_or(String::new(), |itm| {
            format!("match {:.1} %, ", 100.0 * itm.probability)
        });
        let _ = writeln!(
            out,
            "<figure><img src=\"file://{}\" loading=\"lazy\" alt=\"\"><figcaption>{}. {itm}cosine {:.3}<br>{}\
             </figcaption></figure>",
            url(&path.display().to_string()),
            hit.rank,
            hit.itc.cosine,
            escape(&hit.image)
        );
    }
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A path in an address: everything but letters, digits and `/._-~` as `%XX`.
fn url(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-~".contains(&b);
    path.bytes().fold(String::new(), |mut out, b| {
        match plain(b) {
            true => out.push(char::from(b)),
            false => {
                let _ = write!(out, "%{b:02X}");
            }
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_escapes_names_and_texts() {
        let hit = Hit {
            rank: 1,
            image: "no such/<b> ü.png".into(),
            text: String::new(),
            score: 0.0,
            itc: ItcScore { cosine: 0.25 },
            itm: None,
        };
        let page = page("\"<script>\"", &[hit]);
        assert!(!page.contains("<script>") && !page.contains("<b>"), "{page}");
        assert!(page.contains("%3Cb%3E%20%C3%BC.png"), "{page}");
    }
}
