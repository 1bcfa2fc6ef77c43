//! Frames in GPU memory: which caps have them, and how to get at their pixels without a copy to the host.
//!
//! Nothing of CUDA or of NVIDIA's multimedia libraries is needed to build or load the plugin; the
//! libraries of whoever made a frame are looked up when the first such frame comes.

mod cuda;
mod nvmm;
mod surface;

use conceptseg::cuda::DeviceFrame;
use conceptseg::frame::MAX_SIDE;
use gst_video::{VideoCapsBuilder, VideoFormat, VideoInfo};

use crate::video;

/// Formats in GPU memory: those that the kernels take.
const FORMATS: [VideoFormat; 9] = [
    VideoFormat::Nv12,
    VideoFormat::I420,
    VideoFormat::Rgb,
    VideoFormat::Bgr,
    VideoFormat::Rgbx,
    VideoFormat::Bgrx,
    VideoFormat::Rgba,
    VideoFormat::Bgra,
    VideoFormat::Gray8,
];

/// Where the pixels of a stream are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Memory {
    /// In the host's memory.
    #[default]
    System,
    /// In CUDA memory of `GStreamer`'s own elements.
    Cuda,
    /// In surfaces of NVIDIA's elements, those of a Jetson and of DeepStream.
    Nvmm,
}

impl Memory {
    /// Kinds of GPU memory with their caps features.
    const ON_GPU: [(Self, &str); 2] =
        [(Self::Cuda, "memory:CUDAMemory"), (Self::Nvmm, "memory:NVMM")];

    /// Where fixed caps say that the pixels are.
    pub fn of(caps: &gst::CapsRef) -> Self {
        let features = caps.features(0);
        let named = |(memory, name): (Self, &str)| {
            features.is_some_and(|features| features.contains(name)).then_some(memory)
        };
        Self::ON_GPU.into_iter().find_map(named).unwrap_or_default()
    }
}

/// Caps of `formats` in system memory, then of those that the GPU takes in its own.
pub fn caps(formats: &[VideoFormat]) -> gst::Caps {
    let mut caps = video::caps(formats);
    for (_, feature) in Memory::ON_GPU {
        let on_gpu = VideoCapsBuilder::new()
            .features([feature])
            .format_list(FORMATS)
            .width_range(1..=MAX_SIDE as i32)
            .height_range(1..=MAX_SIDE as i32)
            .build();
        caps.merge(on_gpu);
    }
    caps
}

/// Those of `caps` whose frames are in system memory.
pub fn in_system_memory(caps: &gst::CapsRef) -> gst::Caps {
    let parts = caps.iter_with_features();
    let on_gpu = |features: &gst::CapsFeaturesRef| {
        Memory::ON_GPU.iter().any(|(_, name)| features.contains(*name))
    };
    parts
        .filter(|(_, features)| !on_gpu(features))
        .map(|(structure, features)| (structure.to_owned(), features.to_owned()))
        .collect()
}

/// In an `impl BaseTransformImpl`: frames in GPU memory are offered and taken where the method
/// `$refusal` answers nothing. Where it answers a reason, whoever sends such frames is told it
/// once after each start, because a failed negotiation says none.
macro_rules! gpu_methods {
    ($refusal:ident) => {
        fn transform_caps(
            &self,
            _direction: gst::PadDirection,
            caps: &gst::Caps,
            filter: Option<&gst::Caps>,
        ) -> Option<gst::Caps> {
            let filtered = |caps: &gst::Caps| match filter {
                Some(filter) => filter.intersect_with_mode(caps, gst::CapsIntersectMode::First),
                None => caps.clone(),
            };
            let all = filtered(caps);
            let Some(reason) = self.$refusal() else { return Some(all) };
            let left = filtered(&$crate::gpu::in_system_memory(caps));
            // Whoever asks has frames in GPU memory only, and will fail without a word.
            if left.is_empty() && !all.is_empty() {
                self.tell(&reason);
            }
            Some(left)
        }

        fn accept_caps(&self, direction: gst::PadDirection, caps: &gst::Caps) -> bool {
            if $crate::gpu::Memory::of(caps) == $crate::gpu::Memory::System {
                return self.parent_accept_caps(direction, caps);
            }
            let Some(reason) = self.$refusal() else {
                return self.parent_accept_caps(direction, caps);
            };
            self.tell(&reason);
            false
        }
    };
}

pub(crate) use gpu_methods;

/// Shows a frame in GPU memory as such. The pixels stay where they are, and nobody writes them
/// until `see` returns.
///
/// # Errors
/// A sentence that says why the frame cannot be read.
pub fn with_frame<T>(
    memory: Memory,
    buffer: &gst::BufferRef,
    info: &VideoInfo,
    see: impl FnOnce(&DeviceFrame<'_>) -> T,
) -> Result<T, String> {
    match memory {
        Memory::Nvmm => nvmm::with_frame(buffer, info, see),
        Memory::Cuda | Memory::System => cuda::with_frame(buffer, info, see),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> gst::Caps {
        gst::init().unwrap();
        text.parse().unwrap()
    }

    #[test]
    fn system_memory_comes_first() {
        gst::init().unwrap();
        let caps = caps(&video::FORMATS);
        let features: Vec<_> =
            caps.iter_with_features().map(|(_, features)| features.to_string()).collect();
        assert_eq!(features, ["memory:SystemMemory", "memory:CUDAMemory", "memory:NVMM"]);
        assert_eq!(in_system_memory(&caps), video::caps(&video::FORMATS));
    }

    #[test]
    fn caps_say_where_the_pixels_are() {
        let of = |feature: &str| Memory::of(&parsed(&format!("video/x-raw{feature},format=NV12")));
        assert_eq!(of(""), Memory::System);
        assert_eq!(of("(memory:CUDAMemory)"), Memory::Cuda);
        assert_eq!(of("(memory:NVMM)"), Memory::Nvmm);
        assert_eq!(of("(memory:NVMM,meta:GstVideoOverlayComposition)"), Memory::Nvmm);
    }
}
