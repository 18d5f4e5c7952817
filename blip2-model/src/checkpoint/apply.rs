//! Fills a module from a [`TensorSource`], tensor by tensor, and accounts for every one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{AllocationProperty, Bytes, DType as BurnDType, Shape, Tensor, TensorData};
use serde::Serialize;

use super::{DtypePolicy, Keys, Part};
use crate::module_path::ModulePath;
use crate::nn::Kernels;
use crate::nn::kernels::WeightBits;
use crate::weights::{DType, ShapeMismatch, TensorBytes, TensorSource, WeightsError};

/// What a load did, per part.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LoadReport {
    /// Tensors filled, by part.
    pub tensors: BTreeMap<Part, usize>,
    /// Parameters by part and dtype kept.
    pub parameters: BTreeMap<Part, BTreeMap<String, usize>>,
    /// Bytes kept, by part.
    pub bytes: BTreeMap<Part, usize>,
    /// Names that the model needs and the file lacks (only with partial loading).
    pub missing: Vec<String>,
    /// Names in the file without a place in the model (only with partial loading).
    pub unused: Vec<String>,
}

/// Loads modules from one checkpoint.
pub struct Loader<'a> {
    source: &'a dyn TensorSource,
    keys: &'a Keys,
    policy: DtypePolicy,
    used: BTreeSet<String>,
    report: LoadReport,
    mismatches: Vec<ShapeMismatch>,
    failure: Option<WeightsError>,
}

impl<'a> Loader<'a> {
    /// A loader over `source`.
    pub fn new(source: &'a dyn TensorSource, keys: &'a Keys, policy: DtypePolicy) -> Self {
        Self {
            source,
            keys,
            policy,
            used: BTreeSet::new(),
            report: LoadReport::default(),
            mismatches: Vec::new(),
            failure: None,
        }
    }

    /// Fills `module`, whose parameters live under `root` in the key table (`vision`, `bridge`, `language`).
    ///
    /// Problems are collected; [`Loader::finish`] reports them all at once.
    pub fn load<B: Kernels, M: Module<B>>(&mut self, module: M, root: &str) -> M {
        let mut mapper = Mapper {
            loader: self,
            path: ModulePath::under(root),
            backend: PhantomData::<B>,
        };
        module.map(&mut mapper)
    }

