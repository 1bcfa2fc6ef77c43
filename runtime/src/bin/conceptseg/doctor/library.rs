//! Shared libraries of GStreamer, asked without its tools.
#![allow(unsafe_code)] // Loading a library and calling a C function of it.

use std::ffi::c_uint;

use libloading::Library;

/// Whether the loader finds a library.
pub fn is_there(name: &str) -> bool {
    // SAFETY: only libraries of GStreamer are asked for; loading them runs GLib's initialisers, which
    // any program may run.
    unsafe { Library::new(name) }.is_ok_and(|library| {
        // GLib does not bear to be unloaded.
        std::mem::forget(library);
        true
    })
}

/// Version of GStreamer's library.
pub fn gstreamer_version() -> Option<[u32; 3]> {
    type Version = unsafe extern "C" fn(*mut c_uint, *mut c_uint, *mut c_uint, *mut c_uint);
    // SAFETY: as above.
    let library = unsafe { Library::new("libgstreamer-1.0.so.0") }.ok()?;
    let library = Box::leak(Box::new(library));
    let [mut major, mut minor, mut micro, mut nano] = [0; 4];
    // SAFETY: the signature is that of gst_version in all releases of 1.x, which may be called
    // before gst_init; the four places outlive the call.
    unsafe {
        let version = library.get::<Version>(c"gst_version").ok()?;
        version(&raw mut major, &raw mut minor, &raw mut micro, &raw mut nano);
    }
    Some([major, minor, micro])
}
