//! Element types, tensors and shapes.

use std::fmt;

use half::{bf16, f16};

/// Type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DataType {
    /// 32-bit floating point.
    Float,
    /// IEEE 16-bit floating point.
    Half,
    /// Signed 8-bit integer.
    Int8,
    /// Signed 32-bit integer.
    Int32,
    /// One byte, 0 or 1.
    Bool,
    /// Unsigned 8-bit integer.
    UInt8,
    /// 8-bit floating point (E4M3).
    Fp8,
    /// 16-bit floating point with the exponent of 32 bits.
    BFloat16,
    /// Signed 64-bit integer.
    Int64,
    /// Signed 4-bit integer, two in a byte.
    Int4,
    /// 4-bit floating point (E2M1), two in a byte.
    Fp4,
    /// 8-bit exponent without mantissa.
    E8M0,
}

impl DataType {
    /// From the library's `DataType`, whose values are the same in all versions.
    pub(crate) fn from_raw(raw: i32) -> Option<Self> {
        Some(match raw {
            0 => Self::Float,
            1 => Self::Half,
            2 => Self::Int8,
            3 => Self::Int32,
            4 => Self::Bool,
            5 => Self::UInt8,
            6 => Self::Fp8,
            7 => Self::BFloat16,
            8 => Self::Int64,
            9 => Self::Int4,
            10 => Self::Fp4,
            11 => Self::E8M0,
            _ => return None,
        })
    }

    /// Bits of one element.
    #[must_use]
    pub fn bits(self) -> u64 {
        match self {
            Self::Float | Self::Int32 => 32,
            Self::Half | Self::BFloat16 => 16,
            Self::Int8 | Self::Bool | Self::UInt8 | Self::Fp8 | Self::E8M0 => 8,
            Self::Int64 => 64,
            Self::Int4 | Self::Fp4 => 4,
        }
    }

    /// Bytes of a tensor of this shape, or nothing where a size is open (-1) or the product has no place in 64 bits.
    #[must_use]
    pub fn bytes(self, shape: &[i64]) -> Option<u64> {
        let elements = shape
            .iter()
            .try_fold(1_u64, |product, &size| product.checked_mul(u64::try_from(size).ok()?))?;
        Some(elements.checked_mul(self.bits())?.div_ceil(8))
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Float => "float32",
            Self::Half => "float16",
            Self::Int8 => "int8",
            Self::Int32 => "int32",
            Self::Bool => "bool",
            Self::UInt8 => "uint8",
            Self::Fp8 => "float8",
            Self::BFloat16 => "bfloat16",
            Self::Int64 => "int64",
            Self::Int4 => "int4",
            Self::Fp4 => "float4",
            Self::E8M0 => "e8m0",
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that tensors have as elements.
pub trait Element: bytemuck::Pod + Send + Sync + sealed::Sealed {
    /// The tensors' type that it belongs to. `u8` also serves [`DataType::Bool`].
    const TYPE: DataType;
}

macro_rules! elements {
    ($($type:ty => $data:ident),*) => {$(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const TYPE: DataType = DataType::$data;
        }
    )*};
}
elements!(f32 => Float, f16 => Half, bf16 => BFloat16, i8 => Int8, u8 => UInt8, i32 => Int32, i64 => Int64);

/// Whether a tensor goes into the network or comes out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorMode {
    /// Read by the network.
    Input,
    /// Written by the network.
    Output,
}

/// Smallest, usual and largest shape of an input in one optimization profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeRange {
    /// Smallest size of each dimension.
    pub min: Vec<i64>,
    /// The shape that the plan is tuned for.
    pub opt: Vec<i64>,
    /// Largest size of each dimension.
    pub max: Vec<i64>,
}

impl ShapeRange {
    /// Why `shape` is outside the range, or nothing if it is inside.
    pub(crate) fn refuse(&self, shape: &[i64]) -> Option<String> {
        let inside = shape.len() == self.min.len()
            && shape.len() == self.max.len()
            && shape.iter().zip(&self.min).all(|(size, min)| size >= min)
            && shape.iter().zip(&self.max).all(|(size, max)| size <= max);
        (!inside).then(|| format!("the profile allows {:?} to {:?}", self.min, self.max))
    }
}

/// An input or output of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, unique within the engine.
    pub name: String,
    /// Input or output.
    pub mode: TensorMode,
    /// Type of its elements.
    pub data_type: DataType,
    /// Its shape, -1 where the size is open until the inputs' shapes are set.
    pub shape: Vec<i64>,
    /// Whether its elements lie in plain row-major order, as buffers of this crate do.
    pub linear: bool,
    /// Whether the library wants it in host memory (a tensor whose values are shapes).
    pub on_host: bool,
    /// Allowed shapes for each optimization profile; empty for outputs.
    pub profiles: Vec<ShapeRange>,
}

impl TensorInfo {
    /// Whether a size is open until the inputs' shapes are set.
    #[must_use]
    pub fn is_dynamic(&self) -> bool {
        self.shape.iter().any(|&size| size < 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_tensor_are_exact_and_never_wrap() {
        assert_eq!(DataType::Float.bytes(&[1, 3, 2, 2]), Some(48));
        assert_eq!(DataType::Int4.bytes(&[3]), Some(2));
        assert_eq!(DataType::Half.bytes(&[]), Some(2));
        assert_eq!(DataType::Half.bytes(&[1, -1]), None);
        assert_eq!(DataType::Int64.bytes(&[i64::MAX, 2]), None);
    }

    #[test]
    fn a_range_refuses_other_ranks_and_sizes() {
        let range = ShapeRange { min: vec![1, 8], opt: vec![1, 16], max: vec![4, 32] };
        assert!(range.refuse(&[2, 8]).is_none());
        for shape in [&[1][..], &[0, 8], &[1, 33], &[1, 8, 1]] {
            assert!(range.refuse(shape).is_some(), "{shape:?}");
        }
    }
}
