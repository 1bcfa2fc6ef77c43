//! A stream that is watched, and what is told of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::output::{Latest, Outputs};
use super::{Event, EventKind, StreamMonitor};

/// How often a stream's status is reported.
const REPORT: Duration = Duration::from_secs(1);

/// The monitor of a stream, and what is counted of it.
#[derive(Debug)]
pub struct Watch {
    monitor: StreamMonitor,
    /// In the order of [`EventKind::ALL`].
    events: [u64; EventKind::ALL.len()],
    busy: Duration,
    reported: Option<Instant>,
}

impl Watch {
    /// Nothing is counted yet.
    pub fn new(monitor: StreamMonitor) -> Self {
        Self { monitor, events: Default::default(), busy: Duration::ZERO, reported: None }
    }

    /// The monitor.
    pub fn monitor(&self) -> &StreamMonitor {
        &self.monitor
    }

    /// Time that the monitor took for all frames so far.
    pub fn busy(&self) -> Duration {
        self.busy
    }

    /// How many events of each kind there were; kinds without any are left out.
    pub fn events(&self) -> impl Iterator<Item = (EventKind, u64)> + '_ {
        EventKind::ALL.into_iter().zip(self.events).filter(|(_, count)| *count > 0)
    }

    /// Lets the monitor `observe` a frame, and tells `outputs` what it brought. Answers the events
    /// with the time of the clock. Never waits.
    pub fn frame(
        &mut self,
        outputs: &Outputs,
        observe: impl FnOnce(&mut StreamMonitor) -> &[Event],
    ) -> Vec<Arc<Event>> {
        let start = Instant::now();
        let events = observe(&mut self.monitor);
        self.busy += start.elapsed();
        let told = outputs.tell(events);
        for event in &told {
            if let Some(at) = EventKind::ALL.iter().position(|kind| *kind == event.kind) {
                self.events[at] += 1;
            }
        }
        if !told.is_empty() || self.reported.is_none_or(|at| at.elapsed() >= REPORT) {
            self.report(outputs);
        }
        told
    }

    /// Tells `outputs` what the stream shows at present.
    pub fn report(&mut self, outputs: &Outputs) {
        self.reported = Some(Instant::now());
        let (status, events) = (self.monitor.status(), self.events);
        outputs.report(Latest { status, events, busy: self.busy.as_secs_f64() });
    }
}
