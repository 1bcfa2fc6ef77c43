//! Real libraries, where they are at hand.
//!
//! `CONCEPTSEG_TENSORRT` lists folders (separated as in `PATH`) with `libnvinfer.so.N` or `libnvinfer_lean.so.N`, for
//! example `tensorrt_lean_libs` of the packages `tensorrt-lean-cu13-libs` 10.15.1.29 and 11.4.0.106. With a GPU a runtime
//! is made on it; without, a fake driver lets the call through, and the library must fail cleanly.
#![allow(unsafe_code, missing_docs)] // The fakes are controlled through C functions.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use conceptseg_tensorrt::cuda::{Context, Driver};
use conceptseg_tensorrt::{Builder, Error, Library, Logger, Plan, Runtime, Seal, Search};
use conceptseg_tensorrt_fakes::Fakes;

fn folders() -> Vec<PathBuf> {
    let folders: Vec<PathBuf> = std::env::var_os("CONCEPTSEG_TENSORRT")
        .map(|list| std::env::split_paths(&list).collect())
        .unwrap_or_default();
    if folders.is_empty() {
        println!("skipped: CONCEPTSEG_TENSORRT names no folder with TensorRT");
    }
    folders
}

#[test]
fn a_real_library_loads_and_without_a_gpu_fails_cleanly() {
    for folder in folders() {
        let library = Library::open(&Search::folder(&folder)).unwrap();
        println!("{}: TensorRT {}", library.path().display(), library.version());
        if library.can_build() {
            let parser = library.onnx_parser().unwrap();
            println!("  ONNX parser with interface {}", parser.interface_version());
        }
        let driver = Driver::open();
        if library.version().major == 8 && driver.is_err() {
            println!("  no runtime is made: without a driver, TensorRT 8.6 crashes");
            continue;
        }
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ear = Arc::clone(&heard);
        library.set_logger(Logger::default().also_to(move |severity, message| {
            println!("  log {severity:?}: {message}");
            ear.lock().unwrap().push(message.to_owned());
        }));
        if let Ok(driver) = driver {
            let context = Context::new(&driver, 0).unwrap();
            let runtime = Runtime::new(&library, &context).unwrap();
            println!("  runtime on {}, {} DLA cores", context.name().unwrap(), runtime.dla_cores());
            let mut bytes = b"ftrt".to_vec();
            bytes.resize(4096, 0);
            bytes[24] = 10;
            let error = runtime
                .deserialize(&Plan::new(bytes.clone(), &Seal::of(&bytes)).unwrap())
                .unwrap_err();
            println!("  a plan of zeros: {error}");
            continue;
        }
        let context = Fakes::new("10.15").context();
        let error = Runtime::new(&library, &context).unwrap_err();
        println!("  {error}");
        assert!(matches!(error, Error::NoObject { .. }));
        assert!(!heard.lock().unwrap().is_empty(), "the library has called the logger");
        if !library.can_build() {
            assert!(matches!(Builder::new(&library, &context), Err(Error::NoBuilder { .. })));
        }
    }
}
