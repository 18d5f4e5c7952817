//! The recipes in `assets/recipes`: they parse, and their full-size models have the published sizes.

use std::collections::BTreeMap;

use blip2_model::backend::Flex;

use super::drawn::Root;
use super::*;
use crate::params::ParamInfo;

fn all() -> BTreeMap<String, (String, Recipe)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/recipes");
    let mut recipes = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "toml") {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            let recipe = Recipe::open(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
            recipes.insert(name, (text, recipe));
        }
    }
    recipes
}

fn count(infos: &[ParamInfo]) -> usize {
    infos.iter().map(ParamInfo::len).sum()
}

/// Specification section 0: trainable parameters, and those of the encoders at 224, 364 and 490 pixels (the fused
/// projection has a key bias here, a constant zero that LAVIS does not count: 1408 per block).
#[test]
fn full_size_models_have_the_published_sizes() {
    let recipes = all();
    for (name, trained) in [
        ("pretrain_stage1", 186_705_470),
        ("pretrain_stage1_vitL", 183_165_758),
        ("pretrain_stage2_opt2.7b", 107_133_696),
        ("pretrain_stage2_opt6.7b", 108_314_880),
        ("pretrain_stage2_flant5xl", 106_739_968),
        ("pretrain_stage2_flant5xxl", 108_314_880),
        ("pretrain_stage2_opt2.7b_vitL", 103_593_984),
        ("pretrain_stage2_flant5xl_vitL", 103_200_256),
        ("retrieval_coco", 186_705_470),
        ("caption_coco_opt2.7b", 107_133_696),
    ] {
        let (_, recipe) = &recipes[name];
        let config = architecture::configuration(&recipe.model, recipe.stage).unwrap();
        let bridge = weights::list::<Flex>(&config, Root::Bridge).unwrap();
        assert_eq!(count(&bridge), trained, "{name}");
    }
    let key_bias = 39 * 1408;
    for (name, encoder) in [
        ("pretrain_stage1", 985_894_528 + key_bias),
        ("retrieval_coco", 986_485_888 + key_bias),
        ("vqav2_opt2.7b", 987_258_880 + key_bias),
        ("pretrain_stage1_vitL", 290_581_504),
    ] {
        let (_, recipe) = &recipes[name];
        let config = architecture::configuration(&recipe.model, recipe.stage).unwrap();
        let vision = weights::list::<Flex>(&config, Root::Vision).unwrap();
        assert_eq!(count(&vision), encoder, "{name}");
    }
    // whole models of section 0 minus what is counted above: OPT-2.7B with 50272 rows
    let (_, recipe) = &recipes["pretrain_stage2_opt2.7b"];
    let config = architecture::configuration(&recipe.model, recipe.stage).unwrap();
    let language = weights::list::<Flex>(&config, Root::Language).unwrap();
    assert_eq!(
        count(&language),
        3_744_679_936 - 107_133_696 - 985_894_528 - key_bias
    );
}

/// The global batch and length of specification section 6 on the paper's 16 processes.
#[test]
fn every_recipe_names_its_scores_their_source_and_its_batch() {
    for (name, (text, recipe)) in &all() {
        let head: String = text.lines().take_while(|line| line.starts_with('#')).collect();
        assert!(
            head.contains("Expected scores") && head.contains("Source:"),
            "{name}"
        );
        assert_eq!(recipe.name.as_deref(), Some(name.as_str()));
        let batch = 16 * recipe.train.batch_size;
        let want = match name.as_str() {
            "pretrain_stage1" => 1680,
            "pretrain_stage1_vitL" => 2320,
            n if n.starts_with("pretrain_stage2_opt") => 1920,
            n if n.starts_with("pretrain_stage2_flant5") => 1520,
            n if n.starts_with("caption_coco") => 256,
            n if n.starts_with("vqav2") => 128,
            n if n.starts_with("retrieval") => 224,
            _ => panic!("{name} has no published batch"),
        };
        assert_eq!(batch, want, "{name}");
        let trainer = recipe.trainer(Some(1000)).unwrap();
        match recipe.schedule.max_iters {
            Some(steps) => assert!([250_000, 80_000].contains(&steps), "{name}"),
            None => assert_eq!(trainer.steps, 5000, "{name}: five epochs"),
        }
    }
}

/// Paper, appendix: decay of the learning rate by layer of the encoder.
#[test]
fn fine_tuning_decays_by_layer_as_published() {
    let recipes = all();
    for (name, rate) in [
        ("caption_coco_flant5xl", 1.0),
        ("caption_coco_opt2.7b", 1.0),
        ("caption_coco_opt6.7b", 0.95),
        ("vqav2_flant5xl", 0.95),
        ("vqav2_opt2.7b", 0.95),
        ("vqav2_opt6.7b", 0.9),
        ("retrieval_coco", 0.95),
    ] {
        assert_eq!(recipes[name].1.optimizer.lr_layer_decay, rate, "{name}");
    }
}
