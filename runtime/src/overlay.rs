//! Draws results onto frames: concepts as a transparent colour layer, instances as a second one
//! with outlines. [`draw`] takes packed RGB, [`draw_frame`] every pixel format.

mod frame;

pub use frame::draw_frame;

use crate::bundle::{ConceptNames, Mark};
use crate::concepts::ConceptMap;
use crate::labels::PALETTE;
use crate::propagate::MaskMap;

/// Why nothing could be drawn.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum OverlayError {
    /// The pixel data does not hold a frame of that size.
    #[error(
        "{found} bytes with {stride} bytes per row do not hold a {width}x{height} frame of \
         {bytes_per_pixel} bytes per pixel"
    )]
    FrameTooShort {
        /// Bytes given.
        found: usize,
        /// Bytes from one row to the next.
        stride: usize,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Bytes per pixel.
        bytes_per_pixel: usize,
    },
    /// A colour offset lies outside of the pixel.
    #[error("a colour lies outside of a pixel of {bytes_per_pixel} bytes")]
    Layout {
        /// Bytes per pixel.
        bytes_per_pixel: usize,
    },
    /// A result belongs to a frame of another size.
    #[error(
        "the {layer} layer is {layer_width}x{layer_height} but the frame is {width}x{height}; \
         resize the layer first"
    )]
    LayerSize {
        /// "concept" or "mask".
        layer: &'static str,
        /// Width of the layer in pixels.
        layer_width: u32,
        /// Height of the layer in pixels.
        layer_height: u32,
        /// Width of the frame in pixels.
        width: u32,
        /// Height of the frame in pixels.
        height: u32,
    },
}

/// Where the colours of a pixel lie in a packed format of 8 bits per colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedLayout {
    /// Bytes from one pixel to the next, 3 or 4.
    pub bytes_per_pixel: usize,
    /// Offset of red within a pixel, in bytes.
    pub red: usize,
    /// Offset of green within a pixel, in bytes.
    pub green: usize,
    /// Offset of blue within a pixel, in bytes.
    pub blue: usize,
}

impl PackedLayout {
    /// Red, green, blue.
    pub const RGB: Self = Self { bytes_per_pixel: 3, red: 0, green: 1, blue: 2 };
    /// Blue, green, red.
    pub const BGR: Self = Self { bytes_per_pixel: 3, red: 2, green: 1, blue: 0 };
    /// Red, green, blue and a fourth byte that is left alone (alpha or padding).
    pub const RGBX: Self = Self { bytes_per_pixel: 4, red: 0, green: 1, blue: 2 };
    /// Blue, green, red and a fourth byte that is left alone (alpha or padding).
    pub const BGRX: Self = Self { bytes_per_pixel: 4, red: 2, green: 1, blue: 0 };

    pub(crate) fn is_valid(self) -> bool {
        [self.red, self.green, self.blue].iter().all(|&o| o < self.bytes_per_pixel)
    }

    fn put(self, pixel: &mut [u8], color: [u8; 3]) {
        pixel[self.red] = color[0];
        pixel[self.green] = color[1];
        pixel[self.blue] = color[2];
    }

    fn blend(self, pixel: &mut [u8], color: [u8; 3], alpha: Alpha) {
        pixel[self.red] = alpha.mix(pixel[self.red], color[0]);
        pixel[self.green] = alpha.mix(pixel[self.green], color[1]);
        pixel[self.blue] = alpha.mix(pixel[self.blue], color[2]);
    }
}

/// What is drawn, and how strongly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OverlayStyle {
    /// Share of the layer colour in a covered pixel, 0 (invisible) to 1 (opaque).
    pub opacity: f32,
    /// Draw the concept layer.
    pub concepts: bool,
    /// Draw the instance layer.
    pub masks: bool,
    /// Draw a light line inside and a dark line around each instance.
    pub outlines: bool,
}

impl Default for OverlayStyle {
    fn default() -> Self {
        Self { opacity: 0.5, concepts: true, masks: true, outlines: true }
    }
}

/// One colour per concept id. The same id has the same colour in every run and in every
/// dictionary, so that pictures can be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConceptColors {
    colors: Vec<[u8; 3]>,
    /// Concepts that are not drawn, rising.
    hidden: Vec<u16>,
}

impl ConceptColors {
    /// Colours for the ids `0..count`.
    pub fn new(count: usize) -> Self {
        Self { colors: (0..count).map(concept_color).collect(), hidden: Vec::new() }
    }

