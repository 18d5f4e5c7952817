//! LAVIS's training YAML -> a recipe. Every key is carried over, named as left out, or an error.

use serde_json::{Map, Value};
use toml::Table;

use super::{Recipe, RecipeError};

/// A recipe made from a YAML file.
#[derive(Clone, Debug)]
pub struct Imported {
    /// Its text, with a comment on what was left out.
    pub toml: String,
    /// The same, checked.
    pub recipe: Recipe,
}

/// Keys that say nothing about training here, with the reason.
const LEFT_OUT: &[(&str, &str)] = &[
    ("model.load_finetuned", "the run starts from `bridge_from`"),
    ("model.finetuned", "the run starts from `bridge_from`"),
    ("model.max_output_txt_len", "concerns InstructBLIP"),
    ("model.apply_lemmatizer", "concerns evaluation"),
    ("run.task", "follows from the architecture"),
    ("run.runner", "training is by steps"),
    (
        "run.amp",
        "activations are f32 on CPU backends; see `train.loss_scale`",
    ),
    ("run.output_dir", "given by `--out`"),
    ("run.resume_ckpt_path", "the same command goes on by itself"),
    ("run.evaluate", "concerns evaluation"),
    ("run.train_splits", "a data set is one split"),
    ("run.valid_splits", "see [validation]"),
    ("run.test_splits", "concerns evaluation"),
    ("run.batch_size_eval", "concerns evaluation"),
    ("run.device", "given by `--backend` and `--device`"),
    (
        "run.world_size",
        "given by `blip2-train launch`, torchrun or SLURM",
    ),
    ("run.dist_url", "given by `blip2-train launch`, torchrun or SLURM"),
    (
        "run.distributed",
        "given by `blip2-train launch`, torchrun or SLURM",
    ),
    ("run.use_dist_eval_sampler", "concerns evaluation"),
    ("run.save_freq", "see `train.checkpoint_every`, in steps"),
    ("run.val_freq", "see `train.validate_every`, in steps"),
    ("run.save_last", "the last checkpoint is always kept"),
    ("run.lr_decay_rate", "belongs to another schedule"),
    ("run.max_len", "concerns evaluation"),
    ("run.min_len", "concerns evaluation"),
    ("run.num_beams", "concerns evaluation"),
    ("run.inference_method", "concerns evaluation"),
    ("run.prompt", "concerns evaluation"),
    ("run.num_ans_candidates", "concerns evaluation"),
    ("run.k_test", "concerns evaluation"),
    ("run.repetition_penalty", "concerns evaluation"),
    ("run.length_penalty", "concerns evaluation"),
    ("run.top_p", "concerns evaluation"),
    ("run.temperature", "concerns evaluation"),
    ("run.annotation_file", "concerns evaluation"),
    ("run.img_ids", "concerns evaluation"),
    ("run.report_metric", "concerns evaluation"),
    ("run.sample_id_key", "concerns evaluation"),
    ("run.caption_key", "concerns evaluation"),
];

/// Data sets: name, annotation file and pictures below LAVIS's cache folder, format.
const SETS: &[(&str, &str, &str, &str)] = &[
    (
        "coco_caption",
        "coco/annotations/coco_karpathy_train.json",
        "coco/images",
        "coco_caption",
    ),
    (
        "coco_retrieval",
        "coco/annotations/coco_karpathy_train.json",
        "coco/images",
        "coco_retrieval",
    ),
    (
        "flickr30k",
        "flickr30k/annotations/train.json",
        "flickr30k/images",
        "flickr30k",
    ),
    (
        "vg_caption",
        "vg/annotations/vg_caption.json",
        "vg/images",
        "vg_caption",
    ),
    (
        "sbu_caption",
        "sbu_captions/annotations/sbu.json",
        "sbu_captions/images",
        "sbu_caption",
    ),
    (
        "coco_vqa",
        "coco/annotations/vqa_train.json",
        "coco/images",
        "coco_vqa",
    ),
    (
        "ok_vqa",
        "okvqa/annotations/okvqa_train.json",
        "coco/images",
        "ok_vqa",
    ),
    ("vg_vqa", "vg/annotations/vg_qa.json", "vg/images", "vg_vqa"),
    (
        "gqa",
        "gqa/annotations/train_balanced_questions.json",
        "gqa/images",
        "gqa",
    ),
];

