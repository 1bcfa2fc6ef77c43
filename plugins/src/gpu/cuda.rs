//! CUDA memory of `GStreamer`'s own elements (`nvh264dec`, `cudaupload`, `cudaconvert`, …).
#![allow(unsafe_code)] // Mapping with a flag that the bindings do not know, and a function found at run time.

use std::mem::MaybeUninit;
use std::sync::OnceLock;

use conceptseg::cuda::{DeviceFrame, DevicePlane};
use gst::ffi;
use gst_video::{VideoInfo, VideoMeta};

use crate::video::{check_planes, colorimetry, known_format, known_stride};

/// Name of the memory's kind, `GST_CUDA_MEMORY_TYPE_NAME`.
const KIND: &std::ffi::CStr = c"gst.cuda.memory";
/// `GST_MAP_CUDA`: the address on the GPU in place of a copy on the host.
const MAP_CUDA: ffi::GstMapFlags = ffi::GST_MAP_FLAG_LAST << 1;

type Sync = unsafe extern "C" fn(*mut ffi::GstMemory);

/// `gst_cuda_memory_sync`, which waits for the work that fills a memory. Older libraries than 1.24
/// have none, and elements of their time wait themselves before they pass a frame on.
fn sync() -> Option<Sync> {
    static SYNC: OnceLock<Option<Sync>> = OnceLock::new();
    *SYNC.get_or_init(|| {
        // SAFETY: whoever made the memory has loaded this library, and its initializers have run.
        let library = unsafe { libloading::Library::new("libgstcuda-1.0.so.0") }.ok()?;
        // SAFETY: the type is that of the function of this name.
        let function = unsafe { library.get::<Sync>(b"gst_cuda_memory_sync") }.ok().map(|f| *f);
        // The function stays where it is.
        std::mem::forget(library);
        function
    })
}

/// A memory whose address on the GPU is known, until it is dropped.
struct Mapped<'a> {
    memory: &'a gst::MemoryRef,
    info: ffi::GstMapInfo,
}

impl<'a> Mapped<'a> {
    fn new(memory: &'a gst::MemoryRef) -> Result<Self, String> {
        let mut info = MaybeUninit::uninit();
        let pointer = memory.as_ptr().cast_mut();
        // SAFETY: the memory lives; mapping for reading changes only its counters, which are atomic. Its kind
        // knows the flag (checked by the caller).
        let mapped = unsafe {
            ffi::gst_memory_map(pointer, info.as_mut_ptr(), ffi::GST_MAP_READ | MAP_CUDA)
        };
        if mapped == gst::glib::ffi::GFALSE {
            return Err(
                "its CUDA memory cannot be mapped; look for messages of the element that made it"
                    .to_owned(),
            );
        }
        // SAFETY: filled by the successful call.
        let mapped = Self { memory, info: unsafe { info.assume_init() } };
        if let Some(sync) = sync() {
            // SAFETY: a CUDA memory, as the library made it.
            unsafe { sync(pointer) };
        }
        Ok(mapped)
    }
}

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, unmapped only here.
        unsafe { ffi::gst_memory_unmap(self.memory.as_ptr().cast_mut(), &raw mut self.info) };
    }
}

fn is_cuda(memory: &gst::MemoryRef) -> bool {
    let kind = KIND.as_ptr();
    // SAFETY: the memory lives, and the name ends with a zero.
    unsafe { ffi::gst_memory_is_type(memory.as_ptr().cast_mut(), kind) != gst::glib::ffi::GFALSE }
}

/// As [`with_frame`](super::with_frame).
pub(super) fn with_frame<T>(
    buffer: &gst::BufferRef,
    info: &VideoInfo,
    see: impl FnOnce(&DeviceFrame<'_>) -> T,
) -> Result<T, String> {
    let count = buffer.n_memory();
    if count != 1 {
        return Err(format!("it has {count} memories, and a frame in CUDA memory has one"));
    }
    let memory = buffer.peek_memory(0);
    if !is_cuda(memory) {
        return Err(
            "its caps say CUDA memory, but it is in another kind: the element before is broken"
                .to_owned(),
        );
    }
    let format = known_format(info.format())?;
    let size = (info.width(), info.height());
    let mapped = Mapped::new(memory)?;
    let bytes = mapped.info.size;
    let meta = buffer.meta::<VideoMeta>();
    let (offsets, strides) = match &meta {
        Some(meta) if (meta.width(), meta.height()) != size || meta.format() != info.format() => {
            let (w, h) = (meta.width(), meta.height());
            return Err(format!(
                "its GstVideoMeta describes {} of {w}x{h} pixels, its caps {} of {}x{}",
                meta.format(),
                info.format(),
                size.0,
                size.1
            ));
        }
        Some(meta) => (meta.offset(), meta.stride()),
        None => (info.offset(), info.stride()),
    };
    check_planes(format, size, offsets, strides, bytes)?;
    let planes = offsets.iter().zip(strides).take(format.planes()).map(|(&offset, &stride)| {
        let address = mapped.info.data as u64 + offset as u64;
        Ok(DevicePlane { address, len: bytes - offset, stride: known_stride(stride)? })
    });
    let planes = planes.collect::<Result<Vec<_>, String>>()?;
    // SAFETY: the memory stays mapped until `see` is done, and what filled it was waited for.
    let frame = unsafe { DeviceFrame::new(format, size, &planes, colorimetry(info)) };
    Ok(see(&frame.map_err(|e| e.to_string())?))
}
