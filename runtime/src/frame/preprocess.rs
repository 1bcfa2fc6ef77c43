//! From a frame to the input tensor of the network: resize, convert, normalise.
//!
//! The planes of a frame are resized as they are and only the pixels that the network sees are
//! converted. Resizing is linear and so is YUV to RGB, so the order changes the result only by
//! rounding to 8 bits and where a colour is clamped; the tests hold the difference to a slow
//! reference below 5 of 255 steps, and below 1.2 on average.

use bytemuck::Pod;
use fast_image_resize::images::TypedImage;
use fast_image_resize::pixels::{U8, U8x2, U8x3, U8x4};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};

use super::color::YuvToRgb;
use super::strided::StridedView;
use super::{FrameError, FrameView, MAX_SIDE, PixelFormat, Plane};
use crate::memory;

/// Smallest and largest short side that [`network_size`] answers.
const SHORT_SIDE: (u32, u32) = (8, 4096);
/// Largest ratio of the sides of the network's input.
const MAX_ASPECT: u32 = 8;

/// Channel statistics the network was trained with: `(x / 255 - mean) / std`, in RGB order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalization {
    /// Mean of each channel, 0..=1.
    pub mean: [f32; 3],
    /// Standard deviation of each channel, above 0.
    pub std: [f32; 3],
}

impl Normalization {
    /// Scale and offset of each channel: value = byte * scale + offset.
    pub(crate) fn affine(&self) -> ([f32; 3], [f32; 3]) {
        let Self { mean, std } = self;
        let scale = std.map(|s| 1.0 / (255.0 * s));
        (scale, [-mean[0] / std[0], -mean[1] / std[1], -mean[2] / std[2]])
    }
}

/// The size `(width, height)` at which the network sees a frame of `width` x `height` pixels.
///
/// The short side becomes `short_side`, rounded to a multiple of 8 (the usual stride) and kept
/// within 8..=4096. The long side keeps the aspect ratio and is then floored to a multiple of 64,
/// as the DINO evaluation of DAVIS does it, at least 64. A frame beyond 8:1 is squeezed to 8:1, so
/// that no frame can ask for an input of any size.
pub fn network_size(width: u32, height: u32, short_side: u32) -> (u32, u32) {
    let short = (short_side.clamp(SHORT_SIDE.0, SHORT_SIDE.1) + 4) / 8 * 8;
    let (frame_short, frame_long) = (width.min(height).max(1), width.max(height).max(1));
    let scaled = u64::from(short) * u64::from(frame_long) / u64::from(frame_short);
    let longest = (MAX_ASPECT * short).min(MAX_SIDE);
    let long = (scaled / 64 * 64).clamp(64, u64::from(longest)) as u32;
    if height > width { (short, long) } else { (long, short) }
}

/// Turns frames into network input. Owns the scratch memory, which grows with the first frame
/// and is reused after it.
#[derive(Debug)]
pub struct Preprocessor {
    /// Value of a channel = byte * scale + offset.
    scale: [f32; 3],
    offset: [f32; 3],
    resizer: Resizer,
    planes: [Vec<u8>; 3],
}

impl Preprocessor {
    /// A preprocessor for a network with these channel statistics.
    pub fn new(normalization: Normalization) -> Self {
        let (scale, offset) = normalization.affine();
        Self { scale, offset, resizer: Resizer::new(), planes: [const { Vec::new() }; 3] }
    }

