//! Words on pictures.

use image::{Rgb, RgbImage};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

const WEIGHT: FontWeight = FontWeight::Regular;
const HEIGHT: RasterHeight = RasterHeight::Size16;

/// Height of a line in pixels.
pub(super) const LINE: u32 = HEIGHT.val() as u32;
/// Width of a character in pixels.
pub(super) const ADVANCE: u32 = get_raster_width(WEIGHT, HEIGHT) as u32;

/// Writes one line with its upper left corner at `x`, `y`, in at most `width` pixels. Letters
/// beyond the extended Latin ones become a question mark, what does not fit is cut off.
pub(super) fn write(
    image: &mut RgbImage,
    (x, y): (u32, u32),
    width: u32,
    text: &str,
    ink: Rgb<u8>,
) {
    for (i, letter) in (0..width / ADVANCE).zip(text.chars()) {
        let Some(glyph) =
            get_raster(letter, WEIGHT, HEIGHT).or_else(|| get_raster('?', WEIGHT, HEIGHT))
        else {
            continue;
        };
        for (dy, row) in (0u32..).zip(glyph.raster()) {
            for (dx, &strength) in (0u32..).zip(*row) {
                let at = (x + i * ADVANCE + dx, y + dy);
                if let Some(pixel) = image.get_pixel_mut_checked(at.0, at.1) {
                    for (old, new) in pixel.0.iter_mut().zip(ink.0) {
                        *old = mix(*old, new, u32::from(strength));
                    }
                }
            }
        }
    }
}

/// `share` of 255 parts of `new`, the rest of `old`.
pub(super) fn mix(old: u8, new: u8, share: u32) -> u8 {
    ((u32::from(old) * (255 - share) + u32::from(new) * share + 127) / 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_where_it_was_asked_for_and_cut_off() {
        let mut image = RgbImage::from_pixel(100, 40, Rgb([255; 3]));
        write(&mut image, (10, 8), 3 * ADVANCE + 1, "Iß界II", Rgb([0, 0, 200]));
        let dark =
            |x0: u32, x1: u32| (x0..x1).any(|x| (0..40).any(|y| image.get_pixel(x, y).0[0] < 128));
        assert!(!dark(0, 10));
        for i in 0..3 {
            assert!(dark(10 + i * ADVANCE, 10 + (i + 1) * ADVANCE), "letter {i}");
        }
        assert!(!dark(10 + 3 * ADVANCE, 100));
        assert!(image.enumerate_pixels().all(|(_, y, p)| (8..24).contains(&y) || p.0 == [255; 3]));
    }
}
