//! YUV to RGB.

use super::{Colorimetry, YuvMatrix};

/// The affine map from 8-bit YUV to R'G'B' in 0..=255.
///
/// Source: ITU-R BT.601-7, BT.709-6 and BT.2020-2, with the quantisation of their 8-bit forms:
/// luma 16..=235 and chroma 128 ± 112, or 0..=255 and 128 ± 127.5 for full range.
#[derive(Debug, Clone, Copy)]
pub(crate) struct YuvToRgb {
    luma_scale: f32,
    luma_offset: f32,
    red_v: f32,
    green_u: f32,
    green_v: f32,
    blue_u: f32,
}

impl YuvToRgb {
    pub(crate) fn new(colorimetry: Colorimetry) -> Self {
        let (kr, kb) = luma_weights(colorimetry.matrix);
        let kg = 1.0 - kr - kb;
        let (luma_scale, luma_offset, chroma) = if colorimetry.full_range {
            (1.0, 0.0, 1.0)
        } else {
            (255.0 / 219.0, -16.0 * 255.0 / 219.0, 255.0 / 224.0)
        };
        Self {
            luma_scale,
            luma_offset,
            red_v: 2.0 * (1.0 - kr) * chroma,
            green_u: -2.0 * kb * (1.0 - kb) / kg * chroma,
            green_v: -2.0 * kr * (1.0 - kr) / kg * chroma,
            blue_u: 2.0 * (1.0 - kb) * chroma,
        }
    }

    /// Luma scale and offset; share of V in red, of U and V in green, of U in blue.
    pub(crate) fn coefficients(&self) -> [f32; 6] {
        let Self { luma_scale, luma_offset, red_v, green_u, green_v, blue_u } = *self;
        [luma_scale, luma_offset, red_v, green_u, green_v, blue_u]
    }

    /// Luma alone, clamped to 0..=255.
    #[inline]
    pub(super) fn gray(&self, y: u8) -> f32 {
        (f32::from(y) * self.luma_scale + self.luma_offset).clamp(0.0, 255.0)
    }

    /// Red, green and blue, clamped to 0..=255.
    #[inline]
    pub(super) fn rgb(&self, y: u8, u: u8, v: u8) -> [f32; 3] {
        let y = f32::from(y) * self.luma_scale + self.luma_offset;
        let (u, v) = (f32::from(u) - 128.0, f32::from(v) - 128.0);
        [
            (y + self.red_v * v).clamp(0.0, 255.0),
            (y + self.green_u * u + self.green_v * v).clamp(0.0, 255.0),
            (y + self.blue_u * u).clamp(0.0, 255.0),
        ]
    }
}

/// Luma weights of red and blue.
fn luma_weights(matrix: YuvMatrix) -> (f32, f32) {
    match matrix {
        YuvMatrix::Bt601 => (0.299, 0.114),
        YuvMatrix::Bt709 => (0.2126, 0.0722),
        YuvMatrix::Bt2020 => (0.2627, 0.0593),
    }
}

/// The 8-bit YUV of a colour: the inverse of [`YuvToRgb`], to the nearest code.
pub(crate) fn rgb_to_yuv(colorimetry: Colorimetry, rgb: [u8; 3]) -> [u8; 3] {
    let (kr, kb) = luma_weights(colorimetry.matrix);
    let [r, g, b] = rgb.map(f32::from);
    let luma = kr * r + (1.0 - kr - kb) * g + kb * b;
    let (scale, offset, chroma) =
        if colorimetry.full_range { (1.0, 0.0, 1.0) } else { (219.0 / 255.0, 16.0, 224.0 / 255.0) };
    let (u, v) = (0.5 * (b - luma) / (1.0 - kb), 0.5 * (r - luma) / (1.0 - kr));
    // `as` keeps within 0..=255: a saturated colour of the full range is half a code beyond.
    [luma * scale + offset, u * chroma + 128.0, v * chroma + 128.0].map(|code| code.round() as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: [f32; 3], want: [f32; 3]) {
        for (g, w) in got.iter().zip(want) {
            // 8-bit YUV of a saturated colour is itself rounded, by up to half a step per component.
            assert!((g - w).abs() < 2.0, "{got:?} instead of {want:?}");
        }
    }

    /// The primaries as the standards' own tables of 8-bit codes give them.
    #[test]
    fn primaries_come_out_as_primaries() {
        let bt601 = YuvToRgb::new(Colorimetry { matrix: YuvMatrix::Bt601, full_range: false });
        close(bt601.rgb(16, 128, 128), [0.0; 3]);
        close(bt601.rgb(235, 128, 128), [255.0; 3]);
        close(bt601.rgb(81, 90, 240), [255.0, 0.0, 0.0]);
        close(bt601.rgb(145, 54, 34), [0.0, 255.0, 0.0]);
        close(bt601.rgb(41, 240, 110), [0.0, 0.0, 255.0]);
        let bt709 = YuvToRgb::new(Colorimetry { matrix: YuvMatrix::Bt709, full_range: false });
        close(bt709.rgb(63, 102, 240), [255.0, 0.0, 0.0]);
        close(bt709.rgb(173, 42, 26), [0.0, 255.0, 0.0]);
        close(bt709.rgb(32, 240, 118), [0.0, 0.0, 255.0]);
        let bt2020 = YuvToRgb::new(Colorimetry { matrix: YuvMatrix::Bt2020, full_range: false });
        close(bt2020.rgb(74, 97, 240), [255.0, 0.0, 0.0]);
        let jpeg = YuvToRgb::new(Colorimetry { matrix: YuvMatrix::Bt601, full_range: true });
        close(jpeg.rgb(76, 85, 255), [255.0, 0.0, 0.0]);
        close(jpeg.rgb(255, 128, 128), [255.0; 3]);
    }

    #[test]
    fn values_outside_the_range_are_clamped() {
        let bt601 = YuvToRgb::new(Colorimetry { matrix: YuvMatrix::Bt601, full_range: false });
        assert_eq!(bt601.rgb(0, 128, 128), [0.0; 3]);
        assert_eq!(bt601.gray(255), 255.0);
        assert_eq!(bt601.gray(3), 0.0);
        assert!(bt601.rgb(255, 0, 255).iter().all(|v| (0.0..=255.0).contains(v)));
    }

    #[test]
    fn colours_survive_the_way_to_yuv_and_back() {
        for matrix in [YuvMatrix::Bt601, YuvMatrix::Bt709, YuvMatrix::Bt2020] {
            for full_range in [false, true] {
                let colorimetry = Colorimetry { matrix, full_range };
                for color in [[0; 3], [255; 3], [255, 0, 0], [12, 200, 99], [0, 0, 255]] {
                    let [y, u, v] = rgb_to_yuv(colorimetry, color);
                    close(YuvToRgb::new(colorimetry).rgb(y, u, v), color.map(f32::from));
                }
            }
        }
        let bt709 = Colorimetry { matrix: YuvMatrix::Bt709, full_range: false };
        assert_eq!(rgb_to_yuv(bt709, [255, 0, 0]), [63, 102, 240]);
        assert_eq!(rgb_to_yuv(bt709, [255; 3]), [235, 128, 128]);
    }
}
