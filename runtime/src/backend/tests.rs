use std::fs;

use super::*;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/tiny.onnx");

const STARTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/starter/embedder.onnx");

fn options(kind: BackendKind) -> BackendOptions {
    BackendOptions::new(kind, 1)
}

fn tiny(kind: BackendKind) -> Box<dyn Backend> {
    open(Path::new(TINY), "image", "embedding", &options(kind)).unwrap()
}

fn onnxruntime_is_here() -> bool {
    match &probe_one(BackendKind::Onnxruntime).available {
        Ok(_) => true,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            false
        }
    }
}

fn kinds() -> Vec<BackendKind> {
    // A GPU needs minutes for the plan of each size, and has tests of its own.
    let usable = |p: &Probe| p.available.is_ok() && p.kind != BackendKind::Tensorrt;
    probe().into_iter().filter(usable).map(|p| p.kind).collect()
}

fn noise(width: usize, height: usize) -> Vec<f32> {
    (0..3 * width * height).map(|i| ((i * 7919 % 1021) as f32 / 510.5 - 1.0) * 2.0).collect()
}

/// `open(..)` gives a trait object without `Debug`.
fn error_of(result: Result<Box<dyn Backend>, BackendError>) -> BackendError {
    result.err().expect("the network must be refused")
}

#[test]
fn any_size_runs_and_embeddings_have_unit_length() {
    for kind in kinds() {
        let backend = tiny(kind);
        let mut out = Vec::new();
        for (width, height) in [(64, 40), (8, 8), (104, 64)] {
            let shape =
                backend.run(Images::one(&noise(width, height), width, height), &mut out).unwrap();
            assert_eq!(shape, OutputShape { dim: 32, height: height / 8, width: width / 8 });
            let cells = shape.height * shape.width;
            assert_eq!(out.len(), 32 * cells);
            for cell in 0..cells {
                let norm: f32 = (0..32).map(|d| out[d * cells + cell].powi(2)).sum();
                assert!((norm - 1.0).abs() < 1e-5, "{kind}: {norm}");
            }
        }
    }
}

#[test]
fn images_at_once_give_what_they_give_one_by_one() {
    for network in [TINY, STARTER] {
        for kind in kinds() {
            let backend = open(Path::new(network), "image", "embedding", &options(kind)).unwrap();
            for (count, width, height) in [(1, 64, 64), (3, 64, 96), (8, 104, 64), (2, 64, 64)] {
                let data = noise(width, height * count);
                let images = Images { data: &data, count, most: 8, width, height };
                let mut all = vec![7.0; 3];
                let shape = backend.run(images, &mut all).unwrap();
                assert_eq!(all.len(), count * shape.len());
                for (image, found) in data.chunks(3 * width * height).zip(all.chunks(shape.len())) {
                    let mut one = Vec::new();
                    backend.run(Images::one(image, width, height), &mut one).unwrap();
                    let apart =
                        one.iter().zip(found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(apart < 1e-5, "{network} {kind} {count}: {apart:e}");
                }
            }
        }
    }
}

#[test]
fn a_network_that_mixes_images_runs_them_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("reshaped.onnx");
    let model = crate::onnx::testing::for_one_image();
    fs::write(&path, model.to_bytes()).unwrap();
    for kind in kinds() {
        let backend = open(&path, model.input(), model.output(), &options(kind)).unwrap();
        let data = noise(64, 64 * 3);
        let images = Images { data: &data, count: 3, most: 3, width: 64, height: 64 };
        let (mut all, mut one) = (Vec::new(), Vec::new());
        let shape = backend.run(images, &mut all).unwrap();
        assert_eq!(all.len(), 3 * shape.len());
        for (image, found) in data.chunks(3 * 64 * 64).zip(all.chunks(shape.len())) {
            backend.run(Images::one(image, 64, 64), &mut one).unwrap();
            assert_eq!(one, found);
        }
    }
}

#[test]
fn both_backends_agree() {
    if !onnxruntime_is_here() {
        return;
    }
    let (width, height) = (320, 184);
    let input = noise(width, height);
    let (mut one, mut other) = (Vec::new(), Vec::new());
    let shape = tiny(BackendKind::Rten).run(Images::one(&input, width, height), &mut one).unwrap();
    assert_eq!(
        shape,
        tiny(BackendKind::Onnxruntime).run(Images::one(&input, width, height), &mut other).unwrap()
    );
    let apart = one.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("rten and onnxruntime differ by {apart:e} at most");
    assert!(apart < 1e-5, "{apart:e}");
}

#[test]
fn output_memory_is_reused() {
    for kind in kinds() {
        let backend = tiny(kind);
        let input = noise(64, 64);
        let mut out = Vec::new();
        backend.run(Images::one(&input, 64, 64), &mut out).unwrap();
        let before = out.as_ptr();
        backend.run(Images::one(&input, 64, 64), &mut out).unwrap();
        assert_eq!(before, out.as_ptr());
    }
}

