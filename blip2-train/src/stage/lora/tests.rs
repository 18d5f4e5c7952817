//! Adapters start as nothing, train alone, and merge into the weights.

use blip2_model::backend::Flex;
use blip2_model::checkpoint::huggingface;
use blip2_model::config::Blip2Config;
use burn::backend::Autodiff;
use burn::tensor::TensorData;
use burn::tensor::backend::BackendTypes;

use super::*;
use crate::stage::Trained;
use crate::stage::testing::*;
use crate::stage::{Frozen, Stage, Stage2, Stage2Config, Trainable};

type Ad = Autodiff<Flex>;

fn device() -> <Ad as BackendTypes>::Device {
    Default::default()
}

fn loss<M: Trainable<Ad, Encoder = blip2_model::vision::AnyEncoder<Flex>>>(module: &M) -> (f32, Vec<String>) {
    let llm = Frozen::new::<Ad>(toy_lm::<Ad>(&device()));
    let options = Stage2Config { llm_dropout: false };
    let stage = Stage2::<Ad, M, _>::new(encoder(&device()), llm, options, device());
    let batch = captions(0, 3);
    let out = stage
        .step(module, &batch, &context(stage.target_count(&batch) as f64))
        .unwrap();
    let moved = out
        .gradients
        .iter()
        .filter(|(_, g)| params::to_host(g).iter().any(|&v| v != 0.0));
    let moved = moved.map(|(name, _)| name.clone()).collect();
    (params::to_host(&out.losses[0].1)[0], moved)
}

/// The module with noise in every `b`.
fn trained<M: Module<Ad>>(module: M) -> M {
    params::replace(module, |info| {
        let values = noise(&info.name, info.len()).into_iter().map(|v| v * 0.3);
        let is_b = info.name.contains("lora.") && info.name.ends_with(".b");
        is_b.then(|| TensorData::new(values.collect::<Vec<_>>(), info.shape.clone()))
    })
}

#[test]
fn an_untrained_adapter_changes_nothing_and_only_it_trains() {
    let bridge = stage2_bridge::<Ad>(without_dropout(qformer()), &device());
    let (plain, _) = loss(&bridge);
    let adapted = adapt_bridge(bridge, &LoraConfig::default(), 3, &device()).unwrap();
    // 3 layers with self-attention, 2 of them with cross-attention, query and value each
    assert_eq!(adapted.trained.lora_targets().len(), 10);
    let (start, moved) = loss(&adapted);
    assert_eq!(plain, start);
    assert!(moved.iter().any(|name| name == "lora.pairs.0.b"));
    assert!(moved.iter().all(|name| !name.starts_with("qformer")));
    // with b = 0 nothing reaches a yet; once b moves, a does
    assert!(!moved.iter().any(|name| name.ends_with(".a")));
    let (later, moved) = loss(&trained(adapted));
    assert_ne!(plain, later);
    assert!(moved.iter().any(|name| name == "lora.pairs.0.a"));
}

#[test]
fn merged_weights_give_the_adapted_loss() {
    let bridge = stage2_bridge::<Ad>(without_dropout(qformer()), &device());
    let adapted = trained(adapt_bridge(bridge.clone(), &LoraConfig::default(), 3, &device()).unwrap());
    let merged = merged_values(&adapted.bridge());
    let plain = params::replace(bridge, |info| {
        Some(TensorData::new(merged[&info.name].clone(), info.shape.clone()))
    });
    assert_eq!(loss(&adapted).0, loss(&plain).0);
}

#[test]
fn the_language_model_can_be_adapted_next_to_the_bridge() {
    let bridge = stage2_bridge::<Ad>(without_dropout(qformer()), &device());
    let (plain, _) = loss(&bridge);
    let config = LoraConfig {
        projections: vec!["hidden".into()],
        ..LoraConfig::default()
    };
    let llm = toy_lm::<Ad>(&device());
    let module = WithLanguageAdapters {
        inner: bridge,
        lora: Adapters::new(&llm, &config, 4, &device()).unwrap(),
    };
    let (start, moved) = loss(&module);
    assert_eq!(plain, start);
    assert!(moved.iter().any(|name| name == "lora.pairs.0.b"));
    assert!(moved.iter().any(|name| name == "inner.query_tokens"));
    assert_ne!(plain, loss(&trained(module)).0);
}

#[test]
fn names_follow_the_adapted_tensors() {
    let bridge = stage2_bridge::<Ad>(qformer(), &device());
    let adapted = adapt_bridge(bridge, &LoraConfig::default(), 3, &device()).unwrap();
    let keys = huggingface::keys(&Blip2Config::from_json("{}").unwrap());
    assert_eq!(
        adapted.file_name(&keys, "lora.pairs.1.a").unwrap(),
        "qformer.encoder.layer.0.attention.attention.value.lora_A.weight"
    );
    assert_eq!(adapted.file_name(&keys, "query_tokens").unwrap(), "query_tokens");
    for info in params::list(&adapted) {
        assert!(adapted.file_name(&keys, &info.name).is_some(), "{}", info.name);
    }
}

#[test]
fn a_projection_that_does_not_exist_is_an_error() {
    let config = LoraConfig {
        projections: vec!["qkv".into()],
        ..LoraConfig::default()
    };
    let bridge = stage2_bridge::<Ad>(qformer(), &device());
    let error = adapt_bridge(bridge, &config, 3, &device()).unwrap_err();
    assert!(error.to_string().contains("qkv"));
}
