//! Frozen parts in half precision against transformers in f32, with bounds that follow from the formats.
//!
//! Rounding to p significant bits changes a weight by at most u = 2^-p of itself, 2^-8 in bf16 and 2^-11 in f16, and by
//! 0.4 u in the root mean square. The errors of a matrix's elements are independent, so the product is off by about that
//! much of its norm, and the K matrices that a number has passed add up like a random walk. The bound is u * sqrt(K), on
//! the root mean square of a whole tensor's error relative to that of its values; single elements scatter and have no
//! such bound. It leaves a factor of two for what attention and norms amplify. GPUs keep activations in half precision
//! as well, which rounds as often again: twice the bound.
//!
//! Logits are a special case. Both rounding the output layer W and the error of the states x before it move them by so
//! much of |W| |x| / sqrt(width), which is the size of W x only if rows and states point in unrelated directions. The
//! generator of the fixtures turns the rows away from the mean state, so that random models do not repeat one word, and
//! states of the post-norm form, with no norm and no growing residual behind the last one, are little else than their
//! mean: there the logits are 3.7 times smaller than that product, and their relative error as much larger. PyTorch with
//! the same rounded weights errs by 3 units in the states and by 12 in the logits, here it is 9. The bound for logits is
//! multiplied by that ratio, taken from the reference.
//!
//! An error that is far smaller would mean that half precision was not in use, which fails too.

use blip2_model::blip2::Blip2;
use blip2_model::checkpoint::{DtypePolicy, PartDtype};
use blip2_model::config::Blip2Config;
use blip2_model::language::LanguageConfig;
use blip2_model::nn::Kernels;
use blip2_model::weights::{TensorSource, checkpoint_dir};
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

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// How much smaller the logits are than the product of their factors' sizes, |W| |x| / (sqrt(width) |W x|), at least 1.
fn cancellation(config: &Blip2Config, source: &dyn TensorSource, expected: &Expected) -> f64 {
    let (head, states) = match config.language() {
        Some(LanguageConfig::T5(_)) => ("lm_head", "decoder.last_hidden_state"),
        _ => ("model.decoder.embed_tokens", "last_hidden_state"),
    };
    let head = source.get(&format!("language_model.{head}.weight"));
    let head = head.and_then(|head| head.to_f32_vec()).expect("an output layer");
    let (states, shape) = expected.values(&format!("language_model.{states}"));
    let (length, width) = (shape[1], shape[2]);
    let last: Vec<f32> = states
        .chunks_exact(length * width)
        .flat_map(|row| &row[(length - 1) * width..])
        .copied()
        .collect();
    // of one prompt each; the states are those of fewer prompts than the logits
    let last = norm(&last) / (shape[0] as f64).sqrt();
    let (logits, shape) = expected.values("logits");
    let logits = norm(&logits) / (shape[0] as f64).sqrt();
    (norm(&head) * last / ((width as f64).sqrt() * logits)).max(1.0)
}

fn relative_error(got: &TensorData, want: &[f32]) -> f64 {
    let got = got.clone().convert::<f32>().to_vec::<f32>().expect("f32");
    let diff: Vec<f32> = got.iter().zip(want).map(|(a, b)| a - b).collect();
    norm(&diff) / norm(want)
}

fn frozen_parts<B: Kernels>(name: &str, dtype: PartDtype, activations: f64, device: &B::Device) {
    let folder = fixture(&format!("parity/{name}"));
    let opened = checkpoint_dir::open(&folder).unwrap_or_else(|e| panic!("{e}"));
    let config = Blip2Config::from_json(opened.config_json.as_deref().expect("a config")).expect("config");
    let policy = DtypePolicy::frozen(dtype).for_config(&config).expect("a policy");
    let bound = activations * roundoff(dtype) * (matrices(&config) as f64).sqrt();
    let expected = Expected::open_path(&folder.join("expected.safetensors"));
    let of_logits = bound * cancellation(&config, opened.source.as_ref(), &expected);
    let loaded = Blip2::<B>::load(config, opened.source.as_ref(), policy, false, device);
    let (model, _) = loaded.unwrap_or_else(|e| panic!("{e}"));
    let names = expected.names();
    let (mut worst, mut compared) = ((0.0, String::new()), 0);
    for (tensor, data) in conditional_trace(&model, &expected) {
        if tensor == "pixel_values" || !names.contains(&tensor) {
            continue;
        }
        let error = relative_error(&data, &expected.values(&tensor).0);
        let bound = if tensor == "logits" { of_logits } else { bound };
        assert!(error <= bound, "{name} {tensor}: {error:e} above {bound:e}");
        compared += 1;
        if error > worst.0 {
            worst = (error, tensor);
        }
    }
    println!(
        "{name} in {dtype:?}: at most {:e} ({}), bound {bound:e}, of logits {of_logits:e}",
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
        for name in ["opt", "opt-350m-form", "t5"] {
            frozen_parts::<Flex>(name, PartDtype::BF16, 1.0, &Default::default());
        }
    }

    #[test]
    fn f16() {
        for name in ["opt", "opt-350m-form"] {
            frozen_parts::<Flex>(name, PartDtype::F16, 1.0, &Default::default());
        }
    }
}

/// A device that computes in half precision, where it has the format.
#[cfg(any(
    feature = "cuda",
    feature = "rocm",
    feature = "vulkan",
    feature = "wgpu",
    feature = "metal"
))]
fn on_gpu<B: Kernels>(names: &[&str], dtype: PartDtype, device: &B::Device) {
    use burn::tensor::DType;
    let format = match dtype {
        PartDtype::BF16 => DType::BF16,
        _ => DType::F16,
    };
    if !B::supports_dtype(device, format) {
        eprintln!("note: this device has no {dtype:?}, nothing was run");
        return;
    }
    for name in names {
        frozen_parts::<B>(name, dtype, 2.0, device);
    }
}

#[cfg(any(feature = "vulkan", feature = "wgpu", feature = "metal"))]
mod wgpu {
    use super::*;
    use blip2_model::backend::Wgpu;

    #[test]
    fn f16() {
        if crate::support::wgpu_adapter() {
            on_gpu::<Wgpu>(&["opt", "opt-350m-form"], PartDtype::F16, &Default::default());
        }
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::*;
    use blip2_model::backend::Cuda;

    #[test]
    fn bf16() {
        let names = ["opt", "opt-350m-form", "t5"];
        on_gpu::<Cuda>(&names, PartDtype::BF16, &Default::default());
    }

    #[test]
    fn f16() {
        on_gpu::<Cuda>(&["opt", "opt-350m-form"], PartDtype::F16, &Default::default());
    }
}

#[cfg(feature = "rocm")]
mod rocm {
    use super::*;
    use blip2_model::backend::Rocm;

    #[test]
    fn bf16() {
        let names = ["opt", "opt-350m-form", "t5"];
        on_gpu::<Rocm>(&names, PartDtype::BF16, &Default::default());
    }

    #[test]
    fn f16() {
        on_gpu::<Rocm>(&["opt", "opt-350m-form"], PartDtype::F16, &Default::default());
    }
}
