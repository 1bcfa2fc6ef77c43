//! Streams that meet, come apart, fail and leave.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread::{scope, sleep};

use proptest::prelude::*;

use super::*;
use crate::backend::{Backend, BackendKind, BackendOptions, probe_one};
use crate::bundle::{Bundle, BundleWriter, Codebook};
use crate::embed::{FrameEmbedder, InputSize};
use crate::frame::FrameView;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/tiny.onnx");
const STARTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/starter");
/// Nothing that a test waits for takes as long, so that it fails where it waits for this.
const FOREVER: Duration = Duration::from_mins(10);
const DIM: usize = 32;
const SMALL: Size = (16, 8);
const LARGE: Size = (24, 16);

/// A network that embeds each image by its first number, and notes what it ran.
#[derive(Default)]
struct Fake {
    /// Images, most images and width of each run.
    runs: Mutex<Vec<(usize, usize, usize)>>,
    /// Held by a test to keep the network busy.
    gate: Mutex<()>,
    /// What the next runs do.
    fails: Mutex<Option<Fault>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Error,
    Panic,
}

struct Shared(Arc<Fake>);

impl Backend for Shared {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn describe(&self) -> String {
        "fake".to_owned()
    }

    fn run(&self, images: Images<'_>, out: &mut Vec<f32>) -> Result<OutputShape, BackendError> {
        let Images { data, count, most, width, height } = images;
        assert_eq!(data.len(), count * 3 * width * height);
        self.0.runs.lock().unwrap().push((count, most, width));
        drop(self.0.gate.lock());
        match *self.0.fails.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(Fault::Error) => {
                let reason = "as the test wants it".to_owned();
                return Err(BackendError::Run { backend: "fake", count, width, height, reason });
            }
            Some(Fault::Panic) => panic!("as the test wants it"),
            None => {}
        }
        let shape = OutputShape { dim: DIM, height: height / 8, width: width / 8 };
        out.clear();
        for image in data.chunks(3 * width * height) {
            let start = out.len();
            out.resize(start + shape.len(), 0.0);
            let cells = shape.height * shape.width;
            out[start + image[0] as usize * cells..][..cells].fill(1.0);
        }
        Ok(shape)
    }
}

fn tiny_bundle() -> tempfile::TempDir {
    let vectors = (0..4 * DIM).map(|i| if i % (DIM + 1) == 0 { 1.0 } else { 0.0 }).collect();
    let dir = tempfile::tempdir().unwrap();
    BundleWriter::new("tiny", 8, [0.5; 3], [0.25; 3])
        .write(dir.path(), Path::new(TINY), &Codebook::new(4, DIM, vectors).unwrap())
        .unwrap();
    dir
}

fn fake() -> (Arc<Model>, Arc<Fake>) {
    let fake = Arc::<Fake>::default();
    let bundle = Bundle::open(tiny_bundle().path()).unwrap();
    (Model::with_backend(bundle, Box::new(Shared(Arc::clone(&fake)))), fake)
}

impl Fake {
    fn take_runs(&self) -> Vec<(usize, usize, usize)> {
        std::mem::take(&mut *self.runs.lock().unwrap())
    }

    fn fail(&self, fault: Option<Fault>) {
        *self.fails.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }
}

const fn batching(size: usize, timeout: Duration) -> Batching {
    Batching { size, timeout }
}

fn members(model: &Arc<Model>, count: usize, batching: Batching) -> Vec<Member> {
    (0..count).map(|_| Member::join(model, batching)).collect()
}

/// Embeds an image that begins with `value`, and checks that the map is of that image.
fn embed(member: &mut Member, size: Size, value: usize) -> Result<usize, EmbedError> {
    let mut input = vec![0.5; 3 * size.0 * size.1];
    input[0] = value as f32;
    let mut map = EmbeddingMap::default();
    let count = member.embed(&input, size, &mut Vec::new(), &mut map)?;
    assert_eq!((map.width, map.height, map.dim), (size.0 / 8, size.1 / 8, DIM));
    assert!(map.data.chunks(DIM).all(|cell| cell[value] == 1.0), "the map of another image");
    Ok(count)
}

