//! Parquet shards: a column with encoded pictures and columns of text, as Hugging Face data sets store them.
//!
//! Columns are read a few dozen rows at a time straight from their pages, so memory does not grow with row groups.

mod codec;
mod footer;

use std::collections::VecDeque;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::DataType;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, SerializedFileReader};
use serde::{Deserialize, Serialize};

use super::formats::truth;
use super::sample::{DataError, ImageSource, Problem, Question, Sample, Skipped, weigh_answers};

/// Columns that are looked for.
const COLUMNS: usize = 9;

/// Rows read at a time.
const ROWS: usize = 32;

/// Column names; of each list the first that the file has counts. A structure counts by its `bytes` or first text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ParquetFields {
    /// Encoded pictures. Needed.
    pub image: Vec<String>,
    /// Text or list of texts.
    pub caption: Vec<String>,
    /// Text.
    pub question: Vec<String>,
    /// Text, list of texts, or list of structures with `answer`.
    pub answers: Vec<String>,
    /// Text or number.
    pub question_id: Vec<String>,
    /// Text or number.
    pub image_id: Vec<String>,
    /// Text.
    pub answer_type: Vec<String>,
    /// Text.
    pub question_type: Vec<String>,
    /// Truth value, or number or text of one: whether the captions belong to the picture.
    pub label: Vec<String>,
    /// Largest picture, bytes.
    pub image_bytes: u64,
}

impl Default for ParquetFields {
    fn default() -> Self {
        let list = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
        Self {
            image: list(&["image", "jpg", "png", "image_bytes", "bytes"]),
            caption: list(&["caption", "captions", "text", "TEXT"]),
            question: list(&["question"]),
            answers: list(&["answers", "answer"]),
            question_id: list(&["question_id"]),
            image_id: list(&["image_id", "img_id"]),
            answer_type: list(&["answer_type"]),
            question_type: list(&["question_type"]),
            label: list(&["label"]),
            image_bytes: 64 << 20,
        }
    }
}

/// Values of one column, per row.
type Rows = VecDeque<Vec<Vec<u8>>>;

#[derive(Clone, Copy)]
struct Leaf {
    index: usize,
    max_definition: i16,
    max_repetition: i16,
}

/// Samples of one parquet file, in row order.
pub struct ParquetShard {
    file: Box<dyn FileReader + Send>,
    shard: Arc<str>,
    fields: ParquetFields,
    /// image, caption, question, answers, question_id, image_id, answer_type, question_type, label
    leaves: [Option<Leaf>; COLUMNS],
    group: usize,
    /// Rows of this group still to come, those in `ready` not counted.
    left: u64,
    columns: [Option<ColumnReader>; COLUMNS],
    ready: [Rows; COLUMNS],
    row: u64,
    failed: Option<Problem>,
}

