//! Changes of colour and sharpness, after `data_util.py` of google-research/simclr.
//!
//! All functions work on planar images `[3, n]` with values in 0..1 and leave values in 0..1.

/// One step of the colour jitter with its strength.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ColorOp {
    /// Multiplies every value.
    Brightness(f32),
    /// Multiplies the distance to the mean of each channel.
    Contrast(f32),
    /// Multiplies the saturation of the HSV model.
    Saturation(f32),
    /// Turns the hue, in full circles.
    Hue(f32),
}

/// Weights of red, green and blue in the grey value (ITU-R BT.601).
const LUMA: [f32; 3] = [0.2989, 0.5870, 0.1140];

impl ColorOp {
    /// Applies this step to a planar image.
    pub fn apply(self, pixels: &mut [f32]) {
        match self {
            Self::Brightness(factor) => {
                for value in pixels {
                    *value = (*value * factor).clamp(0.0, 1.0);
                }
            }
            Self::Contrast(factor) => {
                for channel in planes_mut(pixels) {
                    contrast(channel, factor);
                }
            }
            Self::Saturation(factor) => for_each_color(pixels, |rgb| saturated(rgb, factor)),
            Self::Hue(turn) => for_each_color(pixels, |rgb| turned(rgb, turn)),
        }
    }
}

/// Replaces each colour by its grey value.
pub fn to_grey(pixels: &mut [f32]) {
    for_each_color(pixels, |rgb| {
        [(LUMA[0] * rgb[0] + LUMA[1] * rgb[1] + LUMA[2] * rgb[2]).clamp(0.0, 1.0); 3]
    });
}

fn planes_mut(pixels: &mut [f32]) -> [&mut [f32]; 3] {
    let n = pixels.len() / 3;
    let (red, rest) = pixels.split_at_mut(n);
    let (green, blue) = rest.split_at_mut(n);
    [red, green, &mut blue[..n]]
}

fn for_each_color(pixels: &mut [f32], change: impl Fn([f32; 3]) -> [f32; 3]) {
    let [red, green, blue] = planes_mut(pixels);
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        [*r, *g, *b] = change([*r, *g, *b]);
    }
}

fn contrast(channel: &mut [f32], factor: f32) {
    let sum: f64 = channel.iter().map(|&value| f64::from(value)).sum();
    let mean = (sum / channel.len().max(1) as f64) as f32;
    for value in channel {
        *value = ((*value - mean) * factor + mean).clamp(0.0, 1.0);
    }
}

/// The colour with its HSV saturation multiplied and limited to 1, hue and value kept: each
/// channel keeps its relative distance to the largest one.
fn saturated([r, g, b]: [f32; 3], factor: f32) -> [f32; 3] {
    let value = r.max(g).max(b);
    let chroma = value - r.min(g).min(b);
    if chroma <= 0.0 {
        return [r, g, b];
    }
    let factor = factor.min(value / chroma);
    [r, g, b].map(|x| (value - (value - x) * factor).clamp(0.0, 1.0))
}

/// The colour with its HSV hue turned, saturation and value kept.
fn turned([r, g, b]: [f32; 3], turn: f32) -> [f32; 3] {
    let value = r.max(g).max(b);
    let chroma = value - r.min(g).min(b);
    if chroma <= 0.0 {
        return [r, g, b];
    }
    // Sextants of the colour circle, red at 0.
    let hue = if value == r {
        (g - b) / chroma
    } else if value == g {
        (b - r) / chroma + 2.0
    } else {
        (r - g) / chroma + 4.0
    } + 6.0 * turn;
    // Each channel is at its largest within one sextant of its own hue and falls linearly.
    let channel = |own: f32| {
        let distance = ((hue - own).rem_euclid(6.0) - 3.0).abs();
        (value - chroma * (2.0 - distance).clamp(0.0, 1.0)).clamp(0.0, 1.0)
    };
    [channel(0.0), channel(2.0), channel(4.0)]
}

