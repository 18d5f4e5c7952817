//! Losses and gradients of both stages against PyTorch in f64 (`fixtures/gen/losses.py`), with injected
//! negatives, on every backend.
//!
//! Bounds: losses 1e-5 relative, gradients 1e-4 of the tensor's largest element. f32 sums of some hundred
//! terms through four layers are good to about 1e-6; tensors whose gradient vanishes analytically (the bias
//! of attention keys) hold nothing but rounding, for which 1e-6 of the largest gradient of all is allowed.

use std::collections::BTreeMap;

use blip2_model::checkpoint::{huggingface, lavis};
use blip2_model::config::Blip2Config;
use blip2_model::language::{AnyLanguageModel, KeyTable, LanguageConfig};
use blip2_model::nn::{Kernels, PadMask};
use blip2_model::qformer::{Bridge, BridgeConfig, QFormerConfig};
use blip2_model::vision::{AnyEncoder, EvaVitConfig, VisionConfig};
use blip2_train::distributed::{Collective, Single, local};
use blip2_train::losses::{HardNegatives, IGNORE, target_count};
use blip2_train::params::{self, Named};
use blip2_train::stage::{
    Frozen, Images, LmBatch, PairBatch, Stage, Stage1, Stage1Config, Stage2, Stage2Config, StepContext,
    StepOutput, TextBatch, WithEncoder,
};
use burn::backend::Autodiff;
use burn::module::Module;
use burn::tensor::TensorData;
use burn::tensor::backend::Backend;
use serde_json::Value;

use crate::on_every_backend;
use crate::support::{Expected, fixture, max_diff};

type Ad<B> = Autodiff<B>;

fn case(name: &str) -> Expected {
    Expected::open(&format!("losses/{name}.safetensors"))
}

fn json(name: &str) -> Value {
    let text = std::fs::read_to_string(fixture(&format!("losses/{name}.json"))).expect("fixture");
    serde_json::from_str(&text).expect("json")
}

fn qformer(stage: &str) -> QFormerConfig {
    let sizes = json("sizes");
    let size = |key: &str| sizes[stage][key].as_u64().expect("a size") as usize;
    let image_width = sizes["image_width"].as_u64().expect("a size") as usize;
    QFormerConfig {
        vocab_size: sizes["stage1"]["vocab"].as_u64().expect("a size") as usize,
        hidden_size: size("width"),
        num_hidden_layers: size("layers"),
        num_attention_heads: size("heads"),
        intermediate_size: size("hidden"),
        max_position_embeddings: size("positions"),
        encoder_hidden_size: image_width,
        hidden_dropout_prob: 0.0,
        attention_probs_dropout_prob: 0.0,
        ..QFormerConfig::default()
    }
}

/// Path in the engine (`bridge.` or `vision.`) -> values under their LAVIS names.
fn by_path(values: BTreeMap<String, Vec<f32>>) -> BTreeMap<String, Vec<f32>> {
    let keys = huggingface::keys(&Blip2Config::from_json("{}").expect("defaults"));
    let mut out = BTreeMap::new();
    for (name, value) in &values {
        if name.ends_with("v_bias") {
            continue;
        }
        let (name, value) = match name.strip_suffix("q_bias") {
            // the fused bias: queries, a constant zero for keys, values
            Some(block) => {
                let zeros = vec![0.0; value.len()];
                let v = &values[&format!("{block}v_bias")];
                (format!("{block}qkv.bias"), [value.as_slice(), &zeros, v].concat())
            }
            None => (name.clone(), value.clone()),
        };
        let path = lavis::to_huggingface(&name).and_then(|name| keys.path(&name));
        out.insert(path.unwrap_or_else(|| panic!("no path for {name}")), value);
    }
    out
}

/// All tensors of a file whose name starts with `prefix`, without it.
fn tensors(file: &Expected, prefix: &str) -> BTreeMap<String, Vec<f32>> {
    let names = file.names().into_iter();
    names
        .filter_map(|name| Some((name.strip_prefix(prefix)?.to_string(), file.values(&name).0)))
        .collect()
}

