//! Sheets of segments that show what concepts stand for.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use image::codecs::jpeg::JpegEncoder;
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use rayon::prelude::*;

use super::record::Recorder;
use super::sample::Sample;
use super::text;
use crate::concepts::{ConceptMap, SegmentationConfig};
use crate::datasets::images::ImageSet;
use crate::embed::Model;
use crate::evaluate::EvaluateError;

/// Side of a segment's picture in pixels.
pub const TILE: u32 = 88;
/// Concepts on a page.
pub const CONCEPTS_PER_PAGE: usize = 32;

/// Columns of concepts on a page.
const COLUMNS: usize = 2;
/// Space between tiles, and around columns, in pixels.
const GAP: u32 = 4;
const MARGIN: u32 = 16;
/// Least side of what is cut out of an image, in pixels: smaller segments are not blown up more.
const MIN_SIDE: u32 = 32;
const PAPER: Rgb<u8> = Rgb([250, 250, 250]);
const INK: Rgb<u8> = Rgb([30, 30, 30]);
const QUALITY: u8 = 88;

/// One concept on a sheet.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// Written above its tiles.
    pub heading: &'a str,
    /// Its segments, of [`TILE`] pixels each side.
    pub tiles: &'a [RgbImage],
}

/// Number of different images among the samples, each of which [`tiles`] labels once.
pub fn sampled_images(samples: &BTreeMap<u16, Vec<Sample>>) -> usize {
    by_image(samples).len()
}

/// The images with what was drawn from them: the concept, its place among the concept's
/// samples, and the sample.
fn by_image(samples: &BTreeMap<u16, Vec<Sample>>) -> BTreeMap<&str, Vec<(u16, usize, &Sample)>> {
    let mut images: BTreeMap<&str, Vec<(u16, usize, &Sample)>> = BTreeMap::new();
    for (&concept, samples) in samples {
        for (place, sample) in samples.iter().enumerate() {
            images.entry(&sample.image).or_default().push((concept, place, sample));
        }
    }
    images
}

/// Cuts the sampled segments of each concept out of their images, as squares of [`TILE`] pixels.
///
/// # Errors
/// As [`cut`].
pub fn tiles(
    model: &Arc<Model>,
    images: &ImageSet,
    short_side: u32,
    settings: &SegmentationConfig,
    samples: &BTreeMap<u16, Vec<Sample>>,
    tick: &(dyn Fn() + Sync),
) -> Result<BTreeMap<u16, Vec<RgbImage>>, EvaluateError> {
    let mut tiles: BTreeMap<u16, Vec<RgbImage>> = BTreeMap::new();
    for ((concept, _), tile) in cut(model, images, short_side, settings, samples, TILE, tick)? {
        tiles.entry(concept).or_default().push(tile);
    }
    Ok(tiles)
}

/// Cuts the sampled segments out of their images, on all cores: squares of `side` pixels by
/// concept and place among its samples. The images are labelled again; `tick` is called after
/// each. A segment that is not found again is left out.
///
/// # Errors
/// [`EvaluateError::Record`] where a sample's image is not among `images`.
pub fn cut(
    model: &Arc<Model>,
    images: &ImageSet,
    short_side: u32,
    settings: &SegmentationConfig,
    samples: &BTreeMap<u16, Vec<Sample>>,
    side: u32,
    tick: &(dyn Fn() + Sync),
) -> Result<BTreeMap<(u16, usize), RgbImage>, EvaluateError> {
    let index: HashMap<&str, usize> = (0..images.len()).map(|i| (images.name(i), i)).collect();
    let work: Vec<_> = by_image(samples).into_iter().collect();
    let cut: Vec<Vec<((u16, usize), RgbImage)>> = work
        .par_iter()
        .with_max_len(1)
        .map_init(
            || Recorder::new(model, short_side, settings),
            |recorder, (name, samples)| {
                let &index = index.get(name).ok_or_else(|| EvaluateError::Record {
                    image: (*name).to_owned(),
                    what: "its record has no image in this data set".to_owned(),
                })?;
                let image = images.read_image(index)?;
                let map = recorder.label(&image)?;
                let cut = samples.iter().filter_map(|&(concept, place, sample)| {
                    let segment = find(map, concept, sample)?;
                    Some(((concept, place), tile(&image, map, segment, side)))
                });
                let cut = cut.collect();
                tick();
                Ok(cut)
            },
        )
        .collect::<Result<_, EvaluateError>>()?;
    Ok(cut.into_iter().flatten().collect())
}

