use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use conceptseg::bundle::Bundle;
use conceptseg::concepts::ConceptSegment;
use conceptseg::errors::sentence;
use conceptseg::monitor::output::mqtt::{MqttConfig, TlsFiles};
use conceptseg::monitor::output::{MqttOutput, OutputConfig, OutputError, Outputs, Rotation};
use conceptseg::monitor::{Event, Setup, SetupFiles, SetupSources, Sighting, Watch};
use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::subclass::prelude::*;
use gst_video::{VideoFrameRef, VideoInfo};

use super::errors::{of_output, of_setup};
use super::message::{of_event, of_readings};
use crate::element::{self, Properties, Property, element_methods, field, object_methods, passing};
use crate::errors::message;
use crate::meta::{self, Embedding, Source};
use crate::settings;
use crate::{lock, models, video};

static CAT: LazyLock<gst::DebugCategory> =
    LazyLock::new(|| element::category("conceptmonitor", "Watching of streams"));

/// Space for events that wait for the broker, in bytes.
const SPOOL_BYTES: u64 = 64 << 20;
/// How long the end of a stream waits for the file and the spool.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long an element that stops waits for the broker; what it has not got stays in the spool.
const LAST_CALL: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
struct Settings {
    bundle: Option<PathBuf>,
    baseline: Option<PathBuf>,
    rules: Option<PathBuf>,
    /// The property `settings`.
    config: Option<PathBuf>,
    stream: Option<String>,
    /// Width, 0 for that of the file of settings.
    thumbnails: u32,
    post_messages: bool,
    log: Option<PathBuf>,
    listen: Option<String>,
    mqtt: Option<String>,
    tls: TlsFiles,
    spool: Option<PathBuf>,
    device_name: Option<String>,
    prefix: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bundle: None,
            baseline: None,
            rules: None,
            config: None,
            stream: None,
            thumbnails: 0,
            post_messages: true,
            log: None,
            listen: None,
            mqtt: None,
            tls: TlsFiles::default(),
            spool: None,
            device_name: Some("device".to_owned()),
            prefix: Some("conceptseg".to_owned()),
        }
    }
}

impl Settings {
    fn read(&self) -> Result<SetupSources, gst::ErrorMessage> {
        let files = SetupFiles {
            baseline: self.baseline.clone(),
            rules: self.rules.clone(),
            settings: self.config.clone(),
        };
        let mut sources = files.read().map_err(|e| of_setup(&e))?;
        if self.thumbnails > 0 {
            sources.config.thumbnail = Some(self.thumbnails);
        }
        sources.config.check().map_err(|e| message(gst::LibraryError::Settings, &sentence(&e)))?;
        Ok(sources)
    }

    fn outputs(&self) -> Result<OutputConfig, gst::ErrorMessage> {
        let mqtt = match (&self.mqtt, &self.spool) {
            (None, _) => None,
            (Some(broker), Some(spool)) => {
                let variable = |name| std::env::var(name).ok();
                let user = variable("CONCEPTSEG_MQTT_USER");
                Some(MqttOutput {
                    config: MqttConfig {
                        broker: broker.clone(),
                        tls: self.tls.clone(),
                        device: self.device_name.clone().unwrap_or_default(),
                        prefix: self.prefix.clone().unwrap_or_default(),
                        login: user.zip(variable("CONCEPTSEG_MQTT_PASSWORD")),
                    },
                    spool: spool.clone(),
                    spool_bytes: SPOOL_BYTES,
                })
            }
            (Some(_), None) => {
                return Err(message(
                    gst::LibraryError::Settings,
                    "mqtt is set without spool: set the property spool to a folder where events \
                     can wait for the broker",
                ));
            }
        };
        let log = self.log.clone().map(|path| (path, Rotation::default()));
        Ok(OutputConfig { log, listen: self.listen.clone(), mqtt })
    }
}

