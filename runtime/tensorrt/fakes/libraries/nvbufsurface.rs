//! A library that looks like `libnvbufsurface` from outside, for surfaces that a test wrote byte by byte. In place of a
//! DMA buffer's descriptor they carry the image that they are mapped to.
#![allow(clippy::all, unsafe_op_in_unsafe_fn, non_snake_case)]

/// Where the published header has them on 64-bit Linux.
const LIST: usize = 24;
const DESCRIPTOR: usize = 24;
const EGL_IMAGE: usize = 280 + 32;

unsafe fn image(surface: *mut u8, index: i32) -> Option<(u64, *mut u64)> {
    if index != 0 {
        return None;
    }
    let params = *surface.add(LIST).cast::<*mut u8>();
    Some((*params.add(DESCRIPTOR).cast::<u64>(), params.add(EGL_IMAGE).cast()))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn NvBufSurfaceMapEglImage(surface: *mut u8, index: i32) -> i32 {
    let Some((descriptor, place)) = image(surface, index) else { return -1 };
    assert_eq!(*place, 0, "mapped twice");
    *place = descriptor;
    if descriptor == 0 { -1 } else { 0 }
}
#[unsafe(no_mangle)]
unsafe extern "C" fn NvBufSurfaceUnMapEglImage(surface: *mut u8, index: i32) -> i32 {
    let Some((_, place)) = image(surface, index) else { return -1 };
    assert_ne!(*place, 0, "unmapped twice");
    *place = 0;
    0
}
