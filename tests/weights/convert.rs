//! `convert` in both directions: tensors byte-identical after a round trip, folders complete, nothing overwritten.

use std::path::{Path, PathBuf};

use blip2_model::backend::Flex;
use blip2_model::blip2::Blip2;
use blip2_model::checkpoint::convert::{ConvertError, ConvertOptions, to_huggingface, to_lavis};
use blip2_model::checkpoint::expected::{ExpectedTensor, expected_tensors};
use blip2_model::checkpoint::{DtypePolicy, LavisParts, ModelFiles, PartDtype};
use blip2_model::generate::GenerateOptions;
use blip2_model::language::Architecture;
use blip2_model::session::{Request, Session};
use blip2_model::weights::torch::TorchFile;
use blip2_model::weights::writer::WriteOptions;
use blip2_model::weights::{DType, TensorSource, WeightsError, checkpoint_dir};
use serde_json::{Value, json};

use crate::support::fixture;

const FOLDERS: [&str; 5] = ["opt", "opt-legacy", "opt-350m-form", "t5", "itm"];
const LAVIS: [&str; 3] = ["lavis-stage1", "lavis-stage2-opt", "lavis-stage2-t5"];

fn folder(name: &str) -> PathBuf {
    fixture(&format!("parity/{name}"))
}

