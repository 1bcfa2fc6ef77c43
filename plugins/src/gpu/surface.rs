//! The part of `nvbufsurface.h` that frames are read by.

use std::ffi::c_void;

use conceptseg::frame::{Colorimetry, PixelFormat, YuvMatrix};

/// `NVBUF_MAX_PLANES`.
const PLANES: usize = 4;
/// `STRUCTURE_PADDING`.
const PADDING: usize = 4;

/// `NvBufSurface`: a batch of frames.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Surface {
    pub gpu: u32,
    pub batch_size: u32,
    pub filled: u32,
    pub contiguous: bool,
    pub memory_type: u32,
    pub list: *mut Params,
    pub reserved: [*mut c_void; PADDING],
}

/// `NvBufSurfacePlaneParams`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PlaneParams {
    pub count: u32,
    pub width: [u32; PLANES],
    pub height: [u32; PLANES],
    pub pitch: [u32; PLANES],
    pub offset: [u32; PLANES],
    pub size: [u32; PLANES],
    pub bytes_per_pixel: [u32; PLANES],
    pub reserved: [*mut c_void; PADDING * PLANES],
}

/// `NvBufSurfaceMappedAddr`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct MappedAddress {
    pub address: [*mut c_void; PLANES],
    pub egl_image: *mut c_void,
    pub reserved: [*mut c_void; PADDING],
}

/// `NvBufSurfaceParams`: one frame.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Params {
    pub width: u32,
    pub height: u32,
    pub pitch: u32,
    pub color_format: u32,
    pub layout: u32,
    pub descriptor: u64,
    pub data_size: u32,
    pub data: *mut c_void,
    pub planes: PlaneParams,
    pub mapped: MappedAddress,
    pub reserved: [*mut c_void; PADDING],
}

/// `NvBufSurfaceMemType`: memory that CUDA has at `data`.
pub const CUDA_PINNED: u32 = 1;
pub const CUDA_UNIFIED: u32 = 3;
/// A surface of a Jetson's video hardware.
pub const SURFACE_ARRAY: u32 = 4;
/// `NVBUF_LAYOUT_PITCH`.
pub const PITCH: u32 = 0;

/// What `NvBufSurfaceColorFormat` means, where the elements take it. YUV says its colours here, which
/// the caps of NVIDIA's elements often leave out.
pub fn color_format(number: u32) -> Option<(PixelFormat, Option<Colorimetry>)> {
    use YuvMatrix::{Bt601, Bt709, Bt2020};
    let yuv = |format, matrix, full_range| Some((format, Some(Colorimetry { matrix, full_range })));
    match number {
        1 => Some((PixelFormat::Gray8, None)),
        2 => yuv(PixelFormat::I420, Bt601, false),
        4 => yuv(PixelFormat::I420, Bt601, true),
        6 => yuv(PixelFormat::Nv12, Bt601, false),
        7 => yuv(PixelFormat::Nv12, Bt601, true),
        19 => Some((PixelFormat::Rgba, None)),
        20 => Some((PixelFormat::Bgra, None)),
        23 => Some((PixelFormat::Rgbx, None)),
        24 => Some((PixelFormat::Bgrx, None)),
        27 => Some((PixelFormat::Rgb, None)),
        28 => Some((PixelFormat::Bgr, None)),
        31 => yuv(PixelFormat::I420, Bt709, false),
        32 => yuv(PixelFormat::I420, Bt709, true),
        33 => yuv(PixelFormat::Nv12, Bt709, false),
        34 => yuv(PixelFormat::Nv12, Bt709, true),
        35 => yuv(PixelFormat::I420, Bt2020, false),
        36 => yuv(PixelFormat::Nv12, Bt2020, false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    /// As a C compiler lays out the published header on 64-bit Linux.
    #[test]
    fn structures_are_laid_out_as_in_c() {
        assert_eq!((size_of::<Surface>(), offset_of!(Surface, list)), (64, 24));
        assert_eq!((size_of::<PlaneParams>(), offset_of!(PlaneParams, offset)), (232, 52));
        assert_eq!((size_of::<MappedAddress>(), offset_of!(MappedAddress, egl_image)), (72, 32));
        assert_eq!(offset_of!(Params, data), 40);
        assert_eq!((offset_of!(Params, planes), offset_of!(Params, mapped)), (48, 280));
        assert_eq!(size_of::<Params>(), 384);
    }
}
