//! Pictures of segments over their image.

use conceptseg::labels::PALETTE;
use image::{Rgb, RgbImage};

use super::{DataError, SegmentMap, VOID};

/// Share of a segment's colour inside it; its boundary has the colour alone.
const TINT: f32 = 0.3;

/// Colour of a segment: that of the DAVIS palette, without its black.
fn colour(id: u16) -> [u8; 3] {
    if id == VOID { [255; 3] } else { PALETTE[1 + usize::from(id) % (PALETTE.len() - 1)] }
}

/// `image` with every segment tinted in its colour and outlined in it; pixels of no segment
/// are white.
///
/// # Errors
/// [`DataError::SizeMismatch`].
pub fn draw(image: &RgbImage, segments: &SegmentMap) -> Result<RgbImage, DataError> {
    let (w, h) = image.dimensions();
    if (segments.width, segments.height) != (w, h) || segments.ids.len() != w as usize * h as usize
    {
        let segments = (segments.width, segments.height);
        return Err(DataError::SizeMismatch { image: (w, h), segments });
    }
    let id = |x: u32, y: u32| segments.ids[y as usize * w as usize + x as usize];
    Ok(RgbImage::from_fn(w, h, |x, y| {
        let own = id(x, y);
        let (left, right) = (x.saturating_sub(1), (x + 1).min(w - 1));
        let (above, below) = (y.saturating_sub(1), (y + 1).min(h - 1));
        let around = [id(left, y), id(right, y), id(x, above), id(x, below)];
        let colour = colour(own);
        let share = if own == VOID || around.iter().any(|&n| n != own) { 1.0 } else { TINT };
        let pixel = image.get_pixel(x, y).0;
        Rgb([0, 1, 2].map(|c| {
            let (from, to) = (f32::from(pixel[c]), f32::from(colour[c]));
            (from + share * (to - from)).round() as u8
        }))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_tinted_and_outlined() {
        let image = RgbImage::from_pixel(6, 1, Rgb([100; 3]));
        let segments = SegmentMap { width: 6, height: 1, ids: vec![0, 0, 0, 1, 1, VOID] };
        let drawn = draw(&image, &segments).unwrap();
        let at = |x| drawn.get_pixel(x, 0).0;
        assert_eq!((at(2), at(3), at(5)), (PALETTE[1], PALETTE[2], [255; 3]));
        let tinted = PALETTE[1].map(|c| (100.0 + 0.3 * (f32::from(c) - 100.0)).round() as u8);
        assert_eq!(at(0), tinted);
        assert!(draw(&RgbImage::new(5, 1), &segments).is_err());
    }
}
