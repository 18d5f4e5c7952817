use burn::tensor::TensorData;
use serde_json::json;

use super::*;
use crate::language::LanguageConfig;
use crate::language::testing::*;
use crate::nn::Activation;

on_cpu_backends! {
    reference: matches_reference("t5_flan");
    reference_tanh_tied: matches_reference("t5_tanh_tied");
    reference_v1: matches_reference("t5_v1");
    encoder: encoder_matches_reference("t5_flan");
    batch: batch_equals_singles_right_padded("t5_flan");
    steps: teacher_forcing_equals_steps("t5_flan");
    select: select_moves_whole_rows("t5_flan");
}

fn load<B: Kernels>(fixture: &Fixture) -> T5<B> {
    match fixture.model::<B>() {
        crate::language::AnyLanguageModel::T5(model) => model,
        other => panic!("{other:?}"),
    }
}

fn encoder_matches_reference<B: Kernels>(name: &str) {
    let fixture = Fixture::open(name);
    let encoded = load::<B>(&fixture).encode(fixture.prompt(), &Context::eval());
    assert_close("encoded", encoded, &fixture.floats("encoded"), EXACT);
}

/// A hole in the middle shifts relative positions, so cutting it out changes the result by design (in the
/// reference too): only rows padded on the right must equal their single runs.
fn batch_equals_singles_right_padded<B: Kernels>(name: &str) {
    let fixture = Fixture::open(name);
    let model = load::<B>(&fixture);
    let ctx = Context::eval();
    let steps = fixture.rows("steps");
    let prompt = fixture.prompt::<B>();
    let (mut state, mut batch) = model.prefill(prompt.clone(), steps.len(), &ctx);
    let mut alone: Vec<_> = (0..2)
        .map(|b| model.prefill(single(&prompt, b), steps.len(), &ctx))
        .collect();
    for tokens in &steps {
        for (b, (state, logits)) in alone.iter_mut().enumerate() {
            let row = batch.clone().narrow(0, b, 1);
            assert_close("batch and single", row, &logits.clone().into_data(), EXACT);
            *logits = model.step(&tokens[b..=b], state, &ctx);
        }
        batch = model.step(tokens, &mut state, &ctx);
    }
}

#[test]
fn buckets_match_reference() {
    let fixture = Fixture::open("t5_buckets");
    for (count, max_distance) in [(32, 128), (8, 11), (16, 50)] {
        for (way, bidirectional) in [("encoder", true), ("decoder", false)] {
            let buckets = RelativeBuckets {
                count,
                max_distance,
                bidirectional,
            };
            let got: Vec<_> = (-400..=400).map(|d| buckets.bucket(d)).collect();
            let want = fixture.numbers(&format!("{way}_{count}_{max_distance}"));
            assert_eq!(got, want, "{way} {count} {max_distance}");
        }
    }
}

// ndarray has no bf16
#[cfg(feature = "flex")]
mod half {
    use super::*;
    use crate::backend::Flex;

    #[test]
    fn half_weights() {
        half_weights_keep_wide_activations::<Flex>("t5_flan");
        half_weights_keep_wide_activations::<Flex>("t5_tanh_tied");
    }

    fn rms(x: &[f32], y: &[f32]) -> f32 {
        let sum: f32 = x.iter().zip(y).map(|(a, b)| (a - b) * (a - b)).sum();
        (sum / x.len() as f32).sqrt()
    }

    #[test]
    fn bf16_is_as_exact_as_the_reference_in_bf16() {
        let fixture = Fixture::open("t5_bf16");
        let model = load::<Flex>(&fixture);
        let (ids, mask) = (fixture.rows("target"), fixture.mask("target_mask"));
        let got = model.teacher_forced(fixture.prompt(), &ids, &mask, &Context::eval());
        assert_eq!(got.dtype(), DType::F32);
        let numbers = |data: TensorData| data.to_vec::<f32>().unwrap();
        let got = numbers(got.into_data());
        let exact = numbers(fixture.floats("teacher_forced_logits_f32"));
        let theirs = numbers(fixture.floats("teacher_forced_logits"));
        let (ours, theirs) = (rms(&got, &exact), rms(&theirs, &exact));
        // both round to bf16 after every operation, at slightly different places: same size of error
        assert!(ours < 1.5 * theirs, "ours {ours}, theirs {theirs}");
        assert!(ours > 0.0, "nothing was computed in bf16");
    }

