//! A small picture of the frame that an event is about.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder as _};

use crate::frame::{FrameView, Normalization, Preprocessor};

/// Quality of the JPEG, 1..=100: enough to see what it is.
const QUALITY: u8 = 75;

/// Draws thumbnails of one width; keeps its memory.
#[derive(Debug)]
pub(super) struct Thumbnails {
    width: u32,
    preprocessor: Preprocessor,
    planes: Vec<f32>,
}

impl Thumbnails {
    pub(super) fn new(width: u32) -> Self {
        let plain = Normalization { mean: [0.0; 3], std: [1.0; 3] };
        Self { width, preprocessor: Preprocessor::new(plain), planes: Vec::new() }
    }

    /// The frame as a JPEG in base64; `None` where it could not be drawn, which must not keep an
    /// event from being told.
    pub(super) fn draw(&mut self, frame: &FrameView<'_>) -> Option<String> {
        let width = self.width.min(frame.width());
        let scaled = u64::from(frame.height()) * u64::from(width) / u64::from(frame.width()).max(1);
        let height = u32::try_from(scaled).ok()?.clamp(1, 4 * width);
        self.preprocessor.run(frame, width, height, &mut self.planes).ok()?;
        let pixels = width as usize * height as usize;
        let byte = |plane: usize, at: usize| {
            (self.planes.get(plane * pixels + at).copied().unwrap_or(0.0) * 255.0).round() as u8
        };
        let rgb: Vec<u8> = (0..pixels).flat_map(|at| [0, 1, 2].map(|c| byte(c, at))).collect();
        let mut jpeg = Vec::new();
        JpegEncoder::new_with_quality(&mut jpeg, QUALITY)
            .write_image(&rgb, width, height, ExtendedColorType::Rgb8)
            .ok()?;
        Some(STANDARD.encode(jpeg))
    }
}
