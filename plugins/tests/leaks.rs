//! What is left of the elements when an application is done with them, as the leaks tracer sees it.
//!
//! The tracer speaks when the framework is shut down, which ends it for the whole process. So the
//! scenarios run in a process of their own.

// `gst_deinit` is unsafe: nothing of the framework may be used after it.
#![allow(unsafe_code)]

mod common;

use std::process::Command;

use common::{Fixture, frame, harness, mask_buffer};
use gst::prelude::*;

/// Set in the process of the scenarios.
const INSIDE: &str = "CONCEPTSEG_LEAKS_INSIDE";

const LONG: gst::ClockTime = gst::ClockTime::from_seconds(60);

#[test]
fn no_object_is_alive_after_end_error_interruption_and_reload() {
    let (ended_well, alive) = alive_after("scenarios");
    assert!(ended_well && alive.is_empty(), "{}", alive.join("\n"));
    // And this is how the tracer tells; it also warns, which is fatal here.
    let (ended_well, alive) = alive_after("forgotten");
    assert!(
        !ended_well && alive.iter().any(|line| line.contains("GstConceptOverlay")),
        "{alive:?}"
    );
}

/// Runs what is ignored here in a process of its own. Answers whether that ended well, and what
/// the tracer found.
fn alive_after(scenarios: &str) -> (bool, Vec<String>) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", scenarios, "--ignored", "--nocapture"])
        .env(INSIDE, "1")
        .env("G_DEBUG", "fatal-warnings")
        .env("GST_TRACERS", "leaks")
        .env("GST_DEBUG", "GST_TRACER:7")
        .env("GST_DEBUG_NO_COLOR", "1")
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    let ended_well = output.status.success();
    if !ended_well {
        println!("{scenarios}: {}\n{log}", output.status);
    }
    // Tracers announce each kind of record once by its format.
    let lines = log.lines().filter(|line| !line.contains("new format string"));
    let alive = lines.filter(|line| line.contains(" object-alive, ")).map(str::to_owned);
    (ended_well, alive.collect())
}

#[test]
#[ignore = "shuts the framework down; the test above runs it in a process of its own"]
fn forgotten() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    common::init();
    std::mem::forget(gst::ElementFactory::make("conceptoverlay").build().unwrap());
    // SAFETY: nothing uses the forgotten object, and this is the only test of the process.
    unsafe { gst::deinit() };
}

#[test]
#[ignore = "shuts the framework down; the test above runs it in a process of its own"]
fn scenarios() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let fixture = Fixture::new();
    to_the_end(&fixture);
    an_error(&fixture);
    interrupted(&fixture);
    changed_while_playing(&fixture);
    never_started(&fixture);
    shared(&fixture);
    removed(&fixture);
    renegotiated(&fixture);
    drop(fixture);
    // SAFETY: all objects of the framework are gone, and this is the only test of the process.
    unsafe { gst::deinit() };
}

/// A pipeline that ends in state `NULL` with this value.
struct Line(gst::Pipeline);

impl Line {
    fn new(source: &str, rest: &str) -> Self {
        let line = format!(
            "videotestsrc {source} \
             ! video/x-raw,format=NV12,width=96,height=72,framerate=100/1 ! {rest} ! fakesink"
        );
        let line = Self(gst::parse::launch(&line).unwrap().downcast().unwrap());
        line.0.set_state(gst::State::Playing).unwrap();
        line
    }

    /// Waits for so many messages of a kind.
    fn wait(&self, kind: gst::MessageType, count: usize) {
        let bus = self.0.bus().unwrap();
        let kinds = [kind, gst::MessageType::Error];
        for i in 0..count {
            let message = bus.timed_pop_filtered(LONG, &kinds).expect("a message in time");
            assert_eq!(message.type_(), kind, "{i}: {message:?}");
        }
    }

    fn results(&self, count: usize) {
        self.wait(gst::MessageType::Element, count);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.0.set_state(gst::State::Null).unwrap();
    }
}

/// The bin and the chain of its elements, with masks and results in a file.
fn both(fixture: &Fixture, policy: &str) -> [String; 2] {
    let open = format!(
        "bundle={} backend=rten threads=1 short-side=64 late-policy={policy}",
        fixture.bundle().display()
    );
    let mask = fixture.mask(96, 72);
    let results = fixture.path("results.jsonl");
    let (mask, results) = (mask.display(), results.display());
    [
        format!(
            "conceptseg name=it {open} first-frame-mask={mask} results-location={results} \
             post-messages=true"
        ),
        format!(
            "conceptembed name=it {open} ! conceptlabel late-policy={policy} \
             ! maskpropagate late-policy={policy} first-frame-mask={mask} ! conceptoverlay \
             ! conceptmetasink location={results} post-messages=true"
        ),
    ]
}

