//! Brightness of single pixels, without converting the frame.

use super::{FrameView, PixelFormat};

/// Reads the brightness of pixels, 0..=255. Formats of colours are weighted as BT.601 does it;
/// video range is left as it is.
#[derive(Debug, Clone, Copy)]
pub struct Luma<'a> {
    data: &'a [u8],
    stride: usize,
    /// Bytes from pixel to pixel.
    step: usize,
    /// Bytes of red, green and blue within a pixel; `None` where the first plane is luma.
    colors: Option<[usize; 3]>,
}

impl<'a> FrameView<'a> {
    /// The brightness of the frame's pixels.
    pub fn luma(&self) -> Luma<'a> {
        let (step, colors) = match self.format {
            PixelFormat::Rgb => (3, Some([0, 1, 2])),
            PixelFormat::Bgr => (3, Some([2, 1, 0])),
            PixelFormat::Rgba | PixelFormat::Rgbx => (4, Some([0, 1, 2])),
            PixelFormat::Bgra | PixelFormat::Bgrx => (4, Some([2, 1, 0])),
            PixelFormat::Gray8 | PixelFormat::Nv12 | PixelFormat::I420 => (1, None),
            PixelFormat::Yuy2 | PixelFormat::Uyvy => (2, None),
        };
        let [plane, ..] = self.planes;
        // The first byte is chroma there.
        let skipped = usize::from(self.format == PixelFormat::Uyvy);
        let data = plane.data.get(skipped..).unwrap_or_default();
        Luma { data, stride: plane.stride, step, colors }
    }
}

impl Luma<'_> {
    /// Brightness of a pixel; 0 outside of the memory of the frame.
    pub fn at(&self, x: usize, y: usize) -> u8 {
        let start = y * self.stride + x * self.step;
        let byte = |offset| self.data.get(start + offset).copied().unwrap_or(0);
        match self.colors {
            None => byte(0),
            Some([r, g, b]) => {
                let [r, g, b] = [r, g, b].map(|offset| u32::from(byte(offset)));
                ((r * 77 + g * 150 + b * 29 + 128) >> 8) as u8
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::frame::{Colorimetry, FrameView, PixelFormat, Plane, YuvMatrix};

    #[test]
    fn every_format_gives_the_brightness_of_a_grey_frame() {
        let colorimetry = Colorimetry { matrix: YuvMatrix::Bt601, full_range: true };
        let data = [100; 64];
        for format in PixelFormat::ALL {
            let planes = vec![Plane { data: &data, stride: 16 }; format.planes()];
            let frame = FrameView::new(format, 3, 3, &planes, colorimetry).unwrap();
            assert_eq!(frame.luma().at(2, 2), 100, "{format:?}");
        }
        let pixel = [0, 0, 255];
        let plane = [Plane { data: &pixel, stride: 3 }];
        let red = FrameView::new(PixelFormat::Bgr, 1, 1, &plane, colorimetry).unwrap();
        assert_eq!(red.luma().at(0, 0), 77);
        assert_eq!(red.luma().at(0, 9), 0);
    }
}
