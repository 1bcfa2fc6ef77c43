//! Frames: borrowed views of images as decoders, cameras and media frameworks hand them out.
//!
//! A [`FrameView`] never copies pixels. Its constructor checks every stride and every plane
//! length, so that whatever reads the frame later can rely on them.

mod color;
mod luma;
mod mutable;
mod preprocess;
mod strided;

pub(crate) use color::{YuvToRgb, rgb_to_yuv};
pub use luma::Luma;
pub use mutable::{FrameViewMut, PlaneMut};
pub use preprocess::{Normalization, Preprocessor, network_size};

use std::fmt;

use crate::memory::OutOfMemory;

/// Largest accepted width or height of a frame in pixels.
pub const MAX_SIDE: u32 = 16_384;

/// Why a frame was refused or could not be prepared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A side of zero or beyond [`MAX_SIDE`].
    #[error(
        "a frame of {width}x{height} pixels is not supported; each side must be 1 to {MAX_SIDE}"
    )]
    Size {
        /// Given width.
        width: u32,
        /// Given height.
        height: u32,
    },
    /// The format has another number of planes.
    #[error("a {format} frame has {expected} plane(s), but {found} were given")]
    PlaneCount {
        /// The pixel format.
        format: PixelFormat,
        /// Planes the format has.
        expected: usize,
        /// Planes that were given.
        found: usize,
    },
    /// A row of a plane is longer than its stride.
    #[error(
        "plane {plane} of the {format} frame has a stride of {stride} bytes, but a row takes {row} bytes; \
         give the distance between the starts of two rows"
    )]
    Stride {
        /// The pixel format.
        format: PixelFormat,
        /// Index of the plane.
        plane: usize,
        /// Given stride in bytes.
        stride: usize,
        /// Bytes of pixels in one row.
        row: usize,
    },
    /// A plane ends before its last row does.
    #[error(
        "plane {plane} of the {format} frame holds {found} bytes, but its size and stride need {needed}"
    )]
    PlaneTooShort {
        /// The pixel format.
        format: PixelFormat,
        /// Index of the plane.
        plane: usize,
        /// Bytes needed for all rows; the last one may end without padding.
        needed: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// The resizing library refused the geometry.
    #[error(
        "cannot resize the frame from {from_width}x{from_height} to {to_width}x{to_height}: {reason}"
    )]
    Resize {
        /// Width of the frame.
        from_width: u32,
        /// Height of the frame.
        from_height: u32,
        /// Requested width.
        to_width: u32,
        /// Requested height.
        to_height: u32,
        /// What the library said.
        reason: String,
    },
    /// There is no memory for the input of the network.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
}

/// Memory layout of a pixel. The names follow `GStreamer`'s video formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PixelFormat {
    /// 3 bytes: red, green, blue.
    Rgb,
    /// 3 bytes: blue, green, red.
    Bgr,
    /// 4 bytes: red, green, blue, alpha. Alpha is not looked at.
    Rgba,
    /// 4 bytes: blue, green, red, alpha. Alpha is not looked at.
    Bgra,
    /// 4 bytes: red, green, blue, unused.
    Rgbx,
    /// 4 bytes: blue, green, red, unused.
    Bgrx,
    /// 1 byte: luma.
    Gray8,
    /// Two planes: luma, then interleaved U and V at half width and height (rounded up).
    Nv12,
    /// Three planes: luma, then U and V at half width and height each (rounded up).
    I420,
    /// 4 bytes for two pixels of a row: luma, U, luma, V.
    Yuy2,
    /// 4 bytes for two pixels of a row: U, luma, V, luma.
    Uyvy,
}

impl PixelFormat {
    /// Every format, for tables and tests.
    pub const ALL: [Self; 11] = [
        Self::Rgb,
        Self::Bgr,
        Self::Rgba,
        Self::Bgra,
        Self::Rgbx,
        Self::Bgrx,
        Self::Gray8,
        Self::Nv12,
        Self::I420,
        Self::Yuy2,
        Self::Uyvy,
    ];

    /// Number of planes, 1 to 3.
    pub const fn planes(self) -> usize {
        match self {
            Self::Nv12 => 2,
            Self::I420 => 3,
            _ => 1,
        }
    }

    /// Bytes of pixels in one row and number of rows of a plane, for a frame of the given size.
    /// `plane` must be below [`PixelFormat::planes`].
    pub const fn plane_layout(self, plane: usize, width: u32, height: u32) -> (usize, usize) {
        let (w, h) = (width as usize, height as usize);
        let (half_w, half_h) = (w.div_ceil(2), h.div_ceil(2));
        match self {
            Self::Rgb | Self::Bgr => (3 * w, h),
            Self::Rgba | Self::Bgra | Self::Rgbx | Self::Bgrx => (4 * w, h),
            Self::Nv12 if plane > 0 => (2 * half_w, half_h),
            Self::I420 if plane > 0 => (half_w, half_h),
            Self::Yuy2 | Self::Uyvy => (4 * half_w, h),
            Self::Gray8 | Self::Nv12 | Self::I420 => (w, h),
        }
    }
}