    /// Colours for the ids `0..count` as people want them: those that they gave, one for all
    /// concepts of a name, none for those that are marked as ignored.
    pub fn of(names: &ConceptNames, count: usize) -> Self {
        let mut colors = Self::new(count);
        for (id, entry) in names.iter() {
            let id16 = id as u16;
            if let Some(color) = given_color(names, id16) {
                colors.set(id16, color);
            }
            if entry.mark == Some(Mark::Ignore) {
                colors.hide(id16);
            }
        }
        colors
    }

    /// Gives a concept a colour of its own, as red, green, blue.
    pub fn set(&mut self, id: u16, color: [u8; 3]) {
        let id = usize::from(id);
        let known = self.colors.len();
        self.colors.extend((known..=id).map(concept_color));
        self.colors[id] = color;
    }

    /// Leaves a concept out of drawings.
    pub fn hide(&mut self, id: u16) {
        if let Err(at) = self.hidden.binary_search(&id) {
            self.hidden.insert(at, id);
        }
    }

    /// Whether a concept is left out of drawings.
    pub fn is_hidden(&self, id: u16) -> bool {
        self.hidden.binary_search(&id).is_ok()
    }

    /// The colour of a concept as red, green, blue. Ids beyond the dictionary have one too.
    pub fn get(&self, id: u16) -> [u8; 3] {
        self.colors.get(usize::from(id)).copied().unwrap_or_else(|| concept_color(usize::from(id)))
    }
}

/// The colour that differs from the generated one because of what people said: their colour, or
/// that of the lowest concept of the same name.
pub fn given_color(names: &ConceptNames, id: u16) -> Option<[u8; 3]> {
    let group = names.group(id.into());
    names.rgb(id.into()).or_else(|| (group != usize::from(id)).then(|| concept_color(group)))
}

/// Point `id` of the three-dimensional additive low-discrepancy sequence, read as hue,
/// saturation and value: the first n colours are spread about evenly for every n.
fn concept_color(id: usize) -> [u8; 3] {
    // The root of x^4 = x + 1 generates the sequence that is most even in three dimensions
    // (a generalisation of the golden ratio).
    const ROOT: f64 = 1.220_744_084_605_759_5;
    let step = |power: i32| ((id as f64 + 0.5) * ROOT.powi(-power)).fract() as f32;
    // Pale and dark colours are left out: they vanish on most frames.
    hsv_to_rgb(step(1), 0.45 + 0.55 * step(2), 0.6 + 0.4 * step(3))
}

/// Hue, saturation and value, each 0..1, to 8-bit red, green, blue.
fn hsv_to_rgb(hue: f32, saturation: f32, value: f32) -> [u8; 3] {
    // Each colour rises and falls linearly over the hue circle, a third of it apart.
    [5.0, 3.0, 1.0].map(|shift: f32| {
        let k = (shift + hue * 6.0) % 6.0;
        let share = k.min(4.0 - k).clamp(0.0, 1.0);
        (value * (1.0 - saturation * share) * 255.0).round() as u8
    })
}

/// The colour of an instance: its DAVIS colour lifted so that also the dark ones can be seen.
pub const fn instance_color(id: u8) -> [u8; 3] {
    INSTANCE_COLORS[id as usize]
}

const INSTANCE_COLORS: [[u8; 3]; 256] = {
    let mut table = PALETTE;
    let mut i = 0;
    while i < 256 {
        let mut c = 0;
        while c < 3 {
            // About 48 + 207 * sqrt(c / 255): brightens, and keeps different colours different.
            table[i][c] = (48 + (207 * (table[i][c] as u32 * 255).isqrt()) / 255) as u8;
            c += 1;
        }
        i += 1;
    }
    table
};

/// Opacity in 256ths.
#[derive(Clone, Copy)]
pub(crate) struct Alpha(pub(crate) i32);

impl Alpha {
    pub(crate) fn new(opacity: f32) -> Self {
        // `as` turns NaN into 0.
        Self((opacity.clamp(0.0, 1.0) * 256.0).round() as i32)
    }

    pub(crate) fn mix(self, under: u8, over: u8) -> u8 {
        let under = i32::from(under);
        (under + (((i32::from(over) - under) * self.0 + 128) >> 8)) as u8
    }
}

