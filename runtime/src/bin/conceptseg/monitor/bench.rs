//! `conceptseg monitor bench`: how soon a disturbance is told of, and how often nothing is.
//!
//! Every clip becomes a camera. The first half of its frames is the footage that the baseline is
//! made from. The stream to be watched plays all frames to and fro, then disturbed ones, and then
//! undisturbed ones again. Thresholds are set leave-one-out: those for a clip come from the
//! undisturbed streams of all the other clips alone, as the least that gives them no alarm, with
//! a margin.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use comfy_table::Table;
use conceptseg::concepts::{ConceptLabeler, ConceptMap, SegmentationConfig};
use conceptseg::embed::{FrameEmbedder, InputSize, Model};
use conceptseg::frame::FrameView;
use conceptseg::monitor::baseline::BaselineBuilder;
use conceptseg::monitor::drift::Band;
use conceptseg::monitor::hysteresis::{Flip, Levels, Switch};
use conceptseg::monitor::windows::Windows;
use conceptseg::monitor::{EventKind, MonitorConfig, Reference, Sighting, StreamMonitor};
use conceptseg::stream::FrameResult;
use image::RgbImage;
use serde_json::json;

use super::distort::Disturbance;
use super::source::{NetworkArgs, images, name_of, read};
use crate::progress::progress_bar;

/// Seconds of undisturbed stream, of disturbance, and of undisturbed stream again.
const PARTS: [f64; 3] = [90.0, 15.0, 30.0];
/// Seconds at the start that do not count: the monitor learns.
const LEARN: f64 = 30.0;
/// Thresholds stand that much above the largest value of the other clips.
const MARGIN: f64 = 1.1;
/// The deviation of a distance is never taken to be smaller.
const FLOOR: f64 = 1e-3;
/// Steps of each channel of the colour histogram.
const STEPS: usize = 4;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    network: NetworkArgs,
    /// Folder with one folder of frames per clip, such as DAVIS' JPEGImages/480p.
    #[arg(long, value_name = "DIR")]
    clips: PathBuf,
    /// Frames a second of the clips.
    #[arg(long, default_value_t = 24.0)]
    fps: f64,
    /// Use every n-th frame, at an n-th of the frame rate.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    every: u32,
}

/// What is kept of a frame that went through the network.
struct Seen {
    image: RgbImage,
    result: FrameResult,
    /// Mean embedding, of unit length.
    embedding: Vec<f64>,
    /// Histogram of colours, of sum 1.
    colors: Vec<f64>,
}

/// A clip, undisturbed and disturbed.
struct Clip {
    name: String,
    frames: Vec<Seen>,
    disturbed: HashMap<&'static str, Vec<Seen>>,
    reference: Arc<Reference>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Monitor,
    Colors,
    Embedding,
    /// The same two, in deviations from the mean of their own history, as the monitor has its
    /// drift: otherwise the monitor would win by that alone.
    ColorsBand,
    EmbeddingBand,
}

impl Method {
    const ALL: [Self; 5] =
        [Self::Monitor, Self::Colors, Self::ColorsBand, Self::Embedding, Self::EmbeddingBand];

