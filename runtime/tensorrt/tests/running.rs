//! Plans, engines and contexts, against fakes of all interfaces.
#![allow(unsafe_code, missing_docs)] // The fakes are controlled through C functions.

use std::sync::Arc;

use conceptseg_tensorrt::cuda::{Context, DeviceBuffer, Stream};
use conceptseg_tensorrt::{
    DataType, Engine, Error, ErrorCode, ExecutionContext, Plan, PlanError, Runtime, Seal,
    TensorMode,
};
use conceptseg_tensorrt_fakes::{Fakes, VERSIONS};

/// What the fakes read as a plan.
fn plan_bytes(version: [u8; 3]) -> Vec<u8> {
    let mut bytes = b"ftrt".to_vec();
    bytes.resize(24, 0);
    bytes.extend(version);
    bytes.push(0);
    bytes.extend(b"fake plan");
    bytes
}

fn plan(version: [u8; 3]) -> Plan {
    let bytes = plan_bytes(version);
    let seal = Seal::of(&bytes);
    Plan::new(bytes, &seal).unwrap()
}

fn engine(fakes: &Fakes) -> (Engine, Arc<Context>) {
    let context = fakes.context();
    let runtime = Runtime::new(&fakes.library(), &context).unwrap();
    (runtime.deserialize(&plan([8, 6, 1])).unwrap(), context)
}

/// An execution context with both tensors shaped and bound.
fn ready(
    engine: &Engine,
    cuda: &Arc<Context>,
) -> (ExecutionContext, Arc<DeviceBuffer<f32>>, Arc<DeviceBuffer<f32>>) {
    let mut context = engine.create_context().unwrap();
    context.set_input_shape("image", &[1, 3, 64, 128]).unwrap();
    let image = Arc::new(DeviceBuffer::new(cuda, 3 * 64 * 128).unwrap());
    let embedding = Arc::new(DeviceBuffer::new(cuda, 48 * 8 * 16).unwrap());
    context.bind("image", &image).unwrap();
    context.bind("embedding", &embedding).unwrap();
    (context, image, embedding)
}

#[test]
fn a_plan_runs_from_file_to_result() {
    for version in VERSIONS {
        let fakes = Fakes::new(version);
        let (engine, cuda) = engine(&fakes);
        let stream = Stream::new(&cuda).unwrap();
        let (mut context, image, embedding) = ready(&engine, &cuda);
        image.write(&stream, &vec![1.5; image.len()]).unwrap();
        context.enqueue(&stream).unwrap();
        let mut result = vec![0.0; embedding.len()];
        embedding.read(&stream, &mut result).unwrap();
        assert_eq!(result, vec![3.0; 48 * 8 * 16], "{version}");
        drop((engine, context, image, embedding, stream, cuda));
        let calls = fakes.nvinfer.take_calls();
        let expected_context =
            if version == "8.6" { "createExecutionContext" } else { "createExecutionContext 0" };
        for call in [
            expected_context,
            "setInputShape image [1, 3, 64, 128]",
            "setTensorAddress embedding",
            "enqueueV3",
        ] {
            assert!(calls.iter().any(|made| made == call), "{version}: {call} not in {calls:?}");
        }
        fakes.check_all_destroyed();
    }
}

#[test]
fn an_engine_describes_its_tensors() {
    for version in VERSIONS {
        let fakes = Fakes::new(version);
        fakes.nvinfer.set("type:embedding", 1);
        let (engine, _cuda) = engine(&fakes);
        assert_eq!((engine.name(), engine.layers(), engine.profiles()), ("fake network", 42, 2));
        let image = engine.tensor("image").unwrap();
        assert_eq!((image.mode, image.data_type), (TensorMode::Input, DataType::Float));
        assert_eq!(image.shape, [-1, 3, -1, -1]);
        assert_eq!(image.profiles[0].max, [8, 3, 1088, 1920]);
        assert_eq!(image.profiles[1].max, [1, 3, 1088, 1920]);
        assert_eq!(image.profiles[1].opt, [1, 3, 480, 832]);
        let embedding = engine.tensor("embedding").unwrap();
        assert_eq!((embedding.mode, embedding.data_type), (TensorMode::Output, DataType::Half));
        assert_eq!(engine.device_memory(), 5 << 30);
        assert_eq!(engine.inspect().unwrap(), r#"{"Layers": ["conv1"]}"#);
        fakes.nvinfer.set("no_information", 1);
        assert!(matches!(engine.inspect(), Err(Error::Failed { .. })));
        assert!(embedding.profiles.is_empty() && embedding.is_dynamic() && embedding.linear);
        let error = engine.tensor("mask").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the engine has no tensor `mask`; it has `image`, `embedding`"
        );
    }
}

