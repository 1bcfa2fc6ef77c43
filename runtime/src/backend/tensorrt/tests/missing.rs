//! Machines that lack something, or have too little of it.

use super::*;

#[test]
fn what_is_missing_is_said_in_one_line() {
    let machine = Machine::new("10.15");
    let driver = machine.fakes.folder.path().join("libcuda.so.1");
    let reason = |change: &dyn Fn(&mut Places)| {
        let mut places = machine.places();
        change(&mut places);
        let error = TensorRt::open(machine.network(), places, FP32).unwrap_err();
        assert!(matches!(error, TensorRtError::Unavailable { .. }), "{error:?}");
        let text = error.to_string();
        assert!(!text.contains('\n'), "{text}");
        text
    };
    let text = reason(&|places| places.driver = Some("/nonexistent/libcuda.so.1".into()));
    assert!(text.starts_with("there is no CUDA driver (libcuda.so.1); install"), "{text}");
    let text =
        reason(&|places| places.search = conceptseg_tensorrt::Search::folder("/nonexistent"));
    assert!(
        text.starts_with("there is no TensorRT 10 or 11") && text.contains(FOLDER_VARIABLE),
        "{text}"
    );
    let text = reason(&|places| places.search.majors = vec![11]);
    assert!(text.contains("libnvinfer.so.10 is there, but version 11 is needed"), "{text}");

    // A driver without all functions: a library that is none at all.
    let parser = machine.fakes.folder.path().join("libnvonnxparser.so.10");
    let text = reason(&|places| places.driver = Some(parser.clone()));
    assert!(text.contains("the GPU's driver is too old: it has no function cu"), "{text}");

    machine.fakes.cuda.set("driver_version", 11_040);
    let text = reason(&|_| ());
    assert!(text.contains("too old: it serves CUDA 11.4, and 12.0 is needed"), "{text}");
    machine.fakes.cuda.set("driver_version", 12_060);

    machine.fakes.cuda.set("devices", 0);
    let text = reason(&|_| ());
    assert!(text.contains("the CUDA driver finds no GPU"), "{text}");
    machine.fakes.cuda.set("devices", 2);
    let text = machine.reason(GpuOptions { device: 2, ..FP32 });
    assert!(text.contains("there is no GPU 2; the CUDA driver finds 2"), "{text}");

    machine.fakes.nvinfer.set("version", 120_000);
    let text = reason(&|_| ());
    assert!(text.contains("is TensorRT 12.0.0, whose interface is not known here"), "{text}");
    machine.fakes.nvinfer.set("version", 101_501);

    machine.fakes.nvinfer.set("runtime_address", 0x238);
    let text = reason(&|_| ());
    assert!(text.contains("serves CUDA 12.6, which is too old for TensorRT 10.15.1"), "{text}");
    assert!(driver.exists());
}

#[test]
fn the_lean_runtime_runs_plans_and_builds_none() {
    let machine = Machine::with(Fakes::lean("10.15"));
    let text = machine.reason(FP32);
    assert!(
        text.contains("has no fp32 plan for it") && text.contains("is the lean runtime"),
        "{text}"
    );

    let machine = Machine::new("10.15");
    run(&machine.open()).unwrap();
    let machine = machine.moved_to(Fakes::lean("10.15"));
    let backend = machine.open();
    assert_close(&run(&backend).unwrap(), &on_cpu());
    let error =
        backend.run(Images::one(&noise(8, 8), 8, 8), &mut Vec::new()).unwrap_err().to_string();
    assert!(
        error.contains("there is no fp32 plan for 8x8") && error.contains("lean runtime"),
        "{error}"
    );
    // A plan that TensorRT refuses cannot be replaced there.
    drop(backend);
    machine.fakes.nvinfer.set("no_plan", 1);
    let error = run(&machine.open()).unwrap_err().to_string();
    assert!(
        error.contains(".plan cannot be used: ") && error.contains("not for this device"),
        "{error}"
    );
}

#[test]
fn what_the_gpu_cannot_do_is_refused_before_minutes_are_spent() {
    let machine = Machine::new("10.15");
    let build = |options: GpuOptions, build: BuildOptions| {
        let backend = machine.try_open(options)?;
        backend.build(InputShape::one(40, 64), build, &mut |_| ()).map(|_| ())
    };
    let dla = GpuOptions { dla: Some(0), ..FP32 };
    let text = build(dla, BuildOptions::default()).unwrap_err().to_string();
    assert!(text.contains("the option DLA core = 0 was refused: the device has 0"), "{text}");
    machine.fakes.nvinfer.set("dla_cores", 1);
    let text = build(dla, BuildOptions::default()).unwrap_err().to_string();
    assert!(text.contains("no plan can be built for a DLA core in fp32"), "{text}");
    assert_eq!(machine.builds_and_loads(), (0, 0));
}

#[test]
fn too_little_memory_says_how_much_is_needed_and_what_to_do() {
    let machine = Machine::new("10.15");
    for setting in ["no_memory:build", "no_memory:plan", "no_memory:context"] {
        machine.fakes.nvinfer.set(setting, 1);
        let error = run(&machine.open()).unwrap_err().to_string();
        assert!(
            error.contains("the GPU Fake GPU 0 has no memory left for the network at 40x64"),
            "{error}"
        );
        assert!(error.contains("of 34 GB; take a smaller size"), "{error}");
        assert_eq!(error.contains("about "), setting != "no_memory:build", "{error}");
        machine.fakes.nvinfer.set(setting, 0);
    }
    let backend = machine.open();
    machine.fakes.cuda.set("cuMemAlloc", 2);
    let error = run(&backend).unwrap_err().to_string();
    assert!(error.contains("has no memory left"), "{error}");
    machine.fakes.cuda.set("cuMemAlloc", 0);
    assert_close(&run(&backend).unwrap(), &on_cpu());
    // Nothing was thrown away for it.
    machine.calls();
    run(&machine.open()).unwrap();
    assert_eq!(machine.builds_and_loads(), (0, 1));
}
