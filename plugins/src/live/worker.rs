//! One thread that works on the latest frame.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Moment;
use crate::lock;
use crate::meta::Source;

/// How long the end of a stream waits for the frame that is being worked on.
const DRAIN: Duration = Duration::from_secs(10);

/// What the scheduler may take beside the inference before a frame gives up waiting for it.
const GRACE: Duration = Duration::from_millis(10);

/// The work of one element on one frame.
pub trait Stage: Send + 'static {
    /// What it works on.
    type Input: Send + 'static;
    /// What comes out.
    type Output: Send + Sync + 'static;

    /// Works on one frame.
    ///
    /// # Errors
    /// What the element posts as its error.
    fn run(&mut self, input: Self::Input) -> Result<Found<Self::Output>, gst::ErrorMessage>;
}

/// A result and where it comes from.
#[derive(Debug)]
pub struct Found<T> {
    /// The frame.
    pub source: Source,
    /// When the work on it began, for streams without presentation times.
    pub began: Instant,
    /// The result.
    pub value: T,
}

impl<T> Found<T> {
    /// How far the frame lies behind the one that comes by.
    pub fn age(&self, now: Moment) -> gst::ClockTime {
        match (now.pts, self.source.pts) {
            (Some(now), Some(then)) => now.saturating_sub(then),
            _ if self.source.is_same(now) => gst::ClockTime::ZERO,
            _ => gst::ClockTime::try_from(now.at.saturating_duration_since(self.began))
                .unwrap_or(gst::ClockTime::ZERO),
        }
    }

    /// Whether it is so old that a frame waits for the next one.
    fn is_late(&self, now: Moment) -> bool {
        Duration::from(self.age(now)) >= 2 * self.source.cost()
    }
}

/// The latest result of a stage, where it has one.
pub type Latest<S> = Option<Arc<Found<<S as Stage>::Output>>>;

/// Runs a stage in the calling thread or in one of its own.
pub struct Worker<S: Stage> {
    shared: Arc<Shared<S>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared<S: Stage> {
    stage: Mutex<S>,
    slot: Mutex<Slot<S>>,
    changed: Condvar,
}

struct Slot<S: Stage> {
    job: Option<S::Input>,
    /// From the moment a job is given until its result is there.
    busy: bool,
    /// When the latest job was given.
    given: Instant,
    latest: Latest<S>,
    failure: Option<gst::ErrorMessage>,
    flushing: bool,
    /// Counts flushes: results of work that began before one are dropped.
    epoch: u64,
    quit: bool,
}

impl<S: Stage> Worker<S> {
    /// Starts no thread yet.
    pub fn new(stage: S) -> Self {
        let slot = Slot {
            job: None,
            busy: false,
            given: Instant::now(),
            latest: None,
            failure: None,
            flushing: false,
            epoch: 0,
            quit: false,
        };
        let shared =
            Shared { stage: Mutex::new(stage), slot: Mutex::new(slot), changed: Condvar::new() };
        Self { shared: Arc::new(shared), thread: Mutex::default() }
    }

    /// Works in the calling thread.
    pub fn block(
        &self,
        work: impl FnOnce() -> Result<Option<S::Input>, gst::ErrorMessage>,
    ) -> Result<Latest<S>, gst::ErrorMessage> {
        // Only after a change of the policy is the thread still at work.
        self.drain();
        if let Some(failure) = lock(&self.shared.slot).failure.take() {
            return Err(failure);
        }
        let Some(input) = work()? else { return Ok(lock(&self.shared.slot).latest.clone()) };
        let epoch = lock(&self.shared.slot).epoch;
        let found = Arc::new(lock(&self.shared.stage).run(input)?);
        let mut slot = lock(&self.shared.slot);
        if slot.epoch == epoch {
            slot.latest = Some(Arc::clone(&found));
        }
        Ok(Some(found))
    }

