//! Streams, events and graphs: work in order, done when it is waited for.

use std::cell::Cell;
use std::sync::{Arc, Mutex};

use crate::module::Launch;
use crate::{Object, P, State, state};

/// Tells the fake TensorRT that a stream is one of these.
const MAGIC: u64 = 0x6661_6B65_5F63_7564;

/// Work of another library: a function, its data, and what frees them.
pub struct HostCall {
    run: extern "C" fn(P),
    data: P,
    free: extern "C" fn(P),
}
unsafe impl Send for HostCall {}
unsafe impl Sync for HostCall {}
impl Drop for HostCall {
    fn drop(&mut self) {
        (self.free)(self.data);
    }
}

#[derive(Clone)]
pub enum Work {
    Copy { to: u64, from: u64, bytes: usize },
    /// Rows: address and distance on both sides, bytes of a row, number of rows.
    Rows { to: (u64, usize), from: (u64, usize), row: usize, rows: usize },
    Set { address: u64, value: u8, bytes: usize },
    Launch(Arc<Launch>),
    Host(Arc<HostCall>),
    /// Passes an event, which is done then.
    Mark(u64),
}

/// The first two fields are read by the fake TensorRT.
#[repr(C)]
pub struct Stream {
    magic: u64,
    enqueue: extern "C" fn(P, extern "C" fn(P), P, extern "C" fn(P)) -> i32,
    queue: Vec<Work>,
    /// Pieces of work that were put in, and that were done.
    put: u64,
    done: u64,
    capture: Option<Capture>,
}
struct Capture {
    nodes: Vec<Work>,
    invalid: bool,
}

#[derive(Default)]
pub struct Event {
    /// Stream and how much work it had.
    mark: Option<(u64, u64)>,
    captured: bool,
}

thread_local! {
    /// The stream that this thread captures.
    static CAPTURING: Cell<u64> = const { Cell::new(0) };
}
/// Held while work is done, so that who waits for a stream finds it finished.
static DOING: Mutex<()> = Mutex::new(());

impl State {
    fn stream(&mut self, stream: P) -> Option<&mut Stream> {
        match self.objects.get_mut(&(stream as u64))? {
            Object::Stream(stream) => Some(stream),
            _ => None,
        }
    }

    fn event(&mut self, event: P) -> Option<&mut Event> {
        match self.objects.get_mut(&(event as u64))? {
            Object::Event(event) => Some(event),
            _ => None,
        }
    }

    pub fn is_capturing(&mut self, stream: P) -> bool {
        self.stream(stream).is_some_and(|stream| stream.capture.is_some())
    }

    /// What a forbidden call does to a capture, and its answer: `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED`.
    pub fn invalidate(&mut self, stream: P) -> i32 {
        if let Some(capture) = self.stream(stream).and_then(|stream| stream.capture.as_mut()) {
            capture.invalid = true;
        }
        900
    }

    /// As [`State::current`], for calls that may not be made by a thread while it captures.
    pub fn outside_capture(&mut self, call: &str) -> i32 {
        let answer = self.current(call);
        let capturing = CAPTURING.get() as P;
        if answer == 0 && self.is_capturing(capturing) { self.invalidate(capturing) } else { answer }
    }

    /// Whether no stream has work left.
    pub fn idle(&self) -> bool {
        let waits = |object: &Object| matches!(object, Object::Stream(stream) if !stream.queue.is_empty());
        !self.objects.values().any(waits)
    }

    pub fn enqueue(&mut self, stream: P, work: Work) -> i32 {
        let Some(stream) = self.stream(stream) else { return 400 };
        match &mut stream.capture {
            Some(capture) if capture.invalid => return 901,
            Some(capture) => capture.nodes.push(work),
            None => {
                stream.queue.push(work);
                stream.put += 1;
            }
        }
        0
    }
}

/// Does what waits in a stream; also what other streams wait for would be done here, had it not been already.
fn finish(stream: u64) {
    let doing = DOING.lock().unwrap();
    let queue = match state().stream(stream as P) {
        Some(stream) => std::mem::take(&mut stream.queue),
        None => return,
    };
    let count = queue.len() as u64;
    for work in queue {
        match work {
            _ if state().sticky != 0 => {}
            Work::Copy { to, from, bytes } => unsafe {
                std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes);
            },
            Work::Rows { to, from, row, rows } => unsafe { copy_rows(to, from, row, rows) },
            Work::Set { address, value, bytes } => unsafe {
                std::ptr::write_bytes(address as *mut u8, value, bytes);
            },
            Work::Launch(launch) => {
                launch.run();
                state().check_guards(&launch.name());
            }
            Work::Host(call) => (call.run)(call.data),
            Work::Mark(event) => {
                if let Some(event) = state().event(event as P) {
                    *event = Event { mark: Some((stream, 0)), captured: false };
                }
            }
        }
    }
    if let Some(stream) = state().stream(stream as P) {
        stream.done += count;
    }
    drop(doing);
}

