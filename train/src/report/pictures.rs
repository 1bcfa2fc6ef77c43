//! Pictures of a page: segments, embeddings in colours, and what the concepts stand for.

use std::io::Cursor;

use anyhow::{Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use conceptseg::backend::BackendOptions;
use conceptseg::bundle::SizeRule;
use conceptseg::concepts::{ConceptLabeler, ConceptMap, ConceptSegment, SegmentationConfig};
use conceptseg::embed::{EmbeddingMap, Model};
use conceptseg::frame::{FrameView, Normalization, Preprocessor, network_size};
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use tch::{Kind, Tensor};

use super::Source;
use crate::data::overlay;

/// Most images that are looked at for the concepts.
pub const IMAGES: usize = 120;
/// Images of which pictures are shown.
const SHOWN: usize = 6;
/// Width of a picture in pixels.
const WIDTH: u32 = 320;
/// Concepts that are shown.
const CONCEPTS: usize = 12;
/// Segments shown for a concept.
const CROPS: usize = 8;
/// Longer side of a segment's picture in pixels.
const CROP_SIDE: u32 = 112;
/// Segments below this share of the image show nothing.
const SMALLEST_SHARE: f64 = 0.005;
/// Share of values that may lie outside of a colour's range, at each of its ends.
const OUTLIERS: f64 = 0.02;
/// Quality of JPEG pictures, of 100.
const QUALITY: u8 = 85;

/// An image in three ways, as data URIs.
pub(super) struct Shown {
    pub name: String,
    pub image: String,
    pub segments: String,
    /// The first three principal components of the embeddings as red, green and blue.
    pub embedding: String,
}

/// A concept and its most similar segments, as data URIs with the similarity.
pub(super) struct Concept {
    pub id: usize,
    /// Segments found in the images looked at.
    pub count: usize,
    pub crops: Vec<(f32, String)>,
}

/// All pictures.
pub(super) struct Pictures {
    pub shown: Vec<Shown>,
    pub concepts: Vec<Concept>,
    /// Images that were looked at.
    pub images: usize,
}

/// Labels up to [`IMAGES`] images, evenly spread, with the bundle.
pub(super) fn gather(source: &Source<'_>, tick: &dyn Fn()) -> Result<Pictures> {
    let model = Model::open(source.bundle, &BackendOptions::default())?;
    let manifest = &model.bundle().manifest;
    let (mean, std) = (manifest.input.mean, manifest.input.std);
    let mut preprocessor = Preprocessor::new(Normalization { mean, std });
    let mut labeler = ConceptLabeler::default();
    let settings = SegmentationConfig::default();
    let (mut input, mut scratch, mut map) = (Vec::new(), Vec::new(), ConceptMap::default());
    let mut best = Best::new(model.codebook().count);
    let mut embedded = Vec::new();
    let chosen = spread(source.dataset.len(), IMAGES);
    let show = spread(chosen.len(), SHOWN);
    let mut images = 0;
    for (place, &index) in chosen.iter().enumerate() {
        tick();
        // A file that has vanished is no reason to show nothing.
        let Ok(prepared) = source.dataset.get(index) else { continue };
        let rgb = &prepared.rgb;
        let (width, height) = rgb.dimensions();
        let frame = FrameView::rgb(width, height, rgb.as_raw())?;
        let (w, h) = match manifest.embedder.size {
            SizeRule::Dynamic => network_size(width, height, source.config.data.short_side),
            SizeRule::Fixed([h, w]) => (w, h),
        };
        preprocessor.run(&frame, w, h, &mut input)?;
        let mut embedding = EmbeddingMap::default();
        model.embed(&input, w as usize, h as usize, &mut scratch, &mut embedding)?;
        labeler.label(&embedding, model.codebook(), &settings, width, height, &mut map)?;
        best.add(rgb, &map)?;
        if show.contains(&place) {
            embedded.push((index, embedding));
        }
        images += 1;
    }
    ensure!(images > 0, "none of the images can be read any more");
    let maps: Vec<&EmbeddingMap> = embedded.iter().map(|(_, map)| map).collect();
    let mut shown = Vec::new();
    for ((index, _), colours) in embedded.iter().zip(principal_colours(&maps)?) {
        let Ok(prepared) = source.dataset.get(*index) else { continue };
        let segments = overlay::draw(&prepared.rgb, &prepared.segments)?;
        let (width, height) = fit(prepared.rgb.dimensions(), WIDTH);
        let sized =
            |image: &RgbImage, filter| jpeg(&imageops::resize(image, width, height, filter));
        shown.push(Shown {
            name: source
                .dataset
                .path(*index)
                .and_then(|path| path.file_name())
                .map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            image: sized(&prepared.rgb, FilterType::Triangle)?,
            segments: sized(&segments, FilterType::Triangle)?,
            embedding: sized(&colours, FilterType::Triangle)?,
        });
    }
    Ok(Pictures { shown, concepts: best.finish(), images })
}

/// At most `count` of the numbers below `length`, the first and the last among them.
fn spread(length: usize, count: usize) -> Vec<usize> {
    let count = count.min(length);
    (0..count).map(|i| i * (length - 1) / (count - 1).max(1)).collect()
}

/// Size of an image whose longer side is at most `side` pixels.
fn fit((width, height): (u32, u32), side: u32) -> (u32, u32) {
    let longer = f64::from(width.max(height).max(1));
    let scale = |s: u32| (f64::from(s) * f64::from(side) / longer).round().max(1.0) as u32;
    (scale(width), scale(height))
}

fn jpeg(image: &RgbImage) -> Result<String> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, QUALITY))?;
    Ok(format!("data:image/jpeg;base64,{}", STANDARD.encode(bytes.into_inner())))
}