/// Fills a trainable module; every parameter must be in the file.
fn fill<B: Backend, M: Module<B>>(
    module: M,
    values: &BTreeMap<String, Vec<f32>>,
    path: impl Fn(&str) -> String,
) -> M {
    params::replace(module, |info| {
        let path = path(&info.name);
        let value = values
            .get(&path)
            .unwrap_or_else(|| panic!("{path} is not in the fixture"));
        Some(TensorData::new(value.clone(), info.shape.clone()))
    })
}

fn stage1_bridge<B: Kernels>(device: &B::Device) -> Bridge<Ad<B>> {
    let sizes = &json("sizes")["stage1"];
    let queries = sizes["queries"].as_u64().expect("a size") as usize;
    let shared = sizes["shared"].as_u64().expect("a size") as usize;
    let config = BridgeConfig::stage1(qformer("stage1"), queries, 1e-5, shared);
    let values = by_path(tensors(&case("stage1_weights"), ""));
    fill(config.init::<Ad<B>>(device), &values, |name| {
        format!("bridge.{name}")
    })
}

fn vit() -> VisionConfig {
    let sizes = &json("sizes")["vit"];
    let size = |key: &str| sizes[key].as_u64().expect("a size") as usize;
    VisionConfig::Eva(EvaVitConfig {
        hidden_size: size("width"),
        intermediate_size: size("hidden"),
        num_hidden_layers: size("blocks"),
        num_attention_heads: size("heads"),
        image_size: size("image_size"),
        patch_size: size("patch"),
        ..EvaVitConfig::default()
    })
}

/// A frozen encoder that these cases never run: their pictures are features already.
fn unused_encoder<B: Kernels>(device: &B::Device) -> AnyEncoder<B> {
    vit().init(device)
}

fn text(file: &Expected, ids: &str, mask: &str) -> TextBatch {
    let mask = file.ints(mask).into_iter();
    TextBatch {
        ids: file.ints(ids),
        mask: PadMask::new(
            mask.map(|row| row.into_iter().map(|m| m == 1).collect())
                .collect(),
        ),
    }
}

fn images(file: &Expected) -> Images {
    let data = |name| {
        let (values, shape) = file.values(name);
        TensorData::new(values, shape)
    };
    match file.names().iter().any(|name| name == "input.pixel_values") {
        true => Images::Pixels(data("input.pixel_values")),
        false => Images::Features(data("input.image_tokens")),
    }
}

fn pairs(file: &Expected) -> PairBatch {
    let text = text(file, "input.ids", "input.attention_mask");
    let has_ids = file.names().iter().any(|name| name == "input.image_ids");
    PairBatch {
        keys: (0..text.ids.len()).map(|i| i.to_string()).collect(),
        images: images(file),
        text,
        image_ids: has_ids.then(|| file.ints("input.image_ids").concat()),
    }
}

/// Rows of one rank.
fn part(batch: &PairBatch, rank: usize, rows: usize) -> PairBatch {
    let index: Vec<usize> = (rank * rows..(rank + 1) * rows).collect();
    let Images::Features(all) = &batch.images else {
        panic!("only feature cases are split")
    };
    let values: Vec<f32> = all.iter::<f32>().collect();
    let row = values.len() / batch.keys.len();
    let mut shape = all.shape.to_vec();
    shape[0] = rows;
    let values = values[rank * rows * row..(rank + 1) * rows * row].to_vec();
    PairBatch {
        keys: index.iter().map(|&i| batch.keys[i].clone()).collect(),
        images: Images::Features(TensorData::new(values, shape)),
        text: batch.text.select(&index),
        image_ids: batch
            .image_ids
            .as_ref()
            .map(|ids| index.iter().map(|&i| ids[i]).collect()),
    }
}

