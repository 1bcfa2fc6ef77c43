//! The exported file computes what the network computes.

use std::ops::Range;

use conceptseg::backend::{self, BackendError, BackendKind, BackendOptions, Images};
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;
use tch::nn::VarStore;

use super::*;
use crate::export::quantize::Calibrator;
use crate::network::{NetworkConfig, OutputStride, Preset};

fn network(preset: Preset) -> Network {
    with_stride(preset, OutputStride::Eight)
}

/// Random weights, the same in every run: libtorch's own generator is shared by all tests.
fn with_stride(preset: Preset, output_stride: OutputStride) -> Network {
    let vs = VarStore::new(Device::Cpu);
    let config = NetworkConfig { preset, output_stride, ..NetworkConfig::default() };
    let network = Network::new(&vs, &config, 5).unwrap();
    let mut rng = Pcg64::seed_from_u64(5);
    for p in network.parameters() {
        let shape = p.tensor.size();
        // Layers that start at zero or one would hide mistakes.
        let range = match shape.as_slice() {
            &[_, inputs, rows, columns] => {
                let bound = (6.0 / (inputs * rows * columns) as f32).sqrt();
                -bound..bound
            }
            _ if p.bias || p.name.ends_with("running_mean") => -0.2..0.2,
            _ => 0.5..1.0,
        };
        no_grad(|| p.tensor.detach().copy_(&random(&mut rng, &shape, range)));
    }
    network
}

fn random(rng: &mut Pcg64, shape: &[i64], range: Range<f32>) -> Tensor {
    let count = shape.iter().product::<i64>();
    let values: Vec<f32> = (0..count).map(|_| rng.random_range(range.clone())).collect();
    Tensor::from_slice(&values).view(shape)
}

