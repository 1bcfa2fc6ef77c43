//! Properties that several elements have.

use std::path::PathBuf;
use std::time::Duration;

use conceptseg::backend::{BackendKind, tensorrt};
use gst::glib;
use gst::prelude::*;

use crate::live::{LatePolicy, Rules};

/// Which program runs the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, glib::Enum)]
#[repr(i32)]
#[enum_type(name = "GstConceptSegBackend")]
pub enum Backend {
    /// TensorRT where it and a GPU are found, else ONNX Runtime where its library is found, else `RTen`.
    #[default]
    #[enum_value(name = "The fastest that is found: TensorRT, ONNX Runtime, RTen", nick = "auto")]
    Auto = 0,
    /// `RTen`, which is built in.
    #[enum_value(name = "RTen, built in", nick = "rten")]
    Rten = 1,
    /// ONNX Runtime; an error where its library is not found.
    #[enum_value(name = "ONNX Runtime, from its library", nick = "onnxruntime")]
    Onnxruntime = 2,
    /// TensorRT; an error where it or a GPU is not found.
    #[enum_value(name = "TensorRT on an NVIDIA GPU", nick = "tensorrt")]
    Tensorrt = 3,
}

impl From<Backend> for BackendKind {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::Auto => Self::Auto,
            Backend::Rten => Self::Rten,
            Backend::Onnxruntime => Self::Onnxruntime,
            Backend::Tensorrt => Self::Tensorrt,
        }
    }
}

/// How the network computes on a GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, glib::Enum)]
#[repr(i32)]
#[enum_type(name = "GstConceptSegPrecision")]
pub enum Precision {
    /// 32-bit floats.
    #[enum_value(name = "32-bit floats", nick = "fp32")]
    Fp32 = 0,
    /// 16-bit floats.
    #[default]
    #[enum_value(name = "16-bit floats", nick = "fp16")]
    Fp16 = 1,
    /// 16-bit floats with the range of 32-bit ones.
    #[enum_value(name = "16-bit floats with the range of 32-bit ones", nick = "bf16")]
    Bf16 = 2,
    /// 8-bit integers.
    #[enum_value(name = "8-bit integers, from a plan that was calibrated", nick = "int8")]
    Int8 = 3,
}

impl From<Precision> for tensorrt::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Fp32 => Self::Fp32,
            Precision::Fp16 => Self::Fp16,
            Precision::Bf16 => Self::Bf16,
            Precision::Int8 => Self::Int8,
        }
    }
}

/// The settings of an element that may be late.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lateness {
    pub policy: LatePolicy,
    /// Milliseconds, 0 for no limit.
    pub max_age: u32,
}

impl Lateness {
    /// What they mean for a frame.
    pub fn rules(self) -> Rules {
        Rules { policy: self.policy, max_age: Duration::from_millis(self.max_age.into()) }
    }
}

/// The description of the property `late-policy`.
pub fn late_policy() -> glib::ParamSpec {
    glib::ParamSpecEnum::builder_with_default("late-policy", LatePolicy::Auto)
        .nick("Late policy")
        .blurb("What a frame does that comes while an earlier one is being analysed")
        .mutable_playing()
        .build()
}

/// The description of the property `max-age`.
pub fn max_age() -> glib::ParamSpec {
    glib::ParamSpecUInt::builder("max-age")
        .nick("Maximum age")
        .blurb("Results of frames that lie further back than this many milliseconds are not attached, 0 for no limit")
        .mutable_playing()
        .build()
}

/// The description of the read-only property `stats`.
pub fn stats() -> glib::ParamSpec {
    glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
        .nick("Statistics")
        .blurb("Frames received, inferred and skipped since the start, and over the last 1024 frames mean, median, 95th and 99th percentile and maximum in milliseconds of the time per stage, of the age of results (age) and of the time frames were held (blocked); mean and largest number of frames per inference (batch)")
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
