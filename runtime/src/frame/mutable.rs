//! Frames that are drawn on.

use super::{Colorimetry, FrameError, PixelFormat, check_geometry, check_plane};

/// One plane of an image that may be written to.
#[derive(Debug)]
pub struct PlaneMut<'a> {
    /// The bytes, beginning with the first pixel.
    pub data: &'a mut [u8],
    /// Distance between the starts of two rows in bytes.
    pub stride: usize,
}

/// An image somebody else owns, to be written to: format, size and checked planes.
#[derive(Debug)]
pub struct FrameViewMut<'a> {
    pub(crate) format: PixelFormat,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) colorimetry: Colorimetry,
    /// As many as the format has.
    pub(crate) planes: Vec<PlaneMut<'a>>,
}

impl<'a> FrameViewMut<'a> {
    /// A view of `width` x `height` pixels.
    ///
    /// # Errors
    /// Those of [`FrameView::new`](super::FrameView::new).
    pub fn new(
        format: PixelFormat,
        width: u32,
        height: u32,
        planes: Vec<PlaneMut<'a>>,
        colorimetry: Colorimetry,
    ) -> Result<Self, FrameError> {
        check_geometry(format, width, height, planes.len())?;
        for (index, plane) in planes.iter().enumerate() {
            check_plane(format, width, height, index, plane.stride, plane.data.len())?;
        }
        Ok(Self { format, width, height, colorimetry, planes })
    }
}
