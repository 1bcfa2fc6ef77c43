//! Events to an MQTT broker. All of them pass through a [`Spool`], so that an outage of the
//! broker or of this machine loses none, up to the spool's limit, and their order stays.
//!
//! A message counts as sent when the broker has acknowledged it (quality of service 1): after an
//! outage the broker may get the latest few again, never too few. [`Event::number`] tells
//! repeated ones.

use std::collections::VecDeque;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rumqttc::{
    Client, ConnectReturnCode, ConnectionError, Event as MqttEvent, LastWill, MqttOptions,
    Outgoing, Packet, QoS, TlsConfiguration, Transport,
};

use super::spool::{Message, Place, Spool, SpoolError};
pub use super::tls::{TlsError, TlsFiles};
use crate::monitor::{Event, StreamStatus};

/// Messages that are on their way at once.
const IN_FLIGHT: usize = 16;
/// Pause before the next attempt to connect.
const RETRY: Duration = Duration::from_secs(1);
/// How often the publisher looks for new messages without being woken.
const IDLE: Duration = Duration::from_millis(200);
/// No answer for so long, with messages on their way, is an outage.
const PATIENCE: Duration = Duration::from_secs(20);
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Why MQTT could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MqttError {
    /// The address of the broker cannot be read.
    #[error(
        "{0} is no address of a broker; write host:port, such as 192.168.1.5:1883, or \
         mqtts://host for an encrypted connection"
    )]
    Address(String),
    /// The address holds a password, which would show in messages.
    #[error(
        "the address of the broker holds a user name; give it and the password as \
         CONCEPTSEG_MQTT_USER and CONCEPTSEG_MQTT_PASSWORD"
    )]
    Login,
    /// The connection cannot be encrypted.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A part of a topic has signs that topics must not have.
    #[error("\"{0}\" cannot be part of a topic; leave out +, #, / and control characters")]
    Topic(String),
    /// The spool cannot be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// No thread could be started.
    #[error("cannot start the thread of the MQTT output: {0}")]
    Thread(std::io::Error),
}

/// Where to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttConfig {
    /// The broker: `host:port` or `mqtt://host[:port]`, and `mqtts://host[:port]` for an encrypted
    /// connection. The ports are 1883 and 8883 where there is a scheme and no port.
    pub broker: String,
    /// Files of an encrypted connection.
    pub tls: TlsFiles,
    /// Name of this device: part of the topics, and of the client's id.
    pub device: String,
    /// First part of all topics.
    pub prefix: String,
    /// User name and password, where the broker asks for them.
    pub login: Option<(String, String)>,
}

/// What the output has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MqttCounts {
    /// Whether the broker is there.
    pub connected: bool,
    /// Messages that the broker has acknowledged.
    pub sent: u64,
    /// Messages that gave way in a full spool.
    pub dropped: u64,
}

#[derive(Debug)]
struct Shared {
    spool: Spool,
    counts: MqttCounts,
    /// Why there is no connection at present.
    outage: Option<String>,
    closing: Option<Instant>,
    /// The latest status of each stream, to be published once.
    statuses: VecDeque<Message>,
}

/// Publishes from a thread of its own.
#[derive(Debug)]
pub struct Mqtt {
    shared: Arc<Mutex<Shared>>,
    wake: SyncSender<()>,
    thread: Option<JoinHandle<()>>,
    prefix: String,
}

/// What the connection's thread tells the publisher's.
enum Note {
    Connected,
    Acknowledged,
    Lost(String),
}

impl Mqtt {
    /// Starts publishing what `spool` holds, and what comes. The broker need not be there yet.
    ///
    /// # Errors
    /// [`MqttError`].
    pub fn start(config: MqttConfig, spool: Spool) -> Result<Self, MqttError> {
        for part in [&config.device, &config.prefix] {
            check_topic(part)?;
        }
        // What is wrong with the files is told now, not at the first connection.
        transport(&config)?;
        let shared = Arc::new(Mutex::new(Shared {
            spool,
            counts: MqttCounts::default(),
            outage: None,
            closing: None,
            statuses: VecDeque::new(),
        }));
        let (wake, woken) = mpsc::sync_channel(1);
        let prefix = format!("{}/{}", config.prefix, config.device);
        let publisher = Publisher { config, prefix: prefix.clone(), shared: Arc::clone(&shared) };
        let thread = std::thread::Builder::new()
            .name("mqtt".to_owned())
            .spawn(move || publisher.run(&woken))
            .map_err(MqttError::Thread)?;
        Ok(Self { shared, wake, thread: Some(thread), prefix })
    }

    /// Takes an event; it is on the disk when this returns.
    ///
    /// # Errors
    /// [`SpoolError`].
    pub fn event(&self, event: &Event) -> Result<(), SpoolError> {
        let topic = format!("{}/{}/event", self.prefix, topic_part(&event.stream));
        let payload = serde_json::to_vec(event).unwrap_or_default();
        lock(&self.shared).spool.push(&Message { topic, payload })?;
        // A full channel means that the thread is awake already.
        let _ = self.wake.try_send(());
        Ok(())
    }

