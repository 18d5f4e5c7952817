//! Tests of [`super`]: ids and texts against transformers, batches, and damaged folders.

use serde_json::Value;

use super::*;
use crate::processor::fixtures::{json, numbers, path};

const KINDS: [(&str, TokenizerKind); 3] = [
    ("bert", TokenizerKind::Bert),
    ("opt", TokenizerKind::Opt),
    ("t5", TokenizerKind::T5),
];

fn load(name: &str, kind: TokenizerKind) -> TextTokenizer {
    TextTokenizer::from_folder(path("tokenizers").join(name), kind).unwrap()
}

fn strings(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s.as_str().unwrap())
        .collect()
}

/// Compares every string of an `ids.json` with what the tokenizer in `folder` makes of it.
fn check(tokenizer: &TextTokenizer, expected: &Value, texts: &[&str], max_length: usize) {
    let plain = EncodeOptions::default();
    for (i, text) in texts.iter().enumerate() {
        let ids = tokenizer.encode(text, &plain).unwrap();
        assert_eq!(ids, numbers(&expected["ids"][i]), "string {i}: {text:?}");
        let decode = |skip| tokenizer.decode(&ids, skip).unwrap();
        assert_eq!(
            decode(false),
            expected["text"][i].as_str().unwrap(),
            "string {i}: {text:?}"
        );
        assert_eq!(
            decode(true),
            expected["text_plain"][i].as_str().unwrap(),
            "string {i}: {text:?}"
        );
    }
    let cut = EncodeOptions::truncated(max_length);
    for (i, ids) in expected["cut"].as_array().unwrap().iter().enumerate() {
        assert_eq!(
            tokenizer.encode(texts[i], &cut).unwrap(),
            numbers(ids),
            "{:?}",
            texts[i]
        );
    }
}

fn check_folder(folder: &std::path::Path) {
    let fixture: Value = serde_json::from_slice(&std::fs::read(folder.join("ids.json")).unwrap()).unwrap();
    let texts = strings(&fixture["strings"]);
    assert!(texts.len() > 300);
    let max_length = fixture["max_length"].as_u64().unwrap() as usize;
    for (name, kind) in KINDS {
        let tokenizer = TextTokenizer::from_folder(folder.join(name), kind).unwrap();
        check(&tokenizer, &fixture[name], &texts, max_length);
    }
}

#[test]
fn ids_and_texts_equal_transformers() {
    check_folder(&path("tokenizers"));
}

/// `BLIP2_FULL_TOKENIZERS` names a folder written by `processor.py --full`.
#[test]
#[ignore = "needs whole vocabularies, which are not in the repository"]
fn full_vocabularies() {
    let folder = std::env::var("BLIP2_FULL_TOKENIZERS").expect("BLIP2_FULL_TOKENIZERS is not set");
    let folder = std::path::Path::new(&folder);
    check_folder(folder);
    let bert = TextTokenizer::from_folder(folder.join("bert"), TokenizerKind::Bert).unwrap();
    assert_eq!((bert.special().dec, bert.vocab_size()), (Some(30522), 30523));
    let opt = TextTokenizer::from_folder(folder.join("opt"), TokenizerKind::Opt).unwrap();
    assert_eq!(
        (opt.special().newline, opt.special().image),
        (Some(50118), Some(50265))
    );
}

/// transformers' slow BERT drops code points that Python's Unicode tables do not know, and the library's tables are
/// of another version; the fast class agrees with this one.
#[test]
fn slow_classes_differ_only_on_unassigned_characters() {
    let fixture = json("tokenizers/ids.json");
    let texts = strings(&fixture["strings"]);
    let differing: Vec<&str> = KINDS
        .iter()
        .flat_map(|(name, _)| fixture[*name]["slow_differs"].as_object().unwrap().keys())
        .map(|i| texts[i.parse::<usize>().unwrap()])
        .collect();
    assert_eq!(differing.len(), 1);
    assert!(differing[0].contains('\u{382}'));
}

