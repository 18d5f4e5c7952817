//! From a torch pickle to tensors: which dictionary holds them, and where each one's elements lie.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use super::super::error::{Result, TorchFault, WeightsError};
use super::super::pickle::{Id, Node, Pickle};
use super::super::tensor::{DType, TensorInfo, checked_byte_len};
use super::container::Container;

/// Keys under which training programs keep the state dict; LAVIS uses `model`.
const TOP_KEYS: [&str; 4] = ["model", "state_dict", "model_state_dict", "module"];

/// An expanded view (stride 0) may become larger than its storage, but not by more than this.
const MAX_EXPANSION: usize = 64 << 20;

/// How many wrappers (parameter, subclass) a tensor may have.
const MAX_WRAPPERS: usize = 8;

/// Where a tensor's elements lie.
#[derive(Debug, Clone)]
pub(super) enum Layout {
    /// Row-major, at these bytes of the file.
    Contiguous(Range<usize>),
    /// Any other view of the storage at these bytes; offset and strides in elements.
    Strided {
        storage: Range<usize>,
        offset: usize,
        strides: Vec<usize>,
    },
}

pub(super) struct StateDict {
    pub infos: Vec<TensorInfo>,
    pub layouts: Vec<Layout>,
    pub top_key: Option<&'static str>,
    pub ignored: Vec<String>,
}

/// Finds the state dict and describes its tensors in the order of the file.
pub(super) fn read(path: &Path, container: &Container<'_>) -> Result<StateDict> {
    let pickle = &container.pickle;
    let top = pickle
        .as_entries(pickle.root())
        .ok_or_else(|| WeightsError::torch(path, TorchFault::NotADict))?;
    let nested = TOP_KEYS.iter().find_map(|&top_key| {
        let (_, value) = top.iter().find(|(key, _)| pickle.as_str(*key) == Some(top_key))?;
        let entries = pickle.as_entries(*value)?;
        entries
            .iter()
            .any(|(_, v)| rebuild_call(pickle, *v).is_some())
            .then_some((Some(top_key), entries))
    });
    let (top_key, entries) = nested.unwrap_or((None, top));

    let reader = Reader { path, container };
    let mut dict = StateDict {
        infos: Vec::new(),
        layouts: Vec::new(),
        top_key,
        ignored: Vec::new(),
    };
    let mut seen = HashSet::new();
    for &(key, value) in entries {
        let name = pickle.as_str(key);
        let Some((info, layout)) = reader.tensor(name.unwrap_or("(not text)"), value)? else {
            dict.ignored.push(name.unwrap_or("(not text)").to_owned());
            continue;
        };
        if name.is_none() {
            return Err(reader.invalid(&info.name, "its name"));
        }
        if !seen.insert(info.name.clone()) {
            return Err(WeightsError::torch(path, TorchFault::DuplicateTensor(info.name)));
        }
        dict.infos.push(info);
        dict.layouts.push(layout);
    }
    if dict.infos.is_empty() {
        return Err(WeightsError::torch(path, TorchFault::NotADict));
    }
    Ok(dict)
}

/// Function and arguments, if the value is a call that makes a tensor.
fn rebuild_call<'p>(pickle: &'p Pickle<'_>, id: Id) -> Option<((&'p str, &'p str), &'p [Id])> {
    let Node::Call { func, args, .. } = pickle.node(id) else {
        return None;
    };
    let (module, name) = pickle.as_global(*func)?;
    let makes_tensor = module.starts_with("torch") && (name.starts_with("_rebuild") || name == "Parameter");
    makes_tensor
        .then(|| Some(((module, name), pickle.as_items(*args)?)))
        .flatten()
}

struct Reader<'r> {
    path: &'r Path,
    container: &'r Container<'r>,
}

