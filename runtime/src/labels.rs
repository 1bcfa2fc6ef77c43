//! Label maps: one small integer per pixel, as instance masks and annotations are stored.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use crate::files::write_atomic;

/// Largest width or height that is read from a file.
pub const MAX_SIDE: u32 = 16_384;

/// Why a label map could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabelError {
    /// The file could not be opened or written.
    #[error("cannot access the label map {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The file is not a PNG or is damaged.
    #[error("{path} is not a readable PNG ({reason}); give a PNG whose pixel values are label ids")]
    Png {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        reason: String,
    },
    /// The PNG stores colours instead of ids.
    #[error(
        "{path} is a colour image ({kind}); label maps are palette or greyscale PNGs of at most 8 bits"
    )]
    Colour {
        /// The file.
        path: PathBuf,
        /// Colour type and depth found.
        kind: String,
    },
    /// The image is larger than [`MAX_SIDE`] allows.
    #[error("{path} is {width}x{height}; label maps may be at most {MAX_SIDE} pixels on a side")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
}

/// A row-major map of label ids, `data.len() == width * height`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelMap {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Ids, `[height, width]`. 0 is background; 255 is void in most data sets.
    pub data: Vec<u8>,
}

impl LabelMap {
    /// A map of background only.
    pub fn background(width: u32, height: u32) -> Self {
        Self { width, height, data: vec![0; width as usize * height as usize] }
    }

    /// Reads a palette or greyscale PNG of 1, 2, 4 or 8 bits and keeps the stored values:
    /// palette indices, or grey values without scaling them up to 8 bits.
    ///
    /// # Errors
    /// [`LabelError`] names the file and the reason.
    pub fn read_png(path: &Path) -> Result<Self, LabelError> {
        let file =
            File::open(path).map_err(|source| LabelError::Io { path: path.to_owned(), source })?;
        let png_error = |e: png::DecodingError| LabelError::Png {
            path: path.to_owned(),
            reason: e.to_string(),
        };
        let mut decoder = png::Decoder::new(BufReader::new(file));
        decoder.set_transformations(png::Transformations::IDENTITY);
        let mut reader = decoder.read_info().map_err(png_error)?;
        let (width, height) = (reader.info().width, reader.info().height);
        if width > MAX_SIDE || height > MAX_SIDE {
            return Err(LabelError::TooLarge { path: path.to_owned(), width, height });
        }
        let (color, depth) = reader.output_color_type();
        let bits = match (color, depth) {
            (png::ColorType::Indexed | png::ColorType::Grayscale, d)
                if d != png::BitDepth::Sixteen =>
            {
                d as usize
            }
            _ => {
                return Err(LabelError::Colour {
                    path: path.to_owned(),
                    kind: format!("{color:?}, {depth:?} bit"),
                });
            }
        };
        let size = reader.output_buffer_size().ok_or_else(|| LabelError::TooLarge {
            path: path.to_owned(),
            width,
            height,
        })?;
        let mut packed = vec![0; size];
        let info = reader.next_frame(&mut packed).map_err(png_error)?;
        let (w, h) = (width as usize, height as usize);
        let mut data = Vec::with_capacity(w * h);
        for row in packed.chunks_exact(info.line_size).take(h) {
            unpack_row(row, w, bits, &mut data);
        }
        Ok(Self { width, height, data })
    }

    /// Writes an 8-bit palette PNG in the DAVIS palette ([`PALETTE`]), which other
    /// tools of the field read as ids and people see as colours.
    ///
    /// # Errors
    /// [`LabelError::Io`] when the file cannot be written; nothing is left behind then.
    pub fn write_png(&self, path: &Path) -> Result<(), LabelError> {
        write_atomic(path, |w| {
            let mut encoder = png::Encoder::new(w, self.width, self.height);
            encoder.set_color(png::ColorType::Indexed);
            encoder.set_depth(png::BitDepth::Eight);
            encoder.set_palette(PALETTE.as_flattened());
            let mut writer = encoder.write_header().map_err(io::Error::other)?;
            writer.write_image_data(&self.data).map_err(io::Error::other)?;
            writer.finish().map_err(io::Error::other)
        })
        .map_err(|source| LabelError::Io { path: path.to_owned(), source })
    }

    /// The map resized by nearest neighbour, sampling at pixel centres.
    #[must_use]
    pub fn resized_nearest(&self, width: u32, height: u32) -> Self {
        if (width, height) == (self.width, self.height) {
            return self.clone();
        }
        let source_x: Vec<usize> =
            (0..width).map(|x| nearest_index(x, width, self.width)).collect();
        let mut data = Vec::with_capacity(width as usize * height as usize);
        for y in 0..height {
            let row = nearest_index(y, height, self.height) * self.width as usize;
            data.extend(source_x.iter().map(|x| self.data[row + x]));
        }
        Self { width, height, data }
    }

