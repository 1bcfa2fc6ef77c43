//! Finding TensorRT and the CUDA driver, and refusing what is not known.
#![allow(unsafe_code, missing_docs)] // The fakes are controlled through C functions.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use conceptseg_tensorrt::cuda::{Context, CudaError, DeviceBuffer, Driver, Event, Stream};
use conceptseg_tensorrt::{Builder, Error, Library, Logger, Runtime, Search, Severity};
use conceptseg_tensorrt_fakes::{Fakes, VERSIONS};

#[test]
fn the_version_of_the_library_chooses_the_interface() {
    for (version, full) in
        VERSIONS.into_iter().zip(["8.6.1", "10.3.0", "10.15.1", "11.1.0", "11.4.0"])
    {
        let fakes = Fakes::new(version);
        let library = fakes.library();
        assert_eq!(library.version().to_string(), full);
        assert!(library.can_build());
        assert!(library.path().starts_with(fakes.folder.path()));
        let parser = library.onnx_parser().unwrap();
        assert_eq!(parser.library_version(), library.version());
        let interface = if fakes.major == 11 { "0.2.0" } else { "0.1.0" };
        assert_eq!(parser.interface_version().to_string(), interface);
        let context = fakes.context();
        let runtime = Runtime::new(&library, &context).unwrap();
        assert_eq!(runtime.library().version(), library.version());
        // The number that the library is asked with is its own.
        let number = match full {
            "8.6.1" => "8601",
            "10.3.0" => "100300",
            "10.15.1" => "101501",
            "11.1.0" => "110100",
            _ => "110400",
        };
        let calls = fakes.nvinfer.take_calls();
        assert_eq!(calls, [&format!("createInferRuntime {number}"), "VRuntime.setErrorRecorder"]);
        drop((runtime, context));
        fakes.check_all_destroyed();
    }
}

#[test]
fn a_version_without_an_interface_table_is_refused_by_its_number() {
    let fakes = Fakes::new("10.15");
    for (number, text) in [(120_000, "12.0.0"), (9200, "9.2.0"), (8503, "8.5.3"), (0, "0.0.0")] {
        fakes.nvinfer.set("version", number);
        let error = Library::open(&fakes.search()).unwrap_err();
        assert!(matches!(error, Error::UnknownVersion { .. }), "{error}");
        assert!(
            error.to_string().contains(&format!("TensorRT {text}, whose interface is not known")),
            "{error}"
        );
    }
    // Nothing of it was called but its version.
    assert_eq!(fakes.nvinfer.take_calls(), [""; 0]);
    // A later minor version of a known major one only adds to it.
    fakes.nvinfer.set("version", 109_900);
    assert_eq!(fakes.library().version().to_string(), "10.99.0");
}

#[test]
fn a_folder_with_another_major_version_says_which() {
    let fakes = Fakes::new("10.15");
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fakes.library().path(), folder.path().join("libnvinfer.so.12")).unwrap();
    let error = Library::open(&Search::folder(folder.path())).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }));
    let expected = "libnvinfer.so.12 is there, but version 11 or 10 or 8 is needed";
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn a_missing_library_names_all_that_was_tried() {
    let folder = tempfile::tempdir().unwrap();
    let error = Library::open(&Search::folder(folder.path())).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }));
    for name in ["libnvinfer.so.11", "libnvinfer_lean.so.11", "libnvinfer.so.10"] {
        let told = format!("{name}: cannot open shared object file");
        assert!(error.to_string().contains(&told), "{error}");
    }
    let error = Library::open_file(folder.path().join("libnvinfer.so.10")).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }));
}

#[test]
fn a_file_that_is_no_tensorrt_is_refused() {
    let fakes = Fakes::new("10.15");
    let error = Library::open_file(fakes.folder.path().join("libcuda.so.1")).unwrap_err();
    assert!(matches!(error, Error::MissingSymbol { symbol: "getInferLibVersion", .. }), "{error}");
    let text = fakes.folder.path().join("libnvinfer.so.11");
    fs::write(&text, "no library").unwrap();
    assert!(matches!(Library::open_file(text), Err(Error::NotFound { .. })));
}