impl Reader<'_> {
    fn invalid(&self, tensor: &str, what: &'static str) -> WeightsError {
        WeightsError::torch(
            self.path,
            TorchFault::InvalidTensor {
                tensor: tensor.to_owned(),
                what,
            },
        )
    }

    /// `None` for a value that is no tensor.
    fn tensor(&self, name: &str, id: Id) -> Result<Option<(TensorInfo, Layout)>> {
        let pickle = &self.container.pickle;
        let Some((mut global, mut args)) = rebuild_call(pickle, id) else {
            return Ok(None);
        };
        for _ in 0..MAX_WRAPPERS {
            match global {
                ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3") => {
                    let typed = (global.1 == "_rebuild_tensor_v3").then(|| args.get(6).copied());
                    return self.view(name, args, typed).map(Some);
                }
                ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")
                | ("torch.nn.parameter", "Parameter") => {
                    let inner = args
                        .first()
                        .ok_or_else(|| self.invalid(name, "parameter without a tensor"))?;
                    (global, args) = rebuild_call(pickle, *inner)
                        .ok_or_else(|| self.invalid(name, "parameter without a tensor"))?;
                }
                // (function, subclass, its arguments, state)
                ("torch._tensor", "_rebuild_from_type_v2") => {
                    let [func, _, inner, ..] = args else {
                        return Err(self.invalid(name, "subclass"));
                    };
                    global = pickle
                        .as_global(*func)
                        .ok_or_else(|| self.invalid(name, "subclass"))?;
                    args = pickle
                        .as_items(*inner)
                        .ok_or_else(|| self.invalid(name, "subclass"))?;
                }
                (module, function) => {
                    let (tensor, global) = (name.to_owned(), format!("{module}.{function}"));
                    return Err(WeightsError::torch(
                        self.path,
                        TorchFault::UnsupportedGlobal { tensor, global },
                    ));
                }
            }
        }
        Err(self.invalid(name, "too many wrappers"))
    }

    /// `args`: storage, storage offset, size, stride, ...; `typed`: the dtype argument of the third version.
    fn view(&self, name: &str, args: &[Id], typed: Option<Option<Id>>) -> Result<(TensorInfo, Layout)> {
        let pickle = &self.container.pickle;
        let [storage, offset, size, stride, ..] = args else {
            return Err(self.invalid(name, "arguments"));
        };

        let Node::Persistent(storage) = pickle.node(*storage) else {
            return Err(self.invalid(name, "storage"));
        };
        let Some([tag, class, key, _location, _numel, rest @ ..]) = pickle.as_items(*storage) else {
            return Err(self.invalid(name, "storage"));
        };
        let (Some("storage"), Some(class), Some(key)) =
            (pickle.as_str(*tag), pickle.as_global(*class), pickle.as_str(*key))
        else {
            return Err(self.invalid(name, "storage"));
        };
        let type_name = match typed {
            Some(dtype) => {
                dtype
                    .and_then(|id| pickle.as_global(id))
                    .ok_or_else(|| self.invalid(name, "dtype"))?
                    .1
            }
            None => class.1,
        };
        let dtype = dtype_of(type_name).ok_or_else(|| WeightsError::UnsupportedDtype {
            path: self.path.to_owned(),
            tensor: name.to_owned(),
            dtype: format!("torch.{type_name}"),
        })?;
        let storage = self.container.storages.get(key);
        let storage = storage
            .ok_or_else(|| WeightsError::torch(self.path, TorchFault::MissingEntry(format!("data/{key}"))))?
            .clone();

        let natural = |id: Id| pickle.as_int(id).and_then(|i| usize::try_from(i).ok());
        let naturals = |id: Id| {
            pickle
                .as_items(id)?
                .iter()
                .map(|&i| natural(i))
                .collect::<Option<Vec<_>>>()
        };
        let offset = natural(*offset).ok_or_else(|| self.invalid(name, "storage offset"))?;
        let shape = naturals(*size).ok_or_else(|| self.invalid(name, "shape"))?;
        let strides = naturals(*stride).ok_or_else(|| self.invalid(name, "strides"))?;
        if shape.len() != strides.len() {
            return Err(self.invalid(name, "strides"));
        }
        // torch before 0.4 could store a storage that is a window of another: (key, offset, size)
        let window = rest
            .first()
            .and_then(|&id| pickle.as_items(id))
            .map(|view| view.get(1).and_then(|&o| natural(o)));
        let offset = match window {
            None => Some(offset),
            Some(start) => start.and_then(|start| offset.checked_add(start)),
        };
        let offset = offset.ok_or_else(|| self.invalid(name, "storage offset"))?;

        let layout = self.layout(name, dtype, &shape, storage, offset, strides)?;
        Ok((
            TensorInfo {
                name: name.to_owned(),
                dtype,
                shape,
            },
            layout,
        ))
    }

    fn layout(
        &self,
        name: &str,
        dtype: DType,
        shape: &[usize],
        storage: Range<usize>,
        offset: usize,
        strides: Vec<usize>,
    ) -> Result<Layout> {
        let bytes = checked_byte_len(dtype, shape).ok_or_else(|| self.invalid(name, "shape"))?;
        if bytes == 0 {
            return Ok(Layout::Contiguous(storage.start..storage.start));
        }
        let last = shape
            .iter()
            .zip(&strides)
            .try_fold(offset, |at, (&size, &stride)| {
                at.checked_add((size - 1).checked_mul(stride)?)
            });
        let end = last.and_then(|last| last.checked_add(1)?.checked_mul(dtype.size()));
        if end.is_none_or(|end| end > storage.len()) {
            let fault = TorchFault::OutOfStorage {
                tensor: name.to_owned(),
                storage: storage.len() as u64,
            };
            return Err(WeightsError::torch(self.path, fault));
        }
        if bytes > storage.len().max(MAX_EXPANSION) {
            let fault = TorchFault::Oversized {
                tensor: name.to_owned(),
                bytes: bytes as u64,
            };
            return Err(WeightsError::torch(self.path, fault));
        }
        if is_contiguous(shape, &strides) {
            let start = storage.start + offset * dtype.size();
            return Ok(Layout::Contiguous(start..start + bytes));
        }
        Ok(Layout::Strided {
            storage,
            offset,
            strides,
        })
    }
}