impl fmt::Display for PixelFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rgb => "RGB",
            Self::Bgr => "BGR",
            Self::Rgba => "RGBA",
            Self::Bgra => "BGRA",
            Self::Rgbx => "RGBx",
            Self::Bgrx => "BGRx",
            Self::Gray8 => "GRAY8",
            Self::Nv12 => "NV12",
            Self::I420 => "I420",
            Self::Yuy2 => "YUY2",
            Self::Uyvy => "UYVY",
        })
    }
}

/// Which primaries the luma of a YUV frame was weighted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum YuvMatrix {
    /// ITU-R BT.601: standard definition, JPEG.
    Bt601,
    /// ITU-R BT.709: high definition.
    Bt709,
    /// ITU-R BT.2020, non-constant luminance: ultra high definition.
    Bt2020,
}

/// How the numbers of a YUV or grey frame are to be read. RGB formats ignore it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Colorimetry {
    /// Weights of the luma.
    pub matrix: YuvMatrix,
    /// `true`: 0..=255 are black to white. `false`: luma 16..=235 and chroma 16..=240, as video has it.
    pub full_range: bool,
}

/// One plane of an image.
#[derive(Debug, Clone, Copy)]
pub struct Plane<'a> {
    /// The bytes, beginning with the first pixel.
    pub data: &'a [u8],
    /// Distance between the starts of two rows in bytes.
    pub stride: usize,
}

/// An image somebody else owns: format, size and up to three checked planes.
#[derive(Debug, Clone, Copy)]
pub struct FrameView<'a> {
    format: PixelFormat,
    width: u32,
    height: u32,
    colorimetry: Colorimetry,
    /// Unused planes are empty.
    planes: [Plane<'a>; 3],
}

impl<'a> FrameView<'a> {
    /// A view of `width` x `height` pixels.
    ///
    /// # Errors
    /// [`FrameError`] when a side is 0 or above [`MAX_SIDE`], the number of planes is not the
    /// format's, a stride is shorter than a row, or a plane ends before its last row does.
    pub fn new(
        format: PixelFormat,
        width: u32,
        height: u32,
        planes: &[Plane<'a>],
        colorimetry: Colorimetry,
    ) -> Result<Self, FrameError> {
        check_geometry(format, width, height, planes.len())?;
        let mut checked = [Plane { data: &[], stride: 0 }; 3];
        for (index, (plane, slot)) in planes.iter().zip(&mut checked).enumerate() {
            check_plane(format, width, height, index, plane.stride, plane.data.len())?;
            *slot = *plane;
        }
        Ok(Self { format, width, height, colorimetry, planes: checked })
    }

    /// A view of tightly packed RGB.
    pub fn rgb(width: u32, height: u32, data: &'a [u8]) -> Result<Self, FrameError> {
        let colorimetry = Colorimetry { matrix: YuvMatrix::Bt709, full_range: true };
        let plane = Plane { data, stride: width as usize * 3 };
        Self::new(PixelFormat::Rgb, width, height, &[plane], colorimetry)
    }

    /// Width in pixels.
    pub const fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    pub const fn height(&self) -> u32 {
        self.height
    }

    /// Memory layout.
    pub const fn format(&self) -> PixelFormat {
        self.format
    }

    /// How its numbers are to be read.
    pub(crate) const fn colorimetry(&self) -> Colorimetry {
        self.colorimetry
    }

    /// A plane; `index` is below [`PixelFormat::planes`].
    pub(crate) const fn plane(&self, index: usize) -> Plane<'a> {
        self.planes[index]
    }
}

/// The sides must be possible and the number of planes the format's.
pub(crate) fn check_geometry(
    format: PixelFormat,
    width: u32,
    height: u32,
    planes: usize,
) -> Result<(), FrameError> {
    if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
        return Err(FrameError::Size { width, height });
    }
    let expected = format.planes();
    if planes != expected {
        return Err(FrameError::PlaneCount { format, expected, found: planes });
    }
    Ok(())
}

