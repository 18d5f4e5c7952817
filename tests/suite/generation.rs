//! Generation with real (tiny) models against transformers 4.57.6: every option set of the fixtures, ids equal.
//!
//! Inputs whose tokens would change under noise of 3e-4 on the logits were dropped when the fixtures were
//! made, so equality of ids is a fair demand of any f32 backend. Scores: 1e-3 absolute, because
//! `length_penalty` -1 multiplies a sum of about ten log-probabilities, each good to 1e-4, by their number.

use blip2_model::blip2::conditional::{TokenBatch, select_rows};
use blip2_model::generate::{self, GenerateOptions};
use blip2_model::language::{Architecture, LanguageModel};
use blip2_model::nn::{Context, Kernels};
use serde_json::Value;

use crate::on_every_backend;
use crate::parity::load;
use crate::support::{Expected, fixture};

/// HF option names are ours; what the fixture leaves out stays at the architecture's default.
fn options(case: &Value, eos: i64, architecture: Architecture) -> GenerateOptions {
    let base = GenerateOptions { eos_token_ids: vec![eos], ..GenerateOptions::for_architecture(architecture) };
    let mut value = serde_json::to_value(base).expect("options serialise");
    let given = case["options"].as_object().expect("options of a case");
    for (name, setting) in given {
        value[name] = setting.clone();
    }
    serde_json::from_value(value).unwrap_or_else(|e| panic!("{}: {e}", case["name"]))
}

fn folder<B: Kernels>(name: &str, device: &B::Device) {
    let json = std::fs::read_to_string(fixture(&format!("parity/{name}/expected.json"))).expect("expected.json");
    let expected: Value = serde_json::from_str(&json).expect("JSON");
    let model = load::<B>(&format!("parity/{name}"), device);
    let language = model.language().expect("a language model");
    let architecture = language.architecture();
    let eos = expected["eos_token_id"].as_i64().expect("eos");
    let ctx = Context::eval();
    let tensors = Expected::open(&format!("parity/{name}/expected.safetensors"));
    let image = model.encode_images(tensors.tensor::<B, 4>("pixel_values", device), &ctx).expect("encode");
    let soft = model.soft_tokens(&image, &ctx).expect("soft tokens");
    let queries = model.config.num_query_tokens;
    let mut compared = 0;
    for case in expected["generation"].as_array().expect("cases") {
        let options = options(case, eos, architecture);
        for run in case["runs"].as_array().expect("runs") {
            let Some(ids) = run["input_ids"].as_array() else { panic!("{}: no input ids", case["name"]) };
            let ids: Vec<i64> = ids.iter().filter_map(Value::as_i64).collect();
            let index = run["image"].as_u64().expect("image") as usize;
            let text = TokenBatch::left_padded(std::slice::from_ref(&ids), 1);
            let prompt = model.prompt(select_rows(soft.clone(), &[index]), &text).expect("prompt");
            let seen = match case["seen_ids"].as_str() {
                Some("prompt") => {
                    let placeholder = model.config.image_token_index.unwrap_or(0);
                    [vec![placeholder; queries], ids.clone()].concat()
                }
                _ => Vec::new(),
            };
            let rows = std::slice::from_ref(&options);
            let got = generate::generate_after(language, prompt, &[seen], rows, &ctx, &mut generate::stream::ignore)
                .unwrap_or_else(|e| panic!("{name} {}: {e}", case["name"]));
            for (sequence, want) in got[0].sequences.iter().zip(run["sequences"].as_array().expect("sequences")) {
                let want_ids: Vec<i64> =
                    want["token_ids"].as_array().expect("ids").iter().filter_map(Value::as_i64).collect();
                assert_eq!(sequence.token_ids, want_ids, "{name} {} image {index} {ids:?}", case["name"]);
                if let Some(score) = want["score"].as_f64() {
                    let diff = (f64::from(sequence.score) - score).abs();
                    assert!(diff < 1e-3, "{name} {}: score {} for {score}", case["name"], sequence.score);
                }
                compared += 1;
            }
        }
    }
    assert!(compared >= 50, "{name}: only {compared} sequences");
}

fn opt<B: Kernels>(device: &B::Device) {
    folder::<B>("opt", device);
}

fn t5<B: Kernels>(device: &B::Device) {
    folder::<B>("t5", device);
}

on_every_backend!(opt, t5);
