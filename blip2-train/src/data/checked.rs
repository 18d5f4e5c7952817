//! Annotation files, opened with the mistakes named that would otherwise leave no sample: another layout, a split that
//! is not there, a table without the wanted header.

use std::path::Path;

use super::annotations::{AnnotationConfig, AnnotationSet};
use super::formats::{Format, Layout};
use super::official::karpathy_splits;
use super::records::columns;
use super::sample::DataError;

/// Opens the file of `config`. The official layouts are known by their outermost fields, and taken where the format is
/// left open (`auto`).
pub(super) fn open(config: &AnnotationConfig) -> Result<AnnotationSet, DataError> {
    let known = config.format != Format::auto().name;
    match open_as(config) {
        Err(DataError::Layout { looks_like, .. }) if !known => open_as(&AnnotationConfig {
            format: looks_like.into(),
            ..config.clone()
        }),
        other => other,
    }
}

fn open_as(config: &AnnotationConfig) -> Result<AnnotationSet, DataError> {
    let (format, path) = (Format::named(&config.format)?, config.path.as_path());
    if format.layout == Layout::Rows {
        check_columns(path, format)?;
    }
    let set = AnnotationSet::open(config)?;
    let Some(split) = &config.split else {
        return Ok(set);
    };
    if format.layout != Layout::Karpathy {
        return Err(no_splits(path, split));
    }
    if set.is_empty() {
        let bytes = std::fs::read(path).map_err(DataError::io(path))?;
        let found = karpathy_splits(&bytes).map_err(|source| DataError::Json {
            path: path.to_owned(),
            source,
        })?;
        return Err(DataError::UnknownSplit {
            path: path.to_owned(),
            split: split.clone(),
            found,
        });
    }
    Ok(set)
}

/// A split is asked of data that has none.
pub(super) fn no_splits(path: impl AsRef<Path>, split: &str) -> DataError {
    DataError::NoSplits {
        path: path.as_ref().to_owned(),
        split: split.to_owned(),
    }
}

/// A table must have a column for the picture; in another container every row is looked at by itself.
fn check_columns(path: &Path, format: &Format) -> Result<(), DataError> {
    match columns(path)? {
        Some(found) if !format.image.iter().any(|name| found.iter().any(|f| f == name)) => {
            Err(DataError::MissingColumn {
                path: path.to_owned(),
                column: format.image.join("` or `"),
                found,
            })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(dir: &Path, name: &str, text: &str) -> AnnotationConfig {
        std::fs::write(dir.join(name), text).unwrap();
        AnnotationConfig::new(dir.join(name))
    }

    #[test]
    fn a_split_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let image = |split: &str| {
            format!(r#"{{"filename":"{split}.jpg","split":"{split}","sentences":[{{"raw":"x"}}]}}"#)
        };
        let text = format!(r#"{{"images":[{},{}]}}"#, image("test"), image("restval"));
        let config = written(dir.path(), "k.json", &text);
        let with = |split: &str, config: &AnnotationConfig| {
            open(&AnnotationConfig {
                split: Some(split.into()),
                ..config.clone()
            })
        };
        assert_eq!(with("test", &config).unwrap().len(), 1);
        assert_eq!(with("train", &config).unwrap().len(), 1, "restval is train");
        match with("tset", &config) {
            Err(DataError::UnknownSplit { found, .. }) => assert_eq!(found, ["restval", "test"]),
            other => panic!("{:?}", other.map(|set| set.len())),
        }
        let rows = written(dir.path(), "r.jsonl", "{\"image\":\"a.jpg\",\"caption\":\"x\"}\n");
        assert!(open(&rows).is_ok());
        assert!(matches!(with("test", &rows), Err(DataError::NoSplits { .. })));
    }

    #[test]
    fn a_table_without_the_wanted_header_names_its_columns() {
        let dir = tempfile::tempdir().unwrap();
        let error = |name: &str, text: &str| open(&written(dir.path(), name, text)).err();
        for (name, text, columns) in [
            (
                "none.csv",
                "a.jpg,a cat\nb.jpg,a dog\n",
                ["a.jpg", "a cat"].as_slice(),
            ),
            ("semi.csv", "image;caption\na.jpg;a cat\n", &["image;caption"]),
            ("x.tsv", "photo\tcaption\na.jpg\ta cat\n", &["photo", "caption"]),
        ] {
            match error(name, text) {
                Some(DataError::MissingColumn { found, column, .. }) => {
                    assert_eq!(found, columns);
                    assert!(column.contains("file_name"), "{column}");
                }
                other => panic!("{name}: {other:?}"),
            }
        }
        assert!(error("good.csv", "\u{feff}image,caption\na.jpg,a cat\n").is_none());
    }
}
