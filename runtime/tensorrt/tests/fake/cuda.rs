//! A library that looks like `libcuda` from outside. Device memory is host memory, and work is done at once.
//!
//! Calls without a current context, and copies outside of live memory, fail as they would on a GPU.
#![allow(clippy::all, unsafe_op_in_unsafe_fn, non_snake_case)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::Mutex;

type P = *mut c_void;

struct State {
    calls: Vec<String>,
    settings: BTreeMap<String, i64>,
    /// Size by address.
    memory: BTreeMap<u64, usize>,
    objects: i64,
}
static STATE: Mutex<State> =
    Mutex::new(State { calls: Vec::new(), settings: BTreeMap::new(), memory: BTreeMap::new(), objects: 0 });

thread_local! {
    static CURRENT: Cell<P> = const { Cell::new(std::ptr::null_mut()) };
}

fn setting(name: &str, default: i64) -> i64 {
    STATE.lock().unwrap().settings.get(name).copied().unwrap_or(default)
}
fn record(call: &str) {
    STATE.lock().unwrap().calls.push(call.to_owned());
}
fn objects(change: i64) {
    STATE.lock().unwrap().objects += change;
}
/// `CUDA_ERROR_INVALID_CONTEXT` where no context is current.
fn current(call: &str) -> i32 {
    record(call);
    if CURRENT.get().is_null() { 201 } else { setting(call, 0) as i32 }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fake_set(name: *const c_char, value: i64) {
    let name = CStr::from_ptr(name).to_str().unwrap().to_owned();
    STATE.lock().unwrap().settings.insert(name, value);
}
#[unsafe(no_mangle)]
extern "C" fn fake_take_calls() -> *mut c_char {
    CString::new(std::mem::take(&mut STATE.lock().unwrap().calls).join("\n")).unwrap().into_raw()
}
/// Memory, streams, events and retained contexts.
#[unsafe(no_mangle)]
extern "C" fn fake_live_objects() -> i64 {
    let state = STATE.lock().unwrap();
    state.objects + state.memory.len() as i64
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: u32) -> i32 {
    assert_eq!(flags, 0);
    record("cuInit");
    setting("cuInit", 0) as i32
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut i32) -> i32 {
    *version = 12060;
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(code: i32, name: *mut *const c_char) -> i32 {
    *name = match code {
        2 => c"CUDA_ERROR_OUT_OF_MEMORY",
        100 => c"CUDA_ERROR_NO_DEVICE",
        700 => c"CUDA_ERROR_ILLEGAL_ADDRESS",
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
        _ => return 1,
    }
    .as_ptr();
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut i32) -> i32 {
    *count = setting("devices", 2) as i32;
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut i32, ordinal: i32) -> i32 {
    *device = ordinal + 10;
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: i32, device: i32) -> i32 {
    let text = format!("Fake GPU {}\0", device - 10);
    assert!(text.len() <= length as usize);
    std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len());
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(value: *mut i32, attribute: i32, _device: i32) -> i32 {
    *value = match attribute {
        75 => 8,
        76 => 7,
        _ => return 1,
    };
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: i32) -> i32 {
    *bytes = 32 << 30;
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut P, device: i32) -> i32 {
    objects(1);
    *context = (device as usize * 0x1000) as P;
    0
}
#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: i32) -> i32 {
    objects(-1);
    0
}
#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: P) -> i32 {
    CURRENT.set(context);
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> i32 {
    assert!(bytes > 0);
    let answer = current("cuMemAlloc");
    if answer == 0 {
        let memory = std::alloc::alloc(layout(bytes));
        // Filled, so that a buffer that is not set to zero is noticed.
        memory.write_bytes(0xCD, bytes);
        *address = memory as u64;
        STATE.lock().unwrap().memory.insert(*address, bytes);
    }
    answer
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemFree_v2(address: u64) -> i32 {
    let answer = current("cuMemFree");
    let bytes = STATE.lock().unwrap().memory.remove(&address).expect("freed what is not allocated");
    std::alloc::dealloc(address as *mut u8, layout(bytes));
    answer
}
/// The driver's allocations begin at multiples of 256.
fn layout(bytes: usize) -> std::alloc::Layout {
    std::alloc::Layout::from_size_align(bytes, 256).unwrap()
}
fn inside(address: u64, bytes: usize) -> bool {
    let state = STATE.lock().unwrap();
    let block = state.memory.range(..=address).next_back();
    block.is_some_and(|(start, size)| address + bytes as u64 <= start + *size as u64)
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemsetD8_v2(address: u64, value: u8, bytes: usize) -> i32 {
    if !inside(address, bytes) {
        return 700;
    }
    std::ptr::write_bytes(address as *mut u8, value, bytes);
    current("cuMemsetD8")
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, _stream: P) -> i32 {
    if !inside(to, bytes) {
        return 700;
    }
    std::ptr::copy_nonoverlapping(from.cast::<u8>(), to as *mut u8, bytes);
    current("cuMemcpyHtoDAsync")
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: P, from: u64, bytes: usize, _stream: P) -> i32 {
    if !inside(from, bytes) {
        return 700;
    }
    std::ptr::copy_nonoverlapping(from as *const u8, to.cast::<u8>(), bytes);
    current("cuMemcpyDtoHAsync")
}

fn new_object(out: *mut P, call: &str) -> i32 {
    let answer = current(call);
    if answer == 0 {
        objects(1);
        unsafe { *out = Box::into_raw(Box::new(0_u64)).cast() };
    }
    answer
}
unsafe fn drop_object(object: P, call: &str) -> i32 {
    objects(-1);
    drop(Box::from_raw(object.cast::<u64>()));
    current(call)
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut P, flags: u32) -> i32 {
    assert_eq!(flags, 1);
    new_object(stream, "cuStreamCreate")
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamDestroy_v2(stream: P) -> i32 {
    drop_object(stream, "cuStreamDestroy")
}
#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(_stream: P) -> i32 {
    current("cuStreamSynchronize")
}
#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(_stream: P, _event: P, flags: u32) -> i32 {
    assert_eq!(flags, 0);
    current("cuStreamWaitEvent")
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(event: *mut P, flags: u32) -> i32 {
    assert_eq!(flags, 0);
    new_object(event, "cuEventCreate")
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventDestroy_v2(event: P) -> i32 {
    drop_object(event, "cuEventDestroy")
}
#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(_event: P, _stream: P) -> i32 {
    current("cuEventRecord")
}
#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(_event: P) -> i32 {
    current("cuEventSynchronize")
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(time: *mut f32, _from: P, _to: P) -> i32 {
    *time = 1.5;
    current("cuEventElapsedTime")
}