/// What a pair of `arch` and `model_type` stands for.
struct Kind {
    stage: &'static str,
    vit: &'static str,
    language: Option<(&'static str, &'static str)>,
    image_size: i64,
    prompt: &'static str,
    /// LAVIS's file of trained weights.
    weights: &'static str,
}

fn kind(arch: &str, model_type: &str) -> Option<Kind> {
    let vit = if model_type.ends_with("vitL") {
        "clip_L"
    } else {
        "eva_clip_g"
    };
    let fine = model_type == "coco" || model_type.starts_with("caption_coco");
    let (stage, language) = match arch {
        "blip2" | "blip2_feature_extractor" | "blip2_image_text_matching" => ("stage1", None),
        "blip2_opt" if model_type.contains("6.7b") => ("stage2", Some(("opt_model", "facebook/opt-6.7b"))),
        "blip2_opt" => ("stage2", Some(("opt_model", "facebook/opt-2.7b"))),
        "blip2_t5" if model_type.contains("xxl") => ("stage2", Some(("t5_model", "google/flan-t5-xxl"))),
        "blip2_t5" => ("stage2", Some(("t5_model", "google/flan-t5-xl"))),
        _ => return None,
    };
    let weights = match (stage, vit) {
        (_, "clip_L") => "blip2_pretrained_vitL.pth",
        ("stage2", _) if fine && arch == "blip2_opt" && model_type.contains("6.7b") => {
            "blip2_pretrained_opt6.7b.pth"
        }
        ("stage2", _) if fine && arch == "blip2_opt" => "blip2_pretrained_opt2.7b.pth",
        ("stage2", _) if fine => "blip2_pretrained_flant5xl.pth",
        _ => "blip2_pretrained.pth",
    };
    Some(Kind {
        stage,
        vit,
        language,
        image_size: if fine { 364 } else { 224 },
        prompt: if fine && stage == "stage2" {
            "a photo of"
        } else {
            ""
        },
        weights,
    })
}

/// Sections of the recipe being written.
#[derive(Default)]
struct Draft {
    model: Table,
    stage1: Table,
    stage2: Table,
    data: Table,
    sets: Vec<toml::Value>,
    optimizer: Table,
    schedule: Table,
    train: Table,
    notes: Vec<String>,
}

/// Reads a training YAML. `name` becomes the recipe's.
pub fn import(yaml: &str, name: &str) -> Result<Imported, RecipeError> {
    let value: Value = serde_saphyr::from_str(yaml).map_err(|error| RecipeError::Yaml {
        reason: error.to_string(),
    })?;
    let section = |key: &str| {
        value
            .get(key)
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default()
    };
    for key in value.as_object().into_iter().flatten().map(|(key, _)| key) {
        if !["model", "datasets", "run"].contains(&key.as_str()) {
            return Err(unknown(key));
        }
    }
    let model = section("model");
    let word = |key: &str| model.get(key).and_then(Value::as_str).unwrap_or_default();
    let (arch, model_type) = (word("arch"), word("model_type"));
    let Some(kind) = kind(arch, model_type) else {
        return Err(RecipeError::Yaml {
            reason: format!(
                "model.arch = {arch}, model.model_type = {model_type}: only blip2, blip2_opt and blip2_t5 are trained here"
            ),
        });
    };
    let mut draft = Draft::default();
    draft.begin(&kind);
    for (key, value) in &model {
        draft.model(key, value, &kind)?;
    }
    for (key, value) in &section("datasets") {
        draft.dataset(key, value)?;
    }
    draft.optimizer.entry("beta2").or_insert(0.999.into());
    for (key, value) in &section("run") {
        draft.run(key, value)?;
    }
    draft.finish(&kind, name)
}

