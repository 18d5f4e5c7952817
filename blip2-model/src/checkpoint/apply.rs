//! Fills a module from a [`TensorSource`], tensor by tensor, and accounts for every one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{
    AllocationProperty, Bytes, DType as BurnDType, Shape, Tensor, TensorData, backend::Backend,
};
use serde::Serialize;

use super::{DtypePolicy, Keys, Part};
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
    pub fn load<B: Backend, M: Module<B>>(&mut self, module: M, root: &str) -> M {
        let mut mapper = Mapper {
            loader: self,
            path: vec![root.to_string()],
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

    /// Bytes for the parameter at `path`, in the dtype of the policy, or in f32 where the device `keeps` no such
    /// numbers; `None` is recorded as a problem.
    fn fetch(&mut self, path: &str, expected: &Shape, keeps: impl Fn(DType) -> bool) -> Option<TensorBytes> {
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
                Some(tensor)
            }
            Err(error) => {
                self.failure.get_or_insert(error);
                None
            }
        }
    }
}

struct Mapper<'l, 'a, B> {
    loader: &'l mut Loader<'a>,
    path: Vec<String>,
    backend: PhantomData<B>,
}

impl<B: Backend> ModuleMapper<B> for Mapper<'_, '_, B> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        if !container_type.starts_with("Enum:") {
            self.path.push(name.to_string());
        }
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        if !container_type.starts_with("Enum:") {
            self.path.pop();
        }
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let shape = param.lazy_shape();
        let device = param.lazy_device();
        let keeps = |dtype| B::supports_dtype(&device, burn_dtype(dtype));
        let Some(found) = self.loader.fetch(&self.path.join("."), &shape, keeps) else {
            return param;
        };
        let dtype = burn_dtype(found.dtype());
        let bytes = Bytes::from_shared(found.into_bytes(), AllocationProperty::File);
        let data = TensorData::from_bytes(bytes, shape, dtype);
        // A frozen weight never asks for a gradient; the trainer turns it on for what it trains.
        Param::initialized(
            param.id,
            Tensor::from_data(data, (&device, dtype)).set_require_grad(false),
        )
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