    const fn name(self) -> &'static str {
        match self {
            Self::Monitor => "monitor",
            Self::Colors => "colour histogram",
            Self::Embedding => "mean embedding",
            Self::ColorsBand => "colour histogram, own history",
            Self::EmbeddingBand => "mean embedding, own history",
        }
    }
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    ensure!((0.1..=1000.0).contains(&args.fps), "--fps must be 0.1 to 1000");
    let entries = std::fs::read_dir(&args.clips)
        .with_context(|| format!("cannot read the folder {}", args.clips.display()))?;
    let mut folders: Vec<_> =
        entries.filter_map(|e| Some(e.ok()?.path())).filter(|path| path.is_dir()).collect();
    folders.sort();
    ensure!(folders.len() >= 3, "{} holds fewer than three clips", args.clips.display());
    let model = args.network.open()?;
    let fps = args.fps / f64::from(args.every);
    let clips = look(args, &model, &folders)?;
    let hours = clips.len() as f64 * (PARTS[0] - LEARN) / 3600.0;

    let mut rows = Vec::new();
    for method in Method::ALL {
        // The largest values of each undisturbed stream.
        let tops: Vec<[f64; 2]> = (0..clips.len())
            .map(|at| Ok(watch(&clips, at, None, method, [f64::INFINITY; 2], fps)?.top))
            .collect::<Result<_>>()?;
        let limits = |at: usize| {
            let others = || tops.iter().enumerate().filter(move |(other, _)| *other != at);
            [0, 1].map(|signal| others().map(|(_, t)| t[signal]).fold(0.0, f64::max) * MARGIN)
        };
        let mut falses = 0;
        for at in 0..clips.len() {
            let told = watch(&clips, at, None, method, limits(at), fps)?.alarms;
            for (time, what) in told.iter().filter(|(time, _)| *time < PARTS[0]) {
                tracing::debug!(
                    "{} tells of {what} on {} at {time:.1} s",
                    method.name(),
                    clips[at].name
                );
                falses += 1;
            }
        }
        for disturbance in Disturbance::ALL {
            let mut delays = Vec::new();
            for at in 0..clips.len() {
                let told = watch(&clips, at, Some(disturbance), method, limits(at), fps)?.alarms;
                let during = PARTS[0]..PARTS[0] + PARTS[1];
                let first = told.into_iter().find(|(time, _)| during.contains(time));
                delays.extend(first.map(|(time, _)| time - PARTS[0]));
            }
            delays.sort_by(f64::total_cmp);
            let median = delays.get(delays.len().saturating_sub(1) / 2).copied();
            rows.push((disturbance, method, delays.len(), median, f64::from(falses) / hours));
        }
    }
    rows.sort_by_key(|row| Disturbance::ALL.iter().position(|d| *d == row.0));

    let mut out = std::io::stdout().lock();
    if json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(what, method, found, delay, alarms)| {
                json!({"disturbance": what.name(), "method": method.name(), "found": found,
                    "median_delay_s": delay, "false_alarms_per_hour": alarms})
            })
            .collect();
        let object = json!({"rows": rows, "clips": clips.len(), "fps": fps, "hours": hours});
        writeln!(out, "{object}")?;
        return Ok(());
    }
    let mut table = Table::new();
    table.set_header(["disturbance", "method", "found", "median delay", "false alarms per hour"]);
    for (what, method, found, delay, alarms) in rows {
        table.add_row([
            what.name().to_owned(),
            method.name().to_owned(),
            format!("{found} of {}", clips.len()),
            delay.map_or_else(|| "-".to_owned(), |d| format!("{d:.1} s")),
            format!("{alarms:.1}"),
        ]);
    }
    writeln!(out, "{table}")?;
    Ok(())
}

/// Sends all frames through the network, undisturbed and disturbed.
fn look(args: &Args, model: &Arc<Model>, folders: &[PathBuf]) -> Result<Vec<Clip>> {
    let files: Vec<Vec<PathBuf>> = folders
        .iter()
        .map(|folder| Ok(images(folder)?.into_iter().step_by(args.every as usize).collect()))
        .collect::<Result<_>>()?;
    let all: usize = files.iter().map(|files| files.len() * 5).sum();
    let bar = progress_bar("looking", "frames", all)?;
    let mut eye = Eye::new(args, model);
    let mut clips = Vec::new();
    for (folder, files) in folders.iter().zip(&files) {
        ensure!(files.len() >= 4, "{} holds fewer than four frames", folder.display());
        let mut frames = Vec::new();
        let mut disturbed: HashMap<_, Vec<_>> = HashMap::new();
        for (path, number) in files.iter().zip(0..) {
            let image = read(path)?;
            for kind in
                [Disturbance::Covered, Disturbance::Blur, Disturbance::Night, Disturbance::Cast]
            {
                let seen = eye.see(kind.apply(&image, number), path)?;
                disturbed.entry(kind.name()).or_default().push(seen);
            }
            frames.push(eye.see(image, path)?);
            bar.inc(5);
        }
        let mut builder = BaselineBuilder::new(model.bundle());
        for seen in &frames[..frames.len() / 2] {
            builder.add(&Sighting::of_result(&seen.result).collect::<Vec<_>>());
        }
        let reference = Reference::new(&builder.finish()?, &model.bundle().names);
        let (name, reference) = (name_of(folder), Arc::new(reference));
        clips.push(Clip { name, frames, disturbed, reference });
    }
    bar.finish_and_clear();
    Ok(clips)
}

