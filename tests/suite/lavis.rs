//! LAVIS checkpoints against LAVIS's arithmetic (`fixtures/gen/lavis_parity.py`): a stage-1 file with its encoder, and
//! stage-2 files that leave encoder and language model out, with OPT behind EVA-CLIP and T5 behind CLIP.
//!
//! Bounds as in `parity`: 1e-4 absolute in f32, tokens identical, position tables 1e-5.

use std::path::PathBuf;

use blip2_model::blip2::Blip2;
use blip2_model::blip2::conditional::TokenBatch;
use blip2_model::checkpoint::{DtypePolicy, LavisParts, ModelFiles};
use blip2_model::generate::{self, GenerateOptions};
use blip2_model::language::{Architecture, LanguageModel};
use blip2_model::nn::mask::ids_tensor;
use blip2_model::nn::{Context, Kernels};
use blip2_model::processor::{EncodeOptions, TextTokenizer, TokenizerKind};
use blip2_model::vision::position::resize_table;
use serde_json::{Value, json};

use crate::on_every_backend;
use crate::parity::{compare_retrieval, rows, zero_padding};
use crate::support::{Expected, compare_trace, fixture, max_diff};

const BOUND: f32 = 1e-4;

fn folder(name: &str) -> PathBuf {
    fixture(&format!("parity/{name}"))
}

fn facts(name: &str) -> Value {
    let text = std::fs::read_to_string(folder(name).join("expected.json")).expect("expected.json");
    serde_json::from_str(&text).expect("JSON")
}

/// Opens the one `.pth` that is the checkpoint; heads are the only thing that the files do not tell.
pub fn open(name: &str) -> ModelFiles {
    let file = match name {
        "lavis-stage1" => "blip2_pretrained.pth",
        _ => "checkpoint.pth",
    };
    let facts = facts(name);
    let heads = json!({
        "vision_config": {"num_attention_heads": facts["model"]["vit_heads"]},
        "qformer_config": {"num_attention_heads": facts["model"]["qformer_heads"]},
    });
    let dir = tempfile::tempdir().expect("a folder");
    let config = dir.path().join("heads.json");
    std::fs::write(&config, heads.to_string()).expect("heads");
    let parts = LavisParts {
        config: Some(config),
        ..LavisParts::default()
    };
    ModelFiles::open(&folder(name).join(file), &parts).unwrap_or_else(|e| panic!("{e}"))
}

fn load<B: Kernels>(name: &str, device: &B::Device) -> Blip2<B> {
    let files = open(name);
    let policy = DtypePolicy::f32();
    let loaded = Blip2::load(files.config, files.source.as_ref(), policy, false, device);
    loaded.unwrap_or_else(|e| panic!("{e}")).0
}

fn stage1<B: Kernels>(device: &B::Device) {
    let model = load::<B>("lavis-stage1", device);
    let expected = Expected::open("parity/lavis-stage1/expected.safetensors");
    let compared = compare_retrieval(&model, &expected, BOUND, "lavis-stage1");
    assert!(
        compared >= 12,
        "lavis-stage1: only {compared} tensors were compared"
    );
}

fn stage1_grounded_text<B: Kernels>(device: &B::Device) {
    let model = load::<B>("lavis-stage1", device);
    let expected = Expected::open("parity/lavis-stage1/expected.safetensors");
    let facts = facts("lavis-stage1");
    let ctx = Context::eval();
    let pixels = expected.tensor::<B, 4>("pixel_values", device);
    let image = model.encode_images(pixels, &ctx).expect("encode");
    let bridge = &model.bridge;
    let head = bridge.lm_head.as_ref().expect("a head");
    let words = &bridge.qformer.embeddings.as_ref().expect("words").word_embeddings;
    let logits = |image: &blip2_model::blip2::ImageFeatures<B>, text: &TokenBatch| {
        let cache = bridge.query_pass(&image.keys, image.batch(), &ctx).cache;
        let ids = ids_tensor(&text.ids, device);
        let hidden = bridge.qformer.grounded(ids, &text.mask, &cache, &ctx);
        head.forward(hidden, words)
    };

    let text = rows(&expected, "grounded.input_ids", "grounded.attention_mask");
    let mut all = logits(&image, &text).into_data();
    zero_padding(&mut all, &text.mask);
    let all: Vec<f32> = all.to_vec().expect("f32");
    let diff = max_diff(&all, &expected.values("grounded.logits").0);
    assert!(diff <= BOUND, "grounded.logits: {diff}");

    // greedy captions of the Q-Former alone
    for (picture, wanted) in facts["grounded_greedy_token_ids"]
        .as_array()
        .expect("captions")
        .iter()
        .enumerate()
    {
        let wanted: Vec<i64> = wanted
            .as_array()
            .expect("ids")
            .iter()
            .filter_map(Value::as_i64)
            .collect();
        let image = image.select(&[picture]);
        let mut ids = vec![facts["dec_token_id"].as_i64().expect("[DEC]")];
        for _ in 0..wanted.len() {
            let text = TokenBatch::right_padded(std::slice::from_ref(&ids), 0);
            let last: Vec<f32> = logits(&image, &text)
                .narrow(1, ids.len() - 1, 1)
                .into_data()
                .to_vec()
                .expect("f32");
            let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b]));
            ids.push(best.expect("a vocabulary") as i64);
        }
        assert_eq!(ids[1..], wanted, "caption of picture {picture}");
    }
}

