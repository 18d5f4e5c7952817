//! Generation with real (tiny) models against transformers 4.57.6: every option set of the fixtures, ids equal.
//!
//! Inputs whose tokens would change under noise of 3e-4 on the logits were dropped when the fixtures were
//! made, so equality of ids is a fair demand of any f32 backend. Scores: 1e-3 absolute, because
//! `length_penalty` -1 multiplies a sum of about ten log-probabilities, each good to 1e-4, by their number.

use blip2_model::blip2::conditional::{TokenBatch, select_rows};
use blip2_model::generate::{self, GenerateOptions};
use blip2_model::language::{Architecture, LanguageModel};
use blip2_model::nn::{Context, Kernels};
use blip2_model::processor::{EncodeOptions, TextTokenizer, TokenizerKind};
use serde_json::Value;

use crate::on_every_backend;
use crate::parity::load;
use crate::support::{Expected, fixture};

/// HF option names are ours; what the fixture leaves out stays at the architecture's default.
fn options(case: &Value, eos: i64, architecture: Architecture) -> GenerateOptions {
    let base = GenerateOptions {
        eos_token_ids: vec![eos],
        ..GenerateOptions::for_architecture(architecture)
    };
    let mut value = serde_json::to_value(base).expect("options serialise");
    let given = case["options"].as_object().expect("options of a case");
    for (name, setting) in given {
        value[name] = setting.clone();
    }
    serde_json::from_value(value).unwrap_or_else(|e| panic!("{}: {e}", case["name"]))
}

fn folder<B: Kernels>(name: &str, device: &B::Device) {
    let json =
        std::fs::read_to_string(fixture(&format!("parity/{name}/expected.json"))).expect("expected.json");
    let expected: Value = serde_json::from_str(&json).expect("JSON");
    let model = load::<B>(&format!("parity/{name}"), device);
    let language = model.language().expect("a language model");
    let architecture = language.architecture();
    let is_software_gpu = B::name(device).contains("wgpu");
    let eos = expected["eos_token_id"].as_i64().expect("eos");
    let ctx = Context::eval();
    let tensors = Expected::open(&format!("parity/{name}/expected.safetensors"));
    let image = model
        .encode_images(tensors.tensor::<B, 4>("pixel_values", device), &ctx)
        .expect("encode");
    let soft = model.soft_tokens(&image, &ctx).expect("soft tokens");
    let queries = model.config.num_query_tokens;
    let kind = match architecture {
        Architecture::DecoderOnly => TokenizerKind::Opt,
        Architecture::EncoderDecoder => TokenizerKind::T5,
    };
    let tokenizer = TextTokenizer::from_folder(fixture(&format!("parity/{name}")), kind).expect("tokenizer");
    let cases = expected["generation"].as_array().expect("cases");
    // a software GPU driver needs a second per token: the first cases (greedy, beam 5) are enough there
    let limit = if is_software_gpu { 2 } else { cases.len() };
    let mut compared = 0;
    for case in &cases[..limit] {
        let label = format!("{name} {}", case["name"]);
        let inputs = case["inputs"].as_array().expect("inputs");
        let images: Vec<usize> = inputs
            .iter()
            .map(|i| i["image"].as_u64().expect("image") as usize)
            .collect();
        let ids: Vec<Vec<i64>> = inputs
            .iter()
            .map(|input| {
                let prompt = input["prompt"].as_str().unwrap_or_default();
                let ids = tokenizer.encode(prompt, &EncodeOptions::default()).expect("ids");
                ids.into_iter().map(i64::from).collect()
            })
            .collect();
        let text = match architecture {
            Architecture::DecoderOnly => TokenBatch::left_padded(&ids, 1),
            Architecture::EncoderDecoder => TokenBatch::right_padded(&ids, 0),
        };
        let prompt = model
            .prompt(select_rows(soft.clone(), &images), &text)
            .expect("prompt");
        let placeholders = vec![model.config.image_token_index.unwrap_or(0); queries];
        let seen: Vec<Vec<i64>> = match case["seen_ids"].as_str() {
            Some("prompt") => ids
                .iter()
                .map(|ids| [placeholders.clone(), ids.clone()].concat())
                .collect(),
            _ => vec![Vec::new(); ids.len()],
        };
        let options = vec![options(case, eos, architecture); ids.len()];
        let got = generate::generate_after(
            language,
            prompt,
            &seen,
            &options,
            &ctx,
            &mut generate::stream::ignore,
        )
        .unwrap_or_else(|e| panic!("{label}: {e}"));
        let wanted = case["outputs"].as_array().expect("outputs");
        assert_eq!(got.len(), wanted.len(), "{label}");
        for ((got, wanted), input) in got.iter().zip(wanted).zip(inputs) {
            let wanted = wanted.as_array().expect("sequences");
            assert_eq!(got.sequences.len(), wanted.len(), "{label} {input}");
            for (got, want) in got.sequences.iter().zip(wanted) {
                let ids = want["token_ids"].as_array().expect("ids");
                let ids: Vec<i64> = ids.iter().filter_map(Value::as_i64).collect();
                assert_eq!(got.token_ids, ids, "{label} {input}");
                if let Some(score) = want["score"].as_f64() {
                    let diff = (f64::from(got.score) - score).abs();
                    assert!(diff < 1e-3, "{label} {input}: score {} for {score}", got.score);
                }
                compared += 1;
            }
        }
    }
    println!("{name}: {compared} sequences");
    assert!(compared >= 25, "{name}: only {compared} sequences");
}

fn opt<B: Kernels>(device: &B::Device) {
    folder::<B>("opt", device);
}

fn t5<B: Kernels>(device: &B::Device) {
    folder::<B>("t5", device);
}

on_every_backend!(opt, t5);
