//! Frames of videos, taken by `GStreamer`'s `gst-launch-1.0` into a cache of JPEG files.
//!
//! The program is started, not linked: nothing needs `GStreamer` until a video is given.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};

use super::files_with_extension;
use crate::files::hex;

/// Extensions of what is taken for a video, in lower case.
pub const EXTENSIONS: [&str; 10] =
    ["mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "ogv"];

/// Quality of the frames, of 100.
const JPEG_QUALITY: u32 = 95;

/// Characters of the program's messages that are passed on.
const MAX_MESSAGE: usize = 600;

/// Why a video gives no frames.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VideoError {
    /// The rate is out of range.
    #[error("frames per second are {0}; they must be a number in 0.001..=1000")]
    Rate(f64),
    /// A file or folder could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The cache could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The folder.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// `GStreamer` is not installed, lacks a decoder or finds no picture in the file.
    #[error("cannot take frames from {}: {reason}", path.display())]
    Frames {
        /// The video.
        path: PathBuf,
        /// What went wrong and what to do about it.
        reason: String,
    },
}

/// How frames are taken from videos.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoSampling {
    /// Frames for each second of a video, at most as many as it has: 0.001 to 1000.
    pub frames_per_second: f64,
    /// Folder that keeps the frames for the next time.
    pub folder: PathBuf,
    /// The program.
    pub program: OsString,
}

impl Default for VideoSampling {
    /// Two frames per second, in `conceptseg/frames` of the user's cache folder.
    fn default() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let cache = set("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache")))
            .unwrap_or_else(std::env::temp_dir);
        Self {
            frames_per_second: 2.0,
            folder: cache.join("conceptseg/frames"),
            program: "gst-launch-1.0".into(),
        }
    }
}

/// Whether the name of a file is that of a video.
pub fn has_video_extension(path: &Path) -> bool {
    path.extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str()))
}

/// The folder with the frames of `video`, `<name>-<key>/<number>.jpg`. What an earlier call
/// took from the same file at the same rate is kept; a folder appears whole or not at all.
///
/// # Errors
/// [`VideoError`].
pub fn frames(video: &Path, sampling: &VideoSampling) -> Result<PathBuf, VideoError> {
    if !(0.001..=1000.0).contains(&sampling.frames_per_second) {
        return Err(VideoError::Rate(sampling.frames_per_second));
    }
    let failed = |reason: String| VideoError::Frames { path: video.to_owned(), reason };
    let rate = (sampling.frames_per_second * 1000.0).round() as u32;
    let text = format!(
        "1 {} {rate} {JPEG_QUALITY}",
        identity(video).map_err(|source| VideoError::Read { path: video.to_owned(), source })?
    );
    let key = hex(&Sha256::digest(text)[..6]);
    let stem = video.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let target = sampling.folder.join(format!("{stem}-{key}"));
    if target.is_dir() {
        return Ok(target);
    }
    let write = |source| VideoError::Write { path: sampling.folder.clone(), source };
    fs::create_dir_all(&sampling.folder).map_err(write)?;
    let work = tempfile::tempdir_in(&sampling.folder).map_err(write)?;

    // The video comes in as standard input and frames go to the working folder, so that no
    // file name is ever read as a piece of the pipeline.
    let input =
        File::open(video).map_err(|source| VideoError::Read { path: video.to_owned(), source })?;
    let program = &sampling.program;
    let output = Command::new(program)
        .args(["-q", "fdsrc", "fd=0", "!", "decodebin", "!", "videoconvert", "!"])
        // A range: a video of a lower rate keeps its own.
        .args(["videorate", "drop-only=true", "!"])
        .arg(format!("video/x-raw,framerate=(fraction)[0/1,{rate}/1000]"))
        .args(["!", "jpegenc", &format!("quality={JPEG_QUALITY}"), "!"])
        .args(["multifilesink", "location=%06d.jpg"])
        .current_dir(work.path())
        .stdin(Stdio::from(input))
        .output()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => failed(format!(
                "{} is not installed; install GStreamer's tools (on Debian \
                 gstreamer1.0-tools, -plugins-base, -plugins-good and -libav), or give a folder \
                 of frames",
                program.display()
            )),
            _ => failed(format!("{} does not start: {error}", program.display())),
        })?;
    let message = String::from_utf8_lossy(&output.stderr);
    let message: String = message.trim().chars().take(MAX_MESSAGE).collect();
    let count = files_with_extension(work.path(), &["jpg"]).map_err(write)?.len();
    if count == 0 {
        let reason = if message.is_empty() { "it holds no picture".to_owned() } else { message };
        return Err(failed(format!(
            "{reason}; check that it plays and that its decoder is installed"
        )));
    }
    if !output.status.success() {
        tracing::warn!("{} ends early, {count} frames were taken: {message}", video.display());
    }
    set_readable(work.path()).map_err(write)?;
    // Another process may have been faster; its frames are the same.
    if let Err(source) = fs::rename(work.path(), &target)
        && !target.is_dir()
    {
        return Err(VideoError::Write { path: target, source });
    }
    tracing::info!("{count} frames of {} in {}", video.display(), target.display());
    Ok(target)
}

