//! WebDataset shards: tar files whose members share a key up to the first dot of the base name.
//!
//! Follows the grouping of the `webdataset` package (`base_plus_ext`, `group_by_keys`) and the fields of LAVIS' LAION
//! pipeline (section 7.3 of the format notes): a picture plus `json` or `txt`; a JSON list holds captions, best first.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::formats::Format;
use super::sample::{DataError, ImageSource, Problem, Sample, Skipped};
use super::tar_reader::{Member, Seekable, Sequential, Skip, TarMembers};

/// Which members are read, and the limits on what an archive may claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TarFields {
    /// Extensions of pictures, the first present one counts.
    pub image: Vec<String>,
    /// Extensions of caption text.
    pub text: Vec<String>,
    /// Extensions of JSON.
    pub json: Vec<String>,
    /// Largest member, bytes.
    pub member_bytes: u64,
    /// Most members under one key.
    pub members: usize,
}

impl Default for TarFields {
    fn default() -> Self {
        let list = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
        Self {
            image: list(&["jpg", "jpeg", "png", "webp"]),
            text: list(&["txt", "caption"]),
            json: list(&["json"]),
            member_bytes: 64 << 20,
            members: 64,
        }
    }
}

impl TarFields {
    fn wants(&self, extension: &str) -> bool {
        [&self.image, &self.text, &self.json]
            .into_iter()
            .flatten()
            .any(|e| e == extension)
    }
}

/// Splits a member path into key (up to the first dot of the base name) and lower-case extension.
///
/// `None` for names without extension, hidden files, and `__name__` metadata.
pub fn key_and_extension(path: &[u8]) -> Option<(&[u8], String)> {
    let base = path.iter().rposition(|&b| b == b'/').map_or(0, |i| i + 1);
    let dot = base + path[base..].iter().position(|&b| b == b'.')?;
    let (key, name) = (&path[..dot], &path[base..dot]);
    if name.is_empty() || (path.starts_with(b"__") && path.ends_with(b"__")) {
        return None;
    }
    Some((
        key,
        String::from_utf8_lossy(&path[dot + 1..]).to_ascii_lowercase(),
    ))
}

/// Members that belong to one sample.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Key as stored.
    pub key: Vec<u8>,
    /// (extension, body) in archive order; empty when the group was passed over.
    pub members: Vec<(String, Vec<u8>)>,
}

/// Samples of one tar stream, in order.
pub struct TarShard<R> {
    tar: TarMembers<R>,
    shard: Arc<str>,
    fields: TarFields,
    ahead: Option<Member>,
    pending: Option<Problem>,
}

/// A tar stream of any origin.
pub type AnyTarShard = TarShard<Box<dyn Skip + Send>>;

impl AnyTarShard {
    /// Opens a .tar, .tar.gz or .tgz file, or standard input for `-`, at byte `offset` of the (unpacked) stream.
    ///
    /// Standard input opens once per process.
    pub fn open(path: &Path, fields: &TarFields, offset: u64) -> Result<Self, DataError> {
        static STDIN_TAKEN: AtomicBool = AtomicBool::new(false);
        let failed = |e| DataError::Io {
            path: path.to_owned(),
            source: e,
        };
        let name = path.to_string_lossy();
        let input: Box<dyn Skip + Send> = if name == "-" {
            if STDIN_TAKEN.swap(true, Ordering::SeqCst) {
                return Err(DataError::StdinReread);
            }
            unpacked(io::stdin()).map_err(failed)?
        } else {
            let mut file = File::open(path).map_err(failed)?;
            let packed = peek(&mut file).map_err(failed)? == GZIP;
            io::Seek::rewind(&mut file).map_err(failed)?;
            if packed {
                unpacked(file).map_err(failed)?
            } else {
                Box::new(Seekable::new(file).map_err(failed)?)
            }
        };
        Ok(Self::new(input, name.as_ref().into(), fields.clone(), offset))
    }
}

/// First bytes of a gzip stream.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The first two bytes of `input`, fewer at its end.
fn peek(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(GZIP.len());
    input.take(GZIP.len() as u64).read_to_end(&mut head)?;
    Ok(head)
}

/// A stream that is read once, unpacked if it is gzip.
fn unpacked(mut input: impl Read + Send + 'static) -> io::Result<Box<dyn Skip + Send>> {
    let head = peek(&mut input)?;
    let packed = head == GZIP;
    let whole = BufReader::with_capacity(256 << 10, io::Cursor::new(head).chain(input));
    Ok(if packed {
        Box::new(Sequential(MultiGzDecoder::new(whole)))
    } else {
        Box::new(Sequential(whole))
    })
}

impl<R: Skip> TarShard<R> {
    /// Reads `input` from byte `offset`, a position given by [`TarShard::position`] (0 for the start).
    pub fn new(input: R, shard: Arc<str>, fields: TarFields, offset: u64) -> Self {
        Self {
            tar: TarMembers::new(input, offset),
            shard,
            fields,
            ahead: None,
            pending: None,
        }
    }

    /// Byte offset at which the next sample starts.
    pub fn position(&self) -> u64 {
        self.ahead
            .as_ref()
            .map_or_else(|| self.tar.position(), |m| m.offset)
    }