    #[test]
    fn wide_wo_makes_the_residual_wide() {
        let fixture = Fixture::open("t5_bf16");
        let ctx = Context::eval();
        let bf16 = |_: &str, data: TensorData| data.convert_dtype(DType::BF16);
        let narrow = match fixture.model_as::<Flex>(bf16) {
            crate::language::AnyLanguageModel::T5(model) => model,
            other => panic!("{other:?}"),
        };
        for (model, dtype) in [(load::<Flex>(&fixture), DType::F32), (narrow, DType::BF16)] {
            let x = fixture.prompt().embeds;
            let block = &model.encoder.blocks[0].feed_forward;
            assert_eq!(block.forward(x, DType::BF16, &ctx).dtype(), dtype);
            let encoded = model.encode(fixture.prompt(), &ctx);
            assert_eq!(encoded.dtype(), DType::BF16, "as the embeddings");
        }
    }
}

/// Also shows that nothing is allocated.
#[cfg(feature = "flex")]
#[test]
fn presets_have_the_published_number_of_parameters() {
    // counted with transformers 4.57.6 on the meta device, untied head
    let published = [
        ("flan-t5-small", 76_961_152),
        ("flan-t5-base", 247_577_856),
        ("flan-t5-large", 783_150_080),
        ("flan-t5-xl", 2_849_757_184),
        ("flan-t5-xxl", 11_135_332_352),
    ];
    assert!(T5Config::presets().eq(published.iter().map(|p| p.0)));
    for (name, count) in published {
        let config = LanguageConfig::T5(T5Config::preset(name).unwrap());
        assert_eq!(lazy_parameters(&config), count, "{name}");
    }
}

#[test]
fn activation_follows_transformers() {
    let config = |value| match serde_json::from_value(value).unwrap() {
        LanguageConfig::T5(config) => config,
        other => panic!("{other:?}"),
    };
    let plain = config(json!({"model_type": "t5"}));
    assert_eq!(plain.activation().unwrap(), Activation::Relu);
    assert!(!plain.is_gated());
    let flan = config(json!({"model_type": "t5", "feed_forward_proj": "gated-gelu"}));
    assert_eq!(flan.activation().unwrap(), Activation::GeluTanh);
    assert!(flan.is_gated());
    let blip2 = config(json!({
        "model_type": "t5", "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"
    }));
    assert_eq!(blip2.activation().unwrap(), Activation::Gelu);
    let silu = config(json!({"model_type": "t5", "feed_forward_proj": "gated-silu"}));
    assert_eq!(silu.activation().unwrap(), Activation::Silu);
}

#[test]
fn unsupported_values_are_errors() {
    let field = |value| {
        let config: LanguageConfig = serde_json::from_value(value).unwrap();
        match config.validate() {
            Err(ConfigError::Unsupported { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        field(json!({"model_type": "t5", "feed_forward_proj": "gated-tanhshrink"})),
        "text_config.feed_forward_proj"
    );
    assert_eq!(
        field(json!({"model_type": "t5", "is_encoder_decoder": false})),
        "text_config.is_encoder_decoder"
    );
    assert_eq!(
        field(json!({"model_type": "t5", "relative_attention_num_buckets": 2})),
        "text_config.relative_attention_num_buckets"
    );
    assert_eq!(
        field(json!({"model_type": "t5", "relative_attention_max_distance": 16})),
        "text_config.relative_attention_max_distance"
    );
    assert_eq!(
        field(json!({"model_type": "t5", "num_heads": 0})),
        "text_config.num_heads"
    );
}