/// Waits until so many members have brought their input to batches that are forming.
fn wait_for_inputs(model: &Model, count: usize) {
    let there = || {
        let state = model.batcher.lock();
        let forming = state.batches.iter().filter(|batch| batch.phase == Phase::Forming);
        forming.map(|batch| batch.copied).sum::<usize>()
    };
    while there() < count {
        sleep(Duration::from_millis(1));
    }
}

#[test]
fn frames_of_four_streams_run_together() {
    let (model, fake) = fake();
    scope(|scope| {
        for (id, mut member) in members(&model, 4, batching(4, FOREVER)).into_iter().enumerate() {
            scope.spawn(move || {
                for frame in 0..50 {
                    assert_eq!(embed(&mut member, SMALL, (id * 7 + frame) % DIM).unwrap(), 4);
                }
                // The others would wait for it until it leaves.
            });
        }
    });
    assert_eq!(fake.take_runs(), [(4, 4, 16); 50]);
    assert!(model.batcher.lock().batches.is_empty(), "memory goes with the last member");
}

#[test]
fn a_stream_alone_waits_for_nobody_and_copies_nothing() {
    let (model, fake) = fake();
    let mut member = Member::join(&model, batching(8, FOREVER));
    for value in 0..3 {
        assert_eq!(embed(&mut member, SMALL, value).unwrap(), 1);
    }
    assert_eq!(fake.take_runs(), [(1, 8, 16); 3]);
    assert!(model.batcher.lock().batches.is_empty());
}

#[test]
fn without_batches_there_is_no_member() {
    let (model, fake) = fake();
    let mut embedder = FrameEmbedder::batched(Arc::clone(&model), Batching::NONE);
    assert!(model.batcher.lock().members.is_empty());
    let pixels = vec![0; 64 * 64 * 3];
    embedder.prepare(&FrameView::rgb(64, 64, &pixels).unwrap(), InputSize::Native).unwrap();
    fake.fail(Some(Fault::Error));
    assert!(matches!(embedder.embed(), Err(EmbedError::Backend(_))));
    assert_eq!(fake.take_runs(), [(1, 1, 64)]);
}

#[test]
fn streams_of_other_sizes_are_not_waited_for() {
    let (model, fake) = fake();
    scope(|scope| {
        for (id, mut member) in members(&model, 5, batching(8, FOREVER)).into_iter().enumerate() {
            let size = if id < 3 { SMALL } else { LARGE };
            scope.spawn(move || {
                for value in 0..20 {
                    embed(&mut member, size, value).unwrap();
                }
            });
        }
    });
    let runs = fake.take_runs();
    let of = |width| runs.iter().filter(|run| run.2 == width).map(|run| run.0).collect::<Vec<_>>();
    assert_eq!((of(16), of(24)), (vec![3; 20], vec![2; 20]));
}

#[test]
fn a_stream_that_leaves_is_waited_for_no_longer() {
    let (model, fake) = fake();
    let mut all = members(&model, 3, batching(4, FOREVER));
    let leaves = all.pop();
    scope(|scope| {
        for mut member in all {
            scope.spawn(move || assert_eq!(embed(&mut member, SMALL, 3).unwrap(), 2));
        }
        wait_for_inputs(&model, 2);
        assert_eq!(fake.take_runs(), []);
        drop(leaves);
    });
    assert_eq!(fake.take_runs(), [(2, 4, 16)]);
}

