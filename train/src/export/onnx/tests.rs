//! The exported file computes what the network computes.

use conceptseg::backend::{self, BackendKind, BackendOptions};
use tch::nn::VarStore;

use super::*;
use crate::network::{NetworkConfig, Preset};

fn network(preset: Preset) -> Network {
    tch::manual_seed(5);
    let vs = VarStore::new(Device::Cpu);
    let network = Network::new(&vs, &NetworkConfig { preset, ..NetworkConfig::default() }).unwrap();
    // Layers that start at zero or one would hide mistakes.
    no_grad(|| {
        for p in network.parameters() {
            let mut tensor = p.tensor.detach();
            if p.name.ends_with("running_var")
                || p.name.contains("bn") && p.name.ends_with(".weight")
            {
                let _ = tensor.uniform_(0.5, 1.0);
            } else if p.bias || p.name.ends_with("running_mean") {
                let _ = tensor.uniform_(-0.2, 0.2);
            } else if p.name == "head.correction.weight" {
                let _ = tensor.uniform_(-0.3, 0.3);
            }
        }
    });
    network
}

/// Largest difference between libtorch and the compiled-in backend on a random image.
fn difference(network: &Network, path: &Path, height: i64, width: i64) -> f64 {
    let images = Tensor::randn([1, 3, height, width], (Kind::Float, Device::Cpu));
    let expected = no_grad(|| {
        let out = network.forward(&images, false);
        &out / out.norm_scalaropt_dim(2, [1], true).clamp_min(NORM_EPSILON)
    });
    let options = BackendOptions { kind: BackendKind::Rten, threads: 1 };
    let backend = backend::open(path, INPUT, OUTPUT, &options).unwrap();
    let input = Vec::<f32>::try_from(images.view([-1])).unwrap();
    let mut out = Vec::new();
    let shape = backend.run(&input, width as usize, height as usize, &mut out).unwrap();
    let found = Tensor::from_slice(&out).view([
        1,
        shape.dim as i64,
        shape.height as i64,
        shape.width as i64,
    ]);
    assert_eq!(found.size(), expected.size());
    (found - expected).abs().max().double_value(&[])
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

#[test]
fn pooling_and_enlarging_matrices_are_those_of_libtorch() {
    let x = Tensor::randn([1, 2, 9, 13], (Kind::Double, Device::Cpu));
    let apply = |x: &Tensor, rows: &Matrix, columns: &Matrix| {
        let tensor = |m: &Matrix| {
            let values: Vec<f64> = m.values.iter().map(|&v| f64::from(v)).collect();
            Tensor::from_slice(&values).view([m.outputs as i64, m.inputs as i64])
        };
        tensor(rows).matmul(x).matmul(&tensor(columns).transpose(0, 1))
    };
    for bins in [1, 2, 3, 6] {
        let pooled = apply(&x, &pool_matrix(bins, 9), &pool_matrix(bins, 13));
        let expected = x.adaptive_avg_pool2d([bins, bins]);
        assert!((&pooled - &expected).abs().max().double_value(&[]) < 1e-6, "{bins}");
        let large = apply(&expected, &resize_matrix(9, bins), &resize_matrix(13, bins));
        let expected = expected.upsample_bilinear2d([9, 13], false, None, None);
        assert!((large - expected).abs().max().double_value(&[]) < 1e-6, "{bins}");
    }
}
