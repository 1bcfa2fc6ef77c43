//! What keeps a live stream live: frames pass, work is done on the latest one.
//!
//! With [`LatePolicy::Block`], each frame waits for its own result. With [`LatePolicy::Skip`], a
//! thread works on one frame at a time; a frame that comes while it is idle becomes its next, and
//! every frame passes at once with the latest result. There is one exception, which bounds the
//! age of results: a frame that would pass with a result older than two inference times waits for
//! the one that is being made. It has been in the making for all but one frame interval by then,
//! so that a frame is never held for longer than that interval or one inference, whichever is
//! shorter; and where inference is faster than half an interval, each frame shows its own result.

mod latency;
#[cfg(test)]
mod tests;
mod worker;

pub use latency::LatencyMeter;
pub use worker::{Found, Stage, Worker};

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gst::glib;
use gst::prelude::*;
use gst_video::VideoInfo;

use crate::gpu::Memory;
use crate::lock;
use crate::meta::{Age, Embedding, Source};
use crate::stats::Stats;

/// What is done with a frame that comes while the element is busy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, glib::Enum)]
#[repr(i32)]
#[enum_type(name = "GstConceptSegLatePolicy")]
pub enum LatePolicy {
    /// As the stream is: skip where it is live, block where it is not.
    #[default]
    #[enum_value(name = "Skip for live streams, block for files", nick = "auto")]
    Auto = 0,
    /// Frames pass with the latest result.
    #[enum_value(name = "Pass frames at once with the latest result, marked stale", nick = "skip")]
    Skip = 1,
    /// Frames wait for their result.
    #[enum_value(name = "Hold each frame until its own result is there", nick = "block")]
    Block = 2,
}

/// What a property says about one frame.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// What to do when busy.
    pub policy: LatePolicy,
    /// Results older than this are not shown; zero for no limit.
    pub max_age: Duration,
}

/// A result to attach.
pub struct Shown<T> {
    /// The result.
    pub found: Arc<Found<T>>,
    /// How old it is.
    pub age: Age,
    /// Whether no frame has shown it before.
    pub new: bool,
}

/// What every element that analyses frames keeps: its worker, the stream that it is in, its
/// counters.
pub struct Analyzer<S: Stage> {
    worker: Mutex<Option<Arc<Worker<S>>>>,
    stream: Mutex<Stream>,
    stats: Mutex<Stats>,
    latency: Mutex<LatencyMeter>,
}

/// The stream as seen by the streaming thread.
#[derive(Default)]
struct Stream {
    info: Option<VideoInfo>,
    memory: Memory,
    id: Option<String>,
    live: Option<bool>,
    frames: u64,
    /// The source of the result that was shown last.
    shown: Option<(u64, Option<gst::ClockTime>)>,
}

impl<S: Stage> Default for Analyzer<S> {
    fn default() -> Self {
        Self {
            worker: Mutex::default(),
            stream: Mutex::default(),
            stats: Mutex::default(),
            latency: Mutex::default(),
        }
    }
}

impl<S: Stage> Analyzer<S> {
    /// Begins with a stage that has seen nothing yet.
    pub fn start(&self, stage: S, backend: &str) {
        *lock(&self.stream) = Stream::default();
        *lock(&self.stats) = Stats::new(backend);
        *lock(&self.latency) = LatencyMeter::default();
        *lock(&self.worker) = Some(Arc::new(Worker::new(stage)));
    }

    /// Ends the work. What is under way is waited for.
    pub fn stop(&self) {
        let worker = lock(&self.worker).take();
        if let Some(worker) = worker {
            worker.stop();
        }
    }

    /// Whether the element is between start and stop.
    pub fn is_running(&self) -> bool {
        lock(&self.worker).is_some()
    }

    /// Counters, to be added to.
    pub fn stats(&self) -> std::sync::MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The negotiated video.
    pub fn info(&self) -> Option<VideoInfo> {
        lock(&self.stream).info.clone()
    }

    /// Where its pixels are.
    pub fn memory(&self) -> Memory {
        lock(&self.stream).memory
    }

    /// Takes over negotiated caps.
    pub fn set_caps(
        &self,
        category: gst::DebugCategory,
        caps: &gst::Caps,
    ) -> Result<(), gst::LoggableError> {
        let info = VideoInfo::from_caps(caps)
            .map_err(|e| gst::loggable_error!(category, "Caps {caps} describe no video: {e}"))?;
        let mut stream = lock(&self.stream);
        (stream.info, stream.memory) = (Some(info), Memory::of(caps));
        Ok(())
    }

