//! `blip2 caption IMAGES|DIR`

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use blip2_model::nn::Kernels;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{CommonArgs, GenerationArgs, Verb};
use crate::{Request, Session};
use blip2_model::session::Answer;

/// Arguments of `caption`.
#[derive(Debug, Args)]
pub struct CaptionArgs {
    /// Pictures, or folders to search for them
    #[arg(required = true, value_name = "IMAGES|DIR")]
    images: Vec<PathBuf>,
    /// Beginning of the caption
    #[arg(long, default_value = "")]
    prompt: String,
    /// Pictures at a time
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Append one JSON line per picture to this file instead of printing; pictures that it has are skipped
    #[arg(long, value_name = "FILE.jsonl")]
    out: Option<PathBuf>,
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
        let done = self.out.as_deref().map(finished).transpose()?.unwrap_or_default();
        let mut files = picture_files(&self.images)?;
        files.retain(|file| !done.contains(&file.display().to_string()));
        let session = self.common.open::<B>(device)?;
        let options = self
            .generation
            .options(session.generation.as_ref(), session.architecture()?, false);
        let mut sink = match &self.out {
            Some(path) => Some(
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)
                    .with_context(|| path.display().to_string())?,
            ),
            None => None,
        };
        let bar = progress(files.len() as u64, self.common.quiet);
        let mut bad = Vec::new();
        for chunk in files.chunks(self.batch.max(1)) {
            let (mut images, mut requests) = (Vec::new(), Vec::new());
            for file in chunk {
                match Session::<B>::read_image(file) {
                    Ok(image) => {
                        images.push(image);
                        requests.push(Request {
                            image: file.display().to_string(),
                            prompt: self.prompt.clone(),
                            options: options.clone(),
                        });
                    }
                    Err(error) => bad.push((file.clone(), error)),
                }
            }
            if !images.is_empty() {
                for answer in session.answer(&images, &requests)? {
                    self.print(&answer, sink.as_mut(), files.len() > 1)?;
                }
            }
            bar.inc(chunk.len() as u64);
        }
        bar.finish_and_clear();
        for (file, error) in &bad {
            eprintln!("skipped {}: {error:#}", file.display());
        }
        if bad.len() == files.len() && !bad.is_empty() {
            bail!("none of the {} pictures could be read", bad.len());
        }
        Ok(())
    }
}

impl CaptionArgs {
    fn print(&self, answer: &Answer, sink: Option<&mut std::fs::File>, name: bool) -> Result<()> {
        if let Some(sink) = sink {
            // one write per line, so that a run that is cut off leaves whole lines behind
            let line = format!("{}\n", serde_json::to_string(answer)?);
            return Ok(sink.write_all(line.as_bytes())?);
        }
        if self.common.json {
            println!("{}", serde_json::to_string(answer)?);
            return Ok(());
        }
        for output in &answer.outputs {
            match name {
                true => println!("{}: {}", answer.image, output.text),
                false => println!("{}", output.text),
            }
        }
        Ok(())
    }
}

/// Pictures that an earlier run wrote; a cut-off last line does not count.
fn finished(path: &Path) -> Result<HashSet<String>> {
    let Ok(file) = std::fs::File::open(path) else {
        return Ok(HashSet::new());
    };
    let mut names = HashSet::new();
    for line in BufReader::new(file).lines() {
        let value: Option<serde_json::Value> = serde_json::from_str(&line?).ok();
        if let Some(name) = value.as_ref().and_then(|v| v["image"].as_str()) {
            names.insert(name.to_string());
        }
    }
    Ok(names)
}

/// Files as given, folders searched recursively in order of name.
pub(super) fn picture_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let before = files.len();
        let mut pending = vec![path.clone()];
        while let Some(folder) = pending.pop() {
            let mut entries: Vec<PathBuf> = std::fs::read_dir(&folder)
                .with_context(|| folder.display().to_string())?
                .map(|entry| entry.map(|e| e.path()))
                .collect::<Result<_, _>>()?;
            entries.sort();
            for entry in entries {
                let known = entry.extension().and_then(|e| e.to_str()).is_some_and(|e| {
                    ["jpg", "jpeg", "png", "webp"].contains(&e.to_ascii_lowercase().as_str())
                });
                if entry.is_dir() {
                    pending.push(entry);
                } else if known {
                    files.push(entry);
                }
            }
        }
        if files.len() == before {
            bail!("{}: no jpg, png or webp pictures in this folder", path.display());
        }
    }
    Ok(files)
}

fn progress(total: u64, quiet: bool) -> ProgressBar {
    use std::io::IsTerminal;
    if quiet || total < 2 || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} pictures, {per_sec}, {eta} left");
    ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
