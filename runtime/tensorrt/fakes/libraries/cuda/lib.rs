//! A library that looks like `libcuda` from outside. Device memory is host memory.
//!
//! As on a GPU, work waits in its stream until somebody waits for it, a broken context stays broken until it is reset,
//! and calls that a capture forbids end the capture. Calls without a current context, copies outside of live memory and
//! objects that are gone are refused. Kernels run on the CPU, from `kernels.so` in the folder of this file.
#![allow(clippy::all, unsafe_op_in_unsafe_fn, non_snake_case)]

mod foreign;
mod memory;
mod module;
mod work;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::{Mutex, MutexGuard};

use memory::Block;
use module::{Function, Module};
use work::{Event, Stream, Work};

type P = *mut c_void;

pub enum Object {
    Stream(Box<Stream>),
    Event(Event),
    Module(Module),
    Graph(Vec<Work>),
    GraphExec(Vec<Work>),
}

pub struct State {
    calls: Vec<String>,
    settings: BTreeMap<String, i64>,
    /// How often each call was made.
    counts: BTreeMap<String, i64>,
    memory: BTreeMap<u64, Block>,
    pinned: BTreeMap<u64, Block>,
    objects: BTreeMap<u64, Object>,
    functions: BTreeMap<u64, Function>,
    images: BTreeMap<u64, foreign::Image>,
    arrays: BTreeMap<u64, foreign::Array>,
    /// Images that are registered.
    resources: BTreeMap<u64, u64>,
    /// Primary contexts that are retained.
    retained: i64,
    /// What every call answers since the context broke.
    sticky: i32,
    handles: u64,
}
static STATE: Mutex<State> = Mutex::new(State {
    calls: Vec::new(),
    settings: BTreeMap::new(),
    counts: BTreeMap::new(),
    memory: BTreeMap::new(),
    pinned: BTreeMap::new(),
    objects: BTreeMap::new(),
    functions: BTreeMap::new(),
    images: BTreeMap::new(),
    arrays: BTreeMap::new(),
    resources: BTreeMap::new(),
    retained: 0,
    sticky: 0,
    handles: 0,
});

thread_local! {
    static CURRENT: Cell<P> = const { Cell::new(std::ptr::null_mut()) };
    /// Contexts below the current one.
    static BELOW: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap()
}

/// What the process cannot go on after, said before it ends.
fn fatal(message: &str) -> ! {
    eprintln!("fake libcuda: {message}");
    std::process::abort();
}

/// Errors after which the driver answers nothing but them.
fn is_sticky(code: i32) -> bool {
    [214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719].contains(&code)
}

impl State {
    /// As it was set, else as `FAKE_CUDA` has it: `name=value,name=value`.
    fn setting(&self, name: &str, default: i64) -> i64 {
        if let Some(&value) = self.settings.get(name) {
            return value;
        }
        let given = std::env::var("FAKE_CUDA").unwrap_or_default();
        let mut pairs = given.split(',').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map_or(default, |(_, value)| value.parse().unwrap())
    }

    /// Notes a call, and answers the error that was asked for it, or that of the broken context.
    fn call(&mut self, name: &str) -> i32 {
        self.calls.push(name.to_owned());
        if self.sticky != 0 {
            return self.sticky;
        }
        let number = self.counts.entry(name.to_owned()).or_default();
        *number += 1;
        let number = *number;
        if number == self.setting(&format!("{name}:breaks"), 0) {
            return self.fail(700);
        }
        let once = self.settings.remove(&format!("{name}:once"));
        let answer = once.unwrap_or_else(|| self.setting(name, 0)) as i32;
        self.fail(answer)
    }

    /// As [`State::call`], for calls that need a current context.
    fn current(&mut self, name: &str) -> i32 {
        if CURRENT.get().is_null() {
            self.calls.push(name.to_owned());
            return 201; // CUDA_ERROR_INVALID_CONTEXT
        }
        self.call(name)
    }

    fn fail(&mut self, code: i32) -> i32 {
        if is_sticky(code) {
            self.sticky = code;
        }
        code
    }

    /// A number that is no address.
    fn handle(&mut self) -> u64 {
        self.handles += 1;
        self.handles * 16 + 7
    }
}

// ---- control ----

#[unsafe(no_mangle)]
unsafe extern "C" fn fake_set(name: *const c_char, value: i64) {
    let name = CStr::from_ptr(name).to_str().unwrap().to_owned();
    state().settings.insert(name, value);
}
#[unsafe(no_mangle)]
extern "C" fn fake_take_calls() -> *mut c_char {
    CString::new(std::mem::take(&mut state().calls).join("\n")).unwrap().into_raw()
}
/// Memory, streams, events, modules, graphs, registered images and retained contexts.
#[unsafe(no_mangle)]
extern "C" fn fake_live_objects() -> i64 {
    let state = state();
    state.retained + (state.resources.len() + state.objects.len() + state.memory.len() + state.pinned.len()) as i64
}

