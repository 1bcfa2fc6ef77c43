//! `conceptmonitor` in pipelines, as an application uses it.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use common::{Fixture, error_text, frame};
use conceptseg::bundle::{Bundle, BundleWriter, Codebook};
use conceptseg::monitor::baseline::BaselineBuilder;
use conceptseg::monitor::{Event, EventKind, Sighting};
use gst::prelude::*;

const CAPS: &str = "video/x-raw,format=RGB,width=96,height=72,framerate=25/1";
/// Quick to tell.
const SETTINGS: &str = "windows = [0.2, 1.0, 5.0]\nwarm_up = 0.0\nfrozen_for = 0.2\nfault_for = 0.1\n\
    novel = { on = 0.35, off = 0.2, on_for = 0.2, off_for = 0.2 }";

/// What a frame shows.
#[derive(Clone, Copy)]
enum Picture {
    Moving,
    Still,
    Black,
}

fn picture(kind: Picture, number: usize) -> gst::Buffer {
    let mut buffer = match kind {
        Picture::Moving => frame(CAPS, number),
        Picture::Still => frame(CAPS, 1),
        Picture::Black => gst::Buffer::from_mut_slice(vec![0u8; 96 * 72 * 3]),
    };
    buffer.get_mut().unwrap().set_pts(gst::ClockTime::from_mseconds(40 * number as u64));
    buffer
}

/// A baseline of a place that shows all concepts, or only those in `seen`.
fn baseline(fixture: &Fixture, name: &str, bundle: &Path, seen: &[u16]) -> PathBuf {
    let mut builder = BaselineBuilder::new(&Bundle::open(bundle).unwrap());
    let share = 1.0 / seen.len() as f64;
    let all: Vec<_> =
        seen.iter().map(|&concept| Sighting { concept, share, similarity: -0.99 }).collect();
    for _ in 0..100 {
        builder.add(&all);
    }
    let path = fixture.path(name);
    builder.finish().unwrap().write(&path).unwrap();
    path
}

/// A bundle with other concepts than that of the fixture.
fn other_bundle(fixture: &Fixture) -> PathBuf {
    let onnx = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/testdata/tiny.onnx");
    let mut vectors = vec![0.0; 8 * 32];
    for id in 0..8 {
        vectors[id * 32 + id * 4 + 1] = 1.0;
    }
    let bundle = fixture.path("other");
    BundleWriter::new("tiny", 8, [0.5; 3], [0.25; 3])
        .write(&bundle, &onnx, &Codebook::new(8, 32, vectors).unwrap())
        .unwrap();
    bundle
}

