//! Finding and decoding image files.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::{DynamicImage, ImageReader, Limits, RgbImage};

use super::DataError;
use super::sources::{ImageQuery, ImageSource};

/// Extensions of the formats that can be decoded, in lower case.
const EXTENSIONS: [&str; 3] = ["jpg", "jpeg", "png"];

/// Width and height of an image, at most.
pub(crate) const MAX_SIDE: u32 = 16_384;

/// Bytes of an image file, at most.
pub(crate) const MAX_FILE_BYTES: u64 = 256 << 20;

/// Bytes that decoding one image may take, at most.
const MAX_DECODE_BYTES: u64 = 1 << 30;

/// All images under `roots` (folders, searched with their subfolders, or single files; videos
/// give their frames) in ascending order of their paths, each once; with `lists` only the
/// images named there. See [`ImageQuery`] for data sets and more.
///
/// # Errors
/// As [`ImageQuery::find`].
pub fn find_images(roots: &[PathBuf], lists: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
    let query = ImageQuery {
        sources: roots.iter().cloned().map(ImageSource::from).collect(),
        lists: lists.to_vec(),
        ..ImageQuery::default()
    };
    Ok(query.find()?.into_iter().map(|file| file.path).collect())
}

pub(super) fn has_image_extension(path: &Path) -> bool {
    path.extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str()))
}

pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, DataError> {
    let failed = |source| DataError::Read { path: path.to_owned(), source };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > limit {
        return Err(DataError::Damaged {
            path: path.to_owned(),
            reason: format!("{length} bytes, more than {limit}"),
        });
    }
    fs::read(path).map_err(failed)
}

/// Decodes a JPEG or PNG file to RGB (transparency is dropped), and reduces it when its
/// shorter side is longer than `max_short_side` pixels.
///
/// # Errors
/// [`DataError::Read`], [`DataError::Damaged`] (also for a JPEG that ends early, and for an
/// image that is longer than 16384 pixels on a side).
pub fn decode(path: &Path, max_short_side: u32) -> Result<RgbImage, DataError> {
    let image = open(path)?.into_rgb8();
    let short = image.width().min(image.height());
    if short <= max_short_side {
        return Ok(image);
    }
    let scale = f64::from(max_short_side) / f64::from(short);
    let side = |length: u32| ((f64::from(length) * scale).round() as u32).max(1);
    let whole = [0, 0, image.width(), image.height()];
    resize_crop(&mut Resizer::new(), &image, whole, side(image.width()), side(image.height()))
}

/// Decodes a JPEG or PNG file as it is.
///
/// # Errors
/// As [`decode`].
pub(crate) fn open(path: &Path) -> Result<DynamicImage, DataError> {
    let bytes = read_bounded(path, MAX_FILE_BYTES)?;
    let damaged = |reason: String| DataError::Damaged { path: path.to_owned(), reason };
    if bytes.starts_with(&[0xFF, 0xD8]) && !jpeg_is_complete(&bytes) {
        return Err(damaged("the JPEG data ends early".into()));
    }
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|source| DataError::Read { path: path.to_owned(), source })?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODE_BYTES);
    reader.limits(limits);
    let image = reader.decode().map_err(|error| damaged(error.to_string()))?;
    if image.width() == 0 || image.height() == 0 {
        return Err(damaged("it has no pixels".into()));
    }
    Ok(image)
}

/// Width and height of an image file in pixels, from its first bytes.
///
/// # Errors
/// [`DataError::Read`], [`DataError::Damaged`].
pub(crate) fn dimensions(path: &Path) -> Result<(u32, u32), DataError> {
    ImageReader::open(path)
        .and_then(ImageReader::with_guessed_format)
        .map_err(|source| DataError::Read { path: path.to_owned(), source })?
        .into_dimensions()
        .map_err(|error| DataError::Damaged { path: path.to_owned(), reason: error.to_string() })
}

