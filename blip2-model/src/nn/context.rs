//! What a forward pass carries besides tensors: the train/eval mode with its random state, and
//! an optional recorder of named intermediates (the idea of big_vision's `out` dictionary).

use std::cell::RefCell;
use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use rand::RngCore;
use rand_chacha::ChaCha8Rng;

use super::Kernels;

/// Mode of a forward pass. [`Context::eval`] costs nothing; tracing and dropout are opt-in.
#[derive(Debug, Default)]
pub struct Context {
    dropout: Option<RefCell<ChaCha8Rng>>,
    trace: Option<RefCell<BTreeMap<String, TensorData>>>,
    scope: RefCell<Vec<String>>,
}

impl Context {
    /// Inference: no dropout, nothing recorded.
    pub fn eval() -> Self {
        Self::default()
    }

    /// Inference that records every named intermediate as f32 on the host.
    pub fn tracing() -> Self {
        Self {
            trace: Some(RefCell::default()),
            ..Self::default()
        }
    }

    /// Training: dropout draws its masks from `rng`; take the advanced state back with [`Context::into_rng`].
    pub fn training(rng: ChaCha8Rng) -> Self {
        Self {
            dropout: Some(RefCell::new(rng)),
            ..Self::default()
        }
    }

    /// Whether dropout is active.
    pub fn is_training(&self) -> bool {
        self.dropout.is_some()
    }

    /// Whether intermediates are being recorded.
    pub fn is_tracing(&self) -> bool {
        self.trace.is_some()
    }

    /// The random state after the pass; `None` outside training.
    pub fn into_rng(self) -> Option<ChaCha8Rng> {
        self.dropout.map(RefCell::into_inner)
    }

    /// Inverted dropout: zero with probability `p`, scale the rest by `1 / (1 - p)`; identity outside training.
    ///
    /// Every mask has a seed of its own ([`Kernels::random_mask`]): this is what makes a resumed run repeat the same
    /// masks on every backend.
    pub fn dropout<B: Kernels, const D: usize>(&self, x: Tensor<B, D>, p: f64) -> Tensor<B, D> {
        match self.dropout_factors(x.dims(), p, &x.device()) {
            Some(factors) => x * factors,
            None => x,
        }
    }

    /// What [`dropout`](Self::dropout) multiplies by: zero or `1 / (1 - p)`; `None` where it does nothing.
    pub fn dropout_factors<B: Kernels, const D: usize>(
        &self,
        dims: [usize; D],
        p: f64,
        device: &B::Device,
    ) -> Option<Tensor<B, D>> {
        let rng = self.dropout.as_ref().filter(|_| p > 0.0)?;
        let keep = 1.0 - p;
        Some(B::random_mask(dims, keep, rng.borrow_mut().next_u64(), device) / keep)
    }

    /// Runs `f` with `name` appended to the prefix of recorded names.
    pub fn scoped<R>(&self, name: impl Into<String>, f: impl FnOnce() -> R) -> R {
        self.scope.borrow_mut().push(name.into());
        let out = f();
        self.scope.borrow_mut().pop();
        out
    }

    /// Records `x` under `scope.name` when tracing.
    pub fn record<B: Backend, const D: usize>(&self, name: &str, x: &Tensor<B, D>) {
        if let Some(trace) = &self.trace {
            let mut key = self.scope.borrow().join(".");
            if !key.is_empty() {
                key.push('.');
            }
            key.push_str(name);
            let data = x.clone().detach().into_data().convert_dtype(DType::F32);
            trace.borrow_mut().insert(key, data);
        }
    }

    /// Everything recorded so far, by name.
    pub fn into_trace(self) -> BTreeMap<String, TensorData> {
        self.trace.map(RefCell::into_inner).unwrap_or_default()
    }
}
