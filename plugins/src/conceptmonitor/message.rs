//! Events and readings as structures.

use conceptseg::monitor::{Event, EventConcept, EventKind, StreamStatus, Watch};

/// Name of the structure of element messages.
pub const MESSAGE: &str = "conceptseg-event";

/// The message of an event on the buffer with this time stamp.
pub fn of_event(event: &Event, pts: Option<gst::ClockTime>) -> gst::Structure {
    gst::Structure::builder(MESSAGE)
        .field("type", event.kind.as_str())
        .field("stream", &event.stream)
        .field("number", event.number)
        .field("time", event.time)
        .field_if_some("pts", pts.map(gst::ClockTime::nseconds))
        .field("unix-ms", event.unix_ms)
        .field("frame", event.frame)
        .field_if_some("from", event.from.map(EventKind::as_str))
        .field_if_some("rule", event.rule.as_deref())
        .field("concepts", gst::Array::new(event.concepts.iter().map(concept)))
        .field("value", event.value)
        .field("message", &event.message)
        .field_if_some("thumbnail", event.thumbnail.as_deref())
        .build()
}

fn concept(concept: &EventConcept) -> gst::Structure {
    gst::Structure::builder("concept")
        .field("id", u32::from(concept.id))
        .field_if_some("name", concept.name.as_deref())
        .build()
}

/// What the monitor has measured; all fields but `frames` are absent before it begins.
pub fn of_readings(frames: u64, analysed: u64, watch: Option<&Watch>) -> gst::Structure {
    let readings =
        gst::Structure::builder("readings").field("frames", frames).field("analysed", analysed);
    let Some(watch) = watch else { return readings.build() };
    let StreamStatus {
        stream,
        time,
        frames,
        warming_up,
        novelty,
        drift,
        drift_usual,
        look,
        active,
        windows,
        concepts,
    } = watch.monitor().status();
    let milliseconds = watch.busy().as_secs_f64() * 1e3 / (frames.max(1) as f64);
    let mut events = gst::Structure::new_empty("events");
    for (kind, count) in watch.events() {
        events.set(kind.as_str(), count);
    }
    let concepts = concepts.into_iter().map(|concept| {
        gst::Structure::builder("concept")
            .field("id", u32::from(concept.id))
            .field_if_some("name", concept.name)
            .field("area", gst::Array::new(concept.area))
            .field("presence", gst::Array::new(concept.presence))
            .build()
    });
    readings
        .field("stream", stream)
        .field("time", time)
        .field("milliseconds", milliseconds)
        .field("warming-up", warming_up)
        .field("windows", gst::Array::new(windows))
        .field("novelty", gst::Array::new(novelty))
        .field("drift", drift)
        .field_if_some("drift-usual", drift_usual.map(|[mean, _]| mean))
        .field_if_some("drift-deviation", drift_usual.map(|[_, deviation]| deviation))
        .field_if_some("brightness", look.map(|[brightness, ..]| brightness))
        .field_if_some("contrast", look.map(|[_, contrast, _]| contrast))
        .field_if_some("sharpness", look.map(|[.., sharpness]| sharpness))
        .field("active", gst::Array::new(active))
        .field("events", events)
        .field("concepts", gst::Array::new(concepts))
        .build()
}