fn negatives(file: &Expected, rank: usize) -> HardNegatives {
    let row = |name: &str| -> Vec<Option<usize>> {
        file.ints(name)[rank].iter().map(|&i| Some(i as usize)).collect()
    };
    HardNegatives {
        images: row("input.negative_image"),
        texts: row("input.negative_text"),
    }
}

fn options(batch: &PairBatch) -> Stage1Config {
    let sizes = json("sizes");
    Stage1Config {
        dec_token: sizes["dec_token_id"].as_i64().expect("an id"),
        pad_token: sizes["pad_token_id"].as_i64().expect("an id"),
        image_ids: batch.image_ids.is_some(),
        ..Stage1Config::default()
    }
}

fn context<B: Kernels>(normaliser: f64, collective: &dyn Collective<B>) -> StepContext<'_, Ad<B>> {
    StepContext {
        seed: 0,
        step: 0,
        micro: 0,
        train: true,
        normaliser,
        loss_scale: 1.0,
        collective,
    }
}

fn losses<B: Kernels>(out: &StepOutput<Ad<B>>) -> BTreeMap<String, f32> {
    let parts = out.losses.iter();
    parts
        .map(|(name, loss)| (name.to_string(), params::to_host(loss)[0]))
        .collect()
}

fn check_loss(label: &str, got: f32, want: f32) {
    assert!(
        (got - want).abs() <= 1e-5 * want.abs().max(1.0),
        "{label}: {got}, expected {want}"
    );
}

/// Every gradient of the fixture, and nothing but zeros where the fixture has none.
fn check_gradients<B: Kernels>(label: &str, got: &Named<B>, file: &Expected) {
    let want = by_path(tensors(file, "grad."));
    let largest = |values: &[f32]| values.iter().fold(0f32, |m, v| m.max(v.abs()));
    // f32 sums of a few hundred terms: 1e-4 of the largest entry, or 1e-6 of the largest gradient
    let floor = 1e-6 * want.values().map(|v| largest(v)).fold(0.0, f32::max);
    let mut compared = 0;
    let mut bad = Vec::new();
    for (name, grad) in got {
        let grad = params::to_host(grad);
        let path = match name.strip_prefix("encoder.") {
            Some(rest) => format!("vision.{rest}"),
            None if name.starts_with("bridge.") => name.clone(),
            None => format!("bridge.{name}"),
        };
        let zeros = vec![0.0; grad.len()];
        let expected = want.get(&path);
        compared += usize::from(expected.is_some());
        let expected = expected.unwrap_or(&zeros);
        let (error, scale) = (max_diff(&grad, expected), largest(expected));
        if error.is_nan() || error > 1e-4 * scale + floor {
            bad.push((path, error, scale));
        }
    }
    assert!(bad.is_empty(), "{label}: {bad:?}");
    assert_eq!(compared, want.len(), "{label}: gradients are missing");
}

fn run_stage1<B: Kernels>(
    config: Stage1Config,
    batch: &PairBatch,
    negatives: HardNegatives,
    normaliser: Option<f64>,
    collective: &dyn Collective<B>,
    device: &B::Device,
) -> StepOutput<Ad<B>> {
    let stage = Stage1::<Ad<B>, Bridge<Ad<B>>>::new(unused_encoder::<B>(device), config, device.clone())
        .with_negatives(negatives);
    let normaliser = normaliser.unwrap_or(stage.target_count(batch) as f64);
    stage
        .step(
            &stage1_bridge::<B>(device),
            batch,
            &context(normaliser, collective),
        )
        .expect("step")
}

fn one_process<B: Kernels>(device: &B::Device) {
    for name in ["stage1_one_rank", "stage1_image_ids", "stage1_two_ranks_as_one"] {
        let file = case(name);
        let batch = pairs(&file);
        let out = run_stage1::<B>(
            options(&batch),
            &batch,
            negatives(&file, 0),
            None,
            &Single,
            device,
        );
        for (part, loss) in losses(&out) {
            check_loss(
                &format!("{name} {part}"),
                loss,
                file.values(&format!("loss.{part}")).0[0],
            );
        }
        check_gradients::<B>(name, &out.gradients, &file);
    }
}