#[test]
fn special_ids() {
    let bert = load("bert", TokenizerKind::Bert);
    let size = bert.vocab_size() as u32;
    let expected = SpecialIds {
        pad: Some(0),
        unk: bert.token_to_id("[UNK]"),
        cls: bert.token_to_id("[CLS]"),
        sep: bert.token_to_id("[SEP]"),
        dec: Some(size - 1),
        ..SpecialIds::default()
    };
    assert_eq!(*bert.special(), expected);
    for folder in ["opt", "opt_fast"] {
        let opt = load(folder, TokenizerKind::Opt);
        let expected = SpecialIds {
            bos: Some(2),
            eos: Some(2),
            pad: Some(1),
            unk: Some(2),
            image: Some(opt.vocab_size() as u32 - 1),
            newline: opt.token_to_id("\u{10a}"),
            ..SpecialIds::default()
        };
        assert_eq!(*opt.special(), expected);
        assert!(opt.special().newline.is_some());
    }
    let t5 = load("t5", TokenizerKind::T5);
    assert_eq!(
        (t5.special().pad, t5.special().eos, t5.special().unk),
        (Some(0), Some(1), Some(2))
    );
    assert_eq!((t5.special().bos, t5.special().newline), (None, None));
}

/// A `tokenizer.json` written by a fast class lacks the `</s>` that OPT was trained with.
#[test]
fn opt_begins_with_bos_whatever_the_layout() {
    let (slow, fast) = (
        load("opt", TokenizerKind::Opt),
        load("opt_fast", TokenizerKind::Opt),
    );
    let fixture = json("tokenizers/ids.json");
    let options = EncodeOptions::default();
    for text in strings(&fixture["strings"]) {
        let ids = fast.encode(text, &options).unwrap();
        assert_eq!(ids[0], 2);
        assert_eq!(ids, slow.encode(text, &options).unwrap(), "{text:?}");
    }
    let bare = EncodeOptions {
        add_special: false,
        ..options
    };
    assert!(fast.encode("", &bare).unwrap().is_empty());
}

#[test]
fn batches_equal_transformers() {
    let fixture = json("tokenizers/ids.json");
    let texts = strings(&fixture["batch"]["texts"]);
    let flat = |rows: &Value| {
        rows.as_array()
            .unwrap()
            .iter()
            .flat_map(numbers)
            .collect::<Vec<u32>>()
    };
    let mask = |batch: &TokenBatch| batch.mask.iter().map(|m| u32::from(*m)).collect::<Vec<_>>();

    let opt = load("opt", TokenizerKind::Opt);
    let batch = opt
        .encode_batch(&texts, &EncodeOptions::default(), Padding::LEFT)
        .unwrap();
    let expected = &fixture["batch"]["opt_left"];
    assert_eq!(
        (batch.ids.clone(), mask(&batch)),
        (flat(&expected[0]), flat(&expected[1]))
    );
    let positions: Vec<i64> = expected[2]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|row| row.as_array().unwrap().iter().map(|p| p.as_i64().unwrap()))
        .collect();
    assert_eq!(batch.positions(), positions);
    for (i, text) in texts.iter().enumerate() {
        let single = opt.encode(text, &EncodeOptions::default()).unwrap();
        assert!(batch.row(i).ends_with(&single));
    }

    let bert = load("bert", TokenizerKind::Bert);
    let batch = bert
        .encode_batch(&texts, &EncodeOptions::truncated(10), Padding::right_to(10))
        .unwrap();
    let expected = &fixture["batch"]["bert_right_10"];
    assert_eq!(
        (batch.ids.clone(), mask(&batch)),
        (flat(&expected[0]), flat(&expected[1]))
    );

    let none: [&str; 0] = [];
    let empty = bert
        .encode_batch(&none, &EncodeOptions::default(), Padding::RIGHT)
        .unwrap();
    assert_eq!((empty.batch, empty.length, empty.positions().len()), (0, 0, 0));
}

