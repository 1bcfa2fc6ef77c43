//! `conceptseg-train segments`: makes the pseudo segments of images ahead of training, and
//! pictures of them.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::ValueEnum;
use conceptseg::files::write_atomic;
use conceptseg_train::config::TrainConfig;
use conceptseg_train::data::dataset::allowed_damaged;
use conceptseg_train::data::overlay;
use conceptseg_train::data::segment_map::read_key;
use conceptseg_train::data::{DataError, ImageFile, SegmentMap, SegmentSource, Segmenter, images};
use image::codecs::jpeg::JpegEncoder;
use rayon::prelude::*;

use super::image_args::ImageArgs;
use crate::progress_bar;

/// What the command is given.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    images: ImageArgs,
    /// Folder to write: <name>.png of 16-bit ids for every image. Maps of an earlier call are
    /// kept where image and settings are the same.
    #[arg(long)]
    out: PathBuf,
    /// Recipe whose `[segments]` and `data.short_side` are used; the defaults where none is given.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where segments come from, instead of the recipe's `segments.source`.
    #[arg(long, value_enum)]
    source: Option<Source>,
    /// Folder of the contours or ids, instead of the recipe's `segments.folder`.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Images are reduced to at most this short side in pixels, instead of the recipe's
    /// `data.short_side`.
    #[arg(long)]
    short_side: Option<u32>,
    /// Also write pictures of the segments over their images, to pictures/<name>.jpg.
    #[arg(long)]
    pictures: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Source {
    /// The graph method of Felzenszwalb and Huttenlocher on the image itself.
    Felzenszwalb,
    /// Contour maps (PNG or .mat), or ultrametric ones of the doubled size (ucm2), in --from.
    Contours,
    /// PNG files of ids in --from.
    Ids,
}

/// Quality of the pictures, of 100.
const PICTURE_QUALITY: u8 = 90;

/// What became of one image.
struct Made {
    /// None when the map of an earlier call was kept.
    time: Option<Duration>,
    segments: usize,
}

/// Runs the command.
///
/// # Errors
/// Wrong settings, too many damaged images, a folder that cannot be written.
pub fn run(args: &Args) -> Result<()> {
    let mut config =
        args.config.as_deref().map_or_else(|| Ok(TrainConfig::default()), TrainConfig::read)?;
    if let Some(source) = args.source {
        config.segments.source = match source {
            Source::Felzenszwalb => SegmentSource::Felzenszwalb,
            Source::Contours => SegmentSource::Contours,
            Source::Ids => SegmentSource::Ids,
        };
    }
    if args.from.is_some() {
        config.segments.folder.clone_from(&args.from);
    }
    if let Some(short_side) = args.short_side {
        config.data.short_side = short_side;
    }
    config.check()?;
    // What is made here is what a cache is filled with.
    config.segments.cache = None;
    let short_side = config.data.short_side;
    let segmenter = Segmenter::new(&config.segments)?;
    let files = args.images.find()?;
    refuse_equal_names(&files)?;

    let bar = progress_bar(files.len() as u64, "images segmented");
    let allowed = allowed_damaged(files.len());
    let failures = AtomicUsize::new(0);
    let start = Instant::now();
    let results: Vec<Option<Result<Made, DataError>>> = files
        .par_iter()
        .map(|file| {
            if failures.load(Ordering::Relaxed) > allowed {
                return None;
            }
            let made = make(file, short_side, &segmenter, &args.out, args.pictures);
            if let Err(error) = &made {
                // A full disk is no damaged image.
                let weight = if matches!(error, DataError::Write { .. }) { allowed } else { 0 };
                failures.fetch_add(1 + weight, Ordering::Relaxed);
            }
            bar.inc(1);
            Some(made)
        })
        .collect();
    bar.finish_and_clear();
    let wall = start.elapsed();

    let (mut made, mut damaged) = (Vec::new(), Vec::new());
    for result in results.into_iter().flatten() {
        match result {
            Ok(one) => made.push(one),
            Err(error @ DataError::Write { .. }) => return Err(error.into()),
            Err(error) => damaged.push(error),
        }
    }
    if let Some(first) = damaged.first() {
        if damaged.len() > allowed || made.is_empty() {
            return Err(DataError::TooManyDamaged {
                damaged: damaged.len(),
                total: files.len(),
                allowed,
                first: first.to_string(),
            }
            .into());
        }
        tracing::warn!("left out {} image(s), the first: {first}", damaged.len());
    }
    report(&made, damaged.len(), wall, &args.out);
    Ok(())
}