#[test]
fn the_preferred_major_version_is_taken_and_8_only_when_named() {
    let (ten, eleven, eight) = (Fakes::new("10.3"), Fakes::new("11.4"), Fakes::new("8.6"));
    let folders = [&eight, &ten, &eleven].map(|fakes| fakes.folder.path().to_path_buf()).to_vec();
    let search = |majors: &[u32]| Search {
        folders: folders.clone(),
        loader_path: false,
        majors: majors.to_vec(),
    };
    let major = |search: &Search| Library::open(search).unwrap().version().major;
    assert_eq!(major(&search(&Search::default().majors)), 11);
    assert_eq!(major(&search(&[10, 11])), 10);
    assert_eq!(major(&search(&[8])), 8);
}

#[test]
fn a_parser_of_another_interface_or_none_is_refused() {
    let fakes = Fakes::new("11.4");
    fakes.parser.set("parser_version", 10_000);
    let error = fakes.library().onnx_parser().unwrap_err();
    let expected = "is an ONNX parser of interface 1.0.0, which is not known here; install that of TensorRT 11.4.0";
    assert!(error.to_string().contains(expected), "{error}");
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fakes.library().path(), folder.path().join("libnvinfer.so.11")).unwrap();
    let library = Library::open(&Search::folder(folder.path())).unwrap();
    assert!(matches!(library.onnx_parser(), Err(Error::ParserNotFound { .. })));
}

#[test]
fn the_lean_runtime_runs_but_does_not_build() {
    for version in ["10.15", "11.4"] {
        let fakes = Fakes::lean(version);
        let (library, context) = (fakes.library(), fakes.context());
        assert!(!library.can_build());
        Runtime::new(&library, &context).unwrap();
        let error = Builder::new(&library, &context).unwrap_err();
        assert!(matches!(error, Error::NoBuilder { .. }), "{error}");
    }
}

#[test]
fn no_runtime_and_a_small_number_for_one_are_clean_errors_with_the_logged_reason() {
    for version in VERSIONS {
        let fakes = Fakes::new(version);
        let (library, context) = (fakes.library(), fakes.context());
        for address in [0, 0x228, 0x238, 0xFFF8] {
            fakes.nvinfer.set("runtime_address", address);
            let error = Runtime::new(&library, &context).unwrap_err();
            assert!(matches!(error, Error::NoObject { .. }), "{error}");
            assert!(
                error.to_string().contains("CUDA initialization failure with error: 35"),
                "{error}"
            );
        }
        drop(context);
        fakes.check_all_destroyed();
    }
}

#[test]
fn messages_reach_the_logger_by_severity_and_a_panic_in_it_stays_there() {
    for version in VERSIONS {
        let fakes = Fakes::new(version);
        let (library, context) = (fakes.library(), fakes.context());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ear = Arc::clone(&heard);
        library.set_logger(Logger::default().also_to(move |severity, message| {
            ear.lock().unwrap().push((severity, message.to_owned()));
        }));
        Runtime::new(&library, &context).unwrap();
        assert_eq!(
            *heard.lock().unwrap(),
            [(Severity::Info, "the fake is asked for a runtime".to_owned())]
        );
        let ear = Arc::clone(&heard);
        library.set_logger(Logger::default().verbosity(Severity::Warning).also_to(
            move |severity, message| {
                ear.lock().unwrap().push((severity, message.to_owned()));
            },
        ));
        Runtime::new(&library, &context).unwrap();
        assert_eq!(heard.lock().unwrap().len(), 1);
        library.set_logger(
            Logger::default().also_to(|_, _| panic!("a logger that fails (on purpose)")),
        );
        Runtime::new(&library, &context).unwrap();
    }
}

