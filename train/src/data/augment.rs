//! Random views of an image and its segment map, after `SimCLR` (Chen et al., ICML 2020).
//!
//! A view is drawn first ([`ViewPlan::draw`]) and rendered afterwards ([`Renderer::render`]):
//! the plan says exactly which source pixel each pixel of the view shows, and ids follow it.

use fast_image_resize::Resizer;
use image::RgbImage;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::photometric::{self, ColorOp};
use super::{DataError, SegmentMap, images};

/// What views are drawn from. The defaults are those of `SimCLR` at jitter strength 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ViewParams {
    /// Area of the crop as a share of the image, smallest and largest.
    pub area: [f32; 2],
    /// Width over height of the crop, smallest and largest.
    pub aspect: [f32; 2],
    /// Probability of mirroring left and right.
    pub flip: f32,
    /// Probability of the colour jitter (all four steps below, in random order).
    pub jitter: f32,
    /// Brightness is multiplied by 1 ± this.
    pub brightness: f32,
    /// Contrast is multiplied by 1 ± this.
    pub contrast: f32,
    /// Saturation is multiplied by 1 ± this.
    pub saturation: f32,
    /// Hue is turned by ± this, in full circles.
    pub hue: f32,
    /// Probability of dropping colour.
    pub grey: f32,
    /// Probability of the blur, whose kernel spans a tenth of the view.
    pub blur: f32,
    /// Standard deviation of the blur in pixels of the view, smallest and largest.
    pub blur_sigma: [f32; 2],
    /// Further, smaller views of every image (0), after `SwAV` (Caron et al., `NeurIPS` 2020).
    pub extra: usize,
    /// Side of a further view in pixels, a multiple of 8.
    pub extra_size: u32,
    /// Area of a further view's crop as a share of the image, smallest and largest.
    pub extra_area: [f32; 2],
}

impl Default for ViewParams {
    fn default() -> Self {
        Self {
            area: [0.08, 1.0],
            aspect: [3.0 / 4.0, 4.0 / 3.0],
            flip: 0.5,
            jitter: 0.8,
            brightness: 0.8,
            contrast: 0.8,
            saturation: 0.8,
            hue: 0.2,
            grey: 0.2,
            blur: 0.5,
            blur_sigma: [0.1, 2.0],
            extra: 0,
            extra_size: 96,
            extra_area: [0.05, 0.3],
        }
    }
}

impl ViewParams {
    /// Checks the ranges.
    pub fn validate(&self) -> Result<(), DataError> {
        let range = |[low, high]: [f32; 2], limit: f32| low > 0.0 && low <= high && high <= limit;
        DataError::check(
            range(self.area, 1.0),
            "views.area",
            &self.area,
            "two numbers in 0 < a <= b <= 1",
        )?;
        DataError::check(
            range(self.extra_area, 1.0),
            "views.extra_area",
            &self.extra_area,
            "two numbers in 0 < a <= b <= 1",
        )?;
        DataError::check(self.extra <= 16, "views.extra", &self.extra, "a number in 0..=16")?;
        DataError::check(
            self.extra_size.is_multiple_of(8) && (48..=2048).contains(&self.extra_size),
            "views.extra_size",
            &self.extra_size,
            "a multiple of 8 in 48..=2048",
        )?;
        DataError::check(
            range(self.aspect, 100.0),
            "views.aspect",
            &self.aspect,
            "two numbers in 0 < a <= b <= 100",
        )?;
        DataError::check(
            range(self.blur_sigma, 100.0),
            "views.blur_sigma",
            &self.blur_sigma,
            "two numbers in 0 < a <= b <= 100",
        )?;
        for (name, value) in [
            ("views.flip", self.flip),
            ("views.jitter", self.jitter),
            ("views.grey", self.grey),
            ("views.blur", self.blur),
            ("views.brightness", self.brightness),
            ("views.contrast", self.contrast),
            ("views.saturation", self.saturation),
        ] {
            DataError::check((0.0..=1.0).contains(&value), name, &value, "a number in 0..=1")?;
        }
        DataError::check(
            (0.0..=0.5).contains(&self.hue),
            "views.hue",
            &self.hue,
            "a number in 0..=0.5",
        )
    }
}

impl ViewParams {
    /// What a further view is drawn from.
    #[must_use]
    pub fn of_extra(&self) -> Self {
        Self { area: self.extra_area, ..self.clone() }
    }
}

/// Which part of an image a square view shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Left edge of the crop, in pixels.
    pub x: u32,
    /// Upper edge of the crop, in pixels.
    pub y: u32,
    /// Width of the crop, in pixels.
    pub width: u32,
    /// Height of the crop, in pixels.
    pub height: u32,
    /// Whether the view is mirrored left and right.
    pub flip: bool,
    /// Side of the view, in pixels.
    pub size: u32,
}

