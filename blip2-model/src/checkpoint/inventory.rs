//! Every parameter of a model with its shape, without drawing or allocating any: what memory estimates and
//! synthetic checkpoints are made from. Paths are those of [`Loader`](super::Loader).

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Tensor, backend::Backend};

use crate::blip2::Blip2;
use crate::nn::Kernels;

/// One parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Path in the module tree, such as `bridge.query_tokens`.
    pub path: String,
    /// Shape, row-major.
    pub shape: Vec<usize>,
}

impl Parameter {
    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// All parameters, in the order in which a load visits them.
pub fn inventory<B: Kernels>(model: &Blip2<B>) -> Vec<Parameter> {
    let mut found = Vec::new();
    if let Some(vision) = &model.vision {
        visit(vision, "vision", &mut found);
    }
    visit(&model.bridge, "bridge", &mut found);
    if let Some(language) = &model.language {
        visit(language, "language", &mut found);
    }
    found
}

fn visit<B: Backend, M: Module<B>>(module: &M, root: &str, found: &mut Vec<Parameter>) {
    module.visit(&mut Visitor {
        path: vec![root.to_string()],
        found,
    });
}

struct Visitor<'a> {
    path: Vec<String>,
    found: &'a mut Vec<Parameter>,
}

impl<B: Backend> ModuleVisitor<B> for Visitor<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        // an enum is a choice of module, not a level of its own
        if !container_type.starts_with("Enum:") {
            self.path.push(name.to_string());
        }
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        if !container_type.starts_with("Enum:") {
            self.path.pop();
        }
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.found.push(Parameter {
            path: self.path.join("."),
            shape: param.lazy_shape().iter().copied().collect(),
        });
    }
}