/// The segment of `map` that a sample means. Another machine may have rounded its borders
/// otherwise: the one of the concept that covers the most of the same box is taken.
fn find(map: &ConceptMap, concept: u16, sample: &Sample) -> Option<usize> {
    let overlap = |bbox: [u32; 4]| -> f64 {
        let along = |axis: usize| {
            let end = |b: [u32; 4]| b[axis].saturating_add(b[axis + 2]);
            let low = bbox[axis].max(sample.bbox[axis]);
            f64::from(end(bbox).min(end(sample.bbox)).saturating_sub(low))
        };
        let area = |b: [u32; 4]| f64::from(b[2]) * f64::from(b[3]);
        let both = along(0) * along(1);
        both / (area(bbox) + area(sample.bbox) - both).max(1.0)
    };
    let candidates = map.segment_list.iter().enumerate().filter(|(_, s)| s.concept == concept);
    candidates
        .map(|(i, s)| (overlap(s.bbox), s.area.abs_diff(sample.area), i))
        .filter(|&(overlap, ..)| overlap > 0.0)
        .min_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))))
        .map(|(.., i)| i)
}

/// The segment in its colours, what is around it in light grey, as a square.
fn tile(image: &RgbImage, map: &ConceptMap, segment: usize, side: u32) -> RgbImage {
    let [x, y, w, h] = window(map.segment_list[segment].bbox, image.dimensions());
    let mut crop = imageops::crop_imm(image, x, y, w, h).to_image();
    for (dx, dy, pixel) in crop.enumerate_pixels_mut() {
        let at = (y + dy) as usize * map.width as usize + (x + dx) as usize;
        if usize::from(map.segments[at]) != segment {
            *pixel = dimmed(*pixel);
        }
    }
    let longer = w.max(h);
    let scaled = |length: u32| (length * side).div_ceil(longer).clamp(1, side);
    let (w, h) = (scaled(w), scaled(h));
    let crop = imageops::resize(&crop, w, h, FilterType::Triangle);
    let mut tile = RgbImage::from_pixel(side, side, PAPER);
    let (x, y) = ((side - w) / 2, (side - h) / 2);
    imageops::replace(&mut tile, &crop, i64::from(x), i64::from(y));
    tile
}

/// The box of a segment with an eighth of it around, as square as the image allows.
fn window([x, y, w, h]: [u32; 4], (width, height): (u32, u32)) -> [u32; 4] {
    let side = (w.max(h) + w.max(h) / 4).max(MIN_SIDE);
    let along = |start: u32, length: u32, limit: u32| {
        let side = side.min(limit);
        let low = (2 * start + length).saturating_sub(side) / 2;
        (low.min(limit - side), side)
    };
    let ((x, w), (y, h)) = (along(x, w, width), along(y, h, height));
    [x, y, w, h]
}

/// A pixel that does not belong to the segment.
fn dimmed(pixel: Rgb<u8>) -> Rgb<u8> {
    let [r, g, b] = pixel.0.map(u32::from);
    // Rec. 601 luma in 256ths.
    let grey = ((77 * r + 150 * g + 29 * b) >> 8) as u8;
    Rgb([text::mix(grey, 236, 170); 3])
}

