//! A GPU that breaks while it is used.

use super::*;

#[test]
fn a_gpu_that_breaks_is_reset_and_the_frame_runs_again() {
    for call in ["cuStreamSynchronize", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"] {
        let machine = Machine::new("10.15");
        let backend = machine.open();
        let expected = run(&backend).unwrap();
        machine.calls();
        machine.fakes.cuda.take_calls();
        machine.fakes.cuda.fail_once(call, 700);
        assert_eq!(run(&backend).unwrap(), expected, "{call}");
        let driver = machine.fakes.cuda.take_calls();
        assert_eq!(driver.iter().filter(|c| *c == "cuDevicePrimaryCtxReset").count(), 1, "{call}");
        assert_eq!(machine.builds_and_loads(), (0, 1), "the plan is loaded again");
        assert_eq!(run(&backend).unwrap(), expected);
        drop(backend);
        machine.fakes.check_all_destroyed();
    }
}

#[test]
fn a_failure_that_breaks_nothing_is_an_error_of_that_frame_only() {
    let machine = Machine::new("10.15");
    let backend = machine.open();
    run(&backend).unwrap();
    machine.fakes.nvinfer.set("no_enqueue", 1);
    let error = run(&backend).unwrap_err().to_string();
    assert!(error.contains("could not run the network: a kernel could not be launched"), "{error}");
    machine.fakes.nvinfer.set("no_enqueue", 0);
    run(&backend).unwrap();
    assert!(!machine.fakes.cuda.take_calls().contains(&"cuDevicePrimaryCtxReset".to_owned()));
}

/// From now on every run breaks the GPU.
fn break_for_good(machine: &Machine) {
    machine.fakes.cuda.set("cuMemcpyDtoHAsync", 700);
}

#[test]
fn a_gpu_that_breaks_again_is_an_error() {
    let machine = Machine::new("10.15");
    let backend = machine.open();
    run(&backend).unwrap();
    break_for_good(&machine);
    let error = run(&backend).unwrap_err();
    let BackendError::TensorRt(error) = error else { panic!("{error}") };
    assert!(matches!(*error, TensorRtError::Lost { .. }));
    let text = error.to_string();
    assert!(text.contains("the GPU Fake GPU 0 failed again after it was reset"), "{text}");
    // The next frame tries anew.
    machine.fakes.cuda.set("cuMemcpyDtoHAsync", 0);
    assert_close(&run(&backend).unwrap(), &on_cpu());
}

#[test]
fn the_cpu_goes_on_where_that_was_asked_for() {
    let machine = Machine::new("10.15");
    let backend = with_cpu(&machine);
    assert_close(&run(&backend).unwrap(), &on_cpu());
    assert!(backend.name() == "tensorrt" && backend.gpu().is_some());
    break_for_good(&machine);
    assert_close(&run(&backend).unwrap(), &on_cpu());
    assert!(backend.name() != "tensorrt" && backend.gpu().is_none());
    assert!(!backend.describe().contains("tensorrt"));
    machine.fakes.cuda.set("cuMemcpyDtoHAsync", 0);
    machine.calls();
    run(&backend).unwrap();
    assert_eq!(machine.calls(), [""; 0], "the GPU is not asked again");
    assert_eq!(machine.fakes.nvinfer.live_objects(), 0, "its memory was given back");
}

#[test]
fn the_cpu_goes_on_when_whoever_works_on_the_gpu_gives_it_up() {
    let machine = Machine::new("10.15");
    let backend = with_cpu(&machine);
    assert!(!machine.open().give_up_gpu(&"no reason"));
    assert!(backend.give_up_gpu(&"a kernel failed"));
    assert!(backend.gpu().is_none());
    assert_close(&run(&backend).unwrap(), &on_cpu());
    assert_eq!(machine.builds_and_loads(), (0, 0));
}

#[test]
fn a_wrong_input_is_no_reason_to_leave_the_gpu() {
    let machine = Machine::new("10.15");
    let backend = with_cpu(&machine);
    let error = backend.run(Images::one(&[0.0; 3], 8, 8), &mut Vec::new()).unwrap_err();
    assert!(matches!(error, BackendError::Input { .. }));
    assert!(backend.gpu().is_some());
}

#[test]
fn all_streams_and_networks_of_a_gpu_survive_its_reset() {
    let machine = Machine::new("10.15");
    let (one, other) = (machine.open(), machine.open());
    let expected = run(&one).unwrap();
    run(&other).unwrap();
    let kept = one.keep::<Arc<Loaded>>();
    let shape = InputShape::one(HEIGHT as u32, WIDTH as u32);
    one.with_gpu(|gpu| {
        *kept.of(gpu) = Some(gpu.engine(shape)?);
        Ok::<_, TensorRtError>(())
    })
    .unwrap();
    machine.fakes.cuda.fail_once("cuMemcpyHtoDAsync", 719);
    std::thread::scope(|scope| {
        for backend in [&one, &other, &one, &other] {
            scope.spawn(|| {
                for _ in 0..4 {
                    assert_eq!(run(backend).unwrap(), expected);
                }
            });
        }
    });
    let resets = machine.fakes.cuda.take_calls();
    assert_eq!(resets.iter().filter(|call| *call == "cuDevicePrimaryCtxReset").count(), 1);
    one.with_gpu(|gpu| {
        assert!(kept.of(gpu).is_none(), "what a stream kept on the GPU was taken from it");
        Ok::<_, TensorRtError>(())
    })
    .unwrap();
    drop((one, other, kept));
    assert_eq!(machine.fakes.nvinfer.live_objects() + machine.fakes.cuda.live_objects(), 0);
}
