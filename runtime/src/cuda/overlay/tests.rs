//! The stage against the CPU's overlay, on every GPU there is; one of them is the CPU itself.

use proptest::prelude::*;

use super::super::testing::{TestGpu, gpus};
use super::*;
use crate::concepts::ConceptMap;
use crate::frame::YuvMatrix;
use crate::overlay;
use crate::propagate::MaskMap;

const BT709: Colorimetry = Colorimetry { matrix: YuvMatrix::Bt709, full_range: false };

fn number(i: usize, seed: usize) -> usize {
    let x = (i ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
    (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35) >> 7
}

/// Blocks of concepts, and instances with borders in them.
fn layers(w: u32, h: u32, seed: usize) -> (ConceptMap, MaskMap) {
    let (mut concepts, mut labels) = (Vec::new(), Vec::new());
    for y in 0..h as usize {
        for x in 0..w as usize {
            concepts.push((number(x / 3 + y / 4 * 100, seed) % 600) as u16);
            let label = number(x / 5 + y / 3 * 100, seed + 1) % 7;
            labels.push(if label > 3 { 0 } else { (label * 80) as u8 });
        }
    }
    let segments = vec![0; concepts.len()];
    let map = ConceptMap { width: w, height: h, concepts, segments, segment_list: Vec::new() };
    (map, MaskMap { width: w, height: h, labels, instances: Vec::new() })
}

/// Draws on a copy of the frame in device memory, whose first byte lies `skip` bytes into a buffer.
fn draw_on(
    gpu: &TestGpu,
    stage: &OverlayStage,
    planes: &mut [(Vec<u8>, usize)],
    skip: usize,
    size: (u32, u32),
    (concepts, masks): (Option<&ConceptMap>, Option<&MaskMap>),
    style: OverlayStyle,
) -> Result<(), CudaOverlayError> {
    let stream = &gpu.stream;
    let context = stream.context();
    let mut buffers = Vec::new();
    let mut device = Vec::new();
    for (bytes, stride) in planes.iter() {
        let buffer = DeviceBuffer::<u8>::new(context, skip + bytes.len()).unwrap();
        let padded: Vec<u8> = vec![1; skip].into_iter().chain(bytes.iter().copied()).collect();
        buffer.write(stream, &padded).unwrap();
        let address = buffer.address() + skip as u64;
        device.push(DevicePlane { address, len: bytes.len(), stride: *stride });
        buffers.push(buffer);
    }
    let concepts = concepts.map(|map| {
        let buffer = DeviceBuffer::new(context, map.concepts.len()).unwrap();
        buffer.write(stream, &map.concepts).unwrap();
        buffer
    });
    let masks = masks.map(|map| {
        let buffer = DeviceBuffer::new(context, map.labels.len()).unwrap();
        buffer.write(stream, &map.labels).unwrap();
        buffer
    });
    // SAFETY: everything is kept until the stream is done.
    let answer =
        unsafe { stage.enqueue(stream, &device, size, concepts.as_ref(), masks.as_ref(), &style) };
    stream.synchronize().unwrap();
    for ((bytes, _), buffer) in planes.iter_mut().zip(&buffers) {
        let mut all = vec![0; skip + bytes.len()];
        buffer.read(stream, &mut all).unwrap();
        assert_eq!(all[..skip], vec![1; skip], "what lies before the frame is left alone");
        bytes.copy_from_slice(&all[skip..]);
    }
    answer
}

fn style() -> impl Strategy<Value = OverlayStyle> {
    (-0.1..1.2f32, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(opacity, concepts, masks, outlines)| OverlayStyle { opacity, concepts, masks, outlines },
    )
}

#[test]
fn packed_frames_are_those_of_the_cpu() {
    let gpus = gpus();
    proptest!(ProptestConfig::with_cases(48), |(
        (w, h) in (1..40u32, 1..12u32),
        (layout, padding, skip) in (0..5usize, 0..9usize, 0..5usize),
        (with_concepts, with_masks) in any::<(bool, bool)>(),
        style in style(),
        seed in 0..999usize,
    )| {
        let odd = PackedLayout { bytes_per_pixel: 4, red: 3, green: 1, blue: 2 };
        let layouts =
            [PackedLayout::RGB, PackedLayout::BGR, PackedLayout::RGBX, PackedLayout::BGRX, odd];
        let layout = layouts[layout];
        let stride = w as usize * layout.bytes_per_pixel + padding;
        let bytes: Vec<u8> = (0..stride * h as usize).map(|i| number(i, seed) as u8).collect();
        let (concepts, masks) = layers(w, h, seed);
        let (concepts, masks) = (with_concepts.then_some(&concepts), with_masks.then_some(&masks));
        let mut colors = ConceptColors::new(512);
        colors.set(7, [1, 2, 3]);
        let mut expected = bytes.clone();
        overlay::draw(&mut expected, layout, stride, w, h, concepts, masks, &style, &colors).unwrap();
        for gpu in &gpus {
            let format = OverlayFormat::Packed(layout);
            let stage = OverlayStage::new(&gpu.kernels, &gpu.stream, format, &colors).unwrap();
            let mut planes = [(bytes.clone(), stride)];
            draw_on(gpu, &stage, &mut planes, skip, (w, h), (concepts, masks), style).unwrap();
            prop_assert_eq!(&planes[0].0, &expected, "{}", gpu.name);
        }
    });
}

#[test]
fn nv12_frames_are_drawn_on_pixel_by_pixel() {
    let gpus = gpus();
    proptest!(ProptestConfig::with_cases(48), |(
        (w, h) in (1..40u32, 1..12u32),
        (padding, skip, full_range) in (0..9usize, 0..5usize, any::<bool>()),
        style in style(),
        seed in 0..999usize,
    )| {
        let colorimetry = Colorimetry { full_range, ..BT709 };
        let (uw, uh) = (w.div_ceil(2) as usize, h.div_ceil(2) as usize);
        let (luma_stride, chroma_stride) = (w as usize + padding, 2 * uw + padding);
        let noise = |len: usize, seed| (0..len).map(|i| number(i, seed) as u8).collect::<Vec<u8>>();
        let luma = noise(luma_stride * h as usize, seed);
        let chroma = noise(chroma_stride * uh, seed + 1);
        let (concepts, masks) = layers(w, h, seed);
        let colors = ConceptColors::new(512);
        // Each pixel's Y, U and V, drawn on by the CPU with colours that are Y, U and V already.
        let mut yuv = Vec::new();
        for y in 0..h as usize {
            for x in 0..w as usize {
                let uv = &chroma[y / 2 * chroma_stride + x / 2 * 2..][..2];
                yuv.extend([luma[y * luma_stride + x], uv[0], uv[1]]);
            }
        }
        let code = |color| rgb_to_yuv(colorimetry, color);
        let alpha = Alpha::new(style.opacity);
        for (i, pixel) in yuv.chunks_exact_mut(3).enumerate() {
            let (x, y) = (i % w as usize, i / w as usize);
            let mut mix = |color: [u8; 3]| {
                for (under, over) in pixel.iter_mut().zip(code(color)) {
                    *under = alpha.mix(*under, over);
                }
            };
            if style.concepts {
                mix(colors.get(concepts.concepts[i]));
            }
            let at = |x: usize, y: usize| masks.labels[y * w as usize + x];
            let here = at(x, y);
            if style.masks && here != 0 {
                mix(instance_color(here));
            }
            let (right, bottom) = ((x + 1).min(w as usize - 1), (y + 1).min(h as usize - 1));
            let around = [
                at(x.saturating_sub(1), y),
                at(right, y),
                at(x, y.saturating_sub(1)),
                at(x, bottom),
            ];
            if style.outlines && around.iter().any(|&id| id != here) {
                pixel.copy_from_slice(&code(if here == 0 { [0; 3] } else { [255; 3] }));
            }
        }
        let (mut expected_luma, mut expected_chroma) = (luma.clone(), chroma.clone());
        for y in 0..h as usize {
            for x in 0..w as usize {
                expected_luma[y * luma_stride + x] = yuv[3 * (y * w as usize + x)];
            }
        }
        for y in 0..uh {
            for x in 0..uw {
                for c in 0..2 {
                    let values: Vec<usize> = [(0, 0), (1, 0), (0, 1), (1, 1)]
                        .iter()
                        .map(|(dx, dy)| (2 * x + dx, 2 * y + dy))
                        .filter(|&(x, y)| x < w as usize && y < h as usize)
                        .map(|(x, y)| usize::from(yuv[3 * (y * w as usize + x) + 1 + c]))
                        .collect();
                    let mean = (values.iter().sum::<usize>() + values.len() / 2) / values.len();
                    expected_chroma[y * chroma_stride + 2 * x + c] = mean as u8;
                }
            }
        }
        for gpu in &gpus {
            let format = OverlayFormat::Nv12(colorimetry);
            let stage = OverlayStage::new(&gpu.kernels, &gpu.stream, format, &colors).unwrap();
            let mut planes = [(luma.clone(), luma_stride), (chroma.clone(), chroma_stride)];
            let layers = (Some(&concepts), Some(&masks));
            draw_on(gpu, &stage, &mut planes, skip, (w, h), layers, style).unwrap();
            prop_assert_eq!(&planes[0].0, &expected_luma, "{}", gpu.name);
            prop_assert_eq!(&planes[1].0, &expected_chroma, "{}", gpu.name);
        }
    });
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_drawn() {
    for gpu in gpus() {
        let colors = ConceptColors::new(4);
        let new = |format| OverlayStage::new(&gpu.kernels, &gpu.stream, format, &colors);
        let one = PackedLayout { bytes_per_pixel: 1, red: 0, green: 0, blue: 0 };
        let beyond = PackedLayout { blue: 3, ..PackedLayout::RGB };
        for layout in [one, beyond] {
            let error = new(OverlayFormat::Packed(layout)).unwrap_err();
            assert!(matches!(error, CudaOverlayError::Overlay(OverlayError::Layout { .. })));
        }
        let style = OverlayStyle::default();
        let (concepts, masks) = layers(8, 4, 1);
        let rgb = new(OverlayFormat::Packed(PackedLayout::RGB)).unwrap();
        let both = (Some(&concepts), Some(&masks));
        let before = [9; 8 * 4 * 3];
        for (len, stride, size) in [(95, 24, (8, 4)), (96, 23, (8, 4)), (96, 24, (0, 4))] {
            let mut planes = [(before[..len].to_vec(), stride)];
            let error = draw_on(&gpu, &rgb, &mut planes, 0, size, both, style).unwrap_err();
            assert!(matches!(error, CudaOverlayError::Planes { .. }), "{error}");
            assert_eq!(planes[0].0, before[..len]);
        }
        let mut planes = [(vec![9; 9 * 4 * 3], 27)];
        let error = draw_on(&gpu, &rgb, &mut planes, 0, (9, 4), both, style).unwrap_err();
        assert!(error.to_string().contains("concept layer in device memory has 32"), "{error}");
        let error = draw_on(&gpu, &rgb, &mut planes, 0, (9, 4), (None, both.1), style).unwrap_err();
        assert!(error.to_string().contains("mask layer"), "{error}");
        let nv12 = new(OverlayFormat::Nv12(BT709)).unwrap();
        let mut planes = [(vec![9; 7 * 3], 7), (vec![9; 7 * 2], 7)];
        let error = draw_on(&gpu, &nv12, &mut planes, 0, (7, 3), (None, None), style).unwrap_err();
        assert!(matches!(error, CudaOverlayError::Planes { .. }), "{error}");
        assert!(draw_on(&gpu, &nv12, &mut planes[..1], 0, (7, 3), (None, None), style).is_err());
    }
}
