//! A made-up video with exact masks: textured objects that move, turn, scale and occlude
//! one another under changing light.
//!
//! It lets every command and test run without a download, and shows what carried masks are
//! worth, because the truth is known. A frame is a pure function of the configuration and
//! its index, and the same bits on every machine: per pixel only operations are used that
//! IEEE 754 rounds exactly, and the trigonometry of the poses comes from the `libm` crate,
//! not from the system's mathematics library.

mod noise;
mod shape;
mod texture;

use core::f64::consts::TAU;

use rayon::prelude::*;

use crate::labels::LabelMap;
use noise::{hash, mix, smooth, unit};
use shape::Shape;
use texture::{Backdrop, Pattern, Rgb, Surface, hsv, scaled};

/// Shortest side of a scene in pixels: below this the objects vanish.
pub const MIN_SIDE: u32 = 64;
/// Longest side of a scene in pixels.
pub const MAX_SIDE: u32 = 4096;
/// Longest scene in frames: numbered files have five digits.
pub const MAX_FRAMES: u32 = 100_000;
/// How many objects a scene has; their instance ids are `1..=OBJECTS`.
pub const OBJECTS: usize = 4;

/// Size, length and variant of a scene.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SceneConfig {
    /// Width in pixels, [`MIN_SIDE`] to [`MAX_SIDE`].
    pub width: u32,
    /// Height in pixels, [`MIN_SIDE`] to [`MAX_SIDE`].
    pub height: u32,
    /// Number of frames, 1 to [`MAX_FRAMES`]. It does not change what a frame shows.
    pub frames: u32,
    /// Chooses colours, textures, paths and which object passes in front.
    pub seed: u32,
}

impl Default for SceneConfig {
    /// 60 frames at the size of the DAVIS 480p clips.
    fn default() -> Self {
        Self { width: 854, height: 480, frames: 60, seed: 1 }
    }
}

/// Why a scene cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SceneError {
    /// A side is out of range.
    #[error(
        "a scene of {width}x{height} cannot be made; each side must have {MIN_SIDE} to {MAX_SIDE} pixels"
    )]
    Size {
        /// Width asked for, in pixels.
        width: u32,
        /// Height asked for, in pixels.
        height: u32,
    },
    /// No frames, or too many.
    #[error("a scene of {frames} frames cannot be made; ask for 1 to {MAX_FRAMES}")]
    Frames {
        /// Number asked for.
        frames: u32,
    },
}

/// One frame of a scene.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SceneFrame {
    /// The picture, smoothed at the edges of the objects.
    pub image: image::RgbImage,
    /// The object that holds each pixel's centre: 0 backdrop, else an instance id.
    pub labels: LabelMap,
}

/// A scene, ready to be drawn frame by frame in any order.
#[derive(Debug, Clone)]
pub struct Scene {
    config: SceneConfig,
    /// Front to back.
    objects: Vec<Object>,
    backdrop: Backdrop,
    light: Light,
}

/// A body with its path.
#[derive(Debug, Clone)]
struct Object {
    id: u8,
    shape: Shape,
    surface: Surface,
    path: Path,
}

/// Motion of one object. Lengths are in frame heights, `x` from 0 to the aspect ratio.
#[derive(Debug, Clone)]
struct Path {
    home: [f64; 2],
    /// Where the object is after half a period, relative to `home`.
    reach: [f64; 2],
    /// Size of the side steps across the way.
    sway: f64,
    /// Frames from home to home.
    period: f64,
    radius: f64,
    /// Turns per frame.
    spin: f64,
    turn: f64,
    /// Relative change of the radius over the way.
    growth: f64,
}

/// Where an object is in one frame: `local = rotation * (point - centre) / radius`.
#[derive(Debug, Clone, Copy)]
struct Pose {
    centre: [f32; 2],
    /// Cosine and sine of the turn, divided by the radius.
    cos: f32,
    sin: f32,
}

impl Path {
    fn pose(&self, frame: u32) -> Pose {
        let t = f64::from(frame) / self.period;
        // From 0 to 1 and back, at rest at both ends.
        let way = 0.5 - 0.5 * libm::cos(TAU * t);
        let sway = self.sway * libm::sin(TAU * 2.0 * t);
        let radius = self.radius * (1.0 + self.growth * way);
        let angle = TAU * (self.turn + self.spin * f64::from(frame));
        Pose {
            centre: [
                (self.home[0] + self.reach[0] * way - self.reach[1] * sway) as f32,
                (self.home[1] + self.reach[1] * way + self.reach[0] * sway) as f32,
            ],
            cos: (libm::cos(angle) / radius) as f32,
            sin: (libm::sin(angle) / radius) as f32,
        }
    }
}

impl Pose {
    /// A point of the frame in the object's own coordinates.
    fn local(&self, x: f32, y: f32) -> [f32; 2] {
        let (dx, dy) = (x - self.centre[0], y - self.centre[1]);
        [self.cos * dx + self.sin * dy, self.cos * dy - self.sin * dx]
    }
}