fn files(path: &Path, parts: &LavisParts) -> ModelFiles {
    ModelFiles::open(path, parts).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn shapes(files: &ModelFiles) -> Vec<ExpectedTensor> {
    expected_tensors(&Blip2::<Flex>::new(files.config.clone(), &Default::default()).unwrap())
}

fn options(max_shard_bytes: u64) -> ConvertOptions {
    ConvertOptions {
        write: WriteOptions {
            max_shard_bytes,
            overwrite: false,
        },
        ..ConvertOptions::default()
    }
}

/// Converts to a Hugging Face folder.
fn huggingface(path: &Path, parts: &LavisParts, dest: &Path, options: &ConvertOptions) {
    let files = files(path, parts);
    let expected = shapes(&files);
    let done = to_huggingface(files, &expected, dest, options).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(done.tensors, expected.len());
    assert!(done.files.iter().all(|file| file.exists()));
}

fn lavis(path: &Path, dest: &Path, options: &ConvertOptions) {
    let files = files(path, &LavisParts::default());
    let expected = shapes(&files);
    to_lavis(files, &expected, dest, options).unwrap_or_else(|e| panic!("{e}"));
}

/// Heads of a LAVIS fixture, which its weights do not tell, as a file for `--config`.
fn heads(name: &str, dir: &Path) -> LavisParts {
    let facts = std::fs::read_to_string(folder(name).join("expected.json")).unwrap();
    let facts: Value = serde_json::from_str(&facts).unwrap();
    let heads = json!({
        "vision_config": {"num_attention_heads": facts["model"]["vit_heads"]},
        "qformer_config": {"num_attention_heads": facts["model"]["qformer_heads"]},
    });
    let config = dir.join("heads.json");
    std::fs::write(&config, heads.to_string()).unwrap();
    LavisParts {
        config: Some(config),
        ..LavisParts::default()
    }
}

fn pth(name: &str) -> PathBuf {
    let file = match name {
        "lavis-stage1" => "blip2_pretrained.pth",
        _ => "checkpoint.pth",
    };
    folder(name).join(file)
}

/// Both have the same names with the same bytes, but for `ours` lacking copies that `theirs` may have.
fn assert_same_bytes(ours: &dyn TensorSource, theirs: &dyn TensorSource, copies: &[&str]) {
    for info in theirs.infos() {
        if copies.iter().any(|copy| info.name.contains(copy)) && ours.info(&info.name).is_none() {
            continue;
        }
        let want = theirs.get(&info.name).unwrap();
        let got = ours.get(&info.name).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(got.dtype(), want.dtype(), "{}", info.name);
        assert_eq!(got.shape(), want.shape(), "{}", info.name);
        assert!(got.bytes() == want.bytes(), "{} differs", info.name);
    }
    for info in ours.infos() {
        assert!(theirs.info(&info.name).is_some(), "{} is new", info.name);
    }
}

/// Tied copies and buffers in torch files.
const COPIES: [&str; 4] = [
    "embed_tokens.weight",
    "lm_head.weight",
    "position_ids",
    "decoder.",
];

#[test]
fn any_container_becomes_safetensors_with_the_same_bytes() {
    for name in FOLDERS {
        let source = checkpoint_dir::open(folder(name)).unwrap();
        for shard in [u64::MAX, 25_000] {
            let out = tempfile::tempdir().unwrap();
            huggingface(&folder(name), &LavisParts::default(), out.path(), &options(shard));
            let written = checkpoint_dir::open(out.path()).unwrap();
            assert_same_bytes(written.source.as_ref(), source.source.as_ref(), &COPIES[..3]);
            let is_sharded = written.source.path().to_string_lossy().ends_with(".index.json");
            assert_eq!(is_sharded, shard < u64::MAX, "{name}");
            assert_eq!(written.config_json, source.config_json);
            // and it opens as a whole
            Session::<Flex>::open(out.path(), DtypePolicy::f32(), false, &Default::default())
                .unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
}

#[test]
fn hugging_face_to_lavis_and_back_keeps_every_byte() {
    for name in FOLDERS {
        for trained_only in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("checkpoint.pth");
            let to_pth = ConvertOptions {
                trained_only,
                ..ConvertOptions::default()
            };
            lavis(&folder(name), &file, &to_pth);
            let inside = TorchFile::open(&file).unwrap();
            assert_eq!(inside.top_key(), Some("model"));
            let has_encoder = inside.info("visual_encoder.pos_embed").is_some();
            assert_eq!(has_encoder, !trained_only, "{name}");
            assert!(
                inside
                    .info("Qformer.bert.encoder.layer.0.attention.self.query.weight")
                    .is_some()
            );

            let source = folder(name);
            let parts = LavisParts {
                vision: Some(source.clone()),
                llm: Some(source.clone()),
                tokenizer: Some(source.clone()),
                config: Some(source.join("config.json")),
            };
            let out = dir.path().join("back");
            huggingface(&file, &parts, &out, &options(u64::MAX));
            let (back, first) = (
                checkpoint_dir::open(&out).unwrap(),
                checkpoint_dir::open(&source).unwrap(),
            );
            assert_same_bytes(back.source.as_ref(), first.source.as_ref(), &COPIES[..3]);
            let reread = files(&out, &LavisParts::default());
            assert_eq!(
                reread.config.qformer_config,
                files(&source, &LavisParts::default()).config.qformer_config
            );
        }
    }
}

#[test]
fn lavis_to_hugging_face_and_back_keeps_every_byte() {
    for name in LAVIS {
        let dir = tempfile::tempdir().unwrap();
        let parts = heads(name, dir.path());
        let out = dir.path().join("hf");
        huggingface(&pth(name), &parts, &out, &options(25_000));
        let back = dir.path().join("back.pth");
        let to_pth = ConvertOptions {
            trained_only: name != "lavis-stage1",
            ..ConvertOptions::default()
        };
        lavis(&out, &back, &to_pth);
        let (back, first) = (
            TorchFile::open(&back).unwrap(),
            TorchFile::open(pth(name)).unwrap(),
        );
        assert_same_bytes(&back, &first, &COPIES[2..]);
    }
}

/// The written folder needs nothing else: it captions as LAVIS does, tokenizers included.
#[test]
fn a_converted_folder_answers_as_the_lavis_checkpoint_does() {
    for name in ["lavis-stage2-opt", "lavis-stage2-t5"] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("hf");
        huggingface(&pth(name), &heads(name, dir.path()), &out, &options(u64::MAX));
        let session = Session::<Flex>::open(&out, DtypePolicy::f32(), false, &Default::default()).unwrap();
        let facts = std::fs::read_to_string(folder(name).join("expected.json")).unwrap();
        let facts: Value = serde_json::from_str(&facts).unwrap();
        let pictures: Vec<String> = serde_json::from_value(facts["images"].clone()).unwrap();
        let prompts: Vec<String> = serde_json::from_value(facts["prompts"].clone()).unwrap();
        let case = &facts["generation"][0];
        let options = GenerateOptions {
            max_new_tokens: case["options"]["max_new_tokens"].as_u64().unwrap() as usize,
            ..session.generation.clone().unwrap()
        };
        let requests: Vec<Request> = pictures
            .iter()
            .zip(&prompts)
            .map(|(image, prompt)| Request {
                image: image.clone(),
                prompt: prompt.clone(),
                question: String::new(),
                options: options.clone(),
            })
            .collect();
        let images: Vec<_> = pictures
            .iter()
            .map(|image| Session::<Flex>::read_image(&fixture(&format!("parity/images/{image}"))).unwrap())
            .collect();
        let answers = session.answer(&images, &requests).unwrap();
        let ids: Vec<_> = answers.iter().map(|a| a.outputs[0].token_ids.clone()).collect();
        assert_eq!(json!(ids), case["token_ids"], "{name}");
        let t5 = session.architecture().unwrap() == Architecture::EncoderDecoder;
        // the tiny OPT has no spare row for the placeholder of newer transformers, the tiny T5 has
        assert_eq!(
            session.model.config.image_token_index,
            t5.then_some(170),
            "{name}"
        );
        assert_eq!(out.join("processor_config.json").exists(), t5);
    }
}

#[test]
fn a_converted_stage_1_matches_texts_with_its_own_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("hf");
    huggingface(
        &pth("lavis-stage1"),
        &heads("lavis-stage1", dir.path()),
        &out,
        &options(u64::MAX),
    );
    let session = Session::<Flex>::open(&out, DtypePolicy::f32(), false, &Default::default()).unwrap();
    let plain = folder("lavis-stage1").join("bert-base-uncased");
    assert!(
        !std::fs::read_to_string(plain.join("tokenizer.json"))
            .unwrap()
            .contains("[DEC]")
    );
    assert!(
        std::fs::read_to_string(out.join("tokenizer.json"))
            .unwrap()
            .contains("[DEC]")
    );
    let facts = std::fs::read_to_string(folder("lavis-stage1").join("expected.json")).unwrap();
    let facts: Value = serde_json::from_str(&facts).unwrap();
    let texts: Vec<String> = serde_json::from_value(facts["texts"].clone()).unwrap();
    let got = session.tokenize_texts(&texts, None).unwrap();
    let expected = crate::support::Expected::open("parity/lavis-stage1/expected.safetensors");
    assert_eq!(got.ids, expected.ints("text.input_ids"));
    assert_eq!(session.model.config.qformer_config.vocab_size, 220);
}

