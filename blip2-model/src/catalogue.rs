//! The checkpoints that Salesforce published on the hub, with the configuration of each: for lists, and for
//! memory estimates before anything is downloaded.
//!
//! Licences are those of the model cards. A card does not change the terms of the frozen language model inside,
//! so these are named as well.

use crate::config::{Blip2Config, Task};
use crate::language::{LanguageConfig, OptConfig, T5Config};
use crate::qformer::QFormerConfig;
use crate::vision::{EvaVitConfig, VisionConfig};

/// Terms of OPT's weights.
const OPT: &str = "MIT; the OPT inside: OPT-175B licence (research only)";
/// Terms of Flan-T5's weights.
const T5: &str = "MIT; the Flan-T5 inside: Apache-2.0";

/// A published checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Id on the hub.
    pub id: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// Terms.
    pub licence: &'static str,
    /// Side of its pictures, pixels.
    pub image_size: usize,
    language: Option<Family>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Opt(&'static str),
    T5(&'static str),
}

const fn published(
    id: &'static str,
    purpose: &'static str,
    licence: &'static str,
    image_size: usize,
    language: Option<Family>,
) -> Published {
    Published {
        id,
        purpose,
        licence,
        image_size,
        language,
    }
}

/// All of them.
pub const PUBLISHED: [Published; 9] = [
    published(
        "Salesforce/blip2-opt-2.7b",
        "caption, vqa, chat",
        OPT,
        224,
        Some(Family::Opt("2.7b")),
    ),
    published(
        "Salesforce/blip2-opt-2.7b-coco",
        "caption (COCO style)",
        OPT,
        364,
        Some(Family::Opt("2.7b")),
    ),
    published(
        "Salesforce/blip2-opt-6.7b",
        "caption, vqa, chat",
        OPT,
        224,
        Some(Family::Opt("6.7b")),
    ),
    published(
        "Salesforce/blip2-opt-6.7b-coco",
        "caption (COCO style)",
        OPT,
        364,
        Some(Family::Opt("6.7b")),
    ),
    published(
        "Salesforce/blip2-flan-t5-xl",
        "caption, vqa, chat",
        T5,
        224,
        Some(Family::T5("flan-t5-xl")),
    ),
    published(
        "Salesforce/blip2-flan-t5-xl-coco",
        "caption (COCO style)",
        T5,
        364,
        Some(Family::T5("flan-t5-xl")),
    ),
    published(
        "Salesforce/blip2-flan-t5-xxl",
        "caption, vqa, chat",
        T5,
        224,
        Some(Family::T5("flan-t5-xxl")),
    ),
    published(
        "Salesforce/blip2-itm-vit-g",
        "match, search, embed",
        "MIT",
        224,
        None,
    ),
    published(
        "Salesforce/blip2-itm-vit-g-coco",
        "match, search, embed (COCO)",
        "MIT",
        364,
        None,
    ),
];

/// The checkpoint of this name: `ORG/NAME`, or `NAME` alone.
pub fn find(name: &str) -> Option<&'static Published> {
    PUBLISHED
        .iter()
        .find(|entry| entry.id == name || entry.name() == name)
}

impl Published {
    /// The id without the organisation.
    pub fn name(&self) -> &'static str {
        self.id.split_once('/').map_or(self.id, |(_, name)| name)
    }

    /// Its `config.json`, in the layout that the hub has now (with `<image>`).
    pub fn config(&self) -> Blip2Config {
        let text = self.language.and_then(|family| match family {
            Family::Opt(size) => OptConfig::preset(size).map(|opt| {
                LanguageConfig::Opt(OptConfig {
                    vocab_size: 50304,
                    eos_token_id: 50118,
                    ..opt
                })
            }),
            Family::T5(size) => T5Config::preset(size).map(LanguageConfig::T5),
        });
        let (task, image_token) = match self.language {
            Some(Family::Opt(_)) => (Task::ConditionalGeneration, Some(50265)),
            Some(Family::T5(_)) => (Task::ConditionalGeneration, Some(32100)),
            None => (Task::ImageTextRetrieval, None),
        };
        let retrieval = self.language.is_none();
        Blip2Config {
            architectures: vec![task],
            model_type: "blip-2".into(),
            num_query_tokens: 32,
            image_text_hidden_size: 256,
            image_token_index: image_token,
            vision_config: VisionConfig::Eva(EvaVitConfig {
                image_size: self.image_size,
                ..EvaVitConfig::default()
            }),
            qformer_config: QFormerConfig {
                vocab_size: if retrieval { 30523 } else { 30522 },
                use_qformer_text_input: retrieval,
                ..QFormerConfig::default()
            },
            text_config: text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_with_and_without_organisation() {
        assert_eq!(
            find("blip2-opt-2.7b"),
            find("Salesforce/blip2-opt-2.7b"),
            "both name the same entry"
        );
        assert_eq!(find("blip2-itm-vit-g").map(|e| e.image_size), Some(224));
        assert!(find("blip2-opt-66b").is_none());
        for entry in &PUBLISHED {
            let config = entry.config();
            config.validate().expect("a valid configuration");
            assert_eq!(
                config.language().is_some(),
                entry.language.is_some(),
                "{}",
                entry.id
            );
        }
    }

    /// Counts of transformers 4.57.6 instantiated without memory; OPT with the vocabulary of the first files.
    #[cfg(feature = "flex")]
    #[test]
    fn parameter_counts_equal_those_of_transformers() {
        use crate::blip2::Blip2;
        use crate::checkpoint::expected_tensors;
        for (name, want) in [
            ("blip2-opt-2.7b", 3_744_679_936_usize),
            ("blip2-opt-6.7b", 7_752_738_304),
            ("blip2-flan-t5-xl", 3_942_446_592),
            ("blip2-flan-t5-xxl", 12_229_596_672),
            ("blip2-itm-vit-g", 1_172_032_258),
        ] {
            let mut config = find(name).expect("published").config();
            if let Some(LanguageConfig::Opt(opt)) = &mut config.text_config {
                opt.vocab_size = 50272;
            }
            let model = Blip2::<crate::backend::Flex>::new(config, &Default::default()).expect("a model");
            let count: usize = expected_tensors(&model).iter().map(|p| p.num_elements()).sum();
            assert_eq!(count, want, "{name}");
        }
    }
}
