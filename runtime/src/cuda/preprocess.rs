//! Frame planes to network input on the GPU. Twin of [`frame::Preprocessor`](crate::frame::Preprocessor).
//!
//! The planes are resized to the bytes that the CPU gives; the values made of them differ from the
//! CPU's by rounding alone, less than `1e-5`.
#![allow(unsafe_code)] // Launches of kernels and asynchronous copies.

use std::sync::Arc;

use conceptseg_tensorrt::cuda::{Arg, DeviceBuffer, Function, PinnedBuffer, Stream};

use super::device_frame::{DeviceFrame, DevicePlanes};
use super::resize::Axis;
use super::{CudaPathError, Kernels};
use crate::frame::{Colorimetry, FrameView, MAX_SIDE, Normalization, PixelFormat, Plane, YuvToRgb};

const NOT_PREPARED: CudaPathError = CudaPathError::NotPrepared { stage: "the network's input" };
/// Threads of a block.
const BLOCK: u32 = 256;
/// Rows begin at multiples of this many bytes, so that warps read whole sectors.
const ALIGN: usize = 32;
/// Most blocks along the second axis of a grid.
const MAX_GRID_Y: usize = 65_535;

/// What is to be known of a frame before its pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrameLayout {
    /// Memory layout.
    pub format: PixelFormat,
    /// How its numbers are to be read.
    pub colorimetry: Colorimetry,
    /// Width and height in pixels.
    pub size: (u32, u32),
}

impl From<&FrameView<'_>> for FrameLayout {
    fn from(frame: &FrameView<'_>) -> Self {
        let size = (frame.width(), frame.height());
        Self { format: frame.format(), colorimetry: frame.colorimetry(), size }
    }
}

impl From<&DeviceFrame<'_>> for FrameLayout {
    fn from(frame: &DeviceFrame<'_>) -> Self {
        frame.layout()
    }
}

/// What a frame must keep for prepared buffers and tables to suit it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Geometry {
    frame: FrameLayout,
    /// Size of the network's input.
    input: (u32, u32),
    batch: usize,
}

/// A plane in the staging memory: rows of whole words. The two chroma planes of I420 share one,
/// in which a row of V follows the row of U.
#[derive(Debug, Clone, Copy)]
struct Staged {
    /// Source planes side by side in a row, first and number.
    planes: (usize, usize),
    /// Rows.
    rows: usize,
    /// Bytes from row to row.
    pitch: usize,
    /// First byte of the plane within a staged frame.
    offset: usize,
    /// First byte of the plane within a frame whose rows are resized.
    resized: usize,
}

/// Where the tables of an axis lie in the table buffer, in elements.
#[derive(Debug, Clone, Copy)]
struct Table {
    bounds: usize,
    weights: usize,
    window: usize,
    precision: u8,
}

/// Buffers and tables for one geometry.
#[derive(Debug)]
struct Prepared {
    geometry: Geometry,
    planes: Vec<Staged>,
    /// Bytes of a staged frame, and of one whose rows are resized.
    bytes: (usize, usize),
    /// Nothing as long as no frame came in memory of the host.
    staging: Option<PinnedBuffer<u8>>,
    frame: DeviceBuffer<u8>,
    resized: DeviceBuffer<u8>,
    tables: DeviceBuffer<i32>,
    /// Vertical and horizontal table of each staged plane.
    axes: Vec<(Table, Table)>,
    /// Nothing where somebody else's is filled.
    input: Option<Arc<DeviceBuffer<f32>>>,
}

/// Uploads frames and turns them into network input.
#[derive(Debug)]
pub struct PreprocessStage {
    rows: Function,
    packed: Function,
    video: Function,
    scale: [f32; 3],
    offset: [f32; 3],
    prepared: Option<Prepared>,
}

impl PreprocessStage {
    /// A stage for a network with these channel statistics.
    ///
    /// # Errors
    /// [`CudaPathError`] when a kernel is missing.
    pub fn new(kernels: &Kernels, normalization: Normalization) -> Result<Self, CudaPathError> {
        let (scale, offset) = normalization.affine();
        Ok(Self {
            rows: kernels.function("preprocess_rows")?,
            packed: kernels.function("preprocess_packed")?,
            video: kernels.function("preprocess_video")?,
            scale,
            offset,
            prepared: None,
        })
    }