impl ParquetShard {
    /// Opens a file at row `row`.
    pub fn open(path: &Path, fields: &ParquetFields, row: u64) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io(path))?;
        Self::from_reader(file, path, fields, row)
    }

    /// As [`ParquetShard::open`] on any bytes; `path` is for messages.
    pub fn from_reader<R: ChunkReader + 'static>(
        reader: R,
        path: &Path,
        fields: &ParquetFields,
        row: u64,
    ) -> Result<Self, DataError> {
        let failed = |source| DataError::Parquet {
            path: path.to_owned(),
            source,
        };
        footer::check(&reader).map_err(failed)?;
        let file = guarded(|| SerializedFileReader::new(reader)).map_err(failed)?;
        let names = |file: &dyn FileReader| -> Vec<String> {
            file.metadata()
                .file_metadata()
                .schema_descr()
                .columns()
                .iter()
                .map(|c| c.path().string())
                .collect()
        };
        let lists = [
            &fields.image,
            &fields.caption,
            &fields.question,
            &fields.answers,
            &fields.question_id,
            &fields.image_id,
            &fields.answer_type,
            &fields.question_type,
            &fields.label,
        ];
        let leaves = lists.map(|list| list.iter().find_map(|name| leaf(&file, name)));
        if leaves[0].is_none() {
            return Err(DataError::MissingColumn {
                path: PathBuf::from(path),
                column: fields.image.join("` or `"),
                found: names(&file),
            });
        }
        let read: Vec<usize> = leaves.iter().flatten().map(|leaf| leaf.index).collect();
        codec::check(&file, &read, path)?;
        let mut shard = Self {
            file: Box::new(file),
            shard: path.to_string_lossy().into(),
            fields: fields.clone(),
            leaves,
            group: 0,
            left: 0,
            columns: Default::default(),
            ready: Default::default(),
            row,
            failed: None,
        };
        if let Err(source) = guarded(|| shard.seek(row)) {
            shard.stop(&source);
        }
        Ok(shard)
    }

    /// Number of the next row.
    pub fn position(&self) -> u64 {
        self.row
    }

    /// The next sample; `Ok(None)` for one passed over because it is not `wanted`. A damaged page ends the file.
    pub fn next_sample(&mut self, wanted: bool) -> Option<Result<Option<Sample>, Skipped>> {
        if self.ready[0].is_empty()
            && self.failed.is_none()
            && let Err(source) = guarded(|| self.fill())
        {
            self.stop(&source);
        }
        let key = self.row.to_string();
        if self.ready[0].is_empty() {
            let problem = self.failed.take()?;
            (self.group, self.left) = (usize::MAX, 0);
            return Some(Err(Skipped {
                shard: self.shard.clone(),
                key,
                problem,
            }));
        }
        self.row += 1;
        let values = self
            .ready
            .each_mut()
            .map(|rows| rows.pop_front().unwrap_or_default());
        if !wanted {
            return Some(Ok(None));
        }
        let sample = self.sample(key.clone(), values);
        Some(sample.map(Some).map_err(|problem| Skipped {
            shard: self.shard.clone(),
            key,
            problem,
        }))
    }

    fn stop(&mut self, source: &ParquetError) {
        self.ready = Default::default();
        let place = format_args!("row {}", self.row);
        self.failed = Some(Problem::breaks_off(
            place,
            std::io::Error::other(source.to_string()),
        ));
    }

    fn sample(&self, key: String, values: [Vec<Vec<u8>>; COLUMNS]) -> Result<Sample, Problem> {
        let [
            image,
            caption,
            question,
            answers,
            question_id,
            image_id,
            answer_type,
            question_type,
            label,
        ] = values;
        let text = |name: &str, bytes: Vec<u8>| -> Result<String, Problem> {
            Problem::utf8(name, &bytes).map(str::to_owned)
        };
        let texts = |name: &str, list: Vec<Vec<u8>>| -> Result<Vec<String>, Problem> {
            list.into_iter().map(|bytes| text(name, bytes)).collect()
        };
        let one = |name: &str, list: Vec<Vec<u8>>| {
            list.into_iter().next().map(|bytes| text(name, bytes)).transpose()
        };
        let image = image
            .into_iter()
            .next()
            .filter(|b| !b.is_empty())
            .ok_or(Problem::MissingImage)?;
        let (bytes, limit) = (image.len() as u64, self.fields.image_bytes);
        if bytes > limit {
            return Err(Problem::TooLarge {
                member: "image".into(),
                bytes,
                limit,
            });
        }
        let captions = texts("caption", caption)?
            .into_iter()
            .filter(|c| !c.trim().is_empty())
            .collect();
        let answers = texts("answers", answers)?;
        let question_id = one("question_id", question_id)?;
        let answer_type = one("answer_type", answer_type)?;
        let question_type = one("question_type", question_type)?;
        let question = one("question", question)?.map(|text| Question {
            text,
            id: question_id,
            answers: weigh_answers(&answers),
            answer_type,
            question_type,
            ..Question::default()
        });
        Ok(Sample {
            key,
            shard: self.shard.clone(),
            image: ImageSource::Bytes(image),
            captions,
            label: one("label", label)?.and_then(|text| truth(&text.into())),
            question,
            image_id: one("image_id", image_id)?,
            image_index: None,
        })
    }

    /// Goes to `row`: whole groups are passed over by their size, the rest by their pages.
    fn seek(&mut self, row: u64) -> Result<(), ParquetError> {
        let mut before = 0;
        while let Some(rows) = self.group_rows() {
            if before + rows > row {
                self.open_group()?;
                let skip = row - before;
                for column in self.columns.iter_mut().flatten() {
                    skip_records(column, skip as usize)?;
                }
                self.left -= skip;
                return Ok(());
            }
            before += rows;
            self.group += 1;
        }
        Ok(())
    }

    fn group_rows(&self) -> Option<u64> {
        let group = self.file.metadata().row_groups().get(self.group)?;
        Some(u64::try_from(group.num_rows()).unwrap_or(0))
    }

    fn open_group(&mut self) -> Result<(), ParquetError> {
        self.left = self.group_rows().unwrap_or(0);
        let group = self.file.get_row_group(self.group)?;
        for (column, leaf) in self.columns.iter_mut().zip(&self.leaves) {
            *column = leaf.map(|leaf| group.get_column_reader(leaf.index)).transpose()?;
        }
        self.group += 1;
        Ok(())
    }

    fn fill(&mut self) -> Result<(), ParquetError> {
        while self.left == 0 {
            if self.group_rows().is_none() {
                return Ok(());
            }
            self.open_group()?;
        }
        let rows = self.left.min(ROWS as u64) as usize;
        for ((column, leaf), ready) in self.columns.iter_mut().zip(&self.leaves).zip(&mut self.ready) {
            let (Some(column), Some(leaf)) = (column, leaf) else {
                continue;
            };
            *ready = read(column, leaf, rows)?;
            if ready.len() != rows {
                return Err(ParquetError::General(format!(
                    "a column has {} rows where {rows} are due",
                    ready.len()
                )));
            }
        }
        self.left -= rows as u64;
        Ok(())
    }
}

