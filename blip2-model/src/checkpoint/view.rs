//! A checkpoint seen under other names: renamed, cut out, joined, in another dtype. The bytes stay where they are until asked for.

use std::collections::HashMap;
use std::path::Path;

use crate::weights::{DType, TensorBytes, TensorInfo, TensorSource, WeightsError};

/// Where the content of a tensor comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A whole tensor, possibly with other unit axes.
    Tensor(String),
    /// `rows` of the first axis, from `start`.
    Rows {
        /// Tensor to cut from.
        name: String,
        /// First row.
        start: usize,
        /// How many.
        rows: usize,
    },
    /// Pieces one after the other along the first axis.
    Concat(Vec<Piece>),
}

/// A part of a joined tensor.
#[derive(Clone, Debug)]
pub enum Piece {
    /// A whole tensor.
    Tensor(String),
    /// That many zeros.
    Zeros(usize),
}

/// See the module documentation.
pub struct View {
    inner: Box<dyn TensorSource>,
    infos: Vec<TensorInfo>,
    origins: Vec<Origin>,
    by_name: HashMap<String, usize>,
}

impl View {
    /// A view without tensors.
    pub fn new(inner: Box<dyn TensorSource>) -> Self {
        Self {
            inner,
            infos: Vec::new(),
            origins: Vec::new(),
            by_name: HashMap::new(),
        }
    }

    /// Tensors of `inner` under the names that `rename` gives; one tensor may have several, those without are left out.
    pub fn renamed<N: IntoIterator<Item = String>>(
        inner: Box<dyn TensorSource>,
        rename: impl Fn(&str) -> N,
    ) -> Self {
        let mut view = Self::new(inner);
        for info in view.inner.infos().to_vec() {
            for name in rename(&info.name) {
                let origin = Origin::Tensor(info.name.clone());
                view.add(TensorInfo { name, ..info.clone() }, origin);
            }
        }
        view
    }

    /// What is looked at.
    pub fn inner(&self) -> &dyn TensorSource {
        self.inner.as_ref()
    }

    /// Adds a tensor; `info` says what it will be. A name that is there already keeps its first meaning.
    pub fn add(&mut self, info: TensorInfo, origin: Origin) {
        if !self.by_name.contains_key(&info.name) {
            self.by_name.insert(info.name.clone(), self.infos.len());
            self.infos.push(info);
            self.origins.push(origin);
        }
    }

    fn find(&self, name: &str) -> Result<usize, WeightsError> {
        self.by_name
            .get(name)
            .copied()
            .ok_or_else(|| WeightsError::NoSuchTensor {
                path: self.path().to_owned(),
                name: name.to_string(),
            })
    }

    fn join(&self, pieces: &[Piece], dtype: DType) -> Result<Vec<u8>, WeightsError> {
        let mut bytes = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Tensor(name) => bytes.extend_from_slice(self.inner.get(name)?.convert(dtype)?.bytes()),
                Piece::Zeros(count) => bytes.resize(bytes.len() + count * dtype.size(), 0),
            }
        }
        Ok(bytes)
    }
}

impl TensorSource for View {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&index| &self.infos[index])
    }

    fn get(&self, name: &str) -> Result<TensorBytes, WeightsError> {
        let index = self.find(name)?;
        let info = &self.infos[index];
        let bytes = match &self.origins[index] {
            Origin::Tensor(name) => self.inner.get(name)?.convert(info.dtype)?.into_bytes(),
            Origin::Rows { name, start, rows } => {
                let whole = self.inner.get(name)?.convert(info.dtype)?;
                let row = info.byte_len() / (*rows).max(1);
                let range = start * row..(start + rows) * row;
                if range.end > whole.bytes().len() {
                    return Err(WeightsError::SizeMismatch {
                        dtype: info.dtype,
                        shape: info.shape.clone(),
                        bytes: whole.bytes().len().saturating_sub(range.start),
                    });
                }
                whole.into_bytes().slice(range)
            }
            Origin::Concat(pieces) => self.join(pieces, info.dtype)?.into(),
        };
        TensorBytes::new(info.dtype, info.shape.clone(), bytes)
    }

    fn release(&self, name: &str) {
        let Some(&index) = self.by_name.get(name) else {
            return;
        };
        match &self.origins[index] {
            Origin::Tensor(name) | Origin::Rows { name, .. } => self.inner.release(name),
            Origin::Concat(pieces) => {
                for piece in pieces {
                    if let Piece::Tensor(name) = piece {
                        self.inner.release(name);
                    }
                }
            }
        }
    }
}

