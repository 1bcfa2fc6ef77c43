//! The errors that the library reports about one object.

use std::ffi::{CString, c_char, c_void};
use std::fmt;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::abi::Generation;
use crate::callback::{InterfaceInfo, Table, keep, language};
use crate::ffi;

/// Errors kept until they are asked for; what comes after is counted as overflow.
const KEPT: usize = 32;

/// Kind of an error that TensorRT reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// No kind was given.
    Unspecified,
    /// TensorRT is at fault.
    Internal,
    /// An argument was wrong.
    InvalidArgument,
    /// The configuration was wrong.
    InvalidConfig,
    /// Memory could not be had.
    FailedAllocation,
    /// CUDA or a library could not be initialised.
    FailedInitialization,
    /// A kernel could not be run.
    FailedExecution,
    /// The result is not finite or otherwise wrong.
    FailedComputation,
    /// The object was not ready for the call.
    InvalidState,
    /// The GPU or the library does not support this.
    UnsupportedState,
}

impl ErrorCode {
    fn from_raw(raw: i32) -> Self {
        match raw {
            2 => Self::Internal,
            3 => Self::InvalidArgument,
            4 => Self::InvalidConfig,
            5 => Self::FailedAllocation,
            6 => Self::FailedInitialization,
            7 => Self::FailedExecution,
            8 => Self::FailedComputation,
            9 => Self::InvalidState,
            10 => Self::UnsupportedState,
            _ => Self::Unspecified,
        }
    }
}

/// An error that TensorRT reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedError {
    /// Its kind.
    pub code: ErrorCode,
    /// What it says.
    pub description: String,
}

#[derive(Default)]
struct Errors {
    kept: Vec<(i32, CString)>,
    overflowed: bool,
}

/// The object that the library sees.
#[repr(C)]
struct Object {
    table: *const c_void,
    errors: Mutex<Errors>,
    /// As the library counts; nothing hangs on it, the owner is in Rust.
    references: AtomicI32,
}

// SAFETY: `table` is the address of a static that is never written; the rest is locked or atomic.
unsafe impl Sync for Object {}
// SAFETY: as above.
unsafe impl Send for Object {}

impl Object {
    fn errors(&self) -> MutexGuard<'_, Errors> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error recorder. It must outlive the library's object that it is set for.
#[derive(Clone)]
pub(crate) struct Recorder(Arc<Object>);

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

impl Recorder {
    /// Makes a recorder and sets it for `object`.
    ///
    /// # Safety
    /// `entry` is `void setErrorRecorder(IErrorRecorder*)` of the object, which is of this generation and is destroyed
    /// before the recorder.
    pub(crate) unsafe fn set(generation: Generation, object: &ffi::Object, entry: usize) -> Self {
        let recorder = Self::new(generation);
        // SAFETY: the recorder has this generation's table; the rest is the caller's.
        unsafe { ffi::call!(object, entry, (*mut c_void), recorder.address()) };
        recorder
    }

    fn new(generation: Generation) -> Self {
        macro_rules! methods {
            ($($first:ident,)* => $size:literal) => {{
                static TABLE: Table<$size> = Table::new([
                    $($first as *const c_void,)*
                    keep as *const c_void,
                    keep as *const c_void,
                    count as *const c_void,
                    code as *const c_void,
                    description as *const c_void,
                    has_overflowed as *const c_void,
                    clear as *const c_void,
                    report as *const c_void,
                    increase as *const c_void,
                    decrease as *const c_void,
                ]);
                TABLE.address()
            }};
        }
        let table = match generation {
            Generation::V8 => methods!(=> 10),
            Generation::V10 | Generation::V11 => methods!(language, interface, => 12),
        };
        Self(Arc::new(Object { table, errors: Mutex::default(), references: AtomicI32::new(0) }))
    }

    fn address(&self) -> *mut c_void {
        Arc::as_ptr(&self.0).cast_mut().cast()
    }