/// Embeddings of images by libtorch and by the runtime, `[N, dim, H / stride, W / stride]`,
/// unit length over `dim`; `None` where the backend is not there.
fn both(
    network: &Network,
    path: &Path,
    images: &Tensor,
    kind: BackendKind,
) -> Option<(Tensor, Tensor)> {
    let (count, _, height, width) = images.size4().unwrap();
    let expected = no_grad(|| {
        let out = network.forward(images, false);
        &out / out.norm_scalaropt_dim(2, [1], true).clamp_min(NORM_EPSILON)
    });
    let backend = match backend::open(path, INPUT, OUTPUT, &BackendOptions::new(kind, 1)) {
        Ok(backend) => backend,
        Err(BackendError::Unavailable { reason, .. }) => {
            println!("skipped: {reason}");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    let input = Vec::<f32>::try_from(images.view([-1])).unwrap();
    let [n, width, height] = [count, width, height].map(|side| side as usize);
    let images = Images { data: &input, count: n, most: n, width, height };
    let mut out = Vec::new();
    let shape = backend.run(images, &mut out).unwrap();
    let found = Tensor::from_slice(&out).view([
        count,
        shape.dim as i64,
        shape.height as i64,
        shape.width as i64,
    ]);
    assert_eq!(found.size(), expected.size());
    Some((found, expected))
}

fn image(height: i64, width: i64) -> Tensor {
    random(&mut Pcg64::seed_from_u64(6), &[1, 3, height, width], -2.0..2.0)
}

/// Largest difference between libtorch and the compiled-in backend on a random image.
fn difference(network: &Network, path: &Path, height: i64, width: i64) -> f64 {
    let (found, expected) = both(network, path, &image(height, width), BackendKind::Rten).unwrap();
    (found - expected).abs().max().double_value(&[])
}

/// Mean and smallest cosine between libtorch's embedding of a cell and the runtime's.
fn cosine(
    network: &Network,
    path: &Path,
    images: &Tensor,
    kind: BackendKind,
) -> Option<(f64, f64)> {
    let (found, expected) = both(network, path, images, kind)?;
    let cosine = (found * expected).sum_dim_intlist(1, false, None);
    Some((cosine.mean(None).double_value(&[]), cosine.min().double_value(&[])))
}

#[test]
fn edge_networks_run_alike_at_every_size() {
    for preset in [Preset::EdgeMobilenetV2, Preset::EdgeMobilenetV2Deep, Preset::EdgeResnet18] {
        let network = network(preset);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("embedder.onnx");
        export_onnx(&network, &path, ExportSize::Dynamic).unwrap();
        for (height, width) in [(64, 96), (40, 56)] {
            let worst = difference(&network, &path, height, width);
            assert!(worst < 1e-4, "{preset:?} {height}x{width}: {worst:e}");
        }
    }
}

#[test]
fn several_images_run_at_once() {
    let fixed = ExportSize::Fixed { height: 64, width: 96 };
    for (preset, size) in
        [(Preset::EdgeMobilenetV2, ExportSize::Dynamic), (Preset::PaperResnet50, fixed)]
    {
        let network = network(preset);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("embedder.onnx");
        export_onnx(&network, &path, size).unwrap();
        let images = random(&mut Pcg64::seed_from_u64(8), &[3, 3, 64, 96], -2.0..2.0);
        for kind in [BackendKind::Rten, BackendKind::Onnxruntime] {
            let Some((found, expected)) = both(&network, &path, &images, kind) else { continue };
            let worst = (found - expected).abs().max().double_value(&[]);
            assert!(worst < 1e-4, "{preset:?} {kind}: {worst:e}");
        }
    }
}

#[test]
fn half_and_twice_the_grid_run_alike_too() {
    for preset in [Preset::EdgeMobilenetV2, Preset::EdgeResnet34] {
        for stride in [OutputStride::Sixteen, OutputStride::Four] {
            let network = with_stride(preset, stride);
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("embedder.onnx");
            export_onnx(&network, &path, ExportSize::Dynamic).unwrap();
            let worst = difference(&network, &path, 64, 80);
            assert!(worst < 1e-4, "{preset:?} {stride:?}: {worst:e}");
        }
    }
}

#[test]
fn half_precision_is_half_as_large_and_nearly_alike() {
    let size = ExportSize::Fixed { height: 64, width: 96 };
    for preset in [Preset::EdgeMobilenetV2, Preset::EdgeResnet18, Preset::PaperResnet50] {
        let network = network(preset);
        let folder = tempfile::tempdir().unwrap();
        let (single, half) = (folder.path().join("single"), folder.path().join("half"));
        export_onnx(&network, &single, size).unwrap();
        export_as(&network, &half, size, Numbers::Fp16).unwrap();
        let bytes = |path: &Path| std::fs::metadata(path).unwrap().len() as f64;
        assert!((bytes(&half) / bytes(&single) - 0.5).abs() < 0.02, "{preset:?}");
        let found = cosine(&network, &half, &image(64, 96), BackendKind::Onnxruntime);
        let Some((_, worst)) = found else { return };
        assert!(worst > 0.999, "{preset:?}: {worst}");
    }
}

#[test]
fn eight_bits_are_a_quarter_as_large_and_close() {
    let size = ExportSize::Fixed { height: 64, width: 96 };
    // The narrow linear layers of MobileNetV2, here with random weights, bear rounding worst.
    for (preset, least_mean, least) in [
        (Preset::EdgeMobilenetV2, 0.9, 0.7),
        (Preset::EdgeResnet18, 0.999, 0.99),
        (Preset::PaperResnet50, 0.999, 0.99),
    ] {
        let network = network(preset);
        let images = image(64, 96);
        let mut calibrator = Calibrator::new(&network);
        calibrator.add_range(&images);
        calibrator.add_counts(&images).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (single, int8) = (folder.path().join("single"), folder.path().join("int8"));
        export_onnx(&network, &single, size).unwrap();
        export_as(&network, &int8, size, Numbers::Int8(&calibrator.finish())).unwrap();
        let bytes = |path: &Path| std::fs::metadata(path).unwrap().len() as f64;
        assert!(bytes(&int8) / bytes(&single) < 0.35, "{preset:?}");
        for kind in [BackendKind::Rten, BackendKind::Onnxruntime] {
            let Some((mean, worst)) = cosine(&network, &int8, &images, kind) else { continue };
            println!("{preset:?} {kind}: {mean} {worst}");
            assert!(mean > least_mean && worst > least, "{preset:?} {kind}: {mean} {worst}");
        }
    }
}

#[test]
fn the_pyramid_network_runs_alike_at_its_size() {
    for preset in [Preset::PaperResnet50, Preset::PaperResnet50Caffe] {
        let network = network(preset);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("embedder.onnx");
        // 8 and 10 cells: windows of 3 and 6 bins overlap.
        export_onnx(&network, &path, ExportSize::Fixed { height: 64, width: 80 }).unwrap();
        let worst = difference(&network, &path, 64, 80);
        assert!(worst < 1e-4, "{preset:?}: {worst:e}");
    }
}

#[test]
fn sizes_that_cannot_be_exported_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("embedder.onnx");
    let paper = network(Preset::PaperResnet50);
    let result = export_onnx(&paper, &path, ExportSize::Dynamic);
    assert!(matches!(result, Err(ExportError::NeedsFixedSize)));
    let edge = network(Preset::EdgeMobilenetV2);
    for (height, width) in [(0, 64), (64, 60)] {
        let result = export_onnx(&edge, &path, ExportSize::Fixed { height, width });
        assert!(matches!(result, Err(ExportError::Size { .. })));
    }
    assert!(!path.exists());
}
