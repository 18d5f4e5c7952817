//! What trains, by name and by count.

use std::collections::BTreeSet;

use blip2_model::backend::Flex;
use blip2_model::qformer::{Bridge, BridgeConfig, QFormerConfig};
use blip2_model::vision::{ClipVitConfig, EvaVitConfig, VisionConfig};
use burn::backend::Autodiff;
use burn::tensor::backend::BackendTypes;

use super::testing::*;
use super::*;
use crate::params;

type B = Autodiff<Flex>;

fn device() -> <B as BackendTypes>::Device {
    Default::default()
}

fn full(width: usize) -> QFormerConfig {
    QFormerConfig {
        vocab_size: 30523,
        encoder_hidden_size: width,
        ..QFormerConfig::default()
    }
}

/// Spec, section 0. Lazy parameters stay lazy: the largest module here would take 746 MB.
#[test]
fn trainable_counts_are_those_of_the_published_models() {
    let stage1 = |width| BridgeConfig::stage1(full(width), 32, 1e-5, 256).init::<Flex>(&device());
    assert_eq!(params::count(&stage1(1408)), 186_705_470);
    assert_eq!(params::count(&stage1(1024)), 183_165_758);
    let stage2 = |width, d_llm| {
        let bridge = BridgeConfig::stage2(full(width), 32, 1e-5, d_llm).init::<Flex>(&device());
        params::count(&bridge)
    };
    assert_eq!(stage2(1408, 2560), 107_133_696); // OPT-2.7B
    assert_eq!(stage2(1408, 4096), 108_314_880); // OPT-6.7B, FlanT5-XXL
    assert_eq!(stage2(1408, 2048), 106_739_968); // FlanT5-XL
    assert_eq!(stage2(1024, 2560), 103_593_984); // OPT-2.7B, ViT-L
    assert_eq!(stage2(1024, 2048), 103_200_256); // FlanT5-XL, ViT-L
}

#[test]
fn encoder_counts_are_those_of_the_published_encoders() {
    let eva = |size| {
        let config = VisionConfig::Eva(EvaVitConfig::default()).with_image_size(size);
        // LAVIS has no key bias; here it is a slot of the fused bias whose gradient is zeroed
        params::count(&config.init::<Flex>(&device())) - 39 * 1408
    };
    assert_eq!(eva(224), 985_894_528);
    assert_eq!(eva(364), 986_485_888);
    let clip = VisionConfig::Clip(ClipVitConfig::default()).init::<Flex>(&device());
    assert_eq!(params::count(&clip), 290_581_504);
}

/// Names of spec section 8.1 for `layers` layers.
fn lavis_names(layers: usize, stage1: bool) -> BTreeSet<String> {
    let mut names = BTreeSet::from(["query_tokens".to_string()]);
    let mut both = |prefix: &str| {
        for leaf in ["weight", "bias"] {
            names.insert(format!("{prefix}.{leaf}"));
        }
    };
    both("ln_vision");
    both("Qformer.bert.embeddings.LayerNorm");
    for i in 0..layers {
        let layer = format!("Qformer.bert.encoder.layer.{i}");
        for block in ["attention", "crossattention"] {
            if block == "crossattention" && i % 2 == 1 {
                continue;
            }
            for part in [
                "self.query",
                "self.key",
                "self.value",
                "output.dense",
                "output.LayerNorm",
            ] {
                both(&format!("{layer}.{block}.{part}"));
            }
        }
        for suffix in ["_query", ""] {
            if suffix.is_empty() && !stage1 {
                continue;
            }
            both(&format!("{layer}.intermediate{suffix}.dense"));
            both(&format!("{layer}.output{suffix}.dense"));
            both(&format!("{layer}.output{suffix}.LayerNorm"));
        }
    }
    if stage1 {
        for head in ["vision_proj", "text_proj", "itm_head"] {
            both(head);
        }
        both("Qformer.cls.predictions.transform.dense");
        both("Qformer.cls.predictions.transform.LayerNorm");
        for name in [
            "Qformer.bert.embeddings.word_embeddings.weight",
            "Qformer.bert.embeddings.position_embeddings.weight",
            "Qformer.cls.predictions.bias",
            "temp",
        ] {
            names.insert(name.into());
        }
    } else {
        both("opt_proj");
    }
    names
}

