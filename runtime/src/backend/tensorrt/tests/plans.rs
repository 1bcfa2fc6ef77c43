//! Plans: which are trusted, what they are built with, and where they are kept.

use super::*;

/// Changes something about the one plan of a bundle, and checks that TensorRT never sees it but builds anew.
fn rebuilt_after(change: impl FnOnce(&Machine) -> Option<Fakes>) {
    let mut machine = Machine::new("10.15");
    run(&machine.open()).unwrap();
    if let Some(fakes) = change(&machine) {
        machine = machine.moved_to(fakes);
    }
    machine.calls();
    let backend = machine.open();
    run(&backend).unwrap();
    assert_eq!(machine.builds_and_loads(), (1, 1), "built once, and only that was loaded");
    drop(backend);
    run(&machine.open()).unwrap();
    assert_eq!(machine.builds_and_loads(), (0, 1), "the new plan is good");
}

#[test]
fn a_truncated_plan_is_built_again() {
    rebuilt_after(|machine| {
        let path = machine.plan();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        None
    });
}

#[test]
fn an_altered_plan_is_built_again() {
    rebuilt_after(|machine| {
        let path = machine.plan();
        let mut bytes = fs::read(&path).unwrap();
        bytes[100] ^= 1;
        fs::write(&path, bytes).unwrap();
        None
    });
}

#[test]
fn a_plan_without_a_record_is_built_again() {
    rebuilt_after(|machine| {
        fs::remove_file(machine.plan().with_extension("toml")).unwrap();
        None
    });
}

#[test]
fn a_plan_of_another_network_is_built_again() {
    rebuilt_after(|machine| {
        // A producer's name more changes nothing but the hash.
        let path = machine.network().path;
        let mut onnx = fs::read(&path).unwrap();
        onnx.extend(b"\x1a\x011");
        fs::write(path, onnx).unwrap();
        None
    });
}

#[test]
fn a_plan_of_another_version_is_built_again() {
    rebuilt_after(|_| Some(Fakes::new("10.3")));
    rebuilt_after(|_| Some(Fakes::new("11.4")));
}

#[test]
fn a_plan_of_another_gpu_is_built_again() {
    let machine = Machine::new("10.15");
    run(&machine.open()).unwrap();
    machine.calls();
    run(&machine.try_open(GpuOptions { device: 1, ..FP32 }).unwrap()).unwrap();
    assert_eq!(machine.builds_and_loads(), (1, 1));
    run(&machine.open()).unwrap();
    assert_eq!(machine.builds_and_loads(), (0, 1), "the first GPU has kept its own");
}

#[test]
fn a_plan_that_tensorrt_refuses_is_built_again() {
    let machine = Machine::new("10.15");
    run(&machine.open()).unwrap();
    machine.calls();
    machine.fakes.nvinfer.set("no_plan", 1);
    let error = run(&machine.open()).unwrap_err().to_string();
    assert!(error.contains("the plan is not for this device"), "{error}");
    assert_eq!(machine.builds_and_loads(), (1, 2), "the old one, then the new one");
}

#[test]
fn a_network_that_changes_while_it_is_open_is_not_built() {
    let machine = Machine::new("10.15");
    let backend = machine.open();
    fs::write(machine.network().path, "another").unwrap();
    let error = run(&backend).unwrap_err().to_string();
    assert!(error.contains("was replaced while it was in use"), "{error}");
}

#[test]
fn a_compatible_plan_runs_on_a_later_version() {
    let machine = Machine::new("8.6");
    let options = BuildOptions { version_compatible: true, ..BuildOptions::default() };
    let built = machine.open().build(InputShape::one(40, 64), options, &mut |_| ()).unwrap();
    assert!(built.saved.is_ok());
    assert!(machine.calls().contains(&"setFlag kVERSION_COMPATIBLE".to_owned()));
    let machine = machine.moved_to(Fakes::lean("10.15"));
    assert_close(&run(&machine.open()).unwrap(), &on_cpu());
    assert!(machine.calls().contains(&"setEngineHostCodeAllowed true".to_owned()));
}

#[test]
fn timings_of_one_build_are_used_by_the_next() {
    let machine = Machine::new("10.15");
    let backend = machine.open();
    run(&backend).unwrap();
    assert!(machine.calls().contains(&"createTimingCache 0".to_owned()));
    backend.run(Images::one(&noise(8, 8), 8, 8), &mut Vec::new()).unwrap();
    assert!(machine.calls().contains(&"createTimingCache 6".to_owned()));
    // Of another builder: refused, and started anew.
    let cache = fs::read_dir(backend.store().folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|ending| ending == "cache"))
        .unwrap();
    fs::write(&cache, "of another GPU").unwrap();
    backend.run(Images::one(&noise(16, 8), 16, 8), &mut Vec::new()).unwrap();
    let calls = machine.calls();
    assert!(calls.contains(&"createTimingCache 14".to_owned()), "{calls:?}");
    assert!(calls.contains(&"createTimingCache 0".to_owned()), "{calls:?}");
    assert_eq!(fs::read(&cache).unwrap(), b"cache:");
}

#[test]
fn options_of_a_build_reach_tensorrt_and_the_record() {
    let machine = Machine::new("10.15");
    let options = BuildOptions {
        workspace_mb: Some(64),
        optimization_level: Some(5),
        gpus: Gpus::AmperePlus,
        version_compatible: true,
    };
    let mut phases = Vec::new();
    let built =
        machine.open().build(InputShape::one(40, 64), options, &mut |p| phases.push(p)).unwrap();
    assert_eq!(phases, [Phase::Preparing, Phase::Parsing, Phase::Building, Phase::Writing]);
    assert_eq!(built.record.options, options);
    let calls = machine.calls();
    for call in [
        "setMemoryPoolLimit 0 67108864",
        "setBuilderOptimizationLevel 5",
        "setHardwareCompatibilityLevel 1",
        "setFlag kVERSION_COMPATIBLE",
        "setProfilingVerbosity 2",
    ] {
        assert!(calls.iter().any(|made| made == call), "{call} not in {calls:?}");
    }
}

#[test]
fn a_plan_that_cannot_be_written_is_kept_in_memory() {
    let machine = Machine::new("10.15");
    run(&machine.open()).unwrap();
    let path = machine.plan();
    // A folder in the place of the plan, which no file replaces.
    fs::remove_file(&path).unwrap();
    fs::create_dir_all(path.join("in the way")).unwrap();
    machine.calls();
    let backend = machine.open();
    let expected = run(&backend).unwrap();
    machine.fakes.cuda.fail_once("cuStreamSynchronize", 700);
    assert_eq!(run(&backend).unwrap(), expected);
    assert_eq!(machine.builds_and_loads(), (1, 2), "not built again after the reset");
    assert!(
        backend
            .build(InputShape::one(40, 64), BuildOptions::default(), &mut |_| ())
            .unwrap()
            .saved
            .is_err()
    );
}

#[test]
fn a_file_in_the_place_of_the_folder_is_an_error() {
    let machine = Machine::new("10.15");
    fs::write(machine.bundle.path().join(FOLDER), "").unwrap();
    let error = run(&machine.open()).unwrap_err().to_string();
    assert!(error.contains("cannot access") && error.contains(FOLDER), "{error}");
}
