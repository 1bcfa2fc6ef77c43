//! Arrays in files that `NumPy` reads and writes (format version 1.0, little endian, C order).

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// Start of every file of this version.
const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";
/// The data starts at a multiple of this.
const ALIGNMENT: usize = 64;

/// A number type of arrays.
pub trait Number: Copy {
    /// How `NumPy` calls it.
    const TYPE: &'static str;

    /// Appends its bytes.
    fn write(self, out: &mut Vec<u8>);
}

macro_rules! number {
    ($type:ty, $name:literal) => {
        impl Number for $type {
            const TYPE: &'static str = $name;

            fn write(self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }
        }
    };
}

number!(u8, "|u1");
number!(u16, "<u2");
number!(u32, "<u4");
number!(f32, "<f4");
number!(f64, "<f8");

/// An array, encoded.
pub struct Array(Vec<u8>);

impl Array {
    /// Encodes values in C order.
    pub fn new<T: Number>(shape: &[usize], values: &[T]) -> Result<Self> {
        let expected = shape.iter().product::<usize>();
        ensure!(values.len() == expected, "{} values for {shape:?}", values.len());
        let sides: Vec<String> = shape.iter().map(ToString::to_string).collect();
        let sides = sides.join(",");
        let mut header =
            format!("{{'descr':'{}','fortran_order':False,'shape':({sides},)}}", T::TYPE);
        let length = (MAGIC.len() + 2 + header.len() + 1).next_multiple_of(ALIGNMENT);
        while MAGIC.len() + 2 + header.len() + 1 < length {
            header.push(' ');
        }
        header.push('\n');
        let mut bytes = MAGIC.to_vec();
        bytes.extend(u16::try_from(header.len()).context("the header is too long")?.to_le_bytes());
        bytes.extend(header.as_bytes());
        for value in values {
            value.write(&mut bytes);
        }
        Ok(Self(bytes))
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> Result<()> {
        conceptseg::files::write_atomic(path, |out| out.write_all(&self.0))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Reads an array of 32-bit floats: its shape and values.
pub fn read_f32(path: &Path) -> Result<(Vec<usize>, Vec<f32>)> {
    let (shape, data) = read(path, "<f4")?;
    let (words, rest) = data.as_chunks::<4>();
    ensure!(rest.is_empty(), "{} is cut short", path.display());
    let values: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
    ensure!(values.len() == shape.iter().product::<usize>(), "{} is cut short", path.display());
    Ok((shape, values))
}

/// The shape and the bytes of an array of that type.
fn read(path: &Path, number: &str) -> Result<(Vec<usize>, Vec<u8>)> {
    let mut bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let header = (|| {
        let length = bytes.strip_prefix(MAGIC)?.first_chunk::<2>()?;
        let end = MAGIC.len() + 2 + usize::from(u16::from_le_bytes(*length));
        let text = std::str::from_utf8(bytes.get(MAGIC.len() + 2..end)?).ok()?;
        let (_, shape) = text.split_once('(')?;
        let (shape, _) = shape.split_once(')')?;
        let sides = shape.split(',').map(str::trim).filter(|side| !side.is_empty());
        let shape: Vec<usize> = sides.map(|side| side.parse().ok()).collect::<Option<_>>()?;
        (text.contains(number) && !text.contains("True")).then_some((shape, end))
    })();
    let (shape, end) =
        header.with_context(|| format!("{} is no array of {number}", path.display()))?;
    bytes.drain(..end);
    Ok((shape, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.npy");
        Array::new(&[2, 3], &[1.5_f32, -2.0, 0.0, 3.0, f32::MAX, 1e-9])
            .unwrap()
            .write(&file)
            .unwrap();
        let (shape, values) = read_f32(&file).unwrap();
        assert_eq!(shape, [2, 3]);
        assert_eq!(values, [1.5, -2.0, 0.0, 3.0, f32::MAX, 1e-9]);
        // NumPy maps files into memory and wants the data aligned for that.
        assert_eq!((fs::read(&file).unwrap().len() - 24) % ALIGNMENT, 0);
    }

    #[test]
    fn other_types_and_other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.npy");
        Array::new(&[3], &[1_u16, 2, 3]).unwrap().write(&file).unwrap();
        assert!(read_f32(&file).unwrap_err().to_string().contains("no array of <f4"));
        fs::write(&file, b"\x93NUMPY").unwrap();
        assert!(read_f32(&file).is_err());
        assert!(Array::new(&[2, 2], &[1_u8]).is_err());
    }
}
