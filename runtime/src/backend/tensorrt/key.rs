//! What a plan was built for, and who may run it.

use std::fmt;
use std::str::FromStr;

use conceptseg_tensorrt::{Hardware, Version};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Images that a plan takes at once, at most.
pub const MAX_BATCH: u32 = 8;
/// Longest side of a plan's images in pixels.
pub const MAX_SIDE: u32 = 16_384;
/// Letters of a GPU's name in the name of a file.
const GPU_LETTERS: usize = 40;

/// How the network computes. The input and the output are 32-bit floats in all of them.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    clap::ValueEnum,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats; matrix products may use TF32 on GPUs that have it.
    Fp32,
    /// 16-bit floats.
    #[default]
    Fp16,
    /// 16-bit floats with the exponent of 32 bits, from compute capability 8.0 on.
    Bf16,
    /// 8-bit integers where the network stands it, with ranges measured on the user's own frames.
    Int8,
}

impl Precision {
    /// Name as options and files spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Images that a plan takes: all of its sizes are fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputShape {
    /// Images at once, 1 to [`MAX_BATCH`].
    pub batch: u32,
    /// Height in pixels.
    pub height: u32,
    /// Width in pixels.
    pub width: u32,
}

impl InputShape {
    /// One image of this size.
    pub fn one(height: u32, width: u32) -> Self {
        Self { batch: 1, height, width }
    }

    /// `[batch, 3, height, width]`.
    pub fn dims(self) -> [i64; 4] {
        [self.batch, 3, self.height, self.width].map(i64::from)
    }

    /// Numbers of the whole input.
    pub fn elements(self) -> usize {
        [self.batch, 3, self.height, self.width].iter().map(|&n| n as usize).product()
    }

    /// Why no plan can have this shape, if so.
    pub(super) fn refuse(self) -> Option<String> {
        let sides = 1..=MAX_SIDE;
        if !sides.contains(&self.height) || !sides.contains(&self.width) {
            return Some(format!("{self} must have sides of 1 to {MAX_SIDE} pixels"));
        }
        (!(1..=MAX_BATCH).contains(&self.batch))
            .then(|| format!("{self} must have a batch of 1 to {MAX_BATCH}"))
    }
}

impl fmt::Display for InputShape {
    /// Height before width, as `--size` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.height, self.width)?;
        if self.batch == 1 { Ok(()) } else { write!(f, " batch {}", self.batch) }
    }
}

/// A pair such as 8.7, written as text: a float would lose the zero of 12.10.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComputeCapability(pub u32, pub u32);

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl FromStr for ComputeCapability {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts =
            text.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        parts
            .map(|(major, minor)| Self(major, minor))
            .ok_or_else(|| format!("\"{text}\" is no compute capability such as 8.7"))
    }
}

impl Serialize for ComputeCapability {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ComputeCapability {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Version of TensorRT as text, such as 10.15.1.
mod version_text {
    use super::{Deserialize, Deserializer, Serializer, Version};

    pub(super) fn serialize<S: Serializer>(version: &Version, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(version)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Version, D::Error> {
        let text = String::deserialize(from)?;
        let parts: Option<Vec<u32>> = text.split('.').map(|part| part.parse().ok()).collect();
        match parts.as_deref() {
            Some(&[major, minor, patch]) => Ok(Version { major, minor, patch }),
            _ => Err(serde::de::Error::custom(format!("\"{text}\" is no version such as 10.15.1"))),
        }
    }
}

/// GPUs that a plan runs on; [`Hardware`] in the words of options and files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gpus {
    /// Those of the same model, the fastest.
    #[default]
    Same,
    /// All from compute capability 8.0 on (Ampere and newer).
    AmperePlus,
}

impl Gpus {
    pub(super) fn hardware(self) -> Hardware {
        match self {
            Self::Same => Hardware::Same,
            Self::AmperePlus => Hardware::AmperePlus,
        }
    }
}

/// Everything that decides whether a plan may be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanKey {
    /// Name of the GPU, as its driver gives it.
    pub gpu: String,
    /// Compute capability of the GPU.
    pub compute_capability: ComputeCapability,
    /// Version of TensorRT.
    #[serde(with = "version_text")]
    pub tensorrt: Version,
    /// How the network computes.
    pub precision: Precision,
    /// Core of the deep-learning accelerator (DLA) that runs it, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dla: Option<u32>,
    /// SHA-256 of the ONNX file, hexadecimal.
    pub onnx_sha256: String,
    /// The images.
    pub input: InputShape,
}

impl PlanKey {
    /// Name of the plan's files without their ending, for people to read:
    /// `fp16-480x832-b1-orin-sm87-trt10.3.0-1f2e3d4c`.
    pub fn file_stem(&self) -> String {
        let InputShape { batch, height, width } = self.input;
        let dla = self.dla.map_or(String::new(), |core| format!("-dla{core}"));
        let onnx: String = self.onnx_sha256.chars().take(8).collect();
        format!(
            "{}-{height}x{width}-b{batch}{dla}-{}-{onnx}",
            self.precision,
            machine(&self.gpu, self.compute_capability, self.tensorrt)
        )
    }

