//! Frames in GPU memory, through a fake CUDA driver, the real kernels on the CPU and a fake TensorRT.
//!
//! The loader looks for the driver in the environment that a process starts with, so that each test runs in a
//! child. `cudaupload` and `cudadownload` are GStreamer's own, on the fake driver.
#![allow(unsafe_code)] // Surfaces are written as NVIDIA's library lays them out.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Fixture, error_text, frame};
use conceptseg::cuda::kernels::SOURCE;
use conceptseg::embed::EmbeddingMap;
use conceptseg_tensorrt_fakes::{Fake, Fakes};
use gst::prelude::*;
use gst_check::Harness;
use gstconceptseg::meta::Embedding;

/// Names the folder with the fakes, and tells a child from its parent.
const FOLDER: &str = "CONCEPTSEG_TENSORRT";

/// What a child needs.
struct Gpu {
    fixture: Fixture,
    cuda: Fake,
}

/// In a child, the fake GPU; else runs the test of this name in a child, and answers nothing.
fn gpu(test: &str) -> Option<Gpu> {
    if let Some(folder) = std::env::var_os(FOLDER) {
        let cuda = Fake::open(&PathBuf::from(folder).join("libcuda.so.1"));
        return Some(Gpu { fixture: Fixture::new(), cuda });
    }
    let fakes = Fakes::new("10.15");
    fakes.add_kernels(SOURCE)?;
    fakes.add_media_libraries();
    let folder = fakes.folder.path();
    let child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .env("LD_LIBRARY_PATH", with_loader_path(folder))
        // GStreamer takes a device's number for its ordinal.
        .env("FAKE_CUDA", "device_base=0")
        // What nvcodec has depends on the driver, and is kept in the registry.
        .env("GST_REGISTRY", folder.join("registry.bin"))
        .output()
        .unwrap();
    let text = [child.stdout, child.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    println!("{}", text.concat());
    assert!(child.status.success(), "{test} failed in its child");
    None
}

fn with_loader_path(folder: &Path) -> std::ffi::OsString {
    let present = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&present));
    std::env::join_paths(folders).unwrap()
}

impl Gpu {
    fn options(&self, backend: &str) -> String {
        let bundle = self.fixture.bundle();
        let bundle = bundle.display();
        format!(
            "bundle={bundle} backend={backend} precision=fp32 late-policy=block threads=1 short-side=64"
        )
    }

    /// `conceptembed` behind other elements.
    fn harness(&self, before: &str, backend: &str, caps: &str) -> (Harness, gst::Bus) {
        run(&format!("{before} conceptembed {}", self.options(backend)), caps)
    }

    fn calls(&self, name: &str) -> usize {
        self.cuda.take_calls().iter().filter(|call| call.as_str() == name).count()
    }
}

/// A bin in a harness, with its messages.
fn run(line: &str, caps: &str) -> (Harness, gst::Bus) {
    let bin = gst::parse::bin_from_description(line, true).unwrap();
    common::harness(bin.upcast_ref(), caps)
}

/// Whether GStreamer has its CUDA elements; they are in a package of their own.
fn has_cuda_elements() -> bool {
    let found = gst::ElementFactory::find("cudaupload").is_some();
    if !found {
        println!("skipped: GStreamer has no cudaupload here");
    }
    found
}

fn embeddings(buffer: &gst::BufferRef) -> EmbeddingMap {
    let (embedding, _) = Embedding::from_buffer(buffer).unwrap().expect("a result");
    let mut map = EmbeddingMap::default();
    embedding.read(&mut map).unwrap();
    map
}

fn caps_of(format: &str, (width, height): (u32, u32)) -> String {
    format!("video/x-raw,format={format},width={width},height={height},framerate=25/1")
}

/// The text of the next warning.
fn warning_text(bus: &gst::Bus) -> Option<String> {
    let message = bus.pop_filtered(&[gst::MessageType::Warning])?;
    match message.view() {
        gst::MessageView::Warning(warning) => Some(warning.error().message().to_owned()),
        _ => None,
    }
}