    /// Hands work to the thread where it is idle, and answers the latest result and whether the
    /// thread was busy.
    pub fn skip(
        &self,
        now: Moment,
        work: impl FnOnce() -> Result<Option<S::Input>, gst::ErrorMessage>,
    ) -> Result<(Latest<S>, bool), gst::ErrorMessage> {
        let mut slot = lock(&self.shared.slot);
        if let Some(failure) = slot.failure.take() {
            return Err(failure);
        }
        let was_busy = slot.busy;
        if !was_busy && let Some(input) = work()? {
            slot.job = Some(input);
            slot.busy = true;
            slot.given = Instant::now();
            self.ensure_thread()?;
            self.shared.changed.notify_all();
        }
        while slot.busy
            && !slot.flushing
            && let Some(latest) = &slot.latest
            && latest.is_late(now)
        {
            // What takes twice as long as the last time is stuck behind other streams or programs:
            // frames that all wait for it would slow the stream down.
            let longest = 2 * latest.source.cost() + GRACE;
            let Some(left) = longest.checked_sub(slot.given.elapsed()) else { break };
            slot = self.wait(slot, left);
        }
        Ok((slot.latest.clone(), was_busy))
    }

    /// Waits until the thread has nothing left to do.
    pub fn drain(&self) {
        let mut slot = lock(&self.shared.slot);
        let begin = Instant::now();
        while slot.busy && !slot.flushing && !slot.quit {
            let Some(left) = DRAIN.checked_sub(begin.elapsed()) else { break };
            slot = self.wait(slot, left);
        }
    }

    /// Frees a waiting frame at the beginning of a flush; forgets results at its beginning and
    /// end, which belong to another part of the stream.
    pub fn flush(&self, flushing: bool) {
        lock(&self.shared.slot).flushing = flushing;
        self.forget();
    }

    /// Forgets the latest result, and the one that is being made.
    pub fn forget(&self) {
        let mut slot = lock(&self.shared.slot);
        slot.epoch += 1;
        slot.latest = None;
        self.shared.changed.notify_all();
    }

    /// Ends the thread.
    pub fn stop(&self) {
        lock(&self.shared.slot).quit = true;
        self.shared.changed.notify_all();
        let thread = lock(&self.thread).take();
        // The thread catches panics of its stage, so that there is nothing to learn from its end.
        let _ = thread.map(JoinHandle::join);
    }

    fn wait<'a>(
        &self,
        slot: MutexGuard<'a, Slot<S>>,
        longest: Duration,
    ) -> MutexGuard<'a, Slot<S>> {
        let waited = self.shared.changed.wait_timeout(slot, longest);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn ensure_thread(&self) -> Result<(), gst::ErrorMessage> {
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let builder = std::thread::Builder::new().name("conceptseg".to_owned());
            let handle = builder.spawn(move || shared.work()).map_err(|e| {
                gst::error_msg!(
                    gst::ResourceError::Failed,
                    ("Cannot start a thread for inference: {e}; set late-policy to block, or allow more threads")
                )
            })?;
            *thread = Some(handle);
        }
        Ok(())
    }
}

impl<S: Stage> Shared<S> {
    fn work(&self) {
        let mut slot = lock(&self.slot);
        loop {
            if slot.quit {
                slot.busy = false;
                self.changed.notify_all();
                return;
            }
            let Some(input) = slot.job.take() else {
                slot = self.changed.wait(slot).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let epoch = slot.epoch;
            drop(slot);
            // Without this, a panic would leave every later frame with the same old result.
            let answer = catch_unwind(AssertUnwindSafe(|| lock(&self.stage).run(input)));
            slot = lock(&self.slot);
            slot.busy = false;
            match answer {
                Ok(Ok(found)) if slot.epoch == epoch => slot.latest = Some(Arc::new(found)),
                Ok(Ok(_)) => {}
                Ok(Err(failure)) => slot.failure = Some(failure),
                Err(_) => {
                    slot.failure = Some(gst::error_msg!(
                        gst::LibraryError::Failed,
                        ("Inference panicked; the log of the process says where. Start the element again")
                    ));
                }
            }
            self.changed.notify_all();
        }
    }
}
