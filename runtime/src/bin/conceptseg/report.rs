//! `conceptseg report`: what a run gave, as a table, masks and a contact sheet.

mod sheet;
mod summary;

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use conceptseg::files::write_atomic;
use conceptseg::labels::{LabelMap, MAX_SIDE};
use conceptseg::metrics::davis::{self, Figures};
use conceptseg::results::{FrameRecord, read_records};
use indicatif::ProgressBar;
use summary::{Summary, Tally};

/// Turn the JSON lines of a run into a table, masks and a contact sheet.
///
/// The folder gets masks/NNNNN.png (palette PNGs, decoded from the results), summary.txt
/// and, with --frames, contact-sheet.png. The table also goes to standard output.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Results of the `conceptseg` element: one JSON object per line.
    #[arg(long, value_name = "FILE.jsonl")]
    results: PathBuf,
    /// Folder of annotated frames named by frame number (PNG or JPEG) for the contact sheet.
    #[arg(long, value_name = "DIR")]
    frames: Option<PathBuf>,
    /// Folder of true masks named like the results' (00000.png …): J and F are added.
    #[arg(long, value_name = "DIR")]
    annotations: Option<PathBuf>,
    /// Seconds that the whole run took, for its frame rate.
    #[arg(long, value_name = "S")]
    elapsed_seconds: Option<f64>,
    /// Peak resident memory of the run, in KiB.
    #[arg(long, value_name = "KIB")]
    peak_memory_kib: Option<u64>,
    /// Folder to write to; created where it is missing. It may not hold masks yet.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let out = &args.out;
    let cannot = || format!("cannot write the report to {}", out.display());
    let masks = out.join("masks");
    if fs::read_dir(&masks).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} already holds files; give --out a new folder", masks.display());
    }
    // Refuses what cannot be read before anything is created.
    let records = read_records(&args.results)?;
    fs::create_dir_all(out).with_context(cannot)?;
    // Everything is made in here and moved at the end, so that no half report stays behind.
    let staging =
        tempfile::Builder::new().prefix(".report-").tempdir_in(out).with_context(cannot)?;
    let new_masks = staging.path().join("masks");
    fs::create_dir(&new_masks).with_context(cannot)?;

    // Hidden where standard error is not a terminal.
    let spinner = ProgressBar::new_spinner().with_message("reading the results");
    let mut tally = Tally::default();
    // From the first mask on every frame gets one, an empty one where all objects are gone.
    let mut carries_masks = false;
    for (index, record) in records.enumerate() {
        let record = record?;
        carries_masks |= !record.instances.is_empty();
        if carries_masks {
            mask_of(&record)
                .with_context(|| format!("{}, line {}", args.results.display(), index + 1))?
                .write_png(&new_masks.join(format!("{:05}.png", record.frame)))?;
        }
        tally.add(&record);
        spinner.tick();
    }
    spinner.finish_and_clear();
    ensure!(
        tally.frames() > 0,
        "{} holds no frame; was the video processed to its end?",
        args.results.display()
    );

    let quality = match &args.annotations {
        Some(annotations) => Some(score(annotations, &new_masks)?),
        None => None,
    };
    let summary = Summary::new(&tally, args.elapsed_seconds, args.peak_memory_kib, quality);
    let table = summary.table();
    let contact_sheet = match &args.frames {
        Some(frames) => Some(sheet::contact_sheet(frames)?),
        None => None,
    };

    fs::rename(&new_masks, &masks).with_context(cannot)?;
    if let Some(sheet) = contact_sheet {
        let mut png = Vec::new();
        sheet.write_to(&mut io::Cursor::new(&mut png), image::ImageFormat::Png)?;
        write_atomic(&out.join("contact-sheet.png"), |w| w.write_all(&png)).with_context(cannot)?;
    }
    write_atomic(&out.join("summary.txt"), |w| w.write_all(table.as_bytes()))
        .with_context(cannot)?;

    let mut stdout = io::stdout().lock();
    if json {
        writeln!(stdout, "{}", serde_json::to_string(&summary)?)?;
    } else {
        stdout.write_all(table.as_bytes())?;
    }
    Ok(())
}

