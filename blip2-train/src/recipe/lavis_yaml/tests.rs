//! Training files with the field names of LAVIS.

use super::*;
use crate::recipe::StageKind;
use crate::recipe::train::{LrSched, TextTask};

const STAGE1: &str = r#"
model:
  arch: blip2
  model_type: pretrain
  load_pretrained: False
  freeze_vit: True
datasets:
  coco_caption:
    vis_processor:
      train: { name: "blip2_image_train", image_size: 224 }
    text_processor:
      train: { name: "blip_caption" }
  vg_caption:
    vis_processor:
      train: { name: "blip_image_train", image_size: 224 }
    text_processor:
      train: { name: "blip_caption" }
run:
  task: image_text_pretrain
  lr_sched: "linear_warmup_cosine_lr"
  init_lr: 1e-4
  min_lr: 1e-5
  warmup_lr: 1e-6
  weight_decay: 0.05
  max_epoch: 10
  batch_size_train: 100
  batch_size_eval: 64
  num_workers: 4
  warmup_steps: 5000
  seed: 42
  output_dir: "output/BLIP2/Pretrain_stage1"
  amp: True
  resume_ckpt_path: null
  evaluate: False
  train_splits: ["train"]
  device: "cuda"
  world_size: 1
  dist_url: "env://"
  distributed: True
"#;

#[test]
fn stage_1_keeps_every_number() {
    let imported = import(STAGE1, "stage1").unwrap();
    let recipe = imported.recipe;
    assert_eq!(recipe.stage, StageKind::Stage1);
    assert_eq!(recipe.model.qformer_from.as_deref(), Some("bert-base-uncased"));
    assert_eq!(recipe.data.train.len(), 2);
    assert_eq!(recipe.data.threads, 4);
    let config = recipe.trainer(Some(880)).unwrap();
    assert_eq!((config.steps, config.seed), (8800, 42));
    // specification section 6.4: epoch 5 of 10 runs at the middle of the cosine
    assert!((config.schedule.rate(5 * 880 + 3, config.steps) - 5.5e-5).abs() < 1e-12);
    assert_eq!(config.optimizer.beta2, 0.999);
    assert_eq!(recipe.train.batch_size, 100);
    assert!(
        imported.toml.contains("# Left out or changed: run.amp:"),
        "{}",
        imported.toml
    );
}

#[test]
fn caption_fine_tuning_trains_the_encoder_behind_the_prompt() {
    let yaml = r#"
model:
  arch: blip2_opt
  model_type: caption_coco_opt2.7b
  load_finetuned: False
  use_grad_checkpoint: True
  freeze_vit: False
datasets:
  coco_caption:
    vis_processor:
      train: { name: "blip2_image_train", image_size: 364 }
      eval: { name: "blip_image_eval", image_size: 364 }
    text_processor:
      train: { name: "blip_caption", prompt: "a photo of " }
      eval: { name: "blip_caption" }
run:
  task: captioning
  lr_sched: "linear_warmup_cosine_lr"
  init_lr: 1e-5
  min_lr: 0
  warmup_lr: 1e-8
  warmup_steps: 1000
  weight_decay: 0.05
  max_epoch: 5
  batch_size_train: 16
  batch_size_eval: 8
  accum_grad_iters: 1
  max_len: 30
  min_len: 8
  num_beams: 5
  seed: 42
"#;
    let recipe = import(yaml, "caption").unwrap().recipe;
    assert_eq!(recipe.stage, StageKind::Stage2);
    assert!(recipe.train.train_vision && recipe.train.activation_checkpointing);
    assert_eq!(
        (recipe.stage2.task, recipe.stage2.prompt.as_str()),
        (TextTask::Caption, "a photo of")
    );
    assert_eq!(recipe.data.prompt, "", "the prompt is not learnt");
    assert_eq!(recipe.model.image_size, Some(364));
    let from: Vec<_> = recipe.model.bridge_from.iter().collect();
    assert_eq!(from, ["blip2_pretrained_opt2.7b.pth"]);
    assert_eq!(recipe.schedule.lr_sched, LrSched::LinearWarmupCosineLr);
}

#[test]
fn retrieval_brings_identities_and_layer_decay() {
    let yaml = "model: {arch: blip2, model_type: coco, load_finetuned: False, freeze_vit: False, pretrained: \"https://x/y/blip2_pretrained.pth\"}\ndatasets:\n  coco_retrieval:\n    build_info:\n      images: {storage: '/d/coco'}\n      annotations: {train: {storage: ['/d/train.json']}}\nrun: {task: retrieval, lr_layer_decay: 0.95, max_iters: 500, init_lr: 1e-5}\n";
    let imported = import(yaml, "retrieval").unwrap();
    let recipe = imported.recipe;
    assert!(recipe.stage1.image_ids);
    assert_eq!(recipe.optimizer.lr_layer_decay, 0.95);
    assert_eq!(recipe.data.train[0].source.path, "/d/train.json");
    assert_eq!(
        recipe.model.bridge_from.iter().next(),
        Some("blip2_pretrained.pth")
    );
    assert_eq!(recipe.schedule.lr_sched, LrSched::Cosine);
}

#[test]
fn what_is_not_understood_is_an_error() {
    for (from, to, want) in [
        ("seed: 42", "sed: 42", "run.sed"),
        ("freeze_vit: True", "freeze_vit: maybe", "model.freeze_vit"),
        (
            "arch: blip2",
            "arch: blip2_vicuna_instruct",
            "blip2_vicuna_instruct",
        ),
        ("vg_caption:", "laion2B_multi:", "datasets.laion2B_multi"),
        (
            "\"linear_warmup_cosine_lr\"",
            "linear_warmup_step_lr",
            "run.lr_sched",
        ),
    ] {
        let error = import(&STAGE1.replace(from, to), "x").unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}
