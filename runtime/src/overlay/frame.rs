//! Drawing on frames of every pixel format.
//!
//! Colours are brought to the frame's own colour space and blended there, so that nothing is
//! converted that is not drawn on. Where chroma is shared by several pixels, it becomes the mean
//! of what each of them asks for.

use super::{
    Alpha, ConceptColors, OverlayError, OverlayStyle, PackedLayout, draw, instance_color, layers,
    outline,
};
use crate::concepts::ConceptMap;
use crate::frame::{Colorimetry, FrameViewMut, PixelFormat, PlaneMut, rgb_to_yuv};
use crate::propagate::MaskMap;

/// Draws onto a frame of any format. Otherwise like [`draw`].
///
/// # Errors
/// [`OverlayError::LayerSize`] when a layer has not the size of the frame; nothing has been drawn
/// then.
pub fn draw_frame(
    frame: &mut FrameViewMut<'_>,
    concepts: Option<&ConceptMap>,
    masks: Option<&MaskMap>,
    style: &OverlayStyle,
    colors: &ConceptColors,
) -> Result<(), OverlayError> {
    let (width, height) = (frame.width, frame.height);
    let target = match frame.format {
        PixelFormat::Rgb => Target::Packed(PackedLayout::RGB),
        PixelFormat::Bgr => Target::Packed(PackedLayout::BGR),
        PixelFormat::Rgba | PixelFormat::Rgbx => Target::Packed(PackedLayout::RGBX),
        PixelFormat::Bgra | PixelFormat::Bgrx => Target::Packed(PackedLayout::BGRX),
        PixelFormat::Gray8 => Target::Yuv(YuvLayout { luma: Samples::new(0, 0, 1), chroma: None }),
        PixelFormat::Nv12 => Target::Yuv(YuvLayout {
            luma: Samples::new(0, 0, 1),
            chroma: Some(([Samples::new(1, 0, 2), Samples::new(1, 1, 2)], 2)),
        }),
        PixelFormat::I420 => Target::Yuv(YuvLayout {
            luma: Samples::new(0, 0, 1),
            chroma: Some(([Samples::new(1, 0, 1), Samples::new(2, 0, 1)], 2)),
        }),
        PixelFormat::Yuy2 => Target::Yuv(YuvLayout {
            luma: Samples::new(0, 0, 2),
            chroma: Some(([Samples::new(0, 1, 4), Samples::new(0, 3, 4)], 1)),
        }),
        PixelFormat::Uyvy => Target::Yuv(YuvLayout {
            luma: Samples::new(0, 1, 2),
            chroma: Some(([Samples::new(0, 0, 4), Samples::new(0, 2, 4)], 1)),
        }),
    };
    match target {
        Target::Packed(layout) => {
            // The constructor of the view made sure of the plane.
            let Some(PlaneMut { data, stride }) = frame.planes.first_mut() else { return Ok(()) };
            draw(data, layout, *stride, width, height, concepts, masks, style, colors)
        }
        Target::Yuv(layout) => {
            let (concepts, masks) = layers((width, height), concepts, masks, *style)?;
            draw_yuv(frame, &layout, concepts, masks, *style, colors);
            Ok(())
        }
    }
}

enum Target {
    Packed(PackedLayout),
    Yuv(YuvLayout),
}

/// Where the samples of one component lie.
#[derive(Clone, Copy)]
struct Samples {
    plane: usize,
    /// Bytes before the first sample of a row.
    offset: usize,
    /// Bytes from one sample to the next.
    step: usize,
}

impl Samples {
    const fn new(plane: usize, offset: usize, step: usize) -> Self {
        Self { plane, offset, step }
    }
}

struct YuvLayout {
    luma: Samples,
    /// U and V, each shared by two pixels of a row, and the number of rows that share them.
    chroma: Option<([Samples; 2], usize)>,
}

/// What is painted on one pixel, as Y, U and V.
#[derive(Clone, Copy, Default)]
struct Paint {
    concept: Option<[u8; 3]>,
    instance: Option<[u8; 3]>,
    line: Option<[u8; 3]>,
}

impl Paint {
    #[inline]
    fn on(&self, component: usize, under: u8, alpha: Alpha) -> u8 {
        if let Some(line) = self.line {
            return line[component];
        }
        let mut value = under;
        for layer in [self.concept, self.instance].into_iter().flatten() {
            value = alpha.mix(value, layer[component]);
        }
        value
    }
}

