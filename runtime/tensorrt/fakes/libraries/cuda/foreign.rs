//! What other libraries in a process use: contexts of their own, copies of rows between contexts, images of EGL.

use crate::memory::Block;
use crate::work::{self, Work};
use crate::{CURRENT, P, State, state};

/// `CUDA_ERROR_NOT_SUPPORTED`.
const NOT_SUPPORTED: i32 = 801;

#[repr(C)]
struct Side2d {
    x: usize,
    y: usize,
    kind: u32,
    host: u64,
    device: u64,
    array: u64,
    pitch: usize,
}
#[repr(C)]
struct Copy2d {
    from: Side2d,
    to: Side2d,
    row: usize,
    rows: usize,
}
#[repr(C)]
struct SidePeer {
    x: usize,
    y: usize,
    z: usize,
    level: usize,
    kind: u32,
    host: u64,
    device: u64,
    array: u64,
    context: u64,
    pitch: usize,
    height: usize,
}
#[repr(C)]
struct CopyPeer {
    from: SidePeer,
    to: SidePeer,
    row: usize,
    rows: usize,
    depth: usize,
}

/// An image of EGL, made by a test.
pub struct Image {
    kind: u32,
    size: (u32, u32),
    /// Addresses and distances of rows.
    planes: Vec<(u64, usize)>,
}
#[derive(Clone, Copy)]
pub struct Array {
    address: u64,
    pitch: usize,
}

#[repr(C)]
struct EglFrame {
    planes: [u64; 3],
    width: u32,
    height: u32,
    depth: u32,
    pitch: u32,
    count: u32,
    channels: u32,
    kind: u32,
    color_format: u32,
    array_format: u32,
}

impl State {
    /// Address and distance of rows of one side of a copy, or the error: memory that is not of the context is refused,
    /// which a real driver does not always notice.
    fn side(
        &self,
        (kind, host, device, array): (u32, u64, u64, u64),
        pitch: usize,
        context: u64,
        (row, rows): (usize, usize),
    ) -> Result<(u64, usize), i32> {
        let span = |pitch: usize| (rows - 1) * pitch + row;
        match kind {
            1 => Ok((host, pitch)),
            2 | 4 => {
                let Some((start, block)) = self.block_at(device) else { return Err(700) };
                if device + span(pitch) as u64 > start + block.bytes as u64 {
                    return Err(700);
                }
                let pinned = self.is_pinned(device, 1);
                if (block.owner != context && !pinned) || (pinned && kind == 2) { Err(1) } else { Ok((device, pitch)) }
            }
            3 => self.arrays.get(&array).map(|array| (array.address, array.pitch)).ok_or(400),
            _ => Err(1),
        }
    }

    fn rows(&mut self, copy: &Copy2d) -> Result<Work, i32> {
        let (size, context) = ((copy.row, copy.rows), CURRENT.get() as u64);
        let side = |side: &Side2d| {
            if (side.x, side.y) != (0, 0) || side.pitch < copy.row && side.kind != 3 {
                return Err(1);
            }
            self.side((side.kind, side.host, side.device, side.array), side.pitch, context, size)
        };
        Ok(Work::Rows { to: side(&copy.to)?, from: side(&copy.from)?, row: copy.row, rows: copy.rows })
    }
}

// ---- memory ----

