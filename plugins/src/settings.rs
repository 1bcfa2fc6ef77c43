//! Properties that several elements have.

use std::path::PathBuf;
use std::time::Duration;

use conceptseg::backend::BackendKind;
use gst::glib;
use gst::prelude::*;

use crate::live::{LatePolicy, Rules};

/// Which program runs the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, glib::Enum)]
#[repr(i32)]
#[enum_type(name = "GstConceptSegBackend")]
pub enum Backend {
    /// ONNX Runtime where its library is found, else `RTen`.
    #[default]
    #[enum_value(name = "ONNX Runtime where its library is found, else RTen", nick = "auto")]
    Auto = 0,
    /// `RTen`, which is built in.
    #[enum_value(name = "RTen, built in", nick = "rten")]
    Rten = 1,
    /// ONNX Runtime; an error where its library is not found.
    #[enum_value(name = "ONNX Runtime, from its library", nick = "onnxruntime")]
    Onnxruntime = 2,
}

impl From<Backend> for BackendKind {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::Auto => Self::Auto,
            Backend::Rten => Self::Rten,
            Backend::Onnxruntime => Self::Onnxruntime,
        }
    }
}

/// The properties of an element that may be late.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lateness {
    policy: LatePolicy,
    /// Milliseconds, 0 for no limit.
    max_age: u32,
}

impl Lateness {
    /// Their descriptions.
    pub fn properties() -> Vec<glib::ParamSpec> {
        vec![
            glib::ParamSpecEnum::builder_with_default("late-policy", LatePolicy::Auto)
                .nick("Late policy")
                .blurb("What a frame does that comes while an earlier one is being analysed")
                .mutable_playing()
                .build(),
            glib::ParamSpecUInt::builder("max-age")
                .nick("Maximum age")
                .blurb("Results of frames that lie further back than this many milliseconds are not attached, 0 for no limit")
                .mutable_playing()
                .build(),
        ]
    }

    /// Sets one of them. `false` where it has another name.
    pub fn set(&mut self, name: &str, value: &glib::Value) -> bool {
        match name {
            "late-policy" => assign(&mut self.policy, value),
            "max-age" => assign(&mut self.max_age, value),
            _ => return false,
        }
        true
    }

    /// Reads one of them.
    pub fn get(self, name: &str) -> Option<glib::Value> {
        match name {
            "late-policy" => Some(self.policy.to_value()),
            "max-age" => Some(self.max_age.to_value()),
            _ => None,
        }
    }

    /// What they mean for a frame.
    pub fn rules(self) -> Rules {
        Rules { policy: self.policy, max_age: Duration::from_millis(self.max_age.into()) }
    }
}

/// The description of the read-only property `stats`.
pub fn stats() -> glib::ParamSpec {
    glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
        .nick("Statistics")
        .blurb("Frames received, inferred and skipped since the start, and over the last 1024 frames mean, median, 95th and 99th percentile and maximum in milliseconds of the time per stage, of the age of results (age) and of the time frames were held (blocked)")
        .read_only()
        .build()
}

/// Takes over a value. Its type has been checked against the description of the property before.
pub fn assign<T: for<'a> glib::value::FromValue<'a>>(target: &mut T, value: &glib::Value) {
    if let Ok(value) = value.get() {
        *target = value;
    }
}

/// A path, where one is set.
pub fn path(value: &glib::Value) -> Option<PathBuf> {
    value.get::<Option<PathBuf>>().ok().flatten().filter(|p| !p.as_os_str().is_empty())
}

/// A text, where one is set.
pub fn text(value: &glib::Value) -> Option<String> {
    value.get::<Option<String>>().ok().flatten().filter(|text| !text.is_empty())
}
