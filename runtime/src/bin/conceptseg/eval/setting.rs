//! How `eval davis` carries masks: a protocol, and what deviates from it.

use std::ops::RangeInclusive;

use clap::ValueEnum;
use conceptseg::bundle::SizeRule;
use conceptseg::embed::{InputSize, Model};
use conceptseg::propagate::{FirstLabels, PropagationConfig, Protocol};
use serde_json::{Value, json};

/// Allowed values of the settings, for options and for `--sweep`.
pub const CONTEXT_FRAMES: RangeInclusive<i64> = 0..=64;
pub const RADIUS: RangeInclusive<i64> = 0..=1000;
pub const TOPK: RangeInclusive<i64> = 1..=64;
pub const SHORT_SIDE: RangeInclusive<i64> = 32..=4096;
pub const TEMPERATURE: RangeInclusive<f32> = 0.001..=10.0;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ProtocolArg {
    /// Like `TimeCycle`: 320x320 pixels, first frame and last 7, softmax over each, top 5 of each.
    A,
    /// That of DINO and of live streams: short side 480, first frame and last 7, top 5 of all.
    #[default]
    B,
    /// That of CRW: frames at their own size, first frame and last 20, top 10 of all.
    C,
}

impl From<ProtocolArg> for Protocol {
    fn from(arg: ProtocolArg) -> Self {
        match arg {
            ProtocolArg::A => Self::TimeCycle,
            ProtocolArg::B => Self::Dino,
            ProtocolArg::C => Self::Crw,
        }
    }
}

impl ProtocolArg {
    pub fn letter(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
            Self::C => "c",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FirstLabelsArg {
    /// The share of a cell's area.
    Area,
    /// The label at a cell's centre, as in the DINO protocol.
    Nearest,
    /// The share of the pixels around a cell's centre, as in the protocols of `TimeCycle` and CRW.
    Bilinear,
}

impl From<FirstLabelsArg> for FirstLabels {
    fn from(arg: FirstLabelsArg) -> Self {
        match arg {
            FirstLabelsArg::Area => Self::Area,
            FirstLabelsArg::Nearest => Self::Nearest,
            FirstLabelsArg::Bilinear => Self::Bilinear,
        }
    }
}

/// The protocol and its settings; each is the protocol's own unless given.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SettingArgs {
    /// How masks are carried; the default is b.
    #[arg(long, value_enum, conflicts_with = "baseline")]
    pub protocol: Option<ProtocolArg>,
    /// Latest frames that are looked at beside the first one (a, b: 7, c: 20).
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(CONTEXT_FRAMES),
        conflicts_with = "baseline"
    )]
    pub context_frames: Option<u32>,
    /// Reach of the window in cells (a: everywhere; b: 12 to each side; c: nearer than 12, but
    /// everywhere in the first frame).
    #[arg(
        long,
        value_name = "CELLS",
        value_parser = clap::value_parser!(u32).range(RADIUS),
        conflicts_with = "baseline"
    )]
    pub radius: Option<u32>,
    /// Cells that vote (a: 5 of each frame, b: 5 of all frames, c: 10 of all frames).
    #[arg(
        long,
        value_name = "K",
        value_parser = clap::value_parser!(u32).range(TOPK),
        conflicts_with = "baseline"
    )]
    pub topk: Option<u32>,
    /// Votes are exp(cosine / T) (a: 0.0442, b: 0.1, c: 0.05).
    #[arg(long, value_name = "T", value_parser = temperature, conflicts_with = "baseline")]
    pub temperature: Option<f32>,
    /// How the first mask is brought to the embedding grid (a, c: bilinear, b: area).
    #[arg(long, value_enum, conflicts_with = "baseline")]
    pub first_labels: Option<FirstLabelsArg>,
    /// Short side of the network's input in pixels (b: 480, c: that of the frame); with a, both
    /// sides (320). Bundles of a fixed size ignore it.
    #[arg(
        long,
        value_name = "PIXELS",
        value_parser = clap::value_parser!(u32).range(SHORT_SIDE),
        conflicts_with = "baseline"
    )]
    pub short_side: Option<u32>,
}

/// Reads a temperature in the allowed range.
pub fn temperature(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|value| TEMPERATURE.contains(value)).ok_or_else(|| {
        format!("{text:?} is no number from {} to {}", TEMPERATURE.start(), TEMPERATURE.end())
    })
}