    /// Makes buffers and tables for `batch` frames like `frame` and an input of `input` (width,
    /// height), unless they are there. Answers whether they were made: graphs that were captured
    /// before are void then. The stream must be idle.
    ///
    /// # Errors
    /// [`CudaPathError`] when the input has a side of 0 or above [`MAX_SIDE`], or a batch and height
    /// beyond what a launch can take, or memory is short.
    pub fn prepare(
        &mut self,
        stream: &Arc<Stream>,
        frame: impl Into<FrameLayout>,
        input: (u32, u32),
        batch: usize,
    ) -> Result<bool, CudaPathError> {
        let made = self.prepare_for(stream, frame.into(), input, batch)?;
        let prepared = self.prepared.as_mut().ok_or(NOT_PREPARED)?;
        if prepared.input.is_none() {
            let numbers = batch * 3 * input.0 as usize * input.1 as usize;
            prepared.input = Some(Arc::new(DeviceBuffer::new(stream.context(), numbers)?));
        }
        Ok(made)
    }

    /// The same without an input of its own, for [`PreprocessStage::enqueue_into`].
    pub(super) fn prepare_for(
        &mut self,
        stream: &Arc<Stream>,
        frame: FrameLayout,
        input: (u32, u32),
        batch: usize,
    ) -> Result<bool, CudaPathError> {
        // Packed video would be taken for grey below.
        if matches!(frame.format, PixelFormat::Yuy2 | PixelFormat::Uyvy) {
            return Err(CudaPathError::Format { format: frame.format });
        }
        let geometry = Geometry { frame, input, batch };
        if self.prepared.as_ref().is_some_and(|prepared| prepared.geometry == geometry) {
            return Ok(false);
        }
        let (w, h) = input;
        for (what, value, max) in [
            ("width of the network input", w as usize, MAX_SIDE as usize),
            ("height of the network input", h as usize, MAX_SIDE as usize),
            ("rows of the network input in a batch", h as usize * batch, MAX_GRID_Y),
        ] {
            CudaPathError::check_size(what, value, max)?;
        }
        // What is there is freed first: both may not fit.
        self.prepared = None;
        self.prepared = Some(Prepared::new(stream, geometry)?);
        Ok(true)
    }

    /// Packs the rows of a frame into the pinned memory that the next upload takes, as frame `index`
    /// of the batch. No upload may be under way.
    ///
    /// # Errors
    /// [`CudaPathError`] when the frame is not what was prepared for.
    pub fn stage(&mut self, index: usize, frame: &FrameView<'_>) -> Result<(), CudaPathError> {
        let prepared = self.prepared.as_mut().ok_or(NOT_PREPARED)?;
        let Geometry { frame: layout, batch, .. } = prepared.geometry;
        if FrameLayout::from(frame) != layout || index >= batch {
            return Err(NOT_PREPARED);
        }
        let FrameLayout { format, size, .. } = layout;
        let bytes = prepared.bytes.0;
        let staging = match &mut prepared.staging {
            Some(staging) => staging,
            none => none.insert(PinnedBuffer::new(prepared.frame.context(), bytes * batch)?),
        };
        let staging = &mut staging.as_mut_slice()[index * bytes..][..bytes];
        for plane in &prepared.planes {
            let target = &mut staging[plane.offset..][..plane.rows * plane.pitch];
            let share = plane.pitch / plane.planes.1;
            for i in 0..plane.planes.1 {
                let source = plane.planes.0 + i;
                let (row, rows) = format.plane_layout(source, size.0, size.1);
                let Plane { data, stride } = frame.plane(source);
                if share == stride && plane.planes.1 == 1 && data.len() >= rows * stride {
                    target.copy_from_slice(&data[..rows * stride]);
                    continue;
                }
                for (to, from) in target.chunks_exact_mut(plane.pitch).zip(data.chunks(stride)) {
                    to[i * share..][..row].copy_from_slice(&from[..row]);
                }
            }
        }
        Ok(())
    }

