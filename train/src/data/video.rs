//! Videos among the sources of images.

use std::path::{Path, PathBuf};

use conceptseg::datasets::video::EXTENSIONS;
pub use conceptseg::datasets::video::{VideoSampling, frames, has_video_extension};

use super::DataError;
use super::sources::collect;

/// The videos under `path`, or `path` itself if it is a file, whatever its extension.
///
/// # Errors
/// [`DataError::Read`], [`DataError::Video`] when there is none.
pub(super) fn find(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut videos = Vec::new();
    collect(path, 16, &has_video_extension, &mut |video| videos.push(video))?;
    if videos.is_empty() {
        let reason = format!("the folder has no video ({})", EXTENSIONS.join(", "));
        return Err(DataError::Video { path: path.to_owned(), reason });
    }
    videos.sort();
    Ok(videos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn videos_are_found_and_what_is_missing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let text = find(&dir.path().join("absent")).unwrap_err().to_string();
        assert!(text.contains("absent"), "{text}");
        let text = find(dir.path()).unwrap_err().to_string();
        assert!(text.contains("has no video (mp4"), "{text}");
        for name in ["b.MKV", "a.mp4", "c.txt"] {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        let found = find(dir.path()).unwrap();
        assert_eq!(found, [dir.path().join("a.mp4"), dir.path().join("b.MKV")]);
        assert_eq!(find(&dir.path().join("c.txt")).unwrap().len(), 1);
    }
}