    /// Reads white on black as one instance: where just 0 and 255 occur, 255 becomes id 1.
    ///
    /// Masks drawn by hand and those of DAVIS 2016 look so, while beside other ids 255 is void.
    #[must_use]
    pub fn with_white_as_instance(mut self) -> Self {
        let both = self.data.contains(&0) && self.data.contains(&255);
        if both && self.data.iter().all(|&id| id == 0 || id == 255) {
            for id in &mut self.data {
                *id = u8::from(*id == 255);
            }
        }
        self
    }

    /// The ids that occur, in rising order, without background (0) and void (255).
    pub fn instance_ids(&self) -> Vec<u8> {
        let ids: BTreeSet<u8> = self.data.iter().copied().collect();
        ids.into_iter().filter(|&id| id != 0 && id != 255).collect()
    }
}

/// Index of the source pixel whose area holds the centre of target pixel `i`.
fn nearest_index(i: u32, target: u32, source: u32) -> usize {
    let centre = (u64::from(i) * 2 + 1) * u64::from(source) / (u64::from(target) * 2);
    centre.min(u64::from(source) - 1) as usize
}

/// Spreads `width` values of `bits` bits each, most significant first, to one byte each.
fn unpack_row(row: &[u8], width: usize, bits: usize, out: &mut Vec<u8>) {
    if bits == 8 {
        out.extend_from_slice(&row[..width]);
        return;
    }
    let per_byte = 8 / bits;
    let mask = (1u8 << bits) - 1;
    out.extend((0..width).map(|x| {
        let shift = 8 - bits * (x % per_byte + 1);
        (row[x / per_byte] >> shift) & mask
    }));
}

/// The palette of PASCAL VOC and DAVIS: bit `i` of an id's three low bits, taken in
/// threes, sets bit `7 - i` of red, green and blue.
pub const PALETTE: [[u8; 3]; 256] = palette();

const fn palette() -> [[u8; 3]; 256] {
    let mut table = [[0u8; 3]; 256];
    let mut id = 0;
    while id < 256 {
        let mut rest = id;
        let mut bit = 0;
        while bit < 8 {
            table[id][0] |= ((rest & 1) as u8) << (7 - bit);
            table[id][1] |= (((rest >> 1) & 1) as u8) << (7 - bit);
            table[id][2] |= (((rest >> 2) & 1) as u8) << (7 - bit);
            rest >>= 3;
            bit += 1;
        }
        id += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_palette_is_that_of_davis() {
        assert_eq!(PALETTE[0], [0, 0, 0]);
        assert_eq!(PALETTE[1], [128, 0, 0]);
        assert_eq!(PALETTE[2], [0, 128, 0]);
        assert_eq!(PALETTE[3], [128, 128, 0]);
        assert_eq!(PALETTE[8], [64, 0, 0]);
        assert_eq!(PALETTE[255], [224, 224, 192]);
    }

    #[test]
    fn a_written_map_reads_back_equal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.png");
        let map = LabelMap { width: 3, height: 2, data: vec![0, 1, 2, 255, 7, 0] };
        map.write_png(&path).unwrap();
        assert_eq!(LabelMap::read_png(&path).unwrap(), map);
        assert_eq!(map.instance_ids(), [1, 2, 7]);
    }

    #[test]
    fn white_is_an_instance_only_where_there_is_no_other() {
        let white = LabelMap { width: 3, height: 1, data: vec![0, 255, 255] };
        assert_eq!(white.with_white_as_instance().data, [0, 1, 1]);
        let void = LabelMap { width: 3, height: 1, data: vec![0, 2, 255] };
        assert_eq!(void.clone().with_white_as_instance(), void);
    }

    #[test]
    fn packed_rows_unpack_from_the_high_bits() {
        let mut out = Vec::new();
        unpack_row(&[0b1010_0001, 0b1000_0000], 9, 1, &mut out);
        assert_eq!(out, [1, 0, 1, 0, 0, 0, 0, 1, 1]);
        out.clear();
        unpack_row(&[0x12, 0x30], 3, 4, &mut out);
        assert_eq!(out, [1, 2, 3]);
    }

    #[test]
    fn nearest_resize_keeps_the_corners_and_only_known_ids() {
        let map = LabelMap { width: 4, height: 2, data: vec![1, 1, 2, 2, 3, 3, 4, 4] };
        assert_eq!(map.resized_nearest(2, 2).data, [1, 2, 3, 4]);
        assert_eq!(map.resized_nearest(8, 2).data[..8], [1, 1, 1, 1, 2, 2, 2, 2]);
    }

    #[test]
    fn colour_images_and_garbage_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("colour.png");
        image::RgbImage::new(2, 2).save(&path).unwrap();
        let message = LabelMap::read_png(&path).unwrap_err().to_string();
        assert!(message.contains("colour.png") && message.contains("colour image"), "{message}");
        std::fs::write(&path, b"not a png").unwrap();
        assert!(matches!(LabelMap::read_png(&path), Err(LabelError::Png { .. })));
    }
}