pub unsafe fn copy_rows(to: (u64, usize), from: (u64, usize), row: usize, rows: usize) {
    for y in 0..rows {
        let (to, from) = (to.0 + (y * to.1) as u64, from.0 + (y * from.1) as u64);
        std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, row);
    }
}

pub fn finish_all() {
    let streams: Vec<u64> = state().objects.keys().copied().collect();
    streams.into_iter().for_each(finish);
}

/// By way of the stream's second field: work of another library, as often as a graph with it is launched.
extern "C" fn enqueue_host(stream: P, run: extern "C" fn(P), data: P, free: extern "C" fn(P)) -> i32 {
    let call = Arc::new(HostCall { run, data, free });
    let answer = state().enqueue(stream, Work::Host(Arc::clone(&call)));
    drop(call);
    answer
}

// ---- streams ----

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut P, flags: u32) -> i32 {
    assert!(flags <= 1);
    let mut state = state();
    let answer = state.current("cuStreamCreate");
    if answer == 0 {
        let new =
            Box::new(Stream { magic: MAGIC, enqueue: enqueue_host, queue: Vec::new(), put: 0, done: 0, capture: None });
        let address = &raw const *new as u64;
        *stream = address as P;
        state.objects.insert(address, Object::Stream(new));
    }
    answer
}
#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy(stream: P) -> i32 {
    cuStreamDestroy_v2(stream)
}
#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: P) -> i32 {
    let answer = state().current("cuStreamDestroy");
    if answer == 0 {
        finish(stream as u64);
        let object = state().objects.remove(&(stream as u64));
        assert!(matches!(object, Some(Object::Stream(_))), "destroyed what is no stream");
    }
    answer
}
#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: P) -> i32 {
    let mut locked = state();
    let answer = locked.current("cuStreamSynchronize");
    if answer != 0 {
        return answer;
    }
    if locked.is_capturing(stream) {
        return locked.invalidate(stream);
    }
    if stream.is_null() {
        // The default stream waits for none of these streams, but may not be used while one is captured.
        drop(locked);
        return if CAPTURING.get() == 0 { 0 } else { state().invalidate(CAPTURING.get() as P) };
    }
    if locked.stream(stream).is_none() {
        return 400;
    }
    drop(locked);
    finish(stream as u64);
    state().sticky
}
#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: P, event: P, flags: u32) -> i32 {
    assert_eq!(flags, 0);
    let mut locked = state();
    let answer = locked.current("cuStreamWaitEvent");
    if answer != 0 {
        return answer;
    }
    let (Some(_), Some(event)) = (locked.stream(stream).map(|_| ()), locked.event(event)) else { return 400 };
    let before = event.mark;
    drop(locked);
    if let Some((other, _)) = before.filter(|(other, _)| *other != stream as u64) {
        finish(other);
    }
    0
}

