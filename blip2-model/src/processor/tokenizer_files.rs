//! Tokenizer files of a Hugging Face folder to one `tokenizers::Tokenizer`.
//!
//! Mirrors what transformers' `convert_slow_tokenizer` and `from_pretrained` make of the same files. Vocabularies
//! in the older layouts are rewritten as a `tokenizer.json` document and read by the library from there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tokenizers::{AddedToken, PostProcessorWrapper, Tokenizer};

use super::error::{Cause, ProcessorError};
use super::guard::guard;
use super::tokenizer::{SpecialIds, TokenizerKind};

/// What [`load`] makes of a folder.
pub(super) struct Loaded {
    pub(super) tokenizer: Tokenizer,
    pub(super) special: SpecialIds,
    pub(super) clean_up: bool,
}

const CONFIG: &str = "tokenizer_config.json";

/// Roles of special tokens, as in `{role}_token`.
const ROLES: [&str; 7] = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

pub(super) fn load(folder: &Path, kind: TokenizerKind) -> Result<Loaded, ProcessorError> {
    let config = read_object(&folder.join(CONFIG))?;
    let map = read_object(&folder.join("special_tokens_map.json"))?;
    let setting = |name: &str| config.get(name).or_else(|| map.get(name));
    let flag = |name: &str, default: bool| config.get(name).and_then(Value::as_bool).unwrap_or(default);

    let mut roles: BTreeMap<&str, AddedToken> = BTreeMap::new();
    for role in ROLES {
        let token = match setting(&format!("{role}_token")) {
            Some(value) => added_token(value, true),
            None => default_token(kind, role).map(|content| AddedToken::from(content, true)),
        };
        roles.extend(token.map(|t| (role, t)));
    }

    let mut tokenizer = read_vocabulary(folder, kind, &config, &roles)?;
    // lengths are the caller's business; a file may carry those of somebody's training run
    tokenizer.with_padding(None);
    let _ = tokenizer.with_truncation(None);

    let from_file = |role: &str| setting(&format!("{role}_token")).is_some();
    register(&mut tokenizer, folder, &config, &map, &roles, from_file)?;
    if kind == TokenizerKind::Bert && tokenizer.token_to_id("[DEC]").is_none() {
        tokenizer.add_special_tokens(&[AddedToken::from("[DEC]", true)]);
    }
    let id = |role: &str| roles.get(role).and_then(|t| tokenizer.token_to_id(&t.content));
    let special = SpecialIds {
        bos: id("bos"),
        eos: id("eos"),
        pad: id("pad"),
        unk: id("unk"),
        cls: id("cls"),
        sep: id("sep"),
        dec: tokenizer.token_to_id("[DEC]"),
        image: tokenizer.token_to_id("<image>"),
        newline: None,
    };
    if let (TokenizerKind::Opt, Some(bos), true) = (kind, roles.get("bos"), flag("add_bos_token", true)) {
        add_bos(&mut tokenizer, folder, &bos.content)?;
    }
    Ok(Loaded {
        tokenizer,
        special,
        clean_up: flag("clean_up_tokenization_spaces", kind == TokenizerKind::Bert),
    })
}

/// Token names that a family has even if no file says so.
fn default_token(kind: TokenizerKind, role: &str) -> Option<&'static str> {
    let names: &[(&str, &str)] = match kind {
        TokenizerKind::Bert => &[
            ("unk", "[UNK]"),
            ("sep", "[SEP]"),
            ("pad", "[PAD]"),
            ("cls", "[CLS]"),
            ("mask", "[MASK]"),
        ],
        TokenizerKind::Opt => &[
            ("bos", "</s>"),
            ("eos", "</s>"),
            ("unk", "</s>"),
            ("pad", "<pad>"),
        ],
        TokenizerKind::T5 => &[("eos", "</s>"), ("unk", "<unk>"), ("pad", "<pad>")],
        TokenizerKind::Llama => &[("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>")],
    };
    names.iter().find(|(r, _)| *r == role).map(|(_, name)| *name)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, ProcessorError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ProcessorError::Read {
            path: path.into(),
            source,
        }),
    }
}

fn read_object(path: &Path) -> Result<Map<String, Value>, ProcessorError> {
    let Some(bytes) = read(path)? else {
        return Ok(Map::new());
    };
    serde_json::from_slice(&bytes).map_err(|source| ProcessorError::InvalidJson {
        path: path.into(),
        source,
    })
}