/// Two images of one name would overwrite each other's maps.
fn refuse_equal_names(files: &[ImageFile]) -> Result<()> {
    let mut seen = HashMap::new();
    for file in files {
        if let Some(other) = seen.insert(&file.name, &file.path) {
            bail!(
                "{} and {} would have the same segment file {}.png; give each source a folder of \
                 its own with --out",
                other.display(),
                file.path.display(),
                file.name.display()
            );
        }
    }
    Ok(())
}

/// Makes one map, or keeps that of an earlier call, and its picture where wanted.
fn make(
    file: &ImageFile,
    short_side: u32,
    segmenter: &Segmenter,
    out: &Path,
    pictures: bool,
) -> Result<Made, DataError> {
    let target = with_extension(out.join(&file.name), "png");
    let picture = with_extension(out.join("pictures").join(&file.name), "jpg");
    let key = segmenter.key(&file.path, short_side)?;
    let kept = read_key(&target).is_some_and(|found| found == key);
    if kept && (!pictures || picture.is_file()) {
        let map = SegmentMap::read_png(&target, false)?;
        return Ok(Made { time: None, segments: map.count() });
    }
    let rgb = images::decode(&file.path, short_side)?;
    let start = Instant::now();
    let map = if kept {
        SegmentMap::read_png(&target, false)?
    } else {
        segmenter.make(&file.path, &rgb)?
    };
    let time = (!kept).then(|| start.elapsed());
    let write = |path: &Path| {
        let path = path.to_owned();
        move |source| DataError::Write { path, source }
    };
    if pictures {
        let image = overlay::draw(&rgb, &map)?;
        create_parent(&picture)?;
        write_atomic(&picture, |w| {
            let encoder = JpegEncoder::new_with_quality(w, PICTURE_QUALITY);
            image.write_with_encoder(encoder).map_err(std::io::Error::other)
        })
        .map_err(write(&picture))?;
    } else if picture.is_file() {
        // It shows what the map was before.
        fs::remove_file(&picture).map_err(write(&picture))?;
    }
    // Last, so that a map that is kept the next time has its picture.
    if !kept {
        create_parent(&target)?;
        map.write_png(&target, &key)?;
    }
    Ok(Made { time, segments: map.count() })
}

fn create_parent(path: &Path) -> Result<(), DataError> {
    let Some(folder) = path.parent() else { return Ok(()) };
    fs::create_dir_all(folder)
        .map_err(|source| DataError::Write { path: folder.to_owned(), source })
}

/// `path` with one more extension; a name may hold dots of its own.
fn with_extension(path: PathBuf, extension: &str) -> PathBuf {
    let mut path = path.into_os_string();
    path.push(".");
    path.push(extension);
    path.into()
}