#[test]
fn frames_in_cuda_memory_give_what_frames_in_system_memory_give() {
    let Some(gpu) = gpu("frames_in_cuda_memory_give_what_frames_in_system_memory_give") else {
        return;
    };
    if !has_cuda_elements() {
        return;
    }
    for format in ["NV12", "I420", "RGBA", "BGRA", "RGBx", "BGRx", "RGB", "BGR"] {
        for size in [(96, 72), (66, 50), (131, 76)] {
            let caps = caps_of(format, size);
            let (mut host, _) = gpu.harness("", "tensorrt", &caps);
            let (mut device, bus) =
                gpu.harness("cudaupload ! video/x-raw(memory:CUDAMemory) !", "tensorrt", &caps);
            device.push_and_pull(frame(&caps, 0)).unwrap();
            gpu.cuda.take_calls();
            let found = device.push_and_pull(frame(&caps, 1)).unwrap();
            let calls = gpu.cuda.take_calls();
            let count = |name: &str| calls.iter().filter(|call| call.as_str() == name).count();
            let planes = [("NV12", 2), ("I420", 3)];
            let planes = planes.iter().find(|(name, _)| *name == format).map_or(1, |(_, n)| *n);
            assert_eq!(count("cuMemcpy3DPeerAsync"), planes, "{format}");
            assert_eq!(count("cuMemcpyHtoDAsync"), 0, "{format}");
            assert_eq!(found.n_memory(), 1);
            let wanted = host.push_and_pull(frame(&caps, 1)).unwrap();
            assert_eq!(embeddings(&found), embeddings(&wanted), "{format} {size:?}");
            assert_eq!(error_text(&bus), None);
        }
    }
}

#[test]
fn without_a_gpu_no_frames_in_its_memory_are_taken() {
    let Some(gpu) = gpu("without_a_gpu_no_frames_in_its_memory_are_taken") else { return };
    if !has_cuda_elements() {
        return;
    }
    let caps = caps_of("NV12", (96, 72));
    // Free to choose, the element before stays in system memory.
    let (mut harness, bus) = gpu.harness("cudaupload !", "rten", &caps);
    let found = harness.push_and_pull(frame(&caps, 1)).unwrap();
    embeddings(&found);
    assert_eq!(warning_text(&bus), None);
    // Where it is not, the reason is said.
    let (mut harness, bus) =
        gpu.harness("cudaupload ! video/x-raw(memory:CUDAMemory) !", "rten", &caps);
    assert!(harness.push(frame(&caps, 1)).is_err());
    let reason = warning_text(&bus).expect("a reason");
    assert!(reason.contains("rten on the CPU") && reason.contains("put cudadownload"), "{reason}");
}

#[test]
fn a_frame_in_cuda_memory_passes_all_elements_where_nothing_is_drawn() {
    let Some(gpu) = gpu("a_frame_in_cuda_memory_passes_all_elements_where_nothing_is_drawn") else {
        return;
    };
    if !has_cuda_elements() {
        return;
    }
    let caps = caps_of("NV12", (96, 72));
    let options = gpu.options("tensorrt");
    let line = |rest: &str| format!("cudaupload ! {rest} {options}");
    let (mut harness, bus) =
        run(&line("video/x-raw(memory:CUDAMemory) ! conceptseg draw=0"), &caps);
    let found = harness.push_and_pull(frame(&caps, 1)).unwrap();
    embeddings(&found);
    let features = |harness: &Harness| {
        let pad = harness.sinkpad().unwrap();
        pad.current_caps().unwrap().features(0).unwrap().to_string()
    };
    assert_eq!(features(&harness), "memory:CUDAMemory");
    assert_eq!((warning_text(&bus), error_text(&bus)), (None, None));

    // With drawing the frame has to be in system memory, and the elements before learn that.
    let (mut harness, bus) = run(&line("conceptseg"), &caps);
    embeddings(&harness.push_and_pull(frame(&caps, 1)).unwrap());
    assert_eq!(features(&harness), "memory:SystemMemory");
    assert_eq!((warning_text(&bus), error_text(&bus)), (None, None));
}