/// Lays the rows out on pages of [`CONCEPTS_PER_PAGE`] concepts.
pub fn pages(rows: &[Row<'_>]) -> Vec<RgbImage> {
    let tiles = rows.iter().map(|row| row.tiles.len()).max().unwrap_or(0).max(1) as u32;
    // Headings need room even over a single tile.
    let column = (tiles * (TILE + GAP) - GAP).max(70 * text::ADVANCE);
    let line = text::LINE + 4 + TILE + 12;
    rows.chunks(CONCEPTS_PER_PAGE)
        .map(|rows| {
            let in_column = rows.len().div_ceil(COLUMNS).max(1);
            let columns = rows.len().div_ceil(in_column) as u32;
            let mut page = RgbImage::from_pixel(
                MARGIN + columns * (column + MARGIN),
                2 * MARGIN + in_column as u32 * line - 12,
                PAPER,
            );
            for (i, row) in rows.iter().enumerate() {
                let x = MARGIN + (i / in_column) as u32 * (column + MARGIN);
                let y = MARGIN + (i % in_column) as u32 * line;
                text::write(&mut page, (x, y), column, row.heading, INK);
                for (j, tile) in (0u32..).zip(row.tiles) {
                    let at = (x + j * (TILE + GAP), y + text::LINE + 4);
                    imageops::replace(&mut page, tile, i64::from(at.0), i64::from(at.1));
                }
            }
            page
        })
        .collect()
}

/// A picture as the bytes of a JPEG file.
///
/// # Errors
/// [`EvaluateError::Plot`] for one without pixels.
pub fn jpeg(image: &RgbImage) -> Result<Vec<u8>, EvaluateError> {
    let mut bytes = Vec::new();
    image
        .write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, QUALITY))
        .map_err(|e| EvaluateError::Plot(e.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::concepts::ConceptSegment;

    /// A red image whose segments are: all, but for 4x4 pixels in the middle.
    fn ring() -> (RgbImage, ConceptMap) {
        let inside = |x: u32, y: u32| (38..42).contains(&x) && (18..22).contains(&y);
        let segments =
            (0..40).flat_map(|y| (0..80).map(move |x| u16::from(inside(x, y)))).collect();
        let segment = |area, bbox| ConceptSegment { concept: 3, similarity: 1.0, area, bbox };
        let map = ConceptMap {
            width: 80,
            height: 40,
            concepts: vec![3; 3200],
            segments,
            segment_list: vec![segment(3184, [0, 0, 80, 40]), segment(16, [38, 18, 4, 4])],
        };
        (RgbImage::from_pixel(80, 40, Rgb([200, 0, 0])), map)
    }

    #[test]
    fn a_tile_shows_the_segment_in_colour_and_the_rest_in_grey() {
        let (image, map) = ring();
        let grey = dimmed(Rgb([200, 0, 0])).0;
        assert!(grey[0] == grey[1] && grey[1] == grey[2]);
        // The whole image is 2:1, letterboxed.
        let all = tile(&image, &map, 0, TILE);
        assert_eq!(all.dimensions(), (TILE, TILE));
        assert_eq!(all.get_pixel(44, 44).0, grey);
        assert_eq!(all.get_pixel(4, 44).0, [200, 0, 0]);
        assert_eq!(all.get_pixel(44, 4), &PAPER);
        // A small one is cut out with at least 32 pixels around its centre.
        let small = tile(&image, &map, 1, TILE);
        assert_eq!(small.get_pixel(44, 44).0, [200, 0, 0]);
        assert_eq!(small.get_pixel(24, 44).0, grey);
    }

    #[test]
    fn windows_are_squares_within_the_image() {
        assert_eq!(window([100, 100, 40, 20], (500, 400)), [95, 85, 50, 50]);
        assert_eq!(window([0, 0, 40, 20], (500, 400)), [0, 0, 50, 50]);
        assert_eq!(window([480, 390, 20, 10], (500, 400)), [468, 368, 32, 32]);
        assert_eq!(window([0, 0, 500, 400], (500, 400)), [0, 0, 500, 400]);
        assert_eq!(window([0, 0, 3, 3], (3, 3)), [0, 0, 3, 3]);
    }

    #[test]
    fn a_sample_is_found_again_where_borders_moved_a_little() {
        let (_, map) = ring();
        let sample = |area, bbox| Sample { image: "a".to_owned(), segment: 9, area, bbox };
        assert_eq!(find(&map, 3, &sample(16, [38, 18, 4, 4])), Some(1));
        assert_eq!(find(&map, 3, &sample(20, [38, 18, 5, 4])), Some(1));
        assert_eq!(find(&map, 3, &sample(3184, [0, 0, 80, 40])), Some(0));
        assert_eq!(find(&map, 4, &sample(16, [38, 18, 4, 4])), None);
        assert_eq!(find(&map, 3, &sample(1, [900, u32::MAX, 1, 1])), None);
    }

    #[test]
    fn rows_fill_pages_in_two_columns() {
        let tiles = vec![RgbImage::from_pixel(TILE, TILE, Rgb([0, 90, 0])); 8];
        let rows: Vec<Row<'_>> = (0..40).map(|_| Row { heading: "17", tiles: &tiles }).collect();
        let pages = pages(&rows);
        assert_eq!(pages.len(), 2);
        assert_eq!(pages[0].width(), pages[1].width());
        assert!(pages[1].height() < pages[0].height());
        let bottom = (pages[0].width() - MARGIN - 1, pages[0].height() - MARGIN - 1);
        assert_eq!(pages[0].get_pixel(bottom.0, bottom.1).0, [0, 90, 0]);
        assert_eq!(pages[0].get_pixel(bottom.0 + 1, bottom.1), &PAPER);
        assert_eq!(super::pages(&rows[..1])[0].height(), 2 * MARGIN + text::LINE + 4 + TILE);
        assert!(super::pages(&[]).is_empty());
        let bytes = jpeg(&pages[1]).unwrap();
        let back = image::load_from_memory(&bytes).unwrap();
        assert_eq!((back.width(), back.height()), pages[1].dimensions());
    }
}
