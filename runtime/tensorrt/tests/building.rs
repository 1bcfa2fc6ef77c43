//! From ONNX to a plan, against fakes of all interfaces.
#![allow(unsafe_code, missing_docs)] // The fakes are controlled through C functions.

use conceptseg_tensorrt::{
    Builder, DataType, Error, Hardware, Network, OnnxParser, Runtime, ShapeRange,
};
use conceptseg_tensorrt_fakes::{Fakes, VERSIONS};

fn parsed<'b>(fakes: &Fakes, builder: &'b Builder) -> Network<'b> {
    let library = fakes.library().onnx_parser().unwrap();
    let parser = OnnxParser::new(&library, builder.create_network().unwrap()).unwrap();
    parser.parse(b"onnx model").unwrap()
}

fn range() -> ShapeRange {
    ShapeRange { min: vec![1, 3, 64, 64], opt: vec![1, 3, 480, 832], max: vec![4, 3, 1088, 1920] }
}

#[test]
fn a_model_becomes_a_plan_that_the_runtime_reads() {
    for version in VERSIONS {
        let fakes = Fakes::new(version);
        let (library, cuda) = (fakes.library(), fakes.context());
        let builder = Builder::new(&library, &cuda).unwrap();
        let network = parsed(&fakes, &builder);
        assert_eq!(network.layers(), 6);
        let (inputs, outputs) = (network.inputs().unwrap(), network.outputs().unwrap());
        assert_eq!(
            (inputs[0].name.as_str(), &inputs[0].shape[..]),
            ("image", &[-1, 3, -1, -1][..])
        );
        assert_eq!((outputs[0].name.as_str(), outputs[0].data_type), ("embedding", DataType::Half));
        let mut config = builder.create_config().unwrap();
        let mut profile = builder.create_profile().unwrap();
        profile.set_range("image", &range()).unwrap();
        assert_eq!(config.add_profile(&profile).unwrap(), 0);
        let plan = builder.build(&network, &config).unwrap();
        assert_eq!(plan.version(), Some(library.version()));
        let engine = Runtime::new(&library, &cuda).unwrap().deserialize(&plan).unwrap();
        assert_eq!(engine.tensors().len(), 2);
        drop((network, config, engine, cuda));
        drop(builder);
        let calls = fakes.nvinfer.take_calls();
        let [min, opt, max] = [range().min, range().opt, range().max];
        let added = format!("addOptimizationProfile [{min:?}, {opt:?}, {max:?}]");
        assert!(calls.contains(&added), "{version}: {calls:?}");
        assert!(
            calls.contains(&"buildSerializedNetwork VNetworkDefinition VBuilderConfig".to_owned()),
            "{calls:?}"
        );
        fakes.check_all_destroyed();
    }
}

#[test]
fn every_option_reaches_the_library_as_what_it_means_there() {
    for version in VERSIONS {
        let fakes = Fakes::new(version);
        fakes.nvinfer.set("dla_cores", 2);
        let cuda = fakes.context();
        let builder = Builder::new(&fakes.library(), &cuda).unwrap();
        let mut config = builder.create_config().unwrap();
        fakes.nvinfer.take_calls();
        config.set_workspace_limit(1 << 30);
        config.set_optimization_level(5).unwrap();
        config.set_hardware(Hardware::AmperePlus).unwrap();
        config.set_version_compatible(true);
        config.set_exclude_lean_runtime(true);
        config.set_tf32(false);
        config.set_detailed(true);
        config.set_dla_core(1, true).unwrap();
        assert_eq!(
            fakes.nvinfer.take_calls(),
            [
                "setMemoryPoolLimit 0 1073741824",
                "setBuilderOptimizationLevel 5",
                "setHardwareCompatibilityLevel 1",
                "setFlag kVERSION_COMPATIBLE",
                "setFlag kEXCLUDE_LEAN_RUNTIME",
                "clearFlag kTF32",
                "setProfilingVerbosity 2",
                "setDefaultDeviceType 1",
                "VBuilderConfig.setDLACore 1",
                "setFlag kGPU_FALLBACK",
            ],
            "{version}"
        );
        let same = config.set_hardware(Hardware::SameComputeCapability);
        assert_eq!(same.is_ok(), !["8.6", "10.3"].contains(&version), "{version}");
        assert!(matches!(config.set_optimization_level(6), Err(Error::Option { .. })));
        let error = config.set_dla_core(2, false).unwrap_err();
        assert!(
            error.to_string().contains("DLA core = 2 was refused: the device has 2 DLA cores"),
            "{error}"
        );
    }
}