#[test]
fn where_the_gpu_is_given_up_frames_in_cuda_memory_are_downloaded() {
    let Some(gpu) = gpu("where_the_gpu_is_given_up_frames_in_cuda_memory_are_downloaded") else {
        return;
    };
    if !has_cuda_elements() {
        return;
    }
    let caps = caps_of("I420", (96, 72));
    let before = "cudaupload ! video/x-raw(memory:CUDAMemory) !";
    let (mut harness, bus) = gpu.harness(before, "auto", &caps);
    let (mut cpu, _) = gpu.harness("", "rten", &caps);
    embeddings(&harness.push_and_pull(frame(&caps, 0)).unwrap());
    gpu.cuda.set("cuLaunchKernel", 1);
    for seed in 1..4 {
        let found = embeddings(&harness.push_and_pull(frame(&caps, seed)).unwrap());
        let wanted = embeddings(&cpu.push_and_pull(frame(&caps, seed)).unwrap());
        let apart = found.data.iter().zip(&wanted.data).map(|(a, b)| (a - b).abs());
        assert!(apart.fold(0.0, f32::max) < 1e-4);
    }
    assert_eq!(error_text(&bus), None);
    let memory = gpu.calls("cuMemcpy3DPeerAsync");
    assert!(memory > 0, "the GPU was tried first");
}

/// An `NvBufSurface` of one frame, written by the offsets of the published header.
struct Surface {
    surface: Vec<u64>,
    params: Vec<u64>,
}

const MEMORY_TYPE: usize = 16;
const LIST: usize = 24;
const COLOR: usize = 12;
const DESCRIPTOR: usize = 24;
const DATA_SIZE: usize = 32;
const DATA: usize = 40;
const PLANES: usize = 48;
const PITCH: usize = PLANES + 36;
const OFFSET: usize = PLANES + 52;
const EGL_IMAGE: usize = 280 + 32;

