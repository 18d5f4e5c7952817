use std::path::PathBuf;

use burn::tensor::TensorData;
use safetensors::SafeTensors;

use super::*;
use crate::blip2::Blip2;
use crate::checkpoint::DtypePolicy;
use crate::config::Blip2Config;
use crate::weights::safetensors::SafetensorsFile;

/// Largest absolute difference allowed to f32 results of PyTorch: the order of summation differs.
const EXACT: f32 = 1e-4;

/// Written by `tests/fixtures/gen/vision.py`.
fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/vision/dinov2.safetensors")
}

/// Loaded by the key table of a whole checkpoint, of which only the encoder and `ln_vision` are in the file.
fn model<B: Kernels>() -> Blip2<B> {
    let bytes = std::fs::read(file()).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let vision = &header.metadata().as_ref().unwrap()["vision_config"];
    let config = format!(
        r#"{{"architectures": ["Blip2VisionModelWithProjection"], "vision_config": {vision},
            "qformer_config": {{"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}}}}"#
    );
    let config = Blip2Config::from_json(&config).unwrap();
    let source = SafetensorsFile::open(file()).unwrap();
    let (model, report) = Blip2::load(
        config,
        &source,
        DtypePolicy::default(),
        true,
        &B::Device::default(),
    )
    .unwrap();
    let missing: Vec<_> = report
        .missing
        .iter()
        .filter(|m| m.contains("vision_model"))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    model
}

fn floats(name: &str) -> TensorData {
    let bytes = std::fs::read(file()).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let view = all.tensor(&format!("io/{name}")).unwrap();
    TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), DType::F32)
}

fn assert_close<B: Backend>(ours: Tensor<B, 3>, name: &str) {
    let (ours, expected) = (ours.into_data(), floats(name));
    assert_eq!(ours.shape, expected.shape, "{name}");
    let (ours, expected): (Vec<f32>, Vec<f32>) = (ours.to_vec().unwrap(), expected.to_vec().unwrap());
    let error = ours
        .iter()
        .zip(&expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(error <= EXACT, "{name}: off by {error}");
}

fn equals_transformers<B: Kernels>() {
    let model = model::<B>();
    let encoder = model.vision.as_ref().unwrap();
    for size in ["15x15", "21x12"] {
        let ctx = Context::tracing();
        let pixels = Tensor::from_data(floats(&format!("{size}.pixel_values")), &B::Device::default());
        let tokens = encoder.forward(pixels, &ctx);
        assert_close(
            model.bridge.ln_vision.forward(tokens),
            &format!("{size}.last_hidden_state"),
        );
        let trace = ctx.into_trace();
        for layer in 0..3 {
            let values =
                Tensor::<B, 3>::from_data(trace[&format!("layers.{layer}")].clone(), &B::Device::default());
            assert_close(values, &format!("{size}.layers.{layer}"));
        }
    }
}

#[cfg(feature = "flex")]
#[test]
fn flex_equals_transformers() {
    equals_transformers::<crate::backend::Flex>();
}

#[cfg(feature = "ndarray")]
#[test]
fn ndarray_equals_transformers() {
    equals_transformers::<crate::backend::NdArray>();
}

#[test]
fn the_gated_giant_is_refused_by_name() {
    let json = r#"{"vision_config": {"model_type": "dinov2", "use_swiglu_ffn": true}}"#;
    let error = Blip2Config::from_json(json).unwrap_err().to_string();
    assert!(error.contains("use_swiglu_ffn"), "{error}");
}