    /// Ends the load: complete, or an error that lists every missing, unused and mis-shaped tensor.
    pub fn finish(mut self, allow_partial: bool) -> Result<LoadReport, WeightsError> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let path = self.source.path().to_owned();
        if !self.mismatches.is_empty() {
            return Err(WeightsError::ShapeMismatches {
                path,
                mismatches: self.mismatches,
            });
        }
        self.report.unused = self
            .source
            .infos()
            .iter()
            .map(|info| &info.name)
            .filter(|name| !self.used.contains(*name) && !self.keys.is_redundant(name))
            .cloned()
            .collect();
        if !allow_partial && !self.report.missing.is_empty() {
            return Err(WeightsError::MissingTensors {
                path,
                names: self.report.missing,
            });
        }
        if !allow_partial && !self.report.unused.is_empty() {
            return Err(WeightsError::UnusedTensors {
                path,
                names: self.report.unused,
            });
        }
        Ok(self.report)
    }

    /// Name in the file and bytes for the parameter at `path`, in the dtype of the policy, or in f32 where the device
    /// `keeps` no such numbers; `None` is recorded as a problem.
    fn fetch(
        &mut self,
        path: &str,
        expected: &Shape,
        keeps: impl Fn(DType) -> bool,
    ) -> Option<(String, TensorBytes)> {
        let original = self.keys.name(path).unwrap_or_else(|| path.to_string());
        let mut names = std::iter::once(original.clone()).chain(self.keys.alias_of(&original));
        let Some(info) = names.find_map(|name| self.source.info(&name)) else {
            self.report.missing.push(original);
            return None;
        };
        let name = info.name.clone();
        self.used.insert(name.clone());
        let expected: &[usize] = expected;
        // burn has no rank-0 tensors, and CLIP stores its class token without unit axes
        let squeezed = |shape: &[usize]| shape.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>();
        if info.shape != expected && squeezed(&info.shape) != squeezed(expected) {
            self.mismatches.push(ShapeMismatch {
                name,
                expected: expected.to_vec(),
                found: info.shape.clone(),
            });
            return None;
        }
        let kept = self.policy.resolve(path, expected.len(), info.dtype);
        let kept = if keeps(kept) { kept } else { DType::F32 };
        let copied = info.dtype != kept;
        let tensor = self.source.get(&name).and_then(|bytes| bytes.convert(kept));
        if copied {
            self.source.release(&name);
        }
        match tensor {
            Ok(tensor) => {
                let part = Part::of(path);
                *self.report.tensors.entry(part).or_default() += 1;
                *self
                    .report
                    .parameters
                    .entry(part)
                    .or_default()
                    .entry(kept.to_string())
                    .or_default() += tensor.num_elements();
                *self.report.bytes.entry(part).or_default() += tensor.bytes().len();
                Some((name, tensor))
            }
            Err(error) => {
                self.failure.get_or_insert(error);
                None
            }
        }
    }

    /// Corrects the report for a weight that was stored as `stored_as` and is kept packed.
    fn report_packed(&mut self, path: &str, stored_as: DType, stored: usize, bits: WeightBits, count: usize) {
        let part = Part::of(path);
        let name = match bits {
            WeightBits::Eight => "int8",
            WeightBits::Four => "int4",
        };
        let parameters = self.report.parameters.entry(part).or_default();
        let plain = stored_as.to_string();
        if let Some(left) = parameters.get_mut(&plain) {
            *left -= count;
            if *left == 0 {
                parameters.remove(&plain);
            }
        }
        *parameters.entry(name.to_string()).or_default() += count;
        let bytes = self.report.bytes.entry(part).or_default();
        *bytes = *bytes - stored + bits.bytes(count);
    }
}

struct Mapper<'l, 'a, B> {
    loader: &'l mut Loader<'a>,
    path: ModulePath,
    backend: PhantomData<B>,
}

impl<B: Kernels> ModuleMapper<B> for Mapper<'_, '_, B> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.path.exit(container_type);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let shape = param.lazy_shape();
        let device = param.lazy_device();
        let path = self.path.name();
        let keeps = |dtype| B::supports_dtype(&device, burn_dtype(dtype));
        let Some((name, found)) = self.loader.fetch(&path, &shape, keeps) else {
            return param;
        };
        let dtype = burn_dtype(found.dtype());
        let (stored_as, stored) = (found.dtype(), found.bytes().len());
        let bytes = Bytes::from_shared(found.into_bytes(), AllocationProperty::File);
        let data = TensorData::from_bytes(bytes, shape.clone(), dtype);
        // kept apart from the pools for intermediate results, which burn's GPU backends search from end to end at every
        // allocation
        let tensor = B::memory_persistent_allocations(&device, data, |data| {
            Tensor::<B, D>::from_data(data, (&device, dtype))
        });
        if let (Some(bits), [rows, depth]) = (self.loader.policy.packing(&path, &shape), &shape[..]) {
            let packed = B::pack_weight(tensor.reshape([*rows, *depth]), bits);
            self.loader.source.release(&name);
            self.loader
                .report_packed(&path, stored_as, stored, bits, rows * depth);
            return Param::initialized(param.id, Tensor::from_primitive(packed.into_primitive()));
        }
        // A frozen weight never asks for a gradient; the trainer turns it on for what it trains.
        Param::initialized(param.id, tensor.set_require_grad(false))
    }
}

/// burn's name of a file dtype.
pub fn burn_dtype(dtype: DType) -> BurnDType {
    match dtype {
        DType::F64 => BurnDType::F64,
        DType::F16 => BurnDType::F16,
        DType::BF16 => BurnDType::BF16,
        _ => BurnDType::F32,
    }
}