    /// Writes `frame`, scaled to `w` x `h` pixels (bilinear, averaging when it shrinks), as a
    /// `[3, h, w]` tensor in RGB order into `out`.
    ///
    /// # Errors
    /// [`FrameError::Size`] when `w` or `h` is 0 or above [`MAX_SIDE`], [`FrameError::Memory`] when
    /// there is no memory for it.
    pub fn run(
        &mut self,
        frame: &FrameView<'_>,
        w: u32,
        h: u32,
        out: &mut Vec<f32>,
    ) -> Result<(), FrameError> {
        if !(1..=MAX_SIDE).contains(&w) || !(1..=MAX_SIDE).contains(&h) {
            return Err(FrameError::Size { width: w, height: h });
        }
        let count = w as usize * h as usize;
        memory::reserve(out, 3 * count, "the input of the network")?;
        out.resize(3 * count, 0.0);
        let whole = (1, 1);
        match frame.format {
            PixelFormat::Rgb | PixelFormat::Bgr => self.resize::<U8x3>(frame, 0, 0, whole, w, h)?,
            PixelFormat::Rgba | PixelFormat::Bgra | PixelFormat::Rgbx | PixelFormat::Bgrx => {
                self.resize::<U8x4>(frame, 0, 0, whole, w, h)?;
            }
            PixelFormat::Gray8 => self.resize::<U8>(frame, 0, 0, whole, w, h)?,
            PixelFormat::Nv12 => {
                self.resize::<U8>(frame, 0, 0, whole, w, h)?;
                self.resize::<U8x2>(frame, 1, 1, (2, 2), w, h)?;
            }
            PixelFormat::I420 => {
                self.resize::<U8>(frame, 0, 0, whole, w, h)?;
                self.resize::<U8>(frame, 1, 1, (2, 2), w, h)?;
                self.resize::<U8>(frame, 2, 2, (2, 2), w, h)?;
            }
            // The same bytes are read twice: as pairs of luma and some chroma, and as fours
            // with one U and one V. What is read beside it is resized in vain, which costs less
            // than a copy in other order.
            PixelFormat::Yuy2 | PixelFormat::Uyvy => {
                self.resize::<U8x2>(frame, 0, 0, whole, w, h)?;
                self.resize::<U8x4>(frame, 0, 1, (2, 1), w, h)?;
            }
        }
        let convert = YuvToRgb::new(frame.colorimetry);
        let [first, second, third] = &self.planes;
        match frame.format {
            PixelFormat::Rgb => self.interleaved::<3>(first, [0, 1, 2], out),
            PixelFormat::Bgr => self.interleaved::<3>(first, [2, 1, 0], out),
            PixelFormat::Rgba | PixelFormat::Rgbx => self.interleaved::<4>(first, [0, 1, 2], out),
            PixelFormat::Bgra | PixelFormat::Bgrx => self.interleaved::<4>(first, [2, 1, 0], out),
            PixelFormat::Gray8 => self.store(first.iter().map(|&y| [convert.gray(y); 3]), out),
            PixelFormat::Nv12 => {
                let (chroma, _) = second.as_chunks::<2>();
                self.store(first.iter().zip(chroma).map(|(&y, &[u, v])| convert.rgb(y, u, v)), out);
            }
            PixelFormat::I420 => {
                let pixels = first.iter().zip(second).zip(third);
                self.store(pixels.map(|((&y, &u), &v)| convert.rgb(y, u, v)), out);
            }
            PixelFormat::Yuy2 => {
                let ((luma, _), (chroma, _)) = (first.as_chunks::<2>(), second.as_chunks::<4>());
                let pixels = luma.iter().zip(chroma);
                self.store(pixels.map(|(&[y, _], &[_, u, _, v])| convert.rgb(y, u, v)), out);
            }
            PixelFormat::Uyvy => {
                let ((luma, _), (chroma, _)) = (first.as_chunks::<2>(), second.as_chunks::<4>());
                let pixels = luma.iter().zip(chroma);
                self.store(pixels.map(|(&[_, y], &[u, _, v, _])| convert.rgb(y, u, v)), out);
            }
        }
        Ok(())
    }

    /// Resizes one plane, whose pixels are of type `P`, into a scratch plane. A pixel of it covers
    /// `cover` (columns, rows) pixels of the frame.
    fn resize<P: PixelTrait + Pod>(
        &mut self,
        frame: &FrameView<'_>,
        index: usize,
        scratch: usize,
        cover: (u32, u32),
        w: u32,
        h: u32,
    ) -> Result<(), FrameError> {
        let refused = |reason: String| FrameError::Resize {
            from_width: frame.width,
            from_height: frame.height,
            to_width: w,
            to_height: h,
            reason,
        };
        let plane: Plane<'_> = frame.planes[index];
        // The last chroma sample of an odd side covers one pixel that is not there, hence the
        // fractional part of the chroma plane that belongs to the frame. Chroma is taken to sit
        // in the middle of its pixels; the quarter sample that left-sited chroma is off is
        // far below what a stride of 8 can see.
        let cells =
            |side: u32, cover: u32| (side.div_ceil(cover), f64::from(side) / f64::from(cover));
        let (width, used_width) = cells(frame.width, cover.0);
        let (height, used_height) = cells(frame.height, cover.1);
        let source = StridedView::<P>::new(plane, width, height)
            .ok_or_else(|| refused(format!("plane {index} is too short")))?;
        let scratch = &mut self.planes[scratch];
        let bytes = w as usize * h as usize * P::size();
        memory::reserve(scratch, bytes, "the frame at the size of the network")?;
        scratch.resize(bytes, 0);
        let mut target =
            TypedImage::<P>::from_buffer(w, h, scratch).map_err(|e| refused(e.to_string()))?;
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
            .crop(0.0, 0.0, used_width, used_height)
            .use_alpha(false);
        self.resizer
            .resize_typed(&source, &mut target, &options)
            .map_err(|e| refused(e.to_string()))
    }

