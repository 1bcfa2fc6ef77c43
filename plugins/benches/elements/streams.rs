//! Several streams in one process that share one model: frames per second, age of results, memory.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use gst::prelude::*;
use gstconceptseg::meta::Analysis;

use super::{caps, frames, median};

#[derive(clap::Args)]
pub struct Options {
    /// Numbers of streams, rising: each is reached by adding streams to those that play.
    #[arg(long, value_delimiter = ',', default_value = "1,4,16")]
    streams: Vec<usize>,
    /// What frames do that come too early: `skip` plays cameras of 30 frames per second, `block` files.
    #[arg(long, default_value = "skip")]
    policy: String,
    /// Format of the frames.
    #[arg(long, default_value = "NV12")]
    format: String,
    /// Results that each stream has to have before the measurement begins.
    #[arg(long, default_value_t = 6)]
    warm_up: u64,
    /// Draws onto the frames, which takes more of the processor than all the rest but the network.
    #[arg(long)]
    draw: bool,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
}

/// Frames per second of a camera.
const RATE: u64 = 30;

/// Frames that are sent again and again.
const FRAMES: u32 = 30;

pub fn run(all: &super::Options, own: &Options) -> anyhow::Result<()> {
    let interval = gst::ClockTime::SECOND / RATE;
    let (pictures, mask) = frames(&own.format, FRAMES, interval)?;
    let pictures = Arc::new(pictures);
    let first = gst::Buffer::from_slice(mask.data);
    println!(
        "{} at short side {}, late-policy={}, before the first stream: {:.0} MiB",
        all.backend,
        all.short_side,
        own.policy,
        resident()?
    );
    println!(
        "| streams | frames/s | results/s | median age (ms) | worst age (ms) | network (ms) | memory (MiB) | per added stream (MiB) |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut streams: Vec<Stream> = Vec::new();
    let mut base = None;
    for &count in &own.streams {
        while streams.len() < count {
            let element = all.element("conceptseg", &own.policy)?;
            element.set_property("initial-mask", &first);
            if !own.draw {
                element.set_property_from_str("draw", "0");
            }
            streams.push(Stream::start(element, own, Arc::clone(&pictures))?);
        }
        while streams.iter().any(|stream| stream.seen.results.load(Ordering::Relaxed) < own.warm_up)
        {
            streams.iter().try_for_each(Stream::check)?;
            std::thread::sleep(Duration::from_millis(100));
        }
        for stream in &streams {
            stream.seen.reset();
        }
        let begin = Instant::now();
        let mut memory = 0.0_f64;
        while begin.elapsed() < Duration::from_secs(own.seconds) {
            std::thread::sleep(Duration::from_millis(100));
            memory = memory.max(resident()?);
        }
        let seconds = begin.elapsed().as_secs_f64();
        streams.iter().try_for_each(Stream::check)?;
        let sum = |of: fn(&Seen) -> &AtomicU64| {
            let counts = streams.iter().map(|stream| of(&stream.seen).load(Ordering::Relaxed));
            counts.sum::<u64>() as f64 / seconds
        };
        let mut ages: Vec<f64> = streams.iter().flat_map(|stream| stream.seen.ages()).collect();
        let mut network: Vec<f64> = streams.iter().filter_map(Stream::network_median).collect();
        let (one, of_one) = *base.get_or_insert((count, memory));
        let added = count.checked_sub(one).filter(|&n| n > 0);
        println!(
            "| {count} | {:.1} | {:.1} | {:.0} | {:.0} | {:.1} | {memory:.0} | {} |",
            sum(|seen| &seen.frames),
            sum(|seen| &seen.results),
            median(&mut ages),
            ages.last().copied().unwrap_or(0.0),
            median(&mut network),
            added.map_or_else(String::new, |n| format!("{:.1}", (memory - of_one) / n as f64)),
        );
    }
    streams.into_iter().try_for_each(Stream::stop)
}

/// Memory of this process that is in use, in MiB.
fn resident() -> anyhow::Result<f64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: f64 =
        statm.split_whitespace().nth(1).context("/proc/self/statm is short")?.parse()?;
    // The size of a page on every machine that this runs on.
    Ok(pages * 4096.0 / f64::from(1 << 20))
}

