//! Streams on the GPU against the same streams on the CPU. The GPU is the fake driver with the real
//! kernels on the CPU, and a fake TensorRT that runs the smallest network for real.

use std::sync::Arc;

use crate::cuda::testing::Pair;
use crate::embed::Model;
use crate::frame::FrameView;
use crate::labels::LabelMap;
use crate::propagate::PropagationConfig;
use crate::scene::{Scene, SceneConfig, SceneFrame};
use crate::stream::{FrameResult, StreamConfig, StreamState};

const SIZE: (u32, u32) = (192, 128);

impl Pair {
    fn streams(&self, config: &StreamConfig) -> (StreamState, StreamState) {
        let new = |model: &Arc<Model>| StreamState::new(Arc::clone(model), config.clone());
        (new(&self.gpu), new(&self.cpu))
    }
}

fn config() -> StreamConfig {
    let propagation =
        PropagationConfig { context_frames: 3, radius: 4, ..PropagationConfig::variant_b() };
    StreamConfig { short_side: 128, propagation, ..StreamConfig::default() }
}

fn scene((width, height): (u32, u32), frames: u32) -> Vec<SceneFrame> {
    let scene = Scene::new(SceneConfig { width, height, frames, seed: 3 }).unwrap();
    (0..frames).map(|index| scene.frame(index)).collect()
}

fn process<'a>(
    stream: &'a mut StreamState,
    size: (u32, u32),
    frame: &SceneFrame,
) -> &'a FrameResult {
    stream.process(&FrameView::rgb(size.0, size.1, frame.image.as_raw()).unwrap()).unwrap()
}

fn share<T: PartialEq>(one: &[T], other: &[T]) -> f64 {
    assert_eq!(one.len(), other.len());
    one.iter().zip(other).filter(|(a, b)| a == b).count() as f64 / one.len() as f64
}

