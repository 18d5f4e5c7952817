//! LAVIS's training YAML -> a recipe. Every key is carried over, named as left out, or an error.

use serde_json::{Map, Value};
use toml::Table;

use super::{Recipe, RecipeError};

mod tables;
#[cfg(test)]
mod tests;

use tables::{Kind, LEFT_OUT, SETS, kind};

/// A recipe made from a YAML file.
#[derive(Clone, Debug)]
pub struct Imported {
    /// Its text, with a comment on what was left out.
    pub toml: String,
    /// The same, checked.
    pub recipe: Recipe,
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
