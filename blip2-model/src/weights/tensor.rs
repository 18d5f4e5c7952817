//! Tensors as files hold them: name, dtype, shape, and bytes that are usually still in the file (memory-mapped).
//!
//! Only floating-point dtypes convert into one another; rounding is to nearest, ties to even, as PyTorch does.

use std::fmt;

use bytemuck::{AnyBitPattern, NoUninit};
use bytes::Bytes;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::error::{Result, WeightsError};
use super::room::{Room, owned};

// The bytes of a mapped file are handed out as they are, and every format read here is little-endian.
const _: () = assert!(
    cfg!(target_endian = "little"),
    "weights are mapped without a byte swap"
);

/// Elements converted by one thread at a time.
const CHUNK: usize = 1 << 16;

/// Element type of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum DType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

impl DType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Whether this is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }
}

impl fmt::Display for DType {
    /// Spelling of the safetensors format.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool => f.write_str("BOOL"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// Name, dtype and shape of a stored tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name in the file.
    pub name: String,
    /// Element type in the file.
    pub dtype: DType,
    /// Shape, row-major; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Number of elements. Readers guarantee that it does not overflow.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of bytes of the contiguous tensor.
    pub fn byte_len(&self) -> usize {
        self.num_elements() * self.dtype.size()
    }
}

/// Bytes that `shape` elements of `dtype` take, or `None` on overflow.
pub(crate) fn checked_byte_len(dtype: DType, shape: &[usize]) -> Option<usize> {
    // the product of the non-zero sizes must not overflow either: strides are computed from it
    let nonzero = shape.iter().filter(|&&d| d > 0);
    let full = nonzero.copied().try_fold(dtype.size(), usize::checked_mul)?;
    (full <= isize::MAX as usize).then_some(if shape.contains(&0) { 0 } else { full })
}

/// The contiguous, row-major, little-endian content of one tensor, aligned for its element type.
///
/// Cloning is cheap; where possible the bytes are a window into the mapped file, which stays mapped for as long
/// as a clone lives.
#[derive(Debug, Clone)]
pub struct TensorBytes {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Bytes,
}

impl TensorBytes {
    /// Wraps bytes, copying them only when their address is not a multiple of the element size.
    pub fn new(dtype: DType, shape: Vec<usize>, bytes: Bytes) -> Result<Self> {
        if checked_byte_len(dtype, &shape) != Some(bytes.len()) {
            return Err(WeightsError::SizeMismatch {
                dtype,
                shape,
                bytes: bytes.len(),
            });
        }
        let aligned = (bytes.as_ptr() as usize).is_multiple_of(dtype.size());
        let bytes = if aligned { bytes } else { copy_aligned(&bytes) };
        Ok(Self { dtype, shape, bytes })
    }

    /// An f32 tensor from values.
    pub fn from_f32(shape: Vec<usize>, values: Vec<f32>) -> Result<Self> {
        Self::new(DType::F32, shape, owned(values))
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Shape, row-major.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The content.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Takes the content out.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// All values as f32; exact except from F64, which is rounded.
    ///
    /// Integer and boolean tensors are an error.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
        let mut values = vec![0f32; self.num_elements()];
        self.widen(&mut values)?;
        Ok(values)
    }

    fn widen(&self, to: &mut [f32]) -> Result<()> {
        let data = &self.bytes[..];
        match self.dtype {
            DType::F32 => to.copy_from_slice(bytemuck::cast_slice(data)),
            DType::F16 => fill(data, to, |from: &[f16], to| from.convert_to_f32_slice(to)),
            DType::BF16 => fill(data, to, |from: &[bf16], to| zip_map(from, to, bf16_to_f32)),
            DType::F64 => fill(data, to, |from: &[f64], to| zip_map(from, to, |v| v as f32)),
            from => return Err(WeightsError::UnsupportedConversion { from, to: DType::F32 }),
        }
        Ok(())
    }