    /// The network's input, `[batch, 3, h, w]`, which [`PreprocessStage::enqueue`] fills.
    ///
    /// # Errors
    /// [`CudaPathError::NotPrepared`].
    pub fn input(&self) -> Result<&Arc<DeviceBuffer<f32>>, CudaPathError> {
        self.prepared.as_ref().and_then(|prepared| prepared.input.as_ref()).ok_or(NOT_PREPARED)
    }

    /// Puts the upload of the staged frames and the kernels into the stream.
    ///
    /// # Errors
    /// [`CudaPathError`].
    ///
    /// # Safety
    /// The stage must neither be dropped, prepared for another geometry nor given frames before the
    /// stream is done, nor before the last launch of a graph captured from this.
    pub unsafe fn enqueue(&self, stream: &Arc<Stream>) -> Result<(), CudaPathError> {
        // SAFETY: the caller keeps the stage, which keeps the input.
        unsafe { self.enqueue_into(stream, None, self.input()?) }
    }

    /// The same with another input to fill, and with a frame that is on the GPU already in place of the staged ones.
    ///
    /// # Errors
    /// [`CudaPathError`], also where the frame or the input is not what was prepared for.
    ///
    /// # Safety
    /// As [`PreprocessStage::enqueue`]; the planes and the input, too, live until the stream is done.
    pub(super) unsafe fn enqueue_into(
        &self,
        stream: &Arc<Stream>,
        on_device: Option<(&DeviceFrame<'_>, &DevicePlanes)>,
        input: &DeviceBuffer<f32>,
    ) -> Result<(), CudaPathError> {
        let prepared = self.prepared.as_ref().ok_or(NOT_PREPARED)?;
        let Geometry { input: (w, h), batch, .. } = prepared.geometry;
        if input.len() != batch * 3 * w as usize * h as usize {
            return Err(NOT_PREPARED);
        }
        // SAFETY: the caller keeps frame and buffers, and does not write to the pinned one meanwhile.
        unsafe {
            match (on_device, &prepared.staging) {
                (Some((frame, planes)), _) => prepared.copy(stream, frame, planes)?,
                (None, Some(staging)) => {
                    prepared.frame.upload_async(stream, staging, staging.len())?;
                }
                (None, None) => return Err(NOT_PREPARED),
            }
        }
        for (plane, (vertical, _)) in prepared.planes.iter().zip(&prepared.axes) {
            // SAFETY: the tables, planes and sizes were made for each other.
            unsafe { self.resize_rows(stream, prepared, plane, vertical)? };
        }
        // SAFETY: as above.
        unsafe { self.convert(stream, prepared, input) }
    }

    /// Vertical pass over one plane.
    unsafe fn resize_rows(
        &self,
        stream: &Arc<Stream>,
        prepared: &Prepared,
        plane: &Staged,
        axis: &Table,
    ) -> Result<(), CudaPathError> {
        let words = (plane.pitch / 4) as u32;
        let (_, height) = prepared.geometry.input;
        let arguments = [
            Arg::Buffer(prepared.frame.address() + plane.offset as u64),
            prepared.table(axis.bounds),
            prepared.table(axis.weights),
            Arg::Buffer(prepared.resized.address() + plane.resized as u64),
            Arg::I32(words as i32),
            Arg::I32(height as i32),
            Arg::I32(axis.window as i32),
            Arg::I32(i32::from(axis.precision)),
            Arg::I32((prepared.bytes.0 / 4) as i32),
            Arg::I32((prepared.bytes.1 / 4) as i32),
        ];
        let grid = [words.div_ceil(BLOCK), height * prepared.geometry.batch as u32, 1];
        // SAFETY: the arguments are those of the kernel, and the buffers hold what it reads and writes:
        // `bounds` name rows of the plane, and the grid covers `height` rows of `words`.
        unsafe { self.rows.launch(stream, grid, [BLOCK, 1, 1], &arguments)? };
        Ok(())
    }

    /// Horizontal pass over all planes, conversion and normalisation.
    unsafe fn convert(
        &self,
        stream: &Arc<Stream>,
        prepared: &Prepared,
        input: &DeviceBuffer<f32>,
    ) -> Result<(), CudaPathError> {
        let Geometry { frame, input: (width, height), batch } = prepared.geometry;
        let FrameLayout { format, colorimetry, .. } = frame;
        let convert = YuvToRgb::new(colorimetry);
        let source =
            |plane: &Staged| Arg::Buffer(prepared.resized.address() + plane.resized as u64);
        let numbers = |list: &[usize]| list.iter().map(|&v| Arg::I32(v as i32)).collect::<Vec<_>>();
        let floats = |list: &[f32]| list.iter().map(|&v| Arg::F32(v)).collect::<Vec<_>>();
        let sizes = [width as usize, height as usize];
        let mut arguments = Vec::with_capacity(32);
        let function = match (prepared.planes.as_slice(), prepared.axes.as_slice()) {
            ([luma, chroma], [(_, luma_axis), (_, chroma_axis)]) => {
                // Bytes between two samples, and from U to V.
                let (step, second) = match format {
                    PixelFormat::Nv12 => (2, 1),
                    _ => (1, chroma.pitch / 2),
                };
                arguments.extend([source(luma), source(chroma)]);
                for axis in [luma_axis, chroma_axis] {
                    arguments.extend([prepared.table(axis.bounds), prepared.table(axis.weights)]);
                }
                arguments.push(Arg::Buffer(input.address()));
                arguments.extend(numbers(&sizes));
                arguments.extend(numbers(&[luma.pitch, chroma.pitch]));
                arguments.extend(numbers(&[
                    usize::from(luma_axis.precision),
                    usize::from(chroma_axis.precision),
                    step,
                    second,
                ]));
                arguments.extend(floats(&convert.coefficients()));
                &self.video
            }
            ([plane, ..], [(_, axis), ..]) => {
                let (step, rgb) = match format {
                    PixelFormat::Rgb => (3, [0, 1, 2]),
                    PixelFormat::Bgr => (3, [2, 1, 0]),
                    PixelFormat::Rgba | PixelFormat::Rgbx => (4, [0, 1, 2]),
                    PixelFormat::Bgra | PixelFormat::Bgrx => (4, [2, 1, 0]),
                    _ => (1, [0, 0, 0]),
                };
                let (gain, bias) = match format {
                    PixelFormat::Gray8 => (convert.coefficients()[0], convert.coefficients()[1]),
                    _ => (1.0, 0.0),
                };
                arguments.extend([source(plane), prepared.table(axis.bounds)]);
                arguments.extend([prepared.table(axis.weights), Arg::Buffer(input.address())]);
                arguments.extend(numbers(&sizes));
                arguments.extend(numbers(&[plane.pitch, usize::from(axis.precision), step]));
                arguments.extend(numbers(&rgb));
                arguments.extend(floats(&[gain, bias]));
                &self.packed
            }
            _ => return Err(NOT_PREPARED),
        };
        arguments.extend(floats(&self.scale));
        arguments.extend(floats(&self.offset));
        arguments.extend(numbers(&[prepared.bytes.1]));
        let grid = [width.div_ceil(BLOCK), height * batch as u32, 1];
        // SAFETY: the arguments are those of the kernel, and the buffers hold what it reads and writes:
        // `bounds` name samples of the rows, and the grid covers the input.
        unsafe { function.launch(stream, grid, [BLOCK, 1, 1], &arguments)? };
        Ok(())
    }
}

impl Prepared {
    fn new(stream: &Arc<Stream>, geometry: Geometry) -> Result<Self, CudaPathError> {
        let Geometry { frame, input: (w, h), batch } = geometry;
        let FrameLayout { format, size: (width, height), .. } = frame;
        let mut planes = Vec::new();
        let mut bytes = (0, 0);
        for (first, count) in match format {
            PixelFormat::Nv12 => vec![(0, 1), (1, 1)],
            PixelFormat::I420 => vec![(0, 1), (1, 2)],
            _ => vec![(0, 1)],
        } {
            let (row, rows) = format.plane_layout(first, width, height);
            let pitch = row.next_multiple_of(ALIGN) * count;
            let (offset, resized) = bytes;
            planes.push(Staged { planes: (first, count), rows, pitch, offset, resized });
            bytes = (offset + rows * pitch, resized + h as usize * pitch);
        }
        CudaPathError::check_size("bytes of a frame", bytes.0.max(bytes.1), i32::MAX as usize)?;

        // Half of the last chroma sample of an odd side lies outside of the frame.
        let half = |side: u32| (side.div_ceil(2), f64::from(side) / 2.0);
        let whole = |side: u32| (side, f64::from(side));
        let mut tables = Vec::new();
        let mut axes = Vec::new();
        for plane in &planes {
            let used = |side| if plane.planes.0 == 0 { whole(side) } else { half(side) };
            let (rows, used_rows) = used(height);
            let (columns, used_columns) = used(width);
            let vertical = Axis::new(rows, used_rows, h);
            let horizontal = Axis::new(columns, used_columns, w);
            let columns = horizontal.transposed();
            axes.push((
                add(&mut tables, &vertical, &vertical.weights),
                add(&mut tables, &horizontal, &columns),
            ));
        }
        let context = stream.context();
        let device = DeviceBuffer::new(context, tables.len())?;
        device.write(stream, &tables)?;
        Ok(Self {
            geometry,
            planes,
            bytes,
            staging: None,
            frame: DeviceBuffer::new(context, bytes.0 * batch)?,
            resized: DeviceBuffer::new(context, bytes.1 * batch)?,
            tables: device,
            axes,
            input: None,
        })
    }