/// Blurs a square planar image of `side` pixels with a Gaussian of `sigma` pixels whose kernel
/// has `2 * radius + 1` taps. Borders repeat the edge pixel (the reference pads with black,
/// which would darken the margins of every blurred view). `scratch` is resized as needed.
pub fn blur(pixels: &mut [f32], side: usize, sigma: f32, radius: usize, scratch: &mut Vec<f32>) {
    // Beyond 5 sigma a tap is below 4e-6 of the centre one: less than a thousandth of a grey
    // level, at up to four times the work.
    let radius = radius.min((5.0 * sigma).ceil() as usize);
    if radius == 0 || side == 0 {
        return;
    }
    let weight = |k: usize| (-0.5 * (k as f32 / sigma).powi(2)).exp();
    let total = weight(0) + 2.0 * (1..=radius).map(weight).sum::<f32>();
    let kernel: Vec<f32> = (0..=radius).map(|k| weight(k) / total).collect();

    scratch.clear();
    scratch.resize(pixels.len(), 0.0);
    let mut padded = vec![0.0; side + 2 * radius];
    for (line, out) in pixels.chunks_exact(side).zip(scratch.chunks_exact_mut(side)) {
        padded[..radius].fill(line[0]);
        padded[radius..radius + side].copy_from_slice(line);
        padded[radius + side..].fill(line[side - 1]);
        for (value, centre) in out.iter_mut().zip(line) {
            *value = centre * kernel[0];
        }
        for (k, tap) in kernel.iter().enumerate().skip(1) {
            let pairs = padded[radius - k..].iter().zip(&padded[radius + k..]);
            for (value, (a, b)) in out.iter_mut().zip(pairs) {
                *value += (a + b) * tap;
            }
        }
    }
    let area = side * side;
    for (plane, out) in scratch.chunks_exact(area).zip(pixels.chunks_exact_mut(area)) {
        let row = |y: usize| &plane[y * side..(y + 1) * side];
        for (y, out) in out.chunks_exact_mut(side).enumerate() {
            for (value, centre) in out.iter_mut().zip(row(y)) {
                *value = centre * kernel[0];
            }
            for (k, tap) in kernel.iter().enumerate().skip(1) {
                let (above, below) = (row(y.saturating_sub(k)), row((y + k).min(side - 1)));
                for ((value, a), b) in out.iter_mut().zip(above).zip(below) {
                    *value += (a + b) * tap;
                }
            }
            for value in out {
                *value = value.clamp(0.0, 1.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(a: [f32; 3], b: [f32; 3]) -> bool {
        a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5)
    }

    #[test]
    fn a_third_of_a_turn_moves_each_channel_on() {
        assert!(close(turned([0.8, 0.3, 0.1], 1.0 / 3.0), [0.1, 0.8, 0.3]));
        assert!(close(turned([0.8, 0.3, 0.1], -1.0 / 3.0), [0.3, 0.1, 0.8]));
        assert!(close(turned([1.0, 0.0, 0.0], 0.5), [0.0, 1.0, 1.0]));
    }

    #[test]
    fn saturation_keeps_the_largest_channel_and_stops_at_pure_colour() {
        assert!(close(saturated([0.8, 0.6, 0.4], 0.0), [0.8; 3]));
        assert!(close(saturated([0.8, 0.6, 0.4], 0.5), [0.8, 0.7, 0.6]));
        assert!(close(saturated([0.8, 0.6, 0.4], 5.0), [0.8, 0.4, 0.0]));
    }

    #[test]
    fn contrast_keeps_the_mean_of_each_channel() {
        let mut pixels = [0.4, 0.6, 0.1, 0.1, 0.5, 0.9];
        ColorOp::Contrast(0.5).apply(&mut pixels);
        for (value, expected) in pixels.iter().zip([0.45, 0.55, 0.1, 0.1, 0.6, 0.8]) {
            assert!((value - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn grey_has_equal_channels() {
        let mut pixels = [1.0, 0.0, 0.0];
        to_grey(&mut pixels);
        assert_eq!(pixels, [0.2989; 3]);
    }

    proptest! {
        #[test]
        fn a_turn_and_back_is_nothing(
            rgb in prop::array::uniform3(0.0_f32..=1.0),
            turn in -0.5_f32..0.5,
        ) {
            prop_assert!(close(turned(turned(rgb, turn), -turn), rgb));
            prop_assert!(close(turned(rgb, 1.0), rgb));
        }

        #[test]
        fn every_step_stays_in_range(
            rgb in prop::array::uniform3(0.0_f32..=1.0),
            factor in 0.0_f32..2.0,
        ) {
            for op in [
                ColorOp::Brightness(factor),
                ColorOp::Contrast(factor),
                ColorOp::Saturation(factor),
                ColorOp::Hue(factor),
            ] {
                let mut pixels = rgb;
                op.apply(&mut pixels);
                prop_assert!(pixels.iter().all(|x| (0.0..=1.0).contains(x)));
            }
        }

        #[test]
        fn the_blur_equals_the_plain_two_dimensional_sum(
            pixels in prop::collection::vec(0.0_f32..=1.0, 3 * 36),
            sigma in 0.1_f32..2.0,
            radius in 0_usize..4,
        ) {
            let side = 6_usize;
            let mut blurred = pixels.clone();
            blur(&mut blurred, side, sigma, radius, &mut Vec::new());
            let r = radius as isize;
            for (i, value) in blurred.iter().enumerate() {
                let (c, y, x) = (i / 36, i / 6 % 6, i % 6);
                let (mut sum, mut weights) = (0.0_f64, 0.0_f64);
                for dy in -r..=r {
                    for dx in -r..=r {
                        let weight =
                            (-((dx * dx + dy * dy) as f64) / f64::from(2.0 * sigma * sigma)).exp();
                        let at = |p: usize, d: isize| (p as isize + d).clamp(0, 5) as usize;
                        sum += weight * f64::from(pixels[c * 36 + at(y, dy) * 6 + at(x, dx)]);
                        weights += weight;
                    }
                }
                prop_assert!((f64::from(*value) - sum / weights).abs() < 1e-4);
            }
        }
    }
}