/// The instances of a record as one map.
fn mask_of(record: &FrameRecord) -> Result<LabelMap> {
    let (width, height) = (record.width, record.height);
    ensure!(
        (1..=MAX_SIDE).contains(&width) && (1..=MAX_SIDE).contains(&height),
        "the frame is {width}x{height}; sides of 1 to {MAX_SIDE} pixels are read",
    );
    let mut map = LabelMap::background(width, height);
    for instance in &record.instances {
        let [mask_height, mask_width] = instance.segmentation.size;
        ensure!(
            (mask_width, mask_height) == (width, height),
            "the mask of instance {} is {mask_width}x{mask_height}, but the frame is {width}x{height}",
            instance.id,
        );
        for (label, inside) in map.data.iter_mut().zip(instance.segmentation.decode()?) {
            if inside {
                *label = instance.id;
            }
        }
    }
    Ok(map)
}

fn score(annotations: &Path, masks: &Path) -> Result<Figures> {
    let score = davis::score_folders(annotations, masks, None, &|| {})
        .with_context(|| format!("cannot score against {}", annotations.display()))?;
    let figures: Vec<_> = score.objects.iter().map(davis::ObjectScore::figures).collect();
    Ok(Figures::mean_of(&figures.iter().collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use conceptseg::results::{InstanceRecord, Latency};
    use conceptseg::rle::Rle;

    fn record(frame: u64) -> FrameRecord {
        let labels = [0u8, 0, 3, 3, 0, 7, 0, 7, 0, 0, 0, 7];
        let instance = |id: u8| InstanceRecord {
            id,
            area: 3,
            bbox: [0, 0, 4, 3],
            confidence: 1.0,
            segmentation: Rle::encode(&labels, 4, 3, id, [0, 0, 4, 3]),
        };
        FrameRecord {
            frame,
            pts_ns: Some(frame * 40_000_000),
            age_ns: None,
            width: 4,
            height: 3,
            latency_ms: Latency { network: 20.0, total: 20.0, ..Latency::default() },
            concepts: Vec::new(),
            instances: vec![instance(3), instance(7)],
        }
    }

    fn write_lines(path: &Path, lines: &[String]) {
        fs::write(path, lines.join("\n") + "\n").unwrap();
    }

    fn args(dir: &Path) -> Args {
        Args {
            results: dir.join("r.jsonl"),
            frames: None,
            annotations: None,
            elapsed_seconds: None,
            peak_memory_kib: None,
            out: dir.join("out"),
        }
    }

    #[test]
    fn masks_of_the_results_score_full_marks_against_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let mut args = args(dir.path());
        let lines: Vec<String> =
            (0..4).map(|i| serde_json::to_string(&record(i)).unwrap()).collect();
        write_lines(&args.results, &lines);
        run(&args, false).unwrap();
        let mask = LabelMap::read_png(&args.out.join("masks/00003.png")).unwrap();
        assert_eq!(mask.data, [0, 0, 3, 3, 0, 7, 0, 7, 0, 0, 0, 7]);

        let again = run(&args, false).unwrap_err().to_string();
        assert!(again.contains("already holds files"), "{again}");

        args.annotations = Some(args.out.join("masks"));
        args.out = dir.path().join("second");
        run(&args, true).unwrap();
        let text = fs::read_to_string(args.out.join("summary.txt")).unwrap();
        assert!(text.contains("J mean") && text.contains("1.000"), "{text}");
        assert_eq!(fs::read_dir(&args.out).unwrap().count(), 2, "no litter");
    }

    #[test]
    fn a_broken_line_is_named_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let args = args(dir.path());
        let good = serde_json::to_string(&record(0)).unwrap();
        write_lines(&args.results, &[good.clone(), "{\"frame\":".into(), good.clone()]);
        let message = format!("{:#}", run(&args, false).unwrap_err());
        assert!(message.contains("r.jsonl, line 2"), "{message}");
        assert_eq!(fs::read_dir(&args.out).unwrap().count(), 0);

        let wrong = good.replace("\"size\":[3,4]", "\"size\":[3,5]");
        write_lines(&args.results, &[good, wrong]);
        let message = format!("{:#}", run(&args, false).unwrap_err());
        assert!(message.contains("line 2") && message.contains("5x3"), "{message}");

        fs::write(&args.results, "").unwrap();
        let message = run(&args, false).unwrap_err().to_string();
        assert!(message.contains("holds no frame"), "{message}");
    }
}