#[test]
fn a_timing_cache_goes_from_one_build_to_the_next() {
    for version in VERSIONS {
        let fakes = Fakes::new(version);
        let cuda = fakes.context();
        let builder = Builder::new(&fakes.library(), &cuda).unwrap();
        let mut config = builder.create_config().unwrap();
        assert!(config.timing_cache().is_none());
        config.set_timing_cache(&[]).unwrap();
        assert_eq!(config.timing_cache().unwrap().serialize().unwrap(), b"cache:");
        config.set_timing_cache(b"cache:conv").unwrap();
        let mut other = config.create_timing_cache(b"cache:pool").unwrap();
        other.combine(config.timing_cache().unwrap()).unwrap();
        assert_eq!(other.serialize().unwrap(), b"cache:poolcache:conv");
        assert!(matches!(config.set_timing_cache(b"of another GPU"), Err(Error::NoObject { .. })));
        assert_eq!(
            config.timing_cache().unwrap().serialize().unwrap(),
            b"cache:conv",
            "the former stays in use"
        );
        drop((other, config));
        drop((builder, cuda));
        fakes.check_all_destroyed();
    }
}

#[test]
fn a_model_that_cannot_be_read_says_which_node() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, "no model").unwrap();
    for version in VERSIONS {
        let fakes = Fakes::new(version);
        let cuda = fakes.context();
        let builder = Builder::new(&fakes.library(), &cuda).unwrap();
        let library = fakes.library().onnx_parser().unwrap();
        let parser = || OnnxParser::new(&library, builder.create_network().unwrap()).unwrap();
        // The name of a node came with 10.
        let place = if version == "8.6" { "node 17" } else { "node `/head/conv`" };
        let expected =
            format!("TensorRT could not read the ONNX model: {place}: no such operator (code 8)");
        assert_eq!(parser().parse(b"no model").unwrap_err().to_string(), expected);
        assert_eq!(parser().parse_file(&path).unwrap_err().to_string(), expected);
        std::fs::write(folder.path().join("good.onnx"), "onnx").unwrap();
        assert_eq!(parser().parse_file(&folder.path().join("good.onnx")).unwrap().layers(), 6);
        drop((builder, cuda));
        fakes.check_all_destroyed();
    }
}

#[test]
fn a_build_that_fails_says_why() {
    for version in VERSIONS {
        let fakes = Fakes::new(version);
        let cuda = fakes.context();
        let builder = Builder::new(&fakes.library(), &cuda).unwrap();
        fakes.nvinfer.set("no_build", 1);
        let (network, config) = (parsed(&fakes, &builder), builder.create_config().unwrap());
        let error = builder.build(&network, &config).unwrap_err();
        assert_eq!(
            error.to_string(),
            "TensorRT could not build the plan: no kernel for node conv1 (it gave no object)"
        );
        assert!(builder.take_errors().is_empty());
    }
}

#[test]
fn wrong_ranges_and_what_is_of_another_builder_are_refused() {
    for version in VERSIONS {
        let fakes = Fakes::new(version);
        let cuda = fakes.context();
        let (builder, other) = (
            Builder::new(&fakes.library(), &cuda).unwrap(),
            Builder::new(&fakes.library(), &cuda).unwrap(),
        );
        let mut config = builder.create_config().unwrap();
        let mut profile = builder.create_profile().unwrap();
        fakes.nvinfer.take_calls();
        let error = config.add_profile(&profile).unwrap_err();
        assert!(error.to_string().contains("lacks the shapes of an input"), "{error}");
        for wrong in [
            ShapeRange { min: vec![0, 3, 64, 64], ..range() },
            ShapeRange { opt: vec![1, 3, 480], ..range() },
            ShapeRange { opt: vec![1, 3, 32, 832], ..range() },
            ShapeRange { max: vec![1, 3, 480, 64], ..range() },
            ShapeRange { min: vec![1; 9], opt: vec![1; 9], max: vec![1; 9] },
        ] {
            assert!(
                matches!(profile.set_range("image", &wrong), Err(Error::Shape { .. })),
                "{wrong:?}"
            );
        }
        assert!(matches!(profile.set_range("im\0age", &range()), Err(Error::Text { .. })));
        assert_eq!(fakes.nvinfer.take_calls(), [""; 0]);
        let mut foreign = other.create_profile().unwrap();
        foreign.set_range("image", &range()).unwrap();
        assert!(config.add_profile(&foreign).unwrap_err().to_string().contains("another builder"));
        let network = parsed(&fakes, &other);
        assert!(
            builder.build(&network, &config).unwrap_err().to_string().contains("another builder")
        );
    }
}

#[test]
fn the_parser_of_another_major_version_is_refused() {
    let (ten, eleven) = (Fakes::new("10.15"), Fakes::new("11.4"));
    let cuda = ten.context();
    let builder = Builder::new(&ten.library(), &cuda).unwrap();
    let parser = eleven.library().onnx_parser().unwrap();
    let error = OnnxParser::new(&parser, builder.create_network().unwrap()).unwrap_err();
    assert!(error.to_string().contains("ONNX parser = of TensorRT 11.4.0 was refused"), "{error}");
}