#[test]
fn whatever_is_dropped_first_the_library_sees_the_right_order() {
    for version in VERSIONS {
        let fakes = Fakes::new(version);
        let cuda = fakes.context();
        let library = fakes.library();
        let runtime = Runtime::new(&library, &cuda).unwrap();
        let engine = runtime.deserialize(&plan([8, 6, 1])).unwrap();
        drop(runtime);
        let (first, image, embedding) = ready(&engine, &cuda);
        let second = engine.create_context().unwrap();
        drop((engine, cuda, library, image, embedding));
        // Nothing is gone yet: the contexts hold it all.
        assert!(!fakes.nvinfer.take_calls().iter().any(|call| call.starts_with("destroy")));
        drop(first);
        assert_eq!(fakes.nvinfer.take_calls(), ["destroy VExecutionContext"]);
        // The last one may go in a thread that never saw the device.
        std::thread::spawn(move || drop(second)).join().unwrap();
        assert_eq!(
            fakes.nvinfer.take_calls(),
            ["destroy VExecutionContext", "destroy VCudaEngine", "destroy VRuntime"]
        );
        fakes.check_all_destroyed();
    }
}

#[test]
fn a_running_context_is_waited_for_before_its_buffers_go() {
    let fakes = Fakes::new("10.15");
    let (engine, cuda) = engine(&fakes);
    let stream = Stream::new(&cuda).unwrap();
    let (mut context, image, embedding) = ready(&engine, &cuda);
    context.enqueue(&stream).unwrap();
    drop((image, embedding, stream));
    fakes.cuda.take_calls();
    drop(context);
    let calls = fakes.cuda.take_calls();
    let at = |name: &str| calls.iter().position(|call| call == name).unwrap();
    assert!(at("cuStreamSynchronize") < at("cuMemFree"), "{calls:?}");
    assert!(at("cuStreamSynchronize") < at("cuStreamDestroy"), "{calls:?}");
    drop((engine, cuda));
    fakes.check_all_destroyed();
}

#[test]
fn binding_anew_waits_and_another_stream_waits() {
    let fakes = Fakes::new("11.4");
    let (engine, cuda) = engine(&fakes);
    let (one, two) = (Stream::new(&cuda).unwrap(), Stream::new(&cuda).unwrap());
    let (mut context, image, _embedding) = ready(&engine, &cuda);
    let waits = |fakes: &Fakes| {
        fakes.cuda.take_calls().iter().filter(|call| *call == "cuStreamSynchronize").count()
    };
    waits(&fakes);
    context.enqueue(&one).unwrap();
    context.enqueue(&one).unwrap();
    assert_eq!(waits(&fakes), 0, "runs in one stream follow each other");
    context.enqueue(&two).unwrap();
    assert_eq!(waits(&fakes), 1);
    context.bind("image", &image).unwrap();
    assert_eq!(waits(&fakes), 1);
}

#[test]
fn wrong_shapes_are_refused_before_the_library_sees_them() {
    for version in VERSIONS {
        let fakes = Fakes::new(version);
        let (engine, cuda) = engine(&fakes);
        let stream = Stream::new(&cuda).unwrap();
        let mut context = engine.create_context().unwrap();
        fakes.nvinfer.take_calls();
        for (shape, reason) in [
            (&[1, 3, 64][..], "where -1 is open"),
            (&[1, 4, 64, 64], "where -1 is open"),
            (&[1, 3, -1, 64], "where -1 is open"),
            (&[1; 9], "where -1 is open"),
            (&[1, 3, 32, 64], "the profile allows [1, 3, 64, 64] to [8, 3, 1088, 1920]"),
            (&[9, 3, 64, 64], "the profile allows"),
        ] {
            let error = context.set_input_shape("image", shape).unwrap_err();
            assert!(matches!(error, Error::Shape { .. }), "{error}");
            assert!(error.to_string().contains(reason), "{error}");
        }
        assert!(matches!(
            context.set_input_shape("embedding", &[1, 48, 8, 8]),
            Err(Error::NotAnInput { .. })
        ));
        assert!(matches!(context.set_input_shape("img", &[1]), Err(Error::UnknownTensor { .. })));
        assert_eq!(fakes.nvinfer.take_calls(), [""; 0]);
        assert_eq!(context.shape("embedding").unwrap(), [-1, 48, -1, -1]);
        // The second profile allows one image only, and forgets the shapes.
        context.set_input_shape("image", &[2, 3, 64, 64]).unwrap();
        assert_eq!(context.shape("embedding").unwrap(), [2, 48, 8, 8]);
        context.set_profile(1, &stream).unwrap();
        assert_eq!(context.shape("image").unwrap(), [-1, 3, -1, -1]);
        assert!(matches!(
            context.set_input_shape("image", &[2, 3, 64, 64]),
            Err(Error::Shape { .. })
        ));
        assert!(matches!(context.set_profile(2, &stream), Err(Error::Option { .. })));
    }
}

