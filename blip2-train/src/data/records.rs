//! Rows of an annotation file, one at a time: JSON array or object, JSON lines, CSV, TSV.
//!
//! A row that does not parse is handed on as a problem of its own; only a file that is none of these is an error.

use std::borrow::Cow;
use std::path::Path;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::sample::{DataError, Problem};

/// Mark of UTF-8 that some editors put in front.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// How rows are laid out in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// An array of objects, or an object of objects whose key becomes `sample_id`.
    Json,
    /// One object a line.
    JsonLines,
    /// Header line, then comma-separated values.
    Csv,
    /// Header line, then tab-separated values.
    Tsv,
}

impl Container {
    /// By file extension; `None` for anything else.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "json" => Some(Self::Json),
            "jsonl" | "ndjson" => Some(Self::JsonLines),
            "csv" => Some(Self::Csv),
            "tsv" => Some(Self::Tsv),
            _ => None,
        }
    }
}

/// One row as an object.
pub type Row = Map<String, Value>;

/// Calls `each` with every row of `bytes`; `path` is for messages.
pub fn for_each_row(
    bytes: &[u8],
    container: Container,
    path: &Path,
    each: &mut dyn FnMut(Result<Row, Problem>),
) -> Result<(), DataError> {
    match container {
        Container::Json => json(bytes, path, each),
        Container::JsonLines => {
            for line in without_bom(bytes)
                .split(|&b| b == b'\n')
                .filter(|l| !l.iter().all(u8::is_ascii_whitespace))
            {
                each(json_line(line));
            }
            Ok(())
        }
        Container::Csv => separated(bytes, b',', path, each),
        Container::Tsv => separated(bytes, b'\t', path, each),
    }
}

fn bad_row(reason: impl ToString) -> Problem {
    Problem::BadRecord {
        member: "row".into(),
        reason: reason.to_string(),
    }
}

fn json_line(line: &[u8]) -> Result<Row, Problem> {
    let text = Problem::utf8("row", line)?;
    serde_json::from_str(text).map_err(bad_row)
}

fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BOM).unwrap_or(bytes)
}

fn json(bytes: &[u8], path: &Path, each: &mut dyn FnMut(Result<Row, Problem>)) -> Result<(), DataError> {
    // One wrong byte would make the whole array unreadable: read around it and reject just the rows it is in.
    let text = marked(bytes);
    let lossy = matches!(text, Cow::Owned(_));
    let mut looks_like = None;
    let mut checked = |row: Result<Row, Problem>| {
        each(row.and_then(|row| {
            let damage = row
                .iter()
                .filter(|_| lossy)
                .find_map(|(name, value)| Some((name, damaged(value).or_else(|| mark_in(name))?)));
            match damage {
                Some((name, at)) => Err(Problem::NotUtf8 {
                    member: name.split(MARK.0).next().unwrap_or_default().to_owned(),
                    at,
                }),
                None => Ok(row),
            }
        }));
    };
    let mut parser = serde_json::Deserializer::from_str(&text);
    let parsed = Rows {
        each: &mut checked,
        looks_like: &mut looks_like,
    }
    .deserialize(&mut parser)
    .and_then(|()| parser.end());
    match (looks_like, parsed) {
        (Some(looks_like), _) => Err(DataError::Layout {
            path: path.to_owned(),
            looks_like,
        }),
        (None, Err(source)) => Err(DataError::Json {
            path: path.to_owned(),
            source,
        }),
        (None, Ok(())) => Ok(()),
    }
}

/// Places that are written with their offset; a large file of anything else must not grow without bound.
const MARKS: usize = 10_000;

/// Around the offset that stands for bytes that are no UTF-8: code points that no text has.
const MARK: (char, char) = ('\u{fdd0}', '\u{fdd1}');

/// `bytes` as text, with the place in the file written where they are no UTF-8.
fn marked(bytes: &[u8]) -> Cow<'_, str> {
    let rest = without_bom(bytes);
    if let Ok(text) = std::str::from_utf8(rest) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(rest.len() + 32);
    let (mut at, mut marks) = (bytes.len() - rest.len(), 0);
    for chunk in rest.utf8_chunks() {
        text.push_str(chunk.valid());
        at += chunk.valid().len();
        if !chunk.invalid().is_empty() {
            text.push(MARK.0);
            if marks < MARKS {
                text.push_str(&at.to_string());
            }
            text.push(MARK.1);
            marks += 1;
        }
        at += chunk.invalid().len();
    }
    Cow::Owned(text)
}

