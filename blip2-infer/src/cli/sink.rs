//! Where captions and answers go: stdout, a JSON-lines or CSV file that a later run continues, or a text file
//! beside each picture. Every record is written whole, so that a run that is cut off leaves whole records behind.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use blip2_model::atomic;
use blip2_model::session::Answer;

use super::output;

/// What `--out` means.
pub(super) enum Sink {
    /// Text or JSON on stdout.
    Stdout {
        /// JSON.
        json: bool,
        /// Whether lines begin with the name of the picture.
        name: bool,
    },
    /// One JSON object per line.
    JsonLines(File),
    /// One row per text.
    Csv(File),
    /// `photo.txt` beside `photo.jpg`, one line per text.
    Sidecar,
}

/// Columns of the CSV file.
const COLUMNS: [&str; 6] = ["image", "prompt", "rank", "text", "score", "stop"];

/// Pictures with their prompts that an earlier run has written.
#[derive(Default)]
pub(super) struct Finished(HashSet<(String, String)>);

impl Finished {
    pub fn has(&self, image: &str, prompt: &str) -> bool {
        self.0.contains(&(image.to_string(), prompt.to_string()))
    }
}

impl Sink {
    /// Opens the target and says what it has already. A record that was cut off is removed.
    pub fn open(out: Option<&Path>, json: bool, name: bool) -> Result<(Self, Finished)> {
        let Some(out) = out else {
            return Ok((Self::Stdout { json, name }, Finished::default()));
        };
        if out.as_os_str() == "sidecar" {
            return Ok((Self::Sidecar, Finished::default()));
        }
        let ending = out.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let (csv, lines) = (ending == "csv", ["jsonl", "ndjson", "json"].contains(&ending));
        if !csv && !lines {
            bail!(
                "--out {}: unknown kind of file; use a name that ends in .jsonl or .csv, or the word `sidecar` for a \
                 .txt beside each picture",
                out.display()
            );
        }
        let name = || out.display().to_string();
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(out)
            .with_context(name)?;
        let text = whole_lines(&mut file).with_context(name)?;
        let finished = match csv {
            true => finished_csv(&text).with_context(name)?,
            false => finished_lines(&text),
        };
        if csv && text.is_empty() {
            file.write_all(row(&COLUMNS.map(String::from))?.as_bytes())
                .with_context(name)?;
        }
        let sink = if csv {
            Self::Csv(file)
        } else {
            Self::JsonLines(file)
        };
        Ok((sink, finished))
    }

    /// Writes one answer.
    pub fn write(&mut self, answer: &Answer) -> Result<()> {
        match self {
            Self::Stdout { json: true, .. } => output::json(answer),
            Self::Stdout { name, .. } => answer.outputs.iter().try_for_each(|text| {
                if text.text.is_empty() {
                    eprintln!(
                        "{}: the model ended at once; try --min-new-tokens 1 or another --prompt",
                        answer.image
                    );
                }
                match name {
                    true => output::line(&format!("{}: {}", answer.image, text.text)),
                    false => output::line(&text.text),
                }
            }),
            Self::JsonLines(file) => {
                let line = format!("{}\n", serde_json::to_string(answer)?);
                Ok(file.write_all(line.as_bytes())?)
            }
            Self::Csv(file) => {
                let mut rows = String::new();
                for (rank, output) in answer.outputs.iter().enumerate() {
                    rows += &row(&[
                        answer.image.clone(),
                        answer.prompt.clone(),
                        rank.to_string(),
                        one_line(&output.text),
                        output.score.to_string(),
                        output.stop.to_string(),
                    ])?;
                }
                Ok(file.write_all(rows.as_bytes())?)
            }
            Self::Sidecar => {
                let texts: Vec<String> = answer.outputs.iter().map(|o| one_line(&o.text)).collect();
                let path = sidecar(Path::new(&answer.image));
                replace(&path, &format!("{}\n", texts.join("\n")))
            }
        }
    }

    /// Makes sure that everything written is on the disk.
    pub fn sync(&self) -> Result<()> {
        match self {
            Self::JsonLines(file) | Self::Csv(file) => Ok(file.sync_all()?),
            Self::Stdout { .. } | Self::Sidecar => Ok(()),
        }
    }
}

/// The text file beside a picture.
pub(super) fn sidecar(image: &Path) -> PathBuf {
    image.with_extension("txt")
}