    /// The same tensor in another floating-point dtype, rounded to nearest even; a cheap clone if `to` is the
    /// dtype it has already.
    ///
    /// Values beyond the range of the target become infinite, as in PyTorch.
    pub fn convert(&self, to: DType) -> Result<Self> {
        use DType::{BF16, F16, F32, F64};
        if to == self.dtype {
            return Ok(self.clone());
        }
        let data = &self.bytes[..];
        let bytes = match (self.dtype, to) {
            (F16 | BF16 | F64, F32) => {
                let mut room = Room::new(self.num_elements());
                self.widen(room.as_mut_slice())?;
                room.into_bytes()
            }
            (F32, F16) => converted(data, |from: &[f32], to: &mut [f16]| {
                to.convert_from_f32_slice(from)
            }),
            (F32, BF16) => converted(data, |from: &[f32], to: &mut [bf16]| {
                zip_map(from, to, f32_to_bf16)
            }),
            (BF16, F16) => converted(data, |from: &[bf16], to: &mut [f16]| {
                let wide: Vec<f32> = from.iter().copied().map(bf16_to_f32).collect();
                to.convert_from_f32_slice(&wide);
            }),
            (F16, BF16) => converted(data, |from: &[f16], to: &mut [bf16]| {
                let mut wide = vec![0f32; from.len()];
                from.convert_to_f32_slice(&mut wide);
                zip_map(&wide, to, f32_to_bf16);
            }),
            // through f32, rounding twice, as PyTorch does
            (F64, F16) => converted(data, |from: &[f64], to| {
                zip_map(from, to, |v| f16::from_f32(v as f32))
            }),
            (F64, BF16) => converted(data, |from: &[f64], to| {
                zip_map(from, to, |v| f32_to_bf16(v as f32))
            }),
            (F32, F64) => converted(data, |from: &[f32], to| zip_map(from, to, f64::from)),
            (F16, F64) => converted(data, |from: &[f16], to| zip_map(from, to, f64::from)),
            (BF16, F64) => converted(data, |from: &[bf16], to| zip_map(from, to, f64::from)),
            (from, to) => return Err(WeightsError::UnsupportedConversion { from, to }),
        };
        Ok(Self {
            dtype: to,
            shape: self.shape.clone(),
            bytes,
        })
    }
}

fn bf16_to_f32(v: bf16) -> f32 {
    f32::from_bits(u32::from(v.to_bits()) << 16)
}

/// Branch-free, so that the loop around it vectorises.
fn f32_to_bf16(v: f32) -> bf16 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet_nan = (bits >> 16) | 0x40;
    bf16::from_bits(if v.is_nan() { quiet_nan } else { rounded } as u16)
}

fn zip_map<A: Copy, B>(from: &[A], to: &mut [B], f: impl Fn(A) -> B) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f(*from);
    }
}

/// `f` on every piece of `data` and of the result, on several threads.
fn converted<A, B>(data: &[u8], f: impl Fn(&[A], &mut [B]) + Sync) -> Bytes
where
    A: AnyBitPattern + Sync,
    B: AnyBitPattern + NoUninit + Send + Sync,
{
    let mut room = Room::new(data.len() / size_of::<A>());
    fill(data, room.as_mut_slice(), f);
    room.into_bytes()
}

fn fill<A, B>(data: &[u8], to: &mut [B], f: impl Fn(&[A], &mut [B]) + Sync)
where
    A: AnyBitPattern + Sync,
    B: Send,
{
    let from: &[A] = bytemuck::cast_slice(data);
    to.par_chunks_mut(CHUNK)
        .zip(from.par_chunks(CHUNK))
        .for_each(|(to, from)| f(from, to));
}

