//! The only file that names backends: Cargo feature -> type, run-time choice by name, and the macro
//! that calls a generic function with the chosen type.

use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Tensor;
#[cfg(any(feature = "autodiff", feature = "cube"))]
use burn::tensor::{TensorPrimitive, backend::Backend};
use serde::Serialize;

use crate::nn::Kernels;

/// A backend that can be compiled in with the Cargo feature of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// Pure Rust CPU backend with SIMD and threads.
    Flex,
    /// `ndarray` CPU backend, the oracle.
    NdArray,
    /// libtorch (CPU, CUDA or MPS, depending on the library).
    Tch,
    /// NVIDIA GPUs.
    Cuda,
    /// AMD GPUs through HIP.
    Rocm,
    /// Any GPU through WebGPU (WGSL).
    Wgpu,
    /// Any GPU with Vulkan (SPIR-V).
    Vulkan,
    /// Apple GPUs.
    Metal,
}

impl BackendKind {
    /// Every backend the project knows, compiled in or not.
    pub const ALL: [Self; 8] = [
        Self::Flex,
        Self::NdArray,
        Self::Tch,
        Self::Cuda,
        Self::Rocm,
        Self::Wgpu,
        Self::Vulkan,
        Self::Metal,
    ];

    /// Name on the command line, equal to the Cargo feature.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::NdArray => "ndarray",
            Self::Tch => "tch",
            Self::Cuda => "cuda",
            Self::Rocm => "rocm",
            Self::Wgpu => "wgpu",
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
        }
    }

    /// Whether this build contains the backend.
    pub fn is_compiled(self) -> bool {
        match self {
            Self::Flex => cfg!(feature = "flex"),
            Self::NdArray => cfg!(feature = "ndarray"),
            Self::Tch => cfg!(feature = "tch"),
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Rocm => cfg!(feature = "rocm"),
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::Vulkan => cfg!(feature = "vulkan"),
            Self::Metal => cfg!(feature = "metal"),
        }
    }

    /// The backends of this build.
    pub fn compiled() -> Vec<Self> {
        Self::ALL.into_iter().filter(|kind| kind.is_compiled()).collect()
    }

    /// Whether half-precision activations are the natural choice: GPUs compute in the dtype of the
    /// weights, CPUs keep f32 activations and convert weights on the way.
    pub fn is_gpu(self) -> bool {
        !matches!(self, Self::Flex | Self::NdArray)
    }

    /// A CPU backend of this build that `self` can be held against, if there is another one.
    pub fn reference(self) -> Option<Self> {
        [Self::Flex, Self::NdArray]
            .into_iter()
            .find(|kind| *kind != self && kind.is_compiled())
    }

    /// Picks a backend: by name, or the first one compiled in.
    pub fn choose(name: Option<&str>) -> Result<Self, BackendError> {
        let compiled = Self::compiled();
        let Some(name) = name else {
            return compiled.first().copied().ok_or(BackendError::NoneCompiled);
        };
        let kind = Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| BackendError::Unknown {
                name: name.to_string(),
            })?;
        if kind.is_compiled() {
            Ok(kind)
        } else {
            Err(BackendError::NotCompiled { kind, compiled })
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a backend cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The name is not one of [`BackendKind::ALL`].
    #[error("unknown backend `{name}`; known: {}", names(&BackendKind::ALL))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The build lacks the Cargo feature.
    #[error(
        "this build has no `{kind}` backend (it has: {}); rebuild with `--features {kind}`",
        names(compiled)
    )]
    NotCompiled {
        /// What was asked for.
        kind: BackendKind,
        /// What there is.
        compiled: Vec<BackendKind>,
    },
    /// No backend feature is enabled at all.
    #[error("this build has no backend; rebuild with `--features flex`")]
    NoneCompiled,
    /// The device does not exist, or its driver cannot be loaded.
    #[error("{device} does not answer: {cause}; {}", remedy(device))]
    NoDevice {
        /// As burn shows the device.
        device: String,
        /// What the driver said.
        cause: String,
    },
}