pub static PROPERTIES: Properties<ConceptMonitor> = Properties::new(|| {
    let default = Settings::default();
    vec![
        field!(
            glib::ParamSpecString::builder("bundle")
                .nick("Bundle")
                .blurb("Folder of the bundle that the concepts are of; without it, that of the elements before, and mistakes in baseline and rules show at the first result only")
                .mutable_ready()
                .build(),
            bundle,
            settings::path
        ),
        field!(
            glib::ParamSpecString::builder("baseline")
                .nick("Baseline")
                .blurb("File of what is normal, from conceptseg monitor baseline; without it the statistics of the bundle")
                .mutable_ready()
                .build(),
            baseline,
            settings::path
        ),
        field!(
            glib::ParamSpecString::builder("rules")
                .nick("Rules")
                .blurb("File of rules of your own (TOML)")
                .mutable_ready()
                .build(),
            rules,
            settings::path
        ),
        field!(
            glib::ParamSpecString::builder("settings")
                .nick("Settings")
                .blurb("File of settings of the monitor (TOML)")
                .mutable_ready()
                .build(),
            config,
            settings::path
        ),
        field!(
            glib::ParamSpecString::builder("stream")
                .nick("Stream")
                .blurb("Name of the stream in events and metrics; without it the name of the element")
                .mutable_ready()
                .build(),
            stream,
            settings::text
        ),
        field!(
            glib::ParamSpecUInt::builder("thumbnails")
                .nick("Thumbnails")
                .blurb("Width of the pictures that events carry, 16 to 640 pixels, 0 for what the settings say")
                .maximum(640)
                .default_value(default.thumbnails)
                .mutable_ready()
                .build(),
            thumbnails
        ),
        field!(
            glib::ParamSpecBoolean::builder("post-messages")
                .nick("Post messages")
                .blurb("Post each event as an element message conceptseg-event")
                .default_value(default.post_messages)
                .mutable_playing()
                .build(),
            post_messages
        ),
        field!(
            glib::ParamSpecString::builder("log")
                .nick("Log")
                .blurb("File that events are appended to, one line of JSON each; at 16 MiB it gives way to a new one, five older ones stay")
                .mutable_ready()
                .build(),
            log,
            settings::path
        ),
        field!(
            glib::ParamSpecString::builder("listen")
                .nick("Listen")
                .blurb("Address (host:port) of the live page and of the metrics for Prometheus, without passwords; elements with the same address share it")
                .mutable_ready()
                .build(),
            listen,
            settings::text
        ),
        field!(
            glib::ParamSpecString::builder("mqtt")
                .nick("MQTT")
                .blurb("Broker (host:port, or mqtts://host for an encrypted connection) that events are published to; elements with the same broker and device-name share the connection")
                .mutable_ready()
                .build(),
            mqtt,
            settings::text
        ),
        field!(
            glib::ParamSpecString::builder("mqtt-ca")
                .nick("MQTT CA")
                .blurb("File of certificates (PEM) of the authorities that may vouch for an mqtts:// broker; without it those that the system trusts")
                .mutable_ready()
                .build(),
            tls.ca,
            settings::path
        ),
        field!(
            glib::ParamSpecString::builder("mqtt-certificate")
                .nick("MQTT certificate")
                .blurb("File of the certificate (PEM) that this device shows to the broker; needs mqtt-key")
                .mutable_ready()
                .build(),
            tls.certificate,
            settings::path
        ),
        field!(
            glib::ParamSpecString::builder("mqtt-key")
                .nick("MQTT key")
                .blurb("File of the key (PEM) of mqtt-certificate")
                .mutable_ready()
                .build(),
            tls.key,
            settings::path
        ),
        field!(
            glib::ParamSpecString::builder("spool")
                .nick("Spool")
                .blurb("Folder where events wait for the broker, up to 64 MiB")
                .mutable_ready()
                .build(),
            spool,
            settings::path
        ),
        field!(
            glib::ParamSpecString::builder("device-name")
                .nick("Device name")
                .blurb("Name of this device, in topics PREFIX/DEVICE/STREAM/event")
                .default_value(default.device_name.as_deref())
                .mutable_ready()
                .build(),
            device_name,
            settings::text
        ),
        field!(
            glib::ParamSpecString::builder("prefix")
                .nick("Prefix")
                .blurb("First part of all topics")
                .default_value(default.prefix.as_deref())
                .mutable_ready()
                .build(),
            prefix,
            settings::text
        ),
        Property::read_only(
            glib::ParamSpecBoxed::builder::<gst::Structure>("readings")
                .nick("Readings")
                .blurb("What was measured so far: frames, results that were analysed, novelty, drift, camera, states that hold, events of each kind, concepts")
                .read_only()
                .build(),
            |element: &ConceptMonitor| element.readings().to_value(),
        ),
    ]
});

