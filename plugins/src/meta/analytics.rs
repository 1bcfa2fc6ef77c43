//! The framework's own segmentation metadata, beside ours where it exists.
//!
//! `GstAnalyticsSegmentationMtd` came with `GStreamer` 1.26. Its library is opened at run time, so that
//! one binary serves 1.20 and later. Signatures and values are those of `gst/analytics` 1.26, whose
//! ABI is stable.
#![allow(unsafe_code)] // Calls a C library that is not linked.

use std::ffi::{c_int, c_uint, c_void};
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::LazyLock;

use gst::glib::translate::IntoGlibPtr as _;
use libloading::{Library, Symbol};

/// File name of the library with the major version of its ABI.
const LIBRARY: &str = "libgstanalytics-1.0.so.0";
/// The first version with segmentation metadata.
const SINCE: (u32, u32) = (1, 26);

/// What the regions of a mask are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Regions {
    /// Pixels of one value are of one kind.
    Semantic = 0,
    /// Pixels of one value are of one thing.
    Instance = 1,
}

type OfBuffer = unsafe extern "C" fn(*mut gst::ffi::GstBuffer) -> *mut c_void;
type AddSegmentation = unsafe extern "C" fn(
    instance: *mut c_void,
    buffer: *mut gst::ffi::GstBuffer,
    segmentation_type: c_int,
    region_count: usize,
    region_ids: *mut c_uint,
    masks_loc_x: c_int,
    masks_loc_y: c_int,
    masks_loc_w: c_uint,
    masks_loc_h: c_uint,
    segmentation_mtd: *mut Mtd,
) -> gst::glib::ffi::gboolean;

/// `GstAnalyticsMtd`, which the library fills.
#[repr(C)]
struct Mtd {
    id: c_uint,
    meta: *mut c_void,
}

/// The functions of the library.
struct Analytics {
    get: OfBuffer,
    add: OfBuffer,
    add_segmentation: AddSegmentation,
    /// Holds the code of the functions.
    _library: Library,
}

static ANALYTICS: LazyLock<Option<Analytics>> = LazyLock::new(|| {
    let (major, minor, ..) = gst::version();
    if (major, minor) < SINCE {
        return None;
    }
    match Analytics::load(LIBRARY.as_ref()) {
        Ok(analytics) => Some(analytics),
        Err(reason) => {
            gst::warning!(
                gst::CAT_PLUGIN_LOADING,
                "No analytics metadata beside that of conceptseg: {reason}"
            );
            None
        }
    }
});

impl Analytics {
    fn load(path: &Path) -> Result<Self, libloading::Error> {
        // SAFETY: the library is GStreamer's, whose initialisers do nothing but register types. The
        // signatures are those of its headers, and the library lives as long as the functions.
        unsafe {
            let library = Library::new(path)?;
            let get: Symbol<'_, OfBuffer> =
                library.get(b"gst_buffer_get_analytics_relation_meta\0")?;
            let add: Symbol<'_, OfBuffer> =
                library.get(b"gst_buffer_add_analytics_relation_meta\0")?;
            let add_segmentation: Symbol<'_, AddSegmentation> =
                library.get(b"gst_analytics_relation_meta_add_segmentation_mtd\0")?;
            let (get, add, add_segmentation) = (*get, *add, *add_segmentation);
            Ok(Self { get, add, add_segmentation, _library: library })
        }
    }