fn stage2<B: Kernels>(name: &str, device: &B::Device) {
    let model = load::<B>(name, device);
    let expected = Expected::open(&format!("parity/{name}/expected.safetensors"));
    let facts = facts(name);
    let ctx = Context::tracing();
    let pixels = expected.tensor::<B, 4>("pixel_values", device);
    let image = model.encode_images(pixels, &ctx).expect("encode");
    let soft = model.soft_tokens(&image, &ctx).expect("soft tokens");
    let text = rows(&expected, "prompt.input_ids", "prompt.attention_mask");
    let language = model.language().expect("a language model");
    let prompt = model.prompt(soft.clone(), &text).expect("prompt");
    let (_, logits) = language.prefill(prompt.clone(), 4, &ctx);
    ctx.record("logits", &logits);
    let compared = compare_trace(&ctx.into_trace(), &expected, BOUND, name);
    assert!(compared >= 11, "{name}: only {compared} tensors were compared");

    // the tokenizer is LAVIS's too
    let kind = match language.architecture() {
        Architecture::DecoderOnly => TokenizerKind::Opt,
        Architecture::EncoderDecoder => TokenizerKind::T5,
    };
    let files = open(name);
    let tokenizer =
        TextTokenizer::from_folder(files.language_tokenizer.expect("a folder"), kind).expect("files");
    let prompts = facts["prompts"].as_array().expect("prompts").iter();
    let ids: Vec<Vec<i64>> = prompts
        .map(|prompt| {
            let ids = tokenizer.encode(prompt.as_str().expect("text"), &EncodeOptions::default());
            ids.expect("ids").into_iter().map(i64::from).collect()
        })
        .collect();
    for ((got, row), mask) in ids.iter().zip(&text.ids).zip(text.mask.rows()) {
        let real: Vec<i64> = row
            .iter()
            .zip(mask)
            .filter(|(_, real)| **real)
            .map(|(id, _)| *id)
            .collect();
        assert_eq!(*got, real, "{name}: ids of a prompt");
    }

    let (_, settings) = files.generation.expect("generation settings");
    let base = GenerateOptions::hf(&settings, language.architecture()).expect("options");
    // a software GPU driver needs a second per token
    let is_software_gpu = B::name(device).contains("wgpu");
    let cases = facts["generation"].as_array().expect("cases").iter();
    for case in cases.take(if is_software_gpu { 1 } else { usize::MAX }) {
        let mut options = serde_json::to_value(&base).expect("options serialise");
        for (option, value) in case["options"].as_object().expect("options") {
            options[option] = value.clone();
        }
        let options: GenerateOptions = serde_json::from_value(options).expect("options");
        let options = vec![options; ids.len()];
        let got = generate::generate(
            language,
            prompt.clone(),
            &options,
            &Context::eval(),
            &mut generate::stream::ignore,
        );
        let got: Vec<Vec<i64>> = got
            .expect("generated")
            .into_iter()
            .map(|g| g.sequences[0].token_ids.clone())
            .collect();
        let wanted: Vec<Vec<i64>> = serde_json::from_value(case["token_ids"].clone()).expect("ids");
        assert_eq!(got, wanted, "{name} {}", case["options"]);
    }

    // at another size LAVIS resizes the positions when it loads the encoder, the engine when it runs
    let ctx = Context::tracing();
    let pixels = expected.tensor::<B, 4>("resized.pixel_values", device);
    let image = model.encode_images(pixels, &ctx).expect("encode");
    model.soft_tokens(&image, &ctx).expect("soft tokens");
    let trace = ctx.into_trace();
    let trace = trace
        .into_iter()
        .map(|(name, data)| (format!("resized.{name}"), data));
    let compared = compare_trace(&trace.collect(), &expected, BOUND, name);
    assert!(
        compared >= 9,
        "{name}: only {compared} tensors were compared at the other size"
    );
}