fn invalid(path: &Path, source: impl Into<Cause>) -> ProcessorError {
    ProcessorError::InvalidTokenizer {
        path: path.into(),
        source: source.into(),
    }
}

fn parse(path: &Path, json: &[u8]) -> Result<Tokenizer, ProcessorError> {
    guard(|| Tokenizer::from_bytes(json))
        .map_err(|panic| invalid(path, panic))?
        .map_err(|e| invalid(path, e))
}

fn read_vocabulary(
    folder: &Path,
    kind: TokenizerKind,
    config: &Map<String, Value>,
    roles: &BTreeMap<&str, AddedToken>,
) -> Result<Tokenizer, ProcessorError> {
    let path = folder.join("tokenizer.json");
    if let Some(bytes) = read(&path)? {
        return parse(&path, &bytes);
    }
    let missing = |looked_for| {
        let remedy = "Fetch these files from the checkpoint's repository, or write tokenizer.json with \
                      transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)";
        ProcessorError::MissingTokenizer {
            folder: folder.into(),
            looked_for,
            remedy,
        }
    };
    match kind {
        TokenizerKind::Bert => {
            let path = folder.join("vocab.txt");
            let bytes = read(&path)?.ok_or_else(|| missing("tokenizer.json or vocab.txt"))?;
            let text = String::from_utf8(bytes).map_err(|e| invalid(&path, e))?;
            parse(&path, bert_document(&text, config, roles).to_string().as_bytes())
        }
        TokenizerKind::Opt => {
            let paths = [folder.join("vocab.json"), folder.join("merges.txt")];
            let [Some(vocab), Some(merges)] = [read(&paths[0])?, read(&paths[1])?] else {
                return Err(missing("tokenizer.json, or vocab.json with merges.txt"));
            };
            let vocab: Map<String, Value> =
                serde_json::from_slice(&vocab).map_err(|source| ProcessorError::InvalidJson {
                    path: paths[0].clone(),
                    source,
                })?;
            let merges = String::from_utf8(merges).map_err(|e| invalid(&paths[1], e))?;
            parse(
                &paths[1],
                opt_document(vocab, &merges, config).to_string().as_bytes(),
            )
        }
        TokenizerKind::T5 | TokenizerKind::Llama => Err(missing("tokenizer.json")),
    }
}

/// The `tokenizer.json` of a BERT `vocab.txt`: one token per line, the line number is the id.
fn bert_document(vocab: &str, config: &Map<String, Value>, roles: &BTreeMap<&str, AddedToken>) -> Value {
    let vocab: Map<String, Value> = vocab
        .lines()
        .enumerate()
        .map(|(id, t)| (t.to_owned(), id.into()))
        .collect();
    let name = |role: &str| roles.get(role).map_or("", |t| t.content.as_str());
    let special = |role: &str| {
        let (name, id) = (name(role), vocab.get(name(role)).cloned().unwrap_or(Value::Null));
        (
            name.to_owned(),
            json!({"id": name, "ids": [id], "tokens": [name]}),
        )
    };
    let piece = |role: &str, part: u8| json!({"SpecialToken": {"id": name(role), "type_id": part}});
    let text = |id: &str, part: u8| json!({"Sequence": {"id": id, "type_id": part}});
    let (cls, sep) = (special("cls"), special("sep"));
    json!({
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": config.get("tokenize_chinese_chars").and_then(Value::as_bool).unwrap_or(true),
            "strip_accents": config.get("strip_accents").cloned().unwrap_or(Value::Null),
            "lowercase": config.get("do_lower_case").and_then(Value::as_bool).unwrap_or(true),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [piece("cls", 0), text("A", 0), piece("sep", 0)],
            "pair": [piece("cls", 0), text("A", 0), piece("sep", 0), text("B", 1), piece("sep", 1)],
            "special_tokens": Map::from_iter([cls, sep]),
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece",
            "unk_token": name("unk"),
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    })
}

/// The `tokenizer.json` of GPT-2's `vocab.json` and `merges.txt`; the leading token is added later.
fn opt_document(vocab: Map<String, Value>, merges: &str, config: &Map<String, Value>) -> Value {
    let first = merges.lines().next().filter(|l| l.starts_with("#version"));
    let merges: Vec<&str> = merges
        .lines()
        .skip(first.iter().count())
        .filter(|l| !l.trim().is_empty())
        .collect();
    let prefix_space = config
        .get("add_prefix_space")
        .and_then(Value::as_bool)
        .unwrap_or(false);
    json!({
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": true, "use_regex": true,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE",
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": false,
            "vocab": vocab,
            "merges": merges,
        },
    })
}

