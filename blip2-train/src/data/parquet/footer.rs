//! A look at the footer of a parquet file before the parquet library reads it: that library allocates what a list in
//! the footer claims to hold, and a claim of billions ends the process. Every element takes at least one byte, so no
//! honest list holds more elements than bytes follow.
//!
//! The footer is the structure `FileMetaData` of
//! <https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift> in Thrift's compact protocol
//! (<https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>). The library goes by the field
//! numbers it knows and not by the types that the file states, so both must agree; otherwise it would read other lists
//! than those that were looked at.

use parquet::errors::ParquetError;
use parquet::file::reader::ChunkReader;

/// Structures within structures; a parquet footer has about six.
const DEEPEST: usize = 32;

/// Length of the footer, and the mark at the end of a file.
const TAIL: u64 = 8;

/// Checks the lists in the footer of `file`. What is no parquet file at all is left to the library.
pub(super) fn check<R: ChunkReader>(file: &R) -> Result<(), ParquetError> {
    let total = file.len();
    if total < TAIL {
        return Ok(());
    }
    let tail = file.get_bytes(total - TAIL, TAIL as usize)?;
    let length = tail.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let length = u64::from(length);
    if !tail.ends_with(b"PAR1") || length > total - TAIL {
        return Ok(());
    }
    let footer = file.get_bytes(total - TAIL - length, length as usize)?;
    let mut rest = Rest(&footer);
    rest.structure(FILE, 0)
        .ok_or_else(|| ParquetError::General("the footer holds less than it claims".into()))
}

/// Bytes still to be walked over. `None`: they do not hold what they claim.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.0 = self.0.get(count..)?;
        Some(())
    }

    /// A number of seven bits a byte.
    fn number(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// How many elements follow, each of at least one byte.
    fn count(&mut self) -> Option<usize> {
        let count = usize::try_from(self.number()?).ok()?;
        (count <= self.0.len()).then_some(count)
    }

    fn structure(&mut self, fields: Fields, depth: usize) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        let mut field = 0i16;
        loop {
            let header = self.byte()?;
            let kind = header & 0x0f;
            if kind == 0 {
                return Some(());
            }
            field = match header >> 4 {
                0 => signed(self.number()?).try_into().ok()?,
                step => field.checked_add(i16::from(step))?,
            };
            let known = fields.iter().find(|(number, _)| *number == field);
            match known {
                Some((_, shape)) => self.known(*shape, kind, depth)?,
                None => self.unknown(kind, depth)?,
            }
        }
    }

    /// A value whose place says what it is; `kind` is what the file says.
    fn known(&mut self, shape: Shape, kind: u8, depth: usize) -> Option<()> {
        match (shape, kind) {
            // a truth value is part of the header
            (Bool, 1 | 2) => Some(()),
            (Byte, 3) => self.skip(1),
            (I16, 4) | (I32, 5) | (I64, 6) => self.number().map(|_| ()),
            (Children, 5) => (signed(self.number()?) <= self.0.len() as i64).then_some(()),
            (Double, 7) => self.skip(8),
            (Binary, 8) => self.count().and_then(|length| self.skip(length)),
            (Struct(fields), 12) => self.structure(fields, depth + 1),
            (Numbers(element), 9) => {
                self.list(depth, |rest, kind| rest.known(element.shape(), kind, depth + 1))
            }
            (Texts, 9) => self.list(depth, |rest, kind| rest.known(Binary, kind, depth + 1)),
            (Structs(fields), 9) => {
                self.list(depth, |rest, kind| rest.known(Struct(fields), kind, depth + 1))
            }
            _ => None,
        }
    }

    /// A value of a later version of the format, passed over as the library does.
    fn unknown(&mut self, kind: u8, depth: usize) -> Option<()> {
        match kind {
            1 | 2 => Some(()),
            3 => self.skip(1),
            4..=6 => self.number().map(|_| ()),
            7 => self.skip(8),
            8 => self.count().and_then(|length| self.skip(length)),
            // readers differ in how long a truth value is in a list
            9 => self.list(depth, |rest, kind| match kind {
                1 | 2 => None,
                kind => rest.unknown(kind, depth + 1),
            }),
            12 => self.structure(&[], depth + 1),
            _ => None,
        }
    }

    fn list(&mut self, depth: usize, mut element: impl FnMut(&mut Self, u8) -> Option<()>) -> Option<()> {
        let header = self.byte()?;
        let count = match header >> 4 {
            15 => self.count()?,
            short => usize::from(short),
        };
        if depth > DEEPEST || count > i32::MAX as usize {
            return None;
        }
        (0..count).try_for_each(|_| element(self, header & 0x0f))
    }
}

