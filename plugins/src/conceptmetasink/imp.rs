use std::path::PathBuf;
use std::sync::Mutex;

use conceptseg::propagate::MaskMap;
use conceptseg::results::{FrameRecord, InstanceRecord, Latency};
use conceptseg::rle::Rle;
use conceptseg::stream::StageTimes;
use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::subclass::BaseTransformMode;
use gst_base::subclass::prelude::*;

use super::MESSAGE;
use super::output::Output;
use crate::element::{Properties, Property, element_methods, field, object_methods};
use crate::lock;
use crate::meta::{self, Analysis, MetaError};
use crate::settings;

#[derive(Debug, Clone)]
struct Settings {
    location: Option<PathBuf>,
    /// -1 for none.
    fd: i32,
    post_messages: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { location: None, fd: -1, post_messages: false }
    }
}

pub static PROPERTIES: Properties<ConceptMetaSink> = Properties::new(|| {
    let default = Settings::default();
    vec![
        Property::new(
            glib::ParamSpecString::builder("location")
                .nick("Location")
                .blurb("File for the results, one line of JSON per frame; it appears at the end of the stream")
                .mutable_ready()
                .build(),
            |element| lock(&element.settings).location.to_value(),
            |element, value| lock(&element.settings).location = settings::path(value),
        ),
        field!(
            glib::ParamSpecInt::builder("fd")
                .nick("File descriptor")
                .blurb("Open file descriptor for the results, one line of JSON per frame, -1 for none; location goes before")
                .minimum(-1)
                .default_value(default.fd)
                .mutable_ready()
                .build(),
            fd
        ),
        field!(
            glib::ParamSpecBoolean::builder("post-messages")
                .nick("Post messages")
                .blurb("Post the results of each frame as an element message conceptseg-results")
                .default_value(default.post_messages)
                .mutable_playing()
                .build(),
            post_messages
        ),
    ]
});

/// What lives from start to stop.
#[derive(Default)]
struct State {
    output: Option<Output>,
    masks: MaskMap,
}

#[derive(Default)]
pub struct ConceptMetaSink {
    settings: Mutex<Settings>,
    state: Mutex<State>,
}

#[glib::object_subclass]
impl ObjectSubclass for ConceptMetaSink {
    const NAME: &'static str = "GstConceptMetaSink";
    type Type = super::ConceptMetaSink;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for ConceptMetaSink {
    object_methods!(PROPERTIES);
}

impl GstObjectImpl for ConceptMetaSink {}

impl ElementImpl for ConceptMetaSink {
    element_methods! {
        name: "ConceptSeg results",
        class: "Filter/Metadata",
        description: "Writes concepts and instances down as JSON lines or messages and passes frames on",
        // Only metadata is looked at, so that anything may pass, also encoded video.
        pads: gst::Caps::new_any(),
    }
}

impl BaseTransformImpl for ConceptMetaSink {
    const MODE: BaseTransformMode = BaseTransformMode::AlwaysInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = true;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = true;

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let settings = lock(&self.settings).clone();
        let output = match (&settings.location, settings.fd) {
            (Some(path), _) => Some(Output::file(path)?),
            (None, -1) => None,
            (None, fd) => Some(Output::descriptor(fd)?),
        };
        *lock(&self.state) = State { output, masks: MaskMap::default() };
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        std::mem::take(&mut *lock(&self.state)).output.map_or(Ok(()), |mut output| output.finish())
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        if event.type_() == gst::EventType::Eos {
            let finished = lock(&self.state).output.as_mut().map_or(Ok(()), Output::finish);
            if let Err(message) = finished {
                self.post_error_message(message);
            }
        }
        self.parent_sink_event(event)
    }

    fn transform_ip_passthrough(
        &self,
        buffer: &gst::Buffer,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.take_down(buffer).map_err(|message| {
            self.post_error_message(message);
            gst::FlowError::Error
        })?;
        Ok(gst::FlowSuccess::Ok)
    }
}

impl ConceptMetaSink {
    fn take_down(&self, buffer: &gst::BufferRef) -> Result<(), gst::ErrorMessage> {
        let post = lock(&self.settings).post_messages;
        let mut state = lock(&self.state);
        if state.output.is_none() && !post {
            return Ok(());
        }
        let Some(analysis) = Analysis::from_buffer(buffer)? else { return Ok(()) };
        let State { output, masks } = &mut *state;
        if let Some(output) = output {
            output.write(&record(&analysis, buffer.pts(), masks)?)?;
        }
        drop(state);
        if post {
            let message = gst::message::Element::builder(message(buffer, &analysis));
            // Fails where there is no bus, and then nobody wants it.
            let _ = self.obj().post_message(message.src(&*self.obj()).build());
        }
        Ok(())
    }
}

/// What is written about one frame.
fn record(
    analysis: &Analysis,
    pts: Option<gst::ClockTime>,
    masks: &mut MaskMap,
) -> Result<FrameRecord, MetaError> {
    let mut instances = Vec::new();
    if let Some((width, height)) = analysis.masks_size()? {
        analysis.read_masks(width, height, masks)?;
        instances.extend(analysis.instances().iter().map(|stat| InstanceRecord {
            id: stat.id,
            area: stat.area,
            bbox: stat.bbox,
            confidence: stat.confidence,
            segmentation: Rle::encode(&masks.labels, width, height, stat.id, stat.bbox),
        }));
    }
    let (concepts, carried) = (analysis.concepts_source(), analysis.masks_source());
    let sources = || concepts.iter().chain(&carried);
    // Both come from the same network run where neither is late.
    let newest = sources().max_by_key(|(source, _)| source.frame).map(|(source, _)| &source.times);
    let times = newest.map(|times| StageTimes {
        concepts: concepts.map_or_else(Default::default, |(source, _)| source.times.concepts),
        propagation: carried.map_or_else(Default::default, |(source, _)| source.times.propagation),
        ..*times
    });
    let age = sources().map(|(_, age)| age.age).max().filter(|age| !age.is_zero());
    Ok(FrameRecord {
        frame: analysis.frame,
        pts_ns: pts.map(gst::ClockTime::nseconds),
        age_ns: age.map(gst::ClockTime::nseconds),
        width: analysis.width,
        height: analysis.height,
        latency_ms: Latency::from(&times.unwrap_or_default()),
        concepts: analysis.summary().to_vec(),
        instances,
    })
}

/// The message of one frame. The maps stay out of it: they are on the buffer.
fn message(buffer: &gst::BufferRef, analysis: &Analysis) -> gst::Structure {
    let mut fields = gst::Structure::builder(MESSAGE)
        .field("frame", analysis.frame)
        .field("width", analysis.width)
        .field("height", analysis.height)
        .field_if_some("pts", buffer.pts().map(gst::ClockTime::nseconds))
        .build();
    if let Ok(meta) = gst::meta::CustomMeta::from_buffer(buffer, meta::NAME) {
        for (from, to) in [
            ("summary", "concepts"),
            ("instances", "instances"),
            ("concepts-source", "concepts-source"),
            ("masks-source", "masks-source"),
        ] {
            if let Ok(value) = meta.structure().value(from) {
                fields.set_value(to, value.clone());
            }
        }
    }
    fields
}