/// What tells one state of a file from another without reading it: path, length, time.
fn identity(path: &Path) -> io::Result<String> {
    let full = fs::canonicalize(path)?;
    let metadata = fs::metadata(path)?;
    let changed = metadata.modified()?.duration_since(UNIX_EPOCH);
    let changed = changed.map_or(0, |since| since.as_nanos());
    Ok(format!("{} {} {changed}", full.display(), metadata.len()))
}

/// Temporary folders are private to their owner; the cache is not.
#[cfg(unix)]
fn set_readable(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn set_readable(_path: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shared clip (12.5 frames per second, 30 seconds), where it and the program are.
    fn clip() -> Option<PathBuf> {
        let clip = crate::testdata::shared("data/video/car-detection.mp4")?;
        let found = Command::new("gst-inspect-1.0").args(["--exists", "avdec_h264"]).status();
        if !found.is_ok_and(|status| status.success()) {
            eprintln!("skipped: GStreamer or its H.264 decoder is not installed");
            return None;
        }
        Some(clip)
    }

    fn sampling(folder: &Path, frames_per_second: f64) -> VideoSampling {
        VideoSampling { frames_per_second, folder: folder.to_owned(), ..Default::default() }
    }

    #[test]
    fn frames_are_taken_once_and_kept() {
        let Some(clip) = clip() else { return };
        let cache = tempfile::tempdir().unwrap();
        let sampling = sampling(cache.path(), 0.5);
        let folder = frames(&clip, &sampling).unwrap();
        let count = fs::read_dir(&folder).unwrap().count();
        assert!((15..=16).contains(&count), "{count}");
        assert_eq!(image::image_dimensions(folder.join("000003.jpg")).unwrap(), (768, 432));
        // Nothing but the folder is left behind, and a second call starts no program.
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1);
        let absent = VideoSampling { program: "no-such-program".into(), ..sampling.clone() };
        assert_eq!(frames(&clip, &absent).unwrap(), folder);
        // Another rate has a folder of its own.
        let other = frames(&clip, &self::sampling(cache.path(), 0.1)).unwrap();
        assert_ne!(other, folder);
    }

    #[test]
    fn names_that_look_like_a_pipeline_are_names() {
        let Some(clip) = clip() else { return };
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a \" ! fakesink %d.mp4");
        fs::copy(&clip, &odd).unwrap();
        let folder = frames(&odd, &sampling(dir.path(), 0.1)).unwrap();
        assert!(fs::read_dir(folder).unwrap().count() >= 3);
    }

    #[test]
    fn what_is_missing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let video = dir.path().join("a.mp4");
        fs::write(&video, b"no video").unwrap();
        let absent =
            VideoSampling { program: "no-such-program".into(), ..sampling(dir.path(), 1.0) };
        let text = frames(&video, &absent).unwrap_err().to_string();
        assert!(text.contains("a.mp4") && text.contains("not installed"), "{text}");
        assert!(frames(&video, &sampling(dir.path(), 0.0)).is_err());
        if clip().is_some() {
            let text = frames(&video, &sampling(dir.path(), 1.0)).unwrap_err().to_string();
            assert!(text.contains("type of stream"), "{text}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let absent = dir.path().join("absent.mp4");
        let text = frames(&absent, &sampling(dir.path(), 1.0)).unwrap_err().to_string();
        assert!(text.contains("absent.mp4"), "{text}");
    }
}