/// What the devices of a kind need, told by how burn calls them.
fn remedy(device: &str) -> &'static str {
    if device.starts_with("Cuda") {
        "it needs NVIDIA's driver (`nvidia-smi` lists the devices) and the CUDA toolkit with NVRTC"
    } else {
        "look for the driver and the number of the device, or take another --backend"
    }
}

fn names(kinds: &[BackendKind]) -> String {
    let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
    names.join(", ")
}

/// Device `index` of a backend; 0 is the default device.
pub trait SelectDevice: Kernels {
    /// The device handle.
    fn select_device(index: usize) -> Self::Device;

    /// A device that has answered. Drivers are loaded at first use, where their absence is a panic, and not always in
    /// the thread that asked.
    fn open_device(index: usize) -> Result<Self::Device, BackendError> {
        let device = Self::select_device(index);
        answers(|| Tensor::<Self, 1>::zeros([1], &device).into_data()).map_err(|cause| {
            BackendError::NoDevice {
                device: format!("{device:?}"),
                cause,
            }
        })?;
        Ok(device)
    }

    /// Sum of equal vectors `[n]` of several devices of this process by their maker's library, the same on all of them;
    /// a thread of each device calls it. `None`: there is no such library, or this build does not reach it.
    fn sum_across(_values: Tensor<Self, 1>, _devices: &[Self::Device]) -> Option<Tensor<Self, 1>> {
        None
    }
}