#[test]
fn a_stream_that_pauses_costs_one_timeout() {
    let (model, fake) = fake();
    let timeout = Duration::from_secs(3);
    let mut all = members(&model, 2, batching(2, timeout));
    let began = Instant::now();
    assert_eq!(embed(&mut all[0], SMALL, 1).unwrap(), 1);
    assert!(began.elapsed() >= timeout);
    let began = Instant::now();
    for value in 0..20 {
        assert_eq!(embed(&mut all[0], SMALL, value).unwrap(), 1);
    }
    assert!(began.elapsed() < timeout);
    assert_eq!(fake.take_runs().len(), 21);
    // It comes again, and is waited for again.
    scope(|scope| {
        let mut all = all.iter_mut();
        let (one, other) = (all.next().unwrap(), all.next().unwrap());
        let back = scope.spawn(|| embed(other, SMALL, 2).unwrap());
        wait_for_inputs(&model, 1);
        assert_eq!((embed(one, SMALL, 3).unwrap(), back.join().unwrap()), (2, 2));
    });
}

#[test]
fn frames_gather_while_the_network_is_busy() {
    let (model, fake) = fake();
    let mut all = members(&model, 4, batching(4, Duration::ZERO));
    let gate = fake.gate.lock();
    scope(|scope| {
        for (id, member) in all.iter_mut().enumerate() {
            scope.spawn(move || embed(member, SMALL, id).unwrap());
            if id == 0 {
                while fake.runs.lock().unwrap().is_empty() {
                    sleep(Duration::from_millis(1));
                }
            }
        }
        wait_for_inputs(&model, 3);
        drop(gate);
    });
    assert_eq!(fake.take_runs(), [(1, 4, 16), (3, 4, 16)]);
}

#[test]
fn the_largest_size_and_the_shortest_timeout_hold() {
    let (model, _) = fake();
    let _all = [(2, 50), (8, 100), (100, 300)]
        .map(|(size, ms)| Member::join(&model, batching(size, Duration::from_millis(ms))));
    let expected = batching(MAX_BATCH, Duration::from_millis(50));
    assert_eq!(model.batcher.lock().batching(), expected);
}

/// What each of four streams is told when their batch meets a fault.
fn told(all: Vec<Member>) -> (Vec<String>, usize) {
    scope(|scope| {
        let threads: Vec<_> = all
            .into_iter()
            .map(|mut member| {
                scope.spawn(move || {
                    // As in the elements, whose worker catches panics.
                    let caught = catch_unwind(AssertUnwindSafe(|| embed(&mut member, SMALL, 1)));
                    (caught, member)
                })
            })
            .collect();
        let mut texts = Vec::new();
        let mut panics = 0;
        for thread in threads {
            match thread.join().unwrap().0 {
                Ok(answer) => texts.push(answer.unwrap_err().to_string()),
                Err(_) => panics += 1,
            }
        }
        (texts, panics)
    })
}

#[test]
fn a_failure_reaches_every_stream_of_the_batch_and_the_next_one_runs() {
    let (model, fake) = fake();
    for (fault, part, panics) in
        [(Fault::Error, "as the test wants it", 0), (Fault::Panic, "the network panicked", 1)]
    {
        fake.fail(Some(fault));
        let (texts, found) = told(members(&model, 4, batching(4, FOREVER)));
        assert_eq!((texts.len(), found), (4 - panics, panics));
        assert!(texts.iter().all(|text| text.contains(part)), "{texts:?}");
        fake.fail(None);
        assert_eq!(fake.take_runs(), [(4, 4, 16)]);
        scope(|scope| {
            for mut member in members(&model, 2, batching(4, FOREVER)) {
                scope.spawn(move || assert_eq!(embed(&mut member, SMALL, 5).unwrap(), 2));
            }
        });
        assert_eq!(fake.take_runs(), [(2, 4, 16)]);
    }
}

#[test]
fn a_panic_of_a_stream_alone_gives_the_network_back() {
    let (model, fake) = fake();
    let mut member = Member::join(&model, batching(4, FOREVER));
    fake.fail(Some(Fault::Panic));
    let caught = catch_unwind(AssertUnwindSafe(|| embed(&mut member, SMALL, 1)));
    assert!(caught.is_err());
    fake.fail(None);
    assert_eq!(embed(&mut member, SMALL, 1).unwrap(), 1);
}

