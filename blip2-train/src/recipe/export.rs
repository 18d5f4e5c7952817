//! A checkpoint of a run as a complete Hugging Face folder: trained tensors over the initial ones, adapters
//! merged, with configuration, tokenizers and processor settings.

use std::path::{Path, PathBuf};

use blip2_model::checkpoint::Companions;
use blip2_model::checkpoint::companions::{LONGEST_TEXT, QFORMER_TOKENIZER, TOKENIZER_CONFIG};
use blip2_model::config::Blip2Config;
use blip2_model::language::LanguageConfig;
use blip2_model::processor::ImageProcessorConfig;
use blip2_model::weights::safetensors::SafetensorsFile;
use blip2_model::weights::writer::{self, WriteOptions};
use blip2_model::weights::{DType, TensorBytes, TensorInfo, TensorSource, WeightsError};
use burn::tensor::backend::Backend;
use serde_json::{Value, json};

use super::tokens::{Found as Tokens, Tokenizers};
use super::train::LoraSection;
use super::weights::Assembly;
use super::{Recipe, RecipeError, StageKind};
use crate::run::checkpoint::{Found, MODEL};
use crate::run::guard::write_atomically;

/// Prefix of the language model in a BLIP-2 file.
const LANGUAGE: &str = "language_model.";
/// Writes `found` into `out`. `dtype` is that of every tensor; without it frozen parts keep theirs and trained
/// ones are f32. Returns the files of weights.
pub fn export<B: Backend>(
    found: &Found,
    out: &Path,
    dtype: Option<DType>,
) -> Result<Vec<PathBuf>, RecipeError> {
    let recipe: Recipe = serde_json::from_value(found.state.config.clone())?;
    let assembly = Assembly::open::<B>(&recipe)?;
    let tokenizers = Tokenizers::open(&recipe, &assembly.config)?;
    if matches!(assembly.config.text_config, Some(LanguageConfig::T5(_))) && dtype == Some(DType::F16) {
        return Err(blip2_model::checkpoint::policy::PolicyError::T5InHalf.into());
    }
    let trained = Merged {
        trained: SafetensorsFile::open(found.folder.join(MODEL))?,
        lora: recipe.train.lora.clone(),
        assembly: &assembly,
    };
    let alone = recipe.stage == StageKind::LanguageModel;
    let outside = |name: &str| match alone {
        true => name.strip_prefix(LANGUAGE).unwrap_or(name).to_string(),
        false => name.to_string(),
    };
    let infos: Vec<TensorInfo> = assembly
        .infos()
        .iter()
        .map(|info| TensorInfo {
            name: outside(&info.name),
            dtype: dtype.unwrap_or_else(|| trained.dtype(info)),
            shape: info.shape.clone(),
        })
        .collect();
    let options = WriteOptions {
        overwrite: true,
        ..WriteOptions::default()
    };
    let written = writer::write_folder(out, &infos, &options, &mut |info| {
        let name = if alone {
            format!("{LANGUAGE}{}", info.name)
        } else {
            info.name.clone()
        };
        let tensor = trained.get(&name)?.convert(info.dtype);
        assembly.release(&name);
        tensor
    })?;
    write_settings(&recipe, assembly.config, &tokenizers, out)?;
    Ok(written)
}

/// Configuration, processor and tokenizers.
fn write_settings(
    recipe: &Recipe,
    mut config: Blip2Config,
    tokenizers: &Tokenizers,
    out: &Path,
) -> Result<(), RecipeError> {
    let json_file = |name: &str, value: &Value| {
        let path = out.join(name);
        write_atomically(&path, format!("{value:#}\n").as_bytes()).map_err(RecipeError::io(&path))
    };
    if let (Some(tokens), Some(language)) = (&tokenizers.language, &mut config.text_config) {
        let special = tokens.tokenizer.special();
        if let (LanguageConfig::Opt(opt), Some(newline)) = (&mut *language, special.newline) {
            // a caption ends with a line feed, in training and so in generation
            opt.eos_token_id = i64::from(newline);
        }
        json_file("generation_config.json", &generation(language))?;
        copy_tokenizer(tokens, out)?;
    }
    if recipe.stage == StageKind::LanguageModel {
        let language = config.text_config.as_ref();
        let class = match language {
            Some(LanguageConfig::T5(_)) => "T5ForConditionalGeneration",
            Some(LanguageConfig::Llama(_)) => "LlamaForCausalLM",
            _ => "OPTForCausalLM",
        };
        let mut value = serde_json::to_value(language)?;
        value["architectures"] = json!([class]);
        return json_file("config.json", &value);
    }
    if let Some(tokens) = &tokenizers.qformer {
        let beside = tokenizers.language.is_some();
        let folder = match beside {
            true => out.join(QFORMER_TOKENIZER),
            false => out.to_owned(),
        };
        copy_tokenizer(tokens, &folder)?;
        if recipe.stage == StageKind::Stage2 {
            // questions are cut as they were in training
            let path = folder.join(TOKENIZER_CONFIG);
            let mut settings = settings_of(&path)?;
            settings[LONGEST_TEXT] = json!(recipe.data.max_txt_len);
            json_file(&format!("{QFORMER_TOKENIZER}/{TOKENIZER_CONFIG}"), &settings)?;
        }
    }
    let size = config.vision_config.image_size() as u32;
    json_file(
        "preprocessor_config.json",
        &ImageProcessorConfig::blip2(size).to_json(),
    )?;
    json_file("config.json", &serde_json::to_value(&config)?)
}