fn put(words: &mut [u64], at: usize, bytes: &[u8]) {
    bytemuck::cast_slice_mut::<u64, u8>(words)[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Surface {
    fn new(
        memory: u32,
        color: u32,
        (width, height): (u32, u32),
        planes: &[(usize, usize)],
    ) -> Self {
        let (mut surface, mut params) = (vec![0; 8], vec![0; 48]);
        put(&mut surface, 4, &1_u32.to_ne_bytes());
        put(&mut surface, 8, &1_u32.to_ne_bytes());
        put(&mut surface, MEMORY_TYPE, &memory.to_ne_bytes());
        put(&mut params, 0, &width.to_ne_bytes());
        put(&mut params, 4, &height.to_ne_bytes());
        put(&mut params, COLOR, &color.to_ne_bytes());
        put(&mut params, PLANES, &(planes.len() as u32).to_ne_bytes());
        for (i, &(offset, pitch)) in planes.iter().enumerate() {
            put(&mut params, PITCH + 4 * i, &(pitch as u32).to_ne_bytes());
            put(&mut params, OFFSET + 4 * i, &(offset as u32).to_ne_bytes());
        }
        Self { surface, params }
    }

    /// The buffer that holds it, which must not outlive it.
    fn buffer(&mut self) -> gst::Buffer {
        let list = self.params.as_mut_ptr() as u64;
        put(&mut self.surface, LIST, &list.to_ne_bytes());
        // Aligned as the library's own.
        gst::Buffer::from_slice(Words(self.surface.clone()))
    }
}

struct Words(Vec<u64>);
impl AsRef<[u8]> for Words {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

fn nvmm(caps: &str) -> String {
    caps.replace("video/x-raw", "video/x-raw(memory:NVMM)")
}

/// NV12 with its pixels and where its planes lie.
fn nv12(size: (u32, u32), seed: usize) -> (String, Vec<u8>, [(usize, usize); 2]) {
    let caps = format!("{},colorimetry=bt601", caps_of("NV12", size));
    let info = gst_video::VideoInfo::from_caps(&caps.parse::<gst::Caps>().unwrap()).unwrap();
    let buffer = frame(&caps, seed);
    let bytes = buffer.map_readable().unwrap().to_vec();
    let plane = |i: usize| (info.offset()[i], info.stride()[i] as usize);
    (caps, bytes, [plane(0), plane(1)])
}

/// Colour format NV12, BT.601, not full range.
const NV12: u32 = 6;

#[test]
fn surfaces_of_deepstream_and_jetson_give_what_frames_in_system_memory_give() {
    let Some(gpu) = gpu("surfaces_of_deepstream_and_jetson_give_what_frames_in_system_memory_give")
    else {
        return;
    };
    let size = (98, 74);
    let (caps, bytes, planes) = nv12(size, 3);
    let (mut host, _) = gpu.harness("", "tensorrt", &caps);
    let wanted = embeddings(&host.push_and_pull(frame(&caps, 3)).unwrap());
    let address = gpu.cuda.foreign_memory(&bytes);
    let (mut device, bus) = gpu.harness("", "tensorrt", &nvmm(&caps));

    let mut desktop = Surface::new(2, NV12, size, &planes);
    put(&mut desktop.params, DATA, &address.to_ne_bytes());
    put(&mut desktop.params, DATA_SIZE, &(bytes.len() as u32).to_ne_bytes());
    let found = device.push_and_pull(desktop.buffer()).unwrap();
    assert_eq!(embeddings(&found), wanted);

    for hidden in [false, true] {
        let places = planes.map(|(offset, pitch)| (address + offset as u64, pitch));
        let image = gpu.cuda.egl_image(size, &places, hidden);
        let mut jetson = Surface::new(4, NV12, size, &planes);
        put(&mut jetson.params, DESCRIPTOR, &image.to_ne_bytes());
        let buffer = jetson.buffer();
        let found = device.push_and_pull(buffer).unwrap();
        assert_eq!(embeddings(&found), wanted);
        assert_eq!(jetson.params[EGL_IMAGE / 8], 0, "the image is unmapped again");
    }
    assert_eq!(error_text(&bus), None);
}

#[test]
fn surfaces_that_cannot_be_read_are_errors_with_the_fix() {
    let Some(gpu) = gpu("surfaces_that_cannot_be_read_are_errors_with_the_fix") else { return };
    let size = (98, 74);
    let (caps, bytes, planes) = nv12(size, 3);
    let address = gpu.cuda.foreign_memory(&bytes);
    let refused = |change: &dyn Fn(&mut Surface), reason: &str| {
        let (mut harness, bus) = gpu.harness("", "tensorrt", &nvmm(&caps));
        let mut surface = Surface::new(2, NV12, size, &planes);
        put(&mut surface.params, DATA, &address.to_ne_bytes());
        put(&mut surface.params, DATA_SIZE, &(bytes.len() as u32).to_ne_bytes());
        change(&mut surface);
        assert!(harness.push(surface.buffer()).is_err(), "{reason}");
        let text = error_text(&bus).expect(reason);
        assert!(text.contains(reason), "{text}");
    };
    let set = |at: usize, value: u32| {
        move |surface: &mut Surface| put(&mut surface.params, at, &value.to_ne_bytes())
    };
    refused(&set(COLOR, 29), "put nvvideoconvert");
    refused(&set(COLOR, 19), "its caps NV12");
    refused(&set(0, 99), "99x74");
    refused(
        &set(DATA_SIZE, bytes.len() as u32 - 100),
        "plane 1 of a 98x74 NV12 frame lies outside",
    );
    refused(&set(OFFSET + 4, 1 << 30), "lies outside");
    refused(&set(PITCH, 4), "stride");
    refused(&set(PLANES, 1), "1 plane(s)");
    refused(&set(16, 1), "block linear");
    refused(&|surface| put(&mut surface.params, DATA, &4096_u64.to_ne_bytes()), "no allocation");
    refused(&|surface| put(&mut surface.surface, 4, &8_u32.to_ne_bytes()), "nvstreammux");
    refused(
        &|surface| put(&mut surface.surface, MEMORY_TYPE, &6_u32.to_ne_bytes()),
        "nvbuf-memory-type",
    );
    refused(
        &|surface| put(&mut surface.surface, MEMORY_TYPE, &4_u32.to_ne_bytes()),
        "NvBufSurfaceMapEglImage failed",
    );
    refused(&|surface| surface.surface.truncate(4), "no NvBufSurface");
}
