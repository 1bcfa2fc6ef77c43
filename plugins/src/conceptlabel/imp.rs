use std::sync::{Arc, LazyLock, Mutex};

use conceptseg::concepts::SegmentationConfig;
use conceptseg::embed::Model;
use conceptseg::stream::StreamConfig;
use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::subclass::prelude::*;

use super::stage::{Input, LabelStage};
use crate::element::{
    self, Properties, Property, analyzer_methods, element_methods, field, in_place, object_methods,
};
use crate::live::{Analyzer, Moment, Shown};
use crate::meta::{Embedding, Source};
use crate::settings::{self, Lateness};
use crate::{gpu, lock, models, video};

static CAT: LazyLock<gst::DebugCategory> =
    LazyLock::new(|| element::category("conceptlabel", "Labelling with concepts"));

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

pub static PROPERTIES: Properties<ConceptLabel> = Properties::new(|| {
    let default = Settings::default();
    vec![
        field!(
            glib::ParamSpecBoolean::builder("concepts")
                .nick("Concepts")
                .blurb("Label frames with concepts")
                .default_value(default.concepts)
                .mutable_playing()
                .build(),
            concepts
        ),
        field!(
            glib::ParamSpecUInt::builder("num-segments")
                .nick("Number of segments")
                .blurb("Number of clusters that a frame is divided into, a square number")
                .minimum(4)
                .maximum(256)
                .default_value(default.num_segments)
                .mutable_playing()
                .build(),
            num_segments
        ),
        field!(
            glib::ParamSpecUInt::builder("iterations")
                .nick("Iterations")
                .blurb("Iterations of the clustering")
                .minimum(1)
                .maximum(100)
                .default_value(default.iterations)
                .mutable_playing()
                .build(),
            iterations
        ),
        field!(settings::late_policy(), lateness.policy),
        field!(settings::max_age(), lateness.max_age),
        Property::read_only(settings::stats(), |element| {
            element.analyzer.stats().to_structure().to_value()
        }),
    ]
});

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
    object_methods!(PROPERTIES);
}

impl GstObjectImpl for ConceptLabel {}

impl ElementImpl for ConceptLabel {
    element_methods! {
        name: "ConceptSeg labelling",
        class: "Filter/Analyzer/Video",
        description: "Labels the pixels of frames with concepts learnt without labels",
        pads: gpu::caps(&video::FORMATS),
    }
}

impl BaseTransformImpl for ConceptLabel {
    in_place!(label);
    analyzer_methods!(CAT, restart);

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
}

impl ConceptLabel {
    fn restart(&self) {
        lock(&self.state).taken = None;
    }

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