/// LAVIS names -> paths of a bridge's parameters, through the key tables of the model crate.
fn paths(lavis_names: BTreeSet<String>) -> BTreeSet<String> {
    use blip2_model::checkpoint::{huggingface, lavis};
    let config = blip2_model::config::Blip2Config::from_json("{}").unwrap();
    let keys = huggingface::keys(&config);
    let path = |name: &String| {
        let path = keys.path(&lavis::to_huggingface(name)?)?;
        Some(path.strip_prefix("bridge.")?.to_string())
    };
    lavis_names
        .iter()
        .map(|name| path(name).unwrap_or_else(|| panic!("no parameter for {name}")))
        .collect()
}

fn trained(gradients: &params::Named<Flex>) -> BTreeSet<String> {
    let moved = gradients.iter().filter(|(_, grad)| {
        let values = params::to_host(grad);
        assert!(values.iter().all(|v| v.is_finite()));
        values.iter().any(|&v| v != 0.0)
    });
    moved.map(|(name, _)| name.clone()).collect()
}

#[test]
fn stage1_trains_exactly_the_parameters_of_the_specification() {
    let module: Bridge<B> = stage1_bridge(qformer(), &device());
    let config = Stage1Config {
        dec_token: DEC,
        ..Stage1Config::default()
    };
    let stage = Stage1::<B, Bridge<B>>::new(encoder(&device()), config, device());
    let batch = pairs(0, 4);
    let step = context(stage.target_count(&batch) as f64);
    let out = stage.step(&module, &batch, &step).unwrap();
    assert_eq!(trained(&out.gradients), paths(lavis_names(3, true)));
    assert_eq!(out.gradients.len(), params::list(&module).len());
    let parts: Vec<_> = out.losses.iter().map(|(name, _)| *name).collect();
    assert_eq!(parts, ["itc", "itm", "itg"]);
}

#[test]
fn text_only_trains_what_stage_2_does_not_have() {
    let module: Bridge<B> = stage1_bridge(qformer(), &device());
    let config = Stage1Config {
        dec_token: DEC,
        text_only: true,
        ..Stage1Config::default()
    };
    let stage = Stage1::<B, Bridge<B>>::new(encoder(&device()), config, device());
    let batch = pairs(0, 4);
    let out = stage.step(&module, &batch, &context(stage.target_count(&batch) as f64));
    let both = paths(lavis_names(3, false));
    let mut alone = paths(lavis_names(3, true));
    alone.retain(|name| !both.contains(name));
    assert_eq!(trained(&out.unwrap().gradients), alone);
}

/// The contrastive loss of four pairs, the first two with one caption, and what received a gradient.
fn contrast_of(config: Stage1Config) -> (f32, BTreeSet<String>) {
    let module: Bridge<B> = stage1_bridge(qformer(), &device());
    let config = Stage1Config {
        dec_token: DEC,
        itm_weight: 0.0,
        itg_weight: 0.0,
        ..config
    };
    let stage = Stage1::<B, Bridge<B>>::new(encoder(&device()), config, device());
    let mut batch = pairs(0, 4);
    batch.text = batch.text.select(&[0, 0, 2, 3]);
    batch.image_ids = Some(vec![7, 7, 8, 9]);
    let out = stage.step(&module, &batch, &context(stage.target_count(&batch) as f64));
    let out = out.unwrap();
    let loss = out.losses[0].1.clone().into_scalar();
    (loss, trained(&out.gradients))
}

#[test]
fn equal_captions_are_positives_of_each_other_as_equal_pictures_are() {
    let with = |caption_ids, image_ids| {
        contrast_of(Stage1Config {
            caption_ids,
            image_ids,
            ..Stage1Config::default()
        })
        .0
    };
    assert_eq!(with(true, false), with(false, true));
    assert_ne!(with(true, false), with(false, false));
}

#[test]
fn a_floored_temperature_is_used_and_does_not_learn() {
    let with = |min_temp| {
        contrast_of(Stage1Config {
            min_temp,
            ..Stage1Config::default()
        })
    };
    let (free, floored) = (with(0.0), with(0.5));
    assert_eq!(with(0.06), free);
    assert_ne!(floored.0, free.0);
    let lost: Vec<_> = free.1.difference(&floored.1).collect();
    assert_eq!(lost, ["temp"]);
}

