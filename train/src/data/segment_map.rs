//! The pseudo segments of one image, in memory and as PNG files of ids.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;

use conceptseg::files::write_atomic;
use conceptseg::labels::LabelMap;

use super::images::MAX_SIDE;
use super::{DataError, VOID};

/// Keyword of the PNG text chunk that holds the key of a cached map.
const KEY_CHUNK: &str = "conceptseg-key";

/// The segment of every pixel of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentMap {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Row-major, `height * width`; ids count from 0 in the order of their first pixel,
    /// [`VOID`] marks pixels of no segment.
    pub ids: Vec<u16>,
}

impl SegmentMap {
    /// Numbers arbitrary `labels` (row-major, `None` for no segment) in the order of their
    /// first pixel. `None` when there are more than 65535 different ones.
    pub(crate) fn numbered(
        width: u32,
        height: u32,
        labels: impl Iterator<Item = Option<u32>>,
    ) -> Option<Self> {
        let mut number = HashMap::new();
        let mut last = (None, VOID);
        let mut ids = Vec::with_capacity(width as usize * height as usize);
        for label in labels {
            // Segments are runs: most pixels have the label of the one before.
            if label != last.0 {
                let id = match label {
                    None => VOID,
                    Some(label) => {
                        let next = number.len();
                        let id = *number.entry(label).or_insert(next);
                        u16::try_from(id).ok().filter(|&id| id != VOID)?
                    }
                };
                last = (label, id);
            }
            ids.push(last.1);
        }
        Some(Self { width, height, ids })
    }

    /// Number of segments.
    pub fn count(&self) -> usize {
        self.ids.iter().filter(|&&id| id != VOID).max().map_or(0, |&id| usize::from(id) + 1)
    }

    /// The map at another size: every pixel has the segment under its centre. Segments that
    /// vanish are left out of the numbering.
    #[must_use]
    pub fn resized(&self, width: u32, height: u32) -> Self {
        if (width, height) == (self.width, self.height) {
            return self.clone();
        }
        let at = |i: u32, to: u32, from: u32| {
            ((2 * u64::from(i) + 1) * u64::from(from) / (2 * u64::from(to))) as usize
        };
        let columns: Vec<usize> = (0..width).map(|x| at(x, width, self.width)).collect();
        let labels = (0..height).flat_map(|y| {
            let row = at(y, height, self.height) * self.width as usize;
            columns.iter().map(move |x| self.ids[row + x])
        });
        let labels = labels.map(|id| (id != VOID).then_some(u32::from(id)));
        // No more segments than before, so there are enough numbers.
        Self::numbered(width, height, labels).unwrap_or_else(|| self.clone())
    }

    /// Reads a PNG of ids: greyscale of 16 bits, where 65535 is void, or greyscale or palette
    /// of up to 8 bits, where 255 is void if `void_255` says so and a segment like any other
    /// if not. Ids are numbered anew.
    ///
    /// # Errors
    /// [`DataError::Read`], [`DataError::Segments`] for anything but such a PNG of at most
    /// 16384 pixels on a side.
    pub fn read_png(path: &Path, void_255: bool) -> Result<Self, DataError> {
        let mut reader = open_png(path)?;
        let bad = |reason: String| DataError::Segments { path: path.to_owned(), reason };
        let kind = reader.output_color_type();
        if kind != (png::ColorType::Grayscale, png::BitDepth::Sixteen) {
            drop(reader);
            let map = LabelMap::read_png(path).map_err(|error| bad(error.to_string()))?;
            let labels = map.data.iter().map(|&id| (id != 255 || !void_255).then_some(id.into()));
            return Self::numbered(map.width, map.height, labels)
                .ok_or_else(|| bad("too many segments".into()));
        }
        let (width, height) = (reader.info().width, reader.info().height);
        let area = width as usize * height as usize;
        if reader.output_buffer_size() != Some(2 * area) {
            return Err(bad("rows of an unexpected length".into()));
        }
        let mut bytes = vec![0; 2 * area];
        reader.next_frame(&mut bytes).map_err(|error| bad(error.to_string()))?;
        let labels = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        Self::numbered(width, height, labels.map(|id| (id != VOID).then_some(id.into())))
            .ok_or_else(|| bad("more than 65535 segments".into()))
    }

    /// Writes the ids as a 16-bit greyscale PNG, with `key` in a text chunk
    /// (see [`read_key`]). The file appears whole or not at all.
    ///
    /// # Errors
    /// [`DataError::Write`].
    pub fn write_png(&self, path: &Path, key: &str) -> Result<(), DataError> {
        let bytes: Vec<u8> = self.ids.iter().flat_map(|id| id.to_be_bytes()).collect();
        write_atomic(path, |w| {
            let mut encoder = png::Encoder::new(w, self.width, self.height);
            encoder.set_color(png::ColorType::Grayscale);
            encoder.set_depth(png::BitDepth::Sixteen);
            encoder
                .add_text_chunk(KEY_CHUNK.to_owned(), key.to_owned())
                .map_err(io::Error::other)?;
            let mut writer = encoder.write_header().map_err(io::Error::other)?;
            writer.write_image_data(&bytes).map_err(io::Error::other)?;
            writer.finish().map_err(io::Error::other)
        })
        .map_err(|source| DataError::Write { path: path.to_owned(), source })
    }
}