#[test]
fn without_a_driver_or_gpu_tensorrt_is_not_called() {
    let fakes = Fakes::new("10.15");
    let path = fakes.folder.path().join("libcuda.so.1");
    let error = Driver::open_file(fakes.folder.path().join("none.so")).unwrap_err();
    assert!(matches!(error, CudaError::NotFound { .. }));
    let error = Driver::open_file(fakes.folder.path().join("libnvinfer.so.10")).unwrap_err();
    assert!(matches!(error, CudaError::MissingSymbol { .. }));
    fakes.cuda.set("cuInit", 100);
    let error = Driver::open_file(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cuInit failed: CUDA_ERROR_NO_DEVICE (100), no CUDA-capable device is detected"
    );
    fakes.cuda.set("cuInit", 0);
    let error = Context::new(&Driver::open_file(&path).unwrap(), 2).unwrap_err();
    assert_eq!(error.to_string(), "there is no GPU 2; the CUDA driver finds 2");
    assert_eq!(fakes.nvinfer.take_calls(), [""; 0]);
}

#[test]
fn the_driver_tells_about_devices_and_moves_memory() {
    let fakes = Fakes::new("10.15");
    let driver = fakes.driver();
    assert_eq!(driver.cuda_version().unwrap(), (12, 6));
    assert!(driver.path().ends_with(Path::new("libcuda.so.1")));
    let context = Context::new(&driver, 1).unwrap();
    assert_eq!((context.ordinal(), context.name().unwrap().as_str()), (1, "Fake GPU 1"));
    assert_eq!(context.compute_capability().unwrap(), (8, 7));
    assert_eq!(context.total_memory().unwrap(), 32 << 30);
    let stream = Stream::new(&context).unwrap();
    let buffer = DeviceBuffer::<i32>::new(&context, 3).unwrap();
    let mut host = [9; 3];
    buffer.read(&stream, &mut host).unwrap();
    assert_eq!(host, [0; 3], "new memory is zero");
    buffer.write(&stream, &[1, 2, 3]).unwrap();
    buffer.read(&stream, &mut host).unwrap();
    assert_eq!(host, [1, 2, 3]);
    assert!(matches!(buffer.write(&stream, &[1]), Err(CudaError::Length { host: 1, device: 3 })));
    let other = Stream::new(&Context::new(&driver, 0).unwrap()).unwrap();
    assert!(matches!(
        buffer.write(&other, &[1, 2, 3]),
        Err(CudaError::OtherDevice { stream: 0, object: 1 })
    ));
    let (begin, end) = (Event::new(&context).unwrap(), Event::new(&context).unwrap());
    begin.record(&stream).unwrap();
    end.record(&stream).unwrap();
    stream.wait(&end).unwrap();
    end.synchronize().unwrap();
    assert_eq!(end.milliseconds_since(&begin).unwrap(), 1.5);
    assert!(matches!(
        DeviceBuffer::<i64>::new(&context, usize::MAX / 4),
        Err(CudaError::TooLarge { .. })
    ));
    // Objects may be dropped by a thread that never saw the device.
    std::thread::spawn(move || drop((buffer, stream, begin, end))).join().unwrap();
    drop((context, other));
    fakes.check_all_destroyed();
}

#[test]
fn out_of_memory_and_a_broken_context_are_told_apart() {
    let fakes = Fakes::new("10.15");
    let context = fakes.context();
    fakes.cuda.set("cuMemAlloc", 2);
    let error = DeviceBuffer::<f32>::new(&context, 8).unwrap_err();
    assert!(error.is_out_of_memory() && !error.is_sticky(), "{error}");
    let stream = Stream::new(&context).unwrap();
    fakes.cuda.set("cuStreamSynchronize", 700);
    let error = stream.synchronize().unwrap_err();
    assert!(error.is_sticky() && !error.is_out_of_memory(), "{error}");
    assert!(error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)"), "{error}");
}
