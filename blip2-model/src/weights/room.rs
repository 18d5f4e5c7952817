//! Memory for converted tensors: zeros to write into, then shared bytes.

use bytemuck::{AnyBitPattern, NoUninit};
use bytes::Bytes;
use memmap2::MmapMut;

/// Bytes from which memory is mapped for the tensor alone and huge pages are asked for: of pages of 4 KiB the system
/// would have to clear and enter a thousand, which takes longer than filling them.
const LARGE: usize = 4 << 20;

/// Zeros of type `T`.
pub(super) enum Room<T> {
    Heap(Vec<T>),
    Mapped(MmapMut),
}

impl<T: AnyBitPattern + NoUninit + Send + Sync + 'static> Room<T> {
    pub(super) fn new(len: usize) -> Self {
        match len.checked_mul(size_of::<T>()) {
            Some(bytes) if bytes >= LARGE => map(bytes).map_or_else(|| Self::heap(len), Self::Mapped),
            _ => Self::heap(len),
        }
    }

    fn heap(len: usize) -> Self {
        Self::Heap(vec![T::zeroed(); len])
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [T] {
        match self {
            Self::Heap(values) => values,
            // a mapping begins at a page, so it is aligned for every type
            Self::Mapped(map) => bytemuck::cast_slice_mut(map),
        }
    }

    /// Bytes that keep the memory, and so the alignment of its elements.
    pub(super) fn into_bytes(self) -> Bytes {
        match self {
            Self::Heap(values) => owned(values),
            Self::Mapped(map) => Bytes::from_owner(map),
        }
    }
}

/// `None` if the system gives none, or where huge pages cannot be asked for.
fn map(bytes: usize) -> Option<MmapMut> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let map = MmapMut::map_anon(bytes).ok()?;
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage); // only a wish
    Some(map)
}

/// The vector as bytes.
pub(super) fn owned<T: NoUninit + Send + Sync + 'static>(values: Vec<T>) -> Bytes {
    struct Owner<T>(Vec<T>);
    impl<T: NoUninit> AsRef<[u8]> for Owner<T> {
        fn as_ref(&self) -> &[u8] {
            bytemuck::cast_slice(&self.0)
        }
    }
    Bytes::from_owner(Owner(values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_rooms_are_zeros_that_keep_what_is_written() {
        for len in [0, 5, LARGE / 4 - 1, LARGE / 4, LARGE / 2 + 3] {
            let mut room = Room::<f32>::new(len);
            assert!(room.as_mut_slice().iter().all(|&x| x == 0.0));
            assert_eq!(room.as_mut_slice().len(), len);
            if let Some(last) = room.as_mut_slice().last_mut() {
                *last = 1.5;
            }
            let bytes = room.into_bytes();
            let values: &[f32] = bytemuck::cast_slice(&bytes);
            assert_eq!(values.len(), len);
            assert!(values.last().is_none_or(|&x| x == 1.5));
        }
    }
}
