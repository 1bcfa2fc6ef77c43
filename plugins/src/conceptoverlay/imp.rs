use std::sync::atomic::{AtomicBool, Ordering};
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
use crate::gpu::{self, Memory, gpu_methods};
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
                .blurb("Opacity of the colours, from 0 (invisible) to 1 (opaque)")
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
                .blurb("What to draw (0 = nothing)")
                .default_value(default.draw)
                .mutable_playing()
                .controllable()
                .build(),
            draw
        ),
    ]
});

/// What is said of frames in GPU memory.
const UNDRAWN: &str = "Frames in GPU memory are not drawn on: put cudadownload (nvvideoconvert for NVMM) before, or \
                       switch drawing off with draw=0";

/// What lives from start to stop: the scaled maps, whose memory is used again for each frame.
struct State {
    info: Option<VideoInfo>,
    memory: Memory,
    /// Whether somebody was told that frames in GPU memory are not drawn on.
    told: bool,
    concepts: ConceptMap,
    masks: MaskMap,
    colors: ConceptColors,
}

impl State {
    fn new() -> Self {
        Self {
            info: None,
            memory: Memory::System,
            told: false,
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
        video::check_meta(buffer, info)
            .map_err(|reason| format!("Cannot draw onto a frame: {reason}"))?;
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
    /// Whether somebody was told why frames in GPU memory are not taken.
    told: AtomicBool,
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
        pads: gpu::caps(&video::FORMATS),
    }
}

impl BaseTransformImpl for ConceptOverlay {
    in_place!(draw);
    gpu_methods!(refusal);

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        self.told.store(false, Ordering::Relaxed);
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
            (state.info, state.memory) = (Some(info), Memory::of(incaps));
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
    fn tell(&self, reason: &str) {
        if !self.told.swap(true, Ordering::Relaxed) {
            gst::element_imp_warning!(self, gst::StreamError::Format, ("{reason}"));
        }
    }

    /// Why frames in GPU memory are not taken, if so: they can only pass as they are.
    fn refusal(&self) -> Option<&'static str> {
        if lock(&self.settings).draw.is_empty() {
            return None;
        }
        // Who has such frames goes on with them when drawing is switched on in between.
        let state = lock(&self.state);
        if state.as_ref().is_none_or(|state| state.memory != Memory::System) {
            return None;
        }
        Some(UNDRAWN)
    }

    fn draw(&self, buffer: &mut gst::BufferRef) -> Result<(), gst::ErrorMessage> {
        let style = lock(&self.settings).style();
        let mut guard = lock(&self.state);
        let Some(state) = guard.as_mut() else { return Ok(()) };
        if state.memory != Memory::System {
            let tell = !lock(&self.settings).draw.is_empty() && !state.told;
            state.told |= tell;
            drop(guard);
            if tell {
                gst::element_imp_warning!(self, gst::StreamError::Format, ("{UNDRAWN}"));
            }
            return Ok(());
        }
        state.draw(buffer, style).map_err(|text| message(gst::StreamError::Failed, &text))
    }
}