#[test]
fn stage2_trains_exactly_the_parameters_of_the_specification() {
    let module: Bridge<B> = stage2_bridge(qformer(), &device());
    let llm = Frozen::new::<B>(toy_lm::<B>(&device()));
    let encoder = encoder(&device());
    let stage = Stage2::<B, Bridge<B>, _>::new(encoder, llm, Stage2Config::default(), device());
    let batch = captions(0, 3);
    let step = context(stage.target_count(&batch) as f64);
    let out = stage.step(&module, &batch, &step).unwrap();
    assert_eq!(trained(&out.gradients), paths(lavis_names(3, false)));
    assert_eq!(out.gradients.len(), params::list(&module).len());
}

#[test]
fn fine_tuning_trains_the_encoder_except_the_key_bias() {
    let module = WithEncoder {
        encoder: encoder(&device()),
        bridge: stage2_bridge(qformer(), &device()),
    };
    let llm = Frozen::new::<B>(toy_lm::<B>(&device()));
    let stage = Stage2::<B, WithEncoder<B>, _>::new((), llm, Stage2Config::default(), device());
    let batch = captions(0, 3);
    let step = context(stage.target_count(&batch) as f64);
    let out = stage.step(&module, &batch, &step).unwrap();
    assert_eq!(out.gradients.len(), params::list(&module).len());
    for (name, grad) in &out.gradients {
        let values = params::to_host(grad);
        assert!(values.iter().any(|&v| v != 0.0), "{name} did not move");
        if name.ends_with("self_attn.qkv.bias") {
            assert!(values[12..24].iter().all(|&v| v == 0.0), "{name}");
        }
    }
}

#[test]
fn the_border_gives_the_gradients_of_one_graph() {
    let config = without_dropout(qformer());
    let module = WithEncoder::<B> {
        encoder: encoder(&device()),
        bridge: stage2_bridge(config, &device()),
    };
    let llm = Frozen::new::<B>(toy_lm::<B>(&device()));
    let options = Stage2Config { llm_dropout: false };
    let stage = Stage2::<B, WithEncoder<B>, _>::new((), llm.clone(), options, device());
    let batch = captions(0, 3);
    let count = stage.target_count(&batch) as f64;
    let split = stage.step(&module, &batch, &context(count)).unwrap();

    // the same loss without a border: one graph from pixels to loss
    let Images::Pixels(pixels) = &batch.images else {
        unreachable!()
    };
    let recording = super::graph::Recording::start();
    use blip2_model::language::{LanguageModel, Prompt};
    use blip2_model::nn::{Context, PadMask};
    use blip2_model::vision::ImageEncoder;
    let ctx = Context::eval();
    let pixels = burn::tensor::Tensor::<B, 4>::from_data(pixels.clone(), &device());
    let embeds = module
        .bridge
        .image_embeds(module.encoder.forward(pixels, &ctx), &ctx);
    let keys = module.bridge.qformer.image_keys(embeds);
    let hidden = module.bridge.query_pass(&keys, 3, &ctx).hidden;
    let projection = module.bridge.language_projection.as_ref().unwrap();
    let prompt = Prompt {
        embeds: projection.forward(hidden),
        mask: PadMask::ones(3, 4),
    };
    let logits = llm.teacher_forced(prompt, &batch.target.ids, &batch.target.mask, &ctx);
    let mut grads = recording.backward(crate::losses::lm(logits, &batch.labels, count));
    for (name, grad) in params::gradients(&module, &mut grads) {
        if name.ends_with("qkv.bias") {
            continue; // its key part is zeroed on purpose
        }
        let (a, b) = (params::to_host(&grad), params::to_host(&split.gradients[&name]));
        let scale = a.iter().fold(0f32, |m, v| m.max(v.abs()));
        let error = a.iter().zip(&b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        // the same products; only sums over token gradients may be ordered differently
        assert!(error <= 1e-5 * scale, "{name}: {error} of {scale}");
    }
}

#[test]
fn evaluation_has_no_dropout_and_no_gradients() {
    let module: Bridge<B> = stage1_bridge(qformer(), &device());
    let config = Stage1Config {
        dec_token: DEC,
        ..Stage1Config::default()
    };
    let stage = Stage1::<B, Bridge<B>>::new(encoder(&device()), config, device());
    let batch = pairs(0, 4);
    let mut step = context(stage.target_count(&batch) as f64);
    let losses = |step: &StepContext<'_, B>| -> Vec<f32> {
        let parts = stage.evaluate(&module, &batch, step).unwrap();
        parts.into_iter().map(|(_, l)| l.into_scalar()).collect()
    };
    let first = losses(&step);
    step.step = 9; // another dropout stream, and other negatives
    let second = losses(&step);
    assert_eq!((first[0], first[2]), (second[0], second[2]));
}

