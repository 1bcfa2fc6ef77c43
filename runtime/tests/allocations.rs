//! A stream that has seen a few frames asks for no more memory.
//!
//! The stages of a stream are run as `StreamState::process` runs them, and every allocation of the process is
//! counted meanwhile, but for those of the network, whose memory is its backend's.
#![allow(missing_docs)]
#![allow(unsafe_code)] // An allocator that counts is one; it hands every call on as it is.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use conceptseg::backend::{BackendKind, BackendOptions};
use conceptseg::bundle::{BundleWriter, Codebook};
use conceptseg::concepts::{ConceptLabeler, ConceptMap, SegmentationConfig};
use conceptseg::embed::{FrameEmbedder, InputSize, Model};
use conceptseg::frame::FrameView;
use conceptseg::labels::LabelMap;
use conceptseg::propagate::{MaskChange, MaskMap, MaskTrack, PropagationConfig};

const WIDTH: u32 = 256;
const HEIGHT: u32 = 128;
/// Pictures of the clip, which is played again and again.
const PICTURES: u32 = 6;

static COUNTING: AtomicBool = AtomicBool::new(false);
static CALLS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

struct Counting;

fn count(bytes: usize) {
    if COUNTING.load(Ordering::Relaxed) {
        CALLS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(bytes, Ordering::Relaxed);
    }
}

// SAFETY: the system's allocator does all the work, with the arguments that were given.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: what the caller promises holds for the system's allocator too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the memory came from the system's allocator, with this layout.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as for the others.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of any thread while `work` runs, and their bytes.
fn allocations<T>(work: impl FnOnce() -> T) -> (usize, usize) {
    CALLS.store(0, Ordering::SeqCst);
    BYTES.store(0, Ordering::SeqCst);
    COUNTING.store(true, Ordering::SeqCst);
    let done = work();
    COUNTING.store(false, Ordering::SeqCst);
    drop(done);
    (CALLS.load(Ordering::SeqCst), BYTES.load(Ordering::SeqCst))
}

/// A red square on a pattern; `t` moves it.
fn picture(width: u32, height: u32, t: u32) -> (Vec<u8>, LabelMap) {
    let mut mask = LabelMap::background(width, height);
    let mut rgb = Vec::new();
    for y in 0..height {
        for x in 0..width {
            if (16 + t * 4..58 + t * 4).contains(&x) && (32 + t..74 + t).contains(&y) {
                mask.data[(y * width + x) as usize] = 1;
                rgb.extend([220, 30, 40]);
            } else {
                rgb.extend([20, 90 + (x / 16 % 2 * 40) as u8, 120 + (y / 16 % 2 * 60) as u8]);
            }
        }
    }
    (rgb, mask)
}

fn model(dir: &Path) -> std::sync::Arc<Model> {
    let vectors = (0..6 * 32).map(|i| if i % 33 == 0 { 1.0 } else { 0.0 }).collect();
    let onnx = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/tiny.onnx");
    BundleWriter::new("tiny", 8, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        .write(dir, Path::new(onnx), &Codebook::new(6, 32, vectors).unwrap())
        .unwrap();
    Model::open(dir, &BackendOptions::new(BackendKind::Rten, 1)).unwrap()
}

/// Runs a stream whose frames are of this size; what its frames allocate once it is warm.
fn run(width: u32, height: u32) -> Vec<[(usize, usize); 3]> {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let mut embedder = FrameEmbedder::new(model.clone());
    let (mut labeler, mut concepts) = (ConceptLabeler::new(), ConceptMap::default());
    let (mut track, mut masks) = (MaskTrack::new(PropagationConfig::default()), MaskMap::default());
    let config = SegmentationConfig::default();
    let pictures: Vec<_> = (0..PICTURES).map(|t| picture(width, height, t)).collect();
    track.change(MaskChange::Replace(pictures[0].1.clone()));
    // Until the ring of context frames is full, and each picture was seen with it.
    let warm = 3 * PICTURES;
    let mut counted = Vec::new();
    for t in 0..warm + 4 * PICTURES {
        let (rgb, _) = &pictures[(t % PICTURES) as usize];
        let frame = FrameView::rgb(width, height, rgb).unwrap();
        let prepare =
            allocations(|| embedder.prepare(&frame, InputSize::ShortSide(HEIGHT)).unwrap());
        embedder.embed().unwrap();
        let map = embedder.map();
        let label = allocations(|| {
            labeler.label(map, model.codebook(), &config, width, height, &mut concepts).unwrap();
        });
        let carry =
            allocations(|| masks.copy_from(track.step(map, width, height).unwrap().unwrap()));
        if t >= warm {
            counted.push([prepare, label, carry]);
        }
    }
    assert!(masks.instances[0].area > 0 && !concepts.segment_list.is_empty());
    counted
}

#[test]
fn a_warm_stream_allocates_nothing() {
    // Work that is handed to a pool from outside passes through a queue that takes a new block for every 63 pieces. From
    // within the pool it does not.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let (same, larger) = pool.install(|| (run(WIDTH, HEIGHT), run(WIDTH + 64, HEIGHT + 32)));
    for (t, [prepare, label, carry]) in same.into_iter().enumerate() {
        assert_eq!((prepare, label, carry), ((0, 0), (0, 0), (0, 0)), "frame {t}");
    }
    for (t, [prepare, label, carry]) in larger.into_iter().enumerate() {
        // The library that resizes makes its weights for every frame: a few numbers for each row and column.
        assert!(prepare.1 < 128 * (WIDTH + HEIGHT) as usize, "frame {t}: {prepare:?}");
        assert_eq!((label, carry), ((0, 0), (0, 0)), "frame {t}");
    }
}