/// What one figure is reached with.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    pub protocol: ProtocolArg,
    pub input: InputSize,
    pub propagation: PropagationConfig,
}

impl SettingArgs {
    pub fn setting(&self) -> Setting {
        let protocol = self.protocol.unwrap_or_default();
        let mut propagation = PropagationConfig::of(protocol.into());
        if let Some(frames) = self.context_frames {
            propagation.context_frames = frames as usize;
        }
        if let Some(radius) = self.radius {
            propagation.radius = radius as usize;
        }
        if let Some(topk) = self.topk {
            propagation.topk = topk as usize;
        }
        if let Some(temperature) = self.temperature {
            propagation.temperature = temperature;
        }
        if let Some(how) = self.first_labels {
            propagation.first_labels = how.into();
        }
        let input = match (protocol, self.short_side) {
            (ProtocolArg::A, side) => InputSize::Square(side.unwrap_or(320)),
            (ProtocolArg::B, side) => InputSize::ShortSide(side.unwrap_or(480)),
            (ProtocolArg::C, None) => InputSize::Native,
            (ProtocolArg::C, Some(side)) => InputSize::ShortSide(side),
        };
        Setting { protocol, input, propagation }
    }
}

impl Setting {
    fn input(&self, model: &Model) -> String {
        match (model.bundle().manifest.embedder.size, self.input) {
            (SizeRule::Fixed([h, w]), _) => format!("{w}x{h}"),
            (SizeRule::Dynamic, InputSize::ShortSide(side)) => format!("short side {side}"),
            (SizeRule::Dynamic, InputSize::Square(side)) => format!("{side}x{side}"),
            (SizeRule::Dynamic, InputSize::Native) => "size of the frame".to_owned(),
        }
    }

    fn first_labels(&self) -> &'static str {
        match self.propagation.first_labels {
            FirstLabels::Area => "area",
            FirstLabels::Nearest => "nearest",
            FirstLabels::Bilinear => "bilinear",
        }
    }

    /// The window's reach; `None` without a window.
    fn radius(&self) -> Option<usize> {
        Some(self.propagation.radius).filter(|&radius| radius != usize::MAX)
    }

    pub fn json(&self, model: &Model) -> Value {
        json!({
            "protocol": self.protocol.letter(),
            "input": self.input(model),
            "first_labels": self.first_labels(),
            "context_frames": self.propagation.context_frames,
            "radius": self.radius(),
            "topk": self.propagation.topk,
            "temperature": short(self.propagation.temperature),
        })
    }

    pub fn text(&self, model: &Model) -> String {
        format!(
            "protocol {}: input {}, {} context frames, radius {}, top {}{}, temperature {}, first \
             labels {}",
            self.protocol.letter(),
            self.input(model),
            self.propagation.context_frames,
            self.radius().map_or("unlimited".to_owned(), |radius| radius.to_string()),
            self.propagation.topk,
            if self.protocol == ProtocolArg::A { " of each frame" } else { "" },
            self.propagation.temperature,
            self.first_labels(),
        )
    }
}

/// The number that `value` is written as, without the digits that widening would add.
pub fn short(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(protocol: ProtocolArg) -> SettingArgs {
        SettingArgs { protocol: Some(protocol), ..SettingArgs::default() }
    }

    #[test]
    fn a_protocol_sets_everything_that_is_not_given() {
        let default = SettingArgs::default().setting();
        assert_eq!(default, args(ProtocolArg::B).setting());
        assert_eq!(default.propagation, PropagationConfig::default());
        assert_eq!(default.input, InputSize::ShortSide(480));
        let a = SettingArgs { topk: Some(9), ..args(ProtocolArg::A) }.setting();
        assert_eq!((a.propagation.topk, a.propagation.radius), (9, usize::MAX));
        assert_eq!(a.input, InputSize::Square(320));
        assert_eq!(args(ProtocolArg::C).setting().input, InputSize::Native);
        let c = SettingArgs { short_side: Some(240), ..args(ProtocolArg::C) }.setting();
        assert_eq!(c.input, InputSize::ShortSide(240));
    }

    #[test]
    fn temperatures_are_positive_numbers() {
        assert_eq!(temperature("0.07"), Ok(0.07));
        for wrong in ["0", "-1", "nan", "inf", "11", "warm"] {
            assert!(temperature(wrong).unwrap_err().contains("from 0.001 to 10"), "{wrong}");
        }
        assert_eq!(short(0.07), 0.07);
    }
}