#[test]
fn truncation_keeps_the_special_tokens() {
    let bert = load("bert", TokenizerKind::Bert);
    let text = "one two three four five six seven";
    let full = bert.encode(text, &EncodeOptions::default()).unwrap();
    let right = bert.encode(text, &EncodeOptions::truncated(5)).unwrap();
    assert_eq!(right, [&full[..4], &full[full.len() - 1..]].concat());
    let left = EncodeOptions {
        truncation_side: Side::Left,
        ..EncodeOptions::truncated(5)
    };
    assert_eq!(
        bert.encode(text, &left).unwrap(),
        [&full[..1], &full[full.len() - 4..]].concat()
    );

    let small = bert.encode(text, &EncodeOptions::truncated(1)).unwrap_err();
    assert!(
        matches!(
            small,
            ProcessorError::MaxLength {
                max_length: 1,
                special: 2
            }
        ),
        "{small}"
    );
    let long = bert
        .encode_batch(&["a", text], &EncodeOptions::default(), Padding::right_to(4))
        .unwrap_err();
    assert!(
        matches!(
            long,
            ProcessorError::PadLength {
                index: 1,
                target: 4,
                ..
            }
        ),
        "{long}"
    );
}

#[test]
fn unusable_folders_are_typed_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let load = |kind| TextTokenizer::from_folder(folder.path(), kind).unwrap_err();
    for kind in [
        TokenizerKind::Bert,
        TokenizerKind::Opt,
        TokenizerKind::T5,
        TokenizerKind::Llama,
    ] {
        let error = load(kind);
        assert!(
            matches!(error, ProcessorError::MissingTokenizer { .. }),
            "{error}"
        );
        assert!(error.to_string().contains(&folder.path().display().to_string()));
    }
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("vocab.txt", "[PAD]\n[UNK]\nthe\n");
    assert!(
        matches!(load(TokenizerKind::Bert), ProcessorError::InvalidTokenizer { .. }),
        "no [CLS]"
    );
    write("vocab.json", r#"{"a": 0, "b": 1, "</s>": 2}"#);
    assert!(
        matches!(load(TokenizerKind::Opt), ProcessorError::MissingTokenizer { .. }),
        "no merges"
    );
    write("merges.txt", "#version: 0.2\na c\n");
    assert!(
        matches!(load(TokenizerKind::Opt), ProcessorError::InvalidTokenizer { .. }),
        "unknown piece"
    );
    write("merges.txt", "#version: 0.2\n");
    assert_eq!(
        TextTokenizer::from_folder(folder.path(), TokenizerKind::Opt)
            .unwrap()
            .vocab_size(),
        3
    );
    write("added_tokens.json", r#"{"<image>": 7}"#);
    let error = load(TokenizerKind::Opt);
    assert!(
        matches!(
            error,
            ProcessorError::AddedTokenId {
                expected: 7,
                found: 3,
                ..
            }
        ),
        "{error}"
    );
    write("added_tokens.json", "{");
    assert!(matches!(
        load(TokenizerKind::Opt),
        ProcessorError::InvalidJson { .. }
    ));
    write("tokenizer.json", "{}");
    let error = load(TokenizerKind::T5);
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
}

/// tokenizers 0.22 unwraps these inside its deserialiser.
#[test]
fn panics_of_the_library_become_errors() {
    let good = std::fs::read_to_string(path("tokenizers/t5/tokenizer.json")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (from, to) in [
        ("\"precompiled_charsmap\": \"", "\"precompiled_charsmap\": \"=="),
        (
            "\"decoder\": {\"type\": \"Metaspace\"",
            "\"decoder\": {\"type\": \"Metaspac\"",
        ),
    ] {
        assert!(good.contains(from));
        std::fs::write(folder.path().join("tokenizer.json"), good.replace(from, to)).unwrap();
        let error = TextTokenizer::from_folder(folder.path(), TokenizerKind::T5).unwrap_err();
        assert!(
            matches!(error, ProcessorError::InvalidTokenizer { .. }),
            "{error}"
        );
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }
}