/// The decoder fills a JPEG that ends early with grey, so the end is looked for here: the
/// marker "end of image" after the last "start of scan". Compressed data cannot contain it.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    let last = |marker: u8| bytes.windows(2).rposition(|pair| pair == [0xFF, marker]);
    match (last(0xDA), last(0xD9)) {
        (Some(scan), Some(end)) => end > scan,
        _ => false,
    }
}

/// Resamples the part `[x, y, width, height]` of `image`, in pixels, to `width` x `height` by
/// cubic convolution (Catmull-Rom), widened when shrinking so that nothing aliases.
///
/// # Errors
/// [`DataError::Resize`] when the part does not lie in the image.
pub fn resize_crop(
    resizer: &mut Resizer,
    image: &RgbImage,
    [x, y, w, h]: [u32; 4],
    width: u32,
    height: u32,
) -> Result<RgbImage, DataError> {
    let failed =
        |reason: String| DataError::Resize { width: image.width(), height: image.height(), reason };
    let source = ImageRef::new(image.width(), image.height(), image.as_raw(), PixelType::U8x3)
        .map_err(|error| failed(error.to_string()))?;
    let mut target = Image::new(width, height, PixelType::U8x3);
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
        .crop(f64::from(x), f64::from(y), f64::from(w), f64::from(h));
    resizer.resize(&source, &mut target, &options).map_err(|error| failed(error.to_string()))?;
    RgbImage::from_raw(width, height, target.into_vec())
        .ok_or_else(|| failed("the result has the wrong size".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_image(path: &Path, width: u32, height: u32) {
        let image = RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 7]));
        image.save(path).unwrap();
    }

    #[test]
    fn images_are_found_in_subfolders_in_order() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        for name in ["b/2.JPG", "a.png", "notes.txt", "b/1.jpeg"] {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        let root = dir.path().to_owned();
        let found = find_images(&[root.clone(), root.clone()], &[]).unwrap();
        let names: Vec<_> =
            found.iter().map(|path| path.strip_prefix(&root).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.png", "b/1.jpeg", "b/2.JPG"]);
    }

    #[test]
    fn lists_choose_by_name_or_relative_path() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        for name in ["b/2.jpg", "a.png", "c.png"] {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        let list = dir.path().join("list.txt");
        fs::write(&list, "# chosen\nb/2\n\na.png\n2\n").unwrap();
        let root = dir.path().to_owned();
        let found = find_images(std::slice::from_ref(&root), std::slice::from_ref(&list)).unwrap();
        assert_eq!(found, [root.join("a.png"), root.join("b/2.jpg")]);

        fs::write(&list, "a\nmissing\n").unwrap();
        let error = find_images(&[root], &[list]).unwrap_err();
        assert!(matches!(&error, DataError::NotFound { name, count: 1, .. } if name == "missing"));
    }

    #[test]
    fn folders_without_images_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = find_images(&[dir.path().to_owned()], &[]).unwrap_err();
        assert!(matches!(error, DataError::NoImages { .. }));
        let error = find_images(&[dir.path().join("absent")], &[]).unwrap_err();
        assert!(matches!(error, DataError::Read { .. }));
    }

    #[test]
    fn large_images_are_reduced_and_small_ones_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        write_image(&path, 90, 60);
        assert_eq!(decode(&path, 30).unwrap().dimensions(), (45, 30));
        assert_eq!(decode(&path, 60).unwrap().dimensions(), (90, 60));
        assert_eq!(decode(&path, 30).unwrap().get_pixel(0, 0).0[2], 7);
    }

    #[test]
    fn damaged_files_are_errors_that_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jpg");
        write_image(&path, 64, 64);
        decode(&path, 64).unwrap();
        let bytes = fs::read(&path).unwrap();
        for cut in [0, 10, bytes.len() / 2, bytes.len() - 2] {
            fs::write(&path, &bytes[..cut]).unwrap();
            let error = decode(&path, 64).unwrap_err();
            assert!(matches!(error, DataError::Damaged { .. }), "{cut}: {error}");
            assert!(error.to_string().contains("a.jpg"));
        }
    }
}