#[test]
fn one_pair_alone_trains_without_negatives() {
    let module: Bridge<B> = stage1_bridge(qformer(), &device());
    let config = Stage1Config {
        dec_token: DEC,
        ..Stage1Config::default()
    };
    let stage = Stage1::<B, Bridge<B>>::new(encoder(&device()), config, device());
    let batch = pairs(0, 1);
    let step = context(stage.target_count(&batch) as f64);
    let out = stage.step(&module, &batch, &step).unwrap();
    let itc: f32 = out.losses[0].1.clone().into_scalar();
    // one candidate: exactly 0 but for the order of additions in the smoothing
    assert!(itc.abs() < 1e-6);
    assert!(
        out.gradients
            .values()
            .all(|g| params::to_host(g).iter().all(|v| v.is_finite()))
    );
}

#[test]
fn stored_features_equal_recomputed_ones_and_cannot_train_an_encoder() {
    let module: Bridge<B> = stage2_bridge(without_dropout(qformer()), &device());
    let llm = Frozen::new::<B>(toy_lm::<B>(&device()));
    let encoder = encoder::<Flex>(&device());
    let mut batch = captions(0, 2);
    let Images::Pixels(pixels) = &batch.images else {
        unreachable!()
    };
    let tokens = encoded::frozen_tokens(&encoder, pixels, &device()).into_data();
    let stage = Stage2::<B, Bridge<B>, _>::new(
        encoder,
        llm.clone(),
        Stage2Config { llm_dropout: false },
        device(),
    );
    let step = context(stage.target_count(&batch) as f64);
    let loss = |batch: &LmBatch| -> f32 {
        let out = stage.step(&module, batch, &step).unwrap();
        out.losses[0].1.clone().into_scalar()
    };
    let computed = loss(&batch);
    batch.images = Images::Features(tokens);
    assert_eq!(computed, loss(&batch));

    let module = WithEncoder {
        encoder: super::testing::encoder(&device()),
        bridge: module,
    };
    let stage = Stage2::<B, WithEncoder<B>, _>::new((), llm, Stage2Config::default(), device());
    let error = stage.step(&module, &batch, &step).unwrap_err();
    assert!(matches!(error, StageError::FeaturesForTrainedEncoder));
}

/// Recomputing activations in the backward pass is a choice of the backend type; nothing else changes.
#[test]
fn activation_checkpointing_gives_the_same_gradients() {
    use burn::backend::autodiff::checkpoint::strategy::BalancedCheckpointing;
    fn gradients<C: burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy>() -> params::Named<Flex>
    {
        type A<C> = Autodiff<Flex, C>;
        let module: Bridge<A<C>> = stage1_bridge(without_dropout(qformer()), &device());
        let config = Stage1Config {
            dec_token: DEC,
            ..Stage1Config::default()
        };
        let stage = Stage1::<A<C>, Bridge<A<C>>>::new(encoder(&device()), config, device());
        let batch = pairs(0, 4);
        let step = context(stage.target_count(&batch) as f64);
        stage.step(&module, &batch, &step).unwrap().gradients
    }
    let plain = gradients::<burn::backend::autodiff::checkpoint::strategy::NoCheckpointing>();
    let balanced = gradients::<BalancedCheckpointing>();
    assert_eq!(plain.len(), balanced.len());
    for (name, grad) in plain {
        assert_eq!(
            params::to_host(&grad),
            params::to_host(&balanced[&name]),
            "{name}"
        );
    }
}

