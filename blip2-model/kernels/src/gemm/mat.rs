//! What is multiplied: strided views of f32 or half-precision scalars.

use half::{bf16, f16};

/// Matrix with strides; element `(i, j)` is `data[i * row_stride + j * column_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a, T> {
    /// Starts at element `(0, 0)`.
    pub data: &'a [T],
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// Distance of rows.
    pub row_stride: usize,
    /// Distance of columns.
    pub column_stride: usize,
}

impl<'a, T> Mat<'a, T> {
    /// Row-major without gaps.
    ///
    /// # Panics
    /// If the slice is too short.
    pub fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        Self::strided(data, [rows, columns], [columns, 1])
    }

    /// With strides.
    ///
    /// # Panics
    /// If the slice does not reach the last element.
    pub fn strided(
        data: &'a [T],
        [rows, columns]: [usize; 2],
        [row_stride, column_stride]: [usize; 2],
    ) -> Self {
        let empty = rows == 0 || columns == 0;
        assert!(
            empty || (rows - 1) * row_stride + (columns - 1) * column_stride < data.len(),
            "a matrix that leaves its slice"
        );
        Self {
            data,
            rows,
            columns,
            row_stride,
            column_stride,
        }
    }

    /// Rows and columns exchanged; nothing moves.
    pub fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// How a vector of stored scalars becomes one of f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// It is one.
    F32,
    /// Upper half of an f32.
    Bf16,
    /// IEEE half precision.
    F16,
}

/// A scalar that can be packed either way.
pub trait Element: Copy + Sync + Send {
    /// What is stored.
    const FORM: Form;
    /// As f32.
    fn wide(self) -> f32;
    /// As bf16, rounded to nearest even.
    fn narrow(self) -> u16;
    /// The matrix, if this is bf16.
    fn as_bf16(_: Mat<'_, Self>) -> Option<Mat<'_, bf16>> {
        None
    }
}

impl Element for f32 {
    const FORM: Form = Form::F32;

    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(self) -> u16 {
        let bits = self.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        // rounding could carry a NaN into infinity
        let kept = if self.is_nan() { bits | 0x40_0000 } else { rounded };
        (kept >> 16) as u16
    }
}

impl Element for bf16 {
    const FORM: Form = Form::Bf16;

    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn narrow(self) -> u16 {
        self.to_bits()
    }
    #[inline(always)]
    fn as_bf16(m: Mat<'_, Self>) -> Option<Mat<'_, bf16>> {
        Some(m)
    }
}

impl Element for f16 {
    const FORM: Form = Form::F16;

    #[inline(always)]
    fn wide(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(self) -> u16 {
        self.to_f32().narrow()
    }
}
