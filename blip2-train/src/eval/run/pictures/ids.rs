//! How result files name pictures and questions.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::Pictures;
use crate::data::annotations::coco_image_id;
use crate::eval::results::Id;

/// Numbers stay numbers, as in COCO's files; `coco_522418` is how LAVIS writes them.
pub(super) fn id_of(text: &str) -> Id {
    let text = text
        .strip_prefix("coco_")
        .filter(|rest| rest.parse::<u64>().is_ok())
        .unwrap_or(text);
    match text.parse::<i64>() {
        Ok(number) if number.to_string() == text => Id::Number(number),
        _ => Id::Text(text.to_owned()),
    }
}

/// COCO's number where the file name has one, else the name.
pub(super) fn id_of_path(path: &Path) -> Id {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match coco_image_id(&name) {
        Some(number) if name.starts_with("COCO_") => Id::Number(number as i64),
        _ => Id::Text(name.into_owned()),
    }
}

/// Ids that occur more than once.
fn repeated<'a>(ids: impl Iterator<Item = &'a Id>) -> HashSet<Id> {
    let mut seen = HashSet::new();
    ids.filter(|id| !seen.insert(*id)).cloned().collect()
}

impl Pictures {
    /// Different pictures, or different questions, under one id get the file's name in front: members of tar shards are
    /// often numbered from 0 in each. The name is without its folder, so that a data set that has moved keeps its ids.
    pub(super) fn separate_ids(&mut self) {
        let pictures = repeated(self.list.iter().map(|picture| &picture.id));
        let questions = || self.list.iter().flat_map(|picture| &picture.questions);
        let asked = repeated(questions().map(|asked| &asked.id));
        if pictures.is_empty() && asked.is_empty() {
            return;
        }
        let shards = self.list.iter().map(|picture| &picture.shard);
        let names = short_names(shards.chain(questions().map(|asked| &asked.shard)));
        let full = |shard: &Arc<str>, key: &str| {
            let name = names.get(shard).map_or(&**shard, String::as_str);
            Id::Text(format!("{name}:{key}"))
        };
        for picture in &mut self.list {
            if pictures.contains(&picture.id) {
                picture.id = full(&picture.shard, &picture.key);
            }
            for question in &mut picture.questions {
                if asked.contains(&question.id) {
                    question.id = full(&question.shard, &question.key);
                }
            }
        }
    }
}

/// Files without their folders; those that share a name keep theirs.
fn short_names<'a>(shards: impl Iterator<Item = &'a Arc<str>>) -> HashMap<Arc<str>, String> {
    let shards: HashSet<&Arc<str>> = shards.collect();
    let short = |shard: &str| {
        let name = Path::new(shard).file_name();
        name.map_or_else(|| shard.to_owned(), |name| name.to_string_lossy().into_owned())
    };
    let mut count: HashMap<String, usize> = HashMap::new();
    for shard in &shards {
        *count.entry(short(shard)).or_default() += 1;
    }
    let name = |shard: &Arc<str>| match short(shard) {
        short if count[&short] == 1 => short,
        _ => shard.to_string(),
    };
    shards
        .into_iter()
        .map(|shard| (shard.clone(), name(shard)))
        .collect()
}