#[test]
fn a_stream_that_dies_before_it_brings_its_input_does_not_hold_the_others() {
    let (model, fake) = fake();
    let mut all = members(&model, 2, batching(2, FOREVER));
    let (mut lives, dies) = (all.remove(0), all.remove(0));
    scope(|scope| {
        let waits = scope.spawn(move || embed(&mut lives, SMALL, 9).unwrap());
        wait_for_inputs(&model, 1);
        let (index, _) = model.batcher.lock().enter(dies.id, SMALL);
        drop(Inside { batcher: &model.batcher, index, id: dies.id, copied: false, runs: false });
        assert_eq!(waits.join().unwrap(), 2);
    });
    assert_eq!(fake.take_runs(), [(2, 2, 16)]);
}

#[test]
fn what_cannot_run_does_not_spoil_a_batch() {
    let (model, fake) = fake();
    let mut member = Member::join(&model, batching(4, FOREVER));
    let mut map = EmbeddingMap::default();
    let mut refused = |length, size| {
        member.embed(&vec![0.0; length], size, &mut Vec::new(), &mut map).unwrap_err()
    };
    assert!(matches!(refused(3 * 20 * 8, (20, 8)), EmbedError::InputSize { .. }));
    assert!(matches!(refused(5, SMALL), EmbedError::Backend(BackendError::Input { .. })));
    assert_eq!(fake.take_runs(), []);
}

