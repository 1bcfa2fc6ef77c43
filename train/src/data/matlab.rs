//! Numeric matrices from MATLAB 5 `.mat` files (plain or compressed; what `save` writes up to
//! version 7), as contour detectors write them.
//!
//! Format: "MAT-File Format", The `MathWorks`, chapter 1. Everything but real two-dimensional
//! numeric arrays at the top level is passed over.

use std::io::Read as _;
use std::path::Path;

use flate2::read::ZlibDecoder;

use super::DataError;
use super::images::{MAX_FILE_BYTES, MAX_SIDE, read_bounded};

/// Bytes that one variable may take unpacked, at most.
const MAX_VARIABLE_BYTES: u64 = 512 << 20;

/// A doubled grid has two elements per pixel and one more.
const MAX_MATRIX_SIDE: u32 = 2 * MAX_SIDE + 1;

/// Elements of a matrix, at most: MATLAB stores small whole numbers in one byte each.
const MAX_ELEMENTS: u64 = 1 << 28;

/// A matrix of a `.mat` file.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Name of the variable.
    pub name: String,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Row-major, `height * width`.
    pub data: Vec<f32>,
    /// The value that stands for 1 in an array of this class: 255 for `uint8`, 65535 for
    /// `uint16`, 1 for the others and for logical arrays.
    pub full_scale: f32,
}

/// Element types of the format.
const INT8: u32 = 1;
const UINT32: u32 = 6;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;

/// All real two-dimensional numeric matrices with more than one element at the top level of
/// the file.
///
/// # Errors
/// [`DataError::Read`]; [`DataError::Segments`] when the file is not of this format, is
/// damaged or holds a matrix that is too large.
pub fn read_matrices(path: &Path) -> Result<Vec<Matrix>, DataError> {
    let bytes = read_bounded(path, MAX_FILE_BYTES)?;
    parse(&bytes).map_err(|reason| DataError::Segments { path: path.to_owned(), reason })
}

fn parse(bytes: &[u8]) -> Result<Vec<Matrix>, String> {
    let header = bytes.get(..128).ok_or("it is too short for a .mat file")?;
    if header.starts_with(b"MATLAB 7.3") {
        return Err("it is a .mat file of version 7.3 (HDF5); save it with the option -v7".into());
    }
    let big = match &header[126..] {
        b"IM" => false,
        b"MI" => true,
        _ => return Err("it is not a MATLAB 5 .mat file".into()),
    };
    let mut cursor = Cursor { bytes: &bytes[128..], big };
    let mut matrices = Vec::new();
    while !cursor.bytes.is_empty() {
        let (kind, data) = cursor.element()?;
        match kind {
            MATRIX => matrices.extend(matrix(data, big)?),
            COMPRESSED => {
                let mut unpacked = Vec::new();
                ZlibDecoder::new(data)
                    .take(MAX_VARIABLE_BYTES + 1)
                    .read_to_end(&mut unpacked)
                    .map_err(|error| format!("a compressed variable is damaged: {error}"))?;
                if unpacked.len() as u64 > MAX_VARIABLE_BYTES {
                    return Err(format!("a variable has more than {MAX_VARIABLE_BYTES} bytes"));
                }
                let (kind, data) = Cursor { bytes: &unpacked, big }.element()?;
                if kind == MATRIX {
                    matrices.extend(matrix(data, big)?);
                }
            }
            _ => {}
        }
    }
    Ok(matrices)
}

/// What is left to read of a sequence of data elements.
struct Cursor<'a> {
    bytes: &'a [u8],
    big: bool,
}