/// Draws onto `pixels`, a packed frame of `height` rows that begin `stride` bytes apart.
/// Layers must have the size of the frame; a layer that is `None` or switched off in `style`
/// is not drawn. Alpha or padding bytes stay as they are. Nothing is allocated.
///
/// # Errors
/// [`OverlayError`] when a size does not fit; nothing has been drawn then.
pub fn draw(
    pixels: &mut [u8],
    layout: PackedLayout,
    stride: usize,
    width: u32,
    height: u32,
    concepts: Option<&ConceptMap>,
    masks: Option<&MaskMap>,
    style: &OverlayStyle,
    colors: &ConceptColors,
) -> Result<(), OverlayError> {
    let (w, h) = (width as usize, height as usize);
    let row_bytes = w * layout.bytes_per_pixel;
    if !layout.is_valid() {
        return Err(OverlayError::Layout { bytes_per_pixel: layout.bytes_per_pixel });
    }
    let needed = (h.saturating_sub(1)).checked_mul(stride).and_then(|n| n.checked_add(row_bytes));
    if stride < row_bytes || needed.is_none_or(|n| pixels.len() < n) {
        return Err(OverlayError::FrameTooShort {
            found: pixels.len(),
            stride,
            width,
            height,
            bytes_per_pixel: layout.bytes_per_pixel,
        });
    }
    let (concepts, masks) = layers((width, height), concepts, masks, *style)?;
    if w == 0 || h == 0 {
        return Ok(());
    }

    let alpha = Alpha::new(style.opacity);
    for (y, row) in pixels.chunks_mut(stride).take(h).enumerate() {
        let row = &mut row[..row_bytes];
        let pixel_row = y * w..(y + 1) * w;
        if let Some(map) = concepts {
            blend_concepts(row, layout, &map.concepts[pixel_row.clone()], alpha, colors);
        }
        let Some(map) = masks else { continue };
        let labels = &map.labels[pixel_row];
        if style.masks {
            blend_instances(row, layout, labels, alpha);
        }
        if style.outlines {
            let above = &map.labels[y.saturating_sub(1) * w..][..w];
            let below = &map.labels[(y + 1).min(h - 1) * w..][..w];
            draw_outlines(row, layout, above, labels, below);
        }
    }
    Ok(())
}

/// The layers that are to be drawn, which must have the size of the frame.
fn layers<'a>(
    (width, height): (u32, u32),
    concepts: Option<&'a ConceptMap>,
    masks: Option<&'a MaskMap>,
    style: OverlayStyle,
) -> Result<(Option<&'a ConceptMap>, Option<&'a MaskMap>), OverlayError> {
    let check = |layer, (lw, lh), len| {
        if (lw, lh) == (width, height) && len == width as usize * height as usize {
            return Ok(());
        }
        Err(OverlayError::LayerSize { layer, layer_width: lw, layer_height: lh, width, height })
    };
    let concepts = concepts.filter(|_| style.concepts);
    let masks = masks.filter(|_| style.masks || style.outlines);
    if let Some(m) = concepts {
        check("concept", (m.width, m.height), m.concepts.len())?;
    }
    if let Some(m) = masks {
        check("mask", (m.width, m.height), m.labels.len())?;
    }
    Ok((concepts, masks))
}

fn blend_concepts(
    row: &mut [u8],
    layout: PackedLayout,
    ids: &[u16],
    alpha: Alpha,
    colors: &ConceptColors,
) {
    // Neighbours mostly share their concept, so the colour is looked up once per run.
    let look = |id| (!colors.is_hidden(id)).then(|| colors.get(id));
    let (mut last, mut color) = (0, look(0));
    for (pixel, &id) in row.chunks_exact_mut(layout.bytes_per_pixel).zip(ids) {
        if id != last {
            (last, color) = (id, look(id));
        }
        if let Some(color) = color {
            layout.blend(pixel, color, alpha);
        }
    }
}

fn blend_instances(row: &mut [u8], layout: PackedLayout, labels: &[u8], alpha: Alpha) {
    for (pixel, &label) in row.chunks_exact_mut(layout.bytes_per_pixel).zip(labels) {
        if label != 0 {
            layout.blend(pixel, instance_color(label), alpha);
        }
    }
}

/// White on the border pixels of an instance, black on the background pixels that touch one:
/// one of the two is visible on every picture.
fn draw_outlines(row: &mut [u8], layout: PackedLayout, above: &[u8], labels: &[u8], below: &[u8]) {
    for (x, pixel) in row.chunks_exact_mut(layout.bytes_per_pixel).enumerate() {
        if let Some(color) = outline(above, labels, below, x) {
            layout.put(pixel, color);
        }
    }
}