/// A token given as a string, or as an object with matching rules.
fn added_token(value: &Value, special: bool) -> Option<AddedToken> {
    let content = value.as_str().or_else(|| value.get("content")?.as_str())?;
    let flag = |name: &str, default: bool| value.get(name).and_then(Value::as_bool).unwrap_or(default);
    Some(AddedToken {
        content: content.to_owned(),
        single_word: flag("single_word", false),
        lstrip: flag("lstrip", false),
        rstrip: flag("rstrip", false),
        normalized: flag("normalized", !special),
        special: flag("special", special),
    })
}

/// Adds the tokens that the configuration files list and the vocabulary lacks, in the order of their ids.
fn register(
    tokenizer: &mut Tokenizer,
    folder: &Path,
    config: &Map<String, Value>,
    map: &Map<String, Value>,
    roles: &BTreeMap<&str, AddedToken>,
    from_file: impl Fn(&str) -> bool,
) -> Result<(), ProcessorError> {
    let listed = config
        .get("additional_special_tokens")
        .or_else(|| map.get("additional_special_tokens"));
    let additional = listed
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|v| added_token(v, true));
    let additional: Vec<AddedToken> = additional.collect();

    let mut numbered: BTreeMap<u32, (PathBuf, AddedToken)> = BTreeMap::new();
    let path = folder.join("added_tokens.json");
    for (content, id) in read_object(&path)? {
        let id = id.as_u64().and_then(|n| u32::try_from(n).ok());
        let id = id.ok_or_else(|| invalid(&path, format!("the id of `{content}` is not a whole number")))?;
        let special = content == "<image>" || roles.values().chain(&additional).any(|t| t.content == content);
        numbered.extend(added_token(&content.into(), special).map(|t| (id, (path.clone(), t))));
    }
    let path = folder.join(CONFIG);
    for (id, value) in config
        .get("added_tokens_decoder")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let id = id
            .parse()
            .map_err(|e| invalid(&path, format!("added_tokens_decoder: id `{id}`: {e}")))?;
        numbered.extend(added_token(value, false).map(|t| (id, (path.clone(), t))));
    }

    for (expected, (path, token)) in numbered {
        add_if_new(tokenizer, &token);
        let found = tokenizer.token_to_id(&token.content);
        if let Some(found) = found.filter(|id| *id != expected) {
            return Err(ProcessorError::AddedTokenId {
                path,
                token: token.content,
                expected,
                found,
            });
        }
    }
    for (role, token) in roles {
        // a default name is only a guess: it must not grow the vocabulary
        if from_file(role) || tokenizer.token_to_id(&token.content).is_some() {
            add_if_new(tokenizer, token);
        }
    }
    additional.iter().for_each(|token| add_if_new(tokenizer, token));
    Ok(())
}

/// Tokens that a `tokenizer.json` lists keep the matching rules it gives them.
fn add_if_new(tokenizer: &mut Tokenizer, token: &AddedToken) {
    let listed = tokenizer
        .get_added_vocabulary()
        .get_vocab()
        .contains_key(&token.content);
    if !listed && token.special {
        tokenizer.add_special_tokens(std::slice::from_ref(token));
    } else if !listed {
        tokenizer.add_tokens(std::slice::from_ref(token));
    }
}

/// Makes every text begin with `bos`, unless the tokenizer already does that.
fn add_bos(tokenizer: &mut Tokenizer, path: &Path, bos: &str) -> Result<(), ProcessorError> {
    let Some(id) = tokenizer.token_to_id(bos) else {
        return Err(invalid(
            path,
            format!("the vocabulary lacks the token `{bos}` that begins every text"),
        ));
    };
    let sample = tokenizer.encode_fast("a", true).map_err(|e| invalid(path, e))?;
    if sample.get_ids().first() == Some(&id) {
        return Ok(());
    }
    let start = json!({"SpecialToken": {"id": bos, "type_id": 0}});
    let text = |id: &str, part: u8| json!({"Sequence": {"id": id, "type_id": part}});
    let template = json!({
        "type": "TemplateProcessing",
        "single": [start, text("A", 0)],
        "pair": [start, text("A", 0), text("B", 1)],
        "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}},
    });
    let template: PostProcessorWrapper = serde_json::from_value(template).map_err(|e| invalid(path, e))?;
    tokenizer.with_post_processor(Some(template));
    Ok(())
}