fn draw_yuv(
    frame: &mut FrameViewMut<'_>,
    layout: &YuvLayout,
    concepts: Option<&ConceptMap>,
    masks: Option<&MaskMap>,
    style: OverlayStyle,
    colors: &ConceptColors,
) {
    if concepts.is_none() && masks.is_none() {
        return;
    }
    let (width, height) = (frame.width as usize, frame.height as usize);
    let painter = Painter::new(frame.colorimetry, concepts, masks, style, colors);
    let alpha = Alpha::new(style.opacity);
    let together = layout.chroma.map_or(1, |(_, rows)| rows);
    let mut paints = vec![Paint::default(); width * together];
    for (group, first) in (0..height).step_by(together).enumerate() {
        let rows = together.min(height - first);
        let paints = &mut paints[..rows * width];
        for (y, row) in (first..).zip(paints.chunks_exact_mut(width)) {
            painter.row(y, height, row);
            let Samples { plane, offset, step } = layout.luma;
            let PlaneMut { data, stride } = &mut frame.planes[plane];
            let samples = data[y * *stride + offset..].iter_mut().step_by(step);
            for (sample, paint) in samples.zip(row) {
                *sample = paint.on(0, *sample, alpha);
            }
        }
        let Some((chroma, _)) = layout.chroma else { continue };
        for (component, Samples { plane, offset, step }) in (1..).zip(chroma) {
            let PlaneMut { data, stride } = &mut frame.planes[plane];
            let samples = data[group * *stride + offset..].iter_mut().step_by(step);
            for (sample, x) in samples.zip((0..width).step_by(2)) {
                let columns = x..(x + 2).min(width);
                let (mut sum, mut count) = (0, 0);
                for row in paints.chunks_exact(width) {
                    for paint in &row[columns.clone()] {
                        sum += u32::from(paint.on(component, *sample, alpha));
                        count += 1;
                    }
                }
                *sample = ((sum + count / 2) / count) as u8;
            }
        }
    }
}

/// Says what is painted on which pixel.
struct Painter<'a> {
    colorimetry: Colorimetry,
    concepts: Option<&'a ConceptMap>,
    masks: Option<&'a MaskMap>,
    /// Colour of each instance; empty where instances are not filled.
    instances: Vec<[u8; 3]>,
    outlines: bool,
    colors: &'a ConceptColors,
}

impl<'a> Painter<'a> {
    fn new(
        colorimetry: Colorimetry,
        concepts: Option<&'a ConceptMap>,
        masks: Option<&'a MaskMap>,
        style: OverlayStyle,
        colors: &'a ConceptColors,
    ) -> Self {
        let instances = if style.masks && masks.is_some() {
            (0..=u8::MAX).map(|id| rgb_to_yuv(colorimetry, instance_color(id))).collect()
        } else {
            Vec::new()
        };
        Self { colorimetry, concepts, masks, instances, outlines: style.outlines, colors }
    }