struct Eye {
    model: Arc<Model>,
    size: InputSize,
    embedder: FrameEmbedder,
    labeler: ConceptLabeler,
}

impl Eye {
    fn new(args: &Args, model: &Arc<Model>) -> Self {
        Self {
            model: Arc::clone(model),
            size: InputSize::ShortSide(args.network.short_side()),
            embedder: FrameEmbedder::new(Arc::clone(model)),
            labeler: ConceptLabeler::new(),
        }
    }

    fn see(&mut self, image: RgbImage, path: &Path) -> Result<Seen> {
        let (width, height) = image.dimensions();
        let view = FrameView::rgb(width, height, image.as_raw())?;
        self.embedder.prepare(&view, self.size).with_context(|| path.display().to_string())?;
        let map = self.embedder.embed()?;
        let mut embedding = vec![0.0; map.dim];
        for cell in map.data.chunks_exact(map.dim.max(1)) {
            for (sum, value) in embedding.iter_mut().zip(cell) {
                *sum += f64::from(*value);
            }
        }
        let length = embedding.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
        for value in &mut embedding {
            *value /= length;
        }
        let mut labels = ConceptMap::default();
        let (codebook, config) = (self.model.codebook(), SegmentationConfig::default());
        self.labeler.label(map, codebook, &config, width, height, &mut labels)?;
        // Only the list of segments is used.
        (labels.concepts, labels.segments) = (Vec::new(), Vec::new());
        let mut colors = vec![0.0; STEPS * STEPS * STEPS];
        let one = 1.0 / f64::from(width * height);
        for pixel in image.pixels() {
            let [r, g, b] = pixel.0.map(|v| usize::from(v) * STEPS / 256);
            colors[(r * STEPS + g) * STEPS + b] += one;
        }
        let result =
            FrameResult { width, height, concepts: Some(labels), ..FrameResult::default() };
        Ok(Seen { image, result, embedding, colors })
    }
}

