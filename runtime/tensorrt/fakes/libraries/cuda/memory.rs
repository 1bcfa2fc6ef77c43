//! Device memory and page-locked memory, with guarded ends.

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ffi::c_void;

use crate::work::{self, Work};
use crate::{CURRENT, P, State, fatal, state};

/// Bytes before and after each allocation that nobody may write. Allocations begin at multiples of 256, as the driver's.
const GUARD: usize = 256;
static UNTOUCHED: [u8; GUARD] = [0xA7; GUARD];

pub struct Block {
    start: u64,
    pub bytes: usize,
    /// The context in which it was allocated.
    pub owner: u64,
}

impl Block {
    pub fn new(bytes: usize) -> Self {
        unsafe {
            let start = std::alloc::alloc(Self::layout(bytes));
            // Filled, so that memory that is read before it is written is noticed.
            start.write_bytes(0xCD, bytes + 2 * GUARD);
            start.write_bytes(UNTOUCHED[0], GUARD);
            start.add(GUARD + bytes).write_bytes(UNTOUCHED[0], GUARD);
            Self { start: start as u64, bytes, owner: CURRENT.get() as u64 }
        }
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes + 2 * GUARD, 256).unwrap()
    }

    pub fn address(&self) -> u64 {
        self.start + GUARD as u64
    }

    fn check(&self, who: &str) {
        let guard = |at: u64| unsafe { std::slice::from_raw_parts(at as *const u8, GUARD) };
        for (end, side) in [(self.start, "before"), (self.address() + self.bytes as u64, "behind")] {
            if guard(end) != UNTOUCHED {
                fatal(&format!("{who} wrote {side} a buffer of {} bytes", self.bytes));
            }
        }
    }

    pub fn free(self) {
        self.check("something");
        unsafe { std::alloc::dealloc(self.start as *mut u8, Self::layout(self.bytes)) };
    }
}

fn contains(blocks: &BTreeMap<u64, Block>, address: u64, bytes: usize) -> bool {
    let block = blocks.range(..=address).next_back();
    block.is_some_and(|(start, block)| address + bytes as u64 <= start + block.bytes as u64)
}

impl State {
    pub fn on_device(&self, address: u64, bytes: usize) -> bool {
        contains(&self.memory, address, bytes)
    }

    pub fn is_pinned(&self, address: u64, bytes: usize) -> bool {
        contains(&self.pinned, address, bytes)
    }

    /// The memory that an address lies in: of a device, or page-locked.
    pub fn block_at(&self, address: u64) -> Option<(u64, &Block)> {
        [&self.memory, &self.pinned].into_iter().find_map(|blocks| {
            let (&start, block) = blocks.range(..=address).next_back()?;
            (address < start + block.bytes as u64).then_some((start, block))
        })
    }

    /// Ends the process if memory outside of the buffers was written.
    pub fn check_guards(&self, who: &str) {
        self.memory.values().chain(self.pinned.values()).for_each(|block| block.check(who));
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> i32 {
    assert!(bytes > 0);
    let mut state = state();
    let answer = state.outside_capture("cuMemAlloc");
    if answer == 0 {
        let block = Block::new(bytes);
        *address = block.address();
        state.memory.insert(*address, block);
    }
    answer
}
#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> i32 {
    let answer = state().outside_capture("cuMemFree");
    if answer == 0 {
        work::finish_all();
        state().memory.remove(&address).expect("freed what is not allocated").free();
    }
    answer
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(address: *mut P, bytes: usize, flags: u32) -> i32 {
    assert!(bytes > 0 && flags == 0);
    let mut state = state();
    let answer = state.outside_capture("cuMemHostAlloc");
    if answer == 0 {
        let block = Block::new(bytes);
        *address = block.address() as P;
        state.pinned.insert(block.address(), block);
    }
    answer
}
#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(address: P) -> i32 {
    let answer = state().outside_capture("cuMemFreeHost");
    if answer == 0 {
        work::finish_all();
        state().pinned.remove(&(address as u64)).expect("freed what is not allocated").free();
    }
    answer
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemsetD8_v2(address: u64, value: u8, bytes: usize) -> i32 {
    let mut state = state();
    let answer = state.outside_capture("cuMemsetD8");
    if answer != 0 {
        return answer;
    }
    if !state.on_device(address, bytes) {
        return state.fail(700);
    }
    std::ptr::write_bytes(address as *mut u8, value, bytes);
    0
}
#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(address: u64, value: u8, bytes: usize, stream: P) -> i32 {
    let mut state = state();
    let answer = state.current("cuMemsetD8Async");
    if answer != 0 {
        return answer;
    }
    if !state.on_device(address, bytes) {
        return state.fail(700);
    }
    state.enqueue(stream, Work::Set { address, value, bytes })
}
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: P) -> i32 {
    copy("cuMemcpyHtoDAsync", to, from as u64, bytes, stream, (to, from as u64))
}
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(to: P, from: u64, bytes: usize, stream: P) -> i32 {
    copy("cuMemcpyDtoHAsync", to as u64, from, bytes, stream, (from, to as u64))
}
fn copy(call: &str, to: u64, from: u64, bytes: usize, stream: P, (device, host): (u64, u64)) -> i32 {
    let mut state = state();
    let answer = state.current(call);
    if answer != 0 {
        return answer;
    }
    if !state.on_device(device, bytes) {
        return state.fail(700);
    }
    // A graph would read the address again when it is launched: only page-locked memory is meant to stay.
    if state.is_capturing(stream) && !state.is_pinned(host, bytes) {
        return state.invalidate(stream);
    }
    state.enqueue(stream, Work::Copy { to, from, bytes })
}
