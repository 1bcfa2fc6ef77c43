use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

use conceptseg::backend::{BackendKind, BackendOptions};
use conceptseg::concepts::SegmentationConfig;
use conceptseg::embed::Model;
use conceptseg::errors::sentence;
use conceptseg::labels::LabelMap;
use conceptseg::results::{FrameRecord, RecordWriter};
use conceptseg::stream::{StreamConfig, StreamError, StreamState};
use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::BaseTransformMode;
use gst_base::subclass::prelude::*;
use gst_video::{VideoFrameRef, VideoInfo};

use super::Backend;
use super::stats::Stats;
use crate::{lock, meta, models, video};

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new(
        "conceptseg",
        gst::DebugColorFlags::empty(),
        Some("Concept labelling and mask propagation"),
    )
});

/// Short sides that the network is run at, in pixels.
const SHORT_SIDES: std::ops::RangeInclusive<u32> = 64..=2160;

#[derive(Debug, Clone)]
struct Settings {
    bundle: Option<PathBuf>,
    backend: Backend,
    threads: u32,
    short_side: u32,
    first_frame_mask: Option<PathBuf>,
    /// Set while running; the streaming thread takes it for the next frame.
    mask_changed: bool,
    concepts: bool,
    num_segments: u32,
    iterations: u32,
    results_location: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        let stream = StreamConfig::default();
        Self {
            bundle: None,
            backend: Backend::Auto,
            threads: 0,
            short_side: stream.short_side,
            first_frame_mask: None,
            mask_changed: false,
            concepts: stream.concepts,
            num_segments: (stream.segmentation.grid * stream.segmentation.grid) as u32,
            iterations: stream.segmentation.iterations as u32,
            results_location: None,
        }
    }
}

impl Settings {
    fn backend_options(&self) -> BackendOptions {
        let kind = match self.backend {
            Backend::Auto => BackendKind::Auto,
            Backend::Rten => BackendKind::Rten,
            Backend::Onnxruntime => BackendKind::Onnxruntime,
        };
        BackendOptions::new(kind, self.threads as usize)
    }

    fn stream_config(&self) -> Result<StreamConfig, gst::ErrorMessage> {
        let grid = self.num_segments.isqrt();
        if grid * grid != self.num_segments {
            return Err(gst::error_msg!(
                gst::LibraryError::Settings,
                (
                    "num-segments is {}, but clusters start on a square grid: set a square \
                     number such as {} or {}",
                    self.num_segments,
                    grid * grid,
                    (grid + 1) * (grid + 1)
                )
            ));
        }
        Ok(StreamConfig {
            short_side: self.short_side,
            concepts: self.concepts,
            segmentation: SegmentationConfig {
                grid: grid as usize,
                iterations: self.iterations as usize,
            },
            ..StreamConfig::default()
        })
    }
}

/// What lives from start to stop.
struct State {
    model: Arc<Model>,
    config: StreamConfig,
    stream: StreamState,
    /// Kept for streams that follow in the same run.
    mask: Option<LabelMap>,
    info: Option<VideoInfo>,
    stream_id: Option<String>,
    results: Option<Results>,
}

impl State {
    fn start(settings: &Settings) -> Result<Self, gst::ErrorMessage> {
        let config = settings.stream_config()?;
        let Some(bundle) = &settings.bundle else {
            return Err(gst::error_msg!(
                gst::ResourceError::NotFound,
                ("No model bundle is given: set the property bundle to the folder of a trained \
                  model")
            ));
        };
        let model = models::open(bundle, &settings.backend_options())
            .map_err(|e| gst::error_msg!(gst::ResourceError::NotFound, ("{}", sentence(&e))))?;
        let mask = settings
            .first_frame_mask
            .as_deref()
            .map(read_mask)
            .transpose()
            .map_err(|e| gst::error_msg!(gst::ResourceError::Read, ("{e}")))?;
        let results = settings.results_location.as_deref().map(Results::start).transpose()?;
        let mut state = Self {
            stream: StreamState::new(Arc::clone(&model), config.clone()),
            model,
            config,
            mask,
            info: None,
            stream_id: None,
            results,
        };
        state.seed();
        Ok(state)
    }

    /// Begins a new stream with the same model.
    fn restart(&mut self) {
        self.stream = StreamState::new(Arc::clone(&self.model), self.config.clone());
        self.seed();
    }

    /// Hands the mask to the next frame.
    fn seed(&mut self) {
        if let Some(mask) = &self.mask {
            self.stream.set_instances(mask.clone());
        }
    }
}

/// The results file.
struct Results {
    path: PathBuf,
    /// `None` between the end of a stream and the first frame after it.
    writer: Option<RecordWriter>,
}

