//! Time of a frame in each element beyond the element's own computation.
//!
//! A frame is timed from the call of the element's pad to the end of that call, which includes
//! handing it on to a sink. The computation is what the element itself notes on the frame for
//! preparation, network, concepts and propagation. Drawing and writing are not noted: the same
//! calls of the library are timed beside the elements, in turns with them.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use conceptseg::concepts::ConceptMap;
use conceptseg::frame::{Colorimetry, FrameViewMut, PixelFormat, PlaneMut, YuvMatrix};
use conceptseg::overlay::{ConceptColors, OverlayStyle, draw_frame};
use conceptseg::propagate::MaskMap;
use conceptseg::results::{FrameRecord, RecordWriter, read_records};
use conceptseg::rle::Rle;
use gst::prelude::*;
use gst_check::Harness;
use gstconceptseg::meta::{Analysis, Embedding};

use super::{SIZE, caps, frames, median, quantile};

#[derive(clap::Args)]
pub struct Options {
    /// Frames per element, policy and round.
    #[arg(long, default_value_t = 60)]
    frames: usize,
    /// Rounds over all elements.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Milliseconds between frames where late-policy is skip.
    #[arg(long, default_value_t = 20)]
    interval: u64,
    /// Only the elements whose names begin so.
    #[arg(long, default_value = "")]
    only: String,
}

/// Frames that are sent again and again.
const FRAMES: u32 = 12;

/// Frames at the start of each run that are not counted: they load code and memory.
const WARM_UP: usize = 5;

/// Time stamps lie so close that no result is ever late: a frame that waits for a newer result
/// does so on purpose, and would hide what else takes time.
const STEP: gst::ClockTime = gst::ClockTime::from_mseconds(1);

pub fn run(all: &super::Options, own: &Options) -> anyhow::Result<()> {
    println!(
        "| element | late-policy | format | frame in the element (ms) | overhead: median (ms) | 95 % | rounds |"
    );
    println!("|---|---|---|---|---|---|---|");
    for format in ["NV12", "RGB"] {
        let inputs = Inputs::new(all, format)?;
        let cases = Case::ALL.iter().filter(|case| case.name().0.starts_with(&own.only));
        let mut rows: Vec<Row> = cases.copied().map(Row::new).collect();
        for _ in 0..own.rounds {
            for row in &mut rows {
                row.add(&row.case.run(all, own, &inputs)?);
            }
        }
        for row in &mut rows {
            row.print(format);
        }
    }
    Ok(())
}

