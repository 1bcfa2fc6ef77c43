//! Where streams report to and outputs read from.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::monitor::{Event, EventKind, StreamStatus};

/// Latest events that are kept for the page.
const KEPT: usize = 200;
/// Streams that are kept; more are a mistake in their names.
const MAX_STREAMS: usize = 1024;

/// What a stream reported last.
#[derive(Debug, Clone)]
pub struct Latest {
    /// Its status.
    pub status: StreamStatus,
    /// Events of each kind so far, in the order of [`EventKind::ALL`].
    pub events: [u64; EventKind::ALL.len()],
    /// Seconds that the monitor took for all frames so far.
    pub busy: f64,
}

/// Points of a stream's timeline that are kept for the page.
const POINTS: usize = 240;

/// What a stream showed over the latest reports: time, novelty, drift.
pub type Timeline = VecDeque<[f64; 3]>;

#[derive(Debug, Default)]
struct State {
    streams: BTreeMap<String, Arc<Latest>>,
    timelines: BTreeMap<String, Timeline>,
    /// With running numbers, from 1.
    events: VecDeque<(u64, Arc<Event>)>,
    told: u64,
    /// Rises with every change.
    version: u64,
    closed: bool,
}

/// Shared by all streams and outputs.
#[derive(Debug, Default)]
pub struct Hub {
    state: Mutex<State>,
    changed: Condvar,
}

impl Hub {
    /// A hub that knows nothing yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is whole after every statement; a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the events of a frame and gives them the time of the clock.
    pub fn tell(&self, events: &[Event]) -> Vec<Arc<Event>> {
        if events.is_empty() {
            return Vec::new();
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let stamped: Vec<_> =
            events.iter().map(|event| Arc::new(Event { unix_ms, ..event.clone() })).collect();
        let mut state = self.lock();
        for event in &stamped {
            state.told += 1;
            let number = state.told;
            state.events.push_back((number, Arc::clone(event)));
            if state.events.len() > KEPT {
                state.events.pop_front();
            }
        }
        state.version += 1;
        drop(state);
        self.changed.notify_all();
        stamped
    }

    /// Takes what a stream shows at present. Beyond 1,024 streams, new ones are left out.
    pub fn report(&self, latest: impl Into<Arc<Latest>>) {
        let latest = latest.into();
        let mut state = self.lock();
        let name = latest.status.stream.clone();
        if state.streams.len() >= MAX_STREAMS && !state.streams.contains_key(&name) {
            return;
        }
        let status = &latest.status;
        let point = [status.time, status.novelty.first().copied().unwrap_or(0.0), status.drift];
        let line = state.timelines.entry(name.clone()).or_default();
        if line.back().is_none_or(|last| last[0] != point[0]) {
            line.push_back(point);
        }
        if line.len() > POINTS {
            line.pop_front();
        }
        state.streams.insert(name, latest);
        state.version += 1;
        drop(state);
        self.changed.notify_all();
    }

    /// All streams by name.
    pub fn streams(&self) -> Vec<Arc<Latest>> {
        self.lock().streams.values().cloned().collect()
    }

    /// The timelines of all streams by name.
    pub fn timelines(&self) -> BTreeMap<String, Timeline> {
        self.lock().timelines.clone()
    }

    /// The latest events with a running number above `after`, the oldest first.
    pub fn events_after(&self, after: u64) -> Vec<(u64, Arc<Event>)> {
        self.lock().events.iter().filter(|(number, _)| *number > after).cloned().collect()
    }

    /// Waits until something changes after `version`, for at most `limit`. Answers the new
    /// version, or `None` where the hub is closed.
    pub fn wait(&self, version: u64, limit: Duration) -> Option<u64> {
        let state = self.lock();
        let (state, _) = self
            .changed
            .wait_timeout_while(state, limit, |s| s.version == version && !s.closed)
            .unwrap_or_else(PoisonError::into_inner);
        (!state.closed).then_some(state.version)
    }

    /// Lets all who wait go.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}