    /// The next group; with `wanted` false its bodies are passed over, which costs a seek each in a plain file.
    ///
    /// Which groups and problems there are, and where each ends, does not depend on `wanted`, except that problems of
    /// members' contents show only when they are read.
    pub fn next_group(&mut self, wanted: bool) -> Option<Result<Group, Skipped>> {
        let mut group: Option<Group> = None;
        let mut extensions: Vec<String> = Vec::new();
        let mut problem: Option<Problem> = None;
        loop {
            let member = match (self.pending.take(), self.ahead.take()) {
                (Some(damage), _) => Err(damage),
                (None, Some(member)) => Ok(Some(member)),
                (None, None) => self.tar.next_member(),
            };
            let member = match member {
                Ok(Some(member)) => member,
                Ok(None) => break,
                Err(damage) => {
                    if group.is_none() {
                        return Some(Err(self.skipped(b"", damage)));
                    }
                    self.pending = Some(damage); // the sample before it is whole
                    break;
                }
            };
            let Some((key, extension)) = key_and_extension(&member.name) else {
                if let Err(damage) = self.tar.skip_body(&member) {
                    self.pending = Some(damage);
                }
                continue;
            };
            let current = group.get_or_insert_with(|| Group {
                key: key.to_vec(),
                members: Vec::new(),
            });
            if current.key != key || extensions.contains(&extension) {
                self.ahead = Some(member);
                break;
            }
            let limit = self.fields.member_bytes;
            if extensions.len() >= self.fields.members {
                problem = problem.or(Some(Problem::TooManyMembers {
                    limit: self.fields.members,
                }));
            } else {
                extensions.push(extension.clone());
            }
            if !self.fields.wants(&extension) || !wanted || problem.is_some() || member.size > limit {
                if self.fields.wants(&extension) && member.size > limit {
                    problem = problem.or(Some(Problem::TooLarge {
                        member: extension,
                        bytes: member.size,
                        limit,
                    }));
                }
                // the loss of the shard is worse than anything about this sample
                problem = self.tar.skip_body(&member).err().or(problem);
                continue;
            }
            match self.tar.read_body(&member) {
                Ok(body) => current.members.push((extension, body)),
                Err(damage) => problem = Some(damage),
            }
        }
        let group = group?;
        Some(match problem {
            Some(problem) => Err(self.skipped(&group.key, problem)),
            None => Ok(group),
        })
    }

    /// The next sample, or `Ok(None)` for one that was passed over because it is not `wanted`. That the shard breaks off
    /// is said in any case.
    pub fn next_sample(&mut self, wanted: bool) -> Option<Result<Option<Sample>, Skipped>> {
        let group = match self.next_group(wanted)? {
            // a lost shard concerns everybody who walks it
            Err(skipped) if wanted || skipped.problem.loses_shard() => return Some(Err(skipped)),
            Ok(group) if wanted => group,
            _ => return Some(Ok(None)),
        };
        let key = group.key.clone();
        Some(
            self.sample(group)
                .map(Some)
                .map_err(|problem| self.skipped(&key, problem)),
        )
    }

    fn skipped(&self, key: &[u8], problem: Problem) -> Skipped {
        Skipped {
            shard: self.shard.clone(),
            key: String::from_utf8_lossy(key).into_owned(),
            problem,
        }
    }

    fn sample(&self, mut group: Group) -> Result<Sample, Problem> {
        let position = |names: &[String], members: &[(String, Vec<u8>)]| {
            names
                .iter()
                .find_map(|name| members.iter().position(|(extension, _)| extension == name))
        };
        let mut sample = Sample {
            key: String::from_utf8_lossy(&group.key).into_owned(),
            shard: self.shard.clone(),
            image: ImageSource::Bytes(Vec::new()),
            captions: Vec::new(),
            label: None,
            question: None,
            image_id: None,
            image_index: None,
        };
        if let Some(i) = position(&self.fields.json, &group.members) {
            read_json(&group.members[i].1, &mut sample)?;
        }
        if let (true, Some(i)) = (
            sample.captions.is_empty(),
            position(&self.fields.text, &group.members),
        ) {
            let text = Problem::utf8("txt", &group.members[i].1)?.trim_start_matches('\u{feff}');
            sample.captions = [text.trim()]
                .iter()
                .filter(|t| !t.is_empty())
                .map(|&t| t.to_owned())
                .collect();
        }
        let image = position(&self.fields.image, &group.members).ok_or(Problem::MissingImage)?;
        sample.image = ImageSource::Bytes(group.members.swap_remove(image).1);
        Ok(sample)
    }
}

/// A list of captions, or an object with the lenient field names.
fn read_json(bytes: &[u8], sample: &mut Sample) -> Result<(), Problem> {
    let text = Problem::utf8("json", bytes)?.trim_start_matches('\u{feff}');
    let bad = |reason: String| Problem::BadRecord {
        member: "json".into(),
        reason,
    };
    let format = Format::auto();
    match serde_json::from_str(text).map_err(|e| bad(e.to_string()))? {
        Value::Object(row) => {
            sample.captions = format.captions(&row);
            sample.label = format.label(&row);
            sample.question = format.question(&row);
            sample.image_id = format.image_id(&row);
        }
        list @ Value::Array(_) => {
            let row = [("caption".to_owned(), list)].into_iter().collect();
            sample.captions = format.captions(&row);
        }
        Value::String(caption) => sample.captions = vec![caption],
        _ => return Err(bad("expected an object, a list of captions or a string".into())),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