#[unsafe(no_mangle)]
unsafe extern "C" fn cuPointerGetAttributes(count: u32, attributes: *const i32, places: *const P, address: u64) -> i32 {
    let mut state = state();
    let answer = state.current("cuPointerGetAttributes");
    if answer != 0 {
        return answer;
    }
    let (start, bytes, owner) =
        state.block_at(address).map_or((0, 0, 0), |(start, block)| (start, block.bytes as u64, block.owner));
    for i in 0..count as usize {
        *(*places.add(i)).cast::<u64>() = match *attributes.add(i) {
            1 => owner,
            11 => start,
            12 => bytes,
            _ => return 1,
        };
    }
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpy2DAsync_v2(copy: *const Copy2d, stream: P) -> i32 {
    if stream.is_null() {
        return cuMemcpy2D_v2(copy);
    }
    let mut state = state();
    let answer = state.current("cuMemcpy2DAsync");
    if answer != 0 {
        return answer;
    }
    match state.rows(&*copy) {
        Ok(work) => state.enqueue(stream, work),
        Err(code) => state.fail(code),
    }
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpy2D_v2(copy: *const Copy2d) -> i32 {
    let answer = state().outside_capture("cuMemcpy2D");
    if answer != 0 {
        return answer;
    }
    let work = state().rows(&*copy);
    match work {
        Ok(Work::Rows { to, from, row, rows }) => work::copy_rows(to, from, row, rows),
        Ok(_) => {}
        Err(code) => return state().fail(code),
    }
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpy3DPeerAsync(copy: *const CopyPeer, stream: P) -> i32 {
    let mut state = state();
    let answer = state.current("cuMemcpy3DPeerAsync");
    if answer != 0 {
        return answer;
    }
    let CopyPeer { from, to, row, rows, depth } = &*copy;
    if *depth != 1 {
        return 1;
    }
    let side = |side: &SidePeer| {
        if (side.x, side.y, side.z, side.level) != (0, 0, 0, 0) || side.pitch < *row || side.height < *rows {
            return Err(1);
        }
        let place = (side.kind, side.host, side.device, side.array);
        state.side(place, side.pitch, side.context, (*row, *rows))
    };
    match (side(to), side(from)) {
        (Ok(to), Ok(from)) => state.enqueue(stream, Work::Rows { to, from, row: *row, rows: *rows }),
        (Err(code), _) | (_, Err(code)) => state.fail(code),
    }
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocPitch_v2(address: *mut u64, pitch: *mut usize, row: usize, rows: usize, _: u32) -> i32 {
    let answer = state().outside_capture("cuMemAllocPitch");
    if answer == 0 {
        *pitch = row.next_multiple_of(512);
        let block = Block::new(*pitch * rows);
        *address = block.address();
        state().memory.insert(*address, block);
    }
    answer
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocHost_v2(address: *mut P, bytes: usize) -> i32 {
    crate::memory::cuMemHostAlloc(address, bytes, 0)
}

/// Memory in a context of somebody else, which is never current here.
#[unsafe(no_mangle)]
extern "C" fn fake_foreign_memory(bytes: usize) -> u64 {
    let mut block = Block::new(bytes);
    let address = block.address();
    let mut state = state();
    block.owner = state.handle();
    state.memory.insert(address, block);
    address
}
#[unsafe(no_mangle)]
extern "C" fn fake_free(address: u64) {
    let block = state().memory.remove(&address);
    block.expect("freed what is not allocated").free();
}

// ---- images of EGL ----

/// Makes an image of `count` planes; kind 0 hides them in arrays, 1 shows their addresses.
#[unsafe(no_mangle)]
unsafe extern "C" fn fake_egl_image(
    kind: u32,
    width: u32,
    height: u32,
    count: usize,
    addresses: *const u64,
    pitches: *const usize,
) -> u64 {
    let planes = (0..count).map(|i| (*addresses.add(i), *pitches.add(i))).collect();
    let mut state = state();
    let handle = state.handle();
    state.images.insert(handle, Image { kind, size: (width, height), planes });
    handle
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphicsEGLRegisterImage(resource: *mut P, image: P, flags: u32) -> i32 {
    assert_eq!(flags, 1, "images are only read");
    let mut state = state();
    let answer = state.outside_capture("cuGraphicsEGLRegisterImage");
    if answer != 0 {
        return answer;
    }
    if !state.images.contains_key(&(image as u64)) {
        return 400;
    }
    let handle = state.handle();
    state.resources.insert(handle, image as u64);
    *resource = handle as P;
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphicsResourceGetMappedEglFrame(frame: *mut EglFrame, resource: P, index: u32, level: u32) -> i32 {
    let mut state = state();
    let answer = state.current("cuGraphicsResourceGetMappedEglFrame");
    if answer != 0 {
        return answer;
    }
    let image = state.resources.get(&(resource as u64)).and_then(|image| state.images.get(image));
    let (Some(image), 0, 0) = (image, index, level) else { return 400 };
    let (kind, (width, height), given) = (image.kind, image.size, image.planes.clone());
    let mut planes = [0; 3];
    for (plane, &(address, pitch)) in planes.iter_mut().zip(&given) {
        *plane = address;
        if kind == 0 {
            *plane = state.handle();
            state.arrays.insert(*plane, Array { address, pitch });
        }
        // Mapping makes the memory readable in the current context.
        if let Some(block) = state.memory.get_mut(&address) {
            block.owner = CURRENT.get() as u64;
        }
    }
    let pitch = if kind == 0 { 0 } else { given[0].1 as u32 };
    let count = given.len() as u32;
    *frame =
        EglFrame { planes, width, height, depth: 0, pitch, count, channels: 1, kind, color_format: 0, array_format: 1 };
    0
}
#[unsafe(no_mangle)]
extern "C" fn cuGraphicsUnregisterResource(resource: P) -> i32 {
    let answer = state().current("cuGraphicsUnregisterResource");
    // Whoever still reads from it reads from freed memory.
    assert!(state().idle(), "an image was unregistered before the work with it was done");
    state().arrays.clear();
    if answer == 0 && state().resources.remove(&(resource as u64)).is_none() { 400 } else { answer }
}

// ---- what GStreamer looks for, and does not use here ----

macro_rules! unused {
    ($($name:ident)*) => {
        $(#[unsafe(no_mangle)] extern "C" fn $name() -> i32 { NOT_SUPPORTED })*
    };
}
unused! {
    cuCtxEnablePeerAccess cuCtxDisablePeerAccess cuGraphicsMapResources cuGraphicsUnmapResources cuModuleLoadData
    cuTexObjectCreate cuTexObjectDestroy cuGraphicsGLRegisterImage cuGraphicsGLRegisterBuffer cuGLGetDevices_v2
    cuGraphicsResourceSetMapFlags_v2 cuGraphicsSubResourceGetMappedArray cuGraphicsResourceGetMappedPointer_v2
    cuvidCtxLockCreate cuvidCtxLockDestroy cuvidCtxLock cuvidCtxUnlock cuvidCreateDecoder cuvidDestroyDecoder
    cuvidDecodePicture cuvidCreateVideoParser cuvidParseVideoData cuvidDestroyVideoParser cuvidMapVideoFrame64
    cuvidUnmapVideoFrame64 cuvidGetDecoderCaps
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceCanAccessPeer(can: *mut i32, _device: i32, _peer: i32) -> i32 {
    *can = 0;
    0
}