/// What a method says of a stream.
struct Watched {
    alarms: Vec<(f64, &'static str)>,
    /// Largest values of its signals in the undisturbed time, learning left out.
    top: [f64; 2],
}

/// Shows the stream of a clip to a method whose thresholds are `limits`.
fn watch(
    clips: &[Clip],
    at: usize,
    disturbance: Option<Disturbance>,
    method: Method,
    limits: [f64; 2],
    fps: f64,
) -> Result<Watched> {
    let clip = &clips[at];
    let stream = (0..(PARTS.iter().sum::<f64>() * fps) as usize).map(|step| {
        let time = step as f64 / fps;
        let disturbed = (PARTS[0]..PARTS[0] + PARTS[1]).contains(&time);
        let seen = match disturbance.filter(|_| disturbed) {
            None => to_and_fro(&clip.frames, step),
            Some(Disturbance::Unseen) => {
                to_and_fro(&clips[(at + clips.len() / 2) % clips.len()].frames, step)
            }
            Some(Disturbance::Frozen) => to_and_fro(&clip.frames, (PARTS[0] * fps) as usize),
            Some(kind) => to_and_fro(&clip.disturbed[kind.name()], step),
        };
        (time, seen)
    });
    let counts = |time: f64| (LEARN..PARTS[0]).contains(&time);
    let mut watched = Watched { alarms: Vec::new(), top: [0.0; 2] };
    let [first, second] = limits;

    if method == Method::Monitor {
        let usual = MonitorConfig::default();
        let levels = |on: f64, most: f64, levels: Levels| {
            let on = on.min(most);
            Levels { on, off: on * 0.6, ..levels }
        };
        let config = MonitorConfig {
            warm_up: LEARN,
            novel: levels(first, 1.0, usual.novel),
            drift: levels(second, 1e6, usual.drift),
            ..usual
        };
        let reference = Arc::clone(&clip.reference);
        let mut monitor = StreamMonitor::new(&clip.name, reference, Arc::default(), config)?;
        for (time, seen) in stream {
            let (width, height) = seen.image.dimensions();
            let view = FrameView::rgb(width, height, seen.image.as_raw())?;
            // The others are of single concepts, which the rivals know nothing of.
            let kinds = [
                EventKind::Novel,
                EventKind::Drifted,
                EventKind::Frozen,
                EventKind::Covered,
                EventKind::Blurred,
            ];
            let events = monitor.observe(&seen.result, Some(&view), time);
            let told = events.iter().filter(|event| kinds.contains(&event.kind));
            watched.alarms.extend(told.map(|event| (time, event.kind.as_str())));
            if counts(time) {
                let readings = monitor.readings();
                let values =
                    [readings.novelty.mean(0, 0), readings.drift_band.score(readings.drift)];
                for (top, value) in watched.top.iter_mut().zip(values) {
                    *top = top.max(value);
                }
            }
        }
        return Ok(watched);
    }

    let by_color = matches!(method, Method::Colors | Method::ColorsBand);
    let of = |seen: &Seen| if by_color { seen.colors.clone() } else { seen.embedding.clone() };
    // The mean of the footage, as the monitor has its baseline.
    let footage = &clip.frames[..clip.frames.len() / 2];
    let mut mean = vec![0.0; of(&clip.frames[0]).len()];
    for seen in footage {
        for (sum, value) in mean.iter_mut().zip(of(seen)) {
            *sum += value / footage.len() as f64;
        }
    }
    let usual = MonitorConfig::default();
    let mut window = Windows::new(&usual.windows[..1], 1);
    let levels = Levels { on: first, off: first * 0.6, ..usual.novel };
    let mut switch = Switch::default();
    let mut band = Band::new(usual.windows.last().copied().unwrap_or(900.0), FLOOR);
    for (time, seen) in stream {
        let value = of(seen);
        let distance = if by_color {
            value.iter().zip(&mean).map(|(a, b)| (a - b).abs()).sum::<f64>() / 2.0
        } else {
            let length = mean.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
            1.0 - value.iter().zip(&mean).map(|(a, b)| a * b).sum::<f64>() / length
        };
        window.add(if time > 0.0 { 1.0 / fps } else { 0.0 }, &std::iter::once(distance));
        let mut value = window.mean(0, 0);
        if matches!(method, Method::ColorsBand | Method::EmbeddingBand) {
            let mean = value;
            value = band.score(mean);
            if time < LEARN || !(switch.is_on() || value >= first) {
                band.learn(mean, 1.0 / fps);
            }
        }
        if counts(time) {
            watched.top[0] = watched.top[0].max(value);
        }
        if time >= LEARN && switch.update(value, time, &levels) == Some(Flip::On) {
            watched.alarms.push((time, "distance"));
        }
    }
    Ok(watched)
}

/// The frames played forwards, backwards, forwards ...
fn to_and_fro(frames: &[Seen], step: usize) -> &Seen {
    let period = 2 * frames.len() - 2;
    let place = step % period;
    &frames[if place < frames.len() { place } else { period - place }]
}