fn unknown(key: &str) -> RecipeError {
    RecipeError::Yaml {
        reason: format!("{key}: no such key in LAVIS's training configurations; correct or remove it"),
    }
}

fn unsupported(key: &str, value: &Value, why: &str) -> RecipeError {
    RecipeError::Yaml {
        reason: format!("{key} = {value}: {why}"),
    }
}

/// PyYAML reads `1e-4` as a word, and LAVIS's configurations count on its becoming a number later.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::String(word) => word.to_lowercase().parse().ok(),
        _ => None,
    }
}

impl Draft {
    fn begin(&mut self, kind: &Kind) {
        let m = &mut self.model;
        m.insert("vit_model".into(), kind.vit.into());
        if let Some((key, name)) = kind.language {
            m.insert(key.into(), name.into());
            let precision = if key == "t5_model" { "bf16" } else { "fp16" };
            m.insert("llm_precision".into(), precision.into());
            self.stage2.insert("prompt".into(), kind.prompt.into());
            let task = if key == "t5_model" && kind.prompt.is_empty() {
                "prefix"
            } else {
                "caption"
            };
            self.stage2.insert("task".into(), task.into());
        }
        m.insert("image_size".into(), kind.image_size.into());
        self.train.insert("token_mean".into(), "per-process".into());
    }

    fn left_out(&mut self, key: &str) -> Result<(), RecipeError> {
        match LEFT_OUT.iter().find(|(name, _)| *name == key) {
            Some((name, why)) => {
                self.notes.push(format!("{name}: {why}"));
                Ok(())
            }
            None => Err(unknown(key)),
        }
    }

    fn model(&mut self, key: &str, value: &Value, kind: &Kind) -> Result<(), RecipeError> {
        let path = format!("model.{key}");
        let bad = || unsupported(&path, value, "not a value of this key");
        match key {
            "arch" | "model_type" => {}
            "load_pretrained" if flag(value) == Some(false) => {}
            "load_pretrained" => {
                self.model.entry("bridge_from").or_insert(kind.weights.into());
            }
            "pretrained" => {
                let file = value.as_str().ok_or_else(bad)?;
                // an address of the hosted file stands for the file of that name
                let name = file
                    .strip_prefix("https:")
                    .map_or(file, |url| url.rsplit('/').next().unwrap_or(url));
                self.model.insert("bridge_from".into(), name.into());
            }
            "freeze_vit" => {
                let frozen = flag(value).ok_or_else(bad)?;
                self.train.insert("train_vision".into(), (!frozen).into());
            }
            "use_grad_checkpoint" => {
                let on = flag(value).ok_or_else(bad)?;
                self.train.insert("activation_checkpointing".into(), on.into());
            }
            "vit_precision" | "vit_model" | "opt_model" | "t5_model" => {
                let word = value.as_str().ok_or_else(bad)?;
                self.model.insert(key.into(), word.into());
            }
            "image_size" | "num_query_token" => {
                let size = number(value).ok_or_else(bad)?;
                self.model.insert(key.into(), (size as i64).into());
            }
            "qformer_text_input" => {
                self.model.insert(key.into(), flag(value).ok_or_else(bad)?.into());
            }
            "prompt" => {
                self.stage2
                    .insert(key.into(), value.as_str().ok_or_else(bad)?.into());
            }
            "max_txt_len" => {
                self.data
                    .insert(key.into(), (number(value).ok_or_else(bad)? as i64).into());
            }
            "drop_path_rate" if number(value) == Some(0.0) => {}
            "drop_path_rate" => {
                return Err(unsupported(
                    &path,
                    value,
                    "only 0 is implemented, as in every shipped file",
                ));
            }
            "cross_attention_freq" if number(value) == Some(2.0) => {}
            "cross_attention_freq" => {
                return Err(unsupported(
                    &path,
                    value,
                    "use a [model.config] table with qformer_config.cross_attention_frequency",
                ));
            }
            _ => self.left_out(&path)?,
        }
        Ok(())
    }