/// Slow changes of the light, and a soft shadow that crosses the scene.
#[derive(Debug, Clone)]
struct Light {
    phase: f64,
    aspect: f64,
}

/// The light of one frame.
struct FrameLight {
    gain: Rgb,
    shadow: [f32; 2],
}

impl Light {
    fn at(&self, frame: u32) -> FrameLight {
        let t = f64::from(frame);
        // Exposure drifts by an eighth within about three seconds of 30 frames, colour
        // temperature more slowly: as clouds and automatic white balance do.
        let gain = 1.0 + 0.13 * libm::sin(TAU * (t / 90.0 + self.phase));
        let warmth = 0.07 * libm::sin(TAU * (t / 140.0 + 2.0 * self.phase));
        let across = 0.5 - 0.5 * libm::cos(TAU * (t / 160.0 + 0.1));
        FrameLight {
            gain: [gain * (1.0 + warmth), gain, gain * (1.0 - warmth)].map(|g| g as f32),
            shadow: [
                (self.aspect * (across * 1.2 - 0.1)) as f32,
                (0.5 + 0.25 * libm::sin(TAU * t / 110.0)) as f32,
            ],
        }
    }
}

impl FrameLight {
    /// Light that reaches a point: a soft round shadow takes up to a third.
    fn shade(&self, x: f32, y: f32) -> f32 {
        let (dx, dy) = ((x - self.shadow[0]) / 0.45, (y - self.shadow[1]) / 0.6);
        1.0 - 0.34 * smooth(1.0 - (dx * dx + dy * dy).sqrt())
    }
}

/// A stream of random numbers for the choices of a scene.
struct Draw {
    seed: u32,
    count: i32,
}

impl Draw {
    fn bits(&mut self) -> u32 {
        self.count += 1;
        hash(self.count, 0x5eed, self.seed)
    }

    fn between(&mut self, low: f32, high: f32) -> f32 {
        mix(low, high, unit(self.bits()))
    }
}

impl Scene {
    /// Chooses objects, paths and colours.
    ///
    /// # Errors
    /// [`SceneError`] when a size or the number of frames is out of range.
    pub fn new(config: SceneConfig) -> Result<Self, SceneError> {
        let SceneConfig { width, height, frames, seed } = config;
        let sides = MIN_SIDE..=MAX_SIDE;
        if !sides.contains(&width) || !sides.contains(&height) {
            return Err(SceneError::Size { width, height });
        }
        if !(1..=MAX_FRAMES).contains(&frames) {
            return Err(SceneError::Frames { frames });
        }
        let mut draw = Draw { seed, count: 0 };
        let aspect = f64::from(width) / f64::from(height);
        let land = draw.between(0.0, 1.0);
        let tone = |shift: f32, saturation, value| hsv(land + shift, saturation, value);
        let backdrop = Backdrop {
            tones: [
                tone(0.0, 0.40, 0.36),
                tone(0.06, 0.36, 0.54),
                tone(0.16, 0.26, 0.70),
                tone(0.45, 0.16, 0.84),
            ],
            seed: draw.bits(),
        };
        let objects = Self::objects(&mut draw, aspect, land);
        let light = Light { phase: f64::from(draw.between(0.0, 1.0)), aspect };
        Ok(Self { config, objects, backdrop, light })
    }

    fn objects(draw: &mut Draw, aspect: f64, land: f32) -> Vec<Object> {
        // One home in each quarter of the frame, far enough apart that nothing overlaps in
        // the first frame: half the distance of two neighbours is 0.24 in the narrower
        // direction, and no radius exceeds it.
        let homes = [[0.24, 0.27], [0.76, 0.26], [0.75, 0.74], [0.25, 0.75]];
        let fit = aspect.min(1.0);
        let shapes = Shape::all(f64::from(draw.between(0.0, 1.0)));
        let patterns = [Pattern::Marble, Pattern::Tartan, Pattern::Spots, Pattern::Rings];
        let first_corner = draw.bits() as usize;
        let first_pattern = draw.bits() as usize;
        let mut objects: Vec<Object> = shapes
            .into_iter()
            .enumerate()
            .map(|(i, shape)| {
                let [hx, hy] = homes[(i + first_corner) % homes.len()];
                let home = [hx * aspect, hy];
                let hue = land + 0.5 + 0.21 * i as f32 + draw.between(-0.04, 0.04);
                let mut path_draw = |low: f32, high: f32| f64::from(draw.between(low, high));
                // Half way between the middle of the frame and the next corner's home, so
                // that the objects pass in front of one another without all meeting at once.
                let [nx, ny] = homes[(i + first_corner + 1) % homes.len()];
                let goal = [
                    aspect * (0.5 + 0.5 * (nx - 0.5) + path_draw(-0.04, 0.04)),
                    0.5 + 0.5 * (ny - 0.5) + path_draw(-0.05, 0.05),
                ];
                let path = Path {
                    home,
                    reach: [goal[0] - home[0], goal[1] - home[1]],
                    sway: path_draw(-0.16, 0.16),
                    period: path_draw(84.0, 132.0),
                    radius: fit * path_draw(0.185, 0.225),
                    spin: path_draw(0.0012, 0.0034) * if i % 2 == 0 { 1.0 } else { -1.0 },
                    turn: path_draw(0.0, 1.0),
                    growth: path_draw(-0.22, 0.3),
                };
                Object {
                    id: i as u8 + 1,
                    shape,
                    surface: Surface {
                        pattern: patterns[(i + first_pattern) % patterns.len()],
                        dark: hsv(hue, 0.72, 0.42),
                        bright: hsv(hue + 0.08, 0.5, 0.95),
                        seed: draw.bits(),
                    },
                    path,
                }
            })
            .collect();
        let front = draw.bits() as usize % objects.len();
        objects.rotate_left(front);
        objects
    }

