use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::mqtt::{Mqtt, MqttConfig, TlsFiles};
use super::*;
use crate::monitor::{ConceptStatus, Event, EventKind, StreamStatus};

pub(super) fn event(number: u64) -> Event {
    Event {
        stream: "gate".to_owned(),
        number,
        kind: EventKind::Novel,
        time: 1.5,
        unix_ms: 0,
        frame: 45,
        from: None,
        rule: None,
        concepts: Vec::new(),
        value: 0.4,
        message: "40 % of the picture looks like nothing that was learnt".to_owned(),
        thumbnail: None,
    }
}

fn latest() -> Latest {
    let concept = |id, name: Option<&str>| ConceptStatus {
        id,
        name: name.map(str::to_owned),
        area: vec![0.3, 0.25, 0.2],
        presence: vec![1.0; 3],
    };
    let status = StreamStatus {
        stream: "gate \"1\"".to_owned(),
        time: 12.0,
        frames: 360,
        warming_up: false,
        novelty: vec![0.4, 0.1, 0.05],
        drift: 0.125,
        drift_usual: Some([0.1, 0.02]),
        look: None,
        active: vec!["novel".to_owned(), "somebody".to_owned()],
        windows: vec![2.0, 60.0, 900.0],
        concepts: vec![concept(3, Some("lawn")), concept(7, None)],
    };
    Latest { status, events: [0, 0, 2, 0, 0, 0, 0, 0, 0, 1], busy: 0.5 }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn the_endpoint_serves_metrics_page_and_streams() {
    let hub = Hub::new();
    hub.report(latest());
    let server = Server::start("127.0.0.1:0", Arc::clone(&hub)).unwrap();
    let address = server.address();
    let text = get(address, "/metrics");
    for line in [
        r#"conceptseg_novelty{stream="gate \"1\""} 0.4"#,
        r#"conceptseg_drift{stream="gate \"1\""} 0.125"#,
        r#"conceptseg_state{stream="gate \"1\"",state="novel"} 1"#,
        r#"conceptseg_state{stream="gate \"1\"",state="frozen"} 0"#,
        r#"conceptseg_state{stream="gate \"1\"",state="somebody"} 1"#,
        r#"conceptseg_concept_area{stream="gate \"1\"",concept="3",name="lawn"} 0.25"#,
        r#"conceptseg_frames_total{stream="gate \"1\""} 360"#,
        r#"conceptseg_events_total{stream="gate \"1\"",kind="novel"} 2"#,
        "# EOF",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
    assert!(!text.contains("conceptseg_brightness{"), "{text}");
    assert!(get(address, "/").contains("<title>ConceptSeg monitor</title>"));
    assert!(get(address, "/streams?x").contains("\"frames\":360"));
    assert!(get(address, "/other").starts_with("HTTP/1.1 404"));
    assert!(Server::start(&address.to_string(), Hub::new()).is_err());
}

#[test]
fn a_page_hears_of_events_old_and_new() {
    let hub = Hub::new();
    hub.tell(&[event(1)]);
    let server = Server::start("127.0.0.1:0", Arc::clone(&hub)).unwrap();
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET /events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert!(lines.by_ref().any(|l| l.starts_with("data: {") && l.contains("\"number\":1")));
    hub.tell(&[event(2)]);
    assert!(lines.by_ref().any(|l| l.starts_with("data: {") && l.contains("\"number\":2")));
    hub.report(latest());
    assert!(lines.by_ref().any(|l| l.starts_with("data: [") && l.contains("lawn")));
    drop(server);
    // The endpoint has closed; so does the page's connection.
    assert_eq!(lines.find(|l| l == "never"), None);
}

#[test]
fn those_who_name_the_same_output_share_it_and_flush_brings_everything_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let config = |rotation| OutputConfig {
        log: Some((path.clone(), rotation)),
        listen: Some("127.0.0.1:0".to_owned()),
        mqtt: None,
    };
    let first = Outputs::open(&config(Rotation::default())).unwrap();
    let second = Outputs::open(&config(Rotation::default())).unwrap();
    assert_eq!(first.address(), second.address());
    let other = Rotation { keep: 1, ..Rotation::default() };
    let error = Outputs::open(&config(other)).unwrap_err().to_string();
    assert!(error.contains("events.jsonl is already used"), "{error}");

    let told = first.tell(&[event(1)]);
    assert!(told[0].unix_ms > 0);
    second.tell(&[event(2), event(3)]);
    second.report(latest());
    let limit = Duration::from_mins(1);
    first.flush(limit).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Event> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().map(|e| e.number).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!((lines[0].unix_ms, first.lost()), (told[0].unix_ms, 0));

    let address = first.address().unwrap();
    first.close(limit).unwrap();
    assert!(get(address, "/streams").contains("\"frames\":360"));
    second.close(limit).unwrap();
    assert!(TcpStream::connect(address).is_err());
    // What is closed can be opened anew, otherwise, too.
    Outputs::open(&config(other)).unwrap().close(limit).unwrap();
}

#[test]
fn an_output_that_fails_says_so_once() {
    // A device that takes no byte; elsewhere there is nothing to try this with.
    let full = PathBuf::from("/dev/full");
    if !full.exists() {
        eprintln!("skipped: there is no /dev/full");
        return;
    }
    let log = Some((full, Rotation::default()));
    let outputs = Outputs::open(&OutputConfig { log, ..OutputConfig::default() }).unwrap();
    outputs.tell(&[event(1), event(2)]);
    let limit = Duration::from_mins(1);
    let error = outputs.flush(limit).unwrap_err().to_string();
    assert!(error.contains("cannot write an event to /dev/full"), "{error}");
    outputs.close(limit).unwrap();
}

/// A broker of its own, ended with the test.
pub(super) struct Broker(Child);

impl Broker {
    pub(super) fn start(port: u16) -> Option<Self> {
        Self::with(port, &["-p", &port.to_string()])
    }

    /// With arguments of its own, which must make it listen on `port`.
    pub(super) fn with(port: u16, arguments: &[&str]) -> Option<Self> {
        let places = ["/usr/sbin/mosquitto", "/usr/bin/mosquitto", "/usr/local/sbin/mosquitto"];
        let Some(program) = places.map(PathBuf::from).into_iter().find(|p| p.exists()) else {
            eprintln!("skipped: mosquitto is not installed (Debian: apt install mosquitto)");
            return None;
        };
        let child = Command::new(program)
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "mosquitto does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(Self(child))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Listens to all topics; sends topic and payload of each message.
fn subscribe(port: u16) -> std::sync::mpsc::Receiver<(String, Vec<u8>)> {
    subscribe_with(rumqttc::MqttOptions::new("test", "127.0.0.1", port))
}

pub(super) fn subscribe_with(
    options: rumqttc::MqttOptions,
) -> std::sync::mpsc::Receiver<(String, Vec<u8>)> {
    let (tell, heard) = std::sync::mpsc::channel();
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (client, mut connection) = rumqttc::Client::new(options, 10);
        client.subscribe("#", rumqttc::QoS::AtLeastOnce).unwrap();
        for event in connection.iter() {
            match event {
                Ok(rumqttc::Event::Incoming(rumqttc::Packet::SubAck(_))) => ready.send(()).unwrap(),
                Ok(rumqttc::Event::Incoming(rumqttc::Packet::Publish(p))) => {
                    if tell.send((p.topic, p.payload.to_vec())).is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                // The broker is gone.
                Err(_) => return,
            }
        }
    });
    is_ready.recv_timeout(Duration::from_secs(10)).unwrap();
    heard
}

pub(super) fn numbers(
    heard: &std::sync::mpsc::Receiver<(String, Vec<u8>)>,
    until: u64,
) -> Vec<u64> {
    let mut numbers = Vec::new();
    while numbers.last() != Some(&until) {
        let (topic, payload) = heard.recv_timeout(Duration::from_secs(20)).unwrap();
        if topic == "site/cam-7/gate/event" {
            numbers.push(serde_json::from_slice::<Event>(&payload).unwrap().number);
        }
    }
    numbers
}

#[test]
fn an_outage_of_the_broker_loses_nothing_and_keeps_the_order() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let Some(broker) = Broker::start(port) else { return };
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let config = MqttConfig {
            broker: format!("127.0.0.1:{port}"),
            device: "cam-7".to_owned(),
            prefix: "site".to_owned(),
            tls: TlsFiles::default(),
            login: None,
        };
        Mqtt::start(config, Spool::open(dir.path(), 4 << 20).unwrap()).unwrap()
    };
    let heard = subscribe(port);
    let mqtt = open();
    for number in 1..=40 {
        mqtt.event(&event(number)).unwrap();
    }
    mqtt.status(&latest().status);
    assert_eq!(numbers(&heard, 40), (1..=40).collect::<Vec<_>>());

    drop(broker);
    for number in 41..=60 {
        mqtt.event(&event(number)).unwrap();
    }
    std::thread::sleep(Duration::from_millis(500));
    let Some(broker) = Broker::start(port) else { return };
    let heard = subscribe(port);
    let mut all = numbers(&heard, 60);
    // The broker may get again what it had not acknowledged before it went.
    all.dedup();
    assert!(all.is_sorted() && all.ends_with(&(41..=60).collect::<Vec<_>>()), "{all:?}");
    let counts = mqtt.close(Duration::from_secs(5));
    assert!(counts.sent >= 60 && counts.dropped == 0, "{counts:?}");

    // Events of a time without broker survive a restart of the device too.
    drop(broker);
    let mqtt = open();
    mqtt.event(&event(61)).unwrap();
    mqtt.close(Duration::ZERO);
    let Some(_broker) = Broker::start(port) else { return };
    let heard = subscribe(port);
    let mqtt = open();
    mqtt.event(&event(62)).unwrap();
    let mut all = numbers(&heard, 62);
    all.dedup();
    assert!(all.ends_with(&[61, 62]), "{all:?}");
    mqtt.close(Duration::from_secs(5));
}

#[test]
fn wrong_addresses_and_names_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (broker, device, part) in [
        ("localhost", "a", "host:port"),
        (":1883", "a", "host:port"),
        ("localhost:x", "a", "host:port"),
        ("mqtts://", "a", "mqtts://host"),
        ("https://localhost", "a", "mqtts://host"),
        ("mqtt://me:secret@localhost", "a", "CONCEPTSEG_MQTT_PASSWORD"),
        ("localhost:1", "a/b", "part of a topic"),
        ("localhost:1", "", "part of a topic"),
    ] {
        let config = MqttConfig {
            broker: broker.to_owned(),
            device: device.to_owned(),
            prefix: "site".to_owned(),
            tls: TlsFiles::default(),
            login: None,
        };
        let error = Mqtt::start(config, Spool::open(dir.path(), 0).unwrap()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(part) && !error.contains("secret"), "{error}");
    }
}
