//! The examination of `blip2 doctor` on every backend of the build: each of them must be found in order, since
//! the parity suite finds them so.

use blip2_model::backend::BackendKind;
use blip2_model::doctor::{LARGE_TABLE, compare_models, examine, is_trusted, run_models};
use blip2_model::nn::Kernels;
use blip2_model::with_backend;

use crate::on_every_backend;

fn single_operations_and_decoding<B: Kernels>(device: &B::Device) {
    let checks = examine::<B>(device);
    assert!(checks.len() >= 14, "{checks:?}");
    let mut wrong: Vec<_> = checks
        .iter()
        .filter(|c| !is_trusted(std::slice::from_ref(c)))
        .collect();
    // Mesa's software driver binds 128 MiB at once, and that is just what the check is there to find
    if B::name(device).contains("wgpu") {
        wrong.retain(|check| check.name != LARGE_TABLE);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // a bound that nothing could miss would check nothing
    assert!(checks.iter().all(|c| c.bound < 0.1), "{checks:?}");
}

fn models_agree_with_a_cpu_backend<B: Kernels>(device: &B::Device) {
    let got = run_models::<B>(device).expect("models");
    let Some(reference) = BackendKind::Flex.reference() else {
        return;
    };
    let want = with_backend!(reference, R => run_models::<R>(&Default::default()).expect("models"));
    let checks = compare_models(&got, &want);
    assert_eq!(checks.len(), 6);
    assert!(is_trusted(&checks), "{checks:#?}");
}

on_every_backend!(single_operations_and_decoding, models_agree_with_a_cpu_backend);