/// Row-major; the stride of a dimension of size 1 does not matter.
fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape
        .iter()
        .zip(strides)
        .rev()
        .filter(|(size, _)| **size != 1)
        .all(|(&size, &stride)| {
            let fits = stride == expected;
            expected *= size;
            fits
        })
}

/// Element type of a storage class or of a torch dtype.
fn dtype_of(name: &str) -> Option<DType> {
    Some(match name {
        "DoubleStorage" | "float64" => DType::F64,
        "FloatStorage" | "float32" => DType::F32,
        "HalfStorage" | "float16" => DType::F16,
        "BFloat16Storage" | "bfloat16" => DType::BF16,
        "LongStorage" | "int64" => DType::I64,
        "IntStorage" | "int32" => DType::I32,
        "ShortStorage" | "int16" => DType::I16,
        "CharStorage" | "int8" => DType::I8,
        "uint64" => DType::U64,
        "uint32" => DType::U32,
        "uint16" => DType::U16,
        "ByteStorage" | "UntypedStorage" | "uint8" => DType::U8,
        "BoolStorage" | "bool" => DType::Bool,
        _ => return None,
    })
}

/// Bytes per element of a storage class, known also for classes that tensors are not read from.
pub(super) fn element_size(class: &str) -> Option<usize> {
    Some(match class {
        "ComplexDoubleStorage" => 16,
        "ComplexFloatStorage" => 8,
        "QInt32Storage" => 4,
        "QInt8Storage" | "QUInt8Storage" | "QUInt4x2Storage" | "QUInt2x4Storage" => 1,
        other => dtype_of(other)?.size(),
    })
}
