use std::sync::{LazyLock, Mutex};

use conceptseg::concepts::ConceptMap;
use conceptseg::overlay::{ConceptColors, OverlayStyle, draw_frame};
use conceptseg::propagate::MaskMap;
use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::subclass::prelude::*;
use gst_video::prelude::*;
use gst_video::{VideoFrameRef, VideoInfo};

use super::Draw;
use crate::element::{self, Properties, element_methods, field, in_place, object_methods};
use crate::errors::message;
use crate::meta::Analysis;
use crate::{lock, video};

static CAT: LazyLock<gst::DebugCategory> =
    LazyLock::new(|| element::category("conceptoverlay", "Drawing of concepts and instances"));

/// Concepts whose colours are computed beforehand; larger dictionaries work, too.
const CONCEPTS: usize = 512;

#[derive(Debug, Clone, Copy)]
struct Settings {
    opacity: f32,
    draw: Draw,
}

impl Default for Settings {
    fn default() -> Self {
        Self { opacity: OverlayStyle::default().opacity, draw: Draw::all() }
    }
}

impl Settings {
    fn style(self) -> OverlayStyle {
        OverlayStyle {
            opacity: self.opacity,
            concepts: self.draw.contains(Draw::CONCEPTS),
            masks: self.draw.contains(Draw::MASKS),
            outlines: self.draw.contains(Draw::OUTLINES),
        }
    }
}

pub static PROPERTIES: Properties<ConceptOverlay> = Properties::new(|| {
    let default = Settings::default();
    vec![
        field!(
            glib::ParamSpecFloat::builder("opacity")
                .nick("Opacity")
                .blurb("Share of the layer colour, 0 (invisible) to 1 (opaque)")
                .minimum(0.0)
                .maximum(1.0)
                .default_value(default.opacity)
                .mutable_playing()
                .controllable()
                .build(),
            opacity
        ),
        field!(
            glib::ParamSpecFlags::builder::<Draw>("draw")
                .nick("Draw")
                .blurb("What is drawn; 0 leaves the frames as they are")
                .default_value(default.draw)
                .mutable_playing()
                .controllable()
                .build(),
            draw
        ),
    ]
});

/// What lives from start to stop: the scaled maps, whose memory is used again for each frame.
struct State {
    info: Option<VideoInfo>,
    concepts: ConceptMap,
    masks: MaskMap,
    colors: ConceptColors,
}

impl State {
    fn new() -> Self {
        Self {
            info: None,
            concepts: ConceptMap::default(),
            masks: MaskMap::default(),
            colors: ConceptColors::new(CONCEPTS),
        }
    }

    /// Draws onto a frame. The reason of a failure is a sentence.
    fn draw(&mut self, buffer: &mut gst::BufferRef, style: OverlayStyle) -> Result<(), String> {
        let Some(analysis) = Analysis::from_buffer(buffer).map_err(|e| e.to_string())? else {
            return Ok(());
        };
        let Some(info) = &self.info else { return Ok(()) };
        let (width, height) = (info.width(), info.height());
        for &(id, color) in analysis.colors() {
            self.colors.set(id, color);
        }
        for id in analysis.ignored() {
            self.colors.hide(id);
        }
        let concepts = style.concepts
            && analysis
                .read_concepts(width, height, &mut self.concepts)
                .map_err(|e| e.to_string())?;
        let masks = (style.masks || style.outlines)
            && analysis.read_masks(width, height, &mut self.masks).map_err(|e| e.to_string())?;
        if !concepts && !masks {
            return Ok(());
        }
        let mut frame = VideoFrameRef::from_buffer_ref_writable(buffer, info)
            .map_err(|e| format!("Cannot write to a frame: {e}"))?;
        let mut view = video::frame_view_mut(&mut frame, info)?;
        draw_frame(
            &mut view,
            concepts.then_some(&self.concepts),
            masks.then_some(&self.masks),
            &style,
            &self.colors,
        )
        .map_err(|e| e.to_string())
    }
}

#[derive(Default)]
pub struct ConceptOverlay {
    settings: Mutex<Settings>,
    state: Mutex<Option<State>>,
}

#[glib::object_subclass]
impl ObjectSubclass for ConceptOverlay {
    const NAME: &'static str = "GstConceptOverlay";
    type Type = super::ConceptOverlay;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for ConceptOverlay {
    object_methods!(PROPERTIES);
}

impl GstObjectImpl for ConceptOverlay {}

impl ElementImpl for ConceptOverlay {
    element_methods! {
        name: "ConceptSeg overlay",
        class: "Filter/Effect/Video",
        description: "Draws concepts and instances onto the frames that they were found in",
        pads: video::caps(&video::FORMATS),
    }
}

impl BaseTransformImpl for ConceptOverlay {
    in_place!(draw);

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        *lock(&self.state) = Some(State::new());
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        *lock(&self.state) = None;
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

    fn before_transform(&self, buffer: &gst::BufferRef) {
        let obj = self.obj();
        let segment = obj.segment();
        let time = segment
            .downcast_ref::<gst::ClockTime>()
            .and_then(|segment| segment.to_stream_time(buffer.pts()));
        let Some(time) = time else { return };
        // Inside of a conceptseg, whose opacity and draw are controlled as well.
        let outside = obj.parent().and_downcast::<crate::conceptseg::ConceptSeg>();
        let controlled = outside.map_or(Ok(()), |bin| bin.sync_values(time));
        if let Err(e) = controlled.and_then(|()| obj.sync_values(time)) {
            gst::warning!(CAT, imp = self, "Controlled properties keep their values: {e}");
        }
    }
}

impl ConceptOverlay {
    fn draw(&self, buffer: &mut gst::BufferRef) -> Result<(), gst::ErrorMessage> {
        let style = lock(&self.settings).style();
        let mut state = lock(&self.state);
        let Some(state) = state.as_mut() else { return Ok(()) };
        state.draw(buffer, style).map_err(|text| message(gst::StreamError::Failed, &text))
    }
}