fn report(made: &[Made], left_out: usize, wall: Duration, out: &Path) {
    let times: Vec<f64> =
        made.iter().filter_map(|one| one.time).map(|time| time.as_secs_f64() * 1e3).collect();
    let mut counts: Vec<usize> = made.iter().map(|one| one.segments).collect();
    counts.sort_unstable();
    let mean = counts.iter().sum::<usize>() as f64 / counts.len().max(1) as f64;
    println!(
        "images          {}: {} made, {} kept, {left_out} left out",
        made.len() + left_out,
        times.len(),
        made.len() - times.len(),
    );
    if let (Some(least), Some(most)) = (counts.first(), counts.last()) {
        println!("segments        {mean:.1} per image, from {least} to {most}");
    }
    if !times.is_empty() {
        println!(
            "time            {:.1} ms per image on one core, {:.1} s in all with reading and writing",
            times.iter().sum::<f64>() / times.len() as f64,
            wall.as_secs_f64()
        );
    }
    println!("folder          {}", out.display());
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use image::RgbImage;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn call(images: &Path, out: &Path, more: &[&str]) -> Result<()> {
        let (images, out) = (images.display().to_string(), out.display().to_string());
        let fixed = ["segments", "--images", &images, "--out", &out];
        run(&Cli::parse_from(fixed.iter().chain(more)).args)
    }

    /// Times of change of the maps under `out`.
    fn times(out: &Path) -> Vec<std::time::SystemTime> {
        ["a", "sub/b"]
            .iter()
            .map(|name| {
                let path = with_extension(out.join(name), "png");
                fs::metadata(path).unwrap().modified().unwrap()
            })
            .collect()
    }

    #[test]
    fn maps_are_made_once_and_again_when_something_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (images, out) = (dir.path().join("images"), dir.path().join("out"));
        fs::create_dir_all(images.join("sub")).unwrap();
        let picture = |shift: u32| {
            RgbImage::from_fn(64, 48, move |x, _| {
                image::Rgb([if x + shift < 30 { 20 } else { 220 }; 3])
            })
        };
        picture(0).save(images.join("a.jpg")).unwrap();
        picture(8).save(images.join("sub/b.png")).unwrap();
        call(&images, &out, &["--pictures"]).unwrap();
        let map = SegmentMap::read_png(&out.join("sub/b.png"), false).unwrap();
        assert_eq!((map.width, map.height), (64, 48));
        // Both halves, and strips of the soft edge between them.
        assert!((2..10).contains(&map.count()), "{}", map.count());
        assert!(out.join("pictures/sub/b.jpg").is_file());

        let first = times(&out);
        call(&images, &out, &[]).unwrap();
        assert_eq!(times(&out), first);
        // Another size: all anew, and no picture of the old maps is left.
        call(&images, &out, &["--short-side", "64"]).unwrap();
        assert!(times(&out).iter().zip(&first).all(|(a, b)| a > b));
        assert!(!out.join("pictures/a.jpg").exists());
        // One image changes: it alone.
        let second = times(&out);
        picture(16).save(images.join("a.jpg")).unwrap();
        call(&images, &out, &["--short-side", "64"]).unwrap();
        let third = times(&out);
        assert!(third[0] > second[0] && third[1] == second[1]);

        // The maps are a source in turn.
        let (again, from) = (dir.path().join("again"), out.display().to_string());
        call(&images, &again, &["--source", "ids", "--from", &from]).unwrap();
        let copy = SegmentMap::read_png(&again.join("sub/b.png"), false).unwrap();
        assert_eq!(copy, SegmentMap::read_png(&out.join("sub/b.png"), false).unwrap());
    }

    #[test]
    fn equal_names_and_missing_maps_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let image = RgbImage::new(16, 16);
        image.save(dir.path().join("a.jpg")).unwrap();
        image.save(dir.path().join("a.png")).unwrap();
        let out = dir.path().join("out");
        let text = call(dir.path(), &out, &[]).unwrap_err().to_string();
        assert!(text.contains("a.jpg") && text.contains("a.png"), "{text}");
        fs::remove_file(dir.path().join("a.png")).unwrap();
        let from = dir.path().join("ids");
        fs::create_dir(&from).unwrap();
        let from = from.display().to_string();
        let text =
            call(dir.path(), &out, &["--source", "ids", "--from", &from]).unwrap_err().to_string();
        assert!(text.contains("no .png named like"), "{text}");
    }
}
