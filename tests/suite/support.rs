//! Fixtures, tolerances, and one test body on many backends.

use std::collections::BTreeMap;
use std::path::PathBuf;

use blip2_model::nn::Kernels;
use blip2_model::weights::{self, TensorSource};
use burn::tensor::{DType, Tensor, TensorData};

/// A file or folder below `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// Expected tensors of a fixture.
pub struct Expected {
    source: Box<dyn TensorSource>,
}

impl Expected {
    /// Opens a safetensors file below `tests/fixtures`.
    pub fn open(name: &str) -> Self {
        Self::open_path(&fixture(name))
    }

    /// Opens any safetensors file.
    pub fn open_path(path: &std::path::Path) -> Self {
        let source = weights::safetensors::SafetensorsFile::open(path).expect("fixture opens");
        Self {
            source: Box::new(source),
        }
    }

    /// Names in the file.
    pub fn names(&self) -> Vec<String> {
        self.source.infos().iter().map(|info| info.name.clone()).collect()
    }

    /// Values and shape.
    pub fn values(&self, name: &str) -> (Vec<f32>, Vec<usize>) {
        let tensor = self.source.get(name).unwrap_or_else(|e| panic!("{e}"));
        (tensor.to_f32_vec().expect("f32"), tensor.shape().to_vec())
    }

    /// Integer rows `[B][T]`.
    pub fn ints(&self, name: &str) -> Vec<Vec<i64>> {
        let tensor = self.source.get(name).unwrap_or_else(|e| panic!("{e}"));
        let width = *tensor.shape().last().expect("a matrix");
        let bytes: &[u8] = tensor.bytes();
        let all: Vec<i64> = bytes
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes")))
            .collect();
        all.chunks(width).map(<[i64]>::to_vec).collect()
    }

    /// On a device.
    pub fn tensor<B: Kernels, const D: usize>(&self, name: &str, device: &B::Device) -> Tensor<B, D> {
        let (values, shape) = self.values(name);
        Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
    }
}

/// Largest absolute difference.
pub fn max_diff(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "different numbers of elements");
    a.iter()
        .zip(b)
        .map(|(x, y)| (x - y).abs())
        .fold(0.0, |m, d| if d.is_nan() { f32::NAN } else { m.max(d) })
}

/// Compares every recorded tensor that the fixture has, in the order of computation, and names the first
/// one that diverges. Returns how many were compared.
pub fn compare_trace(
    trace: &BTreeMap<String, TensorData>,
    expected: &Expected,
    bound: f32,
    label: &str,
) -> usize {
    let names = expected.names();
    let mut compared = 0;
    let mut worst = Vec::new();
    for (name, data) in trace {
        if !names.contains(name) {
            continue;
        }
        let (want, shape) = expected.values(name);
        assert_eq!(
            data.shape.iter().copied().collect::<Vec<_>>(),
            shape,
            "{label}: shape of {name}"
        );
        let got = data.clone().convert::<f32>().to_vec::<f32>().expect("f32");
        worst.push((name.clone(), max_diff(&got, &want)));
        compared += 1;
    }
    let bad: Vec<_> = worst.iter().filter(|(_, d)| d.is_nan() || *d > bound).collect();
    assert!(bad.is_empty(), "{label}: above {bound}: {bad:?}");
    compared
}

/// Makes one `#[test]` per backend of the build from a generic function.
#[macro_export]
macro_rules! on_every_backend {
    ($($name:ident),+ $(,)?) => {
        #[cfg(feature = "flex")]
        mod flex {
            $(#[test] fn $name() { super::$name::<blip2_model::backend::Flex>(&Default::default()); })+
        }
        #[cfg(feature = "ndarray")]
        mod ndarray {
            $(#[test] fn $name() { super::$name::<blip2_model::backend::NdArray>(&Default::default()); })+
        }
        #[cfg(feature = "tch")]
        mod tch {
            $(#[test] fn $name() { super::$name::<blip2_model::backend::Tch>(&Default::default()); })+
        }
        #[cfg(any(feature = "vulkan", feature = "wgpu", feature = "metal"))]
        mod wgpu {
            $(#[test] fn $name() {
                if $crate::support::wgpu_adapter() {
                    super::$name::<blip2_model::backend::Wgpu>(&Default::default());
                }
            })+
        }
        #[cfg(feature = "cuda")]
        mod cuda {
            $(#[test] fn $name() { super::$name::<blip2_model::backend::Cuda>(&Default::default()); })+
        }
        #[cfg(feature = "rocm")]
        mod rocm {
            $(#[test] fn $name() { super::$name::<blip2_model::backend::Rocm>(&Default::default()); })+
        }
    };
}

/// Whether a WebGPU/Vulkan adapter (a software driver counts) is there. Without one the test passes with a
/// note, unless `BLIP2_REQUIRE_VULKAN` says that there must be one, as CI does.
#[cfg(any(feature = "vulkan", feature = "wgpu", feature = "metal"))]
pub fn wgpu_adapter() -> bool {
    use std::sync::OnceLock;
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let found = std::panic::catch_unwind(|| {
            let device = Default::default();
            let x = Tensor::<blip2_model::backend::Wgpu, 1>::ones([2], &device);
            x.into_data().to_vec::<f32>().ok() == Some(vec![1.0, 1.0])
        })
        .unwrap_or(false);
        if !found {
            assert!(
                std::env::var_os("BLIP2_REQUIRE_VULKAN").is_none(),
                "BLIP2_REQUIRE_VULKAN is set but no Vulkan adapter works; install mesa-vulkan-drivers"
            );
            eprintln!("note: no Vulkan adapter here, GPU parity was not run");
        }
        found
    })
}
