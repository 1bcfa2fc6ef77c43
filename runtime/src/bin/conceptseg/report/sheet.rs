//! A contact sheet: a grid of frames with their numbers.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use conceptseg::datasets::files_with_extension;
use image::{Rgb, RgbImage, imageops};

/// Frames on a sheet, at most.
const FRAMES: usize = 12;
/// Frames in a row.
const COLUMNS: u32 = 4;
/// Width of a frame on the sheet, in pixels.
const TILE_WIDTH: u32 = 400;
/// Space around the frames, in pixels.
const GAP: u32 = 6;
/// Side of one dot of a digit, in pixels.
const DOT: u32 = 3;

/// Digits of three by five dots; the highest of a row's three bits is its left dot.
const DIGITS: [[u8; 5]; 10] = [
    [7, 5, 5, 5, 7],
    [2, 6, 2, 2, 7],
    [7, 1, 7, 4, 7],
    [7, 1, 7, 1, 7],
    [5, 5, 7, 1, 1],
    [7, 4, 7, 1, 7],
    [7, 4, 7, 5, 7],
    [7, 1, 1, 1, 1],
    [7, 5, 7, 5, 7],
    [7, 5, 7, 1, 7],
];

/// Makes a sheet of evenly spaced frames of a folder, each with the number that its file
/// name holds.
pub fn contact_sheet(folder: &Path) -> Result<RgbImage> {
    let files = files_with_extension(folder, &["png", "jpg", "jpeg"])
        .with_context(|| format!("cannot list the frames {}", folder.display()))?;
    ensure!(
        !files.is_empty(),
        "{} holds no PNG or JPEG frame for the contact sheet",
        folder.display()
    );
    let tiles = evenly_spaced(&files, FRAMES).map(|path| tile(path)).collect::<Result<Vec<_>>>()?;
    let tile_height = tiles.iter().map(RgbImage::height).max().unwrap_or(1);
    let columns = COLUMNS.min(tiles.len() as u32);
    let rows = (tiles.len() as u32).div_ceil(columns);
    let mut sheet = RgbImage::from_pixel(
        columns * (TILE_WIDTH + GAP) + GAP,
        rows * (tile_height + GAP) + GAP,
        Rgb([24, 24, 24]),
    );
    for (i, tile) in (0u32..).zip(&tiles) {
        let (x, y) =
            (i % columns * (TILE_WIDTH + GAP) + GAP, i / columns * (tile_height + GAP) + GAP);
        imageops::replace(&mut sheet, tile, i64::from(x), i64::from(y));
    }
    Ok(sheet)
}

/// At most `count` of the items, the first and the last among them.
fn evenly_spaced<T>(items: &[T], count: usize) -> impl Iterator<Item = &T> {
    let count = count.min(items.len());
    (0..count).filter_map(move |i| items.get(i * (items.len() - 1) / (count - 1).max(1)))
}

/// One frame, scaled, with its number in the upper left corner.
fn tile(path: &Path) -> Result<RgbImage> {
    let image = image::ImageReader::open(path)
        .map_err(image::ImageError::from)
        .and_then(image::ImageReader::decode)
        .with_context(|| format!("cannot read the frame {}", path.display()))?
        .into_rgb8();
    let height = (u64::from(TILE_WIDTH) * u64::from(image.height()) / u64::from(image.width()))
        .clamp(1, 4 * u64::from(TILE_WIDTH)) as u32;
    let mut tile = imageops::resize(&image, TILE_WIDTH, height, imageops::FilterType::Triangle);
    let number: String = path
        .file_stem()
        .map(|stem| stem.to_string_lossy().chars().filter(char::is_ascii_digit).collect())
        .unwrap_or_default();
    let number = number.trim_start_matches('0');
    draw_number(&mut tile, if number.is_empty() { "0" } else { number });
    Ok(tile)
}

/// Writes digits on a dark plate; what does not fit is cut off.
fn draw_number(image: &mut RgbImage, digits: &str) {
    let advance = 4 * DOT;
    let mut plot = |x: u32, y: u32, color: Rgb<u8>| {
        if let Some(pixel) = image.get_pixel_mut_checked(x, y) {
            *pixel = color;
        }
    };
    let width = digits.len().min(20) as u32 * advance + DOT;
    for y in 0..7 * DOT {
        for x in 0..width {
            plot(x, y, Rgb([0, 0, 0]));
        }
    }
    for (i, digit) in (0u32..).zip(digits.bytes().take(20)) {
        let Some(rows) = DIGITS.get(usize::from(digit.wrapping_sub(b'0'))) else { continue };
        for y in 0..5 * DOT {
            for x in 0..3 * DOT {
                if rows[(y / DOT) as usize] >> (2 - x / DOT) & 1 == 1 {
                    plot(i * advance + DOT + x, DOT + y, Rgb([255, 255, 255]));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_spread_from_the_first_to_the_last() {
        let items: Vec<u32> = (0..100).collect();
        let picked: Vec<u32> = evenly_spaced(&items, 12).copied().collect();
        assert_eq!((picked.len(), picked[0], picked[11]), (12, 0, 99));
        assert_eq!(evenly_spaced(&items[..3], 12).count(), 3);
        assert_eq!(evenly_spaced(&items[..1], 12).count(), 1);
        assert_eq!(evenly_spaced(&items[..0], 12).count(), 0);
    }

    #[test]
    fn a_sheet_holds_its_frames_in_a_grid() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..6u8 {
            let frame = RgbImage::from_pixel(80, 40, Rgb([100 + i, 50, 0]));
            frame.save(dir.path().join(format!("{i:05}.png"))).unwrap();
        }
        let sheet = contact_sheet(dir.path()).unwrap();
        assert_eq!(sheet.dimensions(), (4 * 406 + 6, 2 * 206 + 6));
        let centre = |column: u32, row: u32| sheet.get_pixel(column * 406 + 206, row * 206 + 106).0;
        assert_eq!(centre(0, 0), [100, 50, 0]);
        assert_eq!(centre(1, 1), [105, 50, 0]);
        assert_eq!(centre(3, 1), [24, 24, 24]);
        // The middle dot of the digit 1's column on the second tile is white.
        assert_eq!(sheet.get_pixel(406 + 6 + DOT + DOT + 1, 6 + DOT + 1).0, [255, 255, 255]);
    }

    #[test]
    fn an_empty_folder_and_a_broken_frame_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        assert!(contact_sheet(dir.path()).unwrap_err().to_string().contains("no PNG or JPEG"));
        std::fs::write(dir.path().join("0.png"), b"no").unwrap();
        let message = contact_sheet(dir.path()).unwrap_err().to_string();
        assert!(message.contains("0.png"), "{message}");
    }
}
