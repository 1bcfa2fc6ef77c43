use std::io;
use std::num::NonZero;

use super::*;
use crate::backend::{BackendKind, BackendOptions, open, probe_one};

const STARTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/starter/embedder.onnx");

fn is_here() -> bool {
    match probe_one(BackendKind::Openvino).available {
        Ok(_) => true,
        Err(reason) => {
            println!("skipped: {reason}");
            false
        }
    }
}

fn starter(kind: BackendKind, threads: usize, precision: Option<Precision>) -> Box<dyn Backend> {
    let options = BackendOptions { cpu_precision: precision, ..BackendOptions::new(kind, threads) };
    open(Path::new(STARTER), "image", "embedding", &options).unwrap()
}

fn picture(width: usize, height: usize) -> Vec<f32> {
    let value = |i: usize| ((i % width) as f32 / 9.0).sin() + ((i / width) as f32 / 7.0).cos();
    (0..3 * width * height).map(value).collect()
}

fn run(backend: &dyn Backend, width: usize, height: usize) -> (OutputShape, Vec<f32>) {
    let mut out = Vec::new();
    let shape = backend.run(Images::one(&picture(width, height), width, height), &mut out).unwrap();
    (shape, out)
}

fn furthest(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn of(names: &str) -> Vec<String> {
    names.split(' ').map(str::to_owned).collect()
}

#[test]
fn agrees_with_rten_on_the_starter_bundle_with_any_number_of_threads_and_any_size() {
    if !is_here() {
        return;
    }
    let sizes = [(192, 128), (128, 192), (200, 120)];
    let expected = sizes.map(|(w, h)| run(starter(BackendKind::Rten, 0, None).as_ref(), w, h));
    for threads in [0, 1, 2, 3] {
        let backend = starter(BackendKind::Openvino, threads, None);
        assert_eq!(backend.describe().contains("thread(s)"), threads > 0);
        for ((width, height), (shape, rten)) in sizes.into_iter().zip(&expected) {
            let (found, openvino) = run(backend.as_ref(), width, height);
            assert_eq!(found, *shape);
            let apart = furthest(rten, &openvino);
            println!(
                "{width}x{height}, {threads} thread(s): rten and openvino differ by {apart:e} at most"
            );
            assert!(apart < 1e-4, "{apart:e}");
        }
    }
}

#[test]
fn programs_of_the_sizes_last_used_are_kept() {
    if !is_here() {
        return;
    }
    let bytes = std::fs::read(STARTER).unwrap();
    let source = Source {
        path: Path::new(STARTER),
        bytes: &bytes,
        input: "image",
        output: "embedding",
        threads: 1,
    };
    let backend = OpenVino::load(&source, None).unwrap();
    let kept = |backend: &OpenVino| -> Vec<i64> {
        lock(&backend.sizes).iter().map(|known| known.dims[3]).collect()
    };
    for width in [64, 72, 80, 64] {
        run(&backend, width, 64);
    }
    assert_eq!(kept(&backend), [64, 80, 72]);
    for width in [88, 96] {
        run(&backend, width, 64);
    }
    assert_eq!(kept(&backend), [96, 88, 64, 80]);
    // One caller after the other runs in the same place.
    assert!(lock(&backend.sizes).iter().all(|known| lock(&known.idle).len() == 1));
}

#[test]
fn callers_at_once_get_what_they_get_alone() {
    if !is_here() {
        return;
    }
    for threads in [0, 1] {
        let backend = starter(BackendKind::Openvino, threads, None);
        let sizes = [(96, 64), (64, 96)];
        let alone = sizes.map(|(w, h)| run(backend.as_ref(), w, h));
        std::thread::scope(|scope| {
            let callers: Vec<_> = (0..6)
                .map(|i| {
                    let ((width, height), backend) = (sizes[i % 2], backend.as_ref());
                    scope.spawn(move || (0..4).map(|_| run(backend, width, height)).collect())
                })
                .collect();
            for (i, caller) in callers.into_iter().enumerate() {
                let found: Vec<_> = caller.join().unwrap();
                for (shape, numbers) in found {
                    assert_eq!(shape, alone[i % 2].0);
                    assert!(furthest(&numbers, &alone[i % 2].1) < 1e-6);
                }
            }
        });
    }
}

#[test]
fn bf16_is_near_fp32_where_the_cpu_has_it() {
    if !is_here() {
        return;
    }
    let capable = core().unwrap().capabilities().unwrap();
    let options = BackendOptions {
        cpu_precision: Some(Precision::Bf16),
        ..BackendOptions::new(BackendKind::Openvino, 1)
    };
    if check_precision(Precision::Bf16, &capable).is_err() {
        let answer = open(Path::new(STARTER), "image", "embedding", &options);
        let error = answer.err().unwrap().to_string();
        assert!(error.starts_with("the openvino backend is not available: this CPU"), "{error}");
        return;
    }
    let backend = starter(BackendKind::Openvino, 1, Some(Precision::Bf16));
    assert!(backend.describe().contains(", bf16"));
    // Asked for bf16, `auto` takes the backend that has it.
    if probe_one(BackendKind::Tensorrt).available.is_err() {
        assert_eq!(starter(BackendKind::Auto, 1, Some(Precision::Bf16)).name(), NAME);
    }
    let (shape, short) = run(backend.as_ref(), 192, 128);
    let (_, long) = run(starter(BackendKind::Openvino, 1, None).as_ref(), 192, 128);
    let cells = shape.height * shape.width;
    let cosine = |cell: usize| -> f32 {
        (0..shape.dim).map(|d| short[d * cells + cell] * long[d * cells + cell]).sum()
    };
    let least = (0..cells).map(cosine).fold(1.0, f32::min);
    println!("bf16: least cosine {least}");
    assert!(least > 0.99 && short != long, "{least}");
}

#[test]
fn a_precision_that_the_cpu_lacks_is_named_with_those_it_has() {
    assert_eq!(check_precision(Precision::Fp32, &[]), Ok(()));
    assert_eq!(check_precision(Precision::Bf16, &of("FP32 BF16 INT8")), Ok(()));
    assert_eq!(
        check_precision(Precision::Fp16, &of("FP32 BF16 INT8")).unwrap_err(),
        "this CPU does not compute in fp16 (OpenVINO lists FP32, BF16, INT8); leave the precision out"
    );
    let reason = check_precision(Precision::Int8, &of("INT8")).unwrap_err();
    assert!(reason.contains("conceptseg bundle quantize"), "{reason}");
}

#[test]
fn backends_that_follow_the_file_refuse_another_precision() {
    let options = BackendOptions {
        cpu_precision: Some(Precision::Bf16),
        ..BackendOptions::new(BackendKind::Rten, 1)
    };
    let error = open(Path::new(STARTER), "image", "embedding", &options).err().unwrap();
    assert!(
        error
            .to_string()
            .contains("the rten backend is not available: it computes as the network's file says"),
        "{error}"
    );
    let options = BackendOptions { cpu_precision: Some(Precision::Fp32), ..options };
    assert!(open(Path::new(STARTER), "image", "embedding", &options).is_ok());
}

#[test]
fn runs_at_once_share_the_cores() {
    let cores = |n| Ok(NonZero::new(n).unwrap());
    assert_eq!(streams(0, cores(8)), (1, 0));
    assert_eq!(streams(2, cores(8)), (4, 8));
    assert_eq!(streams(3, cores(8)), (2, 6));
    assert_eq!(streams(1, cores(64)), (MAX_STREAMS, MAX_STREAMS));
    assert_eq!(streams(16, cores(8)), (1, 16));
    assert_eq!(streams(2, Err(io::Error::other("unknown"))), (1, 2));
}

#[test]
fn without_the_library_the_reason_is_given() {
    if let Err(reason) = probe_one(BackendKind::Openvino).available {
        let options = BackendOptions::new(BackendKind::Openvino, 1);
        let error = open(Path::new(STARTER), "image", "embedding", &options).err().unwrap();
        assert_eq!(error.to_string(), format!("the openvino backend is not available: {reason}"));
    } else {
        println!("skipped: the library is here");
    }
}
