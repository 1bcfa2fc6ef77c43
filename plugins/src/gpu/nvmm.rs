//! Surfaces of NVIDIA's elements. A mapped buffer holds an `NvBufSurface`, not pixels.
#![allow(unsafe_code)] // Reads structures of another library, and calls its functions.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::sync::{Mutex, OnceLock};

use conceptseg::cuda::{DeviceFrame, DevicePlane};
use conceptseg::frame::{Colorimetry, PixelFormat};
use gst_video::VideoInfo;

use super::surface::{
    CUDA_PINNED, CUDA_UNIFIED, PITCH, Params, SURFACE_ARRAY, Surface, color_format,
};
use crate::lock;
use crate::video::{check_planes, colorimetry, known_format};

type Map = unsafe extern "C" fn(*mut Surface, c_int) -> c_int;

/// What is needed of `libnvbufsurface`.
#[derive(Clone, Copy)]
struct Library {
    map: Map,
    unmap: Map,
}

/// The library, which every element that makes such surfaces has loaded.
fn library() -> Result<Library, String> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    let find = || {
        // SAFETY: NVIDIA's library, whose initializers have run in most processes that get here.
        let library = unsafe { libloading::Library::new("libnvbufsurface.so") };
        let library = library.or_else(|_| {
            // SAFETY: as above; some packages have the versioned name only.
            unsafe { libloading::Library::new("libnvbufsurface.so.1.0.0") }
        });
        let library = library.map_err(|e| {
            format!(
                "libnvbufsurface is needed for surfaces of video hardware and was not found ({e})"
            )
        })?;
        // SAFETY: the type is that of both functions.
        let get = |name: &str| unsafe { library.get::<Map>(name.as_bytes()) }.map(|f| *f);
        let found = get("NvBufSurfaceMapEglImage")
            .and_then(|map| Ok(Library { map, unmap: get("NvBufSurfaceUnMapEglImage")? }));
        let found = found.map_err(|e| format!("libnvbufsurface is too old: {e}"));
        // The functions stay where they are.
        std::mem::forget(library);
        found
    };
    LIBRARY.get_or_init(find).clone()
}

/// Surfaces that were mapped here, and for how many: two branches of a pipeline may have the same one.
static MAPPED: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

/// An EGL image of a surface's first frame, until it is dropped.
struct EglImage {
    surface: *mut Surface,
    image: *mut c_void,
    /// Nothing where somebody else had mapped it.
    library: Option<Library>,
}

impl EglImage {
    /// # Safety
    /// The surface is one of NVIDIA's, with a list of at least one frame, and lives until this is dropped.
    unsafe fn map(surface: *mut Surface) -> Result<Self, String> {
        let mut mapped = lock(&MAPPED);
        let image = || {
            // SAFETY: the caller's. Read anew, because the library writes it.
            unsafe { (*(*surface).list).mapped.egl_image }
        };
        let users = mapped.get(&(surface as usize)).copied();
        if users.is_none() && !image().is_null() {
            return Ok(Self { surface, image: image(), library: None });
        }
        let library = library()?;
        if users.is_none() {
            // SAFETY: the caller's; 0 is the first frame.
            let answer = unsafe { (library.map)(surface, 0) };
            if answer != 0 || image().is_null() {
                return Err(format!(
                    "NvBufSurfaceMapEglImage failed ({answer}); on a machine without a display, unset DISPLAY"
                ));
            }
        }
        mapped.insert(surface as usize, users.unwrap_or(0) + 1);
        Ok(Self { surface, image: image(), library: Some(library) })
    }
}

impl Drop for EglImage {
    fn drop(&mut self) {
        let Some(library) = self.library else { return };
        let mut mapped = lock(&MAPPED);
        let left = mapped.get(&(self.surface as usize)).map_or(0, |users| users - 1);
        if left > 0 {
            mapped.insert(self.surface as usize, left);
            return;
        }
        mapped.remove(&(self.surface as usize));
        // SAFETY: mapped in `map`, and nobody uses it any more.
        unsafe { (library.unmap)(self.surface, 0) };
    }
}