// ---- events ----

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(event: *mut P, flags: u32) -> i32 {
    assert_eq!(flags, 0);
    let mut state = state();
    let answer = state.current("cuEventCreate");
    if answer == 0 {
        let handle = state.handle();
        state.objects.insert(handle, Object::Event(Event::default()));
        *event = handle as P;
    }
    answer
}
#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: P) -> i32 {
    let mut state = state();
    let answer = state.current("cuEventDestroy");
    if answer == 0 {
        let object = state.objects.remove(&(event as u64));
        assert!(matches!(object, Some(Object::Event(_))), "destroyed what is no event");
    }
    answer
}
#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: P, stream: P) -> i32 {
    let mut state = state();
    let answer = state.current("cuEventRecord");
    if answer != 0 {
        return answer;
    }
    let Some(put) = state.stream(stream).map(|stream| stream.put) else { return 400 };
    let captured = state.is_capturing(stream);
    let Some(event) = state.event(event) else { return 400 };
    *event = Event { mark: Some((stream as u64, put)), captured };
    0
}
#[unsafe(no_mangle)]
extern "C" fn cuEventRecordWithFlags(event: P, stream: P, flags: u32) -> i32 {
    assert_eq!(flags, 1);
    let mut state = state();
    let answer = state.current("cuEventRecordWithFlags");
    if answer != 0 {
        return answer;
    }
    if !state.is_capturing(stream) || state.event(event).is_none() {
        return 400;
    }
    state.enqueue(stream, Work::Mark(event as u64))
}
#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: P) -> i32 {
    let mut locked = state();
    let answer = locked.outside_capture("cuEventSynchronize");
    if answer != 0 {
        return answer;
    }
    let Some(event) = locked.event(event) else { return 400 };
    if event.captured {
        return 907; // CUDA_ERROR_CAPTURED_EVENT
    }
    let mark = event.mark;
    drop(locked);
    if let Some((stream, _)) = mark {
        finish(stream);
    }
    state().sticky
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(time: *mut f32, from: P, to: P) -> i32 {
    let mut state = state();
    let answer = state.current("cuEventElapsedTime");
    if answer != 0 {
        return answer;
    }
    for event in [from, to] {
        let Some(event) = state.event(event) else { return 400 };
        let (Some((stream, put)), false) = (event.mark, event.captured) else { return 400 };
        if state.stream(stream as P).is_some_and(|stream| stream.done < put) {
            return 600; // CUDA_ERROR_NOT_READY
        }
    }
    *time = 1.5;
    0
}

// ---- graphs ----

#[unsafe(no_mangle)]
extern "C" fn cuStreamBeginCapture_v2(stream: P, mode: i32) -> i32 {
    assert_eq!(mode, 1, "only this thread's calls are watched");
    let mut state = state();
    let answer = state.current("cuStreamBeginCapture");
    if answer != 0 {
        return answer;
    }
    let Some(object) = state.stream(stream) else { return 400 };
    if object.capture.is_some() {
        return 900;
    }
    object.capture = Some(Capture { nodes: Vec::new(), invalid: false });
    CAPTURING.set(stream as u64);
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamEndCapture(stream: P, graph: *mut P) -> i32 {
    let mut state = state();
    *graph = std::ptr::null_mut();
    let answer = state.current("cuStreamEndCapture");
    // The capture ends whatever is answered.
    let Some(capture) = state.stream(stream).and_then(|stream| stream.capture.take()) else {
        return if answer == 0 { 1 } else { answer };
    };
    CAPTURING.set(0);
    if answer != 0 {
        return answer;
    }
    if capture.invalid {
        return 901; // CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    }
    let handle = state.handle();
    state.objects.insert(handle, Object::Graph(capture.nodes));
    *graph = handle as P;
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphInstantiateWithFlags(exec: *mut P, graph: P, flags: u64) -> i32 {
    assert_eq!(flags, 0);
    let mut state = state();
    let answer = state.current("cuGraphInstantiate");
    if answer != 0 {
        return answer;
    }
    let Some(Object::Graph(nodes)) = state.objects.get(&(graph as u64)) else { return 400 };
    let nodes = nodes.clone();
    let handle = state.handle();
    state.objects.insert(handle, Object::GraphExec(nodes));
    *exec = handle as P;
    0
}
#[unsafe(no_mangle)]
extern "C" fn cuGraphDestroy(graph: P) -> i32 {
    destroy(graph, "cuGraphDestroy", |object| matches!(object, Object::Graph(_)))
}
#[unsafe(no_mangle)]
extern "C" fn cuGraphExecDestroy(exec: P) -> i32 {
    destroy(exec, "cuGraphExecDestroy", |object| matches!(object, Object::GraphExec(_)))
}
fn destroy(handle: P, call: &str, is_right: fn(&Object) -> bool) -> i32 {
    let mut state = state();
    let answer = state.current(call);
    if answer == 0 {
        let object = state.objects.remove(&(handle as u64));
        assert!(object.is_some_and(|object| is_right(&object)), "{call} of something else");
    }
    answer
}
#[unsafe(no_mangle)]
extern "C" fn cuGraphLaunch(exec: P, stream: P) -> i32 {
    let mut state = state();
    let answer = state.current("cuGraphLaunch");
    if answer != 0 {
        return answer;
    }
    let Some(Object::GraphExec(nodes)) = state.objects.get(&(exec as u64)) else { return 400 };
    let nodes = nodes.clone();
    if state.is_capturing(stream) {
        return state.invalidate(stream);
    }
    nodes.into_iter().map(|work| state.enqueue(stream, work)).find(|answer| *answer != 0).unwrap_or(0)
}