#[test]
fn memory_is_used_again() {
    let (model, fake) = fake();
    let frames = 100;
    let places: Vec<_> = scope(|scope| {
        let model = &model;
        let threads: Vec<_> = members(model, 4, batching(4, FOREVER))
            .into_iter()
            .map(|mut member| {
                scope.spawn(move || {
                    let mut places = Vec::new();
                    for value in 0..frames {
                        embed(&mut member, SMALL, value % DIM).unwrap();
                        let state = model.batcher.lock();
                        assert!(state.batches.len() <= SPARE + 1);
                        for batch in &state.batches {
                            let input = batch.memory.input.lock().unwrap();
                            assert_eq!(input.capacity(), 4 * 3 * 16 * 8);
                            places.push(input.as_ptr() as usize);
                        }
                    }
                    places
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let distinct: std::collections::BTreeSet<_> = places.iter().collect();
    assert!(distinct.len() <= SPARE + 1, "{} buffers for {frames} batches", distinct.len());
    assert_eq!(fake.take_runs().len(), frames);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn whoever_comes_whenever_gets_its_own_result(
        streams in prop::collection::vec(
            (1_usize..9, 0_u64..3000, prop::collection::vec((any::<bool>(), 0_u64..400), 1..30)),
            1..9,
        ),
    ) {
        let (model, fake) = fake();
        let frames: usize = streams.iter().map(|stream| stream.2.len()).sum();
        let most = streams.iter().map(|stream| stream.0).max().unwrap();
        scope(|scope| {
            for (id, (size, timeout, frames)) in streams.into_iter().enumerate() {
                let model = &model;
                scope.spawn(move || {
                    let timeout = Duration::from_micros(timeout);
                    let mut member = Member::join(model, batching(size, timeout));
                    for (frame, (large, pause)) in frames.into_iter().enumerate() {
                        sleep(Duration::from_micros(pause));
                        let size = if large { LARGE } else { SMALL };
                        let count = embed(&mut member, size, (id * 5 + frame) % DIM).unwrap();
                        assert!(count <= most);
                    }
                });
            }
        });
        let runs = fake.take_runs();
        prop_assert_eq!(runs.iter().map(|run| run.0).sum::<usize>(), frames);
        let state = model.batcher.lock();
        prop_assert!(state.members.is_empty() && state.batches.is_empty() && !state.running);
    }
}

/// A picture of its own for each stream and frame.
fn picture(width: usize, height: usize, seed: usize) -> Vec<u8> {
    (0..width * height * 3).map(|i| ((i / 13 + seed * 31) * (7 + seed) % 256) as u8).collect()
}

#[test]
fn a_batch_gives_what_single_frames_give() {
    let tiny = tiny_bundle();
    for bundle in [tiny.path(), Path::new(STARTER)] {
        for kind in [BackendKind::Rten, BackendKind::Onnxruntime] {
            if let Err(reason) = probe_one(kind).available {
                eprintln!("skipped: {reason}");
                continue;
            }
            let model = Model::open(bundle, &BackendOptions::new(kind, 1)).unwrap();
            let embedders: Vec<_> = (0..4)
                .map(|_| FrameEmbedder::batched(Arc::clone(&model), batching(4, FOREVER)))
                .collect();
            scope(|scope| {
                for (id, mut embedder) in embedders.into_iter().enumerate() {
                    let mut single = FrameEmbedder::new(Arc::clone(&model));
                    scope.spawn(move || {
                        for frame in 0..3 {
                            let pixels = picture(160, 120, id * 3 + frame);
                            let view = FrameView::rgb(160, 120, &pixels).unwrap();
                            for embedder in [&mut embedder, &mut single] {
                                embedder.prepare(&view, InputSize::ShortSide(64)).unwrap();
                                embedder.embed().unwrap();
                            }
                            assert_eq!((embedder.batch(), single.batch()), (4, 1));
                            let (a, b) = (&embedder.map().data, &single.map().data);
                            let apart =
                                a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                            assert!(a.len() == b.len() && apart < 1e-5, "{kind}: {apart:e}");
                        }
                    });
                }
            });
        }
    }
}

/// Frames per second of four streams, each alternative in turns.
#[test]
#[ignore = "a timing: --ignored --exact --nocapture"]
fn whether_batches_pay_here() {
    for kind in [BackendKind::Rten, BackendKind::Onnxruntime] {
        if let Err(reason) = probe_one(kind).available {
            eprintln!("skipped: {reason}");
            continue;
        }
        for side in [128, 256, 480] {
            let model = Model::open(Path::new(STARTER), &BackendOptions::new(kind, 0)).unwrap();
            let frames = 400_000 / (side * side) + 1;
            let fps = |size| {
                let batching = batching(size, Duration::from_millis(20));
                let began = Instant::now();
                scope(|scope| {
                    for id in 0..4 {
                        let model = Arc::clone(&model);
                        scope.spawn(move || {
                            let mut embedder = FrameEmbedder::batched(model, batching);
                            let (width, height) = (side * 16 / 9, side);
                            let pixels = picture(width, height, id);
                            let view = FrameView::rgb(width as u32, height as u32, &pixels);
                            embedder
                                .prepare(&view.unwrap(), InputSize::ShortSide(side as u32))
                                .unwrap();
                            for _ in 0..frames {
                                embedder.embed().unwrap();
                            }
                        });
                    }
                });
                4.0 * frames as f64 / began.elapsed().as_secs_f64()
            };
            fps(4);
            let rounds: Vec<(f64, f64)> = (0..5).map(|_| (fps(1), fps(4))).collect();
            let median = |of: &dyn Fn(&(f64, f64)) -> f64| {
                let mut values: Vec<f64> = rounds.iter().map(of).collect();
                values.sort_by(f64::total_cmp);
                values[values.len() / 2]
            };
            println!(
                "{kind}, short side {side}: {:.1} frames/s one by one, {:.1} in fours, ratio {:.3} ({:.3} to {:.3})",
                median(&|r| r.0),
                median(&|r| r.1),
                median(&|r| r.1 / r.0),
                rounds.iter().map(|r| r.1 / r.0).fold(f64::INFINITY, f64::min),
                rounds.iter().map(|r| r.1 / r.0).fold(0.0, f64::max),
            );
        }
    }
}
