//! Frames through the fake driver, the real kernels on the CPU, and a fake TensorRT that runs the smallest network.

use std::ffi::c_void;
use std::sync::Arc;

use crate::cuda::testing::Pair;
use crate::cuda::{DeviceFrame, DevicePlane};
use crate::embed::{EmbeddingMap, FrameEmbedder, InputSize};
use crate::frame::{Colorimetry, FrameView, PixelFormat, Plane, YuvMatrix};

const SIZE: InputSize = InputSize::ShortSide(64);
const VIDEO: Colorimetry = Colorimetry { matrix: YuvMatrix::Bt709, full_range: false };
const FORMATS: [PixelFormat; 9] = [
    PixelFormat::Nv12,
    PixelFormat::I420,
    PixelFormat::Rgba,
    PixelFormat::Bgra,
    PixelFormat::Rgbx,
    PixelFormat::Bgrx,
    PixelFormat::Rgb,
    PixelFormat::Bgr,
    PixelFormat::Gray8,
];

/// A frame with padding behind its rows.
struct Picture {
    format: PixelFormat,
    size: (u32, u32),
    planes: Vec<(Vec<u8>, usize)>,
}

impl Picture {
    fn new(format: PixelFormat, size: (u32, u32), padding: usize, seed: usize) -> Self {
        let plane = |index| {
            let (row, rows) = format.plane_layout(index, size.0, size.1);
            let stride = row + padding * (index + 1);
            let byte = |i: usize| ((i / stride / 9 + i % stride / 13 + seed) * 37 % 251) as u8;
            ((0..stride * (rows - 1) + row).map(byte).collect(), stride)
        };
        Self { format, size, planes: (0..format.planes()).map(plane).collect() }
    }

    fn on_host<T>(&self, see: impl FnOnce(&FrameView<'_>) -> T) -> T {
        let planes: Vec<_> =
            self.planes.iter().map(|(data, stride)| Plane { data, stride: *stride }).collect();
        see(&FrameView::new(self.format, self.size.0, self.size.1, &planes, VIDEO).unwrap())
    }

    /// The planes in memory of another context.
    fn upload(&self, pair: &Pair) -> Vec<DevicePlane> {
        let upload = |(data, stride): &(Vec<u8>, usize)| DevicePlane {
            address: pair.fakes.cuda.foreign_memory(data),
            len: data.len(),
            stride: *stride,
        };
        self.planes.iter().map(upload).collect()
    }

    fn on_device(&self, planes: &[DevicePlane]) -> DeviceFrame<'static> {
        // SAFETY: the memory is freed after the frame's last use.
        unsafe { DeviceFrame::new(self.format, self.size, planes, VIDEO).unwrap() }
    }

    fn in_egl_image(
        &self,
        pair: &Pair,
        planes: &[DevicePlane],
        hidden: bool,
    ) -> DeviceFrame<'static> {
        let places: Vec<_> = planes.iter().map(|plane| (plane.address, plane.stride)).collect();
        let pitches: Vec<_> = planes.iter().map(|plane| plane.stride).collect();
        let image = pair.fakes.cuda.egl_image(self.size, &places, hidden) as *mut c_void;
        // SAFETY: as above.
        unsafe {
            DeviceFrame::from_egl_image(self.format, self.size, image, &pitches, VIDEO).unwrap()
        }
    }
}

fn free(pair: &Pair, planes: &[DevicePlane]) {
    for plane in planes {
        pair.fakes.cuda.free(plane.address);
    }
}

fn embedders(pair: &Pair) -> (FrameEmbedder, FrameEmbedder) {
    (FrameEmbedder::new(Arc::clone(&pair.gpu)), FrameEmbedder::new(Arc::clone(&pair.cpu)))
}

fn count(calls: &[String], name: &str) -> usize {
    calls.iter().filter(|call| call.as_str() == name).count()
}