fn each_loss_alone<B: Kernels>(device: &B::Device) {
    let input = case("stage1_one_rank");
    let batch = pairs(&input);
    for part in ["itc", "itm", "itg"] {
        let file = case(&format!("stage1_{part}"));
        let weight = |name| f64::from(u8::from(part == name));
        let config = Stage1Config {
            itc_weight: weight("itc"),
            itm_weight: weight("itm"),
            itg_weight: weight("itg"),
            ..options(&batch)
        };
        let out = run_stage1::<B>(config, &batch, negatives(&input, 0), None, &Single, device);
        check_loss(
            part,
            losses(&out)[part],
            file.values(&format!("loss.{part}")).0[0],
        );
        check_gradients::<B>(part, &out.gradients, &file);
    }
}

/// Mean over ranks, as data-parallel training averages.
fn averaged<B: Kernels>(outs: &[StepOutput<Ad<B>>]) -> Named<B> {
    let mut sum = Named::<B>::new();
    for out in outs {
        for (name, grad) in &out.gradients {
            let grad = grad.clone() / outs.len() as f64;
            let total = match sum.remove(name) {
                Some(old) => old + grad,
                None => grad,
            };
            sum.insert(name.clone(), total);
        }
    }
    sum
}

fn two_processes<B: Kernels>(device: &B::Device) {
    for name in ["stage1_two_ranks", "stage1_two_ranks_image_ids"] {
        let file = case(name);
        let batch = pairs(&file);
        let outs = local::run(2, |me| {
            let rank = Collective::<B>::rank(me);
            let mine = part(&batch, rank, batch.keys.len() / 2);
            run_stage1::<B>(options(&mine), &mine, negatives(&file, rank), None, me, device)
        });
        for (rank, out) in outs.iter().enumerate() {
            for (part, loss) in losses(out) {
                let want = file.values(&format!("loss.{part}")).0[rank];
                check_loss(&format!("{name} rank {rank} {part}"), loss, want);
            }
        }
        check_gradients::<B>(name, &averaged(&outs), &file);
    }
}

/// Two processes of three pairs each make the step of one process with six.
fn two_processes_equal_one<B: Kernels>(device: &B::Device) {
    let file = case("stage1_two_ranks_as_one");
    let batch = pairs(&file);
    let rows = batch.keys.len() / 2;
    let all = negatives(&file, 0);
    let outs = local::run(2, |me| {
        let rank = Collective::<B>::rank(me);
        let mine = part(&batch, rank, rows);
        let own = rank * rows..(rank + 1) * rows;
        let negatives = HardNegatives {
            images: all.images[own.clone()].to_vec(),
            texts: all.texts[own].to_vec(),
        };
        let stage =
            Stage1::<Ad<B>, Bridge<Ad<B>>>::new(unused_encoder::<B>(device), options(&mine), device.clone());
        let whole = stage.target_count(&batch) as f64;
        run_stage1::<B>(options(&mine), &mine, negatives, Some(whole / 2.0), me, device)
    });
    for part in ["itc", "itm", "itg"] {
        let mean = outs.iter().map(|out| losses(out)[part]).sum::<f32>() / 2.0;
        check_loss(part, mean, file.values(&format!("loss.{part}")).0[0]);
    }
    check_gradients::<B>("two as one", &averaged(&outs), &file);
}

fn fine_tuning<B: Kernels>(device: &B::Device) {
    let file = case("stage1_finetune");
    let batch = pairs(&file);
    let values = by_path(tensors(&case("stage1_vit_weights"), ""));
    let module = WithEncoder {
        encoder: fill(vit().init::<Ad<B>>(device), &values, |name| {
            format!("vision.{name}")
        }),
        bridge: stage1_bridge::<B>(device),
    };
    let stage = Stage1::<Ad<B>, WithEncoder<Ad<B>>>::new((), options(&batch), device.clone())
        .with_negatives(negatives(&file, 0));
    let count = stage.target_count(&batch) as f64;
    let out = stage
        .step(&module, &batch, &context(count, &Single))
        .expect("step");
    for (part, loss) in losses(&out) {
        check_loss(&part, loss, file.values(&format!("loss.{part}")).0[0]);
    }
    check_gradients::<B>("fine-tuning", &out.gradients, &file);
}