/// Refuses pictures that would share a text file, such as `a.jpg` and `a.png`.
pub(super) fn check_sidecars(files: &[PathBuf]) -> Result<()> {
    let mut owners = HashMap::new();
    for file in files {
        if let Some(other) = owners.insert(sidecar(file), file) {
            bail!(
                "{} and {} would share {}; rename one, or use --out FILE.jsonl",
                other.display(),
                file.display(),
                sidecar(file).display()
            );
        }
    }
    Ok(())
}

/// Writes a file whole or not at all.
pub(super) fn replace(path: &Path, text: &str) -> Result<()> {
    atomic::write(path, text.as_bytes()).with_context(|| path.display().to_string())
}

/// The file's text up to its last line end, what follows being cut away.
fn whole_lines(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    let end = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
    if end < bytes.len() {
        file.set_len(end as u64)?;
        bytes.truncate(end);
    }
    Ok(String::from_utf8(bytes)?)
}

fn finished_lines(text: &str) -> Finished {
    let values = text.lines().filter_map(|line| serde_json::from_str(line).ok());
    let keys = values.filter_map(|value: serde_json::Value| {
        let field = |name: &str| value[name].as_str().map(str::to_string);
        Some((field("image")?, field("prompt").unwrap_or_default()))
    });
    Finished(keys.collect())
}

fn finished_csv(text: &str) -> Result<Finished> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    if !text.is_empty() && reader.headers()?.iter().ne(COLUMNS) {
        bail!(
            "has other columns than {}; choose another file",
            COLUMNS.join(",")
        );
    }
    let mut keys = HashSet::new();
    for record in reader.records() {
        let record = record?;
        let field = |i: usize| record.get(i).unwrap_or_default().to_string();
        keys.insert((field(0), field(1)));
    }
    Ok(Finished(keys))
}

fn row(fields: &[String]) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(fields)?;
    Ok(String::from_utf8(
        writer.into_inner().map_err(|e| e.into_error())?,
    )?)
}

/// A text without line ends: a record is one line.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use blip2_model::session::{Output, Timing};

    fn answer(image: &str, texts: &[&str]) -> Answer {
        let output = |text: &&str| Output {
            text: text.to_string(),
            token_ids: vec![1],
            score: -0.5,
            stop: "eos",
        };
        Answer {
            image: image.into(),
            prompt: "a \"photo\", of".into(),
            outputs: texts.iter().map(output).collect(),
            timing_ms: Timing::default(),
        }
    }

    #[test]
    fn a_cut_off_record_is_removed_and_whole_ones_count() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["out.jsonl", "out.csv"] {
            let path = dir.path().join(name);
            let (mut sink, _) = Sink::open(Some(&path), false, true).unwrap();
            sink.write(&answer("a,b.png", &["one", "two\nlines"])).unwrap();
            let whole = std::fs::read_to_string(&path).unwrap();
            OpenOptions::new()
                .append(true)
                .open(&path)
                .unwrap()
                .write_all(b"{\"image\":\"c.png")
                .unwrap();
            let (mut sink, finished) = Sink::open(Some(&path), false, true).unwrap();
            assert!(finished.has("a,b.png", "a \"photo\", of"), "{name}");
            assert!(
                !finished.has("a,b.png", "") && !finished.has("c.png", ""),
                "{name}"
            );
            assert_eq!(std::fs::read_to_string(&path).unwrap(), whole, "{name}");
            sink.write(&answer("c.png", &["three"])).unwrap();
            let all = std::fs::read_to_string(&path).unwrap();
            assert!(all.starts_with(&whole) && all.contains("three"), "{name}: {all}");
        }
        let csv = std::fs::read_to_string(dir.path().join("out.csv")).unwrap();
        assert_eq!(csv.lines().next(), Some("image,prompt,rank,text,score,stop"));
        assert!(
            csv.contains("\"a,b.png\",\"a \"\"photo\"\", of\",1,two lines,-0.5,eos"),
            "{csv}"
        );
    }

    #[test]
    fn foreign_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.csv");
        std::fs::write(&path, "a,b\n1,2\n").unwrap();
        assert!(Sink::open(Some(&path), false, true).is_err());
        assert!(Sink::open(Some(&dir.path().join("x.txt")), false, true).is_err());
        let pair = ["d/a.jpg", "d/a.png"].map(PathBuf::from);
        let error = check_sidecars(&pair).unwrap_err().to_string();
        assert!(error.contains("d/a.txt"), "{error}");
    }
}
