//! The JSON that the input has beside each picture: addresses, sizes, licences. Samples do not carry it, so it is read
//! again from the shard; pictures are passed over, which costs a seek each.

use serde_json::{Map, Value};

use crate::data::shard::{ShardReader, ShardSet};
use crate::data::webdataset::{AnyTarShard, TarFields};

/// Reads the fields of one shard in step with its samples.
pub(super) struct InputFields {
    shard: Option<Box<AnyTarShard>>,
    json: Vec<String>,
}

impl InputFields {
    /// Of the only shard of `set`. Standard input cannot be read twice and parquet has columns: both give nothing.
    pub fn open(set: &ShardSet) -> Self {
        let texts = ShardSet {
            tar: TarFields {
                image: Vec::new(),
                text: Vec::new(),
                ..set.tar.clone()
            },
            ..set.clone()
        };
        let stdin = set.paths.iter().any(|path| path.as_os_str() == "-");
        let shard = match (!stdin).then(|| texts.open(0, 0)) {
            Some(Ok(ShardReader::Tar(shard))) => Some(shard),
            // one that cannot be opened is for the reader of its samples to tell of
            _ => None,
        };
        Self {
            shard,
            json: texts.tar.json,
        }
    }

    /// The fields of the next sample, whose key is `key` if it is good; to be called for bad ones too.
    pub fn next(&mut self, key: Option<&str>) -> Option<Map<String, Value>> {
        // which samples there are, and in which order, does not depend on what is read of them
        let group = self.shard.as_mut()?.next_group(true)?.ok()?;
        if String::from_utf8_lossy(&group.key) != key? {
            return None;
        }
        let body = self.json.iter().find_map(|name| {
            let member = group.members.iter().find(|(extension, _)| extension == name);
            member.map(|(_, body)| body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body))
        })?;
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Some(fields),
            _ => None, // a list of captions, which is kept as such
        }
    }
}