    /// Takes a status. The broker keeps the latest of each stream; those of an outage are
    /// forgotten.
    pub fn status(&self, status: &StreamStatus) {
        let topic = format!("{}/{}/status", self.prefix, topic_part(&status.stream));
        let payload = serde_json::to_vec(status).unwrap_or_default();
        let mut shared = lock(&self.shared);
        shared.statuses.retain(|m| m.topic != topic);
        shared.statuses.push_back(Message { topic, payload });
        drop(shared);
        let _ = self.wake.try_send(());
    }

    /// What was done so far.
    pub fn counts(&self) -> MqttCounts {
        let shared = lock(&self.shared);
        MqttCounts { dropped: shared.spool.dropped(), ..shared.counts }
    }

    /// Why there is no connection at present.
    #[cfg(test)]
    pub(super) fn outage(&self) -> Option<String> {
        lock(&self.shared).outage.clone()
    }

    /// Ends the output; waits at most `limit` for what is on its way. What could not be sent
    /// stays in the spool.
    pub fn close(mut self, limit: Duration) -> MqttCounts {
        lock(&self.shared).closing = Some(Instant::now() + limit);
        let _ = self.wake.try_send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.counts()
    }
}

impl Drop for Mqtt {
    fn drop(&mut self) {
        lock(&self.shared).closing = Some(Instant::now());
    }
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check_topic(part: &str) -> Result<(), MqttError> {
    let wrong = |c: char| matches!(c, '+' | '#' | '/') || c.is_control();
    if part.is_empty() || part.len() > 200 || part.contains(wrong) {
        return Err(MqttError::Topic(part.to_owned()));
    }
    Ok(())
}

/// A stream's name as a part of a topic.
fn topic_part(name: &str) -> String {
    name.chars()
        .take(200)
        .map(|c| if check_topic(&c.to_string()).is_ok() { c } else { '_' })
        .collect()
}

/// Where a broker is.
#[derive(Debug, PartialEq, Eq)]
struct Address<'a> {
    host: &'a str,
    port: u16,
    encrypted: bool,
}

fn address(broker: &str) -> Result<Address<'_>, MqttError> {
    if broker.contains('@') {
        return Err(MqttError::Login);
    }
    let wrong = || MqttError::Address(broker.to_owned());
    let (rest, encrypted, usual) = match broker.split_once("://") {
        None => (broker, false, None),
        Some(("mqtt", rest)) => (rest, false, Some(1883)),
        Some(("mqtts", rest)) => (rest, true, Some(8883)),
        Some(_) => return Err(wrong()),
    };
    let rest = if usual.is_some() { rest.strip_suffix('/').unwrap_or(rest) } else { rest };
    let (host, port) = match rest.rsplit_once(':') {
        // The colons of [::1] are no port.
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
        _ => (rest, usual.ok_or_else(wrong)?),
    };
    if host.is_empty() || host.contains('/') {
        return Err(wrong());
    }
    Ok(Address { host, port, encrypted })
}

/// How the broker is reached.
fn transport(config: &MqttConfig) -> Result<Transport, MqttError> {
    if address(&config.broker)?.encrypted {
        let tls = config.tls.read()?;
        Ok(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(tls))))
    } else if config.tls.is_empty() {
        Ok(Transport::tcp())
    } else {
        Err(TlsError::Plain(config.broker.clone()).into())
    }
}

struct Publisher {
    config: MqttConfig,
    prefix: String,
    shared: Arc<Mutex<Shared>>,
}

impl Publisher {
    fn run(&self, woken: &Receiver<()>) {
        while !self.is_over() {
            match self.session(woken) {
                Ok(()) => return,
                Err(reason) => {
                    let known = {
                        let mut shared = lock(&self.shared);
                        shared.counts.connected = false;
                        shared.outage.replace(reason.clone())
                    };
                    // An outage is told once, and again where its reason is another.
                    if known.as_ref() != Some(&reason) {
                        tracing::warn!(
                            "the MQTT broker {} cannot be reached ({reason}); events wait in the spool",
                            self.config.broker
                        );
                    }
                    let until = Instant::now() + RETRY;
                    while Instant::now() < until && !self.is_over() {
                        // Only the time matters here: events wait in the spool anyway.
                        let _ = woken.recv_timeout(IDLE);
                    }
                }
            }
        }
    }

    fn is_over(&self) -> bool {
        lock(&self.shared).closing.is_some_and(|end| Instant::now() >= end)
    }

