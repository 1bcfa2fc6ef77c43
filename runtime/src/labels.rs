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
        "{path} is a colour image ({kind}); label maps are palette or greyscale PNGs of at most {bits} bits"
    )]
    Colour {
        /// The file.
        path: PathBuf,
        /// Colour type and depth found.
        kind: String,
        /// Bits of the deepest label map that is read here.
        bits: u8,
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
        let packed = Packed::read(path, png::BitDepth::Eight)?;
        let (width, height, data) = (packed.width, packed.height, packed.bytes());
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

/// A row-major map of ids that may exceed 255, such as concepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Ids, `[height, width]`.
    pub data: Vec<u16>,
}

impl IdMap {
    /// Reads a palette or greyscale PNG of 1 to 16 bits and keeps the stored values.
    ///
    /// # Errors
    /// [`LabelError`] names the file and the reason.
    pub fn read_png(path: &Path) -> Result<Self, LabelError> {
        let packed = Packed::read(path, png::BitDepth::Sixteen)?;
        let data = if packed.bits == 16 {
            packed.rows.as_chunks::<2>().0.iter().map(|&pair| u16::from_be_bytes(pair)).collect()
        } else {
            packed.bytes().into_iter().map(u16::from).collect()
        };
        let (width, height) = (packed.width, packed.height);
        Ok(Self { width, height, data })
    }

    /// Writes a greyscale PNG of 16 bits.
    ///
    /// # Errors
    /// [`LabelError::Io`] when the file cannot be written; nothing is left behind then.
    pub fn write_png(&self, path: &Path) -> Result<(), LabelError> {
        write_atomic(path, |w| {
            let mut encoder = png::Encoder::new(w, self.width, self.height);
            encoder.set_color(png::ColorType::Grayscale);
            encoder.set_depth(png::BitDepth::Sixteen);
            let mut writer = encoder.write_header().map_err(io::Error::other)?;
            let bytes: Vec<u8> = self.data.iter().flat_map(|id| id.to_be_bytes()).collect();
            writer.write_image_data(&bytes).map_err(io::Error::other)?;
            writer.finish().map_err(io::Error::other)
        })
        .map_err(|source| LabelError::Io { path: path.to_owned(), source })
    }
}

/// Width and height of a PNG by its header alone.
///
/// # Errors
/// [`LabelError`] names the file and the reason.
pub fn png_size(path: &Path) -> Result<(u32, u32), LabelError> {
    let reader = open_png(path)?;
    Ok((reader.info().width, reader.info().height))
}

type PngReader = png::Reader<BufReader<File>>;

/// Opens a PNG whose values are wanted as they are stored, and bounds its size.
fn open_png(path: &Path) -> Result<PngReader, LabelError> {
    let file =
        File::open(path).map_err(|source| LabelError::Io { path: path.to_owned(), source })?;
    let mut decoder = png::Decoder::new(BufReader::new(file));
    decoder.set_transformations(png::Transformations::IDENTITY);
    let reader = decoder.read_info().map_err(|e| png_error(path, &e))?;
    let (width, height) = (reader.info().width, reader.info().height);
    if width > MAX_SIDE || height > MAX_SIDE {
        return Err(LabelError::TooLarge { path: path.to_owned(), width, height });
    }
    Ok(reader)
}

fn png_error(path: &Path, e: &png::DecodingError) -> LabelError {
    LabelError::Png { path: path.to_owned(), reason: e.to_string() }
}

/// The values of a PNG as they are stored.
struct Packed {
    width: u32,
    height: u32,
    /// Bits of a value.
    bits: usize,
    /// Rows of whole bytes.
    rows: Vec<u8>,
}

impl Packed {
    /// Reads values of at most `deepest` bits.
    fn read(path: &Path, deepest: png::BitDepth) -> Result<Self, LabelError> {
        let mut reader = open_png(path)?;
        let (width, height) = (reader.info().width, reader.info().height);
        let (color, depth) = reader.output_color_type();
        let single = matches!(color, png::ColorType::Indexed | png::ColorType::Grayscale);
        if !single || depth as u8 > deepest as u8 {
            return Err(LabelError::Colour {
                path: path.to_owned(),
                kind: format!("{color:?}, {depth:?} bit"),
                bits: deepest as u8,
            });
        }
        let too_large = || LabelError::TooLarge { path: path.to_owned(), width, height };
        let mut rows = vec![0; reader.output_buffer_size().ok_or_else(too_large)?];
        reader.next_frame(&mut rows).map_err(|e| png_error(path, &e))?;
        Ok(Self { width, height, bits: depth as usize, rows })
    }

    /// Values of at most 8 bits, one byte each.
    fn bytes(&self) -> Vec<u8> {
        let (width, height) = (self.width as usize, self.height as usize);
        let mut data = Vec::with_capacity(width * height);
        let row_bytes = (width * self.bits).div_ceil(8).max(1);
        for row in self.rows.chunks_exact(row_bytes).take(height) {
            unpack_row(row, width, self.bits, &mut data);
        }
        data
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
    fn ids_beyond_255_need_16_bits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ids.png");
        let ids = IdMap { width: 3, height: 2, data: vec![0, 1, 255, 256, 511, 65_535] };
        ids.write_png(&path).unwrap();
        assert_eq!(IdMap::read_png(&path).unwrap(), ids);
        assert_eq!(png_size(&path).unwrap(), (3, 2));
        let message = LabelMap::read_png(&path).unwrap_err().to_string();
        assert!(message.contains("at most 8 bits"), "{message}");
        let map = LabelMap { width: 3, height: 1, data: vec![7, 0, 255] };
        map.write_png(&path).unwrap();
        assert_eq!(IdMap::read_png(&path).unwrap().data, [7, 0, 255]);
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