    /// The configuration that the scene was made with.
    pub fn config(&self) -> SceneConfig {
        self.config
    }

    /// Draws a frame. `index` may lie beyond [`SceneConfig::frames`]; the motion goes on.
    pub fn frame(&self, index: u32) -> SceneFrame {
        let (width, height) = (self.config.width as usize, self.config.height as usize);
        let pixel = 1.0 / self.config.height as f32;
        let poses: Vec<Pose> = self.objects.iter().map(|o| o.path.pose(index)).collect();
        let light = self.light.at(index);
        // The camera pans by an eighth of the height in a second of 30 frames.
        let pan = index as f32 * (0.125 / 30.0);
        let grain_seed = self.config.seed ^ index.wrapping_mul(0x9e37_79b1);

        let mut pixels = vec![0u8; width * height * 3];
        let mut labels = vec![0u8; width * height];
        pixels
            .par_chunks_exact_mut(width * 3)
            .zip(labels.par_chunks_exact_mut(width))
            .enumerate()
            .for_each(|(row, (pixels, labels))| {
                let y = (row as f32 + 0.5) * pixel;
                for (column, (rgb, label)) in
                    pixels.as_chunks_mut::<3>().0.iter_mut().zip(labels).enumerate()
                {
                    let x = (column as f32 + 0.5) * pixel;
                    let (color, top) = self.surface_at(x, y, pixel, &poses, pan);
                    *label = top;
                    let shade = light.shade(x, y);
                    // A little sensor noise, so that no two frames are equal byte for byte.
                    let noise = unit(hash(column as i32, row as i32, grain_seed)) - 0.5;
                    for (out, (c, gain)) in rgb.iter_mut().zip(color.iter().zip(light.gain)) {
                        let value = (c * gain * shade).clamp(0.0, 1.0) * 255.0 + 5.0 * noise;
                        *out = (value + 0.5).clamp(0.0, 255.0) as u8;
                    }
                }
            });
        SceneFrame {
            image: image::RgbImage::from_raw(self.config.width, self.config.height, pixels)
                .unwrap_or_default(),
            labels: LabelMap { width: self.config.width, height: self.config.height, data: labels },
        }
    }

    /// Colour of the pixel centred at `(x, y)` and the id of the object at its centre.
    ///
    /// Only the outlines are sampled 2x2 times: the textures are smooth at the size of a
    /// pixel, so that one look at each surface in the pixel is enough.
    fn surface_at(&self, x: f32, y: f32, pixel: f32, poses: &[Pose], pan: f32) -> (Rgb, u8) {
        const SAMPLES: [[f32; 2]; 4] = [[-0.25, -0.25], [0.25, -0.25], [-0.25, 0.25], [0.25, 0.25]];
        let mut color = [0.0; 3];
        let mut open = [true; 4];
        let mut top = 0;
        for (object, pose) in self.objects.iter().zip(poses) {
            let [lx, ly] = pose.local(x, y);
            // The shapes lie in the unit circle; 1.2 leaves room for half a pixel of the
            // smallest object.
            if lx * lx + ly * ly > 1.2 {
                continue;
            }
            if top == 0 && object.shape.contains(lx, ly) {
                top = object.id;
            }
            let mut covered = 0;
            for (open, [sx, sy]) in open.iter_mut().zip(SAMPLES) {
                let [px, py] = pose.local(x + sx * pixel, y + sy * pixel);
                if *open && object.shape.contains(px, py) {
                    *open = false;
                    covered += 1;
                }
            }
            if covered > 0 {
                add(&mut color, object.surface.color(lx, ly), covered as f32 * 0.25);
            }
        }
        let uncovered = open.iter().filter(|o| **o).count();
        if uncovered > 0 {
            let behind = self.backdrop.color(x + pan, y + pan * 0.25, y);
            add(&mut color, behind, uncovered as f32 * 0.25);
        }
        (color, top)
    }
}

fn add(sum: &mut Rgb, color: Rgb, weight: f32) {
    for (s, c) in sum.iter_mut().zip(scaled(color, weight)) {
        *s += c;
    }
}

#[cfg(test)]
mod tests;