    /// One connection, from first to last. `Ok` where the output is closed.
    fn session(&self, woken: &Receiver<()>) -> Result<(), String> {
        let Address { host, port, .. } = address(&self.config.broker).map_err(|e| e.to_string())?;
        let transport = transport(&self.config).map_err(|e| e.to_string())?;
        let online = format!("{}/online", self.prefix);
        let id = format!("conceptseg-{}", self.config.device);
        let mut options = MqttOptions::new(id, host, port);
        options
            .set_transport(transport)
            .set_keep_alive(KEEP_ALIVE)
            .set_max_packet_size(2 << 20, 2 << 20)
            .set_last_will(LastWill::new(&online, "0", QoS::AtLeastOnce, true));
        if let Some((name, password)) = &self.config.login {
            options.set_credentials(name, password);
        }
        // Every connection starts with the first message that was not acknowledged: the library
        // must keep none of its own.
        let (client, mut connection) = Client::new(options, IN_FLIGHT + 8);
        let (tell, notes) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || listen(&mut connection, &tell));
            let outcome = self.publish(&client, &notes, woken, &online);
            // Ends the connection, and with it the thread.
            let _ = client.disconnect();
            drop(client);
            outcome
        })
    }

    fn publish(
        &self,
        client: &Client,
        notes: &Receiver<Note>,
        woken: &Receiver<()>,
        online: &str,
    ) -> Result<(), String> {
        let mut connected = false;
        let mut place = lock(&self.shared).spool.start();
        // Of each message on its way, the place behind it; `None` where it is not of the spool.
        let mut on_way: VecDeque<Option<Place>> = VecDeque::new();
        let mut heard = Instant::now();
        loop {
            while let Ok(note) = notes.try_recv() {
                heard = Instant::now();
                match note {
                    Note::Connected => {
                        connected = true;
                        {
                            let mut shared = lock(&self.shared);
                            shared.counts.connected = true;
                            shared.outage = None;
                        }
                        tracing::info!("connected to the MQTT broker {}", self.config.broker);
                        let sent = client.try_publish(online, QoS::AtLeastOnce, true, "1");
                        sent.map_err(|e| e.to_string())?;
                        on_way.push_back(None);
                    }
                    Note::Acknowledged => {
                        if let Some(Some(behind)) = on_way.pop_front() {
                            let mut shared = lock(&self.shared);
                            shared.counts.sent += 1;
                            shared.spool.sent(behind).map_err(|e| e.to_string())?;
                        }
                    }
                    Note::Lost(reason) => return Err(reason),
                }
            }
            if on_way.is_empty() {
                heard = Instant::now();
            } else if heard.elapsed() > PATIENCE {
                return Err("it does not answer".to_owned());
            }
            let mut idle = true;
            while connected && on_way.len() < IN_FLIGHT {
                let next = lock(&self.shared).spool.peek(place).map_err(|e| e.to_string())?;
                let Some((message, behind)) = next else { break };
                let Message { topic, payload } = message;
                let sent = client.try_publish(topic, QoS::AtLeastOnce, false, payload);
                sent.map_err(|e| e.to_string())?;
                on_way.push_back(Some(behind));
                place = behind;
                idle = false;
            }
            let status = if connected { lock(&self.shared).statuses.pop_front() } else { None };
            if let Some(Message { topic, payload }) = status {
                // A full queue is no reason to wait with events.
                let _ = client.try_publish(topic, QoS::AtMostOnce, true, payload);
                idle = false;
            }
            let closing = lock(&self.shared).closing;
            if let Some(end) = closing
                && (Instant::now() >= end || (idle && on_way.is_empty() && connected))
            {
                let _ = client.try_publish(online, QoS::AtMostOnce, true, "0");
                return Ok(());
            }
            if idle {
                // Acknowledgements come by the other channel: with messages on their way, do not
                // sleep long.
                let pause = if on_way.is_empty() { IDLE } else { Duration::from_millis(2) };
                if let Err(RecvTimeoutError::Disconnected) = woken.recv_timeout(pause) {
                    std::thread::sleep(pause);
                }
            }
        }
    }
}

/// Drives the connection and tells what matters, until it ends.
fn listen(connection: &mut rumqttc::Connection, tell: &Sender<Note>) {
    for event in connection.iter() {
        let note = match event {
            Ok(MqttEvent::Incoming(Packet::ConnAck(_))) => Note::Connected,
            Ok(MqttEvent::Incoming(Packet::PubAck(_))) => Note::Acknowledged,
            Ok(MqttEvent::Outgoing(Outgoing::Disconnect)) => return,
            Ok(_) => continue,
            Err(error) => {
                let _ = tell.send(Note::Lost(reason(&error)));
                return;
            }
        };
        if tell.send(note).is_err() {
            return;
        }
    }
}

/// Why there is no connection.
fn reason(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized,
        ) => "it refuses the user or the password; set CONCEPTSEG_MQTT_USER and \
              CONCEPTSEG_MQTT_PASSWORD"
            .to_owned(),
        other => super::tls::reason(other),
    }
}