    /// Normalises packed pixels of `N` bytes whose red, green and blue lie at the given offsets.
    fn interleaved<const N: usize>(&self, pixels: &[u8], rgb: [usize; 3], out: &mut [f32]) {
        let (pixels, _) = pixels.as_chunks::<N>();
        let [red, green, blue] = rgb;
        self.store(
            pixels.iter().map(|p| [f32::from(p[red]), f32::from(p[green]), f32::from(p[blue])]),
            out,
        );
    }

    /// Normalises pixels of 0..=255 per channel and writes them channel by channel.
    fn store(&self, pixels: impl Iterator<Item = [f32; 3]>, out: &mut [f32]) {
        let ([s0, s1, s2], [o0, o1, o2]) = (self.scale, self.offset);
        let count = out.len() / 3;
        let (red, rest) = out.split_at_mut(count);
        let (green, blue) = rest.split_at_mut(count);
        for ((([r, g, b], red), green), blue) in pixels.zip(red).zip(green).zip(blue) {
            *red = r * s0 + o0;
            *green = g * s1 + o1;
            *blue = b * s2 + o2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Colorimetry, YuvMatrix};
    use proptest::prelude::*;

    const PLAIN: Normalization = Normalization { mean: [0.0; 3], std: [1.0; 3] };

    /// Triangle filter of the output pixel's footprint, in f64, as Pillow defines "bilinear".
    fn slow_resize(
        source: &dyn Fn(usize, usize) -> f64,
        sw: usize,
        sh: usize,
        w: usize,
        h: usize,
    ) -> Vec<f64> {
        let weights = |out: usize, from: usize, to: usize| {
            let scale = from as f64 / to as f64;
            let support = scale.max(1.0);
            let center = (out as f64 + 0.5) * scale;
            let raw: Vec<f64> = (0..from)
                .map(|i| (1.0 - (i as f64 + 0.5 - center).abs() / support).max(0.0))
                .collect();
            let sum: f64 = raw.iter().sum();
            raw.into_iter().map(|v| v / sum).collect::<Vec<_>>()
        };
        let mut out = Vec::new();
        for y in 0..h {
            let vertical = weights(y, sh, h);
            for x in 0..w {
                let horizontal = weights(x, sw, w);
                let mut sum = 0.0;
                for (j, wy) in vertical.iter().enumerate().filter(|(_, w)| **w > 0.0) {
                    for (i, wx) in horizontal.iter().enumerate().filter(|(_, w)| **w > 0.0) {
                        sum += wy * wx * source(i, j);
                    }
                }
                out.push(sum);
            }
        }
        out
    }

    fn steps_apart(got: &[f32], want: &[f64]) -> f64 {
        assert_eq!(got.len(), want.len());
        got.iter().zip(want).map(|(g, w)| (f64::from(*g) * 255.0 - w).abs()).fold(0.0, f64::max)
    }

    /// A smooth picture in 0..=255 per channel; smooth enough that the half chroma sample at the
    /// border, which resizing repeats outwards, hardly differs from the picture.
    fn picture(channel: usize, x: f64, y: f64) -> f64 {
        let phase = channel as f64 * 1.3;
        127.5 + 60.0 * (x * 2.6 + phase).sin() + 50.0 * (y * 2.2 - phase).cos()
    }

    #[test]
    fn sizes_follow_the_davis_protocol() {
        assert_eq!(network_size(854, 480, 480), (832, 480));
        assert_eq!(network_size(1920, 1080, 480), (832, 480));
        assert_eq!(network_size(480, 854, 480), (480, 832));
        assert_eq!(network_size(1920, 1080, 244), (384, 248));
        assert_eq!(network_size(640, 480, 240), (320, 240));
        assert_eq!(network_size(100, 100, 100), (64, 104));
        assert_eq!(network_size(16_384, 1, 480), (3840, 480));
        assert_eq!(network_size(1, 16_384, 4096), (4096, 16_384));
        assert_eq!(network_size(1, 1, 0), (64, 8));
        assert_eq!(network_size(0, 0, u32::MAX), (4096, 4096));
    }

    #[test]
    fn channels_are_normalised_in_rgb_order() {
        let normalization = Normalization { mean: [0.1, 0.2, 0.3], std: [0.5, 0.25, 0.125] };
        let mut out = Vec::new();
        let frame = FrameView::rgb(1, 1, &[255, 51, 0]).unwrap();
        Preprocessor::new(normalization).run(&frame, 1, 1, &mut out).unwrap();
        for (value, want) in out.iter().zip([1.8, 0.0, -2.4]) {
            assert!((value - want).abs() < 1e-6, "{out:?}");
        }
    }

    #[test]
    fn steady_state_reuses_its_buffers() {
        let data = vec![7; 90 * 70 * 3];
        let frame = FrameView::rgb(90, 70, &data).unwrap();
        let mut preprocessor = Preprocessor::new(PLAIN);
        let mut out = Vec::new();
        let mut held = |preprocessor: &mut Preprocessor| {
            preprocessor.run(&frame, 64, 48, &mut out).unwrap();
            (
                out.as_ptr(),
                preprocessor.planes[0].as_ptr(),
                preprocessor.resizer.size_of_internal_buffers(),
            )
        };
        let first = held(&mut preprocessor);
        assert_eq!(first, held(&mut preprocessor));
    }

    #[test]
    fn an_impossible_network_size_is_an_error() {
        let frame = FrameView::rgb(1, 1, &[1, 2, 3]).unwrap();
        let mut preprocessor = Preprocessor::new(PLAIN);
        for (w, h) in [(0, 8), (8, 0), (MAX_SIDE + 1, 8)] {
            assert!(matches!(
                preprocessor.run(&frame, w, h, &mut Vec::new()),
                Err(FrameError::Size { .. })
            ));
        }
    }

    /// Encodes the picture in 4:2:0, taking each chroma sample in the middle of its four pixels.
    fn encode(
        width: usize,
        height: usize,
        colorimetry: Colorimetry,
    ) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let (kr, kb) = match colorimetry.matrix {
            YuvMatrix::Bt601 => (0.299, 0.114),
            YuvMatrix::Bt709 => (0.2126, 0.0722),
            YuvMatrix::Bt2020 => (0.2627, 0.0593),
        };
        let (ys, yo, cs) = if colorimetry.full_range {
            (1.0, 0.0, 1.0)
        } else {
            (219.0 / 255.0, 16.0, 224.0 / 255.0)
        };
        let at = |x: f64, y: f64| {
            let [r, g, b] = [0, 1, 2].map(|c| picture(c, x / width as f64, y / height as f64));
            let luma = kr * r + (1.0 - kr - kb) * g + kb * b;
            let code = |v: f64| v.round().clamp(0.0, 255.0) as u8;
            (
                code(luma * ys + yo),
                code((b - luma) / (2.0 * (1.0 - kb)) * cs + 128.0),
                code((r - luma) / (2.0 * (1.0 - kr)) * cs + 128.0),
            )
        };
        let luma = (0..height * width)
            .map(|i| at((i % width) as f64 + 0.5, (i / width) as f64 + 0.5).0)
            .collect();
        let (cw, ch) = (width.div_ceil(2), height.div_ceil(2));
        let chroma = |i: usize| at(2.0 * (i % cw) as f64 + 1.0, 2.0 * (i / cw) as f64 + 1.0);
        let u = (0..cw * ch).map(|i| chroma(i).1).collect();
        let v = (0..cw * ch).map(|i| chroma(i).2).collect();
        (luma, u, v)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Packed formats with any stride: the same filter as the reference, within rounding.
        #[test]
        fn packed_formats_match_the_slow_resize(
            format in prop::sample::select(vec![
                PixelFormat::Rgb, PixelFormat::Bgr, PixelFormat::Rgba, PixelFormat::Bgra,
                PixelFormat::Rgbx, PixelFormat::Bgrx, PixelFormat::Gray8,
            ]),
            (sw, sh) in (1_usize..60, 1_usize..60), (w, h) in (1_usize..30, 1_usize..30),
            padding in 0_usize..9, seed: u64,
        ) {
            let (row, _) = format.plane_layout(0, sw as u32, sh as u32);
            let (bytes, stride) = (row / sw, row + padding);
            let data: Vec<u8> = (0..stride * sh)
                .map(|i| ((i as u64 ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
            let colorimetry = Colorimetry { matrix: YuvMatrix::Bt601, full_range: true };
            let planes = [Plane { data: &data, stride }];
            let frame = FrameView::new(format, sw as u32, sh as u32, &planes, colorimetry).unwrap();
            let mut out = Vec::new();
            Preprocessor::new(PLAIN).run(&frame, w as u32, h as u32, &mut out).unwrap();
            let offsets = match format {
                PixelFormat::Gray8 => [0, 0, 0],
                PixelFormat::Rgb | PixelFormat::Rgba | PixelFormat::Rgbx => [0, 1, 2],
                _ => [2, 1, 0],
            };
            let want: Vec<f64> = offsets.iter()
                .flat_map(|o| slow_resize(&|x, y| f64::from(data[y * stride + x * bytes + o]), sw, sh, w, h))
                .collect();
            // Two passes, each rounded to 8 bits.
            prop_assert!(steps_apart(&out, &want) < 1.6);
        }

        /// 4:2:0 and 4:2:2 video: as if the picture itself had been resized.
        #[test]
        fn video_formats_match_the_picture(
            format in prop::sample::select(vec![
                PixelFormat::Nv12, PixelFormat::I420, PixelFormat::Yuy2, PixelFormat::Uyvy,
            ]),
            full_range: bool,
            matrix in prop::sample::select(vec![YuvMatrix::Bt601, YuvMatrix::Bt709, YuvMatrix::Bt2020]),
            (sw, sh) in (40_usize..90, 40_usize..90), (w, h) in (16_usize..64, 16_usize..64),
        ) {
            let colorimetry = Colorimetry { matrix, full_range };
            let (luma, u, v) = encode(sw, sh, colorimetry);
            let uv: Vec<u8> = u.iter().zip(&v).flat_map(|(&u, &v)| [u, v]).collect();
            let half = sw.div_ceil(2);
            let luma = Plane { data: &luma, stride: sw };
            // 4:2:2 has its own chroma for each row; that of 4:2:0 comes twice here.
            let packed: Vec<u8> = (0..sh).flat_map(|y| (0..half).map(move |x| (x, y))).flat_map(|(x, y)| {
                let row = &luma.data[y * sw..][..sw];
                let (left, right) = (row[2 * x], row[(2 * x + 1).min(sw - 1)]);
                let chroma = (y / 2) * half + x;
                if format == PixelFormat::Yuy2 {
                    [left, u[chroma], right, v[chroma]]
                } else {
                    [u[chroma], left, v[chroma], right]
                }
            }).collect();
            let planes = match format {
                PixelFormat::Nv12 => vec![luma, Plane { data: &uv, stride: 2 * half }],
                PixelFormat::I420 => {
                    vec![luma, Plane { data: &u, stride: half }, Plane { data: &v, stride: half }]
                }
                _ => vec![Plane { data: &packed, stride: 4 * half }],
            };
            let frame =
                FrameView::new(format, sw as u32, sh as u32, &planes, colorimetry).unwrap();
            let mut out = Vec::new();
            Preprocessor::new(PLAIN).run(&frame, w as u32, h as u32, &mut out).unwrap();
            let want: Vec<f64> = (0..3).flat_map(|c| {
                slow_resize(&|x, y| {
                    picture(c, (x as f64 + 0.5) / sw as f64, (y as f64 + 0.5) / sh as f64)
                }, sw, sh, w, h)
            }).collect();
            // Encoding rounds each component by half a step, resizing by up to one more; the blue
            // of limited-range video multiplies the chroma's share by 2.03.
            let worst = steps_apart(&out, &want);
            prop_assert!(worst < 5.0, "{worst}");
            let sum: f64 = out.iter().zip(&want).map(|(g, w)| (f64::from(*g) * 255.0 - w).abs()).sum();
            prop_assert!(sum / (want.len() as f64) < 1.2);
        }
    }
}
