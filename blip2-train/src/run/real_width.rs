//! Measurement at the published sizes: what a stage-1 step costs, and what the feature store saves.

use std::time::Instant;

use blip2_model::backend::Flex;
use blip2_model::nn::PadMask;
use blip2_model::qformer::{Bridge, BridgeConfig, QFormerConfig};
use blip2_model::vision::{EvaVitConfig, VisionConfig};
use burn::backend::Autodiff;
use burn::module::Module;
use burn::tensor::TensorData;

use super::flops::{StepSize, encoder_forward, stage1_step};
use crate::optim::{AdamW, AdamWConfig, GroupRule};
use crate::params;
use crate::stage::testing::context;
use crate::stage::{Images, PairBatch, Stage, Stage1, Stage1Config, TextBatch};

type Ad = Autodiff<Flex>;

/// Cheap weights of the right size: drawing a thousand million normals would take longer than the test.
fn filled<B: burn::tensor::backend::Backend, M: Module<B>>(module: M) -> M {
    params::replace(module, |info| {
        let norm = info.shape.len() == 1 && info.name.ends_with("weight");
        let value = |i: usize| {
            if norm {
                1.0
            } else {
                ((i * 7919 % 1009) as f32 / 1009.0 - 0.5) * 0.06
            }
        };
        let values: Vec<f32> = (0..info.len()).map(value).collect();
        Some(TensorData::new(values, info.shape.clone()))
    })
}

#[test]
#[ignore = "minutes, and 8 GB of memory"]
fn a_stage_1_step_with_and_without_the_store() {
    let blocks: usize = std::env::var("BLIP2_BENCH_BLOCKS").map_or(39, |n| n.parse().unwrap());
    let batch: usize = std::env::var("BLIP2_BENCH_BATCH").map_or(4, |n| n.parse().unwrap());
    let device = Default::default();
    let vision = VisionConfig::Eva(EvaVitConfig {
        num_hidden_layers: blocks,
        ..EvaVitConfig::default()
    });
    let qformer = QFormerConfig {
        vocab_size: 30523,
        ..QFormerConfig::default()
    };
    let encoder = filled(vision.init::<Flex>(&device));
    let bridge = BridgeConfig::stage1(qformer.clone(), 32, 1e-5, 256).init::<Ad>(&device);
    let mut module: Bridge<Ad> = filled(bridge);
    let stage = Stage1::<Ad, Bridge<Ad>>::new(encoder.clone(), Stage1Config::default(), device);
    let text = 12;
    let pixels = TensorData::new(vec![0.1f32; batch * 3 * 224 * 224], [batch, 3, 224, 224]);
    let mut pairs = PairBatch {
        keys: (0..batch).map(|i| i.to_string()).collect(),
        images: Images::Pixels(pixels.clone()),
        text: TextBatch {
            ids: (0..batch)
                .map(|b| (0..text).map(|t| 1000 + (b * 31 + t) as i64).collect())
                .collect(),
            mask: PadMask::ones(batch, text),
        },
        image_ids: None,
    };
    let step = context(stage.target_count(&pairs) as f64);

    let start = Instant::now();
    let tokens = crate::stage::encoded::frozen_tokens(&encoder, &pixels, &device).into_data();
    let encode = start.elapsed().as_secs_f64();

    let start = Instant::now();
    stage.step(&module, &pairs, &step).unwrap();
    let from_pixels = start.elapsed().as_secs_f64();

    pairs.images = Images::Features(tokens);
    let start = Instant::now();
    let out = stage.step(&module, &pairs, &step).unwrap();
    let from_store = start.elapsed().as_secs_f64();

    let mut optimizer = AdamW::new(AdamWConfig::default());
    let mut seconds = 0.0;
    for _ in 0..2 {
        let gradients = out.gradients.clone();
        let start = Instant::now();
        module = optimizer.step::<Ad, _>(module, gradients, 1e-4, &GroupRule::default());
        seconds = start.elapsed().as_secs_f64();
    }
    let size = StepSize {
        batch,
        queries: 32,
        text,
    };
    let rate = |flops: f64, seconds: f64| flops / seconds / 1e9;
    eprintln!(
        "batch {batch}, {blocks} blocks: encoder {encode:.2} s ({:.0} GFLOP/s), step from pixels {from_pixels:.2} s, \
         from stored features {from_store:.2} s ({:.0} GFLOP/s), optimizer {seconds:.2} s; speed-up {:.2}",
        rate(batch as f64 * encoder_forward(&vision), encode),
        rate(stage1_step(&vision, &qformer, size, false), from_store),
        (from_pixels + seconds) / (from_store + seconds)
    );
}