    /// The paints of row `y` of a frame of `height` rows.
    fn row(&self, y: usize, height: usize, paints: &mut [Paint]) {
        let width = paints.len();
        paints.fill(Paint::default());
        if let Some(map) = self.concepts {
            // Neighbours mostly share their concept, so the colour is converted once per run.
            let mut start = 0;
            for run in map.concepts[y * width..][..width].chunk_by(|a, b| a == b) {
                let color = Some(rgb_to_yuv(self.colorimetry, self.colors.get(run[0])));
                paints[start..start + run.len()].iter_mut().for_each(|p| p.concept = color);
                start += run.len();
            }
        }
        let Some(map) = self.masks else { return };
        let labels = &map.labels[y * width..][..width];
        if !self.instances.is_empty() {
            for (paint, &label) in paints.iter_mut().zip(labels).filter(|(_, label)| **label != 0) {
                paint.instance = Some(self.instances[usize::from(label)]);
            }
        }
        if self.outlines {
            let above = &map.labels[y.saturating_sub(1) * width..][..width];
            let below = &map.labels[(y + 1).min(height - 1) * width..][..width];
            for (x, paint) in paints.iter_mut().enumerate() {
                paint.line =
                    outline(above, labels, below, x).map(|c| rgb_to_yuv(self.colorimetry, c));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{FrameView, Normalization, Plane, Preprocessor, YuvMatrix};
    use proptest::prelude::*;

    const PLAIN: Normalization = Normalization { mean: [0.0; 3], std: [1.0; 3] };

    /// Planes of a grey frame with `padding` bytes behind each row.
    fn grey(format: PixelFormat, w: u32, h: u32, padding: usize) -> Vec<(Vec<u8>, usize)> {
        (0..format.planes())
            .map(|plane| {
                let (row, rows) = format.plane_layout(plane, w, h);
                (vec![128; (row + padding) * rows], row + padding)
            })
            .collect()
    }

    fn maps(w: u32, h: u32) -> (ConceptMap, MaskMap) {
        let size = w as usize * h as usize;
        // Two halves, so that shared chroma is mixed nowhere but at the border between them.
        let right = |i: usize| i % w as usize >= (w as usize / 4) * 2;
        let concepts = (0..size).map(|i| u16::from(right(i))).collect();
        let labels = (0..size).map(|i| if right(i) { 3 } else { 0 }).collect();
        (
            ConceptMap { width: w, height: h, concepts, ..ConceptMap::default() },
            MaskMap { width: w, height: h, labels, instances: Vec::new() },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// What is read back from a drawn frame is what was drawn, in every format, at every
        /// stride and size; padding is left alone.
        #[test]
        fn every_format_shows_the_same_picture(
            format in prop::sample::select(PixelFormat::ALL.to_vec()),
            (w, h) in (1_u32..23, 1_u32..17), padding in 0_usize..5,
            full_range: bool, bt709: bool,
        ) {
            let matrix = if bt709 { YuvMatrix::Bt709 } else { YuvMatrix::Bt601 };
            let colorimetry = Colorimetry { matrix, full_range };
            let (concepts, masks) = maps(w, h);
            let colors = ConceptColors::new(2);
            let style = OverlayStyle { opacity: 0.5, outlines: false, ..OverlayStyle::default() };
            let mut data = grey(format, w, h, padding);
            let planes = data.iter_mut()
                .map(|(data, stride)| PlaneMut { data, stride: *stride }).collect();
            let mut frame = FrameViewMut::new(format, w, h, planes, colorimetry).unwrap();
            draw_frame(&mut frame, Some(&concepts), Some(&masks), &style, &colors).unwrap();
            for (plane, (data, stride)) in data.iter().enumerate() {
                let (row, _) = format.plane_layout(plane, w, h);
                // The second luma of an odd row's last pair belongs to no pixel.
                prop_assert!(data.chunks(*stride).all(|r| r[row..].iter().all(|&b| b == 128)));
            }
            let planes: Vec<_> =
                data.iter().map(|(data, stride)| Plane { data, stride: *stride }).collect();
            let view = FrameView::new(format, w, h, &planes, colorimetry).unwrap();
            let mut out = Vec::new();
            Preprocessor::new(PLAIN).run(&view, w, h, &mut out).unwrap();
            let size = w as usize * h as usize;
            // Grey shows as itself, full or not, only where it is written as RGB.
            let grey = match format {
                PixelFormat::Gray8 => return Ok(()),
                PixelFormat::Nv12 | PixelFormat::I420 | PixelFormat::Yuy2 | PixelFormat::Uyvy
                    if !full_range => (128.0 - 16.0) * 255.0 / 219.0,
                _ => 128.0,
            };
            for i in 0..size {
                let concept = colors.get(concepts.concepts[i]);
                let label = masks.labels[i];
                // Colours beside the border share chroma after resizing.
                let column = i % w as usize;
                if column.abs_diff((w as usize / 4) * 2) < 3 { continue; }
                for c in 0..3 {
                    let mut want = grey + (f64::from(concept[c]) - grey) * 0.5;
                    if label != 0 {
                        want += (f64::from(instance_color(label)[c]) - want) * 0.5;
                    }
                    let got = f64::from(out[c * size + i]) * 255.0;
                    // Each of two blends rounds Y, U and V; blue multiplies U by up to 2.1.
                    prop_assert!((got - want).abs() < 6.0, "{format} {got} {want} at {i}");
                }
            }
        }
    }

    #[test]
    fn outlines_are_drawn_on_luma() {
        let (_, masks) = maps(8, 4);
        let mut data = vec![128; 32];
        let planes = vec![PlaneMut { data: &mut data, stride: 8 }];
        let range = Colorimetry { matrix: YuvMatrix::Bt601, full_range: false };
        let mut frame = FrameViewMut::new(PixelFormat::Gray8, 8, 4, planes, range).unwrap();
        let style = OverlayStyle { masks: false, ..OverlayStyle::default() };
        draw_frame(&mut frame, None, Some(&masks), &style, &ConceptColors::new(0)).unwrap();
        assert_eq!(data[8..16], [128, 128, 128, 16, 235, 128, 128, 128]);
    }

    #[test]
    fn a_layer_of_another_size_is_an_error() {
        let (concepts, _) = maps(4, 4);
        let mut data = vec![0; 64];
        let planes = vec![PlaneMut { data: &mut data, stride: 8 }];
        let range = Colorimetry { matrix: YuvMatrix::Bt601, full_range: false };
        let mut frame = FrameViewMut::new(PixelFormat::Yuy2, 4, 5, planes, range).unwrap();
        let style = OverlayStyle::default();
        let answer = draw_frame(&mut frame, Some(&concepts), None, &style, &ConceptColors::new(2));
        assert!(matches!(answer, Err(OverlayError::LayerSize { layer: "concept", .. })));
    }
}
