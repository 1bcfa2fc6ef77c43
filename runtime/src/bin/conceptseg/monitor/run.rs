//! `conceptseg monitor run`.

use std::collections::HashSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use conceptseg::bundle::Bundle;
use conceptseg::embed::Model;
use conceptseg::frame::FrameView;
use conceptseg::monitor::output::Outputs;
use conceptseg::monitor::{Event, Setup, SetupFiles, StreamMonitor, Watch};
use conceptseg::results::read_records;
use serde_json::json;

use super::interrupt;
use super::outputs::OutputArgs;
use super::source::{NetworkArgs, images, name_of, read};

/// Time for messages that are on their way when all is done.
const LAST_CALL: Duration = Duration::from_secs(5);
/// Time that writing an event may take.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often a stream that waits looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    network: NetworkArgs,
    /// Folder of frames (jpg, jpeg, png), in the order of their names: a stream. May be given
    /// several times.
    #[arg(long, value_name = "DIR", required_unless_present = "results")]
    frames: Vec<PathBuf>,
    /// Results file (JSON lines), as `conceptresults` writes it: a stream. May be given several
    /// times.
    #[arg(long, value_name = "FILE")]
    results: Vec<PathBuf>,
    /// Frames a second, where a stream does not give times itself.
    #[arg(long, default_value_t = 30.0, value_name = "FPS")]
    fps: f64,
    /// Go no faster than the streams' own time.
    #[arg(long)]
    pace: bool,
    /// Show each stream that many times, one after the other.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Streams that are played side by side; further ones wait.
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    at_once: u16,
    /// What is normal, from `conceptseg monitor baseline`; the bundle's own statistics where
    /// absent.
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Rules of your own (TOML).
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// Settings of the monitor (TOML).
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    #[command(flatten)]
    outputs: OutputArgs,
}

/// A stream, as it was when it ended.
struct Played {
    watch: Watch,
    /// What labelling the frames took; of results, nothing is known of that.
    whole: Option<Duration>,
}

/// What all streams share.
struct Player<'a> {
    args: &'a Args,
    setup: Setup,
    outputs: Outputs,
    model: Option<Arc<Model>>,
    stop: &'a AtomicBool,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    ensure!((0.01..=1000.0).contains(&args.fps), "--fps must be 0.01 to 1000");
    let sources: Vec<_> = args.frames.iter().chain(&args.results).collect();
    let mut names = HashSet::new();
    for path in &sources {
        let name = name_of(path);
        ensure!(names.insert(name.clone()), "two streams have the name {name}; rename one");
    }
    let bundle = Bundle::open(&args.network.bundle)?;
    let files = SetupFiles {
        baseline: args.baseline.clone(),
        rules: args.rules.clone(),
        settings: args.settings.clone(),
    };
    let player = Player {
        setup: Setup::new(&files.read()?, &bundle)?,
        outputs: args.outputs.open()?,
        model: if args.frames.is_empty() { None } else { Some(args.network.open()?) },
        stop: interrupt::flag()?,
        args,
    };
    let played = player.play_all(&sources);
    let closed = player.outputs.close(LAST_CALL);
    let (told, mqtt) = (played?, closed?);

    let mut out = std::io::stdout().lock();
    if json {
        let streams: Vec<_> = told
            .iter()
            .map(|Played { watch, whole }| {
                let monitor = watch.monitor();
                let events: serde_json::Map<_, _> =
                    watch.events().map(|(kind, n)| (kind.as_str().to_owned(), n.into())).collect();
                json!({
                    "stream": monitor.stream(), "frames": monitor.frames(), "events": events,
                    "monitor_seconds": watch.busy().as_secs_f64(),
                    "frame_seconds": whole.map(|w| w.as_secs_f64()),
                    "memory_bytes": monitor.memory_bytes(),
                })
            })
            .collect();
        let count: u64 = told.iter().flat_map(|p| p.watch.events()).map(|(_, n)| n).sum();
        let mqtt = mqtt.map(|m| json!({"sent": m.sent, "dropped": m.dropped}));
        writeln!(out, "{}", json!({"streams": streams, "events": count, "mqtt": mqtt}))?;
        return Ok(());
    }
    for Played { watch, whole } in &told {
        let events: Vec<_> =
            watch.events().map(|(kind, n)| format!("{n} {}", kind.as_str())).collect();
        let events = if events.is_empty() { "no events".to_owned() } else { events.join(", ") };
        let (name, frames) = (watch.monitor().stream(), watch.monitor().frames());
        let per_frame = watch.busy().as_secs_f64() * 1e6 / (frames.max(1) as f64);
        write!(out, "{name}: {frames} frames, {events}; {per_frame:.0} us a frame")?;
        match whole {
            Some(whole) => {
                let share = watch.busy().as_secs_f64() / whole.as_secs_f64().max(1e-9);
                writeln!(out, " ({:.2} % of the frame's time)", share * 100.0)?;
            }
            None => writeln!(out)?,
        }
    }
    if let Some(counts) = mqtt {
        writeln!(out, "{} events sent to the broker, {} dropped", counts.sent, counts.dropped)?;
    }
    Ok(())
}