    /// Takes note of an event before it is passed on. `true` when a new stream begins.
    pub fn event(&self, event: &gst::Event) -> bool {
        let worker = lock(&self.worker).clone();
        let Some(worker) = worker else { return false };
        match event.view() {
            // Comes from any thread while a frame may be waiting.
            gst::EventView::FlushStart(_) => worker.flush(true),
            gst::EventView::FlushStop(_) => worker.flush(false),
            gst::EventView::Eos(_) => worker.drain(),
            gst::EventView::StreamStart(start) => {
                let mut stream = lock(&self.stream);
                stream.live = None;
                let id = start.stream_id();
                let begins = stream.id.as_deref().is_some_and(|old| old != id);
                stream.id = Some(id.to_owned());
                if begins {
                    stream.frames = 0;
                    stream.shown = None;
                    drop(stream);
                    worker.drain();
                    worker.forget();
                }
                return begins;
            }
            _ => {}
        }
        false
    }

    /// Completes the answer to a query that was passed on upstream.
    pub fn answer(&self, direction: gst::PadDirection, query: &mut gst::QueryRef) {
        if direction == gst::PadDirection::Src
            && let gst::QueryViewMut::Latency(latency) = query.view_mut()
        {
            let (live, min, max) = latency.result();
            let own = lock(&self.latency).reported();
            latency.set(live, min + own, max.map(|max| max + own));
        }
    }

    /// Number of the next frame in its stream. Called once for each.
    pub fn count(&self) -> u64 {
        self.stats().frames += 1;
        let mut stream = lock(&self.stream);
        stream.frames += 1;
        stream.frames - 1
    }

    /// Decides about one frame: may hand it to the worker, and answers the result that it shows.
    /// `work` makes the input, `None` where there is nothing new to work on.
    ///
    /// # Errors
    /// What the stage answered for this frame or an earlier one.
    pub fn frame(
        &self,
        element: &gst::Element,
        rules: Rules,
        now: Moment,
        work: impl FnOnce() -> Result<Option<S::Input>, gst::ErrorMessage>,
    ) -> Result<Option<Shown<S::Output>>, gst::ErrorMessage> {
        let worker = lock(&self.worker).clone();
        let Some(worker) = worker else { return Ok(None) };
        let skip = match rules.policy {
            LatePolicy::Skip => true,
            LatePolicy::Block => false,
            LatePolicy::Auto => self.is_live(element),
        };
        let begin = Instant::now();
        let (found, busy) =
            if skip { worker.skip(now, work)? } else { (worker.block(work)?, false) };
        let held = begin.elapsed();
        let shown = found.map(|found| {
            let age = Age { age: found.age(now), stale: !found.source.is_same(now) };
            let source = Some((found.source.frame, found.source.pts));
            let new = std::mem::replace(&mut lock(&self.stream).shown, source) != source;
            Shown { found, age, new }
        });
        let mut stats = self.stats();
        stats.skipped += u64::from(busy);
        stats.blocked(held);
        if let Some(Shown { age, new, .. }) = &shown {
            stats.age(age.age.into());
            stats.inferred += u64::from(*new);
        }
        drop(stats);
        if lock(&self.latency).note(held) {
            let message = gst::message::Latency::builder().src(element).build();
            // Fails where there is no bus, and then nobody has to be told.
            let _ = element.post_message(message);
        }
        let limit = rules.max_age;
        Ok(shown.filter(|shown| limit.is_zero() || Duration::from(shown.age.age) <= limit))
    }

    /// Whether frames come in real time; asked once per stream.
    fn is_live(&self, element: &gst::Element) -> bool {
        if let Some(live) = lock(&self.stream).live {
            return live;
        }
        let mut query = gst::query::Latency::new();
        let live = element.static_pad("sink").is_some_and(|pad| pad.peer_query(&mut query))
            && query.result().0;
        lock(&self.stream).live = Some(live);
        live
    }
}

/// When and where in its stream a frame comes by.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Index in the stream.
    pub frame: u64,
    /// Presentation time.
    pub pts: Option<gst::ClockTime>,
    /// Wall-clock time.
    pub at: Instant,
}

impl Moment {
    /// A frame that comes by now.
    pub fn now(frame: u64, pts: Option<gst::ClockTime>) -> Self {
        Self { frame, pts, at: Instant::now() }
    }

    /// A frame that comes by now with these embeddings, which may be of an earlier one.
    pub fn carrying(embedding: Option<&(Embedding, Age)>, pts: Option<gst::ClockTime>) -> Self {
        let own = embedding.filter(|(_, age)| !age.stale);
        // No stream gets as far as that number, so that every result counts as stale.
        Self::now(own.map_or(u64::MAX, |(embedding, _)| embedding.source.frame), pts)
    }
}

impl Source {
    fn is_same(&self, now: Moment) -> bool {
        (self.frame, self.pts) == (now.frame, now.pts)
    }
}
