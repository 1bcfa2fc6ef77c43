//! TensorRT's messages, passed on to `tracing` and to the program.

use std::ffi::{c_char, c_void};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::abi::Generation;
use crate::callback::{InterfaceInfo, Table, keep, language};
use crate::ffi;

/// Errors kept as the reason of a failed call: the first ones, which say more than what follows from them.
const KEPT: usize = 4;

/// How serious a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// TensorRT is at fault; nothing more can be done.
    InternalError,
    /// A call failed.
    Error,
    /// Something that may be a mistake.
    Warning,
    /// Progress.
    Info,
    /// Details, many thousands of them while a plan is built.
    Verbose,
}

impl Severity {
    fn from_raw(raw: i32) -> Self {
        match raw {
            0 => Self::InternalError,
            1 => Self::Error,
            2 => Self::Warning,
            3 => Self::Info,
            _ => Self::Verbose,
        }
    }
}

type Sink = Arc<dyn Fn(Severity, &str) + Send + Sync>;

/// Where messages go: to `tracing` (target `tensorrt`), and to a closure if one is given.
///
/// Errors become `error`, warnings `warn`; progress, of which TensorRT has much to say, becomes `debug` and details
/// `trace`.
#[derive(Clone)]
pub struct Logger {
    verbosity: Severity,
    sink: Option<Sink>,
}

impl Default for Logger {
    fn default() -> Self {
        Self { verbosity: Severity::Info, sink: None }
    }
}

impl fmt::Debug for Logger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logger").field("verbosity", &self.verbosity).finish_non_exhaustive()
    }
}

impl Logger {
    /// The least serious messages that are passed on; [`Severity::Info`] unless set.
    #[must_use]
    pub fn verbosity(mut self, least: Severity) -> Self {
        self.verbosity = least;
        self
    }

    /// Also passes messages to `sink`, which is called from any thread, also from several at a time.
    #[must_use]
    pub fn also_to(mut self, sink: impl Fn(Severity, &str) + Send + Sync + 'static) -> Self {
        self.sink = Some(Arc::new(sink));
        self
    }

    fn pass(&self, severity: Severity, message: &str) {
        if severity > self.verbosity {
            return;
        }
        match severity {
            Severity::InternalError | Severity::Error => {
                tracing::error!(target: "tensorrt", "{message}");
            }
            Severity::Warning => tracing::warn!(target: "tensorrt", "{message}"),
            Severity::Info => tracing::debug!(target: "tensorrt", "{message}"),
            Severity::Verbose => tracing::trace!(target: "tensorrt", "{message}"),
        }
        if let Some(sink) = &self.sink {
            sink(severity, message);
        }
    }
}

/// The object that the library sees. It lives as long as the process: TensorRT keeps the first logger that it is
/// given and may use it after the object that it was given for.
#[repr(C)]
pub(crate) struct LoggerObject {
    table: *const c_void,
    logger: RwLock<Logger>,
    errors: Mutex<Vec<String>>,
}

// SAFETY: `table` is the address of a static that is never written; the rest is locked.
unsafe impl Sync for LoggerObject {}
// SAFETY: as above.
unsafe impl Send for LoggerObject {}

impl fmt::Debug for LoggerObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoggerObject").finish_non_exhaustive()
    }
}

impl LoggerObject {
    pub(crate) fn leaked(generation: Generation) -> &'static Self {
        static TO_10: Table<3> =
            Table::new([log as *const c_void, keep as *const c_void, keep as *const c_void]);
        static SINCE_11: Table<5> = Table::new([
            language as *const c_void,
            interface as *const c_void,
            keep as *const c_void,
            keep as *const c_void,
            log as *const c_void,
        ]);
        let table =
            if generation == Generation::V11 { SINCE_11.address() } else { TO_10.address() };
        Box::leak(Box::new(Self {
            table,
            logger: RwLock::new(Logger::default()),
            errors: Mutex::default(),
        }))
    }

    pub(crate) fn address(&'static self) -> *mut c_void {
        (&raw const *self).cast_mut().cast()
    }

    pub(crate) fn set(&self, logger: Logger) {
        *self.logger.write().unwrap_or_else(PoisonError::into_inner) = logger;
    }

    /// The errors that were logged since this was asked for, as one sentence.
    pub(crate) fn take_error(&self) -> Option<String> {
        let errors =
            std::mem::take(&mut *self.errors.lock().unwrap_or_else(PoisonError::into_inner));
        (!errors.is_empty()).then(|| errors.join("; "))
    }

    fn receive(&self, severity: Severity, message: &str) {
        if severity <= Severity::Error {
            let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
            if errors.len() < KEPT {
                errors.push(message.to_owned());
            }
        }
        // Cloned, so that a sink may set another logger.
        let logger = self.logger.read().unwrap_or_else(PoisonError::into_inner).clone();
        logger.pass(severity, message);
    }
}

extern "C" fn log(this: *mut c_void, severity: i32, message: *const c_char) {
    // SAFETY: the library calls the methods of the table with the object that points to it, which is never freed.
    let object = unsafe { &*this.cast::<LoggerObject>() };
    // SAFETY: a message is a C string that lives during the call.
    let message = unsafe { ffi::text(message) };
    // A panic must not run through the library's frames; the message is lost then, its panic is reported by the hook.
    let _ =
        catch_unwind(AssertUnwindSafe(|| object.receive(Severity::from_raw(severity), &message)));
}

extern "C" fn interface(_this: *mut c_void) -> InterfaceInfo {
    InterfaceInfo::new(c"ILogger")
}
