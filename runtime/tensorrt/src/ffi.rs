//! Objects of the library: their layout, how their methods are called, and how they are given back.
//!
//! A public object is two words: the address of its own virtual table, which knows only how to destroy it, and the
//! address of the implementation, whose virtual table has the methods.

use std::ffi::{CStr, c_char, c_void};
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

use crate::abi::Generation;
use crate::error::Error;

/// Addresses below this are no objects: without a usable driver the library answers small numbers, not null.
const LOWEST_OBJECT: usize = 64 << 10;
/// Dimensions of a tensor, at most.
pub(crate) const MAX_DIMS: usize = 8;
/// Entry of a public object's own table that destroys and frees it, in all versions.
const DESTROY: usize = 1;

/// Checks an address that the library gave for an object.
pub(crate) fn object_address(raw: *mut c_void) -> Result<NonNull<c_void>, String> {
    match NonNull::new(raw) {
        None => Err("it gave no object".to_owned()),
        Some(address)
            if address.addr().get() < LOWEST_OBJECT
                || address.addr().get() % align_of::<usize>() != 0 =>
        {
            Err(format!(
                "it gave {raw:?}, which cannot be an object; is there a working CUDA driver?"
            ))
        }
        Some(address) => Ok(address),
    }
}

/// Entry `entry` of the virtual table that `object` begins with.
///
/// # Safety
/// `object` is a live C++ object with at least `entry + 1` virtual methods, and `F` is the C function pointer type
/// of that method, `this` first.
pub(crate) unsafe fn virtual_method<F: Copy>(object: *mut c_void, entry: usize) -> F {
    const { assert!(size_of::<F>() == size_of::<*const c_void>()) };
    // SAFETY: the first word of the object is the address of its table, which has this entry (caller).
    let method = unsafe { object.cast::<*const *const c_void>().read().add(entry).read() };
    // SAFETY: `F` is a function pointer (same size, checked above) of the method's type (caller).
    unsafe { std::mem::transmute_copy(&method) }
}

/// A public object of the library, destroyed through its own table when dropped.
#[derive(Debug)]
pub(crate) struct Object(NonNull<c_void>);

// SAFETY: the library's objects are not bound to a thread; that only one thread at a time uses one is kept by
// `&mut` or a mutex wherever an `Object` is stored.
unsafe impl Send for Object {}

impl Object {
    /// Takes over an object; `operation` says in an error what was asked for.
    ///
    /// # Safety
    /// `raw` comes from a call of the library that hands over ownership, or is not an address of an object at all.
    pub(crate) unsafe fn own(
        raw: *mut c_void,
        operation: &'static str,
        detail: impl FnOnce() -> Option<String>,
    ) -> Result<Self, Error> {
        object_address(raw).map(Self).map_err(|reason| Error::NoObject {
            operation,
            detail: detail().map_or_else(|| reason.clone(), |told| format!("{told} ({reason})")),
        })
    }

    /// The same for an object that belongs to another one of the library.
    ///
    /// # Safety
    /// As for [`Object::own`], but the owner must live as long as what is returned.
    pub(crate) unsafe fn borrow(
        raw: *mut c_void,
        operation: &'static str,
        detail: impl FnOnce() -> Option<String>,
    ) -> Result<ManuallyDrop<Self>, Error> {
        // SAFETY: passed on; it is not destroyed here.
        unsafe { Self::own(raw, operation, detail) }.map(ManuallyDrop::new)
    }

    /// Address of the public object, as arguments of the library want it.
    pub(crate) fn address(&self) -> *mut c_void {
        self.0.as_ptr()
    }

    /// Address of the implementation, whose table has the methods.
    pub(crate) fn implementation(&self) -> *mut c_void {
        // SAFETY: a live public object has two words, the second of which is this address.
        unsafe { self.0.as_ptr().cast::<*mut c_void>().add(1).read() }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: the object is live and owned here; entry 1 of every public object's own table destroys and
        // frees it, and takes nothing but the object.
        unsafe {
            let destroy: unsafe extern "C" fn(*mut c_void) =
                virtual_method(self.address(), DESTROY);
            destroy(self.address());
        }
    }
}

/// Calls a method of an [`Object`]'s implementation: `call!(object, entry, (i32) -> bool, value)`.
///
/// The caller's `unsafe` block says why the entry and the signature belong together.
macro_rules! call {
    ($object:expr, $entry:expr, ($($type:ty),*) $(-> $result:ty)? $(, $argument:expr)*) => {{
        let this = $object.implementation();
        let method: unsafe extern "C" fn(*mut ::std::ffi::c_void $(, $type)*) $(-> $result)? =
            $crate::ffi::virtual_method(this, $entry);
        method(this $(, $argument)*)
    }};
}
pub(crate) use call;