    /// Puts copies of the planes of a frame on the GPU into the stream.
    ///
    /// # Safety
    /// The planes live until the stream is done.
    unsafe fn copy(
        &self,
        stream: &Arc<Stream>,
        frame: &DeviceFrame<'_>,
        planes: &DevicePlanes,
    ) -> Result<(), CudaPathError> {
        let FrameLayout { format, size: (width, height), .. } = self.geometry.frame;
        if frame.layout() != self.geometry.frame || self.geometry.batch != 1 {
            return Err(NOT_PREPARED);
        }
        for plane in &self.planes {
            let share = plane.pitch / plane.planes.1;
            for i in 0..plane.planes.1 {
                let source = plane.planes.0 + i;
                let to = (plane.offset + i * share, plane.pitch);
                let rows = format.plane_layout(source, width, height);
                // SAFETY: the caller keeps both sides.
                unsafe { self.frame.copy_rows_async(stream, to, planes.plane(source)?, rows)? };
            }
        }
        Ok(())
    }

    fn table(&self, element: usize) -> Arg {
        Arg::Buffer(self.tables.address() + 4 * element as u64)
    }
}

/// Appends the tables of an axis.
fn add(tables: &mut Vec<i32>, axis: &Axis, weights: &[i32]) -> Table {
    let bounds = tables.len();
    tables.extend(&axis.bounds);
    let place = tables.len();
    tables.extend(weights);
    Table { bounds, weights: place, window: axis.window, precision: axis.precision }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cuda::testing::{TestGpu, gpus};
    use crate::frame::{Preprocessor, YuvMatrix};
    use crate::testdata;

    const IMAGENET: Normalization =
        Normalization { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let step = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..len).map(step).collect()
    }