fn file(fixture: &Fixture, name: &str, text: &str) -> PathBuf {
    let path = fixture.path(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// The monitor of a pipeline that shows it frames of the test network.
struct Watched {
    pipeline: gst::Pipeline,
    source: gst_app::AppSrc,
    /// Runs the network.
    first: gst::Element,
    monitor: gst::Element,
    frames: usize,
}

impl Watched {
    fn new(fixture: &Fixture, name: &str, seen: &[u16]) -> Self {
        let label = gst::ElementFactory::make("conceptlabel").build().unwrap();
        label.set_property_from_str("late-policy", "block");
        Self::behind(fixture, &[fixture.make("conceptembed"), label], name, seen)
    }

    /// The monitor behind elements that find concepts.
    fn behind(fixture: &Fixture, front: &[gst::Element], name: &str, seen: &[u16]) -> Self {
        let source = gst_app::AppSrc::builder()
            .caps(&CAPS.parse().unwrap())
            .format(gst::Format::Time)
            .build();
        let monitor = gst::ElementFactory::make("conceptmonitor").name(name).build().unwrap();
        let normal = baseline(fixture, &format!("{name}.baseline"), &fixture.bundle(), seen);
        let settings = file(fixture, &format!("{name}.toml"), SETTINGS);
        monitor.set_property("baseline", normal.to_str());
        monitor.set_property("settings", settings.to_str());
        let sink = gst::ElementFactory::make("fakesink").property("sync", false).build().unwrap();
        let pipeline = gst::Pipeline::new();
        let mut elements = vec![source.clone().upcast()];
        elements.extend_from_slice(front);
        elements.extend([monitor.clone(), sink]);
        pipeline.add_many(&elements).unwrap();
        gst::Element::link_many(&elements).unwrap();
        Self { pipeline, source, first: front[0].clone(), monitor, frames: 0 }
    }

    fn play(&self) {
        self.pipeline.set_state(gst::State::Playing).unwrap();
    }

    fn show(&mut self, kind: Picture, count: usize) {
        for _ in 0..count {
            self.source.push_buffer(picture(kind, self.frames)).unwrap();
            self.frames += 1;
        }
    }

    /// Ends the stream; answers the events that were posted until then.
    fn end(&self) -> Vec<gst::Structure> {
        self.source.end_of_stream().unwrap();
        self.until(gst::MessageType::Eos)
    }

    /// The events that are posted before a message of another kind.
    fn until(&self, kind: gst::MessageType) -> Vec<gst::Structure> {
        let bus = self.pipeline.bus().unwrap();
        let kinds = [gst::MessageType::Element, gst::MessageType::Error, kind];
        let mut events = Vec::new();
        loop {
            let message = bus.timed_pop_filtered(gst::ClockTime::from_seconds(120), &kinds);
            let message = message.expect("the pipeline goes on");
            if message.type_() == kind {
                return events;
            }
            match message.view() {
                gst::MessageView::Element(element) => {
                    assert_eq!(message.src(), Some(self.monitor.upcast_ref()));
                    events.extend(element.structure().map(ToOwned::to_owned));
                }
                view => panic!("{view:?}"),
            }
        }
    }

    fn readings(&self) -> gst::Structure {
        self.monitor.property("readings")
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

fn kinds(events: &[gst::Structure]) -> Vec<String> {
    events.iter().map(|event| event.get("type").unwrap()).collect()
}

#[test]
fn faults_of_the_camera_are_messages_and_lines_before_the_stream_ends() {
    let fixture = Fixture::new();
    let mut watched = Watched::new(&fixture, "gate", &[0, 1, 2, 3, 4, 5, 6, 7]);
    let log = fixture.path("events.jsonl");
    let rules = "[[rule]]\nname = \"dark\"\nwhen = \"covered for 200ms\"";
    watched.monitor.set_property("rules", file(&fixture, "rules.toml", rules).to_str());
    watched.monitor.set_property("log", log.to_str());
    watched.monitor.set_property("thumbnails", 32u32);
    watched.play();
    watched.show(Picture::Moving, 20);
    watched.show(Picture::Still, 15);
    watched.show(Picture::Moving, 10);
    watched.show(Picture::Black, 15);
    let events = watched.end();

    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<Event> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = lines.iter().map(|event| event.kind.as_str().to_owned()).collect();
    assert_eq!(kinds(&events), told);
    for kind in ["frozen", "covered", "rule", "recovered"] {
        assert!(told.iter().any(|told| told == kind), "{kind} in {told:?}");
    }
    let frozen = events.iter().find(|e| e.get::<&str>("type") == Ok("frozen")).unwrap();
    assert_eq!(frozen.name(), gstconceptseg::conceptmonitor::MESSAGE);
    assert_eq!(frozen.get::<&str>("stream"), Ok("gate"));
    let (index, pts) = (frozen.get::<u64>("frame").unwrap(), frozen.get::<u64>("pts").unwrap());
    // Frame 21 is the first that is like the one before.
    assert!((21..35).contains(&index), "{frozen}");
    assert_eq!(pts, index * 40_000_000);
    assert_eq!(frozen.get::<f64>("time"), Ok(pts as f64 / 1e9));
    assert!(frozen.get::<u64>("unix-ms").unwrap() > 0);
    assert!(frozen.get::<&str>("message").unwrap().contains("stuck"));
    assert!(frozen.get::<&str>("thumbnail").unwrap().len() > 100);
    let rule = events.iter().find(|e| e.get::<&str>("type") == Ok("rule")).unwrap();
    assert_eq!(rule.get::<&str>("rule"), Ok("dark"));

    let readings = watched.readings();
    assert_eq!(readings.get::<u64>("frames"), Ok(60));
    assert_eq!(readings.get::<u64>("analysed"), Ok(60));
    assert_eq!(readings.get::<u64>("lost"), Ok(0));
    let counts: gst::Structure = readings.get("events").unwrap();
    let count = told.iter().filter(|kind| *kind == "recovered").count() as u64;
    assert_eq!(counts.get::<u64>("recovered"), Ok(count));
}

#[test]
fn what_was_never_seen_is_novel_and_messages_can_be_left_out() {
    let fixture = Fixture::new();
    // The frames show more than one concept, and the place only one.
    for (post, expected) in [(true, 1), (false, 0)] {
        let mut watched = Watched::new(&fixture, "yard", &[0]);
        let log = fixture.path(&format!("novel-{post}.jsonl"));
        watched.monitor.set_property("log", log.to_str());
        watched.monitor.set_property("stream", "yard 1");
        watched.monitor.set_property("post-messages", post);
        watched.play();
        watched.show(Picture::Moving, 25);
        let events = watched.end();
        let novel = events.iter().filter(|e| e.get::<&str>("type") == Ok("novel"));
        assert_eq!(novel.count(), expected, "{events:?}");
        let text = std::fs::read_to_string(&log).unwrap();
        let mut lines = text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap());
        let novel = lines.find(|event| event.kind == EventKind::Novel).unwrap();
        assert_eq!(novel.stream, "yard 1");
        assert!(!novel.concepts.is_empty() && novel.concepts[0].name.is_some(), "{novel:?}");
    }
}

#[test]
fn each_result_is_looked_at_once_and_each_frame_for_faults() {
    let fixture = Fixture::new();
    let mut watched = Watched::new(&fixture, "door", &[0, 1, 2, 3, 4, 5, 6, 7]);
    watched.first.set_property("inference-interval", 5u32);
    watched.play();
    watched.show(Picture::Moving, 10);
    watched.show(Picture::Still, 10);
    let events = watched.end();
    let readings = watched.readings();
    assert_eq!(readings.get::<u64>("frames"), Ok(20));
    assert_eq!(readings.get::<u64>("analysed"), Ok(4));
    assert!(kinds(&events).contains(&"frozen".to_owned()), "{events:?}");
}

#[test]
fn it_works_behind_the_bin_as_well() {
    let fixture = Fixture::new();
    let mut watched = Watched::behind(&fixture, &[fixture.element()], "hall", &[0]);
    watched.play();
    watched.show(Picture::Moving, 25);
    let events = watched.end();
    assert!(kinds(&events).contains(&"novel".to_owned()), "{events:?}");
    assert_eq!(watched.readings().get::<u64>("analysed"), Ok(25));
}

#[test]
fn streams_share_an_endpoint() {
    let fixture = Fixture::new();
    let mut all = ["north", "south"].map(|name| {
        let watched = Watched::new(&fixture, name, &[0, 1, 2, 3, 4, 5, 6, 7]);
        watched.monitor.set_property("listen", "127.0.0.1:0");
        watched.play();
        watched
    });
    for (at, watched) in all.iter_mut().enumerate() {
        watched.show(Picture::Moving, 3 + at);
        watched.end();
    }
    let addresses = all.each_ref().map(|w| w.readings().get::<String>("address").unwrap());
    assert_eq!(addresses[0], addresses[1]);
    let get = |path: &str| {
        let mut stream = TcpStream::connect(&addresses[0]).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let metrics = get("/metrics");
    for line in [
        r#"conceptseg_frames_total{stream="north"} 3"#,
        r#"conceptseg_frames_total{stream="south"} 4"#,
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} in {metrics}");
    }
    assert!(get("/").contains("<title>ConceptSeg monitor</title>"));

    // The endpoint goes with its last stream.
    let [north, south] = all;
    drop(north);
    assert!(get("/streams").contains("north"));
    drop(south);
    assert!(TcpStream::connect(&addresses[0]).is_err());
}

#[test]
fn mistakes_are_errors_before_the_first_frame() {
    let fixture = Fixture::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let rules = file(&fixture, "wrong.toml", "\n[[rule]]\nname = \"r\"\nwhen = \"area('x') > 0\"");
    let settings = file(&fixture, "settings.toml", "windows = [5.0, 2.0]");
    let foreign = baseline(&fixture, "foreign.baseline", &other_bundle(&fixture), &[0]);
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    for (property, value, part) in [
        ("rules", text(&rules), "line 4, rule \"r\": no concept has the name 'x'"),
        ("rules", "/nowhere.toml".to_owned(), "cannot read the rules /nowhere.toml"),
        ("settings", text(&settings), "2 to 6 rising lengths"),
        ("baseline", text(&rules), "cannot be used"),
        ("baseline", text(&foreign), "made with other concepts"),
        ("bundle", "/nowhere".to_owned(), "/nowhere"),
        ("listen", taken, "cannot listen on"),
        ("log", "/nowhere/events.jsonl".to_owned(), "cannot write the events"),
        ("mqtt", "127.0.0.1:1883".to_owned(), "set the property spool"),
        ("mqtt-ca", "/nowhere.pem".to_owned(), "cannot read /nowhere.pem"),
        ("mqtt-key", text(&rules), "give both or neither"),
        ("thumbnails", "5".to_owned(), "16 to 640"),
    ] {
        let monitor = gst::ElementFactory::make("conceptmonitor").build().unwrap();
        let normal = baseline(&fixture, "errors.baseline", &fixture.bundle(), &[0]);
        monitor.set_property("bundle", fixture.bundle().to_str());
        monitor.set_property("baseline", normal.to_str());
        if property.starts_with("mqtt-") {
            monitor.set_property("mqtt", "mqtts://127.0.0.1");
            monitor.set_property("spool", fixture.path("spool").to_str());
        }
        monitor.set_property_from_str(property, &value);
        let bus = gst::Bus::new();
        monitor.set_bus(Some(&bus));
        assert!(monitor.set_state(gst::State::Paused).is_err(), "{property}={value}");
        let text = error_text(&bus).unwrap();
        assert!(text.contains(part), "{property}={value}: {text}");
        monitor.set_state(gst::State::Null).unwrap();
    }
}

#[test]
fn without_the_property_bundle_mistakes_are_errors_at_the_first_result() {
    let fixture = Fixture::new();
    let mut watched = Watched::new(&fixture, "late", &[0]);
    let foreign = baseline(&fixture, "foreign.baseline", &other_bundle(&fixture), &[0]);
    watched.monitor.set_property("baseline", foreign.to_str());
    watched.play();
    watched.show(Picture::Moving, 1);
    let bus = watched.pipeline.bus().unwrap();
    let errors = [gst::MessageType::Error];
    let message = bus.timed_pop_filtered(gst::ClockTime::from_seconds(120), &errors).unwrap();
    assert_eq!(message.src(), Some(watched.monitor.upcast_ref()));
    let gst::MessageView::Error(error) = message.view() else { panic!("{message:?}") };
    let text = error.error().message().to_owned();
    assert!(text.contains("other concepts"), "{text}");
}

#[test]
fn frames_without_results_pass() {
    common::init();
    let monitor = gst::ElementFactory::make("conceptmonitor").build().unwrap();
    let (mut harness, bus) = common::harness(&monitor, CAPS);
    for number in 0..3 {
        let before = picture(Picture::Moving, number).map_readable().unwrap().to_vec();
        let output = harness.push_and_pull(picture(Picture::Moving, number)).unwrap();
        assert_eq!(output.map_readable().unwrap().as_slice(), before);
    }
    assert_eq!(error_text(&bus), None);
    let readings: gst::Structure = monitor.property("readings");
    assert_eq!(readings.get::<u64>("frames"), Ok(3));
    assert_eq!(readings.get::<u64>("analysed"), Ok(0));
}