    /// What has been reported since this was asked for.
    pub(crate) fn take(&self) -> Vec<RecordedError> {
        let errors = std::mem::take(&mut *self.0.errors());
        let name = |(code, text): &(i32, CString)| RecordedError {
            code: ErrorCode::from_raw(*code),
            description: text.to_string_lossy().into_owned(),
        };
        errors.kept.iter().map(name).collect()
    }

    /// The same as one sentence, or nothing.
    pub(crate) fn take_text(&self) -> Option<String> {
        let texts: Vec<String> = self.take().into_iter().map(|error| error.description).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}

/// The object behind `this`.
///
/// # Safety
/// `this` is the address of a live recorder, as the library passes it to the methods of its table.
unsafe fn object<'a>(this: *mut c_void) -> &'a Object {
    // SAFETY: the caller's.
    unsafe { &*this.cast::<Object>() }
}

extern "C" fn interface(_this: *mut c_void) -> InterfaceInfo {
    InterfaceInfo::new(c"IErrorRecorder")
}

extern "C" fn count(this: *mut c_void) -> i32 {
    // SAFETY: called by the library with the object.
    unsafe { object(this) }.errors().kept.len() as i32
}

extern "C" fn code(this: *mut c_void, index: i32) -> i32 {
    // SAFETY: called by the library with the object.
    let errors = unsafe { object(this) }.errors();
    // 1 is `kUNSPECIFIED_ERROR`, for an index that does not exist.
    usize::try_from(index).ok().and_then(|index| errors.kept.get(index)).map_or(1, |error| error.0)
}

/// The text stays where it is until the errors are cleared or taken.
extern "C" fn description(this: *mut c_void, index: i32) -> *const c_char {
    // SAFETY: called by the library with the object.
    let errors = unsafe { object(this) }.errors();
    usize::try_from(index)
        .ok()
        .and_then(|index| errors.kept.get(index))
        .map_or(c"".as_ptr(), |error| error.1.as_ptr())
}

extern "C" fn has_overflowed(this: *mut c_void) -> bool {
    // SAFETY: called by the library with the object.
    unsafe { object(this) }.errors().overflowed
}

extern "C" fn clear(this: *mut c_void) {
    // SAFETY: called by the library with the object.
    *unsafe { object(this) }.errors() = Errors::default();
}

/// Gives `false`: the library need not stop for an error, it answers its caller, who does.
extern "C" fn report(this: *mut c_void, code: i32, description: *const c_char) -> bool {
    // SAFETY: called by the library with the object and a C string that lives during the call.
    let (object, text) = unsafe { (object(this), ffi::text(description)) };
    let mut errors = object.errors();
    if errors.kept.len() < KEPT {
        // Text from a C string has no zero byte, so this is never the empty one.
        errors.kept.push((code, CString::new(text).unwrap_or_default()));
    } else {
        errors.overflowed = true;
    }
    false
}

extern "C" fn increase(this: *mut c_void) -> i32 {
    // SAFETY: called by the library with the object.
    unsafe { object(this) }.references.fetch_add(1, Ordering::Relaxed) + 1
}

extern "C" fn decrease(this: *mut c_void) -> i32 {
    // SAFETY: called by the library with the object.
    unsafe { object(this) }.references.fetch_sub(1, Ordering::Relaxed) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_kept_up_to_a_bound_and_taken_once() {
        let recorder = Recorder::new(Generation::V10);
        for index in 0..40 {
            let text = CString::new(format!("error {index}")).unwrap();
            assert!(!report(recorder.address(), 3, text.as_ptr()));
        }
        assert_eq!(count(recorder.address()), 32);
        assert!(has_overflowed(recorder.address()));
        assert_eq!(code(recorder.address(), 31), 3);
        assert_eq!(code(recorder.address(), -1), 1);
        let taken = recorder.take();
        assert_eq!(taken.len(), 32);
        assert_eq!(
            taken[0],
            RecordedError { code: ErrorCode::InvalidArgument, description: "error 0".into() }
        );
        assert_eq!(recorder.take_text(), None);
        assert!(!has_overflowed(recorder.address()));
    }
}
