//! Disturbances of a camera, for measuring what is told of them.

use image::{Rgb, RgbImage, imageops};

/// What happens to a camera.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disturbance {
    /// Another scene is shown.
    Unseen,
    /// A hand or a bag on the lens: dark, next to flat.
    Covered,
    /// The focus is lost.
    Blur,
    /// Night: gamma 3, then a third of the light.
    Night,
    /// A colour cast, as a broken white balance gives it.
    Cast,
    /// The picture stands still.
    Frozen,
}

impl Disturbance {
    pub const ALL: [Self; 6] =
        [Self::Unseen, Self::Covered, Self::Blur, Self::Night, Self::Cast, Self::Frozen];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Unseen => "unseen content",
            Self::Covered => "covered lens",
            Self::Blur => "blur",
            Self::Night => "night",
            Self::Cast => "colour cast",
            Self::Frozen => "frozen frame",
        }
    }

    /// `frame` as the disturbed camera shows it. What stands still or shows another scene is
    /// for the caller to choose.
    pub fn apply(self, frame: &RgbImage, number: u32) -> RgbImage {
        match self {
            Self::Unseen | Self::Frozen => frame.clone(),
            Self::Covered => RgbImage::from_fn(frame.width(), frame.height(), |x, y| {
                // Some light from the side, and the noise of a sensor in the dark.
                let hash = (x.wrapping_mul(73_856_093) ^ y.wrapping_mul(19_349_663) ^ number)
                    .wrapping_mul(2_654_435_761)
                    >> 30;
                let light = 10 + 8 * x / frame.width().max(1) + hash;
                Rgb([light as u8, (light * 9 / 10) as u8, (light * 8 / 10) as u8])
            }),
            Self::Blur => imageops::fast_blur(frame, 6.0),
            Self::Night => map(frame, |v| (f64::from(v) / 255.0).powi(3) * 85.0),
            Self::Cast => {
                let mut cast = frame.clone();
                for pixel in cast.pixels_mut() {
                    let [r, g, b] = pixel.0.map(f64::from);
                    pixel.0 = [r * 0.55, g * 0.9, (b * 1.3 + 20.0).min(255.0)].map(|v| v as u8);
                }
                cast
            }
        }
    }
}

fn map(frame: &RgbImage, of: impl Fn(u8) -> f64) -> RgbImage {
    let mut mapped = frame.clone();
    for pixel in mapped.pixels_mut() {
        pixel.0 = pixel.0.map(|v| of(v) as u8);
    }
    mapped
}