impl Results {
    fn start(path: &Path) -> Result<Self, gst::ErrorMessage> {
        let writer = RecordWriter::create(path).map_err(|e| {
            gst::error_msg!(
                gst::ResourceError::OpenWrite,
                ("Cannot write results to {}: {e}", path.display())
            )
        })?;
        Ok(Self { path: path.to_owned(), writer: Some(writer) })
    }

    fn write(&mut self, record: &FrameRecord) -> std::io::Result<()> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(RecordWriter::create(&self.path)?),
        };
        writer.write(record)
    }

    fn finish(&mut self) -> Result<(), gst::ErrorMessage> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        writer.finish().map_err(|e| {
            gst::error_msg!(
                gst::ResourceError::Write,
                ("Cannot write results to {}: {e}", self.path.display())
            )
        })
    }
}

fn read_mask(path: &Path) -> Result<LabelMap, String> {
    LabelMap::read_png(path).map_err(|e| format!("Cannot use first-frame-mask: {}", sentence(&e)))
}

#[derive(Default)]
pub struct ConceptSeg {
    settings: Mutex<Settings>,
    /// Held during inference. Only the streaming thread and state changes take it, so that
    /// properties never wait for a frame.
    state: Mutex<Option<State>>,
    stats: Mutex<Stats>,
}

#[glib::object_subclass]
impl ObjectSubclass for ConceptSeg {
    const NAME: &'static str = "GstConceptSeg";
    type Type = super::ConceptSeg;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for ConceptSeg {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let default = Settings::default();
            vec![
                glib::ParamSpecString::builder("bundle")
                    .nick("Bundle")
                    .blurb("Folder of the model bundle")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("backend", default.backend)
                    .nick("Backend")
                    .blurb("Which program runs the network")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("threads")
                    .nick("Threads")
                    .blurb("CPU threads for the network, 0 for all cores")
                    .maximum(1024)
                    .default_value(default.threads)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("short-side")
                    .nick("Short side")
                    .blurb("Shorter side of the frame as the network sees it, in pixels, rounded to a multiple of 8; less is faster and coarser")
                    .minimum(*SHORT_SIDES.start())
                    .maximum(*SHORT_SIDES.end())
                    .default_value(default.short_side)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecString::builder("first-frame-mask")
                    .nick("First-frame mask")
                    .blurb("Palette or grey PNG of the size of the frames whose values are instance ids (0 background), for the first frame or, set while playing, for the next one")
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoolean::builder("concepts")
                    .nick("Concepts")
                    .blurb("Label frames with concepts")
                    .default_value(default.concepts)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("num-segments")
                    .nick("Number of segments")
                    .blurb("Clusters that a frame is divided into, a square number")
                    .minimum(4)
                    .maximum(256)
                    .default_value(default.num_segments)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("iterations")
                    .nick("Iterations")
                    .blurb("Iterations of the clustering")
                    .minimum(1)
                    .maximum(100)
                    .default_value(default.iterations)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecString::builder("results-location")
                    .nick("Results location")
                    .blurb("File for the results, one line of JSON per frame; it appears at the end of the stream")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
                    .nick("Statistics")
                    .blurb("Frames received and inferred, backend, and per stage mean, median and 99th percentile of the latency in milliseconds over the last 1024 frames")
                    .read_only()
                    .build(),
            ]
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let mut settings = lock(&self.settings);
        // The type of the value has been checked against the specification before.
        macro_rules! set {
            ($field:ident) => {
                if let Ok(value) = value.get() {
                    settings.$field = value;
                }
            };
        }
        let path =
            || value.get::<Option<PathBuf>>().ok().flatten().filter(|p| !p.as_os_str().is_empty());
        match pspec.name() {
            "bundle" => settings.bundle = path(),
            "backend" => set!(backend),
            "threads" => set!(threads),
            "short-side" => set!(short_side),
            "first-frame-mask" => {
                settings.first_frame_mask = path();
                settings.mask_changed = true;
            }
            "concepts" => set!(concepts),
            "num-segments" => set!(num_segments),
            "iterations" => set!(iterations),
            "results-location" => settings.results_location = path(),
            other => gst::error!(CAT, imp = self, "There is no property {other} to set"),
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let settings = lock(&self.settings);
        match pspec.name() {
            "bundle" => settings.bundle.to_value(),
            "backend" => settings.backend.to_value(),
            "threads" => settings.threads.to_value(),
            "short-side" => settings.short_side.to_value(),
            "first-frame-mask" => settings.first_frame_mask.to_value(),
            "concepts" => settings.concepts.to_value(),
            "num-segments" => settings.num_segments.to_value(),
            "iterations" => settings.iterations.to_value(),
            "results-location" => settings.results_location.to_value(),
            "stats" => lock(&self.stats).to_structure().to_value(),
            _ => pspec.default_value().clone(),
        }
    }

    fn constructed(&self) {
        self.parent_constructed();
        // Dropping whole frames because one was late would lose their masks.
        self.obj().set_qos(false);
    }
}

impl GstObjectImpl for ConceptSeg {}

impl ElementImpl for ConceptSeg {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "ConceptSeg segmentation",
                "Filter/Analyzer/Video",
                "Labels frames with concepts learnt without labels and carries instance masks along a stream",
                "ConceptSeg developers",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> =
            LazyLock::new(|| video::pad_templates(&video::ANALYSIS_FORMATS));
        &TEMPLATES
    }
}

