//! Memory estimates against what a load keeps and what a prefill allocates: equal to the byte.

use blip2_model::checkpoint::{DtypePolicy, PartDtype};
use blip2_model::language::LanguageModel;
use blip2_model::memory::{Workload, predict};
use blip2_model::nn::{Context, Kernels};
use blip2_model::session::Session;
use blip2_model::weights::checkpoint_dir;

use crate::on_every_backend;
use crate::support::fixture;

fn weights_equal_the_load_report<B: Kernels>(device: &B::Device) {
    for name in ["opt", "opt-legacy", "opt-350m-form", "t5", "itm"] {
        let folder = fixture(&format!("parity/{name}"));
        for dtype in [
            PartDtype::Auto,
            PartDtype::F32,
            PartDtype::BF16,
            PartDtype::Int8,
            PartDtype::Int4,
        ] {
            let policy = DtypePolicy::frozen(dtype);
            if let (Some(_), false) = (dtype.bits(), B::PACKS) {
                let refused = Session::<B>::open(&folder, policy, false, device).err();
                let refused = refused.expect("packed weights are refused").to_string();
                assert!(refused.contains("int8"), "{refused}");
                continue;
            }
            let session =
                Session::<B>::open(&folder, policy, false, device).unwrap_or_else(|e| panic!("{e}"));
            let files = checkpoint_dir::open(&folder).expect("a checkpoint");
            let work = Workload {
                policy,
                ..Workload::default()
            };
            let config = &session.model.config;
            let estimate = predict::<B>(config, files.source.infos(), &work, device).expect("an estimate");
            assert_eq!(estimate.weights, session.report.bytes, "{name} {dtype:?}");
            let counts = session.report.parameters.values().flat_map(|d| d.values());
            assert_eq!(estimate.parameters, counts.sum::<usize>(), "{name} {dtype:?}");
        }
    }
}

fn the_cache_equals_what_is_allocated<B: Kernels>(device: &B::Device) {
    for name in ["opt", "t5"] {
        let folder = fixture(&format!("parity/{name}"));
        let session =
            Session::<B>::open(&folder, DtypePolicy::f32(), false, device).unwrap_or_else(|e| panic!("{e}"));
        let picture = Session::<B>::read_image(&fixture("parity/images/boat.png")).expect("a picture");
        let ctx = Context::eval();
        let image = session
            .encode(&[picture.clone(), picture], &ctx)
            .expect("encoded");
        let soft = session.model.soft_tokens(&image, &ctx).expect("soft tokens");
        let prompts = ["a photo of".to_string(), "the house".to_string()];
        let text = session.tokenize_prompts(&prompts).expect("ids");
        let prompt_tokens = text.mask.len();
        let prompt = session.model.prompt(soft, &text).expect("a prompt");
        let language = session.model.language().expect("a language model");
        let (state, _) = language.prefill(prompt, 11, &ctx);
        let own: usize = state
            .self_attention
            .iter()
            .map(|cache| cache.num_elements())
            .sum();
        let encoded: usize = state
            .cross_attention
            .iter()
            .map(|(k, v)| k.shape().num_elements() + v.shape().num_elements())
            .sum();
        let work = Workload {
            policy: DtypePolicy::f32(),
            batch: 2,
            prompt_tokens,
            max_new_tokens: 11,
            ..Workload::default()
        };
        let estimate = predict::<B>(&session.model.config, &[], &work, device).expect("an estimate");
        assert_eq!(estimate.cache, 4 * (own + encoded), "{name}");
    }
}

on_every_backend!(weights_equal_the_load_report, the_cache_equals_what_is_allocated);