    /// Adds a mask that covers all of a frame of `width` x `height` pixels.
    fn attach(
        &self,
        buffer: &mut gst::BufferRef,
        mask: &gst::Buffer,
        regions: Regions,
        ids: &mut [u32],
        (width, height): (u32, u32),
    ) -> bool {
        let mut mtd = MaybeUninit::<Mtd>::uninit();
        // SAFETY: the buffer is writable, as its exclusive reference says, and the meta lies on it
        // and is used before that reference ends. The mask's reference passes to the library,
        // which copies the ids and fills `mtd`, both alive during the call.
        unsafe {
            let frame = buffer.as_mut_ptr();
            let mut meta = (self.get)(frame);
            if meta.is_null() {
                meta = (self.add)(frame);
            }
            if meta.is_null() {
                return false;
            }
            let mask: *mut gst::ffi::GstBuffer = mask.clone().into_glib_ptr();
            (self.add_segmentation)(
                meta,
                mask,
                regions as c_int,
                ids.len(),
                ids.as_mut_ptr(),
                0,
                0,
                width,
                height,
                mtd.as_mut_ptr(),
            ) != 0
        }
    }
}

/// Attaches a mask with a `GstVideoMeta` that covers the frame, where the running `GStreamer` has
/// such metadata. `ids` are the values that occur in it.
pub(super) fn attach(
    buffer: &mut gst::BufferRef,
    mask: &gst::Buffer,
    regions: Regions,
    ids: &mut [u32],
    frame: (u32, u32),
) {
    if let Some(analytics) = &*ANALYTICS
        && !analytics.attach(buffer, mask, regions, ids, frame)
    {
        gst::warning!(gst::CAT_RUST, "The analytics metadata of a frame was refused");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Stands in for the library: notes what it was called with.
    const FAKE: &str = "
        #include <stddef.h>
        static int meta, added; static unsigned seen[8];
        void *gst_buffer_get_analytics_relation_meta(void *b) { return added ? &meta : NULL; }
        void *gst_buffer_add_analytics_relation_meta(void *b) { added++; return &meta; }
        int gst_analytics_relation_meta_add_segmentation_mtd(void *m, void *buffer, int type,
            size_t n, unsigned *ids, int x, int y, unsigned w, unsigned h, struct { unsigned id; void *meta; } *mtd) {
          if (m != &meta || !buffer || x || y) return 0;
          unsigned now[8] = { added, type, (unsigned) n, ids[0], ids[n - 1], w, h, 0 };
          for (int i = 0; i < 7; i++) seen[i] = now[i];
          seen[7]++;
          mtd->id = 5; mtd->meta = m;
          return 1;
        }
        unsigned noted(unsigned i) { return seen[i]; }";

    #[test]
    fn masks_are_handed_to_the_library_as_its_header_says() {
        gst::init().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (source, library) = (folder.path().join("f.c"), folder.path().join("libf.so"));
        std::fs::write(&source, FAKE).unwrap();
        let compiler = Command::new("cc")
            .args(["-w", "-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(&source)
            .status();
        if !compiler.is_ok_and(|status| status.success()) {
            println!("skipped: no C compiler to build a stand-in for {LIBRARY}");
            return;
        }
        let analytics = Analytics::load(&library).unwrap();
        // SAFETY: the stand-in above has this function; it is the same library, opened again.
        let handle = unsafe { Library::new(&library).unwrap() };
        let noted = |i: u32| unsafe {
            let noted: Symbol<'_, unsafe extern "C" fn(c_uint) -> c_uint> =
                handle.get(b"noted\0").unwrap();
            noted(i)
        };
        let mut frame = gst::Buffer::new();
        let mask = gst::Buffer::from_slice([0u8; 6]);
        let frame = frame.get_mut().unwrap();
        assert!(analytics.attach(frame, &mask, Regions::Instance, &mut [3, 9, 12], (640, 480)));
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(noted), [1, 1, 3, 3, 12, 640, 480, 1]);
        assert!(analytics.attach(frame, &mask, Regions::Semantic, &mut [7], (640, 480)));
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(noted), [1, 0, 1, 7, 7, 640, 480, 2]);
    }

    #[test]
    fn a_library_that_is_not_there_or_has_not_the_functions_is_no_library() {
        assert!(Analytics::load("libgst-nonexistent.so.0".as_ref()).is_err());
        assert!(Analytics::load("libc.so.6".as_ref()).is_err());
    }
}
