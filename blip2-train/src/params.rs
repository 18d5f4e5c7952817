//! Parameters by name: listing without allocating, values to and from the host, gradients, updates.
//!
//! A name is the dotted path of fields and indices; the variant of an enum is a choice, not a level,
//! and does not appear in it.

use std::collections::BTreeMap;

use blip2_model::module_path::ModulePath;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{
    DType, Tensor, TensorData,
    backend::{AutodiffBackend, Backend},
};

/// A parameter of a module: its dotted path and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamInfo {
    /// Dotted path of fields and indices, e.g. `qformer.layers.0.attention.query.weight`.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
}

impl ParamInfo {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Tensors by parameter name, flattened; the order of names is the order of every loop over them.
pub type Named<B> = BTreeMap<String, Tensor<B, 1>>;

/// Every float parameter in the order of the module's fields. Lazy parameters stay lazy.
pub fn list<B: Backend, M: Module<B>>(module: &M) -> Vec<ParamInfo> {
    let mut visitor = Lister::default();
    module.visit(&mut visitor);
    visitor.found
}

/// Number of elements of all parameters, without allocating any.
pub fn count<B: Backend, M: Module<B>>(module: &M) -> usize {
    list(module).iter().map(ParamInfo::len).sum()
}

/// Values of every parameter, flattened, on their device.
pub fn values<B: Backend, M: Module<B>>(module: &M) -> Named<B> {
    let mut visitor = Collector {
        path: ModulePath::default(),
        found: Named::new(),
    };
    module.visit(&mut visitor);
    visitor.found
}

/// Gradients of a backward pass by name; parameters without one are absent.
pub fn gradients<B: AutodiffBackend, M: Module<B>>(
    module: &M,
    grads: &mut B::Gradients,
) -> Named<B::InnerBackend> {
    let mut visitor = GradCollector::<B> {
        path: ModulePath::default(),
        grads,
        found: Named::new(),
    };
    module.visit(&mut visitor);
    visitor.found
}

/// Replaces parameters for which `f` returns a value, which must have the parameter's shape; a lazy
/// parameter that is replaced is never drawn.
pub fn replace<B: Backend, M: Module<B>>(module: M, f: impl FnMut(&ParamInfo) -> Option<TensorData>) -> M {
    module.map(&mut Replacer {
        path: ModulePath::default(),
        f,
    })
}

/// Transforms every trainable parameter, flattened and without graph.
pub fn update<B: AutodiffBackend, M: Module<B>>(
    module: M,
    f: impl FnMut(&ParamInfo, Tensor<B::InnerBackend, 1>) -> Tensor<B::InnerBackend, 1>,
) -> M {
    module.map(&mut Updater {
        path: ModulePath::default(),
        f,
    })
}

fn info_at(path: &ModulePath, shape: &[usize]) -> ParamInfo {
    ParamInfo {
        name: path.name(),
        shape: shape.to_vec(),
    }
}

macro_rules! track_path {
    () => {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }

        fn exit_module(&mut self, _name: &str, container: &str) {
            self.path.exit(container);
        }
    };
}

#[derive(Default)]
struct Lister {
    path: ModulePath,
    found: Vec<ParamInfo>,
}

impl<B: Backend> ModuleVisitor<B> for Lister {
    track_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.found.push(info_at(&self.path, &param.lazy_shape()));
    }
}

struct Collector<B: Backend> {
    path: ModulePath,
    found: Named<B>,
}

impl<B: Backend> ModuleVisitor<B> for Collector<B> {
    track_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let value = param.val().reshape([-1]);
        self.found.insert(self.path.name(), value);
    }
}

struct GradCollector<'a, B: AutodiffBackend> {
    path: ModulePath,
    grads: &'a mut B::Gradients,
    found: Named<B::InnerBackend>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for GradCollector<'_, B> {
    track_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = param.val().grad_remove(self.grads) {
            self.found.insert(self.path.name(), grad.reshape([-1]));
        }
    }
}

struct Replacer<F> {
    path: ModulePath,
    f: F,
}

impl<B: Backend, F: FnMut(&ParamInfo) -> Option<TensorData>> ModuleMapper<B> for Replacer<F> {
    track_path!();

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let info = info_at(&self.path, &param.lazy_shape());
        let Some(data) = (self.f)(&info) else {
            return param;
        };
        assert_eq!(data.shape.as_slice(), info.shape, "{}", info.name);
        let dtype = data.dtype;
        let tensor = Tensor::from_data(data, (&param.lazy_device(), dtype));
        let id = param.id;
        param.transform_for_load(tensor, id)
    }
}

struct Updater<F> {
    path: ModulePath,
    f: F,
}

impl<B, F> ModuleMapper<B> for Updater<F>
where
    B: AutodiffBackend,
    F: FnMut(&ParamInfo, Tensor<B::InnerBackend, 1>) -> Tensor<B::InnerBackend, 1>,
{
    track_path!();

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, tensor, mapper) = param.consume();
        let shape = tensor.dims();
        let info = info_at(&self.path, &shape);
        let value = (self.f)(&info, tensor.inner().reshape([-1])).reshape(shape);
        let tensor = Tensor::from_inner(value).require_grad();
        Param::from_mapped_value(id, tensor, mapper)
    }
}

/// f32 on the host, from any float dtype.
pub fn to_host<B: Backend>(values: &Tensor<B, 1>) -> Vec<f32> {
    let data = values.clone().into_data().convert_dtype(DType::F32);
    data.iter::<f32>().collect()
}