impl BaseTransformImpl for ConceptSeg {
    const MODE: BaseTransformMode = BaseTransformMode::AlwaysInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let settings = {
            let mut settings = lock(&self.settings);
            settings.mask_changed = false;
            settings.clone()
        };
        let state = State::start(&settings)?;
        let backend = state.model.backend_name();
        gst::info!(CAT, imp = self, "Started with backend {backend}");
        *lock(&self.stats) = Stats::new(backend);
        *lock(&self.state) = Some(state);
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        match lock(&self.state).take().and_then(|state| state.results) {
            Some(mut results) => results.finish(),
            None => Ok(()),
        }
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
        match event.view() {
            gst::EventView::StreamStart(start) => {
                if let Some(state) = lock(&self.state).as_mut() {
                    let id = start.stream_id().to_owned();
                    let changed = state.stream_id.as_ref().is_some_and(|old| *old != id);
                    state.stream_id = Some(id);
                    if changed {
                        gst::info!(CAT, imp = self, "A new stream begins, masks start over");
                        state.restart();
                    }
                }
            }
            gst::EventView::Eos(_) => {
                let finished = match lock(&self.state).as_mut().and_then(|s| s.results.as_mut()) {
                    Some(results) => results.finish(),
                    None => Ok(()),
                };
                if let Err(message) = finished {
                    self.post_error_message(message);
                }
            }
            _ => {}
        }
        self.parent_sink_event(event)
    }

    fn transform_ip(
        &self,
        buffer: &mut gst::BufferRef,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        lock(&self.stats).frames += 1;
        let mut guard = lock(&self.state);
        let Some(state) = guard.as_mut() else { return Err(gst::FlowError::Flushing) };
        self.take_new_mask(state)?;

        let State { stream, info, model, results, .. } = state;
        let info = info.as_ref().ok_or(gst::FlowError::NotNegotiated)?;
        let pts = buffer.pts();
        let frame = VideoFrameRef::from_buffer_ref_readable(buffer, info).map_err(|e| {
            self.fail(gst::ResourceError::Read, &format!("Cannot read a frame: {e}"))
        })?;
        let view = video::frame_view(&frame, info).map_err(|e| {
            self.fail(gst::StreamError::Format, &format!("Cannot use a frame: {e}"))
        })?;
        let result = stream.process(&view).map_err(|e| self.stream_error(&e))?;
        drop(frame);

        lock(&self.stats).push(&result.times);
        let names = &model.bundle().names;
        if let Some(results) = results {
            let record = FrameRecord::new(result, names, pts.map(gst::ClockTime::nseconds));
            results.write(&record).map_err(|e| {
                let text = format!("Cannot write results to {}: {e}", results.path.display());
                self.fail(gst::ResourceError::Write, &text)
            })?;
        }
        meta::attach(buffer, result, names)
            .map_err(|e| self.fail(gst::StreamError::Failed, &sentence(&e)))?;
        Ok(gst::FlowSuccess::Ok)
    }
}

impl ConceptSeg {
    /// Reads the mask that was set while running, if there is one.
    fn take_new_mask(&self, state: &mut State) -> Result<(), gst::FlowError> {
        let path = {
            let mut settings = lock(&self.settings);
            if !std::mem::take(&mut settings.mask_changed) {
                return Ok(());
            }
            settings.first_frame_mask.clone()
        };
        let mask = path.as_deref().map(read_mask).transpose();
        state.mask = mask.map_err(|text| self.fail(gst::ResourceError::Read, &text))?;
        state.seed();
        Ok(())
    }

    fn stream_error(&self, error: &StreamError) -> gst::FlowError {
        let text = sentence(error);
        match error {
            StreamError::MaskSize { .. } | StreamError::EmptyMask => self
                .fail(gst::LibraryError::Settings, &format!("Cannot use first-frame-mask: {text}")),
            _ => self.fail(gst::StreamError::Failed, &text),
        }
    }

    /// Posts an element error and answers what the streaming thread has to return.
    fn fail(&self, kind: impl gst::MessageErrorDomain, text: &str) -> gst::FlowError {
        self.post_error_message(gst::ErrorMessage::new(
            &kind,
            Some(text),
            None,
            file!(),
            module_path!(),
            line!(),
        ));
        gst::FlowError::Error
    }
}
