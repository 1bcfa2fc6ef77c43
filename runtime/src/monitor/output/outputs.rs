//! All outputs together. Whoever tells them something never waits for a disk or a network.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::http::{Server, ServerError};
use super::hub::{Hub, Latest};
use super::log::{EventLog, Rotation};
use super::mqtt::{Mqtt, MqttConfig, MqttCounts, MqttError};
use super::spool::{Spool, SpoolError};
use super::writer::{Task, Writer};
use crate::monitor::Event;

/// Why an output could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// The file of events.
    #[error("cannot write the events to {path}: {source}")]
    Log {
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The endpoint.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The broker.
    #[error(transparent)]
    Mqtt(#[from] MqttError),
    /// The folder where events wait for the broker.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// An output failed after it was opened.
    #[error("{0}")]
    Write(String),
    /// No thread could be started.
    #[error("cannot start the thread of an output: {0}")]
    Thread(io::Error),
    /// Another user of the output wants it otherwise.
    #[error(
        "{0} is already used by this process with other settings; use the same, or another one"
    )]
    Used(String),
}

/// Which outputs there are.
#[derive(Debug, Clone, Default)]
pub struct OutputConfig {
    /// File that events are appended to, and when it gives way to the next.
    pub log: Option<(PathBuf, Rotation)>,
    /// Address of the page and of the metrics, `host:port`.
    pub listen: Option<String>,
    /// Broker that events are published to.
    pub mqtt: Option<MqttOutput>,
}

/// A broker, and what waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttOutput {
    /// The broker.
    pub config: MqttConfig,
    /// Folder where events wait.
    pub spool: PathBuf,
    /// Space that they may take, in bytes.
    pub spool_bytes: u64,
}

/// The outputs of one or several streams. Users in one process that name the same address, file
/// or broker share it: two of them would get in each other's way.
#[derive(Debug)]
pub struct Outputs {
    endpoint: Arc<Endpoint>,
    writers: Vec<Arc<Writer>>,
}

#[derive(Debug)]
struct Endpoint {
    hub: Arc<Hub>,
    server: Option<Server>,
}

/// What is open in this process.
static ENDPOINTS: Registry<(), Endpoint> = Registry::new();
static LOGS: Registry<Rotation, Writer> = Registry::new();
static BROKERS: Registry<MqttOutput, Writer> = Registry::new();

impl Outputs {
    /// Opens them, or joins those that are open in this process.
    ///
    /// # Errors
    /// [`OutputError`].
    pub fn open(config: &OutputConfig) -> Result<Self, OutputError> {
        let endpoint = match &config.listen {
            Some(address) => ENDPOINTS.get(address, &(), || {
                let hub = Hub::new();
                let server = Some(Server::start(address, Arc::clone(&hub))?);
                Ok(Endpoint { hub, server })
            })?,
            None => Arc::new(Endpoint { hub: Hub::new(), server: None }),
        };
        let mut writers = Vec::new();
        if let Some((path, rotation)) = &config.log {
            let place = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            let place = place.display().to_string();
            writers.push(LOGS.get(&place, rotation, || {
                let failed = |source| OutputError::Log { path: path.clone(), source };
                let log = EventLog::open(path, *rotation).map_err(failed)?;
                Writer::log(log, place.clone()).map_err(OutputError::Thread)
            })?);
        }
        if let Some(output) = &config.mqtt {
            // A broker allows one connection per name.
            let name = format!("{} at {}", output.config.device, output.config.broker);
            writers.push(BROKERS.get(&name, output, || {
                let spool = Spool::open(&output.spool, output.spool_bytes)?;
                let mqtt = Mqtt::start(output.config.clone(), spool)?;
                Writer::mqtt(mqtt).map_err(OutputError::Thread)
            })?);
        }
        Ok(Self { endpoint, writers })
    }

    /// Where the page and the metrics are.
    pub fn address(&self) -> Option<SocketAddr> {
        self.endpoint.server.as_ref().map(Server::address)
    }

    /// What streams reported.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.endpoint.hub
    }

    /// Takes the events of a frame; answers them with the time of the clock. Never waits: where a
    /// file or a spool is slower than events come, for long, events are left out of it and
    /// [counted](Self::lost).
    pub fn tell(&self, events: &[Event]) -> Vec<Arc<Event>> {
        let told = self.endpoint.hub.tell(events);
        for writer in &self.writers {
            for event in &told {
                writer.push(Task::Event(Arc::clone(event)));
            }
        }
        told
    }

    /// Takes what a stream shows at present. Never waits.
    pub fn report(&self, latest: Latest) {
        let latest = Arc::new(latest);
        for writer in &self.writers {
            writer.push(Task::Status(Arc::clone(&latest)));
        }
        self.endpoint.hub.report(latest);
    }

    /// Events that a slow file or spool lost.
    pub fn lost(&self) -> u64 {
        self.writers.iter().map(|writer| writer.lost()).sum()
    }

    /// What has failed since this was asked last.
    pub fn failure(&self) -> Option<OutputError> {
        self.writers.iter().find_map(|writer| writer.failure()).map(OutputError::Write)
    }

    /// Waits until all that was told is in the file and the spool, for at most `limit`.
    ///
    /// # Errors
    /// What has failed since this was asked last.
    pub fn flush(&self, limit: Duration) -> Result<(), OutputError> {
        let end = Instant::now() + limit;
        for writer in &self.writers {
            if !writer.flush(end) {
                let text = "an output is too slow: its latest events may be missing";
                return Err(OutputError::Write(text.to_owned()));
            }
        }
        self.failure().map_or(Ok(()), Err)
    }

    /// Ends the outputs that nobody else uses; waits at most `limit` for what is on its way.
    /// Answers what became of the events for the broker.
    ///
    /// # Errors
    /// What has failed since this was asked last.
    pub fn close(self, limit: Duration) -> Result<Option<MqttCounts>, OutputError> {
        let written = self.flush(limit);
        let counts = self.writers.into_iter().filter_map(|writer| {
            let counts = writer.counts();
            match Arc::into_inner(writer) {
                Some(last) => last.close(limit),
                None => counts,
            }
        });
        let counts = counts.last();
        written.map(|()| counts)
    }
}

/// The outputs of a kind that are open in this process, by name. Weak, so that each ends with its
/// last user.
struct Registry<C, T>(Mutex<Vec<(String, C, Weak<T>)>>);

impl<C: Clone + PartialEq, T> Registry<C, T> {
    const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// The one of this name, opened where it is not.
    fn get(
        &self,
        name: &str,
        config: &C,
        open: impl FnOnce() -> Result<T, OutputError>,
    ) -> Result<Arc<T>, OutputError> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(.., output)| output.strong_count() > 0);
        let known = all.iter().find(|(known, ..)| known == name);
        if let Some((_, known, output)) = known
            && let Some(output) = output.upgrade()
        {
            return if known == config { Ok(output) } else { Err(OutputError::Used(name.into())) };
        }
        let output = Arc::new(open()?);
        all.push((name.to_owned(), config.clone(), Arc::downgrade(&output)));
        Ok(output)
    }
}
