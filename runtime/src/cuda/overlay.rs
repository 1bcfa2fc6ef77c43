//! Drawing results onto frames in device memory. Twin of [`overlay::draw`](crate::overlay::draw).
//!
//! Packed formats come out equal to the byte. NV12 frames, which the CPU does not draw on, get the
//! same picture: luma is drawn pixel by pixel with the colours' luma, and chroma, of which there is
//! one for 2x2 pixels, is the mean of what the four would have. Colours are rounded to 8-bit YUV
//! before they are mixed, so that a pixel away from borders is within 2 of 255 of the packed one.
#![allow(unsafe_code)] // Launches of kernels.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use conceptseg_tensorrt::cuda::{Arg, CudaError, DeviceBuffer, Function, Stream};

use super::{CudaPathError, Kernels};
use crate::frame::{Colorimetry, MAX_SIDE, rgb_to_yuv};
use crate::overlay::{
    Alpha, ConceptColors, OverlayError, OverlayStyle, PackedLayout, instance_color,
};

/// Concepts that have colours, `OVERLAY_CONCEPTS` of the kernels.
const CONCEPTS: u16 = 4096;
/// Threads of a block.
const BLOCK: usize = 256;
/// Bits of the layers that are drawn, `OVERLAY_DRAW_…` of the kernels.
const DRAW_CONCEPTS: u32 = 1;
const DRAW_MASKS: u32 = 2;
const DRAW_OUTLINES: u32 = 4;

/// Why nothing could be drawn on the GPU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaOverlayError {
    /// As on the CPU.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// The GPU or its driver.
    #[error(transparent)]
    Path(#[from] CudaPathError),
    /// The planes do not hold a frame of that size.
    #[error(
        "{planes:?} (bytes, bytes per row of each plane) in device memory do not hold a \
         {width}x{height} frame of the overlay's format"
    )]
    Planes {
        /// Bytes, and bytes from one row to the next, of each plane.
        planes: Vec<(usize, usize)>,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// A layer has fewer pixels than the frame.
    #[error(
        "the {layer} layer in device memory has {found} pixels, too few for a {width}x{height} frame"
    )]
    Layer {
        /// "concept" or "mask".
        layer: &'static str,
        /// Pixels of the layer.
        found: usize,
        /// Width of the frame.
        width: u32,
        /// Height of the frame.
        height: u32,
    },
}

impl From<CudaError> for CudaOverlayError {
    fn from(error: CudaError) -> Self {
        Self::Path(error.into())
    }
}

/// Format of the frames that are drawn on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayFormat {
    /// 3 or 4 bytes per pixel, one plane.
    Packed(PackedLayout),
    /// Luma, and interleaved U and V at half width and height (rounded up).
    Nv12(Colorimetry),
}

/// A plane of a frame in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DevicePlane {
    /// Device address of the first row.
    pub address: u64,
    /// Bytes from there to the end.
    pub len: usize,
    /// Bytes from one row to the next.
    pub stride: usize,
}

impl DevicePlane {
    fn holds(&self, row: usize, rows: usize) -> bool {
        let needed = (rows - 1).checked_mul(self.stride).and_then(|n| n.checked_add(row));
        self.stride >= row
            && i32::try_from(self.stride).is_ok()
            && needed.is_some_and(|n| n <= self.len)
    }
}

/// Draws onto frames of one format.
#[derive(Debug)]
pub struct OverlayStage {
    format: OverlayFormat,
    draw: Function,
    /// Colours of concepts, instances, outlines around and in instances, in the bytes of a pixel.
    colors: DeviceBuffer<u32>,
}

impl OverlayStage {
    /// A stage with these colours, which it uploads.
    ///
    /// # Errors
    /// [`OverlayError::Layout`] for other packed formats than those of 3 or 4 bytes, or memory is
    /// short.
    pub fn new(
        kernels: &Kernels,
        stream: &Arc<Stream>,
        format: OverlayFormat,
        colors: &ConceptColors,
    ) -> Result<Self, CudaOverlayError> {
        let draw = match format {
            OverlayFormat::Packed(layout) => match layout.bytes_per_pixel {
                3 if layout.is_valid() => "overlay_packed_3",
                4 if layout.is_valid() => "overlay_packed_4",
                bytes_per_pixel => return Err(OverlayError::Layout { bytes_per_pixel }.into()),
            },
            OverlayFormat::Nv12(_) => "overlay_nv12",
        };
        let table: Vec<u32> = (0..CONCEPTS)
            .map(|id| colors.get(id))
            .chain((0..=255).map(instance_color))
            .chain([[0; 3], [255; 3]])
            .map(|color| match format {
                OverlayFormat::Packed(layout) => in_pixel(layout, color),
                OverlayFormat::Nv12(colorimetry) => {
                    let [y, u, v] = rgb_to_yuv(colorimetry, color);
                    u32::from_le_bytes([y, u, v, 0])
                }
            })
            .collect();
        let colors = DeviceBuffer::new(stream.context(), table.len())?;
        colors.write(stream, &table)?;
        Ok(Self { format, draw: kernels.function(draw)?, colors })
    }