fn to_the_end(fixture: &Fixture) {
    for policy in ["block", "skip"] {
        for elements in both(fixture, policy) {
            Line::new("num-buffers=8", &elements).wait(gst::MessageType::Eos, 1);
        }
    }
}

fn an_error(fixture: &Fixture) {
    let [bin, chain] = both(fixture, "skip");
    let (good, bad) = (fixture.mask(96, 72), fixture.mask(95, 72));
    for elements in [bin, chain] {
        let elements = elements.replace(good.to_str().unwrap(), bad.to_str().unwrap());
        Line::new("is-live=true", &elements).wait(gst::MessageType::Error, 1);
    }
}

fn interrupted(fixture: &Fixture) {
    for policy in ["block", "skip"] {
        for elements in both(fixture, policy) {
            Line::new("is-live=true", &elements).results(5);
        }
    }
}

fn changed_while_playing(fixture: &Fixture) {
    let other = fixture.write_bundle("other", "d");
    for policy in ["block", "skip"] {
        let [bin, _] = both(fixture, policy);
        let line = Line::new("", &format!("{bin} ! identity sync=true"));
        let element = line.0.by_name("it").unwrap();
        line.results(3);
        element.set_property_from_str("bundle", other.to_str().unwrap());
        line.results(3);
        element.set_property_from_str("bundle", "/nonexistent");
        line.wait(gst::MessageType::Warning, 1);
        let masks = || mask_buffer(96, 72, [0, 0, 7, 0]);
        assert!(element.emit_by_name::<bool>("join-masks", &[&masks()]));
        assert!(element.emit_by_name::<bool>("drop-instance", &[&3u32]));
        line.results(3);
        element.set_property("initial-mask", masks());
        line.results(3);
        line.0.set_state(gst::State::Paused).unwrap();
        line.0.set_state(gst::State::Playing).unwrap();
        line.results(3);
        line.0.seek_simple(gst::SeekFlags::FLUSH, 10 * gst::ClockTime::SECOND).unwrap();
        line.results(3);
        let _: gst::Structure = element.property("stats");
    }
}

fn never_started(fixture: &Fixture) {
    for name in [
        "conceptembed",
        "conceptlabel",
        "maskpropagate",
        "conceptoverlay",
        "conceptmetasink",
        "conceptseg",
    ] {
        let element = gst::ElementFactory::make(name).build().unwrap();
        if element.find_property("initial-mask").is_some() {
            element.set_property("initial-mask", mask_buffer(96, 72, [1; 4]));
            let _: Option<gst::Buffer> = element.property("initial-mask");
        }
        if element.find_property("bundle").is_some() {
            assert!(element.set_state(gst::State::Paused).is_err());
        }
        element.set_state(gst::State::Null).unwrap();
    }
    // Loads a bundle, and then nobody needs it.
    fixture.make("conceptembed");
}

fn shared(fixture: &Fixture) {
    let [bin, _] = both(fixture, "skip");
    let first = bin.replace("results.jsonl", "first.jsonl") + " engine-id=one";
    let second = bin.replace("results.jsonl", "second.jsonl") + " engine-id=one";
    let first = Line::new("is-live=true", &first);
    let second = Line::new("is-live=true", &second);
    first.results(3);
    drop(first);
    second.results(3);
}

fn removed(fixture: &Fixture) {
    let [bin, _] = both(fixture, "skip");
    let line = Line::new("is-live=true", &format!("tee name=tee ! queue ! fakesink tee. ! {bin}"));
    line.results(3);
    let element = line.0.by_name("it").unwrap();
    let branch = element.static_pad("sink").unwrap();
    let tee = branch.peer().unwrap();
    tee.unlink(&branch).unwrap();
    line.0.by_name("tee").unwrap().release_request_pad(&tee);
    line.0.remove(&element).unwrap();
    element.set_state(gst::State::Null).unwrap();
}

fn renegotiated(fixture: &Fixture) {
    let element = fixture.element();
    let caps = |format: &str, width: i32| {
        format!("video/x-raw,format={format},width={width},height=72,framerate=25/1")
    };
    let (mut harness, _bus) = harness(&element, &caps("RGB", 96));
    for (seed, (format, width)) in [("RGB", 96), ("NV12", 97), ("GRAY8", 31)].iter().enumerate() {
        let caps = caps(format, *width);
        harness.set_src_caps(caps.parse().unwrap());
        harness.push_and_pull(frame(&caps, seed)).unwrap();
    }
    element.set_bus(None);
}
