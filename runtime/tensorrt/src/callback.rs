//! What objects that the library calls back have in common: a virtual table made here.

use std::ffi::{c_char, c_void};

/// A virtual table as the compilers lay it out: two words, then the methods that the object points to.
///
/// The type-information word is null, as in tables of classes compiled without it (`-fno-rtti`).
#[repr(C)]
pub(crate) struct Table<const N: usize> {
    offset_to_top: isize,
    type_information: *const c_void,
    methods: [*const c_void; N],
}

// SAFETY: it is never written; the addresses are those of functions.
unsafe impl<const N: usize> Sync for Table<N> {}

impl<const N: usize> Table<N> {
    pub(crate) const fn new(methods: [*const c_void; N]) -> Self {
        Self { offset_to_top: 0, type_information: std::ptr::null(), methods }
    }

    /// What the first word of an object holds.
    pub(crate) fn address(&'static self) -> *const c_void {
        self.methods.as_ptr().cast()
    }
}

/// `InterfaceInfo`: which interface an object serves.
#[repr(C)]
pub(crate) struct InterfaceInfo {
    kind: *const c_char,
    major: i32,
    minor: i32,
}

impl InterfaceInfo {
    pub(crate) fn new(kind: &'static std::ffi::CStr) -> Self {
        Self { kind: kind.as_ptr(), major: 1, minor: 0 }
    }
}

/// `getAPILanguage`: C++, which is what the tables imitate.
pub(crate) extern "C" fn language(_this: *mut c_void) -> i32 {
    0
}

/// Destructors: the objects belong to this crate, the library has no business destroying them.
pub(crate) extern "C" fn keep(_this: *mut c_void) {}