/// Mixed precision: frozen parts in half, everything that trains in f32.
#[test]
fn a_half_precision_encoder_differs_by_its_rounding_and_trains_f32() {
    use burn::tensor::DType;
    let with = |dtype: DType| {
        params::replace(encoder::<Flex>(&device()), |info| {
            let values = initial_values(info);
            (info.shape.len() > 1).then(|| values.convert_dtype(dtype))
        })
    };
    let batch = captions(0, 3);
    let Images::Pixels(pixels) = &batch.images else {
        unreachable!()
    };
    let tokens = |dtype| {
        let tokens = encoded::frozen_tokens(&with(dtype), pixels, &device());
        assert_eq!(tokens.dtype(), DType::F32);
        params::to_host(&tokens.reshape([-1]))
    };
    let full = tokens(DType::F32);
    let error = |other: Vec<f32>| {
        full.iter()
            .zip(other)
            .fold(0f32, |m, (a, b)| m.max((a - b).abs()))
    };
    let largest = full.iter().fold(0f32, |m, v| m.max(v.abs()));
    let (half, brain) = (error(tokens(DType::F16)), error(tokens(DType::BF16)));
    // weights with 11 and 8 bits; a dozen roundings add up to a few units
    assert!(
        half > 0.0 && half < 4.0 * 2f32.powi(-11) * largest,
        "{half} of {largest}"
    );
    assert!(
        brain > half && brain < 4.0 * 2f32.powi(-8) * largest,
        "{brain} of {largest}"
    );

    let module: Bridge<B> = stage2_bridge(qformer(), &device());
    let llm = Frozen::new::<B>(toy_lm::<B>(&device()));
    let stage = Stage2::<B, Bridge<B>, _>::new(with(DType::F16), llm, Stage2Config::default(), device());
    let step = context(stage.target_count(&batch) as f64);
    let out = stage.step(&module, &batch, &step).unwrap();
    assert!(out.gradients.values().all(|grad| grad.dtype() == DType::F32));
}

/// The tiny encoder's start, as [`encoder`] draws it.
fn initial_values(info: &params::ParamInfo) -> burn::tensor::TensorData {
    let draw = crate::initial::encoder_rule(info, &Default::default());
    let values = draw.values(2, &info.name, info.len());
    burn::tensor::TensorData::new(values, info.shape.clone())
}

#[test]
fn queries_start_with_the_feed_forward_of_the_text() {
    let module = crate::initial::copy_text_to_query(stage1_bridge::<Flex>(qformer(), &device()));
    let values = params::values(&module);
    let mut compared = 0;
    for (name, value) in &values {
        if name.contains("ffn_query") {
            let text = &values[&name.replace("ffn_query", "ffn_text")];
            assert_eq!(params::to_host(value), params::to_host(text), "{name}");
            compared += 1;
        }
    }
    assert_eq!(compared, 3 * 6);
}

/// Visual question answering: the Q-Former reads the question too, so its text branch trains; only the
/// last layer's text rows lead nowhere.
#[test]
fn a_question_reaches_the_queries() {
    use blip2_model::qformer::BridgeConfig;
    let mut sizes = qformer();
    sizes.use_qformer_text_input = true;
    let bridge = BridgeConfig::stage2(sizes, 4, 1e-5, LLM_WIDTH).init::<B>(&device());
    let module = crate::initial::initialise(bridge, 1, crate::initial::bridge_rule);
    let llm = Frozen::new::<B>(toy_lm::<B>(&device()));
    let stage = Stage2::<B, Bridge<B>, _>::new(encoder(&device()), llm, Stage2Config::default(), device());
    let mut batch = captions(0, 3);
    batch.qformer_text = Some(pairs(7, 3).text);
    let out = stage
        .step(&module, &batch, &context(stage.target_count(&batch) as f64))
        .unwrap();
    let missing: Vec<_> = params::list(&module)
        .into_iter()
        .map(|info| info.name)
        .filter(|name| !out.gradients.contains_key(name))
        .collect();
    assert!(
        missing
            .iter()
            .all(|name| name.starts_with("qformer.layers.2.ffn_text")),
        "{missing:?}"
    );
    assert!(trained(&out.gradients).contains("qformer.embeddings.word_embeddings.weight"));
}