/// As [`with_frame`](super::with_frame).
pub(super) fn with_frame<T>(
    buffer: &gst::BufferRef,
    info: &VideoInfo,
    see: impl FnOnce(&DeviceFrame<'_>) -> T,
) -> Result<T, String> {
    let map = buffer.map_readable().map_err(|e| e.to_string())?;
    let (bytes, pointer) = (map.len(), map.as_ptr().cast_mut().cast::<c_void>().cast::<Surface>());
    if bytes < size_of::<Surface>() || !pointer.is_aligned() {
        return Err(format!(
            "it holds {bytes} bytes that are no NvBufSurface; JetPack 5 or later, or DeepStream, is needed"
        ));
    }
    // SAFETY: aligned and long enough; what its fields say is checked below.
    let surface = unsafe { pointer.read() };
    if surface.batch_size != 1 || surface.filled > 1 {
        let count = surface.batch_size.max(surface.filled);
        return Err(format!(
            "it is a batch for {count} frames; put the element before nvstreammux, or set its batch-size to 1"
        ));
    }
    if surface.list.is_null() || !surface.list.is_aligned() {
        return Err("its NvBufSurface has no frame".to_owned());
    }
    // SAFETY: the list of a batch of one has one element. That it is where the surface says is the promise of the
    // caps: what lies in a buffer of `memory:NVMM` was made by `libnvbufsurface`.
    let params = unsafe { surface.list.read() };
    let (format, colors) = layout(&params, info)?;
    let size = (params.width, params.height);

    let count = format.planes();
    if surface.memory_type == SURFACE_ARRAY {
        let pitches: Vec<_> =
            params.planes.pitch.iter().take(count).map(|&pitch| pitch as usize).collect();
        // SAFETY: the surface lives as long as the mapped buffer.
        let egl = unsafe { EglImage::map(pointer) }?;
        // SAFETY: the image is mapped until `see` is done; elements push surfaces that are filled.
        let frame =
            unsafe { DeviceFrame::from_egl_image(format, size, egl.image, &pitches, colors) };
        return Ok(see(&frame.map_err(|e| e.to_string())?));
    }
    // Without a type it is that of the machine, which has told it by where the memory is.
    if surface.memory_type > CUDA_UNIFIED || params.data.is_null() {
        return Err(format!(
            "its NvBufSurface is in memory of type {}, which CUDA cannot read; set nvbuf-memory-type of the element \
             before to {CUDA_PINNED}, 2 or {CUDA_UNIFIED}",
            surface.memory_type
        ));
    }
    if params.layout != PITCH {
        return Err("its NvBufSurface is block linear, which desktop GPUs do not have".to_owned());
    }
    let (bytes, parts) = (params.data_size as usize, &params.planes);
    let offsets: Vec<_> = parts.offset.iter().take(count).map(|&offset| offset as usize).collect();
    let strides: Vec<_> =
        parts.pitch.iter().take(count).map(|&pitch| pitch.try_into().unwrap_or(-1)).collect();
    check_planes(format, size, &offsets, &strides, bytes)?;
    let planes: Vec<_> = offsets
        .iter()
        .zip(&parts.pitch)
        .map(|(&offset, &pitch)| DevicePlane {
            address: params.data as u64 + offset as u64,
            len: bytes - offset,
            stride: pitch as usize,
        })
        .collect();
    // SAFETY: the buffer stays mapped until `see` is done; elements push surfaces that are filled. The driver is asked
    // about the addresses before they are read.
    let frame = unsafe { DeviceFrame::new(format, size, &planes, colors) };
    Ok(see(&frame.map_err(|e| e.to_string())?))
}

/// Format and colours of a surface, which must be those of the caps.
fn layout(params: &Params, info: &VideoInfo) -> Result<(PixelFormat, Colorimetry), String> {
    let Some((format, colors)) = color_format(params.color_format) else {
        return Err(format!(
            "its NvBufSurface has colour format {}; put nvvideoconvert (nvvidconv) before, with caps of NV12 or RGBA",
            params.color_format
        ));
    };
    let (width, height) = (params.width, params.height);
    let wanted = known_format(info.format())?;
    if (format, width, height) != (wanted, info.width(), info.height()) {
        return Err(format!(
            "its NvBufSurface is {format} of {width}x{height} pixels, its caps {wanted} of {}x{}",
            info.width(),
            info.height()
        ));
    }
    if (params.planes.count as usize) < format.planes() {
        let count = params.planes.count;
        return Err(format!("its NvBufSurface has {count} plane(s), a frame in {format} more"));
    }
    Ok((format, colors.unwrap_or_else(|| colorimetry(info))))
}