/// A copy aligned for any element type.
pub(crate) fn copy_aligned(bytes: &[u8]) -> Bytes {
    let mut words = vec![0u64; bytes.len().div_ceil(8)];
    bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
    owned(words).slice(..bytes.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::source::TensorSource;
    use super::super::{fixtures, safetensors::SafetensorsFile};
    use super::*;

    fn f32s(values: &[f32]) -> TensorBytes {
        TensorBytes::from_f32(vec![values.len()], values.to_vec()).unwrap()
    }

    fn bits16(t: &TensorBytes) -> Vec<u16> {
        bytemuck::cast_slice(t.bytes()).to_vec()
    }

    #[test]
    fn halves_round_to_nearest_even() {
        // 1 + 2^-11 lies midway between two f16 values, 1 + 2^-8 midway between two bf16 values; the even one wins
        let t = f32s(&[1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 65520.0]);
        assert_eq!(bits16(&t.convert(DType::F16).unwrap()), [0x3c00, 0x3c02, 0x7c00]);
        let t = f32s(&[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::MAX]);
        assert_eq!(bits16(&t.convert(DType::BF16).unwrap()), [0x3f80, 0x3f82, 0x7f80]);
    }

    #[test]
    fn conversions_equal_pytorch() {
        let file = SafetensorsFile::open(fixtures::path("conversions.safetensors")).unwrap();
        for (from, to) in [
            ("f32", "f16"),
            ("f32", "bf16"),
            ("f32", "f64"),
            ("f64", "f32"),
            ("f64", "f16"),
            ("f64", "bf16"),
            ("f16", "bf16"),
            ("bf16", "f16"),
            ("f16", "f32"),
            ("bf16", "f32"),
            ("f16", "f64"),
            ("bf16", "f64"),
        ] {
            let expected = file.get(&format!("{from}.to.{to}")).unwrap();
            let converted = file.get(from).unwrap().convert(expected.dtype()).unwrap();
            assert_eq!(converted.shape(), expected.shape());
            assert_eq!(converted.bytes(), expected.bytes(), "{from} to {to}");
        }
    }

    #[test]
    fn every_half_survives_a_trip_through_f32() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        for dtype in [DType::F16, DType::BF16] {
            let t = TensorBytes::new(dtype, vec![1 << 16], owned(all.clone())).unwrap();
            let back = t.convert(DType::F32).unwrap().convert(dtype).unwrap();
            for ((&a, b), value) in all.iter().zip(bits16(&back)).zip(t.to_f32_vec().unwrap()) {
                // a signalling NaN may come back quiet
                let still_nan = value.is_nan()
                    && TensorBytes::new(dtype, vec![1], owned(vec![b]))
                        .unwrap()
                        .to_f32_vec()
                        .unwrap()[0]
                        .is_nan();
                assert!(a == b || still_nan, "{dtype}: {a:04x} became {b:04x}");
            }
        }
    }

    #[test]
    fn integers_do_not_convert() {
        let t = TensorBytes::new(DType::I64, vec![1], owned(vec![7i64])).unwrap();
        assert!(matches!(
            t.convert(DType::F32),
            Err(WeightsError::UnsupportedConversion { .. })
        ));
        assert_eq!(t.convert(DType::I64).unwrap().bytes(), t.bytes());
    }

    #[test]
    fn misaligned_windows_are_copied_and_aligned_ones_are_not() {
        let base = copy_aligned(&[0, 0, 0, 0, 0, 0, 128, 63, 9]);
        let aligned = TensorBytes::new(DType::F32, vec![1], base.slice(4..8)).unwrap();
        assert_eq!(aligned.bytes().as_ptr(), base[4..].as_ptr());
        let shifted = TensorBytes::new(DType::F32, vec![1], base.slice(5..9)).unwrap();
        assert_eq!(shifted.bytes().as_ptr() as usize % 4, 0);
        assert_eq!(shifted.bytes()[..], base[5..9]);
    }

    #[test]
    fn sizes_that_overflow_are_refused() {
        assert_eq!(checked_byte_len(DType::F32, &[usize::MAX, 2]), None);
        assert_eq!(checked_byte_len(DType::F32, &[0, usize::MAX]), None);
        assert_eq!(checked_byte_len(DType::F32, &[0, 7]), Some(0));
        assert_eq!(checked_byte_len(DType::F64, &[]), Some(8));
        assert!(TensorBytes::new(DType::F32, vec![3], Bytes::from_static(&[0; 8])).is_err());
    }

    proptest! {
        #[test]
        fn bf16_agrees_with_the_half_crate(bits in proptest::collection::vec(any::<u32>(), 1..200)) {
            let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            let expected: Vec<u16> = values.iter().map(|&v| bf16::from_f32(v).to_bits()).collect();
            prop_assert_eq!(bits16(&f32s(&values).convert(DType::BF16).unwrap()), expected);
        }
    }
}