/// What lives from start to stop.
struct State {
    sources: SetupSources,
    outputs: Arc<Outputs>,
    /// Name of the stream.
    stream: String,
    /// Begins with the first result, whose model is known then, or with the property `bundle`.
    watch: Option<Watch>,
    /// The model that it began with; `None` for that of the property.
    model: Option<u64>,
    info: Option<VideoInfo>,
    frames: u64,
    /// Results that were looked at.
    analysed: u64,
    /// The frame whose result was looked at last.
    taken: Option<Source>,
    segments: Vec<ConceptSegment>,
    began: Instant,
}

#[derive(Default)]
pub struct ConceptMonitor {
    settings: Mutex<Settings>,
    state: Mutex<Option<State>>,
}

#[glib::object_subclass]
impl ObjectSubclass for ConceptMonitor {
    const NAME: &'static str = "GstConceptMonitor";
    type Type = super::ConceptMonitor;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for ConceptMonitor {
    object_methods!(PROPERTIES);
}

impl GstObjectImpl for ConceptMonitor {}

impl ElementImpl for ConceptMonitor {
    element_methods! {
        name: "ConceptSeg monitor",
        class: "Filter/Analyzer/Video",
        description: "Watches what a stream shows, and tells when it differs from what is normal",
        pads: video::caps(&video::FORMATS),
    }
}

impl BaseTransformImpl for ConceptMonitor {
    passing!(look);

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let settings = lock(&self.settings).clone();
        let sources = settings.read()?;
        let stream = settings.stream.clone().unwrap_or_else(|| self.obj().name().into());
        let watch = match &settings.bundle {
            Some(path) => {
                let bundle = Bundle::open(path)
                    .map_err(|e| message(gst::ResourceError::NotFound, &sentence(&e)))?;
                Some(begin(&sources, &bundle, &stream)?)
            }
            None => None,
        };
        let outputs = Outputs::open(&settings.outputs()?).map_err(|e| of_output(&e))?;
        if let Some(address) = outputs.address() {
            gst::info!(CAT, imp = self, "The live page is at http://{address}/");
        }
        *lock(&self.state) = Some(State {
            sources,
            outputs: Arc::new(outputs),
            stream,
            watch,
            model: None,
            info: None,
            frames: 0,
            analysed: 0,
            taken: None,
            segments: Vec::new(),
            began: Instant::now(),
        });
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        self.conclude();
        let state = lock(&self.state).take();
        if let Some(outputs) = state.and_then(|state| Arc::into_inner(state.outputs)) {
            self.warn(outputs.close(LAST_CALL).err());
        }
        Ok(())
    }

    fn set_caps(&self, incaps: &gst::Caps, _outcaps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let info = VideoInfo::from_caps(incaps)
            .map_err(|e| gst::loggable_error!(CAT, "Caps {incaps} describe no video: {e}"))?;
        if let Some(state) = lock(&self.state).as_mut() {
            state.info = Some(info);
        }
        Ok(())
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        match event.type_() {
            gst::EventType::Eos => self.conclude(),
            // Its frames are counted from 0 again. The camera is the same one.
            gst::EventType::StreamStart => {
                if let Some(state) = lock(&self.state).as_mut() {
                    state.taken = None;
                }
            }
            _ => {}
        }
        self.parent_sink_event(event)
    }
}

impl ConceptMonitor {
    fn look(&self, buffer: &gst::Buffer) -> Result<(), gst::ErrorMessage> {
        let (events, failure) = {
            let mut state = lock(&self.state);
            let Some(state) = state.as_mut() else { return Ok(()) };
            (state.look(buffer)?, state.outputs.failure())
        };
        self.warn(failure);
        if lock(&self.settings).post_messages {
            for event in events {
                let message = gst::message::Element::builder(of_event(&event, buffer.pts()));
                // Fails where there is no bus, and then nobody wants it.
                let _ = self.obj().post_message(message.src(&*self.obj()).build());
            }
        }
        Ok(())
    }

