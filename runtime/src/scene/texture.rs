//! What the surfaces look like. All functions map a point to a linear RGB colour in `0..1`.

use super::noise::{fractal, mix, nearest_point, smooth, unit, value};

/// A colour, red, green and blue in `0..1`.
pub(super) type Rgb = [f32; 3];

/// Blends two colours.
fn blend(a: Rgb, b: Rgb, t: f32) -> Rgb {
    [mix(a[0], b[0], t), mix(a[1], b[1], t), mix(a[2], b[2], t)]
}

/// Brightens (above 1) or darkens a colour.
pub(super) fn scaled(color: Rgb, gain: f32) -> Rgb {
    color.map(|c| c * gain)
}

/// Hue in turns, saturation and value in `0..1`.
pub(super) fn hsv(hue: f32, saturation: f32, value: f32) -> Rgb {
    // Distance of the hue from each primary, as on the edge of the RGB cube.
    let channel = |shift: f32| {
        let turn = hue + shift;
        let k = (turn - turn.floor()) * 6.0;
        let ramp = k.min(4.0 - k).clamp(0.0, 1.0);
        value * (1.0 - saturation * ramp)
    };
    [channel(5.0 / 6.0), channel(0.5), channel(1.0 / 6.0)]
}

/// A wave of period 1 between 0 and 1 with flat tops, from straight pieces.
fn stripe(t: f32) -> f32 {
    let phase = t - t.floor();
    smooth(((phase - 0.5).abs() * 2.0 - 0.5) * 2.5 + 0.5)
}

/// The pattern on an object, fixed to its own coordinates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pattern {
    /// Warped stripes.
    Marble,
    /// Crossing bands.
    Tartan,
    /// Round spots of differing sizes.
    Spots,
    /// Rings around the centre.
    Rings,
}

/// The surface of an object.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Surface {
    /// How `dark` and `bright` alternate.
    pub(super) pattern: Pattern,
    /// The first colour.
    pub(super) dark: Rgb,
    /// The second colour.
    pub(super) bright: Rgb,
    /// Seed of its grain.
    pub(super) seed: u32,
}

impl Surface {
    /// The colour at a point of the object's own coordinates.
    pub(super) fn color(&self, x: f32, y: f32) -> Rgb {
        let t = match self.pattern {
            Pattern::Marble => {
                let warp = fractal(x * 2.5, y * 2.5, self.seed, 3);
                stripe(x * 1.7 + y * 0.9 + warp * 1.6)
            }
            Pattern::Tartan => {
                let warp = value(x * 3.0, y * 3.0, self.seed) * 0.15;
                0.6 * stripe(x * 2.1 + warp) + 0.4 * stripe(y * 2.9 - warp)
            }
            Pattern::Spots => {
                let (distance, cell) = nearest_point(x * 3.4, y * 3.4, self.seed);
                let radius = 0.24 + 0.16 * unit(cell);
                smooth((radius - distance) * 9.0 + 0.5)
            }
            Pattern::Rings => {
                let wobble = fractal(x * 3.0, y * 3.0, self.seed, 2);
                stripe((x * x + y * y).sqrt() * 2.6 + wobble * 0.5)
            }
        };
        let grain = 0.78 + 0.44 * fractal(x * 9.0, y * 9.0, self.seed ^ 0x5bd1, 2);
        // A fixed dome of shade makes the object look round and sets it off from the backdrop.
        let dome = 1.08 - 0.35 * (x * x + y * y).min(1.0);
        scaled(blend(self.dark, self.bright, t), grain * dome)
    }
}

/// The scenery behind the objects: dim hills of four tones with grass-like grain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Backdrop {
    /// From low ground to high.
    pub(super) tones: [Rgb; 4],
    /// Seed of its shapes and grain.
    pub(super) seed: u32,
}

impl Backdrop {
    /// The colour at a point; `x` and `y` in frame heights, already shifted by the pan.
    pub(super) fn color(&self, x: f32, y: f32, height: f32) -> Rgb {
        let land = fractal(x * 1.6, y * 1.6, self.seed, 4);
        let level = ((land - 0.28) * 2.1 + 0.35 * (0.5 - height)).clamp(0.0, 1.0) * 3.0;
        let step = (level as usize).min(2);
        // Steeper than linear, so that regions with visible borders form.
        let t = smooth((level - step as f32 - 0.3) / 0.4);
        let base = blend(self.tones[step], self.tones[step + 1], t);
        let grain = fractal(x * 22.0, y * 30.0, self.seed ^ 0x1234, 3);
        scaled(base, 0.62 + 0.72 * grain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hues_are_those_of_the_colour_circle() {
        let close = |a: Rgb, b: Rgb| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close(hsv(0.0, 1.0, 1.0), [1.0, 0.0, 0.0]), "{:?}", hsv(0.0, 1.0, 1.0));
        assert!(close(hsv(1.0 / 3.0, 1.0, 1.0), [0.0, 1.0, 0.0]), "{:?}", hsv(1.0 / 3.0, 1.0, 1.0));
        assert!(close(hsv(2.0 / 3.0, 1.0, 1.0), [0.0, 0.0, 1.0]), "{:?}", hsv(2.0 / 3.0, 1.0, 1.0));
        assert!(close(hsv(0.17, 0.0, 0.6), [0.6; 3]));
    }

    #[test]
    fn stripes_repeat_and_stay_in_range() {
        for i in 0..100 {
            let t = i as f32 * 0.031_25;
            assert!((0.0..=1.0).contains(&stripe(t)));
            assert!((stripe(t) - stripe(t + 1.0)).abs() < 1e-4);
        }
    }
}
