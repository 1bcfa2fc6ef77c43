//! A thread that writes events, so that those who tell them need not wait.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::hub::Latest;
use super::log::EventLog;
use super::mqtt::{Mqtt, MqttCounts};
use crate::monitor::Event;

/// Tasks that wait for a slow disk at most.
const QUEUE: usize = 4096;
/// Pause before a full queue is tried again.
const RETRY: Duration = Duration::from_millis(5);

/// What the thread is asked for.
pub(super) enum Task {
    Event(Arc<Event>),
    Status(Arc<Latest>),
    /// Answers when all before is done.
    Flush(Sender<()>),
}

/// What the thread shares with those who ask.
#[derive(Debug, Default)]
struct Shared {
    lost: AtomicU64,
    failure: Mutex<Option<String>>,
}

/// An output with a thread of its own.
#[derive(Debug)]
pub(super) struct Writer {
    queue: SyncSender<Task>,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
    mqtt: Option<Arc<Mqtt>>,
}

impl Writer {
    /// Writes to `log`, which is called `place` in messages.
    pub(super) fn log(mut log: EventLog, place: String) -> io::Result<Self> {
        Self::start("events", None, move |task| match task {
            Task::Event(event) => {
                log.write(event).map_err(|e| format!("cannot write an event to {place}: {e}"))
            }
            Task::Status(_) | Task::Flush(_) => Ok(()),
        })
    }

    /// Puts events into the spool of `mqtt`.
    pub(super) fn mqtt(mqtt: Mqtt) -> io::Result<Self> {
        let mqtt = Arc::new(mqtt);
        Self::start("spool", Some(Arc::clone(&mqtt)), move |task| match task {
            Task::Event(event) => mqtt.event(event).map_err(|e| e.to_string()),
            Task::Status(latest) => {
                mqtt.status(&latest.status);
                Ok(())
            }
            Task::Flush(_) => Ok(()),
        })
    }

    fn start(
        name: &str,
        mqtt: Option<Arc<Mqtt>>,
        work: impl FnMut(&Task) -> Result<(), String> + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, tasks) = mpsc::sync_channel(QUEUE);
        let shared = Arc::new(Shared::default());
        let failures = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&tasks, &failures, work))?;
        Ok(Self { queue, shared, thread, mqtt })
    }

    /// Leaves a task to the thread. Never waits.
    pub(super) fn push(&self, task: Task) {
        // A thread that is gone has panicked; its events are lost as well.
        if let Err(
            TrySendError::Full(Task::Event(_)) | TrySendError::Disconnected(Task::Event(_)),
        ) = self.queue.try_send(task)
        {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all is written. `false` where that takes too long.
    pub(super) fn flush(&self, end: Instant) -> bool {
        let (done, is_done) = mpsc::channel();
        let mut task = Task::Flush(done);
        loop {
            match self.queue.try_send(task) {
                Ok(()) => break,
                Err(TrySendError::Full(same)) if Instant::now() < end => task = same,
                Err(_) => return false,
            }
            std::thread::sleep(RETRY);
        }
        is_done.recv_timeout(end.saturating_duration_since(Instant::now())).is_ok()
    }

    /// Events that were left out.
    pub(super) fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// What has failed since this was asked last.
    pub(super) fn failure(&self) -> Option<String> {
        self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What became of the events for the broker, so far.
    pub(super) fn counts(&self) -> Option<MqttCounts> {
        self.mqtt.as_ref().map(|mqtt| mqtt.counts())
    }

    /// Ends the thread; waits at most `limit` for what the broker has not got.
    pub(super) fn close(self, limit: Duration) -> Option<MqttCounts> {
        let Self { queue, thread, mqtt, .. } = self;
        drop(queue);
        // The error is a panic, which was reported where it happened.
        let _ = thread.join();
        Some(Arc::into_inner(mqtt?)?.close(limit))
    }
}

fn run(tasks: &Receiver<Task>, shared: &Shared, mut work: impl FnMut(&Task) -> Result<(), String>) {
    for task in tasks {
        if let Err(failure) = work(&task) {
            let mut first = shared.failure.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(failure);
        }
        if let Task::Flush(done) = task {
            // The error is that nobody waits any more.
            let _ = done.send(());
        }
    }
}