/// Runs `work`; if it panics, the first message of any thread meanwhile.
fn answers<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    /// Letters of a message; some list every file name that was tried.
    const MOST: usize = 160;
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _mine = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let said = Arc::new(Mutex::new(String::new()));
    let heard = said.clone();
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let mut said = heard.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_empty() {
            let message = info.payload_as_str().unwrap_or("it panicked");
            *said = message.trim().chars().take(MOST).collect();
        }
    }));
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    panic::set_hook(usual);
    done.map_err(|_| said.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

#[cfg(any(feature = "autodiff", feature = "cube"))]
fn wrap<B: Backend, const D: usize>(primitive: B::FloatTensorPrimitive) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

#[cfg(any(feature = "autodiff", feature = "cube"))]
fn unwrap<B: Backend, const D: usize>(x: Tensor<B, D>) -> B::FloatTensorPrimitive {
    x.into_primitive().tensor()
}

#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "flex")]
pub use flex::Flex;

#[cfg(feature = "ndarray")]
mod ndarray {
    use burn::tensor::DType;

    use super::*;
    use crate::nn::kernels::host_mask;

    /// The `ndarray` CPU backend.
    pub type NdArray = burn::backend::NdArray<f32>;
    impl Kernels for NdArray {
        const PACKS: bool = false;

        fn random_mask<const D: usize>(
            dims: [usize; D],
            keep: f64,
            seed: u64,
            device: &Self::Device,
        ) -> Tensor<Self, D> {
            host_mask(dims, keep, seed, device)
        }

        fn compute_dtype(_stored: DType) -> DType {
            DType::F32
        }
    }
    impl SelectDevice for NdArray {
        fn select_device(_index: usize) -> Self::Device {
            Default::default()
        }
    }
}
#[cfg(feature = "ndarray")]
pub use ndarray::NdArray;

#[cfg(feature = "tch")]
mod tch {
    use super::*;
    /// The libtorch backend.
    pub type Tch = burn::backend::LibTorch<f32>;
    impl Kernels for Tch {
        const PACKS: bool = false;
    }
    impl SelectDevice for Tch {
        fn select_device(index: usize) -> Self::Device {
            use burn::backend::libtorch::LibTorchDevice;
            if ::tch::Cuda::is_available() {
                LibTorchDevice::Cuda(index)
            } else if cfg!(target_os = "macos") {
                LibTorchDevice::Mps
            } else {
                LibTorchDevice::Cpu
            }
        }
    }
}
#[cfg(feature = "tch")]
pub use tch::Tch;

// fusion puts its own tensors around those of the kernels
#[cfg(all(feature = "cube", not(feature = "fusion")))]
mod cube;

#[cfg(feature = "cuda")]
mod cuda {
    use super::*;
    /// The CUDA backend.
    pub type Cuda = burn::backend::Cuda;
    #[cfg(feature = "fusion")]
    impl Kernels for Cuda {}
    impl SelectDevice for Cuda {
        fn select_device(index: usize) -> Self::Device {
            burn::backend::cuda::CudaDevice::new(index)
        }

        #[cfg(not(feature = "fusion"))]
        fn sum_across(values: Tensor<Self, 1>, devices: &[Self::Device]) -> Option<Tensor<Self, 1>> {
            // the sum takes the place of the vector, which therefore nobody else may hold
            let own = unwrap(values * 1.0);
            Some(wrap(cube::sum_across(own, devices)))
        }
    }
}
#[cfg(feature = "cuda")]
pub use cuda::Cuda;

#[cfg(feature = "rocm")]
mod rocm {
    use super::*;
    /// The ROCm backend.
    pub type Rocm = burn::backend::Rocm;
    #[cfg(feature = "fusion")]
    impl Kernels for Rocm {}
    impl SelectDevice for Rocm {
        fn select_device(index: usize) -> Self::Device {
            burn::backend::rocm::RocmDevice::new(index)
        }
    }
}
#[cfg(feature = "rocm")]
pub use rocm::Rocm;

// `Wgpu`, `Vulkan` and `Metal` are one Rust type in burn 0.21; the compiler behind it is fixed by the
// Cargo feature, the graphics interface by the adapter that is initialised for the device.
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
mod wgpu {
    use super::*;
    /// The WebGPU family of backends.
    pub type Wgpu = burn::backend::Wgpu;
    #[cfg(feature = "fusion")]
    impl Kernels for Wgpu {}
    impl SelectDevice for Wgpu {
        fn select_device(index: usize) -> Self::Device {
            use burn::backend::wgpu::WgpuDevice;
            match index {
                0 => WgpuDevice::DefaultDevice,
                n => WgpuDevice::DiscreteGpu(n),
            }
        }
    }
}
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
pub use wgpu::Wgpu;

#[cfg(feature = "autodiff")]
mod autodiff;

/// Calls a generic function with the backend type chosen at run time.
///
/// `with_backend!(kind, B => expression)` evaluates `expression` with the type alias `B` bound to the
/// backend of `kind`, which must be compiled in (see [`BackendKind::choose`]).
#[macro_export]
macro_rules! with_backend {
    ($kind:expr, $B:ident => $body:expr) => {
        $crate::with_backend_dispatch!($kind, $B, $body)
    };
}

/// Implementation of [`with_backend!`]; the arms exist only for compiled backends.
#[doc(hidden)]
#[macro_export]
macro_rules! with_backend_dispatch {
    ($kind:expr, $B:ident, $body:expr) => {{
        use $crate::backend::BackendKind;
        match $kind {
            #[cfg(feature = "flex")]
            BackendKind::Flex => {
                type $B = $crate::backend::Flex;
                $body
            }
            #[cfg(feature = "ndarray")]
            BackendKind::NdArray => {
                type $B = $crate::backend::NdArray;
                $body
            }
            #[cfg(feature = "tch")]
            BackendKind::Tch => {
                type $B = $crate::backend::Tch;
                $body
            }
            #[cfg(feature = "cuda")]
            BackendKind::Cuda => {
                type $B = $crate::backend::Cuda;
                $body
            }
            #[cfg(feature = "rocm")]
            BackendKind::Rocm => {
                type $B = $crate::backend::Rocm;
                $body
            }
            #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
            BackendKind::Wgpu | BackendKind::Vulkan | BackendKind::Metal => {
                type $B = $crate::backend::Wgpu;
                $body
            }
            #[allow(unreachable_patterns)]
            other => unreachable!("backend {other} is not compiled into this build"),
        }
    }};
}

#[cfg(all(test, feature = "flex", feature = "ndarray", feature = "autodiff"))]
mod tests;

#[cfg(test)]
mod opening {
    use super::answers;

    #[test]
    fn a_driver_that_panics_in_a_thread_of_its_own_is_an_error() {
        let missing = || {
            std::thread::spawn(|| panic!("no libcuda"))
                .join()
                .expect("a device")
        };
        let cause = answers(missing).expect_err("there is none");
        assert!(!cause.is_empty());
        assert_eq!(answers(|| 3), Ok(3));
    }
}