/// `generation_config.json`: the ids that begin, end and pad a text.
fn generation(language: &LanguageConfig) -> Value {
    match language {
        LanguageConfig::Opt(c) => json!({
            "bos_token_id": c.bos_token_id,
            "eos_token_id": c.eos_token_id,
            "pad_token_id": c.pad_token_id,
        }),
        LanguageConfig::T5(c) => json!({
            "decoder_start_token_id": c.decoder_start_token_id,
            "eos_token_id": c.eos_token_id,
            "pad_token_id": c.pad_token_id,
        }),
        LanguageConfig::Llama(c) => {
            let mut value = json!({ "bos_token_id": c.bos_token_id, "pad_token_id": c.pad_token_id });
            value["eos_token_id"] = serde_json::to_value(&c.eos_token_id).unwrap_or_default();
            value
        }
    }
}

/// Settings of a tokenizer, empty if it has no file of them.
fn settings_of(path: &Path) -> Result<Value, RecipeError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(serde_json::from_str(&text)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(json!({})),
        Err(error) => Err(RecipeError::io(path)(error)),
    }
}

fn copy_tokenizer(tokens: &Tokens, out: &Path) -> Result<(), RecipeError> {
    Companions::tokenizer_of(&tokens.folder).write(out)?;
    Ok(())
}

/// Initial tensors with the trained ones over them and adapters added.
struct Merged<'a> {
    trained: SafetensorsFile,
    lora: Option<LoraSection>,
    assembly: &'a Assembly,
}

impl Merged<'_> {
    fn adapters(&self, name: &str) -> Option<(String, String)> {
        let owner = name.strip_suffix(".weight")?;
        let (a, b) = (format!("{owner}.lora_A.weight"), format!("{owner}.lora_B.weight"));
        self.trained.info(&a)?;
        Some((a, b))
    }

    fn dtype(&self, info: &TensorInfo) -> DType {
        match self.trained.info(&info.name) {
            Some(trained) => trained.dtype,
            None if self.adapters(&info.name).is_some() => DType::F32,
            None => info.dtype,
        }
    }

    fn get(&self, name: &str) -> Result<TensorBytes, WeightsError> {
        if self.trained.info(name).is_some() {
            return self.trained.get(name);
        }
        let (Some((a, b)), Some(lora)) = (self.adapters(name), &self.lora) else {
            return self.assembly.get(name);
        };
        let weight = self.assembly.get(name)?;
        let shape = weight.shape().to_vec();
        let mut values = weight.to_f32_vec()?;
        let (a, b) = (
            self.trained.get(&a)?.to_f32_vec()?,
            self.trained.get(&b)?.to_f32_vec()?,
        );
        let (rank, scale) = (lora.rank, (lora.alpha / lora.rank as f64) as f32);
        let width = shape.get(1).copied().unwrap_or(1);
        for (row, b) in values.chunks_exact_mut(width).zip(b.chunks_exact(rank)) {
            let mut product = vec![0f32; width];
            for (factor, a) in b.iter().zip(a.chunks_exact(width)) {
                product.iter_mut().zip(a).for_each(|(sum, a)| *sum += factor * a);
            }
            row.iter_mut().zip(product).for_each(|(w, p)| *w += scale * p);
        }
        TensorBytes::from_f32(shape, values)
    }
}
