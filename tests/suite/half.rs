//! Frozen parts in half precision against transformers in f32, with bounds that follow from the formats.
//!
//! Rounding to p significant bits changes a weight by at most u = 2^-p of itself, 2^-8 in bf16 and 2^-11 in f16, and by
//! 0.4 u in the root mean square. The errors of a matrix's elements are independent, so the product is off by about that
//! much of its norm, and the K matrices that a number has passed add up like a random walk. The bound is u * sqrt(K), on
//! the root mean square of a whole tensor's error relative to that of its values; single elements scatter and have no
//! such bound. It leaves a factor of two for what attention and norms amplify. GPUs keep activations in half precision
//! as well, which rounds as often again: twice the bound.
//!
//! The post-norm form of OPT is left out: no norm stands before its output layer, which therefore passes errors on by an
//! unknown factor, and no published BLIP-2 has it.
//!
//! An error that is far smaller would mean that half precision was not in use, which fails too.

use blip2_model::blip2::Blip2;
use blip2_model::checkpoint::{DtypePolicy, PartDtype};
use blip2_model::config::Blip2Config;
use blip2_model::language::LanguageConfig;
use blip2_model::nn::Kernels;
use blip2_model::weights::checkpoint_dir;
use burn::tensor::TensorData;

use crate::parity::conditional_trace;
use crate::support::{Expected, fixture};

/// Unit roundoff.
fn roundoff(dtype: PartDtype) -> f64 {
    match dtype {
        PartDtype::BF16 => 2f64.powi(-8),
        PartDtype::F16 => 2f64.powi(-11),
        _ => unreachable!("a half dtype"),
    }
}

/// Matrices in series from the pixels to the logits: patches, four per encoder block, six per layer of a language
/// model (T5's decoder layers have four more), the output layer.
fn matrices(config: &Blip2Config) -> usize {
    let language = match config.language() {
        Some(LanguageConfig::Opt(opt)) => 6 * opt.num_hidden_layers,
        Some(LanguageConfig::T5(t5)) => 7 * t5.num_layers + 11 * t5.decoder_layers(),
        _ => 0,
    };
    2 + 4 * config.vision_config.num_hidden_layers() + language
}

fn relative_error(got: &TensorData, want: &[f32]) -> f64 {
    let got = got.clone().convert::<f32>().to_vec::<f32>().expect("f32");
    let square = |sum: f64, x: f64| sum + x * x;
    let diff = got
        .iter()
        .zip(want)
        .map(|(a, b)| f64::from(a - b))
        .fold(0.0, square);
    let norm = want.iter().map(|&b| f64::from(b)).fold(0.0, square);
    (diff / norm).sqrt()
}

fn frozen_parts<B: Kernels>(name: &str, dtype: PartDtype, activations: f64, device: &B::Device) {
    let folder = fixture(&format!("parity/{name}"));
    let opened = checkpoint_dir::open(&folder).unwrap_or_else(|e| panic!("{e}"));
    let config = Blip2Config::from_json(opened.config_json.as_deref().expect("a config")).expect("config");
    let policy = DtypePolicy::frozen(dtype).for_config(&config).expect("a policy");
    let bound = activations * roundoff(dtype) * (matrices(&config) as f64).sqrt();
    let loaded = Blip2::<B>::load(config, opened.source.as_ref(), policy, false, device);
    let (model, _) = loaded.unwrap_or_else(|e| panic!("{e}"));
    let expected = Expected::open_path(&folder.join("expected.safetensors"));
    let names = expected.names();
    let (mut worst, mut compared) = ((0.0, String::new()), 0);
    for (tensor, data) in conditional_trace(&model, &expected) {
        if tensor == "pixel_values" || !names.contains(&tensor) {
            continue;
        }
        let error = relative_error(&data, &expected.values(&tensor).0);
        assert!(error <= bound, "{name} {tensor}: {error:e} above {bound:e}");
        compared += 1;
        if error > worst.0 {
            worst = (error, tensor);
        }
    }
    println!(
        "{name} in {dtype:?}: at most {:e} ({}), bound {bound:e}",
        worst.0, worst.1
    );
    assert!(compared >= 12, "{name}: only {compared} tensors were compared");
    assert!(
        worst.0 > roundoff(dtype) / 20.0,
        "{name}: {:e} is too good for {dtype:?}",
        worst.0
    );
}

#[cfg(feature = "flex")]
mod flex {
    use super::*;
    use blip2_model::backend::Flex;

    #[test]
    fn bf16() {
        for name in ["opt", "t5"] {
            frozen_parts::<Flex>(name, PartDtype::BF16, 1.0, &Default::default());
        }
    }

    #[test]
    fn f16() {
        frozen_parts::<Flex>("opt", PartDtype::F16, 1.0, &Default::default());
    }
}

#[cfg(any(feature = "vulkan", feature = "wgpu", feature = "metal"))]
mod wgpu {
    use super::*;
    use blip2_model::backend::Wgpu;
    use burn::tensor::{DType, backend::Backend};

    #[test]
    fn f16() {
        let device = Default::default();
        if !crate::support::wgpu_adapter() {
            return;
        }
        if !Wgpu::supports_dtype(&device, DType::F16) {
            eprintln!("note: this adapter has no f16, nothing was run");
            return;
        }
        frozen_parts::<Wgpu>("opt", PartDtype::F16, 2.0, &device);
    }
}