/// Plane `index` of a sound geometry must hold all of its rows.
pub(crate) fn check_plane(
    format: PixelFormat,
    width: u32,
    height: u32,
    index: usize,
    stride: usize,
    found: usize,
) -> Result<(), FrameError> {
    let (row, rows) = format.plane_layout(index, width, height);
    if stride < row {
        return Err(FrameError::Stride { format, plane: index, stride, row });
    }
    // A stride so large that the product overflows cannot be backed by memory either.
    let needed = (rows - 1)
        .checked_mul(stride)
        .and_then(|skipped| skipped.checked_add(row))
        .unwrap_or(usize::MAX);
    if found < needed {
        return Err(FrameError::PlaneTooShort { format, plane: index, needed, found });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VIDEO: Colorimetry = Colorimetry { matrix: YuvMatrix::Bt601, full_range: false };

    #[test]
    fn the_last_row_needs_no_padding() {
        let data = [0; 8 + 6];
        let plane = |length| [Plane { data: &data[..length], stride: 8 }];
        assert!(FrameView::new(PixelFormat::Rgb, 2, 2, &plane(14), VIDEO).is_ok());
        let error = FrameView::new(PixelFormat::Rgb, 2, 2, &plane(13), VIDEO).unwrap_err();
        assert!(matches!(error, FrameError::PlaneTooShort { plane: 0, needed: 14, found: 13, .. }));
    }

    #[test]
    fn odd_sizes_round_the_chroma_up() {
        let luma = Plane { data: &[0; 15], stride: 5 };
        let interleaved = |length: usize| Plane { data: &[0_u8; 16][..length], stride: 6 };
        assert!(FrameView::new(PixelFormat::Nv12, 5, 3, &[luma, interleaved(12)], VIDEO).is_ok());
        assert!(FrameView::new(PixelFormat::Nv12, 5, 3, &[luma, interleaved(11)], VIDEO).is_err());
        let chroma = |stride| Plane { data: &[0; 6], stride };
        assert!(
            FrameView::new(PixelFormat::I420, 5, 3, &[luma, chroma(3), chroma(3)], VIDEO).is_ok()
        );
        let error = FrameView::new(PixelFormat::I420, 5, 3, &[luma, chroma(3), chroma(2)], VIDEO)
            .unwrap_err();
        assert!(matches!(error, FrameError::Stride { plane: 2, stride: 2, row: 3, .. }));
    }

    #[test]
    fn impossible_frames_are_named() {
        let plane = [Plane { data: &[0; 3], stride: 3 }];
        for (width, height) in [(0, 1), (1, 0), (MAX_SIDE + 1, 1), (1, u32::MAX)] {
            let error = FrameView::new(PixelFormat::Rgb, width, height, &plane, VIDEO).unwrap_err();
            assert!(error.to_string().contains(&format!("{width}x{height}")), "{error}");
        }
        let error = FrameView::new(PixelFormat::Nv12, 1, 1, &plane, VIDEO).unwrap_err();
        assert_eq!(error.to_string(), "a NV12 frame has 2 plane(s), but 1 were given");
        let endless = [Plane { data: &[0; 9], stride: usize::MAX }];
        assert!(FrameView::new(PixelFormat::Rgb, 1, 3, &endless, VIDEO).is_err());
    }

    proptest! {
        /// Whatever is accepted can be prepared for the network; everything else is an error.
        #[test]
        fn no_geometry_panics(
            format in prop::sample::select(PixelFormat::ALL.to_vec()),
            (width, height) in (0_u32..40, 0_u32..40),
            extra_stride in prop::collection::vec(-3_isize..20, 3),
            cut in prop::collection::vec(0_usize..3, 3),
            count in 0_usize..4,
            full_range: bool,
        ) {
            let buffer = vec![200_u8; 20_000];
            let planes: Vec<_> = (0..count).map(|i| {
                let (row, rows) = format.plane_layout(i.min(format.planes() - 1), width, height);
                let stride = row.saturating_add_signed(extra_stride[i]);
                let needed = rows.saturating_sub(1) * stride + row;
                Plane { data: &buffer[..needed.saturating_sub(cut[i])], stride }
            }).collect();
            let colorimetry = Colorimetry { matrix: YuvMatrix::Bt2020, full_range };
            let sound = width > 0 && height > 0 && count == format.planes()
                && (0..count).all(|i| extra_stride[i] >= 0 && cut[i] == 0);
            match FrameView::new(format, width, height, &planes, colorimetry) {
                Ok(frame) => {
                    let mut out = Vec::new();
                    let mut preprocessor = Preprocessor::new(Normalization { mean: [0.0; 3], std: [1.0; 3] });
                    preprocessor.run(&frame, 16, 8, &mut out).unwrap();
                    prop_assert_eq!(out.len(), 3 * 16 * 8);
                    prop_assert!(out.iter().all(|v| (0.0..=1.0).contains(v)));
                }
                Err(_) => prop_assert!(!sound),
            }
        }
    }
}