impl Player<'_> {
    /// Plays the streams side by side, and answers them in their order. The first that fails
    /// ends all.
    fn play_all(&self, sources: &[&PathBuf]) -> Result<Vec<Played>> {
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let at_once = sources.len().min(usize::from(self.args.at_once));
        let mut played = std::thread::scope(|scope| {
            let work = || {
                let mut played = Vec::new();
                let is_over =
                    || self.stop.load(Ordering::Relaxed) || failed.load(Ordering::Relaxed);
                while !is_over() {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(path) = sources.get(at) else { break };
                    let frames = at < self.args.frames.len();
                    match self.play(path, frames, &is_over) {
                        Ok(stream) => played.push((at, stream)),
                        Err(error) => {
                            failed.store(true, Ordering::Relaxed);
                            return Err(error);
                        }
                    }
                }
                Ok(played)
            };
            let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
            let join = |thread: ScopedJoinHandle<'_, Result<Vec<(usize, Played)>>>| {
                // A panic was reported where it happened.
                thread.join().map_err(|_| anyhow!("a stream ended by a mistake in the program"))?
            };
            let all: Vec<_> = threads.into_iter().map(join).collect();
            all.into_iter().collect::<Result<Vec<_>>>()
        })?
        .into_iter()
        .flatten()
        .collect::<Vec<_>>();
        played.sort_by_key(|(at, _)| *at);
        Ok(played.into_iter().map(|(_, stream)| stream).collect())
    }

    fn play(&self, path: &Path, frames: bool, is_over: &dyn Fn() -> bool) -> Result<Played> {
        let mut watch = self.setup.watch(&name_of(path))?;
        let whole = match &self.model {
            Some(model) if frames => Some(self.play_frames(path, model, &mut watch, is_over)?),
            _ => {
                self.play_results(path, &mut watch, is_over)?;
                None
            }
        };
        watch.report(&self.outputs);
        Ok(Played { watch, whole })
    }

    /// Answers what labelling the frames took.
    fn play_frames(
        &self,
        folder: &Path,
        model: &Arc<Model>,
        watch: &mut Watch,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Duration> {
        let files = images(folder)?;
        let mut clock = Clock::new(self.args, is_over);
        let (mut stream, mut whole) = (self.args.network.stream(model), Duration::ZERO);
        for (at, path) in (0..self.args.repeat).flat_map(|_| &files).enumerate() {
            let image = read(path)?;
            let view = FrameView::rgb(image.width(), image.height(), image.as_raw())?;
            let start = Instant::now();
            let result = stream.process(&view).with_context(|| path.display().to_string())?;
            whole += start.elapsed();
            let Some(time) = clock.time(at, None) else { break };
            self.frame(watch, |monitor| monitor.observe(result, Some(&view), time))?;
        }
        Ok(whole)
    }

    fn play_results(
        &self,
        path: &Path,
        watch: &mut Watch,
        is_over: &dyn Fn() -> bool,
    ) -> Result<()> {
        let mut clock = Clock::new(self.args, is_over);
        let mut at = 0;
        for _ in 0..self.args.repeat {
            for record in read_records(path)? {
                let record = record?;
                let Some(time) = clock.time(at, record.pts_ns) else { return Ok(()) };
                at += 1;
                self.frame(watch, |monitor| monitor.observe_record(&record, time))?;
            }
        }
        Ok(())
    }

    fn frame(
        &self,
        watch: &mut Watch,
        observe: impl FnOnce(&mut StreamMonitor) -> &[Event],
    ) -> Result<()> {
        // No camera waits here: a slow disk slows the streams down and loses nothing.
        if !watch.frame(&self.outputs, observe).is_empty() {
            self.outputs.flush(PATIENCE)?;
        }
        Ok(())
    }
}

/// Gives frames their time, and waits for it where asked to.
struct Clock<'a> {
    fps: f64,
    pace: bool,
    start: Instant,
    last: f64,
    /// Added to the times of a stream that is shown again.
    offset: f64,
    is_over: &'a dyn Fn() -> bool,
}

impl<'a> Clock<'a> {
    fn new(args: &Args, is_over: &'a dyn Fn() -> bool) -> Self {
        let (fps, pace) = (args.fps, args.pace);
        Self { fps, pace, start: Instant::now(), last: 0.0, offset: 0.0, is_over }
    }

    /// `None` where the stream is to end.
    fn time(&mut self, at: usize, pts_ns: Option<u64>) -> Option<f64> {
        let own = pts_ns.map_or(at as f64 / self.fps, |ns| ns as f64 / 1e9);
        if own + self.offset < self.last {
            self.offset = self.last + 1.0 / self.fps - own;
        }
        self.last = own + self.offset;
        if self.pace && self.last < 1e9 {
            let due = self.start + Duration::from_secs_f64(self.last.max(0.0));
            loop {
                let left = due.saturating_duration_since(Instant::now());
                if left.is_zero() || (self.is_over)() {
                    break;
                }
                std::thread::sleep(left.min(LOOK));
            }
        }
        (!(self.is_over)()).then_some(self.last)
    }
}