fn stage2_opt_behind_eva<B: Kernels>(device: &B::Device) {
    stage2::<B>("lavis-stage2-opt", device);
}

fn stage2_t5_behind_clip<B: Kernels>(device: &B::Device) {
    stage2::<B>("lavis-stage2-t5", device);
}

on_every_backend!(
    stage1,
    stage1_grounded_text,
    stage2_opt_behind_eva,
    stage2_t5_behind_clip,
);

#[test]
fn position_tables_follow_both_rules() {
    let expected = Expected::open("parity/lavis-positions/expected.safetensors");
    let mut compared = 0;
    for name in expected.names() {
        let parts: Vec<&str> = name.split('.').collect();
        let [side, rule @ ("eva" | "clip"), size] = parts[..] else {
            continue;
        };
        let (table, shape) = expected.values(&format!("{side}.table"));
        let (rows, cols) = size.split_once('x').expect("ROWSxCOLS");
        let size = (rows.parse().expect("rows"), cols.parse().expect("columns"));
        let got = resize_table(
            &table,
            shape[2],
            side.parse().expect("a side"),
            size,
            rule == "clip",
        );
        let diff = max_diff(&got, &expected.values(&name).0);
        assert!(diff <= 1e-5, "{name}: {diff}");
        compared += 1;
    }
    assert_eq!(compared, 18);
}

#[test]
fn the_model_is_told_from_its_keys() {
    for (name, class) in [
        ("lavis-stage1", "Blip2Stage1"),
        ("lavis-stage2-opt", "Blip2ForConditionalGeneration"),
        ("lavis-stage2-t5", "Blip2ForConditionalGeneration"),
    ] {
        let files = open(name);
        let facts = facts(name);
        let config = serde_json::to_value(&files.config).expect("a config");
        assert_eq!(config["architectures"][0], class);
        assert_eq!(config["num_query_tokens"], facts["model"]["num_query_token"]);
        assert_eq!(config["vision_config"]["image_size"], 42);
        assert_eq!(config["vision_config"]["patch_size"], 14);
        assert_eq!(
            config["vision_config"]["num_hidden_layers"], 2,
            "{name}: the spare block"
        );
        assert_eq!(config["qformer_config"]["cross_attention_frequency"], 2);
        assert_eq!(config["vision_config"]["post_layer_norm_eps"], 1e-5);
    }
    assert_eq!(open("lavis-stage1").config.image_text_hidden_size, 22);
}

/// What is missing is said completely, with the options to give it by.
#[test]
fn a_checkpoint_without_its_parts_says_what_it_needs() {
    let dir = tempfile::tempdir().expect("a folder");
    let error = |from: &str, file: &str| {
        let path = dir.path().join(file);
        std::fs::copy(folder(from).join(file), &path).expect("copy");
        let error = ModelFiles::open(&path, &LavisParts::default()).err();
        error.expect("nothing of it is here").to_string()
    };
    let opt = error("lavis-stage2-opt", "checkpoint.pth");
    for word in [
        "width 32 (--vision FILE)",
        "OPT language model of width 40 (--llm DIR|HUB_ID)",
    ] {
        assert!(opt.contains(word), "{opt}");
    }
    let stage1 = error("lavis-stage1", "blip2_pretrained.pth");
    assert!(
        stage1.contains("--tokenizer DIR") && !stage1.contains("--vision"),
        "{stage1}"
    );
    let encoder = error("lavis-stage2-opt", "eva_vit_g.pth");
    assert!(encoder.contains("--vision"), "{encoder}");
    // everything is there but the heads
    let path = folder("lavis-stage2-t5").join("checkpoint.pth");
    let heads = ModelFiles::open(&path, &LavisParts::default())
        .err()
        .expect("no heads");
    let heads = heads.to_string();
    for field in [
        "vision_config.num_attention_heads",
        "qformer_config.num_attention_heads",
        "--config",
    ] {
        assert!(heads.contains(field), "{heads}");
    }
    // a part that is none
    let parts = LavisParts {
        vision: Some(folder("lavis-stage1").join("expected.safetensors")),
        ..LavisParts::default()
    };
    let wrong = ModelFiles::open(&path, &parts)
        .err()
        .expect("no encoder")
        .to_string();
    assert!(wrong.contains("no image encoder"), "{wrong}");
}
