//! Pictures in the page of an evaluation.

use std::io::Cursor;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use conceptseg::labels::{LabelMap, PALETTE};
use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{self, FilterType};

/// Longer side of a picture in pixels.
const SIDE: u32 = 400;
/// Quality of JPEG pictures, of 100.
const QUALITY: u8 = 85;
/// Share of a label's colour over the image.
const OPACITY: f32 = 0.65;

/// At most `count` of the numbers below `length`, the first and the last among them.
pub fn spread(length: usize, count: usize) -> Vec<usize> {
    let count = count.min(length);
    (0..count).map(|i| i * (length - 1) / (count - 1).max(1)).collect()
}

/// The image as a data URI, its longer side at most [`SIDE`] pixels.
pub fn jpeg(image: &RgbImage) -> Result<String> {
    let (width, height) = image.dimensions();
    let scale = (f64::from(SIDE) / f64::from(width.max(height).max(1))).min(1.0);
    let fit = |side: u32| (f64::from(side) * scale).round().max(1.0) as u32;
    let small = imageops::resize(image, fit(width), fit(height), FilterType::Triangle);
    let mut bytes = Cursor::new(Vec::new());
    small.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, QUALITY))?;
    Ok(format!("data:image/jpeg;base64,{}", STANDARD.encode(bytes.into_inner())))
}

/// The labels in their colours over the image; `background` stays as it is, `void` is white.
pub fn overlay(image: &RgbImage, labels: &LabelMap, background: Option<u8>, void: u8) -> RgbImage {
    let mut drawn = image.clone();
    for (pixel, &label) in drawn.pixels_mut().zip(&labels.data) {
        if Some(label) == background {
            continue;
        }
        let colour = if label == void { [255; 3] } else { PALETTE[usize::from(label)] };
        for (channel, colour) in pixel.0.iter_mut().zip(colour) {
            let (old, new) = (f32::from(*channel), f32::from(colour));
            *channel = (old + (new - old) * OPACITY).round() as u8;
        }
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_drawn_and_background_is_not() {
        let image = RgbImage::from_pixel(3, 1, image::Rgb([100, 100, 100]));
        let labels = LabelMap { width: 3, height: 1, data: vec![0, 1, 255] };
        let drawn = overlay(&image, &labels, Some(0), 255);
        assert_eq!(drawn.get_pixel(0, 0).0, [100; 3]);
        assert_eq!(drawn.get_pixel(1, 0).0, [118, 35, 35]);
        assert_eq!(drawn.get_pixel(2, 0).0, [201; 3]);
        assert!(jpeg(&drawn).unwrap().starts_with("data:image/jpeg;base64,"));
    }

    #[test]
    fn pictures_are_spread_over_the_list() {
        assert_eq!(spread(10, 4), [0, 3, 6, 9]);
        assert_eq!(spread(2, 6), [0, 1]);
        assert_eq!(spread(0, 6), [] as [usize; 0]);
    }
}