/// The parquet crate panics on some damaged files; here that is an error like any other.
fn guarded<T>(work: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(ParquetError::General("the reader gave up on this file".into())))
}

/// The column called `name`, or the best one inside a structure or list of that name.
fn leaf(file: &dyn FileReader, name: &str) -> Option<Leaf> {
    let columns = file.metadata().file_metadata().schema_descr().columns();
    let inside = format!("{name}.");
    let fits = |kind: Type| matches!(kind, Type::BYTE_ARRAY | Type::BOOLEAN | Type::INT32 | Type::INT64);
    (0..columns.len())
        .filter(|&i| fits(columns[i].physical_type()))
        .filter(|&i| columns[i].path().string() == name || columns[i].path().string().starts_with(&inside))
        .min_by_key(|&i| {
            let path = columns[i].path().parts();
            let last = path.last().map(String::as_str);
            (path.len() > 1 && !matches!(last, Some("bytes" | "answer")), i)
        })
        .map(|index| Leaf {
            index,
            max_definition: columns[index].max_def_level(),
            max_repetition: columns[index].max_rep_level(),
        })
}

fn skip_records(column: &mut ColumnReader, rows: usize) -> Result<(), ParquetError> {
    match column {
        ColumnReader::ByteArrayColumnReader(r) => r.skip_records(rows),
        ColumnReader::BoolColumnReader(r) => r.skip_records(rows),
        ColumnReader::Int32ColumnReader(r) => r.skip_records(rows),
        ColumnReader::Int64ColumnReader(r) => r.skip_records(rows),
        _ => Ok(rows),
    }
    .map(drop)
}

fn read(column: &mut ColumnReader, leaf: &Leaf, rows: usize) -> Result<Rows, ParquetError> {
    match column {
        ColumnReader::ByteArrayColumnReader(r) => records(r, leaf, rows, |v| v.data().to_vec()),
        ColumnReader::BoolColumnReader(r) => records(r, leaf, rows, |v| v.to_string().into_bytes()),
        ColumnReader::Int32ColumnReader(r) => records(r, leaf, rows, |v| v.to_string().into_bytes()),
        ColumnReader::Int64ColumnReader(r) => records(r, leaf, rows, |v| v.to_string().into_bytes()),
        _ => Ok(Rows::new()),
    }
}

/// Reassembles rows from values and levels: repetition 0 starts a row, a definition below the maximum is a null.
fn records<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    leaf: &Leaf,
    rows: usize,
    bytes: impl Fn(&T::T) -> Vec<u8>,
) -> Result<Rows, ParquetError> {
    let (mut definitions, mut repetitions, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let (_, _, levels) =
        reader.read_records(rows, Some(&mut definitions), Some(&mut repetitions), &mut values)?;
    let mut values = values.iter();
    let mut out = Rows::with_capacity(rows);
    for i in 0..levels {
        if leaf.max_repetition == 0 || repetitions.get(i).is_none_or(|&r| r == 0) {
            out.push_back(Vec::new());
        }
        let present = leaf.max_definition == 0 || definitions.get(i) == Some(&leaf.max_definition);
        if let (true, Some(row)) = (present, out.back_mut()) {
            row.extend(values.next().map(&bytes));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