/// The frame before the network differs by half a grey level at most, which moves borders by a pixel here and there.
fn check_same(gpu: &FrameResult, cpu: &FrameResult) {
    assert_eq!((gpu.index, gpu.width, gpu.height), (cpu.index, cpu.width, cpu.height));
    let (one, other) = (gpu.concepts.as_ref().unwrap(), cpu.concepts.as_ref().unwrap());
    let same = share(&one.concepts, &other.concepts);
    assert!(same > 0.99, "frame {}: concepts agree on {same}", gpu.index);
    assert_eq!(gpu.masks.is_some(), cpu.masks.is_some(), "frame {}", gpu.index);
    if let (Some(one), Some(other)) = (&gpu.masks, &cpu.masks) {
        let same = share(&one.labels, &other.labels);
        assert!(same > 0.99, "frame {}: masks agree on {same}", gpu.index);
        let ids = |masks: &crate::propagate::MaskMap| {
            masks.instances.iter().map(|instance| instance.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(one), ids(other));
    }
}

fn launches(pair: &Pair) -> (usize, usize) {
    let calls = pair.fakes.cuda.take_calls();
    let count = |name: &str| calls.iter().filter(|call| call.starts_with(name)).count();
    (count("cuGraphLaunch"), count("cuLaunchKernel"))
}

#[test]
fn a_stream_gives_what_the_cpu_gives() {
    let Some(pair) = Pair::new(false) else { return };
    let (mut gpu, mut cpu) = pair.streams(&config());
    for (t, frame) in scene(SIZE, 8).iter().enumerate() {
        // Without masks first, then with given ones, then carried.
        if t == 2 {
            gpu.set_instances(frame.labels.clone());
            cpu.set_instances(frame.labels.clone());
        }
        check_same(process(&mut gpu, SIZE, frame), process(&mut cpu, SIZE, frame));
    }
}

#[test]
fn a_frame_is_one_launch_of_a_graph() {
    let Some(pair) = Pair::new(false) else { return };
    let (mut gpu, _) = pair.streams(&config());
    let frames = scene(SIZE, 6);
    gpu.set_instances(frames[0].labels.clone());
    // The mask is given, then the work with masks is done part by part once, then it is recorded.
    for frame in &frames[..3] {
        process(&mut gpu, SIZE, frame);
    }
    launches(&pair);
    for frame in &frames[3..] {
        process(&mut gpu, SIZE, frame);
        assert_eq!(launches(&pair), (1, 0));
    }
}

#[test]
fn masks_survive_a_change_of_the_frame_size() {
    let Some(pair) = Pair::new(false) else { return };
    let (mut gpu, mut cpu) = pair.streams(&config());
    for (t, size) in
        [SIZE, SIZE, (256, 128), (256, 128), (384, 256), (96, 160)].into_iter().enumerate()
    {
        let frame = &scene(size, 1)[0];
        if t == 0 {
            gpu.set_instances(frame.labels.clone());
            cpu.set_instances(frame.labels.clone());
        }
        check_same(process(&mut gpu, size, frame), process(&mut cpu, size, frame));
    }
}

#[test]
fn a_gpu_that_breaks_is_reset_and_the_stream_goes_on() {
    let Some(pair) = Pair::new(false) else { return };
    let (mut gpu, mut cpu) = pair.streams(&config());
    for (t, frame) in scene(SIZE, 7).iter().enumerate() {
        if t == 0 {
            gpu.set_instances(frame.labels.clone());
            cpu.set_instances(frame.labels.clone());
        }
        if t == 4 {
            // CUDA_ERROR_ILLEGAL_ADDRESS, which stays until the reset.
            pair.fakes.cuda.fail_once("cuGraphLaunch", 700);
            // The GPU's memory of the masks is gone; it starts again from the last ones.
            let last = cpu.process(&FrameView::rgb(SIZE.0, SIZE.1, frame.image.as_raw()).unwrap());
            let _ = last.unwrap();
            let result = process(&mut gpu, SIZE, frame);
            assert!(
                result.masks.as_ref().unwrap().instances.iter().any(|instance| instance.area > 0)
            );
            continue;
        }
        let (one, other) = (process(&mut gpu, SIZE, frame), process(&mut cpu, SIZE, frame));
        assert_eq!(one.masks.is_some(), other.masks.is_some());
    }
    assert!(
        pair.fakes.cuda.take_calls().iter().any(|call| call.starts_with("cuDevicePrimaryCtxReset"))
    );
}

#[test]
fn the_cpu_goes_on_where_the_gpu_is_lost() {
    let Some(pair) = Pair::new(true) else { return };
    let (mut gpu, _) = pair.streams(&config());
    let frames = scene(SIZE, 6);
    gpu.set_instances(frames[0].labels.clone());
    for frame in &frames[..3] {
        process(&mut gpu, SIZE, frame);
    }
    assert_eq!(pair.gpu.backend_name(), "tensorrt");
    // From now on nothing can be started any more, not even after a reset.
    pair.fakes.cuda.set("cuLaunchKernel", 719);
    pair.fakes.cuda.set("cuGraphLaunch", 719);
    let area = |result: &FrameResult| {
        result.masks.as_ref().map_or(0, |masks| masks.instances.iter().map(|i| i.area).sum::<u32>())
    };
    for frame in &frames[3..] {
        let result = process(&mut gpu, SIZE, frame);
        assert!(area(result) > 0, "frame {}", result.index);
        assert_ne!(pair.gpu.backend_name(), "tensorrt");
    }
}

#[test]
fn without_leave_to_use_the_cpu_a_lost_gpu_is_an_error() {
    let Some(pair) = Pair::new(false) else { return };
    let (mut gpu, _) = pair.streams(&config());
    let frames = scene(SIZE, 2);
    process(&mut gpu, SIZE, &frames[0]);
    pair.fakes.cuda.set("cuLaunchKernel", 719);
    pair.fakes.cuda.set("cuGraphLaunch", 719);
    let frame = FrameView::rgb(SIZE.0, SIZE.1, frames[1].image.as_raw()).unwrap();
    let error = gpu.process(&frame).unwrap_err().to_string();
    assert!(error.contains("failed again after it was reset"), "{error}");
}

#[test]
fn what_the_kernels_cannot_do_is_done_on_the_cpu() {
    let Some(pair) = Pair::new(false) else { return };
    let propagation = PropagationConfig { context_frames: 2, ..PropagationConfig::variant_c() };
    let (mut gpu, mut cpu) = pair.streams(&StreamConfig { propagation, ..config() });
    let frames = scene(SIZE, 3);
    gpu.set_instances(LabelMap::clone(&frames[0].labels));
    cpu.set_instances(LabelMap::clone(&frames[0].labels));
    for frame in &frames {
        check_same(process(&mut gpu, SIZE, frame), process(&mut cpu, SIZE, frame));
    }
    assert_eq!(pair.gpu.backend_name(), "tensorrt", "the network still runs on the GPU");
}
