//! Segments of `panoptic_*.json`: a PNG of segment ids (R + 256 G + 65536 B) for each image, and
//! the category of each segment.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::json::{Lists, RawPanoptic};
use super::{CocoError, VOID, Wanted, class_of, plain};
use crate::labels::LabelMap;

/// What a file without segments is told not to be.
const EXPECTED: &str = "a file of COCO panoptic segments (panoptic_*.json)";

/// The segments of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PanopticLabels {
    file: Arc<Path>,
    mask: PathBuf,
    width: u32,
    height: u32,
    /// Id and label of each segment, by id.
    segments: Box<[(u32, u8)]>,
    class_pixels: u64,
}

impl PanopticLabels {
    /// The annotation file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The PNG.
    pub fn mask(&self) -> &Path {
        &self.mask
    }

    /// Number of pixels that have one of the 20 classes, as the annotation file gives it.
    pub fn class_pixels(&self) -> u64 {
        self.class_pixels
    }

    /// Reads the PNG. Segments of the 20 classes have their class, crowds of them and pixels of
    /// no segment are void, all others are background.
    pub fn read(&self) -> Result<LabelMap, CocoError> {
        let refuse = |what| CocoError::Mask { path: self.mask.clone(), what };
        let unreadable = |e: png::DecodingError| refuse(format!("is not a readable PNG ({e})"));
        let file = File::open(&self.mask)
            .map_err(|source| CocoError::Io { path: self.mask.clone(), source })?;
        let mut decoder = png::Decoder::new(BufReader::new(file));
        decoder.set_transformations(png::Transformations::IDENTITY);
        let mut reader = decoder.read_info().map_err(unreadable)?;
        let (width, height) = (reader.info().width, reader.info().height);
        if (width, height) != (self.width, self.height) {
            return Err(refuse(format!(
                "is {width}x{height}, but {} says {}x{}",
                self.file.display(),
                self.width,
                self.height
            )));
        }
        let step = match reader.output_color_type() {
            (png::ColorType::Rgb, png::BitDepth::Eight) => 3,
            (png::ColorType::Rgba, png::BitDepth::Eight) => 4,
            (colour, depth) => {
                return Err(refuse(format!(
                    "is a PNG of {colour:?} with {depth:?} bits; segment ids are stored as colours \
                     of 8 bits"
                )));
            }
        };
        let size = reader.output_buffer_size().ok_or_else(|| refuse("is too large".to_owned()))?;
        let mut pixels = vec![0; size];
        reader.next_frame(&mut pixels).map_err(unreadable)?;
        let mut map = LabelMap::background(width, height);
        // Neighbours mostly belong to one segment.
        let mut last = (0, VOID);
        for (place, (label, pixel)) in
            map.data.iter_mut().zip(pixels.chunks_exact(step)).enumerate()
        {
            let id = u32::from_le_bytes([pixel[0], pixel[1], pixel[2], 0]);
            if id != last.0 {
                last = self.segment(id).ok_or_else(|| {
                    let (x, y) = (place % width as usize, place / width as usize);
                    refuse(format!(
                        "holds the segment {id} at column {x}, row {y}, which {} does not describe",
                        self.file.display()
                    ))
                })?;
            }
            *label = last.1;
        }
        Ok(map)
    }

    /// The id and its label.
    fn segment(&self, id: u32) -> Option<(u32, u8)> {
        if id == 0 {
            return Some((0, VOID));
        }
        let at = self.segments.binary_search_by_key(&id, |segment| segment.0).ok()?;
        Some(self.segments[at])
    }
}

/// Reads the segments of the wanted images, in their order.
pub(super) fn read(
    path: &Path,
    masks: &Path,
    wanted: &Wanted,
) -> Result<Vec<PanopticLabels>, CocoError> {
    let file: Arc<Path> = path.into();
    let mut found: Vec<Option<PanopticLabels>> = wanted.images.iter().map(|_| None).collect();
    let mut take = |_: usize, raw: RawPanoptic| {
        let called = || format!("the annotation of image {}", raw.image_id);
        let Some(slot) = wanted.slot(path, raw.image_id, called)? else { return Ok(()) };
        let image = &wanted.images[slot];
        let wrong = |what: String| {
            Err(CocoError::Annotation { path: path.to_owned(), annotation: called(), what })
        };
        if found[slot].is_some() {
            return wrong("is there twice".to_owned());
        }
        if !plain(&raw.file_name) {
            return wrong(format!(
                "names the file \"{}\"; a relative path is needed",
                raw.file_name
            ));
        }
        let mut class_pixels = 0u64;
        let mut segments = Vec::with_capacity(raw.segments_info.len());
        for segment in &raw.segments_info {
            wanted.check_category(path, segment.category_id, called)?;
            let label = match class_of(segment.category_id) {
                None => 0,
                Some(_) if segment.iscrowd != 0 => VOID,
                Some(class) => {
                    class_pixels = class_pixels.saturating_add(segment.area);
                    class
                }
            };
            segments.push((segment.id, label));
        }
        segments.sort_unstable();
        if segments.first().is_some_and(|segment| segment.0 == 0) {
            return wrong("has a segment with the id 0, which stands for no segment".to_owned());
        }
        if let Some(pair) = segments.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return wrong(format!("has two segments with the id {}", pair[0].0));
        }
        found[slot] = Some(PanopticLabels {
            file: Arc::clone(&file),
            mask: masks.join(&raw.file_name),
            width: image.width,
            height: image.height,
            segments: segments.into(),
            class_pixels,
        });
        Ok(())
    };
    Lists { images: None, categories: None, annotations: Some(&mut take) }.read(path, EXPECTED)?;
    let pairs = found.into_iter().zip(&wanted.images);
    pairs
        .map(|(labels, image)| {
            labels.ok_or_else(|| CocoError::Image {
                path: path.to_owned(),
                id: image.id,
                what: "has no annotation; a panoptic file needs one for each image".to_owned(),
            })
        })
        .collect()
}
