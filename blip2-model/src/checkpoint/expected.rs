//! Which tensors a model has: path in the module, name in Hugging Face files, shape. Nothing is allocated.

use std::marker::PhantomData;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Tensor, backend::Backend};

use super::huggingface;
use crate::blip2::Blip2;
use crate::module_path::ModulePath;

/// One tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// Dotted path in the module, below `vision`, `bridge` or `language`.
    pub path: String,
    /// Name in Hugging Face files.
    pub name: String,
    /// Shape in both.
    pub shape: Vec<usize>,
}

impl ExpectedTensor {
    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Every tensor of a model. Parameters that are lazily initialised stay so.
pub fn expected_tensors<B: Backend>(model: &Blip2<B>) -> Vec<ExpectedTensor> {
    let keys = huggingface::keys(&model.config);
    let mut found = Vec::new();
    visit_parts(model, |path, _, shape| {
        found.push(ExpectedTensor {
            name: keys.name(path).unwrap_or_else(|| path.to_string()),
            path: path.to_string(),
            shape,
        });
    });
    found
}

/// Calls `f` with path, lazy value and shape of every parameter, part by part.
pub(super) fn visit_parts<B: Backend>(
    model: &Blip2<B>,
    mut f: impl FnMut(&str, &dyn Fn() -> Tensor<B, 1>, Vec<usize>),
) {
    let mut visitor = Visitor {
        path: ModulePath::default(),
        f: &mut f,
        backend: PhantomData::<B>,
    };
    if let Some(vision) = &model.vision {
        visitor.under("vision", vision);
    }
    visitor.under("bridge", &model.bridge);
    if let Some(language) = &model.language {
        visitor.under("language", language);
    }
}

struct Visitor<'f, B, F> {
    path: ModulePath,
    f: &'f mut F,
    backend: PhantomData<B>,
}

impl<B: Backend, F: FnMut(&str, &dyn Fn() -> Tensor<B, 1>, Vec<usize>)> Visitor<'_, B, F> {
    fn under<M: Module<B>>(&mut self, root: &str, module: &M) {
        self.path = ModulePath::under(root);
        module.visit(self);
    }
}

impl<B: Backend, F: FnMut(&str, &dyn Fn() -> Tensor<B, 1>, Vec<usize>)> ModuleVisitor<B>
    for Visitor<'_, B, F>
{
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.path.exit(container_type);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let shape = param.lazy_shape().to_vec();
        (self.f)(&self.path.name(), &|| param.val().reshape([-1]), shape);
    }
}