/// Several sources as one: a partial checkpoint together with the encoder and language model it leaves out.
/// The first source that has a name wins, and gives the path of error messages.
pub struct Merged {
    sources: Vec<Box<dyn TensorSource>>,
    infos: Vec<TensorInfo>,
    by_name: HashMap<String, (usize, usize)>,
}

impl Merged {
    /// Merges `sources` in this order.
    pub fn new(sources: Vec<Box<dyn TensorSource>>) -> Self {
        let (mut infos, mut by_name) = (Vec::new(), HashMap::new());
        for (index, source) in sources.iter().enumerate() {
            for info in source.infos() {
                by_name.entry(info.name.clone()).or_insert_with(|| {
                    infos.push(info.clone());
                    (index, infos.len() - 1)
                });
            }
        }
        Self {
            sources,
            infos,
            by_name,
        }
    }
}

impl TensorSource for Merged {
    fn path(&self) -> &Path {
        self.sources.first().map_or(Path::new(""), |source| source.path())
    }

    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&(_, index)| &self.infos[index])
    }

    fn get(&self, name: &str) -> Result<TensorBytes, WeightsError> {
        match self.by_name.get(name) {
            Some(&(source, _)) => self.sources[source].get(name),
            None => Err(WeightsError::NoSuchTensor {
                path: self.path().to_owned(),
                name: name.to_string(),
            }),
        }
    }

    fn release(&self, name: &str) {
        if let Some(&(source, _)) = self.by_name.get(name) {
            self.sources[source].release(name);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A source in memory.
    pub struct Memory(Vec<TensorInfo>, HashMap<String, TensorBytes>);

    impl Memory {
        /// From names, shapes and values.
        pub fn boxed(tensors: &[(&str, &[usize], &[f32])]) -> Box<dyn TensorSource> {
            let mut all = Self(Vec::new(), HashMap::new());
            for (name, shape, values) in tensors {
                let bytes = TensorBytes::from_f32(shape.to_vec(), values.to_vec()).unwrap();
                all.0.push(TensorInfo {
                    name: name.to_string(),
                    dtype: DType::F32,
                    shape: shape.to_vec(),
                });
                all.1.insert(name.to_string(), bytes);
            }
            Box::new(all)
        }
    }

    impl TensorSource for Memory {
        fn path(&self) -> &Path {
            Path::new("memory")
        }
        fn infos(&self) -> &[TensorInfo] {
            &self.0
        }
        fn get(&self, name: &str) -> Result<TensorBytes, WeightsError> {
            Ok(self.1[name].clone())
        }
    }

    fn info(name: &str, shape: &[usize]) -> TensorInfo {
        TensorInfo {
            name: name.into(),
            dtype: DType::F32,
            shape: shape.to_vec(),
        }
    }

    fn values(source: &dyn TensorSource, name: &str) -> Vec<f32> {
        source.get(name).unwrap().to_f32_vec().unwrap()
    }

    #[test]
    fn pieces_are_joined_and_rows_cut_out() {
        let mut view = View::new(Memory::boxed(&[
            ("q", &[2], &[1.0, 2.0]),
            ("v", &[2], &[3.0, 4.0]),
        ]));
        let pieces = vec![
            Piece::Tensor("q".into()),
            Piece::Zeros(2),
            Piece::Tensor("v".into()),
        ];
        view.add(info("qkv", &[6]), Origin::Concat(pieces));
        assert_eq!(values(&view, "qkv"), [1.0, 2.0, 0.0, 0.0, 3.0, 4.0]);

        let mut back = View::new(Box::new(view));
        let rows = |start| Origin::Rows {
            name: "qkv".into(),
            start,
            rows: 2,
        };
        back.add(info("v", &[2]), rows(4));
        back.add(info("beyond", &[2]), rows(5));
        assert_eq!(values(&back, "v"), [3.0, 4.0]);
        assert!(matches!(
            back.get("beyond"),
            Err(WeightsError::SizeMismatch { .. })
        ));
    }

    #[test]
    fn the_first_source_wins() {
        let (a, b) = (
            Memory::boxed(&[("x", &[1], &[1.0])]),
            Memory::boxed(&[("x", &[1], &[2.0]), ("y", &[1], &[3.0])]),
        );
        let both = Merged::new(vec![a, b]);
        assert_eq!(both.infos().len(), 2);
        assert_eq!((values(&both, "x"), values(&both, "y")), (vec![1.0], vec![3.0]));
        assert!(both.get("z").is_err());
    }
}