    /// Why a plan that was built for `self` must not be run as `wanted`, if so. `compatible` says
    /// on which other GPUs and versions it was made to run.
    pub fn differs(&self, wanted: &Self, compatible: Compatible) -> Option<String> {
        let other = |what: &str, own: &dyn fmt::Display, asked: &dyn fmt::Display| {
            Some(format!("it was built for {what} {own}, not {asked}"))
        };
        if self.onnx_sha256 != wanted.onnx_sha256 {
            return Some("it was built of another ONNX file".to_owned());
        }
        if self.precision != wanted.precision {
            return other("precision", &self.precision, &wanted.precision);
        }
        if self.input != wanted.input {
            return other("size", &self.input, &wanted.input);
        }
        if self.dla != wanted.dla {
            let name =
                |dla: Option<u32>| dla.map_or("the GPU".to_owned(), |n| format!("DLA core {n}"));
            return other("execution on", &name(self.dla), &name(wanted.dla));
        }
        let (own, asked) = (self.compute_capability, wanted.compute_capability);
        let spread = compatible.gpus == Gpus::AmperePlus && own.0 >= 8 && asked.0 >= 8;
        if !spread && (own != asked || self.gpu != wanted.gpu) {
            let name = |key: &Self| format!("{} ({})", key.gpu, key.compute_capability);
            return other("the GPU", &name(self), &name(wanted));
        }
        // NVIDIA's support matrix: within a major version, and from one to the next known one.
        let (own, asked) = (self.tensorrt, wanted.tensorrt);
        let steps =
            matches!((own.major, asked.major), (8, 10) | (10, 11)) || own.major == asked.major;
        let later = compatible.versions && asked >= own && steps;
        if own != asked && !later {
            return other("TensorRT", &own, &asked);
        }
        None
    }
}

/// What a plan was made to stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compatible {
    /// Other GPUs.
    pub gpus: Gpus,
    /// Later versions of TensorRT.
    pub versions: bool,
}

/// The part of a file's name that tells GPU and version of TensorRT.
pub(super) fn machine(gpu: &str, capability: ComputeCapability, version: Version) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let plain: String = gpu.chars().map(letter).collect();
    let words: Vec<&str> =
        plain.split('-').filter(|word| !word.is_empty() && *word != "nvidia").collect();
    let name: String = words.join("-").chars().take(GPU_LETTERS).collect();
    let name = if name.is_empty() { "gpu" } else { name.trim_end_matches('-') };
    format!("{name}-sm{}{}-trt{version}", capability.0, capability.1)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn key() -> PlanKey {
        PlanKey {
            gpu: "NVIDIA Orin (nvgpu)".to_owned(),
            compute_capability: ComputeCapability(8, 7),
            tensorrt: Version { major: 10, minor: 3, patch: 0 },
            precision: Precision::Fp16,
            dla: None,
            onnx_sha256: "1f2e3d4c".repeat(8),
            input: InputShape::one(480, 832),
        }
    }

    #[test]
    fn file_names_tell_people_what_the_plan_is_for() {
        assert_eq!(key().file_stem(), "fp16-480x832-b1-orin-nvgpu-sm87-trt10.3.0-1f2e3d4c");
        let odd = PlanKey {
            gpu: format!("../é {}", "x".repeat(90)),
            dla: Some(1),
            input: InputShape { batch: 8, height: 64, width: 32 },
            ..key()
        };
        let stem = odd.file_stem();
        assert!(stem.starts_with("fp16-64x32-b8-dla1-xxxx") && stem.len() < 100, "{stem}");
        assert!(stem.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b)), "{stem}");
        assert!(PlanKey { gpu: "é".to_owned(), ..key() }.file_stem().contains("-gpu-sm87-"));
    }

    #[test]
    fn a_plan_for_anything_else_is_told_apart() {
        let strict = Compatible::default();
        let wanted = key();
        assert_eq!(wanted.differs(&wanted, strict), None);
        let v = |major, minor| Version { major, minor, patch: 0 };
        for (other, word) in [
            (PlanKey { onnx_sha256: "0".repeat(64), ..key() }, "another ONNX file"),
            (PlanKey { precision: Precision::Fp32, ..key() }, "precision fp32, not fp16"),
            (PlanKey { input: InputShape::one(480, 864), ..key() }, "size 480x864, not 480x832"),
            (PlanKey { dla: Some(0), ..key() }, "DLA core 0, not the GPU"),
            (PlanKey { gpu: "other".to_owned(), ..key() }, "the GPU other (8.7), not NVIDIA Orin"),
            (PlanKey { compute_capability: ComputeCapability(9, 0), ..key() }, "(9.0), not"),
            (PlanKey { tensorrt: v(10, 4), ..key() }, "TensorRT 10.4.0, not 10.3.0"),
        ] {
            let reason = other.differs(&wanted, strict).unwrap();
            assert!(reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn compatible_plans_run_on_what_they_were_made_for() {
        let all = Compatible { gpus: Gpus::AmperePlus, versions: true };
        let on = |capability, version: (u32, u32)| PlanKey {
            gpu: "another".to_owned(),
            compute_capability: capability,
            tensorrt: Version { major: version.0, minor: version.1, patch: 0 },
            ..key()
        };
        let built = key();
        assert_eq!(built.differs(&on(ComputeCapability(12, 0), (11, 4)), all), None);
        assert!(built.differs(&on(ComputeCapability(7, 5), (10, 3)), all).unwrap().contains("GPU"));
        assert!(
            built.differs(&on(ComputeCapability(9, 0), (10, 2)), all).unwrap().contains("10.2")
        );
        let eight = on(ComputeCapability(8, 0), (8, 6));
        assert_eq!(eight.differs(&on(ComputeCapability(9, 0), (10, 15)), all), None);
        assert!(eight.differs(&on(ComputeCapability(9, 0), (11, 1)), all).is_some());
    }
}
