use std::sync::{Arc, LazyLock, Mutex};

use conceptseg::concepts::SegmentationConfig;
use conceptseg::embed::Model;
use conceptseg::stream::StreamConfig;
use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::BaseTransformMode;
use gst_base::subclass::prelude::*;

use super::stage::{Input, LabelStage};
use crate::live::{Analyzer, Moment, Shown};
use crate::meta::{Embedding, Source};
use crate::settings::{self, Lateness, assign};
use crate::{lock, models, video};

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new(
        "conceptlabel",
        gst::DebugColorFlags::empty(),
        Some("Labelling with concepts"),
    )
});

#[derive(Debug, Clone)]
struct Settings {
    concepts: bool,
    num_segments: u32,
    iterations: u32,
    lateness: Lateness,
}

impl Default for Settings {
    fn default() -> Self {
        let StreamConfig { segmentation, concepts, .. } = StreamConfig::default();
        Self {
            concepts,
            num_segments: (segmentation.grid * segmentation.grid) as u32,
            iterations: segmentation.iterations as u32,
            lateness: Lateness::default(),
        }
    }
}

impl Settings {
    fn segmentation(&self) -> Result<SegmentationConfig, gst::ErrorMessage> {
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
        Ok(SegmentationConfig { grid: grid as usize, iterations: self.iterations as usize })
    }
}

pub fn properties() -> Vec<glib::ParamSpec> {
    let default = Settings::default();
    let mut properties = vec![
        glib::ParamSpecBoolean::builder("concepts")
            .nick("Concepts")
            .blurb("Label frames with concepts; without it they pass as they are")
            .default_value(default.concepts)
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt::builder("num-segments")
            .nick("Number of segments")
            .blurb("Clusters that a frame is divided into, a square number")
            .minimum(4)
            .maximum(256)
            .default_value(default.num_segments)
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt::builder("iterations")
            .nick("Iterations")
            .blurb("Iterations of the clustering")
            .minimum(1)
            .maximum(100)
            .default_value(default.iterations)
            .mutable_playing()
            .build(),
    ];
    properties.extend(Lateness::properties());
    properties.push(settings::stats());
    properties
}

/// What the streaming thread remembers.
#[derive(Default)]
struct State {
    /// The model of the latest embeddings, kept so that frames under way can be labelled after
    /// `conceptembed` has changed to another.
    model: Option<(u64, Arc<Model>)>,
    /// The frame whose embeddings were taken last.
    taken: Option<Source>,
}

#[derive(Default)]
pub struct ConceptLabel {
    settings: Mutex<Settings>,
    state: Mutex<State>,
    analyzer: Analyzer<LabelStage>,
}

#[glib::object_subclass]
impl ObjectSubclass for ConceptLabel {
    const NAME: &'static str = "GstConceptLabel";
    type Type = super::ConceptLabel;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for ConceptLabel {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(properties);
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let mut settings = lock(&self.settings);
        match pspec.name() {
            "concepts" => assign(&mut settings.concepts, value),
            "num-segments" => assign(&mut settings.num_segments, value),
            "iterations" => assign(&mut settings.iterations, value),
            other => {
                if !settings.lateness.set(other, value) {
                    gst::error!(CAT, imp = self, "There is no property {other} to set");
                }
            }
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let settings = lock(&self.settings);
        match pspec.name() {
            "concepts" => settings.concepts.to_value(),
            "num-segments" => settings.num_segments.to_value(),
            "iterations" => settings.iterations.to_value(),
            "stats" => self.analyzer.stats().to_structure().to_value(),
            other => settings.lateness.get(other).unwrap_or_else(|| pspec.default_value().clone()),
        }
    }

    fn constructed(&self) {
        self.parent_constructed();
        // Dropping whole frames because one was late would lose their masks.
        self.obj().set_qos(false);
    }
}

impl GstObjectImpl for ConceptLabel {}

impl ElementImpl for ConceptLabel {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "ConceptSeg labelling",
                "Filter/Analyzer/Video",
                "Labels the pixels of frames with concepts learnt without labels",
                "ConceptSeg developers",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> =
            LazyLock::new(|| video::pad_templates(&video::FORMATS));
        &TEMPLATES
    }
}

impl BaseTransformImpl for ConceptLabel {
    const MODE: BaseTransformMode = BaseTransformMode::AlwaysInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        lock(&self.settings).segmentation()?;
        *lock(&self.state) = State::default();
        self.analyzer.start(LabelStage::new(), "");
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        self.analyzer.stop();
        *lock(&self.state) = State::default();
        Ok(())
    }

    fn set_caps(&self, incaps: &gst::Caps, _outcaps: &gst::Caps) -> Result<(), gst::LoggableError> {
        self.analyzer.set_caps(*CAT, incaps)
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        if self.analyzer.event(&event) {
            lock(&self.state).taken = None;
        }
        self.parent_sink_event(event)
    }

    fn query(&self, direction: gst::PadDirection, query: &mut gst::QueryRef) -> bool {
        let answered = BaseTransformImplExt::parent_query(self, direction, query);
        if answered {
            self.analyzer.answer(direction, query);
        }
        answered
    }

    fn transform_ip(
        &self,
        buffer: &mut gst::BufferRef,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.label(buffer).map_err(|message| {
            self.post_error_message(message);
            gst::FlowError::Error
        })?;
        Ok(gst::FlowSuccess::Ok)
    }
}

impl ConceptLabel {
    fn label(&self, buffer: &mut gst::BufferRef) -> Result<(), gst::ErrorMessage> {
        let settings = lock(&self.settings).clone();
        self.analyzer.count();
        if !settings.concepts {
            return Ok(());
        }
        let embedding = Embedding::from_buffer(buffer)?;
        let now = Moment::carrying(embedding.as_ref(), buffer.pts());
        let shown =
            self.analyzer.frame(self.obj().upcast_ref(), settings.lateness.rules(), now, || {
                let Some((embedding, _)) = embedding else { return Ok(None) };
                let mut state = lock(&self.state);
                if state.taken.as_ref().is_some_and(|taken| taken.is_frame(&embedding.source)) {
                    return Ok(None);
                }
                let Some(model) = state.model(embedding.model) else { return Ok(None) };
                let config = settings.segmentation()?;
                state.taken = Some(embedding.source.clone());
                Ok(Some(Input { embedding, model, config }))
            })?;
        let Some(Shown { found, age, new }) = shown else { return Ok(()) };
        if new {
            self.analyzer.stats().stage("concepts", found.source.times.concepts);
        }
        found.value.attach(buffer, age)?;
        Ok(())
    }
}

impl State {
    fn model(&mut self, id: u64) -> Option<Arc<Model>> {
        match &self.model {
            Some((known, model)) if *known == id => Some(Arc::clone(model)),
            _ => {
                let model = models::find(id)?;
                self.model = Some((id, Arc::clone(&model)));
                Some(model)
            }
        }
    }
}