/// One picture for each map, one pixel per cell: the first three principal components of the
/// embeddings of all maps together, so that a colour means the same in every picture (figure 3
/// of the paper).
fn principal_colours(maps: &[&EmbeddingMap]) -> Result<Vec<RgbImage>> {
    let Some(dim) = maps.first().map(|map| map.dim) else { return Ok(Vec::new()) };
    let cells: Vec<Tensor> = maps
        .iter()
        .map(|map| Tensor::from_slice(&map.data).view([-1, dim as i64]).to_kind(Kind::Double))
        .collect();
    let all = Tensor::cat(&cells, 0);
    let centred = &all - all.mean_dim(0, true, Kind::Double);
    let covariance = centred.transpose(0, 1).matmul(&centred) / all.size()[0] as f64;
    // Eigenvalues ascend.
    let (_, vectors) = covariance.f_linalg_eigh("L")?;
    let components = (dim as i64).min(3);
    let axes = vectors.narrow(1, dim as i64 - components, components).flip([1]);
    let values = Vec::<f64>::try_from(centred.matmul(&axes).reshape([-1]))?;
    let components = components as usize;
    let ranges: Vec<(f64, f64)> = (0..components)
        .map(|c| {
            let mut sorted: Vec<f64> = values.iter().skip(c).step_by(components).copied().collect();
            sorted.sort_unstable_by(f64::total_cmp);
            let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
            (at(OUTLIERS), at(1.0 - OUTLIERS))
        })
        .collect();
    let mut rows = values.chunks_exact(components);
    let mut pictures = Vec::new();
    for map in maps {
        let mut picture = RgbImage::new(map.width as u32, map.height as u32);
        for (pixel, row) in picture.pixels_mut().zip(&mut rows) {
            for ((channel, value), (low, high)) in pixel.0.iter_mut().zip(row).zip(&ranges) {
                let share = (value - low) / (high - low).max(1e-12);
                *channel = (255.0 * share.clamp(0.0, 1.0)).round() as u8;
            }
        }
        pictures.push(picture);
    }
    Ok(pictures)
}

/// The most similar segments of every concept so far.
struct Best {
    counts: Vec<usize>,
    crops: Vec<Vec<(f32, RgbImage)>>,
}

impl Best {
    fn new(concepts: usize) -> Self {
        Self { counts: vec![0; concepts], crops: vec![Vec::new(); concepts] }
    }

    /// Takes in the segments of an image; each concept gets at most one crop from it, so that
    /// a row shows several images.
    fn add(&mut self, image: &RgbImage, map: &ConceptMap) -> Result<()> {
        let area = f64::from(map.width) * f64::from(map.height);
        let mut of_image: Vec<Option<usize>> = vec![None; self.counts.len()];
        for (i, segment) in map.segment_list.iter().enumerate() {
            if f64::from(segment.area) < SMALLEST_SHARE * area {
                continue;
            }
            let concept = usize::from(segment.concept);
            ensure!(concept < self.counts.len(), "the labelling names a concept that is not there");
            self.counts[concept] += 1;
            let better = of_image[concept]
                .is_none_or(|j| segment.similarity > map.segment_list[j].similarity);
            if better {
                of_image[concept] = Some(i);
            }
        }
        for (crops, chosen) in self.crops.iter_mut().zip(&of_image) {
            let Some(i) = *chosen else { continue };
            let segment = &map.segment_list[i];
            let worst = crops.last().map_or(f32::NEG_INFINITY, |c| c.0);
            if crops.len() == CROPS && segment.similarity <= worst {
                continue;
            }
            crops.push((segment.similarity, crop(image, map, i, segment)));
            crops.sort_by(|a, b| b.0.total_cmp(&a.0));
            crops.truncate(CROPS);
        }
        Ok(())
    }

