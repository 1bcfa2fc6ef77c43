//! `conceptseg scene`: writes a made-up video with exact masks.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use conceptseg::files::write_atomic;
use conceptseg::scene::{Scene, SceneConfig};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

/// Records how a scene was made, and that its folder may be replaced.
const MARK: &str = "scene.json";
/// Subfolders of pictures and masks.
const PARTS: [&str; 2] = ["frames", "masks"];

/// Write a made-up video with exact masks: textured objects that move, turn, scale and
/// occlude one another under changing light.
///
/// The folder gets frames/00000.png …, masks/00000.png … (palette PNGs, one id per object)
/// and scene.json. The same arguments give the same bytes on every machine; a scene that is
/// already there is kept, one made with other arguments is replaced.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder to write to; created where it is missing.
    #[arg(long)]
    out: PathBuf,
    /// Number of frames.
    #[arg(long, default_value_t = SceneConfig::default().frames)]
    frames: u32,
    /// Width in pixels.
    #[arg(long, default_value_t = SceneConfig::default().width)]
    width: u32,
    /// Height in pixels.
    #[arg(long, default_value_t = SceneConfig::default().height)]
    height: u32,
    /// Chooses colours, textures and paths.
    #[arg(long, default_value_t = SceneConfig::default().seed)]
    seed: u32,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let config = SceneConfig {
        width: args.width,
        height: args.height,
        frames: args.frames,
        seed: args.seed,
    };
    let scene = Scene::new(config)?;
    let kept = ready(&args.out, config);
    if !kept {
        write(&scene, &args.out)?;
    }
    let mut out = io::stdout().lock();
    if json {
        let object = json!({ "out": args.out, "config": config, "kept": kept });
        writeln!(out, "{object}")?;
    } else {
        writeln!(
            out,
            "{} {} frames of {}x{} with {} objects in {}",
            if kept { "kept" } else { "wrote" },
            config.frames,
            config.width,
            config.height,
            conceptseg::scene::OBJECTS,
            args.out.display(),
        )?;
    }
    Ok(())
}

/// File of frame `index` in one of the [`PARTS`].
fn file(folder: &Path, part: &str, index: u32) -> PathBuf {
    folder.join(part).join(format!("{index:05}.png"))
}

/// What the mark in a folder says, where there is one.
fn marked(folder: &Path) -> Option<SceneConfig> {
    let text = fs::read(folder.join(MARK)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Whether the folder already holds exactly this scene.
fn ready(folder: &Path, config: SceneConfig) -> bool {
    marked(folder) == Some(config)
        && PARTS.iter().all(|part| (0..config.frames).all(|i| file(folder, part, i).is_file()))
}

/// Writes the scene beside its place first, so that an interrupted run leaves no half scene.
fn write(scene: &Scene, out: &Path) -> Result<()> {
    let config = scene.config();
    let old = marked(out);
    if old.is_none()
        && let Some(part) = PARTS.iter().find(|part| out.join(part).exists())
    {
        bail!(
            "{} was not made by this command; give --out a folder without {} and {}",
            out.join(part).display(),
            PARTS[0],
            PARTS[1],
        );
    }
    let cannot = || format!("cannot write the scene to {}", out.display());
    fs::create_dir_all(out).with_context(cannot)?;
    let staging =
        tempfile::Builder::new().prefix(".scene-").tempdir_in(out).with_context(cannot)?;
    for part in PARTS {
        fs::create_dir(staging.path().join(part)).with_context(cannot)?;
    }

    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}")?;
    // Hidden where standard error is not a terminal.
    let bar = ProgressBar::new(config.frames.into()).with_style(style).with_message("scene");
    for index in 0..config.frames {
        let frame = scene.frame(index);
        let path = file(staging.path(), PARTS[0], index);
        frame.image.save(&path).with_context(cannot)?;
        frame.labels.write_png(&file(staging.path(), PARTS[1], index))?;
        bar.inc(1);
    }
    bar.finish_and_clear();

    if let Some(old) = old {
        remove(out, old).with_context(cannot)?;
    }
    for part in PARTS {
        fs::rename(staging.path().join(part), out.join(part)).with_context(cannot)?;
    }
    write_atomic(&out.join(MARK), |w| {
        serde_json::to_writer_pretty(&mut *w, &config)?;
        w.write_all(b"\n")
    })
    .with_context(cannot)
}

/// Removes the files that the mark names and nothing else; a foreign file beside them keeps
/// its folder in place, which is an error.
fn remove(out: &Path, old: SceneConfig) -> io::Result<()> {
    let unless_gone = |r: io::Result<()>| match r {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    for part in PARTS {
        for index in 0..old.frames.min(conceptseg::scene::MAX_FRAMES) {
            unless_gone(fs::remove_file(file(out, part, index)))?;
        }
        unless_gone(fs::remove_dir(out.join(part)))?;
    }
    unless_gone(fs::remove_file(out.join(MARK)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(out: &Path, frames: u32) -> Args {
        Args { out: out.to_owned(), frames, width: 64, height: 64, seed: 1 }
    }

    #[test]
    fn a_scene_is_written_kept_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new/scene");
        run(&args(&out, 3), false).unwrap();
        let config = SceneConfig { width: 64, height: 64, frames: 3, seed: 1 };
        assert!(ready(&out, config));
        let before = fs::metadata(file(&out, "frames", 2)).unwrap().modified().unwrap();
        run(&args(&out, 3), true).unwrap();
        assert_eq!(fs::metadata(file(&out, "frames", 2)).unwrap().modified().unwrap(), before);
        run(&args(&out, 2), false).unwrap();
        assert!(!file(&out, "masks", 2).exists());
        assert_eq!(fs::read_dir(&out).unwrap().count(), 3, "no litter");
    }

    #[test]
    fn foreign_files_are_never_touched() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("frames")).unwrap();
        fs::write(file(dir.path(), "frames", 0), b"precious").unwrap();
        let message = run(&args(dir.path(), 1), false).unwrap_err().to_string();
        assert!(message.contains("not made by this command"), "{message}");
        assert_eq!(fs::read(file(dir.path(), "frames", 0)).unwrap(), b"precious");

        let other = tempfile::tempdir().unwrap();
        run(&args(other.path(), 1), false).unwrap();
        fs::write(other.path().join("frames/notes.txt"), b"mine").unwrap();
        assert!(run(&args(other.path(), 2), false).is_err());
        assert!(other.path().join("frames/notes.txt").exists());
    }
}