    /// Puts drawing onto a frame into the stream. `concepts` and `masks` are `[height, width]`; one
    /// that is `None` or switched off in `style` is not drawn. Alpha and padding stay as they are.
    ///
    /// # Errors
    /// [`CudaOverlayError`] when a size does not fit; nothing is drawn then.
    ///
    /// # Safety
    /// The planes are device memory that nobody else uses until the stream is done, and that lives, as
    /// do the stage and the layers, until then, and until the last launch of a graph captured from
    /// this.
    pub unsafe fn enqueue(
        &self,
        stream: &Arc<Stream>,
        planes: &[DevicePlane],
        (width, height): (u32, u32),
        concepts: Option<&DeviceBuffer<u16>>,
        masks: Option<&DeviceBuffer<u8>>,
        style: &OverlayStyle,
    ) -> Result<(), CudaOverlayError> {
        let (w, h) = (width as usize, height as usize);
        let fits = (1..=MAX_SIDE).contains(&width)
            && (1..=MAX_SIDE).contains(&height)
            && match (self.format, planes) {
                (OverlayFormat::Packed(layout), [plane]) => {
                    plane.holds(w * layout.bytes_per_pixel, h)
                }
                (OverlayFormat::Nv12(_), [luma, chroma]) => {
                    luma.holds(w, h) && chroma.holds(w.div_ceil(2) * 2, h.div_ceil(2))
                }
                _ => false,
            };
        if !fits {
            let planes = planes.iter().map(|plane| (plane.len, plane.stride)).collect();
            return Err(CudaOverlayError::Planes { planes, width, height });
        }
        let concepts = concepts.filter(|_| style.concepts);
        let masks = masks.filter(|_| style.masks || style.outlines);
        let lens =
            [("concept", concepts.map(DeviceBuffer::len)), ("mask", masks.map(DeviceBuffer::len))];
        for (layer, found) in lens {
            if let Some(found) = found.filter(|&len| len < w * h) {
                return Err(CudaOverlayError::Layer { layer, found, width, height });
            }
        }
        let bit = |drawn, bit| if drawn { bit } else { 0 };
        let layers = bit(concepts.is_some(), DRAW_CONCEPTS)
            | bit(masks.is_some() && style.masks, DRAW_MASKS)
            | bit(masks.is_some() && style.outlines, DRAW_OUTLINES);
        let mut arguments: Vec<Arg> = planes.iter().map(|p| Arg::Buffer(p.address)).collect();
        arguments.extend([
            Arg::Buffer(concepts.map_or(0, DeviceBuffer::address)),
            Arg::Buffer(masks.map_or(0, DeviceBuffer::address)),
            Arg::Buffer(self.colors.address()),
        ]);
        arguments.extend(planes.iter().map(|plane| Arg::I32(plane.stride as i32)));
        arguments.extend([
            Arg::I32(width as i32),
            Arg::I32(height as i32),
            Arg::I32(Alpha::new(style.opacity).0),
            Arg::U32(layers),
        ]);
        let threads = match self.format {
            OverlayFormat::Packed(layout) if layout.bytes_per_pixel == 4 => {
                arguments.push(Arg::U32(in_pixel(layout, [255; 3])));
                w * h
            }
            OverlayFormat::Packed(_) => w.div_ceil(4) * h,
            OverlayFormat::Nv12(_) => w.div_ceil(4) * h.div_ceil(2),
        };
        let grid = [threads.div_ceil(BLOCK) as u32, 1, 1];
        // SAFETY: the arguments are those of the kernel of the format, the planes and layers hold a frame
        // of that size (checked), and layers that are not there are not read. The rest is the caller's.
        unsafe { self.draw.launch(stream, grid, [BLOCK as u32, 1, 1], &arguments)? };
        Ok(())
    }
}

/// The bytes of a pixel with this colour and zeros beside it.
fn in_pixel(layout: PackedLayout, [red, green, blue]: [u8; 3]) -> u32 {
    u32::from(red) << (8 * layout.red)
        | u32::from(green) << (8 * layout.green)
        | u32::from(blue) << (8 * layout.blue)
}
