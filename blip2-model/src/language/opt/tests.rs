use serde_json::json;

use super::*;
use crate::language::LanguageConfig;
use crate::language::testing::*;

on_cpu_backends! {
    reference: matches_reference("opt");
    reference_350m_form: matches_reference("opt_350m_form");
    reference_untied: matches_reference("opt_untied");
    batch: batch_equals_singles("opt");
    batch_350m_form: batch_equals_singles("opt_350m_form");
    steps: teacher_forcing_equals_steps("opt");
    steps_350m_form: teacher_forcing_equals_steps("opt_350m_form");
    select: select_moves_whole_rows("opt");
    lazy_tied_head: a_lazy_tied_head_is_the_token_table();
}

fn a_lazy_tied_head_is_the_token_table<B: Kernels>() {
    let config = OptConfig {
        vocab_size: 11,
        hidden_size: 8,
        num_hidden_layers: 0,
        num_attention_heads: 2,
        _remove_final_layer_norm: true,
        ..OptConfig::default()
    };
    let model = config.init::<B>(&B::Device::default()).unwrap();
    let x = Tensor::ones([1, 1, 8], &B::Device::default());
    // the head is asked first, while the table has not drawn its values yet
    let head = values(model.logits(x));
    let table = values(model.decoder.embed_tokens.weight.val());
    for (row, logit) in table.chunks(8).zip(head) {
        // sums of eight numbers of size 0.02
        assert!((row.iter().sum::<f32>() - logit).abs() < 1e-6);
    }
}

// ndarray has no bf16
#[cfg(feature = "flex")]
#[test]
fn half_weights() {
    half_weights_keep_wide_activations::<crate::backend::Flex>("opt");
    half_weights_keep_wide_activations::<crate::backend::Flex>("opt_350m_form");
}

#[test]
fn unsupported_values_are_errors() {
    let refused = |value: serde_json::Value| {
        let config: LanguageConfig = serde_json::from_value(value)?;
        config.validate()?;
        Ok::<_, ConfigError>(())
    };
    let field = |value| match refused(value) {
        Err(ConfigError::Unsupported { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        field(json!({"model_type": "opt", "layerdrop": 0.1})),
        "text_config.layerdrop"
    );
    assert_eq!(
        field(json!({"model_type": "opt", "hidden_size": 10, "num_attention_heads": 3})),
        "text_config.num_attention_heads"
    );
    assert_eq!(
        field(json!({"model_type": "opt", "layer_norm_elementwise_affine": false})),
        "text_config.layer_norm_elementwise_affine"
    );
    let parse = |value| matches!(refused(value), Err(ConfigError::Json { .. }));
    assert!(parse(json!({"model_type": "gpt2"})));
    assert!(parse(json!({"model_type": "opt", "activation_function": "glu"})));
    assert!(refused(json!({"model_type": "opt"})).is_ok());
}

/// Also shows that nothing is allocated: 66 billion parameters would not fit.
#[cfg(feature = "flex")]
#[test]
fn presets_have_the_published_number_of_parameters() {
    // counted with transformers 4.57.6 on the meta device, tied head
    let published = [
        ("125m", 125_239_296),
        ("350m", 331_196_416),
        ("1.3b", 1_315_758_080),
        ("2.7b", 2_651_596_800),
        ("6.7b", 6_658_473_984),
        ("13b", 12_853_473_280),
        ("30b", 29_974_540_288),
        ("66b", 65_719_701_504),
    ];
    assert!(OptConfig::presets().eq(published.iter().map(|p| p.0)));
    for (name, count) in published {
        let config = LanguageConfig::Opt(OptConfig::preset(name).unwrap());
        assert_eq!(lazy_parameters(&config), count, "{name}");
    }
}