#[test]
fn wrong_types_small_buffers_and_missing_ones_are_refused_before_a_run() {
    for version in VERSIONS {
        let fakes = Fakes::new(version);
        let (engine, cuda) = engine(&fakes);
        let stream = Stream::new(&cuda).unwrap();
        let mut context = engine.create_context().unwrap();
        fakes.nvinfer.take_calls();
        let half = Arc::new(DeviceBuffer::<half::f16>::new(&cuda, 3 * 64 * 64).unwrap());
        let error = context.bind("image", &half).unwrap_err();
        assert_eq!(error.to_string(), "tensor `image` holds float32, but the buffer holds float16");
        let elsewhere = Context::new(cuda.driver(), 1).unwrap();
        let far = Arc::new(DeviceBuffer::<f32>::new(&elsewhere, 8).unwrap());
        assert!(matches!(
            context.bind("image", &far),
            Err(Error::OtherDevice { engine: 0, buffer: 1, .. })
        ));
        assert!(matches!(context.enqueue(&stream), Err(Error::Unbound { .. })));
        assert!(matches!(context.enqueue(&Stream::new(&elsewhere).unwrap()), Err(Error::Cuda(_))));
        assert_eq!(fakes.nvinfer.take_calls(), [""; 0]);
        let image = Arc::new(DeviceBuffer::<f32>::new(&cuda, 3 * 64 * 64).unwrap());
        let embedding = Arc::new(DeviceBuffer::<f32>::new(&cuda, 48 * 8 * 8).unwrap());
        context.bind("image", &image).unwrap();
        context.bind("embedding", &embedding).unwrap();
        let error = context.enqueue(&stream).unwrap_err();
        assert!(matches!(error, Error::OpenShape { .. }), "{error}");
        context.set_input_shape("image", &[1, 3, 64, 64]).unwrap();
        context.enqueue(&stream).unwrap();
        context.set_input_shape("image", &[1, 3, 64, 72]).unwrap();
        let error = context.enqueue(&stream).unwrap_err();
        assert_eq!(
            error.to_string(),
            "tensor `image` of shape [1, 3, 64, 72] needs 55296 bytes, but its buffer has 49152"
        );
        let runs = fakes.nvinfer.take_calls().iter().filter(|call| *call == "enqueueV3").count();
        assert_eq!(runs, 1, "only the right one was run");
    }
}

