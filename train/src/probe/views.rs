//! Random views of a labelled image for the probe.

use conceptseg::labels::LabelMap;
use image::RgbImage;
use image::imageops::{FilterType, crop_imm, flip_horizontal_in_place, resize};
use rand::{Rng, RngExt};

use super::ProbeConfig;

/// An image and its labels, of one size.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// The image; of the colour `pad` where the crop reaches beyond it.
    pub image: RgbImage,
    /// Class ids; void where the crop reaches beyond the image.
    pub labels: LabelMap,
}

impl View {
    /// Draws a view of `width` x `height` pixels: scaled, mirrored, cropped. `pad` is the colour
    /// beyond the image, the network's mean; `void` the label there.
    pub fn draw(
        image: &RgbImage,
        labels: &LabelMap,
        (width, height): (u32, u32),
        config: &ProbeConfig,
        (pad, void): ([u8; 3], u8),
        rng: &mut impl Rng,
    ) -> Self {
        let [low, high] = config.scale;
        let scale = if low < high { rng.random_range(low..high) } else { low };
        let mirror = rng.random_bool(config.flip);
        let short = f64::from(image.width().min(image.height()));
        let factor = f64::from(config.short_side) * scale / short;
        let side = |side: u32| ((f64::from(side) * factor).round() as u32).clamp(1, 16_384);
        let (w, h) = (side(image.width()), side(image.height()));
        let scaled = labels.resized_nearest(w, h);
        let mut start = |side: u32, crop: u32| match side.checked_sub(crop) {
            Some(room) if room > 0 => rng.random_range(0..=room),
            _ => 0,
        };
        let (x, y) = (start(w, width), start(h, height));
        let (used_w, used_h) = (w.min(width), h.min(height));
        let resized = resize(image, w, h, FilterType::Triangle);
        let piece = crop_imm(&resized, x, y, used_w, used_h).to_image();
        let mut out = RgbImage::from_pixel(width, height, image::Rgb(pad));
        image::imageops::replace(&mut out, &piece, 0, 0);
        let mut data = vec![void; width as usize * height as usize];
        for row in 0..used_h as usize {
            let from = (y as usize + row) * w as usize + x as usize;
            let to = row * width as usize;
            data[to..to + used_w as usize]
                .copy_from_slice(&scaled.data[from..from + used_w as usize]);
        }
        if mirror {
            flip_horizontal_in_place(&mut out);
            data.chunks_exact_mut(width as usize).for_each(<[u8]>::reverse);
        }
        Self { image: out, labels: LabelMap { width, height, data } }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_pcg::Pcg64;

    use super::*;

    #[test]
    fn labels_follow_their_pixels_and_what_is_beyond_is_void() {
        // Left half dark and class 0, right half bright and class 1.
        let image = RgbImage::from_fn(60, 40, |x, _| image::Rgb([if x < 30 { 0 } else { 250 }; 3]));
        let data = (0..60 * 40).map(|i| u8::from(i % 60 >= 30)).collect();
        let labels = LabelMap { width: 60, height: 40, data };
        let config = ProbeConfig { short_side: 40, ..ProbeConfig::default() };
        let mut rng = Pcg64::seed_from_u64(1);
        let mut beyond = 0;
        for _ in 0..40 {
            let view = View::draw(&image, &labels, (64, 64), &config, ([128; 3], 255), &mut rng);
            assert_eq!((view.labels.width, view.labels.height), (64, 64));
            let mut wrong = 0;
            for (pixel, &class) in view.image.pixels().zip(&view.labels.data) {
                match class {
                    255 => {
                        beyond += 1;
                        assert_eq!(pixel.0, [128; 3]);
                    }
                    // The border between the halves is soft.
                    class => wrong += u32::from((pixel.0[0] > 125) != (class == 1)),
                }
            }
            assert!(wrong <= 2 * 64, "{wrong}");
        }
        assert!(beyond > 0);
    }
}