    /// Brings all that was told to its place.
    fn conclude(&self) {
        let outputs = {
            let mut state = lock(&self.state);
            let Some(state) = state.as_mut() else { return };
            if let Some(watch) = &mut state.watch {
                watch.report(&state.outputs);
            }
            Arc::clone(&state.outputs)
        };
        self.warn(outputs.flush(LAST_WORDS).err());
    }

    /// A stream does not end because it cannot be written about.
    fn warn(&self, failure: Option<OutputError>) {
        if let Some(failure) = failure {
            gst::element_imp_warning!(self, gst::ResourceError::Write, ("{}", sentence(&failure)));
        }
    }

    fn readings(&self) -> gst::Structure {
        let state = lock(&self.state);
        let Some(state) = state.as_ref() else { return of_readings(0, 0, None) };
        let mut readings = of_readings(state.frames, state.analysed, state.watch.as_ref());
        readings.set("lost", state.outputs.lost());
        if let Some(address) = state.outputs.address() {
            readings.set("address", address.to_string());
        }
        readings
    }
}

impl State {
    fn look(&mut self, buffer: &gst::BufferRef) -> Result<Vec<Arc<Event>>, gst::ErrorMessage> {
        let index = self.frames;
        self.frames += 1;
        let time = buffer.pts().map_or(self.began.elapsed(), Duration::from).as_secs_f64();
        // A result is looked at once, with the first frame that carries it.
        let source = meta::concepts_source(buffer)?.map(|(source, _)| source);
        let source =
            source.filter(|new| self.taken.as_ref().is_none_or(|taken| !taken.is_frame(new)));
        if source.is_some() {
            meta::read_segments(buffer, &mut self.segments)?;
            self.follow_model(buffer)?;
        }
        let (Some(watch), Some(info)) = (&mut self.watch, &self.info) else {
            return Ok(Vec::new());
        };
        let frame = VideoFrameRef::from_buffer_ref_readable(buffer, info).map_err(|e| {
            message(
                gst::ResourceError::Read,
                &format!("Cannot read a frame: {e}; the element before must send whole frames"),
            )
        })?;
        let view = video::frame_view(&frame, info)
            .map_err(|e| message(gst::StreamError::Format, &format!("Cannot use a frame: {e}")))?;
        let sightings = source.as_ref().map(|source| {
            let size = (source.width, source.height);
            self.segments.iter().map(move |segment| Sighting::of_segment(segment, size))
        });
        let events = watch.frame(&self.outputs, |monitor| {
            monitor.observe_sightings(index, sightings, Some(&view), time)
        });
        if source.is_some() {
            self.analysed += 1;
            self.taken = source;
        }
        Ok(events)
    }

    /// Begins to watch with the bundle of the model that the result on `buffer` is of.
    fn follow_model(&mut self, buffer: &gst::BufferRef) -> Result<(), gst::ErrorMessage> {
        // With the property `bundle` there is a watch, and no model to follow.
        if self.watch.is_some() && self.model.is_none() {
            return Ok(());
        }
        let id = Embedding::from_buffer(buffer)?.map(|(embedding, _)| embedding.model);
        match id.and_then(|id| Some((id, models::find(id)?))) {
            Some((id, _)) if self.model == Some(id) => Ok(()),
            Some((id, model)) => {
                self.watch = Some(begin(&self.sources, model.bundle(), &self.stream)?);
                self.model = Some(id);
                Ok(())
            }
            // Metadata of a model that has been replaced is followed by that of the new one.
            None if self.watch.is_some() => Ok(()),
            None => Err(message(
                gst::LibraryError::Settings,
                "Cannot tell which bundle the concepts of the frames are of, since no element of \
                 this process found them: set the property bundle",
            )),
        }
    }
}

fn begin(
    sources: &SetupSources,
    bundle: &Bundle,
    stream: &str,
) -> Result<Watch, gst::ErrorMessage> {
    let setup = Setup::new(sources, bundle).map_err(|e| of_setup(&e))?;
    setup.watch(stream).map_err(|e| message(gst::LibraryError::Settings, &sentence(&e)))
}