/// What came out at the end of a stream since the last reset.
#[derive(Default)]
struct Seen {
    frames: AtomicU64,
    results: AtomicU64,
    ages: Mutex<Vec<f64>>,
}

impl Seen {
    fn reset(&self) {
        self.frames.store(0, Ordering::Relaxed);
        self.results.store(0, Ordering::Relaxed);
        self.ages.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn ages(&self) -> Vec<f64> {
        self.ages.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, buffer: &gst::BufferRef, last: &AtomicU64) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        let Ok(Some(analysis)) = Analysis::from_buffer(buffer) else { return };
        let Some((source, age)) = analysis.masks_source() else { return };
        if last.swap(source.frame, Ordering::Relaxed) != source.frame {
            self.results.fetch_add(1, Ordering::Relaxed);
        }
        let mut ages = self.ages.lock().unwrap_or_else(PoisonError::into_inner);
        ages.push(age.age.nseconds() as f64 / 1e6);
    }
}

/// One pipeline with its own source.
struct Stream {
    pipeline: gst::Pipeline,
    element: gst::Element,
    seen: Arc<Seen>,
    quit: Arc<AtomicBool>,
    feeder: JoinHandle<()>,
}

impl Stream {
    fn start(
        element: gst::Element,
        own: &Options,
        pictures: Arc<Vec<gst::Buffer>>,
    ) -> anyhow::Result<Self> {
        let live = own.policy == "skip";
        let source = gst_app::AppSrc::builder()
            .caps(&caps(&own.format))
            .format(gst::Format::Time)
            .is_live(live)
            .max_buffers(2)
            .block(true)
            .build();
        let sink = gst::ElementFactory::make("fakesink").property("sync", false).build()?;
        let pipeline = gst::Pipeline::new();
        pipeline.add_many([source.upcast_ref(), &element, &sink])?;
        gst::Element::link_many([source.upcast_ref(), &element, &sink])?;
        let seen = Arc::new(Seen::default());
        let (noted, last) = (Arc::clone(&seen), AtomicU64::new(u64::MAX));
        let pad = sink.static_pad("sink").context("a sink without a pad")?;
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            if let Some(buffer) = info.buffer() {
                noted.note(buffer, &last);
            }
            gst::PadProbeReturn::Ok
        });
        pipeline.set_state(gst::State::Playing)?;
        let quit = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&quit);
        let feeder = std::thread::spawn(move || feed(&source, &pictures, live, &stop));
        Ok(Self { pipeline, element, seen, quit, feeder })
    }

    /// Fails where the stream has failed.
    fn check(&self) -> anyhow::Result<()> {
        let bus = self.pipeline.bus().context("a pipeline without a bus")?;
        match bus.pop_filtered(&[gst::MessageType::Error]).as_ref().map(|m| m.view()) {
            Some(gst::MessageView::Error(error)) => anyhow::bail!("{}", error.error()),
            _ => Ok(()),
        }
    }

    fn network_median(&self) -> Option<f64> {
        let stats = self.element.property::<gst::Structure>("stats");
        stats.get::<gst::Structure>("network").ok()?.get("median").ok()
    }

    fn stop(self) -> anyhow::Result<()> {
        self.quit.store(true, Ordering::Relaxed);
        self.pipeline.set_state(gst::State::Null)?;
        self.feeder.join().map_err(|_| anyhow::anyhow!("a source panicked"))
    }
}

/// Sends frames until told to stop, at the pace of a camera where `live`.
fn feed(source: &gst_app::AppSrc, pictures: &[gst::Buffer], live: bool, quit: &AtomicBool) {
    let begin = Instant::now();
    for (number, picture) in (0_u64..).zip(pictures.iter().cycle()) {
        if quit.load(Ordering::Relaxed) {
            return;
        }
        let mut frame = picture.copy();
        frame.make_mut().set_pts(gst::ClockTime::SECOND * number / RATE);
        if live {
            let due = Duration::from_secs(1) * number as u32 / RATE as u32;
            std::thread::sleep(due.saturating_sub(begin.elapsed()));
        }
        // The end of the pipeline is the only reason to refuse.
        if source.push_buffer(frame).is_err() {
            return;
        }
    }
}