    /// The concepts with the most segments.
    fn finish(self) -> Vec<Concept> {
        let mut all: Vec<_> = self.counts.into_iter().zip(self.crops).enumerate().collect();
        all.retain(|(_, (count, _))| *count > 0);
        all.sort_by_key(|&(id, (count, _))| (std::cmp::Reverse(count), id));
        all.truncate(CONCEPTS);
        all.into_iter()
            .map(|(id, (count, crops))| {
                let crops = crops
                    .iter()
                    .filter_map(|(similarity, image)| Some((*similarity, jpeg(image).ok()?)))
                    .collect();
                Concept { id, count, crops }
            })
            .collect()
    }
}

/// The box of a segment; what does not belong to it is darkened.
fn crop(image: &RgbImage, map: &ConceptMap, index: usize, segment: &ConceptSegment) -> RgbImage {
    let [x, y, w, h] = segment.bbox;
    let mut part = imageops::crop_imm(image, x, y, w, h).to_image();
    for (px, py, pixel) in part.enumerate_pixels_mut() {
        let at = (y + py) as usize * map.width as usize + (x + px) as usize;
        if map.segments.get(at).is_none_or(|&s| usize::from(s) != index) {
            *pixel = Rgb(pixel.0.map(|v| v / 5));
        }
    }
    let (width, height) = fit(part.dimensions(), CROP_SIDE);
    imageops::resize(&part, width, height, FilterType::Triangle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embedding(cells: &[[f32; 4]]) -> EmbeddingMap {
        EmbeddingMap {
            height: 1,
            width: cells.len(),
            dim: 4,
            stride: 8,
            data: cells.as_flattened().to_vec(),
        }
    }

    #[test]
    fn equal_embeddings_have_one_colour_in_all_pictures() {
        let (a, b, c) = ([1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.6, 0.8]);
        let maps = [embedding(&[a, b, a]), embedding(&[c, a])];
        let pictures = principal_colours(&[&maps[0], &maps[1]]).unwrap();
        let at = |picture: usize, x| pictures[picture].get_pixel(x, 0).0;
        assert_eq!((at(0, 0), at(0, 0)), (at(0, 2), at(1, 1)));
        assert!(at(0, 0) != at(0, 1) && at(0, 1) != at(1, 0) && at(0, 0) != at(1, 0));
    }

    #[test]
    fn a_concept_shows_its_most_similar_segment_of_each_image() {
        let image = RgbImage::from_pixel(4, 2, Rgb([200; 3]));
        let segment =
            |similarity, x| ConceptSegment { concept: 3, similarity, area: 4, bbox: [x, 0, 2, 2] };
        let mut best = Best::new(5);
        for similarity in [0.2, 0.9, 0.5] {
            let map = ConceptMap {
                width: 4,
                height: 2,
                concepts: vec![3; 8],
                segments: vec![0, 0, 1, 1, 0, 0, 1, 1],
                segment_list: vec![segment(similarity, 0), segment(0.1, 2)],
            };
            best.add(&image, &map).unwrap();
        }
        let found = best.finish();
        assert_eq!((found.len(), found[0].id, found[0].count), (1, 3, 6));
        let similarities: Vec<f32> = found[0].crops.iter().map(|c| c.0).collect();
        assert_eq!(similarities, [0.9, 0.5, 0.2]);
        assert!(found[0].crops[0].1.starts_with("data:image/jpeg;base64,"));
    }

    #[test]
    fn what_surrounds_a_segment_is_dark() {
        let image = RgbImage::from_pixel(4, 1, Rgb([200; 3]));
        let segment = ConceptSegment { concept: 0, similarity: 1.0, area: 2, bbox: [0, 0, 4, 1] };
        let map = ConceptMap {
            width: 4,
            height: 1,
            concepts: vec![0; 4],
            segments: vec![0, 1, 1, 0],
            segment_list: vec![segment, segment],
        };
        let part = crop(&image, &map, 0, &segment);
        assert_eq!(part.get_pixel(2, 0).0, [200; 3]);
        assert_eq!(part.get_pixel(56, 0).0, [40; 3]);
    }
}