impl Geometry {
    /// The source pixel (column, row) under the centre of pixel (`u`, `v`) of the view.
    pub fn source_pixel(&self, u: u32, v: u32) -> (u32, u32) {
        let u = if self.flip { self.size - 1 - u } else { u };
        // floor((u + 1/2) * width / size) in whole numbers: no rounding to get wrong.
        let at = |i: u32, length: u32| {
            ((2 * u64::from(i) + 1) * u64::from(length) / (2 * u64::from(self.size))) as u32
        };
        (self.x + at(u, self.width), self.y + at(v, self.height))
    }
}

/// Attempts at a crop that lies inside the image before a centred one is taken.
const CROP_ATTEMPTS: u32 = 10;

/// Everything that was drawn for one view.
#[derive(Debug, Clone, PartialEq)]
pub struct ViewPlan {
    /// The crop.
    pub geometry: Geometry,
    /// The colour jitter in its order; empty when there is none.
    pub jitter: Vec<ColorOp>,
    /// Whether colour is dropped.
    pub grey: bool,
    /// Standard deviation of the blur, in pixels.
    pub blur: Option<f32>,
}

impl ViewPlan {
    /// Draws a view of `size` pixels a side for an image of `width` x `height` pixels (at
    /// least 1 each). `params` must be valid.
    ///
    /// Area is uniform and aspect log-uniform (so that upright and lying crops are equally
    /// likely), drawn again when the crop does not fit; after ten attempts the largest centred
    /// crop within the permitted aspects is taken.
    pub fn draw(
        params: &ViewParams,
        (width, height): (u32, u32),
        size: u32,
        rng: &mut impl Rng,
    ) -> Self {
        let (x, y, w, h) = draw_crop(params, width, height, rng);
        let flip = chance(params.flip, rng);
        let mut jitter = Vec::new();
        if chance(params.jitter, rng) {
            jitter = vec![
                ColorOp::Brightness(around(1.0, params.brightness, rng)),
                ColorOp::Contrast(around(1.0, params.contrast, rng)),
                ColorOp::Saturation(around(1.0, params.saturation, rng)),
                ColorOp::Hue(around(0.0, params.hue, rng)),
            ];
            jitter.shuffle(rng);
        }
        let grey = chance(params.grey, rng);
        let blur = chance(params.blur, rng).then(|| between(params.blur_sigma, rng));
        let geometry = Geometry { x, y, width: w, height: h, flip, size };
        Self { geometry, jitter, grey, blur }
    }
}

fn chance(probability: f32, rng: &mut impl Rng) -> bool {
    rng.random::<f32>() < probability
}

fn between([low, high]: [f32; 2], rng: &mut impl Rng) -> f32 {
    low + (high - low) * rng.random::<f32>()
}

fn around(centre: f32, reach: f32, rng: &mut impl Rng) -> f32 {
    between([centre - reach, centre + reach], rng)
}

/// Left, top, width and height of a random crop.
fn draw_crop(
    params: &ViewParams,
    width: u32,
    height: u32,
    rng: &mut impl Rng,
) -> (u32, u32, u32, u32) {
    let (image_w, image_h) = (f64::from(width), f64::from(height));
    for _ in 0..CROP_ATTEMPTS {
        let area = f64::from(between(params.area, rng)) * image_w * image_h;
        let aspect = f64::from(between(params.aspect.map(f32::ln), rng)).exp();
        let w = (area * aspect).sqrt().round();
        let h = (area / aspect).sqrt().round();
        if (1.0..=image_w).contains(&w) && (1.0..=image_h).contains(&h) {
            let (w, h) = (w as u32, h as u32);
            let x = rng.random_range(0..=width - w);
            let y = rng.random_range(0..=height - h);
            return (x, y, w, h);
        }
    }
    let [low, high] = params.aspect.map(f64::from);
    let aspect = (image_w / image_h).clamp(low, high);
    let w = ((image_h * aspect).round() as u32).clamp(1, width);
    let h = ((image_w / aspect).round() as u32).clamp(1, height);
    ((width - w) / 2, (height - h) / 2, w, h)
}

/// One rendered view.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// `[3, size, size]`, RGB in 0..1.
    pub pixels: Vec<f32>,
    /// `[size, size]`: the segment of every pixel, [`super::VOID`] where the map has it.
    pub ids: Vec<u16>,
    /// What the view shows.
    pub geometry: Geometry,
}