fn language_model<B: Kernels>(name: &str, device: &B::Device) -> AnyLanguageModel<Ad<B>> {
    let config: LanguageConfig = serde_json::from_value(json(name)).expect("config");
    let keys = KeyTable::of(&config);
    let values = tensors(&case(name), "");
    let lm = config.init::<Ad<B>>(device).expect("valid");
    fill(lm, &values, |path| {
        let name = keys.name(path).unwrap_or_else(|| panic!("no name for {path}"));
        let alias = keys.aliases().iter().find(|(_, original)| *original == name);
        match alias {
            Some((copy, _)) if !values.contains_key(&name) => copy.to_string(),
            _ => name,
        }
    })
}

fn stage2_bridge<B: Kernels>(weights: &str, width: usize, device: &B::Device) -> Bridge<Ad<B>> {
    let queries = json("sizes")["stage2"]["queries"].as_u64().expect("a size") as usize;
    let config = BridgeConfig::stage2(qformer("stage2"), queries, 1e-5, width);
    let values = by_path(tensors(&case(weights), ""));
    fill(config.init::<Ad<B>>(device), &values, |name| {
        format!("bridge.{name}")
    })
}

fn check_stage2<B: Kernels>(label: &str, family: &str, width: usize, batch: &LmBatch, device: &B::Device) {
    let file = case(label);
    let llm = Frozen::new::<Ad<B>>(language_model::<B>(&format!("{family}_lm"), device));
    let module = stage2_bridge::<B>(&format!("{family}_weights"), width, device);
    let options = Stage2Config { llm_dropout: false };
    let stage =
        Stage2::<Ad<B>, Bridge<Ad<B>>, _>::new(unused_encoder::<B>(device), llm, options, device.clone());
    let count = target_count(&batch.labels) as f64;
    let out = stage
        .step(&module, batch, &context(count, &Single))
        .expect("step");
    check_loss(label, losses(&out)["lm"], file.values("loss.lm").0[0]);
    check_gradients::<B>(label, &out.gradients, &file);
}

fn lm_batch(file: &Expected, prompt: Option<TextBatch>, target: TextBatch, masked: usize) -> LmBatch {
    let labels = target.ids.iter().zip(target.mask.rows()).map(|(ids, mask)| {
        let label = |t: usize| if mask[t] && t >= masked { ids[t] } else { IGNORE };
        (0..ids.len()).map(label).collect()
    });
    LmBatch {
        keys: (0..target.ids.len()).map(|i| i.to_string()).collect(),
        images: images(file),
        prompt,
        labels: labels.collect(),
        target,
        qformer_text: None,
    }
}

fn opt<B: Kernels>(device: &B::Device) {
    for (name, prompt) in [("stage2_opt", 0), ("stage2_opt_prompt", 4)] {
        let file = case(name);
        let target = text(&file, "input.ids", "input.attention_mask");
        let batch = lm_batch(&file, None, target, prompt);
        check_stage2::<B>(name, "stage2_opt", 22, &batch, device);
    }
}

fn t5<B: Kernels>(device: &B::Device) {
    let file = case("stage2_t5");
    let prefix = text(&file, "input.ids", "input.attention_mask");
    let suffix = text(&file, "input.output_ids", "input.output_attention_mask");
    let batch = lm_batch(&file, Some(prefix), suffix, 0);
    check_stage2::<B>("stage2_t5", "stage2_t5", 18, &batch, device);
}

on_every_backend!(
    one_process,
    each_loss_alone,
    two_processes,
    two_processes_equal_one,
    fine_tuning,
    opt,
    t5,
);