    fn dataset(&mut self, name: &str, value: &Value) -> Result<(), RecipeError> {
        let Some((_, annotations, images, format)) = SETS.iter().find(|(set, ..)| *set == name) else {
            return Err(RecipeError::Yaml {
                reason: format!(
                    "datasets.{name}: not a data set of BLIP-2's recipes; write a [[data.train]] section for it"
                ),
            });
        };
        let mut set = Table::new();
        let storage = |pointer: &str| {
            let value = value.pointer(pointer)?;
            let value = value.as_array().and_then(|list| list.first()).unwrap_or(value);
            value.as_str().map(str::to_string)
        };
        let path = storage("/build_info/annotations/train/storage");
        let pictures = storage("/build_info/images/storage");
        set.insert(
            "path".into(),
            path.unwrap_or_else(|| format!("data/{annotations}")).into(),
        );
        set.insert(
            "images".into(),
            pictures.unwrap_or_else(|| format!("data/{images}")).into(),
        );
        set.insert("format".into(), (*format).into());
        for key in value
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| key.as_str())
        {
            match key {
                "vis_processor" | "text_processor" | "build_info" => {}
                "data_type" | "type" => {}
                _ => return Err(unknown(&format!("datasets.{name}.{key}"))),
            }
        }
        if let Some(processor) = value.pointer("/vis_processor/train/name").and_then(Value::as_str) {
            set.insert("vis_processor".into(), processor.into());
        }
        if let Some(size) = value.pointer("/vis_processor/train/image_size").and_then(number) {
            self.model.insert("image_size".into(), (size as i64).into());
        }
        let text = value.pointer("/text_processor/train").and_then(Value::as_object);
        self.text_processor(text.unwrap_or(&Map::new()), name)?;
        if *format == "coco_retrieval" || *format == "flickr30k" {
            self.stage1.insert("image_ids".into(), true.into());
        }
        self.sets.push(set.into());
        Ok(())
    }

    fn text_processor(&mut self, text: &Map<String, Value>, set: &str) -> Result<(), RecipeError> {
        for (key, value) in text {
            let path = format!("datasets.{set}.text_processor.train.{key}");
            match (key.as_str(), value.as_str()) {
                ("name", Some("blip_caption" | "blip_question")) => {}
                // the processor puts the model's prompt in front of a caption; here the prompt is a thing of its own
                ("prompt", Some(prompt)) if prompt.trim() == self.prompt() => {}
                ("prompt", Some(prompt)) => {
                    self.data.insert("prompt".into(), prompt.into());
                }
                ("max_words", None) => {
                    let words = number(value).ok_or_else(|| unknown(&path))?;
                    self.data.insert("max_words".into(), (words as i64).into());
                }
                _ => {
                    return Err(unsupported(
                        &path,
                        value,
                        "not a text processor of BLIP-2's recipes",
                    ));
                }
            }
        }
        Ok(())
    }

    fn prompt(&self) -> &str {
        self.stage2
            .get("prompt")
            .and_then(toml::Value::as_str)
            .unwrap_or("")
    }

    fn run(&mut self, key: &str, value: &Value) -> Result<(), RecipeError> {
        let path = format!("run.{key}");
        let real = || number(value).ok_or_else(|| unsupported(&path, value, "a number is expected"));
        match key {
            "lr_sched" => {
                let name = value.as_str().unwrap_or_default();
                let ours = match name {
                    "linear_warmup_cosine_lr" => "linear_warmup_cosine_lr",
                    "constant_lr" => "constant",
                    _ => {
                        return Err(unsupported(
                            &path,
                            value,
                            "linear_warmup_cosine_lr and constant_lr are known",
                        ));
                    }
                };
                self.schedule.insert(key.into(), ours.into());
            }
            "init_lr" | "min_lr" | "warmup_lr" => {
                self.schedule.insert(key.into(), real()?.into());
            }
            "warmup_steps" | "max_epoch" | "max_iters" => {
                self.schedule.insert(key.into(), (real()? as i64).into());
            }
            "iters_per_inner_epoch" => {
                self.notes
                    .push("run.iters_per_inner_epoch: the schedule falls per step instead".into());
            }
            "weight_decay" | "beta2" | "lr_layer_decay" => {
                self.optimizer.insert(key.into(), real()?.into());
            }
            "batch_size_train" => {
                self.train.insert("batch_size".into(), (real()? as i64).into());
            }
            "accum_grad_iters" => {
                self.train.insert("accumulate".into(), (real()? as i64).into());
            }
            "log_freq" => {
                self.train.insert("log_every".into(), (real()? as i64).into());
            }
            "seed" => {
                self.train.insert("seed".into(), (real()? as i64).into());
            }
            "num_workers" => {
                self.data.insert("threads".into(), (real()? as i64).into());
            }
            "train_dataset_ratios" => {
                for set in &mut self.sets {
                    let Some(table) = set.as_table_mut() else { continue };
                    let format = table
                        .get("format")
                        .and_then(toml::Value::as_str)
                        .unwrap_or_default();
                    if let Some(ratio) = value.get(format).and_then(number) {
                        table.insert("ratio".into(), ratio.into());
                    }
                }
            }
            _ => self.left_out(&path)?,
        }
        Ok(())
    }

    fn finish(mut self, kind: &Kind, name: &str) -> Result<Imported, RecipeError> {
        let encoder = if kind.vit == "clip_L" {
            "clip_vit_L.pth"
        } else {
            "eva_vit_g.pth"
        };
        self.model.insert("vision_from".into(), encoder.into());
        let from_start = kind.stage == "stage1" && !self.model.contains_key("bridge_from");
        match (kind.stage, from_start) {
            ("stage1", true) => self
                .model
                .insert("qformer_from".into(), "bert-base-uncased".into()),
            ("stage1", _) => self
                .model
                .insert("qformer_tokenizer".into(), "bert-base-uncased".into()),
            _ => {
                self.model.entry("bridge_from").or_insert(kind.weights.into());
                None
            }
        };
        // a run by iterations has no epochs for the rate to fall by
        if self.schedule.contains_key("max_iters") {
            self.schedule.remove("max_epoch");
            self.schedule.insert("lr_sched".into(), "cosine".into());
        }
        self.data.insert("train".into(), self.sets.into());
        let mut recipe = Table::new();
        recipe.insert("stage".into(), kind.stage.into());
        recipe.insert("name".into(), name.into());
        for (key, table) in [
            ("model", self.model),
            ("stage1", self.stage1),
            ("stage2", self.stage2),
            ("optimizer", self.optimizer),
            ("schedule", self.schedule),
            ("train", self.train),
            ("data", self.data),
        ] {
            if !table.is_empty() {
                recipe.insert(key.into(), table.into());
            }
        }
        let body = toml::to_string_pretty(&recipe).map_err(|error| RecipeError::Yaml {
            reason: error.to_string(),
        })?;
        let mut toml = format!("# {name}, from a LAVIS configuration.\n");
        let decays = recipe
            .get("optimizer")
            .is_some_and(|o| o.get("lr_layer_decay").is_some());
        if decays {
            self.notes.push("run.lr_layer_decay: carried over and applied; LAVIS computes the factors and never uses them".into());
        }
        for note in &self.notes {
            toml.push_str(&format!("# Left out or changed: {note}.\n"));
        }
        toml.push('\n');
        toml.push_str(&body);
        let recipe = Recipe::parse(&toml, name, &[])?;
        Ok(Imported { toml, recipe })
    }
}

#[cfg(test)]
mod tests {
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
}