#[test]
fn a_dtype_changes_the_frozen_matrices_only() {
    let dir = tempfile::tempdir().unwrap();
    let narrow = ConvertOptions {
        dtype: PartDtype::BF16,
        ..ConvertOptions::default()
    };
    huggingface(&folder("opt"), &LavisParts::default(), dir.path(), &narrow);
    let written = checkpoint_dir::open(dir.path()).unwrap().source;
    let source = checkpoint_dir::open(folder("opt")).unwrap().source;
    let mut counts = [0, 0];
    for info in written.infos() {
        let frozen = info.name.starts_with("vision_model.") || info.name.starts_with("language_model.");
        let wanted = match frozen && info.shape.len() > 1 {
            true => DType::BF16,
            false => DType::F32,
        };
        assert_eq!(info.dtype, wanted, "{}", info.name);
        let expected = source.get(&info.name).unwrap().convert(wanted).unwrap();
        assert!(written.get(&info.name).unwrap().bytes() == expected.bytes());
        counts[usize::from(wanted == DType::BF16)] += 1;
    }
    assert!(counts[0] > 50 && counts[1] > 20, "{counts:?}");
    // f16 is refused where it overflows
    let files = files(&folder("t5"), &LavisParts::default());
    let expected = shapes(&files);
    let half = ConvertOptions {
        dtype: PartDtype::F16,
        ..ConvertOptions::default()
    };
    let refused = to_huggingface(files, &expected, &dir.path().join("t5"), &half);
    assert!(matches!(refused, Err(ConvertError::Policy(_))));
}

#[test]
fn nothing_is_overwritten_and_failures_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.pth");
    std::fs::write(&file, "mine").unwrap();
    let files = || files(&folder("opt"), &LavisParts::default());
    let expected = shapes(&files());
    let refused = to_lavis(files(), &expected, &file, &ConvertOptions::default()).unwrap_err();
    assert!(refused.to_string().contains("already exists"), "{refused}");
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    let mut forced = ConvertOptions::default();
    forced.write.overwrite = true;
    to_lavis(files(), &expected, &file, &forced).unwrap();
    assert!(TorchFile::open(&file).is_ok());

    // a folder that cannot be made: its parent is a file
    let refused = to_huggingface(
        files(),
        &expected,
        &file.join("folder"),
        &ConvertOptions::default(),
    );
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("a.pth"), "{refused}");

    // a checkpoint that lacks a tensor, and one with a tensor too many
    let mut more = expected.clone();
    more.push(ExpectedTensor {
        path: "bridge.itm_head.weight".into(),
        name: "itm_head.weight".into(),
        shape: vec![2, 35],
    });
    let out = dir.path().join("out");
    for (shapes, word) in [
        (&more[..], "itm_head.weight"),
        (&expected[1..], &*expected[0].name),
    ] {
        let error = to_huggingface(files(), shapes, &out, &ConvertOptions::default()).unwrap_err();
        let ConvertError::Weights(inner) = &error else {
            panic!("{error}")
        };
        let listed = matches!(
            inner.as_ref(),
            WeightsError::MissingTensors { names, .. } | WeightsError::UnusedTensors { names, .. }
                if names.iter().any(|name| name == word)
        );
        assert!(listed, "{error}");
        assert!(!out.exists());
    }
    let mut misshapen = expected.clone();
    misshapen[3].shape.push(2);
    let error = to_huggingface(files(), &misshapen, &out, &ConvertOptions::default()).unwrap_err();
    assert!(error.to_string().contains("expected ["), "{error}");
    assert!(!out.exists());
}
