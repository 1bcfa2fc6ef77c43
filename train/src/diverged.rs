//! Keeps the batch at which a loss or gradient stopped being a number.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use image::{ImageBuffer, Luma, Rgb, RgbImage};
use serde_json::{Value, json};

use crate::data::loader::{Batch, LoaderConfig};
use crate::data::{Dataset, VOID};

/// Writes the views of `batch` as they were before normalisation (`<b>-<view>.png`, further
/// views from number 2 on), their
/// segment ids (`<b>-<view>-ids.png`, 16 bit, 65535 for none) and `batch.json`, which holds
/// `report` beside the images' paths, to the folder `diverged-step-<step>` in `dir`. A folder
/// of that name is replaced. Returns the folder.
///
/// # Errors
/// Whatever the file system answers.
pub fn save_batch(
    dir: &Path,
    step: u64,
    batch: &Batch,
    loader: &LoaderConfig,
    dataset: &Dataset,
    report: &Value,
) -> io::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    let work = tempfile::tempdir_in(dir)?;
    let count = batch.image_index.len();
    let extra = &batch.extra;
    let all = views(batch.size, &batch.images, &batch.ids).chain(views(
        extra.size,
        &extra.images,
        &extra.ids,
    ));
    let mut described: Vec<Vec<Value>> = vec![Vec::new(); count];
    for (entry, (size, pixels, ids)) in all.enumerate() {
        let area = ids.len();
        let (b, view) = (entry % count, entry / count);
        let (picture, map) = (format!("{b}-{view}.png"), format!("{b}-{view}-ids.png"));
        view_picture(pixels, size, loader)
            .save(work.path().join(&picture))
            .map_err(io::Error::other)?;
        ImageBuffer::<Luma<u16>, _>::from_raw(size, size, ids.to_vec())
            .ok_or_else(|| io::Error::other("a view without ids"))?
            .save(work.path().join(&map))
            .map_err(io::Error::other)?;
        let mut known: Vec<u16> = ids.iter().copied().filter(|&id| id != VOID).collect();
        let valid = known.len();
        known.sort_unstable();
        known.dedup();
        let shown = if view % 2 == 0 { &batch.image_index } else { &batch.second_index };
        let path = dataset.path(shown[b] as usize).map(|path| path.display().to_string());
        described[b].push(json!({
            "path": path,
            "pixels": picture,
            "ids": map,
            "finite": pixels.iter().all(|value| value.is_finite()),
            "segments": known.len(),
            "share_in_segments": valid as f64 / area as f64,
        }));
    }
    let images: Vec<Value> = batch
        .image_index
        .iter()
        .zip(described)
        .map(|(&index, views)| {
            let path = dataset.path(index as usize).map(|path| path.display().to_string());
            json!({ "index": index, "path": path, "views": views })
        })
        .collect();
    let text = serde_json::to_vec_pretty(&json!({ "report": report, "images": images }))?;
    fs::write(work.path().join("batch.json"), text)?;

    let folder = dir.join(format!("diverged-step-{step}"));
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::rename(work.keep(), &folder)?;
    Ok(folder)
}

/// A number for the report; JSON has no word for those that are none.
pub fn number(value: f64) -> Value {
    if value.is_finite() { json!(value) } else { json!(value.to_string()) }
}

/// Side, pixels and ids of every view.
fn views<'a>(
    size: u32,
    images: &'a [f32],
    ids: &'a [u16],
) -> impl Iterator<Item = (u32, &'a [f32], &'a [u16])> {
    let area = (size as usize * size as usize).max(1);
    images.chunks_exact(3 * area).zip(ids.chunks_exact(area)).map(move |(i, s)| (size, i, s))
}

fn view_picture(pixels: &[f32], size: u32, loader: &LoaderConfig) -> RgbImage {
    let area = size as usize * size as usize;
    RgbImage::from_fn(size, size, |x, y| {
        let at = y as usize * size as usize + x as usize;
        Rgb(std::array::from_fn(|c| {
            let value = pixels[c * area + at] * loader.std[c] + loader.mean[c];
            // What is no number becomes 0.
            (value * 255.0).round() as u8
        }))
    })
}
