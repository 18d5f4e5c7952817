//! From scored items to files: `scores.json`, the page with the best and worst cases, whatever else a task writes.

use std::collections::{HashMap, HashSet};
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::imageops::FilterType;
use serde::Serialize;

use super::folder::{self, Record, SkippedSample, read_clocks, read_record};
use super::pictures::{Picture, Pictures};
use super::{RunConfig, RunError, Task, bad};
use crate::eval::results::{self, Id, Report, Score};
use crate::eval::{EvalError, expected, page};

/// Longest side of a picture on the page, pixels.
const THUMBNAIL: u32 = 224;

/// One scored item for the page.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Its picture.
    pub picture: Id,
    /// The question, for VQA.
    pub question: Option<String>,
    /// What the model said.
    pub prediction: String,
    /// What people said.
    pub references: Vec<String>,
    /// What cases are sorted by.
    pub score: f64,
}

/// What a task hands over when it is done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Finished {
    /// Items predicted.
    pub items: usize,
    /// The figures.
    pub scores: Vec<Score>,
    /// Items for the page.
    pub cases: Vec<Case>,
    /// Meaning of the cases' scores.
    pub sorted_by: &'static str,
    /// For people: what a reader of the figures has to know.
    pub notes: Vec<String>,
}

/// Writes into the folder of an evaluation.
pub struct Publisher {
    folder: PathBuf,
    skipped: HashSet<Id>,
}

impl Publisher {
    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a JSON file.
    pub fn write<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<(), RunError> {
        Ok(results::write(&self.folder.join(name), value)?)
    }

    /// Items without those whose picture could not be read.
    pub fn complete<'a>(
        &self,
        items: impl Iterator<Item = (&'a Picture, &'a Id)>,
    ) -> Result<Vec<(&'a Picture, &'a Id)>, RunError> {
        let kept: Vec<_> = items
            .filter(|(picture, _)| !self.skipped.contains(&picture.id))
            .collect();
        if kept.is_empty() {
            return Err(EvalError::Empty.into());
        }
        Ok(kept)
    }

    /// Whether a picture could not be read.
    pub fn is_skipped(&self, picture: &Id) -> bool {
        self.skipped.contains(picture)
    }

    /// An error unless everything is done.
    pub fn all_done(&self, done: usize, total: usize) -> Result<(), RunError> {
        match done == total {
            true => Ok(()),
            false => Err(RunError::Incomplete {
                folder: self.folder.clone(),
                done,
                total,
            }),
        }
    }
}

/// Scores a folder whose processes are done, and writes `predictions.json`, `scores.json` and `index.html`.
///
/// Needs the data set (for references and pictures), not the model. At most the share `max_bad` of the samples may be bad.
pub fn finish(
    folder: &Path,
    recipe: Option<String>,
    threads: usize,
    cases: usize,
    max_bad: f64,
) -> Result<(Report, Vec<String>), RunError> {
    bad::check_share(max_bad)?;
    let record = read_record(folder)?;
    let config: RunConfig =
        serde_json::from_value(record.config.clone()).map_err(EvalError::json(&folder.join("run.json")))?;
    let pictures = Pictures::open(&config.data, &config.select, threads).map_err(|error| match error {
        RunError::Data(source) => RunError::DataGone {
            folder: folder.to_path_buf(),
            source,
        },
        other => other,
    })?;
    let now = Record {
        data_sha256: pictures.sha256.clone(),
        state_sha256: pictures.state_sha256.clone(),
        ..record.clone()
    };
    if let Some(what) = now.difference(&record) {
        return Err(RunError::OtherRun {
            folder: folder.to_path_buf(),
            what,
        });
    }
    let bad = bad_samples(folder, &pictures)?;
    let unreadable: HashSet<Id> = bad
        .iter()
        .filter(|sample| !sample.text)
        .map(|sample| sample.image_id.clone())
        .collect();
    bad::check(&pictures, unreadable.len(), max_bad, || {
        bad.last().map_or(String::new(), SkippedSample::to_string)
    })?;
    let mut publisher = Publisher {
        folder: folder.to_path_buf(),
        skipped: unreadable,
    };
    let start = std::time::Instant::now();
    let mut finished = match &config.task {
        Task::Caption(task) => task.finish(&pictures, &mut publisher)?,
        Task::Retrieval(task) => task.finish(&pictures, &mut publisher)?,
        Task::Vqa(task) => task.finish(&pictures, &mut publisher)?,
        Task::Itm(task) => task.finish(&pictures, &mut publisher)?,
    };
    let recipe = recipe
        .or(config.recipe.clone())
        .unwrap_or_else(|| pictures.name().to_owned());
    expected::annotate(&recipe, finished.items, &mut finished.scores);
    let (seconds, processes) = read_clocks(folder)?;
    let report = report(
        &record,
        &config,
        recipe,
        &finished,
        bad.len(),
        processes,
        seconds + start.elapsed().as_secs_f64(),
    )?;
    publisher.write("scores.json", &report)?;
    let (best, worst) = extremes(&pictures, &finished, threads, cases)?;
    let html = page::html(&report, &bad, &best, &worst);
    results::write_bytes(&folder.join("index.html"), html.as_bytes())?;
    Ok((report, finished.notes))
}