#[test]
fn tensors_of_other_layouts_and_unknown_types_are_refused() {
    let fakes = Fakes::new("11.1");
    fakes.nvinfer.set("format:image", 5);
    fakes.nvinfer.set("location:embedding", 1);
    let (engine, cuda) = engine(&fakes);
    let mut context = engine.create_context().unwrap();
    let buffer = Arc::new(DeviceBuffer::<f32>::new(&cuda, 8).unwrap());
    for (tensor, reason) in [("image", "plain row-major order"), ("embedding", "host memory")] {
        let error = context.bind(tensor, &buffer).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
    drop((context, engine));
    let runtime = Runtime::new(&fakes.library(), &cuda).unwrap();
    fakes.nvinfer.set("type:image", 99);
    assert!(matches!(runtime.deserialize(&plan([11, 1, 0])), Err(Error::UnsupportedTensor { .. })));
    fakes.nvinfer.set("tensors", -5);
    let error = runtime.deserialize(&plan([11, 1, 0])).unwrap_err();
    assert!(error.to_string().contains("claims to have -5 tensors"), "{error}");
    drop((buffer, runtime, cuda));
    fakes.check_all_destroyed();
}

#[test]
fn memory_and_streams_of_other_libraries_can_be_used() {
    let fakes = Fakes::new("10.3");
    let (engine, cuda) = engine(&fakes);
    let stream = Stream::new(&cuda).unwrap();
    let (mut context, image, embedding) = ready(&engine, &cuda);
    image.write(&stream, &vec![2.0; image.len()]).unwrap();
    // SAFETY: the buffers outlive the context, and the fake has done the work when it returns.
    unsafe {
        context.bind_raw("image", image.address(), image.bytes() as u64).unwrap();
        let odd = context.bind_raw("embedding", embedding.address() + 4, 8);
        assert!(odd.unwrap_err().to_string().contains("not a multiple of 256"));
        context.bind_raw("embedding", embedding.address(), 4).unwrap();
        assert!(matches!(
            context.enqueue_raw(stream.raw()),
            Err(Error::BufferTooSmall { given: 4, .. })
        ));
        context.bind_raw("embedding", embedding.address(), embedding.bytes() as u64).unwrap();
        context.enqueue_raw(stream.raw()).unwrap();
    }
    let mut result = vec![0.0; embedding.len()];
    embedding.read(&stream, &mut result).unwrap();
    assert_eq!(result[17], 4.0);
}

#[test]
fn what_the_error_recorder_hears_becomes_the_reason() {
    for version in VERSIONS {
        let fakes = Fakes::new(version);
        let (engine, cuda) = engine(&fakes);
        let stream = Stream::new(&cuda).unwrap();
        let (mut context, ..) = ready(&engine, &cuda);
        fakes.nvinfer.set("no_enqueue", 1);
        let error = context.enqueue(&stream).unwrap_err();
        assert_eq!(
            error.to_string(),
            "TensorRT could not run the network: a kernel could not be launched"
        );
        assert!(context.take_errors().is_empty(), "told once");
        fakes.nvinfer.set("no_enqueue", 0);
        context.enqueue(&stream).unwrap();
        fakes.nvinfer.set("no_context", 1);
        assert!(matches!(engine.create_context(), Err(Error::NoObject { .. })));
        assert!(engine.take_errors().is_empty());
    }
    assert_ne!(ErrorCode::FailedExecution, ErrorCode::Unspecified);
}

#[test]
fn cut_changed_and_foreign_plans_never_reach_the_library() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("network.plan");
    let bytes = plan_bytes([10, 15, 1]);
    let seal = Seal::of(&bytes);
    for version in VERSIONS {
        let fakes = Fakes::new(version);
        let runtime = Runtime::new(&fakes.library(), &fakes.context()).unwrap();
        fakes.nvinfer.take_calls();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(matches!(Plan::open(&path, &seal), Err(PlanError::Size { .. })));
        let mut changed = bytes.clone();
        changed[30] ^= 1;
        std::fs::write(&path, &changed).unwrap();
        assert!(matches!(Plan::open(&path, &seal), Err(PlanError::Hash { .. })));
        let later = runtime.deserialize(&plan([12, 0, 0]));
        assert!(matches!(later, Err(Error::Plan(PlanError::Newer { .. }))));
        assert_eq!(fakes.nvinfer.take_calls(), [""; 0]);
        // A whole plan that TensorRT does not take is its error, with its reason.
        let mut foreign = plan_bytes([8, 6, 1]);
        foreign.push(b'!');
        let foreign = Plan::new(foreign.clone(), &Seal::of(&foreign)).unwrap();
        let error = runtime.deserialize(&foreign).unwrap_err();
        assert!(
            error.to_string().contains("could not read the plan: the plan is not for this device"),
            "{error}"
        );
        assert!(runtime.take_errors().is_empty());
    }
}

#[test]
fn runtime_options_reach_the_library() {
    for version in VERSIONS {
        let fakes = Fakes::new(version);
        let runtime = Runtime::new(&fakes.library(), &fakes.context()).unwrap();
        assert!(matches!(runtime.set_dla_core(0), Err(Error::Option { .. })));
        fakes.nvinfer.set("dla_cores", 2);
        fakes.nvinfer.take_calls();
        assert_eq!(runtime.dla_cores(), 2);
        runtime.set_dla_core(1).unwrap();
        runtime.set_host_code_allowed(true);
        assert_eq!(
            fakes.nvinfer.take_calls(),
            ["VRuntime.setDLACore 1", "setEngineHostCodeAllowed true"]
        );
    }
}

#[test]
fn one_engine_runs_in_several_threads() {
    let fakes = Fakes::new("11.4");
    let (engine, cuda) = engine(&fakes);
    std::thread::scope(|scope| {
        for number in 0..4_u8 {
            let (engine, cuda) = (engine.clone(), Arc::clone(&cuda));
            scope.spawn(move || {
                let stream = Stream::new(&cuda).unwrap();
                let (mut context, image, embedding) = ready(&engine, &cuda);
                let value = f32::from(number);
                image.write(&stream, &vec![value; image.len()]).unwrap();
                context.enqueue(&stream).unwrap();
                let mut result = vec![0.0; embedding.len()];
                embedding.read(&stream, &mut result).unwrap();
                assert_eq!(result[0], 2.0 * value);
            });
        }
    });
    drop((engine, cuda));
    fakes.check_all_destroyed();
}