// ---- driver and devices ----

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: u32) -> i32 {
    assert_eq!(flags, 0);
    let mut state = state();
    state.calls.push("cuInit".to_owned());
    state.setting("cuInit", 0) as i32
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut i32) -> i32 {
    *version = state().setting("driver_version", 12060) as i32;
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(code: i32, name: *mut *const c_char) -> i32 {
    *name = match code {
        1 => c"CUDA_ERROR_INVALID_VALUE",
        2 => c"CUDA_ERROR_OUT_OF_MEMORY",
        100 => c"CUDA_ERROR_NO_DEVICE",
        201 => c"CUDA_ERROR_INVALID_CONTEXT",
        218 => c"CUDA_ERROR_INVALID_PTX",
        400 => c"CUDA_ERROR_INVALID_HANDLE",
        500 => c"CUDA_ERROR_NOT_FOUND",
        700 => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        900 => c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        901 => c"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
        _ => return 1,
    }
    .as_ptr();
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(code: i32, text: *mut *const c_char) -> i32 {
    *text = match code {
        2 => c"out of memory",
        100 => c"no CUDA-capable device is detected",
        218 => c"a PTX JIT compilation failed",
        500 => c"named symbol not found",
        700 => c"an illegal memory access was encountered",
        900 => c"operation not permitted when stream is capturing",
        _ => return 1,
    }
    .as_ptr();
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut i32) -> i32 {
    *count = state().setting("devices", 2) as i32;
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut i32, ordinal: i32) -> i32 {
    // Other than the ordinal, so that a mix-up shows; GStreamer takes them for the same.
    *device = ordinal + state().setting("device_base", 10) as i32;
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: i32, device: i32) -> i32 {
    let text = format!("Fake GPU {}\0", i64::from(device) - state().setting("device_base", 10));
    assert!(text.len() <= length as usize);
    std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len());
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(value: *mut i32, attribute: i32, _device: i32) -> i32 {
    *value = match attribute {
        75 => state().setting("compute_major", 8) as i32,
        76 => state().setting("compute_minor", 7) as i32,
        // What GStreamer asks for: alignment of textures and of their pitch, unified addresses.
        14 | 51 => 512,
        41 => 1,
        _ => return 1,
    };
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: i32) -> i32 {
    *bytes = 32 << 30;
    0
}

// ---- contexts ----

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut P, device: i32) -> i32 {
    let mut state = state();
    let answer = state.call("cuDevicePrimaryCtxRetain");
    if answer == 0 {
        state.retained += 1;
        *context = ((device as usize + 1) * 0x1000) as P;
    }
    answer
}
#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: i32) -> i32 {
    state().retained -= 1;
    0
}
/// Everything that was made is gone after it, and the context is whole again.
#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxReset_v2(_device: i32) -> i32 {
    let mut state = state();
    state.sticky = 0;
    let answer = state.call("cuDevicePrimaryCtxReset");
    if answer == 0 {
        state.objects.clear();
        state.functions.clear();
        let (own, others) =
            std::mem::take(&mut state.memory).into_iter().partition(|(_, block)| is_primary(block.owner));
        state.memory = others;
        for block in BTreeMap::into_values(own) {
            block.free();
        }
        for block in std::mem::take(&mut state.pinned).into_values() {
            block.free();
        }
    }
    answer
}
#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: P) -> i32 {
    CURRENT.set(context);
    state().sticky
}

/// Primary contexts have round numbers, others those of [`State::handle`].
fn is_primary(context: u64) -> bool {
    context % 0x1000 == 0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxCreate_v2(context: *mut P, _flags: u32, _device: i32) -> i32 {
    let handle = state().handle() as P;
    *context = handle;
    cuCtxPushCurrent_v2(handle)
}
#[unsafe(no_mangle)]
extern "C" fn cuCtxDestroy_v2(_context: P) -> i32 {
    0
}
#[unsafe(no_mangle)]
extern "C" fn cuCtxPushCurrent_v2(context: P) -> i32 {
    let below = CURRENT.replace(context);
    BELOW.with_borrow_mut(|contexts| contexts.push(below as usize));
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxPopCurrent_v2(context: *mut P) -> i32 {
    let Some(below) = BELOW.with_borrow_mut(Vec::pop) else { return 201 };
    let popped = CURRENT.replace(below as P);
    if !context.is_null() {
        *context = popped;
    }
    0
}
