use serde_json::json;

use super::*;
use crate::language::LanguageConfig;
use crate::language::testing::*;

on_cpu_backends! {
    reference: matches_reference("llama");
    reference_tied: matches_reference("llama_tied");
    batch: batch_equals_singles("llama");
    steps: teacher_forcing_equals_steps("llama");
    select: select_moves_whole_rows("llama");
}

// ndarray has no bf16
#[cfg(feature = "flex")]
#[test]
fn half_weights() {
    half_weights_keep_wide_activations::<crate::backend::Flex>("llama");
    half_weights_keep_wide_activations::<crate::backend::Flex>("llama_tied");
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
        field(json!({"model_type": "llama", "num_attention_heads": 0})),
        "text_config.num_attention_heads"
    );
    assert_eq!(
        field(json!({"model_type": "llama", "num_key_value_heads": 5})),
        "text_config.num_key_value_heads"
    );
    assert_eq!(
        field(json!({"model_type": "llama", "head_dim": 3})),
        "text_config.head_dim"
    );
    assert_eq!(
        field(json!({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}})),
        "text_config.rope_scaling"
    );
    let plain = json!({"model_type": "llama", "rope_scaling": null, "eos_token_id": [2, 3]});
    let plain: LanguageConfig = serde_json::from_value(plain).unwrap();
    plain.validate().unwrap();
}

/// Also shows that nothing is allocated.
#[cfg(feature = "flex")]
#[test]
fn presets_have_the_published_number_of_parameters() {
    // counted with transformers 4.57.6 on the meta device, untied head
    let published = [
        ("7b", 6_738_415_616),
        ("13b", 13_015_864_320),
        ("30b", 32_528_943_616),
        ("65b", 65_285_660_672),
    ];
    assert!(LlamaConfig::presets().eq(published.iter().map(|p| p.0)));
    for (name, count) in published {
        let config = LanguageConfig::Llama(LlamaConfig::preset(name).unwrap());
        assert_eq!(lazy_parameters(&config), count, "{name}");
    }
}