impl<'a> Cursor<'a> {
    fn u32(&self, at: usize) -> Result<u32, String> {
        let bytes = self.bytes.get(at..at + 4).ok_or("it ends early")?;
        let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
        Ok(if self.big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    /// Type and data of the next element.
    fn element(&mut self) -> Result<(u32, &'a [u8]), String> {
        let first = self.u32(0)?;
        // A small element has its size (at most 4) beside its type, and its data in the tag.
        let (kind, start, size) = match first >> 16 {
            0 => (first, 8, self.u32(4)? as usize),
            size => (first & 0xFFFF, 4, size as usize),
        };
        let end = start + size;
        let data = self.bytes.get(start..end).ok_or("it ends early")?;
        // Compressed elements alone are not padded to 8 bytes; the last padding may be absent.
        let next = match kind {
            COMPRESSED => end,
            _ if start == 4 => 8,
            _ => end.next_multiple_of(8),
        };
        self.bytes = self.bytes.get(next..).unwrap_or_default();
        Ok((kind, data))
    }
}

/// The content of a matrix element; `None` for what is not a real numeric matrix.
fn matrix(bytes: &[u8], big: bool) -> Result<Option<Matrix>, String> {
    let mut cursor = Cursor { bytes, big };
    let (kind, flags) = cursor.element()?;
    if kind != UINT32 || flags.len() < 8 {
        return Err("an array has no flags".into());
    }
    let flags = Cursor { bytes: flags, big }.u32(0)?;
    let (class, complex, logical) = (flags & 0xFF, flags & 0x800 != 0, flags & 0x200 != 0);
    let (_, sizes) = cursor.element()?;
    let (_, name) = cursor.element()?;
    // Classes 6 to 15 are the numeric ones.
    if !(6..=15).contains(&class) || complex || sizes.len() != 8 {
        return Ok(None);
    }
    let sizes = Cursor { bytes: sizes, big };
    let (height, width) = (sizes.u32(0)?, sizes.u32(4)?);
    let name = String::from_utf8_lossy(name).into_owned();
    let elements = u64::from(height) * u64::from(width);
    if elements < 2 {
        return Ok(None);
    }
    if height.max(width) > MAX_MATRIX_SIDE || elements > MAX_ELEMENTS {
        return Err(format!("the matrix {name} has {height}x{width} elements, which is too many"));
    }
    let (kind, data) = cursor.element()?;
    let columns = numbers(kind, data, big, elements as usize)
        .ok_or_else(|| format!("the matrix {name} is damaged"))?;
    let (rows, across) = (height as usize, width as usize);
    let mut row_major = Vec::with_capacity(columns.len());
    for y in 0..rows {
        row_major.extend((0..across).map(|x| columns[x * rows + y]));
    }
    let full_scale = match class {
        9 if !logical => 255.0,
        11 => 65535.0,
        _ => 1.0,
    };
    Ok(Some(Matrix { name, width, height, data: row_major, full_scale }))
}

/// `count` numbers of an element of type `kind`.
fn numbers(kind: u32, data: &[u8], big: bool, count: usize) -> Option<Vec<f32>> {
    macro_rules! read {
        ($type:ty) => {{
            const SIZE: usize = std::mem::size_of::<$type>();
            (data.len() == SIZE * count).then(|| {
                let number = |bytes: &[u8]| {
                    let mut array = [0; SIZE];
                    array.copy_from_slice(bytes);
                    if big { <$type>::from_be_bytes(array) } else { <$type>::from_le_bytes(array) }
                };
                data.chunks_exact(SIZE).map(|bytes| number(bytes) as f32).collect()
            })
        }};
    }
    match kind {
        INT8 => read!(i8),
        2 => read!(u8),
        3 => read!(i16),
        4 => read!(u16),
        5 => read!(i32),
        UINT32 => read!(u32),
        7 => read!(f32),
        9 => read!(f64),
        12 => read!(i64),
        13 => read!(u64),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;
    use proptest::prelude::*;

    use super::*;

    fn element(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((data.len() as u32).to_le_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    /// A little-endian file with one matrix of doubles, given row by row.
    pub(crate) fn file(name: &str, width: u32, rows: &[f64], compressed: bool) -> Vec<u8> {
        let height = rows.len() as u32 / width;
        let columns: Vec<u8> = (0..width)
            .flat_map(|x| (0..height).map(move |y| rows[(y * width + x) as usize]))
            .flat_map(f64::to_le_bytes)
            .collect();
        let mut content = element(UINT32, &[6, 0, 0, 0, 0, 0, 0, 0]);
        content.extend(element(5, &[height.to_le_bytes(), width.to_le_bytes()].concat()));
        content.extend(element(INT8, name.as_bytes()));
        content.extend(element(9, &columns));
        let mut variable = element(MATRIX, &content);
        if compressed {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(&variable).unwrap();
            let packed = encoder.finish().unwrap();
            variable = COMPRESSED.to_le_bytes().to_vec();
            variable.extend((packed.len() as u32).to_le_bytes());
            variable.extend(packed);
        }
        let mut bytes = b"MATLAB 5.0 MAT-file".to_vec();
        bytes.resize(124, b' ');
        bytes.extend([0, 1]);
        bytes.extend(b"IM");
        bytes.extend(variable);
        bytes
    }

    #[test]
    fn matrices_are_turned_to_rows() {
        let rows = [0.0, 1.0, 2.0, 3.0, 4.0, 5.5];
        for compressed in [false, true] {
            let matrices = parse(&file("E", 3, &rows, compressed)).unwrap();
            let data = rows.iter().map(|&v| v as f32).collect();
            let expected = Matrix { name: "E".into(), width: 3, height: 2, data, full_scale: 1.0 };
            assert_eq!(matrices, [expected]);
        }
    }

    #[test]
    fn small_elements_and_small_whole_numbers_are_read() {
        // `x = uint8([1; 255])` as MATLAB stores it, in the order of the largest byte first.
        let content: Vec<u8> = [
            &[0, 0, 0, 6, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0, 0][..],
            &[0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0, 1],
            &[0, 1, 0, 1, b'x', 0, 0, 0],
            &[0, 2, 0, 2, 1, 255, 0, 0],
        ]
        .concat();
        let mut bytes = vec![b' '; 124];
        bytes.extend([1, 0, b'M', b'I', 0, 0, 0, 14, 0, 0, 0, content.len() as u8]);
        bytes.extend(content);
        let matrices = parse(&bytes).unwrap();
        assert_eq!((matrices[0].width, matrices[0].height), (1, 2));
        assert_eq!((&matrices[0].data[..], matrices[0].full_scale), (&[1.0, 255.0][..], 255.0));
    }

    #[test]
    fn other_formats_are_named() {
        let mut bytes = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".to_vec();
        bytes.resize(512, 0);
        assert!(parse(&bytes).unwrap_err().contains("-v7"));
        assert!(parse(b"\x89PNG").unwrap_err().contains("too short"));
        assert!(parse(&[0; 200]).unwrap_err().contains("not a MATLAB 5"));
    }

    #[test]
    fn the_maps_of_bsds_have_the_doubled_size_of_their_images() {
        let Some(dir) = conceptseg::testdata::shared("data/bsds500") else { return };
        let matrices = read_matrices(&dir.join("ucm2/100007.mat")).unwrap();
        assert_eq!(matrices.len(), 1);
        let map = &matrices[0];
        assert_eq!((map.name.as_str(), map.width, map.height), ("ucm2", 963, 643));
        assert!(map.data.iter().all(|v| (0.0..=1.0).contains(v)));
        // Cells and structures are passed over.
        assert!(read_matrices(&dir.join("groundTruth/100007.mat")).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn damage_is_an_error_or_other_numbers_but_never_a_panic(
            at in 0_usize..400,
            value in any::<u8>(),
            length in 0_usize..400,
            compressed in any::<bool>(),
        ) {
            let mut bytes = file("map", 4, &[0.25; 20], compressed);
            bytes.truncate(length.max(1));
            let at = at % bytes.len();
            bytes[at] = value;
            let _ = parse(&bytes);
        }
    }
}