/// What is measured.
#[derive(Clone, Copy)]
enum Case {
    Embed(&'static str),
    Label(&'static str),
    Propagate(&'static str),
    Overlay,
    Lines,
    Messages,
    Idle,
}

impl Case {
    const ALL: [Self; 10] = [
        Self::Embed("block"),
        Self::Embed("skip"),
        Self::Label("block"),
        Self::Label("skip"),
        Self::Propagate("block"),
        Self::Propagate("skip"),
        Self::Overlay,
        Self::Lines,
        Self::Messages,
        Self::Idle,
    ];

    fn name(self) -> (&'static str, &'static str) {
        match self {
            Self::Embed(policy) => ("conceptembed", policy),
            Self::Label(policy) => ("conceptlabel", policy),
            Self::Propagate(policy) => ("maskpropagate", policy),
            Self::Overlay => ("conceptoverlay", ""),
            Self::Lines => ("conceptmetasink location", ""),
            Self::Messages => ("conceptmetasink post-messages", ""),
            Self::Idle => ("conceptmetasink", ""),
        }
    }
}

/// Frames as they come to each element.
struct Inputs {
    format: &'static str,
    plain: Vec<gst::Buffer>,
    embedded: Vec<gst::Buffer>,
    complete: Vec<gst::Buffer>,
    first: gst::Buffer,
    /// Holds the model, which the concepts are looked up in.
    holder: gst::Element,
}

impl Drop for Inputs {
    fn drop(&mut self) {
        // Going down cannot fail.
        let _ = self.holder.set_state(gst::State::Null);
    }
}

impl Inputs {
    fn new(all: &super::Options, format: &'static str) -> anyhow::Result<Self> {
        let holder = all.element("conceptembed", "block")?;
        holder.set_state(gst::State::Paused)?;
        let (plain, mask) = frames(format, FRAMES, STEP)?;
        let first = gst::Buffer::from_slice(mask.data);
        let embedded = through(&all.element("conceptembed", "block")?, format, &plain)?;
        let label = element("conceptlabel", "block")?;
        let labelled = through(&label, format, &embedded)?;
        let complete = through(&propagate("block", &first)?, format, &labelled)?;
        Ok(Self { format, plain, embedded, complete, first, holder })
    }
}

fn element(factory: &str, policy: &str) -> anyhow::Result<gst::Element> {
    let element = gst::ElementFactory::make(factory).build()?;
    if !policy.is_empty() {
        element.set_property_from_str("late-policy", policy);
    }
    Ok(element)
}

fn propagate(policy: &str, first: &gst::Buffer) -> anyhow::Result<gst::Element> {
    let element = element("maskpropagate", policy)?;
    element.set_property("initial-mask", first);
    Ok(element)
}

fn harness(element: &gst::Element, format: &str) -> Harness {
    let mut harness = Harness::with_element(element, Some("sink"), Some("src"));
    harness.play();
    harness.set_src_caps(caps(format));
    harness
}

fn through(
    element: &gst::Element,
    format: &str,
    frames: &[gst::Buffer],
) -> anyhow::Result<Vec<gst::Buffer>> {
    let mut harness = harness(element, format);
    frames.iter().map(|frame| Ok(harness.push_and_pull(frame.copy())?)).collect()
}

/// Milliseconds in the element and of its computation, frame by frame.
type Times = Vec<(f64, f64)>;

impl Case {
    fn run(self, all: &super::Options, own: &Options, inputs: &Inputs) -> anyhow::Result<Times> {
        let Inputs { format, plain, embedded, complete, first, .. } = inputs;
        match self {
            Self::Embed(policy) => {
                let embed = all.element("conceptembed", policy)?;
                timed(&embed, format, plain, own, policy)
            }
            Self::Label(policy) => {
                let label = element("conceptlabel", policy)?;
                timed(&label, format, embedded, own, policy)
            }
            Self::Propagate(policy) => {
                timed(&propagate(policy, first)?, format, embedded, own, policy)
            }
            Self::Overlay => {
                let times = timed(&element("conceptoverlay", "")?, format, complete, own, "")?;
                beside(times, own.frames, drawing(format, &complete[0])?)
            }
            Self::Lines => {
                let folder = tempfile::tempdir()?;
                let path = folder.path().join("results.jsonl");
                let sink = element("conceptmetasink", "")?;
                sink.set_property("location", &path);
                let times = timed(&sink, format, complete, own, "")?;
                let record = read_records(&path)?.next().context("no results")??;
                let writer = RecordWriter::create(&folder.path().join("again.jsonl"))?;
                beside(times, own.frames, writing(record, &complete[0], writer)?)
            }
            Self::Messages => {
                let sink = element("conceptmetasink", "")?;
                sink.set_property("post-messages", true);
                timed(&sink, format, complete, own, "")
            }
            Self::Idle => timed(&element("conceptmetasink", "")?, format, complete, own, ""),
        }
    }
}

/// Sends frames through an element.
fn timed(
    element: &gst::Element,
    format: &str,
    frames: &[gst::Buffer],
    own: &Options,
    policy: &str,
) -> anyhow::Result<Times> {
    let mut harness = harness(element, format);
    let mut times = Times::new();
    let begin = Instant::now();
    for (index, frame) in frames.iter().cycle().take(WARM_UP + own.frames).enumerate() {
        // Of its own, as a decoder's frame is: drawing on a shared one would copy it first.
        let frame = frame.copy_deep()?;
        if policy == "skip" {
            let due = Duration::from_millis(own.interval * index as u64);
            std::thread::sleep(due.saturating_sub(begin.elapsed()));
        }
        let pushed = Instant::now();
        harness.push(frame)?;
        let taken = pushed.elapsed();
        let output = harness.pull()?;
        if index >= WARM_UP {
            let computed = if policy == "block" { computation(element, &output)? } else { 0.0 };
            times.push((taken.as_secs_f64() * 1e3, computed));
        }
    }
    // Completes a results file.
    harness.push_event(gst::event::Eos::new());
    Ok(times)
}

/// What an element notes on a frame about its computation, in milliseconds.
fn computation(element: &gst::Element, frame: &gst::BufferRef) -> anyhow::Result<f64> {
    let factory = element.factory().context("an element without a factory")?;
    let time = if factory.name() == "conceptembed" {
        let (embedding, _) = Embedding::from_buffer(frame)?.context("no embeddings")?;
        embedding.source.times.preprocess + embedding.source.times.network
    } else {
        let analysis = Analysis::from_buffer(frame)?.context("no results")?;
        let of = |found: Option<&(gstconceptseg::meta::Source, _)>| {
            found.map(|(source, _)| source.times)
        };
        match factory.name().as_str() {
            "conceptlabel" => of(analysis.concepts_source()).context("no concepts")?.concepts,
            _ => of(analysis.masks_source()).context("no masks")?.propagation,
        }
    };
    Ok(time.as_secs_f64() * 1e3)
}

/// Times the computation itself as often, and takes its median off each frame.
fn beside(
    times: Times,
    count: usize,
    mut work: impl FnMut() -> anyhow::Result<Duration>,
) -> anyhow::Result<Times> {
    let alone: Result<Vec<_>, _> =
        (0..count).map(|_| work().map(|time| time.as_secs_f64() * 1e3)).collect();
    let alone = median(&mut alone?);
    Ok(times.into_iter().map(|(taken, _)| (taken, alone)).collect())
}

/// Drawing without the element.
fn drawing(
    format: &str,
    frame: &gst::Buffer,
) -> anyhow::Result<impl FnMut() -> anyhow::Result<Duration>> {
    let analysis = Analysis::from_buffer(frame)?.context("no results")?;
    let (mut concepts, mut masks) = (ConceptMap::default(), MaskMap::default());
    analysis.read_concepts(SIZE.0, SIZE.1, &mut concepts)?;
    analysis.read_masks(SIZE.0, SIZE.1, &mut masks)?;
    let (colors, style) = (ConceptColors::new(512), OverlayStyle::default());
    let pixels = frame.map_readable()?.to_vec();
    let (format, strides) = match format {
        "NV12" => (PixelFormat::Nv12, vec![856, 856]),
        _ => (PixelFormat::Rgb, vec![2564]),
    };
    let split = if strides.len() == 2 { 856 * 480 } else { pixels.len() };
    Ok(move || {
        let mut copy = pixels.clone();
        let (first, second) = copy.split_at_mut(split);
        let planes = [first, second].into_iter().zip(&strides);
        let planes = planes.map(|(data, &stride)| PlaneMut { data, stride }).collect();
        let color = Colorimetry { matrix: YuvMatrix::Bt601, full_range: false };
        let mut view = FrameViewMut::new(format, SIZE.0, SIZE.1, planes, color)?;
        let begin = Instant::now();
        draw_frame(&mut view, Some(&concepts), Some(&masks), &style, &colors)?;
        Ok(begin.elapsed())
    })
}

/// Masks to lines without the element.
fn writing(
    mut record: FrameRecord,
    frame: &gst::Buffer,
    mut writer: RecordWriter,
) -> anyhow::Result<impl FnMut() -> anyhow::Result<Duration>> {
    let analysis = Analysis::from_buffer(frame)?.context("no results")?;
    let mut masks = MaskMap::default();
    analysis.read_masks(SIZE.0, SIZE.1, &mut masks)?;
    Ok(move || {
        let begin = Instant::now();
        for instance in &mut record.instances {
            let (id, bbox) = (instance.id, instance.bbox);
            instance.segmentation = Rle::encode(&masks.labels, SIZE.0, SIZE.1, id, bbox);
        }
        writer.write(&record)?;
        Ok(begin.elapsed())
    })
}

/// All rounds of one case.
struct Row {
    case: Case,
    taken: Vec<f64>,
    overhead: Vec<f64>,
    medians: Vec<f64>,
}

impl Row {
    fn new(case: Case) -> Self {
        Self { case, taken: Vec::new(), overhead: Vec::new(), medians: Vec::new() }
    }

    fn add(&mut self, times: &[(f64, f64)]) {
        let mut overhead: Vec<f64> = times.iter().map(|(taken, own)| taken - own).collect();
        self.medians.push(median(&mut overhead));
        self.overhead.append(&mut overhead);
        self.taken.extend(times.iter().map(|(taken, _)| taken));
    }

    fn print(&mut self, format: &str) {
        let (name, policy) = self.case.name();
        let (taken, overhead) = (median(&mut self.taken), median(&mut self.overhead));
        let high = quantile(&mut self.overhead, 0.95);
        let rounds: Vec<_> = self.medians.iter().map(|m| format!("{m:.3}")).collect();
        println!(
            "| `{name}` | {policy} | {format} | {taken:.3} | {overhead:.3} | {high:.3} | {} |",
            rounds.join(" ")
        );
    }
}