/// The key with which [`SegmentMap::write_png`] wrote a file; `None` for any other file.
pub fn read_key(path: &Path) -> Option<String> {
    let reader = open_png(path).ok()?;
    let texts = &reader.info().uncompressed_latin1_text;
    texts.iter().find(|chunk| chunk.keyword == KEY_CHUNK).map(|chunk| chunk.text.clone())
}

/// Opens a PNG without changes to its samples.
fn open_png(path: &Path) -> Result<png::Reader<BufReader<File>>, DataError> {
    let file =
        File::open(path).map_err(|source| DataError::Read { path: path.to_owned(), source })?;
    let bad = |reason: String| DataError::Segments { path: path.to_owned(), reason };
    let mut decoder = png::Decoder::new(BufReader::new(file));
    decoder.set_transformations(png::Transformations::IDENTITY);
    let reader = decoder.read_info().map_err(|error| bad(error.to_string()))?;
    let (width, height) = (reader.info().width, reader.info().height);
    if width > MAX_SIDE || height > MAX_SIDE {
        return Err(bad(format!("{width}x{height} pixels, more than {MAX_SIDE} on a side")));
    }
    Ok(reader)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_of_sixteen_bits_come_back_with_void_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let map = SegmentMap { width: 3, height: 2, ids: vec![0, 0, 1, VOID, 2, 1] };
        map.write_png(&path, "abc").unwrap();
        assert_eq!(SegmentMap::read_png(&path, false).unwrap(), map);
        assert_eq!((map.count(), read_key(&path).as_deref()), (3, Some("abc")));
        assert_eq!(read_key(&dir.path().join("absent.png")), None);
    }

    #[test]
    fn in_eight_bits_255_is_void_only_when_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        // Palette indices as the predecessors' id files have them, in arbitrary order.
        LabelMap { width: 4, height: 1, data: vec![7, 255, 3, 7] }.write_png(&path).unwrap();
        assert_eq!(SegmentMap::read_png(&path, false).unwrap().ids, [0, 1, 2, 0]);
        assert_eq!(SegmentMap::read_png(&path, true).unwrap().ids, [0, VOID, 1, 0]);
        let grey = image::GrayImage::from_raw(2, 1, vec![255, 9]).unwrap();
        grey.save(&path).unwrap();
        assert_eq!(SegmentMap::read_png(&path, true).unwrap().ids, [VOID, 0]);
    }

    #[test]
    fn all_65535_ids_of_sixteen_bits_are_possible() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let map = SegmentMap { width: 256, height: 256, ids: (0..=VOID).collect() };
        map.write_png(&path, "").unwrap();
        let read = SegmentMap::read_png(&path, true).unwrap();
        assert_eq!((read.count(), read == map), (65535, true));
    }

    #[test]
    fn files_that_hold_no_ids_are_errors_that_name_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        image::RgbImage::new(2, 2).save(&path).unwrap();
        let text = SegmentMap::read_png(&path, false).unwrap_err().to_string();
        assert!(text.contains("a.png") && text.contains("colour"), "{text}");
        let map = SegmentMap { width: 64, height: 64, ids: vec![1; 64 * 64] };
        map.write_png(&path, "").unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for cut in [0, 20, bytes.len() / 2] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(SegmentMap::read_png(&path, false).is_err(), "{cut}");
        }
    }

    proptest! {
        #[test]
        fn a_resized_map_shows_the_segment_under_each_centre(
            ids in prop::collection::vec(0_u32..5, 7 * 6),
            width in 1_u32..15,
            height in 1_u32..15,
        ) {
            let labels = ids.iter().map(|&id| (id != 4).then_some(id));
            let map = SegmentMap::numbered(7, 6, labels).unwrap();
            let resized = map.resized(width, height);
            let mut of = HashMap::new();
            for y in 0..height {
                for x in 0..width {
                    let sx = ((f64::from(x) + 0.5) * 7.0 / f64::from(width)) as usize;
                    let sy = ((f64::from(y) + 0.5) * 6.0 / f64::from(height)) as usize;
                    let (from, to) =
                        (map.ids[sy * 7 + sx], resized.ids[(y * width + x) as usize]);
                    prop_assert_eq!(*of.entry(from).or_insert(to), to);
                    prop_assert_eq!(from == VOID, to == VOID);
                }
            }
            let segments = of.keys().filter(|&&id| id != VOID).count();
            prop_assert_eq!(segments, resized.count());
        }
    }
}