#[test]
fn a_wrong_input_is_an_error() {
    for kind in kinds() {
        let backend = tiny(kind);
        for (length, width, height) in [(3 * 64 - 1, 8, 8), (0, 0, 0), (3, usize::MAX, usize::MAX)]
        {
            let error = backend
                .run(Images::one(&vec![0.0; length], width, height), &mut Vec::new())
                .unwrap_err();
            assert!(matches!(error, BackendError::Input { .. }), "{error}");
        }
        let two = Images { count: 2, ..Images::one(&[0.0; 3 * 64], 8, 8) };
        let error = backend.run(two, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("2 image(s) of 8x8 pixels needs 384"), "{error}");
        // Smaller than the kernel of the convolution.
        let small = backend.run(Images::one(&noise(4, 4), 4, 4), &mut Vec::new());
        assert!(!matches!(small, Ok(shape) if shape.height > 0 && shape.width > 0));
    }
}

#[test]
fn a_truncated_network_is_an_error_that_names_the_file() {
    let bytes = fs::read(TINY).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.onnx");
    for kind in kinds() {
        for length in
            (0..bytes.len()).step_by(1531).chain([1, 2, bytes.len() - 1, bytes.len() - 40])
        {
            fs::write(&path, &bytes[..length]).unwrap();
            let message = error_of(open(&path, "image", "embedding", &options(kind))).to_string();
            assert!(message.contains("cut.onnx") && !message.contains('\n'), "{message}");
        }
    }
}

#[test]
fn a_damaged_network_never_panics() {
    let bytes = fs::read(TINY).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.onnx");
    for seed in 0..300_usize {
        let mut damaged = bytes.clone();
        // Half of the flips go to the ends, where the graph's structure is stored.
        for i in 0..4_usize {
            let place = seed.wrapping_mul(2_654_435_761).wrapping_add(i * 40_503);
            let at = match place % 4 {
                0 => place / 4 % 400,
                1 => bytes.len() - 1 - place / 4 % 400,
                _ => place / 4 % bytes.len(),
            };
            damaged[at] ^= 1 << (place / 7 % 8);
        }
        fs::write(&path, &damaged).unwrap();
        if let Ok(backend) = open(&path, "image", "embedding", &options(BackendKind::Rten)) {
            let _ = backend.run(Images::one(&noise(16, 16), 16, 16), &mut Vec::new());
        }
    }
}

#[test]
fn a_missing_file_is_named() {
    for kind in [BackendKind::Auto, BackendKind::Rten] {
        let error =
            error_of(open(Path::new("/nonexistent/e.onnx"), "image", "embedding", &options(kind)));
        assert!(error.to_string().contains("/nonexistent/e.onnx"), "{error}");
    }
}

#[test]
fn a_wrong_tensor_name_lists_the_right_ones() {
    for kind in kinds() {
        let error = error_of(open(Path::new(TINY), "picture", "embedding", &options(kind)));
        assert!(
            error.to_string().contains("no input called \"picture\" (it has image)"),
            "{error}"
        );
        let error = error_of(open(Path::new(TINY), "image", "norm", &options(kind)));
        assert!(
            error.to_string().contains("no output called \"norm\" (it has embedding)"),
            "{error}"
        );
    }
}

#[test]
fn auto_takes_what_is_there() {
    if probe_one(BackendKind::Tensorrt).available.is_ok() {
        eprintln!("skipped: the GPU would build a plan");
        return;
    }
    let backend = tiny(BackendKind::Auto);
    let expected = if kinds().contains(&BackendKind::Onnxruntime) { "onnxruntime" } else { "rten" };
    assert_eq!(backend.name(), expected);
    assert!(backend.describe().contains(expected));
}

#[test]
fn kinds_have_names() {
    for kind in
        [BackendKind::Auto, BackendKind::Tensorrt, BackendKind::Rten, BackendKind::Onnxruntime]
    {
        assert_eq!(kind.to_string().parse(), Ok(kind));
    }
    assert!("gpu".parse::<BackendKind>().unwrap_err().to_string().contains("rten"));
}

#[test]
fn runs_from_several_threads_give_the_same() {
    for kind in kinds() {
        let backend = tiny(kind);
        let input = noise(64, 64);
        let run = || {
            let mut out = Vec::new();
            backend.run(Images::one(&input, 64, 64), &mut out).unwrap();
            out
        };
        let first = run();
        std::thread::scope(|scope| {
            let others = [scope.spawn(run), scope.spawn(run)];
            assert!(others.into_iter().all(|other| other.join().unwrap() == first));
        });
    }
}

#[test]
fn without_a_gpu_tensorrt_says_what_is_missing() {
    if let Err(reason) = probe_one(BackendKind::Tensorrt).available {
        let error =
            error_of(open(Path::new(TINY), "image", "embedding", &options(BackendKind::Tensorrt)));
        assert_eq!(error.to_string(), format!("the tensorrt backend is not available: {reason}"));
    }
}
