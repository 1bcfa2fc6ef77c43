//! What `conceptseg monitor run` tells, and where.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use conceptseg::monitor::output::mqtt::{Mqtt, MqttConfig, MqttCounts};
use conceptseg::monitor::output::{EventLog, Hub, Latest, Rotation, Server, Spool};
use conceptseg::monitor::{Event, EventKind, StreamMonitor};

/// How often a stream's status is reported.
const REPORT: Duration = Duration::from_secs(1);
/// Time for messages that are on their way when all is done.
const LAST_CALL: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct OutputArgs {
    /// File that events are appended to, one line of JSON each.
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// Length at which the file of events gives way to a new one, in MiB.
    #[arg(long, default_value_t = 16, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=4096))]
    rotate: u64,
    /// Older files of events that are kept.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
    keep: u32,
    /// Address of the live page and of the metrics for Prometheus (/metrics), such as
    /// 127.0.0.1:9464. It has no passwords: keep it to this machine unless the network is yours.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// MQTT broker to publish to.
    #[arg(long, value_name = "HOST:PORT", requires = "spool")]
    mqtt: Option<String>,
    /// Folder where events wait for the broker.
    #[arg(long, value_name = "DIR", requires = "mqtt")]
    spool: Option<PathBuf>,
    /// Space of the spool, in MiB; when it is full, the oldest events give way.
    #[arg(long, default_value_t = 64, value_name = "MIB", value_parser = clap::value_parser!(u64).range(2..=65536))]
    spool_size: u64,
    /// Name of this device, in topics PREFIX/DEVICE/STREAM/event.
    #[arg(long, value_name = "DEVICE", default_value = "device")]
    device_name: String,
    /// First part of all topics.
    #[arg(long, default_value = "conceptseg")]
    prefix: String,
    /// User name for the broker.
    #[arg(long, value_name = "NAME", env = "CONCEPTSEG_MQTT_USER", requires = "mqtt_password")]
    mqtt_user: Option<String>,
    /// Password for the broker; the variable keeps it out of the list of processes.
    #[arg(long, value_name = "TEXT", env = "CONCEPTSEG_MQTT_PASSWORD", hide_env_values = true)]
    mqtt_password: Option<String>,
}

pub struct Outputs {
    hub: Arc<Hub>,
    log: Option<EventLog>,
    server: Option<Server>,
    mqtt: Option<Mqtt>,
    told: u64,
}

/// What is counted of one stream.
pub struct Account {
    events: [u64; EventKind::ALL.len()],
    busy: Duration,
    reported: Option<Instant>,
}

impl Account {
    pub fn new() -> Self {
        Self { events: [0; EventKind::ALL.len()], busy: Duration::ZERO, reported: None }
    }

    pub fn busy(&self) -> Duration {
        self.busy
    }

    pub fn events(&self) -> impl Iterator<Item = (EventKind, u64)> + '_ {
        EventKind::ALL.into_iter().zip(self.events).filter(|(_, count)| *count > 0)
    }
}

impl Outputs {
    pub fn open(args: &OutputArgs) -> Result<Self> {
        let hub = Hub::new();
        let log = args.events.as_ref().map(|path| {
            let rotation = Rotation { max_bytes: args.rotate << 20, keep: args.keep };
            EventLog::open(path, rotation)
                .with_context(|| format!("cannot write the events to {}", path.display()))
        });
        let server = args.listen.as_ref().map(|address| Server::start(address, Arc::clone(&hub)));
        let mqtt = match (&args.mqtt, &args.spool) {
            (Some(broker), Some(folder)) => {
                let config = MqttConfig {
                    broker: broker.clone(),
                    device: args.device_name.clone(),
                    prefix: args.prefix.clone(),
                    login: args.mqtt_user.clone().zip(args.mqtt_password.clone()),
                };
                Some(Mqtt::start(config, Spool::open(folder, args.spool_size << 20)?)?)
            }
            _ => None,
        };
        let outputs =
            Self { hub, log: log.transpose()?, server: server.transpose()?, mqtt, told: 0 };
        if let Some(address) = outputs.server.as_ref().and_then(Server::address) {
            tracing::info!(
                "the live page is at http://{address}/, metrics at http://{address}/metrics"
            );
        }
        Ok(outputs)
    }

    /// Tells what a frame brought; `busy` is the time that the monitor took for it.
    pub fn tell(
        &mut self,
        monitor: &StreamMonitor,
        events: &[Event],
        busy: Duration,
        account: &mut Account,
    ) -> Result<()> {
        account.busy += busy;
        for event in self.hub.tell(events) {
            self.told += 1;
            if let Some(at) = EventKind::ALL.iter().position(|kind| *kind == event.kind) {
                account.events[at] += 1;
            }
            if let Some(log) = &mut self.log {
                log.write(&event).context("cannot write an event")?;
            }
            if let Some(mqtt) = &self.mqtt {
                mqtt.event(&event)?;
            }
        }
        if !events.is_empty() || account.reported.is_none_or(|at| at.elapsed() >= REPORT) {
            self.report(monitor, account);
        }
        Ok(())
    }

    /// Tells what a stream shows at present.
    pub fn report(&self, monitor: &StreamMonitor, account: &mut Account) {
        account.reported = Some(Instant::now());
        let status = monitor.status();
        if let Some(mqtt) = &self.mqtt {
            mqtt.status(&status);
        }
        let (events, busy) = (account.events, account.busy.as_secs_f64());
        self.hub.report(Latest { status, events, busy });
    }

    /// Ends all outputs. Answers the number of events and what became of those for the broker.
    pub fn close(self) -> (u64, Option<MqttCounts>) {
        let counts = self.mqtt.map(|mqtt| mqtt.close(LAST_CALL));
        (self.told, counts)
    }
}