/// A number whose sign is its last bit.
fn signed(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

/// Numbers of a list.
#[derive(Clone, Copy)]
enum Number {
    Four,
    Eight,
}

impl Number {
    fn shape(self) -> Shape {
        match self {
            Self::Four => I32,
            Self::Eight => I64,
        }
    }
}

/// What a field holds.
#[derive(Clone, Copy)]
enum Shape {
    Bool,
    Byte,
    I16,
    I32,
    I64,
    /// How many of the schema's next elements belong to this one: room for them is made as well.
    Children,
    Double,
    Binary,
    Struct(Fields),
    Numbers(Number),
    Texts,
    Structs(Fields),
}

use Shape::{Binary, Bool, Byte, Children, Double, I16, I32, I64, Numbers, Struct, Structs, Texts};

/// Numbers of a structure's fields with their contents.
type Fields = &'static [(i16, Shape)];

const EMPTY: Fields = &[];
const KEY_VALUE: Fields = &[(1, Binary), (2, Binary)];
const FILE: Fields = &[
    (1, I32),
    (2, Structs(SCHEMA)),
    (3, I64),
    (4, Structs(ROW_GROUP)),
    (5, Structs(KEY_VALUE)),
    (6, Binary),
    (7, Structs(&[(1, Struct(EMPTY))])),
    (8, Struct(ENCRYPTION)),
    (9, Binary),
];
const SCHEMA: Fields = &[
    (1, I32),
    (2, I32),
    (3, I32),
    (4, Binary),
    (5, Children),
    (6, I32),
    (7, I32),
    (8, I32),
    (9, I32),
    (10, Struct(LOGICAL)),
];
const TIME: Fields = &[
    (1, Bool),
    (
        2,
        Struct(&[(1, Struct(EMPTY)), (2, Struct(EMPTY)), (3, Struct(EMPTY))]),
    ),
];
const LOGICAL: Fields = &[
    (1, Struct(EMPTY)),
    (2, Struct(EMPTY)),
    (3, Struct(EMPTY)),
    (4, Struct(EMPTY)),
    (5, Struct(&[(1, I32), (2, I32)])),
    (6, Struct(EMPTY)),
    (7, Struct(TIME)),
    (8, Struct(TIME)),
    (10, Struct(&[(1, Byte), (2, Bool)])),
    (11, Struct(EMPTY)),
    (12, Struct(EMPTY)),
    (13, Struct(EMPTY)),
    (14, Struct(EMPTY)),
    (15, Struct(EMPTY)),
    (16, Struct(&[(1, Byte)])),
    (17, Struct(&[(1, Binary)])),
    (18, Struct(&[(1, Binary), (2, I32)])),
];
const ROW_GROUP: Fields = &[
    (1, Structs(COLUMN)),
    (2, I64),
    (3, I64),
    (4, Structs(&[(1, I32), (2, Bool), (3, Bool)])),
    (5, I64),
    (6, I64),
    (7, I16),
];
const COLUMN: Fields = &[
    (1, Binary),
    (2, I64),
    (3, Struct(COLUMN_METADATA)),
    (4, I64),
    (5, I32),
    (6, I64),
    (7, I32),
    (
        8,
        Struct(&[(1, Struct(EMPTY)), (2, Struct(&[(1, Texts), (2, Binary)]))]),
    ),
    (9, Binary),
];
const COLUMN_METADATA: Fields = &[
    (1, I32),
    (2, Numbers(Number::Four)),
    (3, Texts),
    (4, I32),
    (5, I64),
    (6, I64),
    (7, I64),
    (8, Structs(KEY_VALUE)),
    (9, I64),
    (10, I64),
    (11, I64),
    (12, Struct(STATISTICS)),
    (13, Structs(&[(1, I32), (2, I32), (3, I32)])),
    (14, I64),
    (15, I32),
    (
        16,
        Struct(&[(1, I64), (2, Numbers(Number::Eight)), (3, Numbers(Number::Eight))]),
    ),
    (17, Struct(&[(1, Struct(BOX)), (2, Numbers(Number::Four))])),
];
const STATISTICS: Fields = &[
    (1, Binary),
    (2, Binary),
    (3, I64),
    (4, I64),
    (5, Binary),
    (6, Binary),
    (7, Bool),
    (8, Bool),
];
const BOX: Fields = &[
    (1, Double),
    (2, Double),
    (3, Double),
    (4, Double),
    (5, Double),
    (6, Double),
    (7, Double),
    (8, Double),
];
const CIPHER: Fields = &[(1, Binary), (2, Binary), (3, Bool)];
const ENCRYPTION: Fields = &[(1, Struct(CIPHER)), (2, Struct(CIPHER))];

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// A file with nothing but a footer.
    fn file(footer: &[u8]) -> Bytes {
        let length = (footer.len() as u32).to_le_bytes();
        Bytes::from([b"PAR1", footer, &length, b"PAR1"].concat())
    }

    #[test]
    fn lists_hold_what_they_claim() {
        // field 5, a list of pairs, of which the first has a key; end
        assert!(check(&file(&[0x59, 0x1c, 0x18, 1, b'a', 0, 0])).is_ok());
        assert!(
            check(&file(&[0x59, 0x2c, 0x18, 1, b'a', 0])).is_err(),
            "no second pair"
        );
        // 2^32 pairs in the same space
        let many = [0x59, 0xfc, 0x80, 0x80, 0x80, 0x80, 0x10, 0, 0, 0];
        assert!(check(&file(&many)).is_err());
        // a list of numbers where the library reads pairs
        assert!(check(&file(&[0x59, 0x15, 2, 0])).is_err());
        // a text longer than the footer; a schema element with more children than the footer has bytes
        assert!(check(&file(&[0x68, 0x70, b'a', 0])).is_err());
        let children = |low: u8, high: u8| file(&[0x29, 0x1c, 0x55, low, high, 0, 0]);
        assert!(check(&children(0x82, 0x00)).is_ok());
        assert!(check(&children(0x80, 0x7f)).is_err());
    }

    #[test]
    fn fields_of_later_versions_are_passed_over() {
        // field 40: a structure with a truth value, a list of two numbers and a text
        let later = [0x0c, 80, 0x11, 0x19, 0x25, 2, 4, 0x18, 1, b'a', 0, 0];
        assert!(check(&file(&later)).is_ok());
        for kind in [0x0b, 0x0d, 0x0f] {
            assert!(check(&file(&[kind, 80, 0, 0])).is_err(), "{kind}");
        }
        // without end
        assert!(check(&file(&[[0x0c, 80], [0x1c, 0x1c]].concat().repeat(2000))).is_err());
        let deep = [&[0x09, 80][..], &[0x19; 4000]].concat();
        assert!(check(&file(&deep)).is_err());
    }

    #[test]
    fn what_is_no_parquet_file_is_left_to_the_library() {
        for bytes in [&b""[..], b"PAR1", b"no parquet file", b"PAR1\xff\xff\xff\xffPAR1"] {
            assert!(check(&Bytes::copy_from_slice(bytes)).is_ok(), "{bytes:?}");
        }
    }
}