/// `Dims` of TensorRT 8.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Dims32 {
    pub(crate) count: i32,
    pub(crate) sizes: [i32; MAX_DIMS],
}

/// `Dims` since TensorRT 10.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Dims64 {
    pub(crate) count: i32,
    pub(crate) sizes: [i64; MAX_DIMS],
}

/// A shape in the form that one generation of the library reads.
pub(crate) enum Dims {
    Narrow(Dims32),
    Wide(Dims64),
}

impl Dims {
    /// `shape` has been checked: at most [`MAX_DIMS`] sizes. One that a narrow form cannot hold gives nothing.
    pub(crate) fn new(generation: Generation, shape: &[i64]) -> Option<Self> {
        let count = i32::try_from(shape.len()).ok().filter(|_| shape.len() <= MAX_DIMS)?;
        let mut sizes = [0; MAX_DIMS];
        sizes[..shape.len()].copy_from_slice(shape);
        if generation == Generation::V8 {
            let mut narrow = [0; MAX_DIMS];
            for (to, from) in narrow.iter_mut().zip(sizes) {
                *to = i32::try_from(from).ok()?;
            }
            return Some(Self::Narrow(Dims32 { count, sizes: narrow }));
        }
        Some(Self::Wide(Dims64 { count, sizes }))
    }

    /// The address that a `Dims const&` argument is.
    pub(crate) fn address(&self) -> *const c_void {
        match self {
            Self::Narrow(dims) => (&raw const *dims).cast(),
            Self::Wide(dims) => (&raw const *dims).cast(),
        }
    }
}

/// A returned shape; one of an impossible number of dimensions (the library's answer to an error is -1) gives nothing.
pub(crate) fn shape32(dims: &Dims32) -> Option<Vec<i64>> {
    let count = usize::try_from(dims.count).ok()?;
    Some(dims.sizes.get(..count)?.iter().map(|&size| i64::from(size)).collect())
}

/// The same for the wide form.
pub(crate) fn shape64(dims: &Dims64) -> Option<Vec<i64>> {
    let count = usize::try_from(dims.count).ok()?;
    Some(dims.sizes.get(..count)?.to_vec())
}

/// A method that returns a shape: `call_shape!(generation, object, entry, (i32), value)`, an `Option<Vec<i64>>`.
macro_rules! call_shape {
    ($generation:expr, $object:expr, $entry:expr, ($($type:ty),*) $(, $argument:expr)*) => {
        if $generation == $crate::abi::Generation::V8 {
            $crate::ffi::shape32(&$crate::ffi::call!($object, $entry, ($($type),*) -> $crate::ffi::Dims32 $(, $argument)*))
        } else {
            $crate::ffi::shape64(&$crate::ffi::call!($object, $entry, ($($type),*) -> $crate::ffi::Dims64 $(, $argument)*))
        }
    };
}
pub(crate) use call_shape;

/// Copies a C string of the library; null gives an empty one.
///
/// # Safety
/// `text` is null or a string that ends with a zero byte and lives during the call.
pub(crate) unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and a C string (caller).
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_the_layout_of_their_generation() {
        assert_eq!((size_of::<Dims32>(), align_of::<Dims32>()), (36, 4));
        assert_eq!((size_of::<Dims64>(), align_of::<Dims64>()), (72, 8));
        assert_eq!(std::mem::offset_of!(Dims64, sizes), 8);
    }

    #[test]
    fn small_and_odd_addresses_are_no_objects() {
        for address in [0x228_usize, 0x238, 4096, 0xFFF8, 0x7F00_0000_0001] {
            assert!(
                object_address(std::ptr::without_provenance_mut(address)).is_err(),
                "{address:#x}"
            );
        }
        assert!(object_address(std::ptr::null_mut()).is_err());
        assert!(object_address(std::ptr::without_provenance_mut(0x7F00_0000_0008)).is_ok());
    }

    #[test]
    fn a_size_that_does_not_fit_is_refused_not_cut() {
        assert!(Dims::new(Generation::V8, &[1 << 31]).is_none());
        assert!(Dims::new(Generation::V10, &[1 << 31]).is_some());
        assert!(Dims::new(Generation::V10, &[1; 9]).is_none());
        assert!(shape64(&Dims64 { count: -1, sizes: [0; 8] }).is_none());
        assert!(shape32(&Dims32 { count: 9, sizes: [0; 8] }).is_none());
    }
}
