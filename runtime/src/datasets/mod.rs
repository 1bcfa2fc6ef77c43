//! Data sets on disk, checked before work starts.

use std::io;
use std::path::{Path, PathBuf};

pub mod camvid;
pub mod coco;
pub mod davis;
pub mod images;
pub mod segmentation;
pub mod video;
pub mod voc;

/// The files directly inside `folder` whose ending is one of `extensions` (lower case),
/// sorted by name.
pub fn files_with_extension(folder: &Path, extensions: &[&str]) -> io::Result<Vec<PathBuf>> {
    let wanted = |path: &Path| {
        path.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e))
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if wanted(&path) && path.is_file() {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// The names of the folders directly inside `folder` that hold at least one file with one
/// of `extensions`, sorted. Hidden folders are left out.
pub fn folders_with_extension(folder: &Path, extensions: &[&str]) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') || !path.is_dir() {
            continue;
        }
        if !files_with_extension(&path, extensions)?.is_empty() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
