//! `label` of the rows of an annotation file: whether a caption belongs to its picture. Training does not look at it,
//! so samples do not carry it; a conversion keeps it.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use crate::data::formats::Format;
use crate::data::records::{Container, for_each_row};
use crate::data::sample::DataError;
use crate::data::stream::Data;

/// Labels by the key of their samples; empty where rows have none.
pub(super) fn labels(data: &Data) -> Result<HashMap<String, Value>, DataError> {
    let mut labels = HashMap::new();
    let Data::Rows(set) = data else {
        return Ok(labels);
    };
    let path = Path::new(&**set.shard());
    let Some(container) = Container::of(path).filter(|_| path.is_file()) else {
        return Ok(labels);
    };
    let bytes = std::fs::read(path).map_err(DataError::io(path))?;
    if !bytes.windows(5).any(|window| window == b"label") {
        return Ok(labels);
    }
    let mut rows: Vec<(Option<Value>, usize)> = Vec::new();
    let read = for_each_row(&bytes, container, path, &mut |row| {
        rows.push(row.map_or((None, 1), |row| {
            let captions = Format::auto().captions(&row).len().max(1);
            (row.get("label").cloned(), captions)
        }));
    });
    match read {
        Err(DataError::Layout { .. }) => return Ok(labels), // the official files have no labels
        other => other?,
    }
    // a row is one sample, or one for each of its captions
    let whole = rows.len() == set.len();
    let mut key = 0usize;
    for (label, captions) in rows {
        let samples = if whole { 1 } else { captions };
        if let Some(label) = label {
            labels.extend((key..key + samples).map(|key| (key.to_string(), label.clone())));
        }
        key += samples;
    }
    // rows of a format that names its captions otherwise: better no label than a wrong one
    if key != set.len() {
        labels.clear();
    }
    Ok(labels)
}
