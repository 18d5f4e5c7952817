//! A module that gradients pass through and nothing can train.

use std::ops::Deref;

use burn::module::Module;
use burn::tensor::backend::AutodiffBackend;

/// Wrapper of a frozen module on the autodiff backend. It is no [`Module`], so it cannot become part of
/// one: optimizer, gradient collection and checkpoints, which all walk modules, never see it.
#[derive(Clone, Debug)]
pub struct Frozen<M>(M);

impl<M> Frozen<M> {
    /// Takes the gradient requirement off every parameter.
    pub fn new<B: AutodiffBackend>(module: M) -> Self
    where
        M: Module<B>,
    {
        Self(module.no_grad())
    }
}

impl<M> Deref for Frozen<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.0
    }
}