/// Renders views; keeps the scratch space of the resampler and the blur.
#[derive(Default)]
pub struct Renderer {
    resizer: Resizer,
    scratch: Vec<f32>,
}

impl Renderer {
    /// Renders `plan`: bicubic crop, mirror, jitter, grey, blur; ids by nearest sampling under
    /// the same geometry.
    ///
    /// # Errors
    /// [`DataError::SizeMismatch`] when the map is not one of the image,
    /// [`DataError::Resize`] when the plan was drawn for a larger image.
    pub fn render(
        &mut self,
        image: &RgbImage,
        segments: &SegmentMap,
        plan: &ViewPlan,
    ) -> Result<View, DataError> {
        let geometry = plan.geometry;
        let (width, height) = image.dimensions();
        let mismatch = (segments.width, segments.height) != (width, height)
            || segments.ids.len() != image.as_raw().len() / 3;
        if mismatch || segments.ids.is_empty() {
            return Err(DataError::SizeMismatch {
                image: (width, height),
                segments: (segments.width, segments.height),
            });
        }
        let size = geometry.size;
        let crop = [geometry.x, geometry.y, geometry.width, geometry.height];
        // The resampler refuses a crop that leaves the image, so ids below are in range.
        let resized = images::resize_crop(&mut self.resizer, image, crop, size, size)?;
        let mut pixels = planar(&resized, geometry.flip);
        for op in &plan.jitter {
            op.apply(&mut pixels);
        }
        if plan.grey {
            photometric::to_grey(&mut pixels);
        }
        if let Some(sigma) = plan.blur {
            let side = size as usize;
            photometric::blur(&mut pixels, side, sigma, side / 10 / 2, &mut self.scratch);
        }
        Ok(View { pixels, ids: sampled(segments, &geometry), geometry })
    }
}

/// `[3, h, w]` in 0..1, mirrored left and right on request.
fn planar(image: &RgbImage, flip: bool) -> Vec<f32> {
    let (width, area) = (image.width() as usize, image.as_raw().len() / 3);
    let mut planes = vec![0.0; 3 * area];
    for (i, pixel) in image.as_raw().chunks_exact(3).enumerate() {
        let (row, column) = (i / width, i % width);
        let column = if flip { width - 1 - column } else { column };
        for (c, &value) in pixel.iter().enumerate() {
            planes[c * area + row * width + column] = f32::from(value) / 255.0;
        }
    }
    planes
}