/// Colour of the outline at column `x`, where there is one. The rows are equally long.
fn outline(above: &[u8], labels: &[u8], below: &[u8], x: usize) -> Option<[u8; 3]> {
    let here = labels[x];
    let neighbours =
        [above[x], below[x], labels[x.saturating_sub(1)], labels[(x + 1).min(labels.len() - 1)]];
    let border = neighbours.iter().any(|&n| n != here);
    border.then_some(if here == 0 { [0; 3] } else { [255; 3] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn concept_map(width: u32, height: u32, concepts: Vec<u16>) -> ConceptMap {
        let segments = vec![0; concepts.len()];
        ConceptMap { width, height, concepts, segments, segment_list: Vec::new() }
    }

    fn mask_map(width: u32, height: u32, labels: Vec<u8>) -> MaskMap {
        MaskMap { width, height, labels, instances: Vec::new() }
    }

    const OPAQUE: OverlayStyle =
        OverlayStyle { opacity: 1.0, concepts: true, masks: true, outlines: false };

    #[test]
    fn colours_are_distinct_and_none_is_dark() {
        let colors = ConceptColors::new(512);
        let distinct: HashSet<_> = (0..512).map(|i| colors.get(i)).collect();
        assert_eq!(distinct.len(), 512);
        assert!((0..512).all(|i| *colors.get(i).iter().max().unwrap() >= 150));
        assert_eq!(colors.get(3), ConceptColors::new(8).get(3));
        assert_eq!(ConceptColors::new(8).get(300), colors.get(300));
        let mut own = ConceptColors::new(8);
        own.set(300, [1, 2, 3]);
        assert_eq!((own.get(300), own.get(299)), ([1, 2, 3], colors.get(299)));
        // The first few are far apart, as small dictionaries need it.
        for i in 0..12u16 {
            for j in 0..i {
                let (a, b) = (colors.get(i), colors.get(j));
                let distance: i32 = (0..3).map(|c| (i32::from(a[c]) - i32::from(b[c])).abs()).sum();
                assert!(distance > 40, "{i} {a:?} {j} {b:?}");
            }
        }
        let instances: HashSet<_> = (0..=255).map(instance_color).collect();
        assert_eq!(instances.len(), 256);
    }

    #[test]
    fn people_choose_colours_for_names_and_leave_concepts_out() {
        let text = "[concept.1]\nname = \"road\"\n[concept.3]\nname = \"road\"\n\
                    [concept.2]\ncolor = \"#010203\"\n[concept.0]\nmark = \"ignore\"";
        let names = ConceptNames::parse(text, "concepts.toml".as_ref(), 4).unwrap();
        let (plain, colors) = (ConceptColors::new(4), ConceptColors::of(&names, 4));
        assert_eq!((colors.get(1), colors.get(3)), (plain.get(1), plain.get(1)));
        assert_eq!(colors.get(2), [1, 2, 3]);
        assert_eq!((given_color(&names, 1), given_color(&names, 3)), (None, Some(plain.get(1))));
        assert!(colors.is_hidden(0) && !colors.is_hidden(1));
        let mut pixels = [7; 6];
        draw(
            &mut pixels,
            PackedLayout::RGB,
            6,
            2,
            1,
            Some(&concept_map(2, 1, vec![0, 2])),
            None,
            &OPAQUE,
            &colors,
        )
        .unwrap();
        assert_eq!(pixels, [7, 7, 7, 1, 2, 3]);
    }

    #[test]
    fn primary_hues_are_where_they_belong() {
        assert_eq!(hsv_to_rgb(0.0, 1.0, 1.0), [255, 0, 0]);
        assert_eq!(hsv_to_rgb(1.0 / 3.0, 1.0, 1.0), [0, 255, 0]);
        assert_eq!(hsv_to_rgb(2.0 / 3.0, 1.0, 1.0), [0, 0, 255]);
        assert_eq!(hsv_to_rgb(0.3, 0.0, 1.0), [255; 3]);
    }

    #[test]
    fn every_layout_and_stride_gets_the_same_picture() {
        let (w, h) = (5u32, 3u32);
        let concepts = concept_map(w, h, (0..15).collect());
        let masks = mask_map(w, h, vec![0, 0, 1, 1, 0, 0, 2, 2, 1, 0, 0, 0, 0, 0, 0]);
        let colors = ConceptColors::new(16);
        let style = OverlayStyle::default();
        let rgb_of = |layout: PackedLayout, padding: usize| {
            let stride = w as usize * layout.bytes_per_pixel + padding;
            let mut pixels = vec![77u8; stride * h as usize];
            draw(&mut pixels, layout, stride, w, h, Some(&concepts), Some(&masks), &style, &colors)
                .unwrap();
            let mut picture = Vec::new();
            for row in pixels.chunks(stride) {
                let (row, rest) = row.split_at(w as usize * layout.bytes_per_pixel);
                assert!(rest.iter().all(|&b| b == 77), "padding is left alone");
                for p in row.chunks(layout.bytes_per_pixel) {
                    assert!(p.len() == 3 || p[3] == 77, "alpha is left alone");
                    picture.push([p[layout.red], p[layout.green], p[layout.blue]]);
                }
            }
            picture
        };
        let expected = rgb_of(PackedLayout::RGB, 0);
        for layout in [PackedLayout::BGR, PackedLayout::RGBX, PackedLayout::BGRX] {
            assert_eq!(rgb_of(layout, 7), expected);
        }
    }

    #[test]
    fn opacity_runs_from_nothing_to_the_plain_colour() {
        let masks = mask_map(2, 1, vec![0, 3]);
        let colors = ConceptColors::new(1);
        let paint = |opacity| {
            let mut pixels = [10, 20, 30, 10, 20, 30];
            let style = OverlayStyle { opacity, ..OPAQUE };
            draw(&mut pixels, PackedLayout::RGB, 6, 2, 1, None, Some(&masks), &style, &colors)
                .unwrap();
            assert_eq!(pixels[..3], [10, 20, 30], "background stays");
            [pixels[3], pixels[4], pixels[5]]
        };
        assert_eq!(paint(0.0), [10, 20, 30]);
        assert_eq!(paint(f32::NAN), [10, 20, 30]);
        assert_eq!(paint(1.0), instance_color(3));
        assert_eq!(paint(9.0), instance_color(3));
        assert_eq!(paint(0.5)[0], 10 + (instance_color(3)[0] - 10) / 2);
    }

    #[test]
    fn outlines_are_light_inside_and_dark_outside() {
        let mut labels = vec![0u8; 49];
        for y in 2..5 {
            labels[y * 7 + 2..y * 7 + 5].fill(1);
        }
        let masks = mask_map(7, 7, labels);
        let mut pixels = vec![100u8; 7 * 7 * 3];
        let style = OverlayStyle { masks: false, outlines: true, ..OPAQUE };
        let colors = ConceptColors::new(1);
        draw(&mut pixels, PackedLayout::RGB, 21, 7, 7, None, Some(&masks), &style, &colors)
            .unwrap();
        let at = |x: usize, y: usize| pixels[(y * 7 + x) * 3];
        assert_eq!([at(0, 3), at(1, 3), at(2, 3), at(3, 3)], [100, 0, 255, 100]);
        assert_eq!([at(3, 1), at(3, 2), at(1, 1)], [0, 255, 100]);
    }

    #[test]
    fn wrong_sizes_are_errors_and_draw_nothing() {
        let masks = mask_map(2, 2, vec![1; 4]);
        let colors = ConceptColors::new(1);
        let mut pixels = [5u8; 12];
        let mut attempt = |layout, stride, w, h| {
            let answer =
                draw(&mut pixels, layout, stride, w, h, None, Some(&masks), &OPAQUE, &colors);
            assert_eq!(pixels, [5; 12]);
            answer.unwrap_err()
        };
        let rgb = PackedLayout::RGB;
        assert!(matches!(attempt(rgb, 5, 2, 2), OverlayError::FrameTooShort { .. }));
        assert!(matches!(attempt(rgb, 7, 2, 2), OverlayError::FrameTooShort { .. }));
        assert!(matches!(attempt(rgb, usize::MAX, 2, 3), OverlayError::FrameTooShort { .. }));
        assert!(matches!(attempt(rgb, 6, 1, 2), OverlayError::LayerSize { layer: "mask", .. }));
        let odd = PackedLayout { blue: 3, ..rgb };
        assert!(matches!(attempt(odd, 6, 2, 2), OverlayError::Layout { .. }));
    }
}