fn distance(one: &EmbeddingMap, other: &EmbeddingMap) -> f32 {
    let sizes = |map: &EmbeddingMap| (map.height, map.width, map.dim, map.stride);
    assert_eq!(sizes(one), sizes(other));
    one.data.iter().zip(&other.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_frame_gives_on_the_gpu_what_it_gives_on_the_cpu() {
    let Some(pair) = Pair::new(false) else { return };
    let (mut gpu, mut cpu) = embedders(&pair);
    for (seed, format) in FORMATS.into_iter().enumerate() {
        let picture = Picture::new(format, (97, 75), 5, seed);
        picture.on_host(|view| {
            gpu.run(view, SIZE).unwrap();
            cpu.run(view, SIZE).unwrap();
        });
        let apart = distance(gpu.map(), cpu.map());
        assert!(apart < 1e-4, "{format}: {apart}");
    }
    let calls = pair.fakes.cuda.take_calls();
    // One copy of the frame there; the embeddings and the check of their lengths back; tables are written once a size.
    assert!(count(&calls, "cuLaunchKernel") >= 3 * FORMATS.len());
    assert_eq!(count(&calls, "cuMemcpyDtoHAsync"), 2 * FORMATS.len());
}

#[test]
fn a_frame_in_memory_of_another_context_gives_the_same_embeddings_and_is_not_seen_by_the_host() {
    let Some(pair) = Pair::new(false) else { return };
    let (mut host, _) = embedders(&pair);
    let (mut device, _) = embedders(&pair);
    for format in FORMATS {
        for (seed, (size, padding)) in
            [((64, 64), 0), ((97, 75), 3), ((1, 1), 1), ((131, 65), 64)].into_iter().enumerate()
        {
            let picture = Picture::new(format, size, padding, seed);
            picture.on_host(|view| host.run(view, SIZE).unwrap());
            let planes = picture.upload(&pair);
            let frame = picture.on_device(&planes);
            // Once to prepare tables, which are uploaded.
            assert!(device.run_device(&frame, SIZE).unwrap().is_some());
            pair.fakes.cuda.take_calls();
            assert!(device.run_device(&frame, SIZE).unwrap().is_some());
            let calls = pair.fakes.cuda.take_calls();
            free(&pair, &planes);
            assert_eq!(host.map(), device.map(), "{format} {size:?}");
            assert_eq!(count(&calls, "cuMemcpy3DPeerAsync"), format.planes());
            assert_eq!(count(&calls, "cuMemcpyHtoDAsync"), 0);
        }
    }
}

#[test]
fn a_frame_in_an_egl_image_gives_the_same_embeddings() {
    let Some(pair) = Pair::new(false) else { return };
    let (mut host, _) = embedders(&pair);
    let (mut device, _) = embedders(&pair);
    for format in [PixelFormat::Nv12, PixelFormat::I420, PixelFormat::Rgba] {
        for hidden in [false, true] {
            let picture = Picture::new(format, (97, 75), 7, 2);
            picture.on_host(|view| host.run(view, SIZE).unwrap());
            let planes = picture.upload(&pair);
            let frame = picture.in_egl_image(&pair, &planes, hidden);
            pair.fakes.cuda.take_calls();
            assert!(device.run_device(&frame, SIZE).unwrap().is_some());
            let calls = pair.fakes.cuda.take_calls();
            free(&pair, &planes);
            assert_eq!(host.map(), device.map(), "{format}, hidden: {hidden}");
            assert_eq!(count(&calls, "cuMemcpy2DAsync"), format.planes());
            for call in ["cuGraphicsEGLRegisterImage", "cuGraphicsUnregisterResource"] {
                assert_eq!(count(&calls, call), 1, "{call}");
            }
        }
    }
}

#[test]
fn an_egl_image_of_another_size_is_an_error() {
    let Some(pair) = Pair::new(true) else { return };
    let (mut device, _) = embedders(&pair);
    let picture = Picture::new(PixelFormat::Nv12, (64, 64), 0, 0);
    let planes = picture.upload(&pair);
    let image = pair.fakes.cuda.egl_image((32, 64), &[(planes[0].address, 64)], true);
    // SAFETY: nothing is read from it.
    let frame = unsafe {
        let image = image as *mut c_void;
        DeviceFrame::from_egl_image(PixelFormat::Nv12, (64, 64), image, &[64, 64], VIDEO).unwrap()
    };
    let error = device.run_device(&frame, SIZE).unwrap_err().to_string();
    assert!(error.contains("it has 32x64 pixels, the frame 64x64"), "{error}");
    free(&pair, &planes);
}

#[test]
fn planes_that_are_not_there_are_an_error_and_break_nothing() {
    let Some(pair) = Pair::new(true) else { return };
    let (mut device, _) = embedders(&pair);
    let picture = Picture::new(PixelFormat::Nv12, (64, 64), 0, 0);
    let planes = picture.upload(&pair);
    // What the caller says fits, but the memory ends before.
    let long = DevicePlane { len: 64 * 100, stride: 100, ..planes[1] };
    let freed = DevicePlane { address: 4096, ..planes[1] };
    for wrong in [long, freed] {
        let frame = picture.on_device(&[planes[0], wrong]);
        let error = device.run_device(&frame, SIZE).unwrap_err().to_string();
        assert!(error.contains("lie in no allocation that the driver knows"), "{error}");
    }
    // And what does not even fit by its own numbers is refused at once.
    let short = DevicePlane { len: 64 * 31, ..planes[1] };
    // SAFETY: nothing is read from it.
    let refused =
        unsafe { DeviceFrame::new(PixelFormat::Nv12, (64, 64), &[planes[0], short], VIDEO) };
    assert!(refused.is_err());
    assert!(device.run_device(&picture.on_device(&planes), SIZE).unwrap().is_some());
    assert_eq!(pair.gpu.backend_name(), "tensorrt", "the CPU would not make them right");
    free(&pair, &planes);
}

#[test]
fn a_gpu_that_breaks_is_reset_and_the_frame_done_again() {
    let Some(pair) = Pair::new(false) else { return };
    let (mut device, mut cpu) = embedders(&pair);
    let picture = Picture::new(PixelFormat::Nv12, (64, 64), 0, 0);
    let planes = picture.upload(&pair);
    let frame = picture.on_device(&planes);
    device.run_device(&frame, SIZE).unwrap();
    pair.fakes.cuda.fail_once("cuLaunchKernel", 700);
    assert!(device.run_device(&frame, SIZE).unwrap().is_some());
    assert_eq!(count(&pair.fakes.cuda.take_calls(), "cuDevicePrimaryCtxReset"), 1);
    picture.on_host(|view| cpu.run(view, SIZE).unwrap());
    assert!(distance(device.map(), cpu.map()) < 1e-4);
    free(&pair, &planes);
}

#[test]
fn where_the_gpu_is_lost_the_cpu_asks_for_the_frame() {
    let Some(pair) = Pair::new(true) else { return };
    let (mut device, mut cpu) = embedders(&pair);
    let (mut other, _) = embedders(&pair);
    let picture = Picture::new(PixelFormat::I420, (64, 64), 0, 0);
    let planes = picture.upload(&pair);
    let frame = picture.on_device(&planes);
    assert!(device.run_device(&frame, SIZE).unwrap().is_some());
    picture.on_host(|view| other.run(view, SIZE).unwrap());
    pair.fakes.cuda.set("cuLaunchKernel", 719);
    assert!(device.run_device(&frame, SIZE).unwrap().is_none());
    assert_ne!(pair.gpu.backend_name(), "tensorrt");
    picture.on_host(|view| {
        device.run(view, SIZE).unwrap();
        other.run(view, SIZE).unwrap();
        cpu.run(view, SIZE).unwrap();
    });
    // It may be another program on the CPU.
    assert!(distance(device.map(), cpu.map()) < 1e-4);
    assert_eq!(device.map(), other.map());
    free(&pair, &planes);
}

#[test]
fn without_leave_to_use_the_cpu_a_lost_gpu_is_an_error() {
    let Some(pair) = Pair::new(false) else { return };
    let (mut device, _) = embedders(&pair);
    let picture = Picture::new(PixelFormat::Gray8, (64, 64), 0, 0);
    let planes = picture.upload(&pair);
    pair.fakes.cuda.set("cuLaunchKernel", 719);
    let error = device.run_device(&picture.on_device(&planes), SIZE).unwrap_err().to_string();
    assert!(error.contains("failed again after it was reset"), "{error}");
    free(&pair, &planes);
}

#[test]
fn formats_without_kernels_are_prepared_on_the_cpu() {
    let Some(pair) = Pair::new(false) else { return };
    let (mut gpu, mut cpu) = embedders(&pair);
    let picture = Picture::new(PixelFormat::Yuy2, (64, 64), 0, 0);
    picture.on_host(|view| {
        gpu.run(view, SIZE).unwrap();
        cpu.run(view, SIZE).unwrap();
    });
    assert!(distance(gpu.map(), cpu.map()) < 1e-4);
    assert_eq!(pair.gpu.backend_name(), "tensorrt", "the network still runs on the GPU");
    let planes = picture.upload(&pair);
    assert!(gpu.run_device(&picture.on_device(&planes), SIZE).unwrap().is_none());
    free(&pair, &planes);
}

#[test]
fn streams_share_the_memory_of_the_network() {
    let Some(pair) = Pair::new(false) else { return };
    let picture = Picture::new(PixelFormat::Rgb, (64, 64), 0, 0);
    for _ in 0..6 {
        let (mut gpu, _) = embedders(&pair);
        picture.on_host(|view| gpu.run(view, SIZE).unwrap());
    }
    let calls = pair.fakes.nvinfer.take_calls();
    let contexts = calls.iter().filter(|call| call.starts_with("createExecutionContext")).count();
    assert_eq!(contexts, 1, "{calls:?}");
}