/// All samples that are left out: those without usable text, then the unreadable pictures.
fn bad_samples(folder: &Path, pictures: &Pictures) -> Result<Vec<SkippedSample>, RunError> {
    let texts = pictures
        .skipped
        .iter()
        .map(|(number, sample)| SkippedSample::of_text(*number, sample));
    Ok(texts.chain(folder::unreadable(folder)?).collect())
}

fn report(
    record: &Record,
    config: &RunConfig,
    recipe: String,
    finished: &Finished,
    skipped: usize,
    processes: usize,
    wall_seconds: f64,
) -> Result<Report, RunError> {
    let text = serde_json::to_vec(&record.config).map_err(EvalError::json(Path::new("run.json")))?;
    Ok(Report {
        task: config.task.name().to_owned(),
        recipe,
        version: record.version.clone(),
        config_sha256: results::sha256(&text),
        model_sha256: record.model_sha256.clone(),
        data_sha256: record.data_sha256.clone(),
        items: finished.items,
        processes,
        wall_seconds,
        skipped,
        config: record.config.clone(),
        scores: finished.scores.clone(),
    })
}

/// The best and worst cases with their pictures.
fn extremes(
    pictures: &Pictures,
    finished: &Finished,
    threads: usize,
    count: usize,
) -> Result<(Vec<page::Case>, Vec<page::Case>), RunError> {
    let scores: Vec<f64> = finished.cases.iter().map(|case| case.score).collect();
    let chosen = page::extremes(&scores, count);
    let position: HashMap<&Id, usize> = pictures
        .list
        .iter()
        .enumerate()
        .map(|(at, p)| (&p.id, at))
        .collect();
    let case = |at: &usize| &finished.cases[*at];
    let mut wanted: Vec<usize> = chosen
        .best
        .iter()
        .chain(&chosen.worst)
        .filter_map(|at| position.get(&case(at).picture).copied())
        .collect();
    wanted.sort_unstable();
    wanted.dedup();
    let mut thumbnails: HashMap<&Id, Vec<u8>> = HashMap::new();
    for item in pictures.stream(&wanted, threads, |image| Ok(thumbnail(image)))? {
        let (at, png) = item?;
        thumbnails.insert(&pictures.list[at].id, png.unwrap_or_default());
    }
    let on_page = |at: &usize| {
        let case = case(at);
        page::Case {
            id: case.picture.to_string(),
            thumbnail_png: thumbnails.get(&case.picture).cloned().unwrap_or_default(),
            question: case.question.clone(),
            prediction: case.prediction.clone(),
            references: case.references.clone(),
            score: case.score,
        }
    };
    Ok((
        chosen.best.iter().map(on_page).collect(),
        chosen.worst.iter().map(on_page).collect(),
    ))
}

/// PNG of at most [`THUMBNAIL`] pixels a side; empty if that fails, as a page without a picture is still a page.
fn thumbnail(image: image::RgbImage) -> Vec<u8> {
    let image = image::DynamicImage::from(image);
    let small = match image.width().max(image.height()) > THUMBNAIL {
        true => image.resize(THUMBNAIL, THUMBNAIL, FilterType::Triangle),
        false => image,
    };
    let mut png = Cursor::new(Vec::new());
    match small.write_to(&mut png, image::ImageFormat::Png) {
        Ok(()) => png.into_inner(),
        Err(_) => Vec::new(),
    }
}