    /// Runs the stage on a batch and compares each frame with the CPU.
    fn compare(gpu: &TestGpu, frames: &[FrameView<'_>], (w, h): (u32, u32)) {
        let mut stage = PreprocessStage::new(&gpu.kernels, IMAGENET).unwrap();
        assert!(stage.prepare(&gpu.stream, &frames[0], (w, h), frames.len()).unwrap());
        for (i, frame) in frames.iter().enumerate() {
            stage.stage(i, frame).unwrap();
        }
        // SAFETY: the stage lives until the stream is done.
        unsafe { stage.enqueue(&gpu.stream).unwrap() };
        let mut got = vec![f32::NAN; stage.input().unwrap().len()];
        stage.input().unwrap().read(&gpu.stream, &mut got).unwrap();
        let mut want = Vec::new();
        for (i, frame) in frames.iter().enumerate() {
            Preprocessor::new(IMAGENET).run(frame, w, h, &mut want).unwrap();
            let got = &got[i * want.len()..][..want.len()];
            let apart = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-5, "{}: {:?} differs by {apart}", gpu.name, frame.format());
        }
    }

    /// Planes of a frame with `padding` bytes behind each row but the last.
    fn planes(
        format: PixelFormat,
        (w, h): (u32, u32),
        padding: usize,
        seed: u64,
    ) -> Vec<(Vec<u8>, usize)> {
        let layout = |i| format.plane_layout(i, w, h);
        let plane = |i| {
            let (row, rows) = layout(i);
            let stride = row + padding * (i + 1);
            (noise(stride * (rows - 1) + row, seed ^ i as u64), stride)
        };
        (0..format.planes()).map(plane).collect()
    }

