//! `conceptseg monitor run`.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use conceptseg::bundle::Bundle;
use conceptseg::frame::FrameView;
use conceptseg::monitor::baseline::Baseline;
use conceptseg::monitor::rules::RuleSet;
use conceptseg::monitor::{MonitorConfig, Reference, StreamMonitor};
use conceptseg::results::read_records;
use serde_json::json;

use super::outputs::{Account, OutputArgs, Outputs};
use super::source::{NetworkArgs, images, name_of, read};

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

pub fn run(args: &Args, json: bool) -> Result<()> {
    ensure!((0.01..=1000.0).contains(&args.fps), "--fps must be 0.01 to 1000");
    let config = match &args.settings {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the settings {}", path.display()))?;
            MonitorConfig::parse(&text).with_context(|| path.display().to_string())?
        }
        None => MonitorConfig::default(),
    };
    let bundle = Bundle::open(&args.network.bundle)?;
    let baseline = match &args.baseline {
        Some(path) => Baseline::open(path, &bundle)?,
        None => Baseline::of_bundle(&bundle)?,
    };
    let reference = Arc::new(Reference::new(&baseline, &bundle.names));
    let rules = match &args.rules {
        Some(path) => RuleSet::open(path, &reference, &config.windows)?,
        None => RuleSet::default(),
    };
    let rules = Arc::new(rules);
    let monitor = |name: &str| {
        StreamMonitor::new(name, Arc::clone(&reference), Arc::clone(&rules), config.clone())
    };
    let mut outputs = Outputs::open(&args.outputs)?;
    let mut told = Vec::new();
    let model = if args.frames.is_empty() { None } else { Some(args.network.open()?) };
    for folder in &args.frames {
        let Some(model) = &model else { break };
        let files = images(folder)?;
        let mut monitor = monitor(&name_of(folder))?;
        let mut clock = Clock::new(args);
        let mut account = Account::new();
        let (mut stream, mut whole) = (args.network.stream(model), Duration::ZERO);
        for (at, path) in (0..args.repeat).flat_map(|_| &files).enumerate() {
            let image = read(path)?;
            let view = FrameView::rgb(image.width(), image.height(), image.as_raw())?;
            let start = Instant::now();
            let result = stream.process(&view).with_context(|| path.display().to_string())?;
            whole += start.elapsed();
            let time = clock.time(at, None);
            let start = Instant::now();
            let events = monitor.observe(result, Some(&view), time).to_vec();
            outputs.tell(&monitor, &events, start.elapsed(), &mut account)?;
        }
        outputs.report(&monitor, &mut account);
        told.push((monitor, account, Some(whole)));
    }
    for path in &args.results {
        let mut monitor = monitor(&name_of(path))?;
        let mut clock = Clock::new(args);
        let mut account = Account::new();
        let mut at = 0;
        for _ in 0..args.repeat {
            for record in read_records(path)? {
                let record = record?;
                let time = clock.time(at, record.pts_ns);
                at += 1;
                let start = Instant::now();
                let events = monitor.observe_record(&record, time).to_vec();
                outputs.tell(&monitor, &events, start.elapsed(), &mut account)?;
            }
        }
        outputs.report(&monitor, &mut account);
        told.push((monitor, account, None));
    }
    let (count, mqtt) = outputs.close();

    let mut out = std::io::stdout().lock();
    if json {
        let streams: Vec<_> = told
            .iter()
            .map(|(monitor, account, whole)| {
                let events: serde_json::Map<_, _> = account
                    .events()
                    .map(|(kind, n)| (kind.as_str().to_owned(), n.into()))
                    .collect();
                json!({
                    "stream": monitor.stream(), "frames": monitor.frames(), "events": events,
                    "monitor_seconds": account.busy().as_secs_f64(),
                    "frame_seconds": whole.map(|w| w.as_secs_f64()),
                    "memory_bytes": monitor.memory_bytes(),
                })
            })
            .collect();
        let mqtt = mqtt.map(|m| json!({"sent": m.sent, "dropped": m.dropped}));
        writeln!(out, "{}", json!({"streams": streams, "events": count, "mqtt": mqtt}))?;
        return Ok(());
    }
    for (monitor, account, whole) in &told {
        let events: Vec<_> =
            account.events().map(|(kind, n)| format!("{n} {}", kind.as_str())).collect();
        let events = if events.is_empty() { "no events".to_owned() } else { events.join(", ") };
        let per_frame = account.busy().as_secs_f64() * 1e6 / (monitor.frames().max(1) as f64);
        write!(
            out,
            "{}: {} frames, {events}; {per_frame:.0} us a frame",
            monitor.stream(),
            monitor.frames()
        )?;
        match whole {
            Some(whole) => {
                let share = account.busy().as_secs_f64() / whole.as_secs_f64().max(1e-9);
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

/// Gives frames their time, and waits for it where asked to.
struct Clock {
    fps: f64,
    pace: bool,
    start: Instant,
    last: f64,
    /// Added to the times of a stream that is shown again.
    offset: f64,
}

impl Clock {
    fn new(args: &Args) -> Self {
        let (fps, pace) = (args.fps, args.pace);
        Self { fps, pace, start: Instant::now(), last: 0.0, offset: 0.0 }
    }

    fn time(&mut self, at: usize, pts_ns: Option<u64>) -> f64 {
        let own = pts_ns.map_or(at as f64 / self.fps, |ns| ns as f64 / 1e9);
        if own + self.offset < self.last {
            self.offset = self.last + 1.0 / self.fps - own;
        }
        self.last = own + self.offset;
        if self.pace && self.last < 1e9 {
            let due = self.start + Duration::from_secs_f64(self.last.max(0.0));
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        self.last
    }
}