fn sampled(segments: &SegmentMap, geometry: &Geometry) -> Vec<u16> {
    let columns: Vec<u32> = (0..geometry.size).map(|u| geometry.source_pixel(u, 0).0).collect();
    let mut ids = Vec::with_capacity(columns.len() * columns.len());
    for v in 0..geometry.size {
        let start = geometry.source_pixel(0, v).1 as usize * segments.width as usize;
        let row = &segments.ids[start..start + segments.width as usize];
        ids.extend(columns.iter().map(|&x| row[x as usize]));
    }
    ids
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_pcg::Pcg64;

    use super::*;
    use crate::data::VOID;

    /// An image whose every pixel is its own segment (the ids tell where a pixel comes from).
    fn numbered(width: u32, height: u32) -> (RgbImage, SegmentMap) {
        let image =
            RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]));
        let ids = (0..width * height).map(|i| i as u16).collect();
        (image, SegmentMap { width, height, ids })
    }

    /// Only geometry, no change of colour.
    fn geometric() -> ViewParams {
        ViewParams { jitter: 0.0, grey: 0.0, blur: 0.0, ..ViewParams::default() }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_id_is_that_of_its_source_pixel(
            width in 1_u32..80, height in 1_u32..80, size in 1_u32..70, seed in any::<u64>(),
        ) {
            let (image, mut segments) = numbered(width, height);
            segments.ids[0] = VOID;
            let mut rng = Pcg64::seed_from_u64(seed);
            let plan = ViewPlan::draw(&ViewParams::default(), (width, height), size, &mut rng);
            let view = Renderer::default().render(&image, &segments, &plan).unwrap();
            let g = view.geometry;
            for v in 0..size {
                for u in 0..size {
                    let (x, y) = g.source_pixel(u, v);
                    prop_assert!((g.x..g.x + g.width).contains(&x));
                    prop_assert!((g.y..g.y + g.height).contains(&y));
                    let id = view.ids[(v * size + u) as usize];
                    prop_assert_eq!(id, segments.ids[(y * width + x) as usize]);
                    // The same pixel in plain terms: the one that holds the point that the
                    // centre of (u, v) falls on.
                    let u = if g.flip { size - 1 - u } else { u };
                    let exact = f64::from(g.x)
                        + (f64::from(u) + 0.5) * f64::from(g.width) / f64::from(size);
                    prop_assert!(f64::from(x) <= exact + 1e-9 && exact < f64::from(x + 1) + 1e-9);
                }
            }
            prop_assert_eq!(view.pixels.len(), (3 * size * size) as usize);
            prop_assert!(view.pixels.iter().all(|p| (0.0..=1.0).contains(p)));
        }

        #[test]
        fn crops_keep_to_area_and_aspect(seed in any::<u64>()) {
            let params = ViewParams::default();
            let mut rng = Pcg64::seed_from_u64(seed);
            let g = ViewPlan::draw(&params, (320, 240), 336, &mut rng).geometry;
            prop_assert!(g.x + g.width <= 320 && g.y + g.height <= 240);
            // Sides are whole pixels, the shortest about 68: two percent of slack.
            let area = f64::from(g.width * g.height) / (320.0 * 240.0);
            prop_assert!((0.078..=1.0).contains(&area), "{}", area);
            let aspect = f64::from(g.width) / f64::from(g.height);
            prop_assert!((0.735..=1.36).contains(&aspect), "{}", aspect);
        }
    }

    #[test]
    fn pixels_and_ids_show_the_same_place() {
        // A crop at its own size is a copy, so pixels can be compared exactly.
        let (image, segments) = numbered(40, 30);
        for flip in [false, true] {
            let geometry = Geometry { x: 7, y: 3, width: 20, height: 20, flip, size: 20 };
            let plan = ViewPlan { geometry, jitter: vec![], grey: false, blur: None };
            let view = Renderer::default().render(&image, &segments, &plan).unwrap();
            for v in 0..20 {
                for u in 0..20 {
                    let (x, y) = geometry.source_pixel(u, v);
                    let at = (v * 20 + u) as usize;
                    assert_eq!(view.ids[at], (y * 40 + x) as u16);
                    assert_eq!(view.pixels[at], x as f32 / 255.0);
                    assert_eq!(view.pixels[400 + at], y as f32 / 255.0);
                }
            }
        }
    }

    #[test]
    fn probabilities_are_met() {
        let params = ViewParams::default();
        let mut rng = Pcg64::seed_from_u64(5);
        let n = 4000;
        let plans: Vec<_> =
            (0..n).map(|_| ViewPlan::draw(&params, (320, 240), 336, &mut rng)).collect();
        let share = |test: &dyn Fn(&ViewPlan) -> bool| {
            plans.iter().filter(|&plan| test(plan)).count() as f64 / f64::from(n)
        };
        // Three standard deviations of a share of 4000 draws are at most 0.024.
        assert!((share(&|p| p.geometry.flip) - 0.5).abs() < 0.025);
        assert!((share(&|p| !p.jitter.is_empty()) - 0.8).abs() < 0.025);
        assert!((share(&|p| p.grey) - 0.2).abs() < 0.025);
        assert!((share(&|p| p.blur.is_some()) - 0.5).abs() < 0.025);
        let first = |p: &ViewPlan| matches!(p.jitter.first(), Some(ColorOp::Hue(_)));
        assert!((share(&first) - 0.2).abs() < 0.025);
    }

    #[test]
    fn the_same_seed_draws_the_same_view() {
        let draw = |seed| {
            let mut rng = Pcg64::seed_from_u64(seed);
            ViewPlan::draw(&ViewParams::default(), (320, 240), 336, &mut rng)
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn an_extreme_image_yields_a_centred_crop() {
        let mut rng = Pcg64::seed_from_u64(0);
        let g = ViewPlan::draw(&geometric(), (1000, 2), 8, &mut rng).geometry;
        assert_eq!((g.x, g.y, g.width, g.height), (498, 0, 3, 2));
    }

    #[test]
    fn wrong_settings_and_maps_are_refused() {
        let wrong = ViewParams { area: [0.5, 0.2], ..ViewParams::default() };
        assert!(wrong.validate().is_err());
        let wrong = ViewParams { flip: f32::NAN, ..ViewParams::default() };
        assert!(wrong.validate().unwrap_err().to_string().contains("views.flip"));
        ViewParams::default().validate().unwrap();

        let (image, _) = numbered(10, 10);
        let (_, segments) = numbered(10, 9);
        let mut rng = Pcg64::seed_from_u64(0);
        let plan = ViewPlan::draw(&geometric(), (10, 10), 8, &mut rng);
        let error = Renderer::default().render(&image, &segments, &plan).unwrap_err();
        assert!(matches!(error, DataError::SizeMismatch { .. }));
    }
}
