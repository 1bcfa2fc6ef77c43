use std::path::PathBuf;
use std::sync::{LazyLock, Mutex};

use conceptseg::labels::LabelMap;
use conceptseg::propagate::MaskChange;
use gst::glib;
use gst::glib::subclass::Signal;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::subclass::prelude::*;

use super::mask;
use super::stage::{Command, Input, PropagateStage};
use crate::element::{
    self, Properties, Property, analyzer_methods, element_methods, field, in_place, object_methods,
};
use crate::errors::message;
use crate::live::{Analyzer, Moment, Shown};
use crate::meta::{Embedding, Source};
use crate::settings::{self, Lateness};
use crate::{gpu, lock, video};

static CAT: LazyLock<gst::DebugCategory> =
    LazyLock::new(|| element::category("maskpropagate", "Propagation of instance masks"));

/// Where the first mask comes from; the property that was set last counts.
#[derive(Debug, Clone, Default)]
enum FirstMask {
    #[default]
    None,
    File(PathBuf),
    Buffer(gst::Buffer),
}

#[derive(Debug, Clone, Default)]
struct Settings {
    first: FirstMask,
    /// Set while running; the streaming thread takes it for the next frame.
    first_changed: bool,
    lateness: Lateness,
}

pub static PROPERTIES: Properties<MaskPropagate> = Properties::new(|| {
    vec![
        Property::new(
            glib::ParamSpecString::builder("first-frame-mask")
                .nick("First-frame mask")
                .blurb("PNG file of the size of the frames with the instance id of each pixel (palette or grey, 0 = background), for the first frame or, when set while playing, for the next one")
                .mutable_playing()
                .build(),
            |element| match &lock(&element.settings).first {
                FirstMask::File(path) => Some(path).to_value(),
                _ => None::<&str>.to_value(),
            },
            |element, value| {
                element.set_first(settings::path(value).map(FirstMask::File));
            },
        ),
        Property::new(
            glib::ParamSpecBoxed::builder::<gst::Buffer>("initial-mask")
                .nick("Initial mask")
                .blurb("Like first-frame-mask, but as a buffer of GRAY8 pixels, with a GstVideoMeta or of the size of the frames")
                .mutable_playing()
                .build(),
            |element| match &lock(&element.settings).first {
                FirstMask::Buffer(buffer) => Some(buffer).to_value(),
                _ => None::<&gst::Buffer>.to_value(),
            },
            |element, value| {
                let buffer = value.get::<Option<gst::Buffer>>().ok().flatten();
                element.set_first(buffer.map(FirstMask::Buffer));
            },
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
    /// Kept for streams that follow in the same run.
    first: Option<LabelMap>,
    /// Waits for the next frame that is worked on.
    commands: Vec<Command>,
    /// The frame whose embeddings were taken last.
    taken: Option<Source>,
}

impl State {
    /// Hands the first mask to the next frame.
    fn seed(&mut self) {
        self.commands.extend(self.first.clone().map(MaskChange::Replace).map(Command::Change));
    }
}

#[derive(Default)]
pub struct MaskPropagate {
    settings: Mutex<Settings>,
    state: Mutex<State>,
    analyzer: Analyzer<PropagateStage>,
}

#[glib::object_subclass]
impl ObjectSubclass for MaskPropagate {
    const NAME: &'static str = "GstMaskPropagate";
    type Type = super::MaskPropagate;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for MaskPropagate {
    object_methods!(PROPERTIES);

    fn signals() -> &'static [Signal] {
        static SIGNALS: LazyLock<Vec<Signal>> = LazyLock::new(|| {
            super::signals()
                .into_iter()
                .map(|(name, parameter)| {
                    Signal::builder(name)
                        .action()
                        .param_types([parameter])
                        .return_type::<bool>()
                        .class_handler(move |values| {
                            let element = values.first()?.get::<super::MaskPropagate>().ok()?;
                            let taken = element.imp().on_signal(name, values.get(1)?);
                            Some(taken.to_value())
                        })
                        .build()
                })
                .collect()
        });
        &SIGNALS
    }
}

impl GstObjectImpl for MaskPropagate {}

impl ElementImpl for MaskPropagate {
    element_methods! {
        name: "ConceptSeg mask propagation",
        class: "Filter/Analyzer/Video",
        description: "Carries instance masks from a first frame along a stream",
        pads: gpu::caps(&video::FORMATS),
    }
}

impl BaseTransformImpl for MaskPropagate {
    in_place!(carry);
    analyzer_methods!(CAT, restart);

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let mut state = State::default();
        {
            let mut settings = lock(&self.settings);
            settings.first_changed = false;
            match &settings.first {
                FirstMask::None => {}
                FirstMask::File(path) => {
                    let mask = mask::read(path);
                    state.first =
                        Some(mask.map_err(|text| message(gst::ResourceError::Read, &text))?);
                }
                // Its size may be that of the frames, which are not known yet.
                FirstMask::Buffer(_) => settings.first_changed = true,
            }
        }
        state.seed();
        *lock(&self.state) = state;
        self.analyzer.start(PropagateStage::new(), "");
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        self.analyzer.stop();
        *lock(&self.state) = State::default();
        Ok(())
    }
}

impl MaskPropagate {
    fn set_first(&self, first: Option<FirstMask>) {
        let mut settings = lock(&self.settings);
        settings.first = first.unwrap_or_default();
        settings.first_changed = true;
    }

    /// Masks start over.
    fn restart(&self) {
        let mut state = lock(&self.state);
        state.taken = None;
        state.commands = vec![Command::Restart];
        state.seed();
    }

    fn carry(&self, buffer: &mut gst::BufferRef) -> Result<(), gst::ErrorMessage> {
        self.analyzer.count();
        self.take_first_mask()?;
        let rules = lock(&self.settings).lateness.rules();
        let embedding = Embedding::from_buffer(buffer)?;
        let now = Moment::carrying(embedding.as_ref(), buffer.pts());
        let shown = self.analyzer.frame(self.obj().upcast_ref(), rules, now, || {
            let Some((embedding, _)) = embedding else { return Ok(None) };
            let mut state = lock(&self.state);
            if state.taken.as_ref().is_some_and(|taken| taken.is_frame(&embedding.source)) {
                return Ok(None);
            }
            state.taken = Some(embedding.source.clone());
            let commands = std::mem::take(&mut state.commands);
            Ok(Some(Input { embedding, commands }))
        })?;
        let Some(Shown { found, age, new }) = shown else { return Ok(()) };
        let Some(masks) = &found.value else { return Ok(()) };
        if new {
            self.analyzer.stats().stage("propagation", found.source.times.propagation);
        }
        masks.attach(buffer, age)?;
        Ok(())
    }

    /// Reads the mask that was set while running, if there is one.
    fn take_first_mask(&self) -> Result<(), gst::ErrorMessage> {
        let first = {
            let mut settings = lock(&self.settings);
            if !std::mem::take(&mut settings.first_changed) {
                return Ok(());
            }
            settings.first.clone()
        };
        let first = match first {
            FirstMask::None => None,
            FirstMask::File(path) => {
                Some(mask::read(&path).map_err(|text| message(gst::ResourceError::Read, &text))?)
            }
            FirstMask::Buffer(buffer) => {
                let mask = mask::from_buffer(&buffer, self.analyzer.info().as_ref());
                Some(mask.map_err(|reason| {
                    let text = format!("Cannot use initial-mask: {reason}");
                    message(gst::LibraryError::Settings, &text)
                })?)
            }
        };
        let mut state = lock(&self.state);
        state.first = first;
        state.seed();
        Ok(())
    }

    /// Answers an action signal: whether it could be taken.
    fn on_signal(&self, name: &str, argument: &glib::Value) -> bool {
        let info = self.analyzer.info();
        let change = match name {
            "drop-instance" => argument
                .get::<u32>()
                .ok()
                .and_then(|id| u8::try_from(id).ok())
                .filter(|id| (1..=254).contains(id))
                .map(MaskChange::Drop)
                .ok_or_else(|| "instance ids are 1 to 254".to_owned()),
            _ => self.mask_of(argument, info.as_ref()).map(|mask| {
                if name == "join-masks" {
                    MaskChange::Join(mask)
                } else {
                    MaskChange::Replace(mask)
                }
            }),
        };
        match change {
            Ok(change) => {
                lock(&self.state).commands.push(Command::Change(change));
                true
            }
            Err(reason) => {
                gst::element_imp_warning!(
                    self,
                    gst::LibraryError::Settings,
                    ("The signal {name} is not followed: {reason}")
                );
                false
            }
        }
    }

    /// A mask that an application gave, which must fit the frames that flow.
    fn mask_of(
        &self,
        argument: &glib::Value,
        info: Option<&gst_video::VideoInfo>,
    ) -> Result<LabelMap, String> {
        if !self.analyzer.is_running() {
            return Err("masks can be given in PAUSED and PLAYING".to_owned());
        }
        let buffer = argument.get::<gst::Buffer>().map_err(|_| "there is no mask".to_owned())?;
        let mask = mask::from_buffer(&buffer, info)?;
        if let Some(info) = info
            && (mask.width, mask.height) != (info.width(), info.height())
        {
            return Err(format!(
                "the mask has {}x{} pixels, but the frames {}x{}",
                mask.width,
                mask.height,
                info.width(),
                info.height()
            ));
        }
        if mask.clone().with_white_as_instance().instance_ids().is_empty() {
            return Err(
                "the mask holds no object; mark its pixels with an id of 1 to 254".to_owned()
            );
        }
        Ok(mask)
    }
}