/// The offset that [`marked`] wrote into `text` first; 0 for one that it left out.
fn mark_in(text: &str) -> Option<usize> {
    let (_, rest) = text.split_once(MARK.0)?;
    Some(rest.split_once(MARK.1)?.0.parse().unwrap_or(0))
}

fn damaged(value: &Value) -> Option<usize> {
    match value {
        Value::String(s) => mark_in(s),
        Value::Array(items) => items.iter().find_map(damaged),
        Value::Object(map) => map.iter().find_map(|(k, v)| mark_in(k).or_else(|| damaged(v))),
        _ => None,
    }
}

fn separated(
    bytes: &[u8],
    delimiter: u8,
    path: &Path,
    each: &mut dyn FnMut(Result<Row, Problem>),
) -> Result<(), DataError> {
    let failed = |source| DataError::Csv {
        path: path.to_owned(),
        source,
    };
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .flexible(true)
        .from_reader(without_bom(bytes));
    let names = names(reader.byte_headers().map_err(failed)?);
    let mut record = csv::ByteRecord::new();
    while reader.read_byte_record(&mut record).map_err(failed)? {
        if record.len() != names.len() {
            each(Err(bad_row(format!(
                "{} fields where the header has {}",
                record.len(),
                names.len()
            ))));
            continue;
        }
        let row = names.iter().zip(record.iter()).map(|(name, cell)| {
            let text = Problem::utf8(name, cell)?;
            // several captions or answers in one cell are written as a JSON list
            let list = text
                .starts_with('[')
                .then(|| serde_json::from_str::<Vec<String>>(text).ok())
                .flatten();
            Ok((name.clone(), list.map_or_else(|| Value::from(text), Value::from)))
        });
        each(row.collect());
    }
    Ok(())
}

fn names(header: &csv::ByteRecord) -> Vec<String> {
    let name = |cell: &[u8]| String::from_utf8_lossy(without_bom(cell)).trim().to_owned();
    header.iter().map(name).collect()
}

/// The columns of a table, of which only the header is read; `None` for the containers whose rows name their fields
/// themselves.
pub fn columns(path: &Path) -> Result<Option<Vec<String>>, DataError> {
    let delimiter = match Container::of(path) {
        Some(Container::Csv) => b',',
        Some(Container::Tsv) => b'\t',
        _ => return Ok(None),
    };
    let failed = |source| DataError::Csv {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(DataError::io(path))?;
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(file);
    Ok(Some(names(reader.byte_headers().map_err(failed)?)))
}

/// Streams the top level so that only one row at a time is held as JSON values.
struct Rows<'a> {
    each: &'a mut dyn FnMut(Result<Row, Problem>),
    looks_like: &'a mut Option<&'static str>,
}