    #[test]
    fn every_format_stride_and_size_gives_the_input_of_the_cpu() {
        for gpu in gpus() {
            let config = ProptestConfig::with_cases(48);
            proptest!(config, |(
                format in prop::sample::select(PixelFormat::ALL[..9].to_vec()),
                matrix in prop::sample::select(vec![YuvMatrix::Bt601, YuvMatrix::Bt709, YuvMatrix::Bt2020]),
                full_range: bool,
                size in (1_u32..70, 1_u32..50),
                input in (1_u32..50, 1_u32..40),
                padding in 0_usize..9,
                batch in 1_usize..3,
                seed: u64,
            )| {
                let colorimetry = Colorimetry { matrix, full_range };
                let data: Vec<_> = (0..batch as u64).map(|i| planes(format, size, padding, seed ^ (i << 8))).collect();
                let frames: Vec<_> = data.iter().map(|planes| {
                    let planes: Vec<_> =
                        planes.iter().map(|(data, stride)| Plane { data, stride: *stride }).collect();
                    FrameView::new(format, size.0, size.1, &planes, colorimetry).unwrap()
                }).collect();
                compare(&gpu, &frames, input);
            });
        }
    }

    #[test]
    fn a_real_frame_gives_the_input_of_the_cpu() {
        let Some(path) = testdata::shared("data/davis/JPEGImages/480p/blackswan/00000.jpg") else {
            println!("skipped: no real frame");
            return;
        };
        let image = image::open(path).unwrap().into_rgb8();
        let frame = FrameView::rgb(image.width(), image.height(), image.as_raw()).unwrap();
        for gpu in gpus() {
            let input = crate::frame::network_size(frame.width(), frame.height(), 240);
            compare(&gpu, &[frame], input);
        }
    }

    #[test]
    fn another_frame_than_was_prepared_for_is_refused() {
        for gpu in gpus() {
            let mut stage = PreprocessStage::new(&gpu.kernels, IMAGENET).unwrap();
            let data = [0; 12];
            let small = FrameView::rgb(2, 1, &data).unwrap();
            let large = FrameView::rgb(2, 2, &data).unwrap();
            assert!(matches!(stage.stage(0, &small), Err(CudaPathError::NotPrepared { .. })));
            assert!(stage.prepare(&gpu.stream, &small, (8, 8), 1).unwrap());
            assert!(!stage.prepare(&gpu.stream, &small, (8, 8), 1).unwrap());
            assert!(matches!(stage.stage(0, &large), Err(CudaPathError::NotPrepared { .. })));
            assert!(matches!(stage.stage(1, &small), Err(CudaPathError::NotPrepared { .. })));
            let refused = stage.prepare(&gpu.stream, &small, (8, MAX_SIDE + 1), 1).unwrap_err();
            assert!(matches!(refused, CudaPathError::Limit { value: 16_385, .. }), "{refused}");
        }
    }
}
