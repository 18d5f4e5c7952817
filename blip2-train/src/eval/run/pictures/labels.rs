//! Pairs that say themselves whether they belong together: the `label` of each row.

use std::collections::HashMap;
use std::path::PathBuf;

use super::Pictures;
use crate::data::records::{Container, for_each_row};
use crate::data::sample::DataError;
use crate::data::stream::Data;
use crate::eval::run::RunError;

/// 0 and 1 as JSON writes them, and as the text that a CSV file has for them.
fn truth(value: &serde_json::Value) -> Option<bool> {
    use serde_json::Value;
    match value {
        Value::Bool(label) => Some(*label),
        Value::Number(_) | Value::String(_) => match value.as_str().unwrap_or(&value.to_string()).trim() {
            "1" | "true" => Some(true),
            "0" | "false" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

impl Pictures {
    /// `label` of each sample of an annotation file by key: whether its caption belongs to its picture.
    ///
    /// # Errors
    /// [`RunError::Label`] for a row without one, or if the data set is no file of rows.
    pub fn labels(&self) -> Result<HashMap<String, bool>, RunError> {
        let name = &self.source.name;
        let fault = |row: String, problem: &'static str| RunError::Label {
            data: name.clone(),
            row,
            problem,
        };
        let file = match &self.source.data {
            Data::Rows(set) => PathBuf::from(&**set.shard()),
            Data::Shards(set) => set.paths.first().cloned().unwrap_or_default(),
        };
        let Some(container) = Container::of(&file) else {
            return Err(fault(
                "the whole set".into(),
                "is no .jsonl, .json, .csv or .tsv file",
            ));
        };
        let bytes = std::fs::read(&file).map_err(DataError::io(&file))?;
        let (mut labels, mut bad, mut number) = (HashMap::new(), None, 0usize);
        for_each_row(&bytes, container, &file, &mut |row| {
            // the key of a row is its number
            let key = number.to_string();
            number += 1;
            // a row that cannot be read at all is among the skipped samples
            let Ok(row) = row else { return };
            match row.get("label").and_then(truth) {
                Some(label) => {
                    labels.insert(key, label);
                }
                None => bad = bad.take().or(Some(key)),
            }
        })?;
        match bad {
            Some(row) => Err(fault(format!("row {row}"), "has no `label` of 0 or 1")),
            None => Ok(labels),
        }
    }
}