impl Rows<'_> {
    fn row(&mut self, value: Value) {
        (self.each)(match value {
            Value::Object(map) => Ok(map),
            other => Err(bad_row(format!("expected an object, found {}", kind(&other)))),
        });
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

impl<'de> DeserializeSeed<'de> for Rows<'_> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Rows<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("an array or an object of annotation objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        while let Some(value) = seq.next_element()? {
            self.row(value);
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let value: Value = map.next_value()?;
            if let (Some(first), "images" | "annotations" | "questions") = (value.get(0), key.as_str()) {
                *self.looks_like = Some(match key.as_str() {
                    "questions" => "vqa_official",
                    _ if first.get("sentences").is_some() => "karpathy",
                    _ => "coco_official",
                });
                return Err(A::Error::custom("another layout"));
            }
            match value {
                Value::Object(fields) => {
                    let mut row = Row::new();
                    row.insert("sample_id".into(), key.into());
                    row.extend(fields);
                    (self.each)(Ok(row));
                }
                other => self.row(other),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows(bytes: &[u8], container: Container) -> Result<Vec<Result<Row, &'static str>>, DataError> {
        let mut out = Vec::new();
        for_each_row(bytes, container, Path::new("x"), &mut |r| {
            out.push(r.map_err(|p| p.kind()))
        })?;
        Ok(out)
    }

    #[test]
    fn the_same_rows_in_every_container() {
        let json = rows(br#"[{"image":"a.jpg","caption":"x, y"}]"#, Container::Json).unwrap();
        assert_eq!(
            rows(
                b"{\"image\":\"a.jpg\",\"caption\":\"x, y\"}\r\n\n",
                Container::JsonLines
            )
            .unwrap(),
            json
        );
        assert_eq!(
            rows(b"\xef\xbb\xbfimage,caption\na.jpg,\"x, y\"\n", Container::Csv).unwrap(),
            json
        );
        assert_eq!(
            rows(b"image\tcaption\na.jpg\tx, y\n", Container::Tsv).unwrap(),
            json
        );
    }

    #[test]
    fn object_of_objects_gets_sample_ids() {
        let got = rows(br#"{"07":{"question":"q"},"08":3}"#, Container::Json).unwrap();
        assert_eq!(got[0].as_ref().unwrap()["sample_id"], "07");
        assert_eq!(got[1], Err("bad_record"));
    }

    #[test]
    fn bad_rows_do_not_cost_their_neighbours() {
        let got = rows(
            b"[{\"caption\":\"a\xff\"},{\"caption\":\"b\"},7]",
            Container::Json,
        )
        .unwrap();
        assert_eq!(got[0], Err("not_utf8"));
        assert_eq!(got[1].as_ref().unwrap()["caption"], "b");
        assert_eq!(got[2], Err("bad_record"));
        let got = rows(b"{\"a\":1}\n{\"a\":\n{\"b\":\"\xff\"}\n", Container::JsonLines).unwrap();
        assert_eq!(
            (got[1].clone(), got[2].clone()),
            (Err("bad_record"), Err("not_utf8"))
        );
        let got = rows(b"image,caption\na,b\nc\nd,\xff\n", Container::Csv).unwrap();
        assert_eq!(
            (got[0].is_ok(), got[1].clone(), got[2].clone()),
            (true, Err("bad_record"), Err("not_utf8"))
        );
    }

    #[test]
    fn a_wrong_byte_is_named_by_its_place_in_the_file() {
        let bytes =
            b"\xef\xbb\xbf[{\"caption\":\"\xc3\xa9\"},{\"k\":[\"\xff\"]},{\"caption\":\"\xef\xbf\xbd\"}]";
        let mut got = Vec::new();
        for_each_row(bytes, Container::Json, Path::new("x"), &mut |row| got.push(row)).unwrap();
        assert_eq!(got[0].as_ref().unwrap()["caption"], "é");
        match &got[1] {
            Err(Problem::NotUtf8 { member, at }) => assert_eq!((member.as_str(), bytes[*at]), ("k", 0xff)),
            other => panic!("{other:?}"),
        }
        assert!(got[2].is_ok(), "a replacement character is a character");
    }

    #[test]
    fn a_mark_of_utf8_in_front_is_no_part_of_the_first_row() {
        let plain = rows(b"{\"a\":1}\n{\"b\":2}\n", Container::JsonLines).unwrap();
        let marked = rows(b"\xef\xbb\xbf{\"a\":1}\n{\"b\":2}\n", Container::JsonLines).unwrap();
        assert_eq!(marked, plain);
        assert!(marked[0].is_ok());
    }

    #[test]
    fn other_layouts_are_named() {
        for (text, name) in [
            (
                r#"{"info":{},"images":[{"id":1}],"annotations":[]}"#,
                "coco_official",
            ),
            (r#"{"images":[{"sentences":[]}],"dataset":"coco"}"#, "karpathy"),
            (r#"{"questions":[{"question":"?"}]}"#, "vqa_official"),
        ] {
            match rows(text.as_bytes(), Container::Json) {
                Err(DataError::Layout { looks_like, .. }) => assert_eq!(looks_like, name),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(
            rows(b"[{}", Container::Json),
            Err(DataError::Json { .. })
        ));
        assert!(matches!(
            rows(b"[] x", Container::Json),
            Err(DataError::Json { .. })
        ));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), text in "[\\[\\]{}\",:0-9a-e\\n\\t ]{0,200}") {
            for container in [Container::Json, Container::JsonLines, Container::Csv, Container::Tsv] {
                let _ = rows(&bytes, container);
                let _ = rows(text.as_bytes(), container);
            }
        }
    }
}
