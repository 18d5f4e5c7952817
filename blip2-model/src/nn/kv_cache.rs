//! Preallocated key/value cache of one self-attention layer.

use burn::tensor::{DType, Int, Tensor, backend::Backend};

use super::Kernels;

/// Keys and values `[B, H, capacity, d]` of which the first `len` positions are filled.
#[derive(Clone, Debug)]
pub struct KvCache<B: Backend> {
    keys: Option<Tensor<B, 4>>,
    values: Option<Tensor<B, 4>>,
    len: usize,
    capacity: usize,
}

impl<B: Backend> KvCache<B> {
    /// Empty, with room for `capacity` positions; memory is taken at the first append.
    pub fn new(capacity: usize) -> Self {
        Self {
            keys: None,
            values: None,
            len: 0,
            capacity,
        }
    }

    /// Filled positions.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been appended.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<B: Kernels> KvCache<B> {
    /// Numbers that memory was taken for, filled or not; 0 while empty.
    pub fn num_elements(&self) -> usize {
        let count = |t: &Option<Tensor<B, 4>>| t.as_ref().map_or(0, |t| t.shape().num_elements());
        count(&self.keys) + count(&self.values)
    }

    /// Dtype of what is cached, which is the dtype of the activations; `None` while empty.
    pub fn dtype(&self) -> Option<DType> {
        self.keys.as_ref().map(Tensor::dtype)
    }

    /// Where the cache lives; `None` while empty.
    pub fn device(&self) -> Option<B::Device> {
        self.keys.as_ref().map(Tensor::device)
    }

    /// Appends `[B, H, T, d]` keys and values and returns all of them, `[B, H, len, d]` each.
    ///
    /// # Panics
    /// If the capacity is exceeded: the caller sized the cache from prompt and `max_new_tokens`.
    pub fn append(&mut self, keys: Tensor<B, 4>, values: Tensor<B, 4>) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let added = keys.dims()[2];
        assert!(
            self.len + added <= self.capacity,
            "key/value cache of {} positions cannot take {} after {}",
            self.capacity,
            added,
            self.len
        );
        let keys = Self::write(self.keys.take(), keys, self.len, self.capacity);
        let values = Self::write(self.values.take(), values, self.len, self.capacity);
        self.len += added;
        let all = (
            B::cache_view(keys.clone(), self.len),
            B::cache_view(values.clone(), self.len),
        );
        self.keys = Some(keys);
        self.values = Some(values);
        all
    }

    fn write(store: Option<Tensor<B, 4>>, new: Tensor<B, 4>, at: usize, capacity: usize) -> Tensor<B, 4> {
        let [batch, heads, _, width] = new.dims();
        let store = store
            .unwrap_or_else(|| Tensor::zeros([batch, heads, capacity, width], (&new.device(), new.dtype())));
        B::cache_write(store, new, at)
    }

    /// Keeps rows `index[i]` of the batch, in that order (beam reordering or expansion).
    pub fn select(&mut self, index: &Tensor<B, 1, Int>) {
        let pick = |t: Tensor<B, 4>| t.select(0, index.clone());
        self.keys = self.keys.take().map(pick);
        self.values = self.values.take().map(pick);
    }
}
