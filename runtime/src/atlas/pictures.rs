//! The pictures of an atlas: a strip of segments for each concept, and one sheet with a small
//! picture of each.

use std::collections::BTreeMap;

use image::codecs::jpeg::JpegEncoder;
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use rayon::prelude::*;

use crate::evaluate::EvaluateError;
use crate::evaluate::concepts::Sample;

/// Side of a tile in pixels.
pub(super) const TILE: u32 = 72;
/// Side of a small picture in pixels.
pub(super) const SMALL: u32 = 44;
/// Small pictures in a row of their sheet.
pub(super) const COLUMNS: u32 = 32;

/// What all pictures of 512 concepts may take, in bytes; in a page they are a third larger.
/// More concepts may take more in proportion.
const BUDGET: usize = 10_200_000;
/// JPEG qualities, of which the best is taken that stays within the budget.
const QUALITIES: [u8; 7] = [82, 74, 66, 56, 44, 30, 10];
/// Behind concepts of which there is no picture.
const BLANK: Rgb<u8> = Rgb([128, 128, 128]);

/// The pictures of all concepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strips {
    /// For each concept its shown segments side by side, `TILE` pixels each, as JPEG; empty
    /// where it has none.
    pub strips: Vec<Vec<u8>>,
    /// The first segment of each concept, `COLUMNS` in a row, `SMALL` pixels each, as JPEG.
    pub small: Vec<u8>,
}

impl Strips {
    /// Lays out `tiles` by concept and place among `samples`. Places without a tile stay grey.
    pub(super) fn new(
        count: usize,
        samples: &BTreeMap<u16, Vec<Sample>>,
        tiles: &BTreeMap<(u16, usize), RgbImage>,
    ) -> Result<Self, EvaluateError> {
        let strips: Vec<Option<RgbImage>> = (0..count)
            .map(|id| {
                let id = id as u16;
                let places = samples.get(&id)?.len();
                let mut strip = RgbImage::from_pixel(TILE * places as u32, TILE, BLANK);
                for (place, x) in (0..places).zip((0..).step_by(TILE as usize)) {
                    if let Some(tile) = tiles.get(&(id, place)) {
                        imageops::replace(&mut strip, tile, x, 0);
                    }
                }
                Some(strip).filter(|strip| strip.width() > 0)
            })
            .collect();
        let small = jpeg(&small(&strips), QUALITIES[1])?;
        Ok(Self { strips: encode(&strips, BUDGET * count.max(512) / 512)?, small })
    }
}

/// The strips as JPEG, as well as a budget of bytes allows.
fn encode(strips: &[Option<RgbImage>], budget: usize) -> Result<Vec<Vec<u8>>, EvaluateError> {
    let mut encoded = Vec::new();
    for quality in QUALITIES {
        encoded = strips
            .par_iter()
            .map(|strip| strip.as_ref().map_or(Ok(Vec::new()), |s| jpeg(s, quality)))
            .collect::<Result<Vec<_>, _>>()?;
        if encoded.iter().map(Vec::len).sum::<usize>() <= budget {
            break;
        }
    }
    Ok(encoded)
}

/// The sheet of small pictures.
fn small(strips: &[Option<RgbImage>]) -> RgbImage {
    let rows = (strips.len() as u32).div_ceil(COLUMNS).max(1);
    let mut sheet = RgbImage::from_pixel(COLUMNS * SMALL, rows * SMALL, BLANK);
    for (id, strip) in (0u32..).zip(strips) {
        let Some(strip) = strip else { continue };
        let first = imageops::crop_imm(strip, 0, 0, TILE, TILE).to_image();
        let first = imageops::resize(&first, SMALL, SMALL, FilterType::Triangle);
        let (x, y) = (id % COLUMNS * SMALL, id / COLUMNS * SMALL);
        imageops::replace(&mut sheet, &first, i64::from(x), i64::from(y));
    }
    sheet
}

fn jpeg(image: &RgbImage, quality: u8) -> Result<Vec<u8>, EvaluateError> {
    let mut bytes = Vec::new();
    image
        .write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, quality))
        .map_err(|e| EvaluateError::Plot(e.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Sample {
        Sample { image: "a".to_owned(), segment: 0, area: 1, bbox: [0; 4] }
    }

    #[test]
    fn a_strip_has_a_place_for_each_sample_and_grey_where_it_was_not_found() {
        let samples = BTreeMap::from([(1, vec![sample(); 3])]);
        let red = RgbImage::from_pixel(TILE, TILE, Rgb([200, 0, 0]));
        let tiles = BTreeMap::from([((1, 0), red.clone()), ((1, 2), red)]);
        let strips = Strips::new(3, &samples, &tiles).unwrap();
        assert!(strips.strips[0].is_empty() && strips.strips[2].is_empty());
        let strip = image::load_from_memory(&strips.strips[1]).unwrap().to_rgb8();
        assert_eq!(strip.dimensions(), (3 * TILE, TILE));
        let near = |x: u32, to: [u8; 3]| {
            strip.get_pixel(x, 36).0.iter().zip(to).all(|(&a, b)| a.abs_diff(b) < 8)
        };
        assert!(near(36, [200, 0, 0]) && near(108, [128; 3]) && near(180, [200, 0, 0]));
        let small = image::load_from_memory(&strips.small).unwrap().to_rgb8();
        assert_eq!(small.dimensions(), (COLUMNS * SMALL, SMALL));
        assert!(small.get_pixel(SMALL + 20, 20).0[1] < 20);
    }

    #[test]
    fn the_hardest_pictures_of_ten_tiles_stay_within_the_budget() {
        // Noise does not compress.
        let mut state = 1u32;
        let noise = RgbImage::from_fn(TILE, TILE, |_, _| {
            Rgb([0; 3].map(|_: u8| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            }))
        });
        let mut strip = RgbImage::new(10 * TILE, TILE);
        for x in (0..10 * TILE).step_by(TILE as usize) {
            imageops::replace(&mut strip, &noise, i64::from(x), 0);
        }
        let budget = BUDGET / 512;
        let size = encode(&[Some(strip), None], budget).unwrap()[0].len();
        assert!(size <= budget && size > budget / 8, "{size}");
    }
}
