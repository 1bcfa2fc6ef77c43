//! torchvision's networks: their weights fill ours, and both compute the same features.
//!
//! The weights follow from their names by the formula of `golden/pretrained/pretrained.py`,
//! which wrote the expected features with `PyTorch` and torchvision.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor, no_grad};

use super::super::graph::{NodeId, Op};
use super::super::pretrained::{Folded, PretrainedError, load_backbone, load_network};
use super::super::{Network, NetworkConfig, OutputStride, Part, Preset};
use super::{difference, image, network, with_stride};

/// Numbers in [0, 1): splitmix64 of the name's FNV-1a hash and the place.
fn fill(name: &str, count: usize) -> Vec<f32> {
    let seed = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    });
    let number = |i: u64| {
        let z = i.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(seed);
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / 16_777_216.0
    };
    (1..=count as u64).map(number).collect()
}

fn weight(name: &str, shape: &[i64]) -> Tensor {
    let u = fill(name, shape.iter().product::<i64>() as usize);
    let values: Vec<f32> = if name.ends_with("running_var") {
        u.iter().map(|u| u + 0.5).collect()
    } else if let &[_, inputs, rows, columns] = shape {
        let scale = (6.0 / (inputs * rows * columns) as f64).sqrt() as f32;
        u.iter().map(|u| (2.0 * u - 1.0) * scale).collect()
    } else if name.ends_with(".weight") {
        u.iter().map(|u| u * 0.5 + 0.5).collect()
    } else {
        u.iter().map(|u| (2.0 * u - 1.0) * 0.2).collect()
    };
    Tensor::from_slice(&values).view(shape)
}

/// torchvision's variables for the backbone of `network`: its own, with a batch normalisation
/// (named as `after` says) in place of every bias of a convolution.
fn torchvision(network: &Network, after: impl Fn(&str) -> String) -> Vec<(String, Tensor)> {
    let mut variables = Vec::new();
    for p in network.parameters().into_iter().filter(|p| p.part != Part::Head) {
        let shape = p.tensor.size();
        let conv = p.name.strip_suffix(".bias").filter(|conv| {
            network.variables.get(&format!("{conv}.weight")).is_some_and(|w| w.tensor.dim() == 4)
        });
        let Some(conv) = conv else {
            variables.push((p.name.clone(), weight(&p.name, &shape)));
            continue;
        };
        let norm = after(conv);
        for suffix in ["weight", "bias", "running_mean", "running_var"] {
            let name = format!("{norm}.{suffix}");
            let value = weight(&name, &shape);
            variables.push((name, value));
        }
        let counter = Tensor::from(7_i64);
        variables.push((format!("{norm}.num_batches_tracked"), counter));
    }
    variables
}

fn resnet_norm(conv: &str) -> String {
    match conv.strip_suffix("downsample.0") {
        Some(block) => format!("{block}downsample.1"),
        None => conv.replace("conv", "bn"),
    }
}

fn mobilenet_norm(conv: &str) -> String {
    let (path, number) = conv.rsplit_once('.').unwrap();
    format!("{path}.{}", number.parse::<u32>().unwrap() + 1)
}

fn write(variables: &[(String, Tensor)]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    Tensor::write_safetensors(variables, &path).unwrap();
    (folder, path)
}

/// The features that `PyTorch` computed.
fn features() -> BTreeMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/pretrained/features.safetensors");
    let data = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&data).unwrap();
    let read = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        let (chunks, _) = view.data().as_chunks();
        let values: Vec<f32> = chunks.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        (name.to_owned(), Tensor::from_slice(&values).view(shape.as_slice()))
    };
    file.iter().map(read).collect()
}

fn fixed_image() -> Tensor {
    let values: Vec<f32> = fill("image", 3 * 32 * 64).iter().map(|u| 4.0 * u - 2.0).collect();
    Tensor::from_slice(&values).view([1, 3, 32, 64])
}

/// The backbone's maps that the head reads: before scaling to unit length and averaging.
fn taps(network: &Network) -> Vec<NodeId> {
    let nodes = network.graph.nodes();
    let Op::Concat = nodes[network.features].op else { panic!("no edge head") };
    let source = |&scaled: &NodeId| match nodes[nodes[scaled].inputs[0]].op {
        Op::HalvingAveragePool => nodes[nodes[scaled].inputs[0]].inputs[0],
        _ => nodes[scaled].inputs[0],
    };
    nodes[network.features].inputs.iter().map(source).collect()
}

/// Largest difference, by the largest value.
fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    difference(found, expected) / expected.abs().max().double_value(&[])
}

#[test]
fn folded_networks_compute_torchvisions_features() {
    let expected = features();
    for (preset, names, convolutions) in [
        (Preset::EdgeResnet18, ["resnet18.layer2", "resnet18.layer3"], 15),
        (Preset::EdgeResnet34, ["resnet34.layer2", "resnet34.layer3"], 29),
        (
            Preset::EdgeMobilenetV2Torchvision,
            ["mobilenet_v2.features.6", "mobilenet_v2.features.13"],
            39,
        ),
    ] {
        let norm = |conv: &str| match preset {
            Preset::EdgeMobilenetV2Torchvision => mobilenet_norm(conv),
            _ => resnet_norm(conv),
        };
        let (_folder, path) = write(&torchvision(&network(preset), norm));
        for stride in [OutputStride::Four, OutputStride::Eight, OutputStride::Sixteen] {
            let network = with_stride(preset, stride);
            let report = load_backbone(&network, &path).unwrap();
            assert_eq!(report.folded.len(), convolutions, "{preset:?}: {report}");
            assert_eq!(report.loaded.len(), 2 * convolutions, "{report}");
            assert!(report.missing.is_empty() && report.unused.is_empty(), "{report}");
            for (name, tap) in names.into_iter().zip(taps(&network)) {
                let mut found = no_grad(|| network.run(&fixed_image(), tap, false));
                // The original has stride 8 and 16 there: every second (fourth) cell of the
                // dilated network.
                let original = if name == names[1] { 16 } else { 8 };
                let step = (original / network.stride() as i64).max(1);
                found = found.slice(2, 0, None, step).slice(3, 0, None, step);
                let worst = relative(&found, &expected[name]);
                assert!(worst < 1e-5, "{preset:?} {stride:?} {name}: {worst:e}");
            }
        }
    }
}

#[test]
fn the_papers_backbone_computes_torchvisions_features() {
    let expected = features();
    let variables = torchvision(&network(Preset::PaperResnet50), resnet_norm);
    let (_folder, path) = write(&variables);
    for (stride, name) in [
        (OutputStride::Four, "resnet50.layer4.stride8"),
        (OutputStride::Eight, "resnet50.layer4.stride8"),
        (OutputStride::Sixteen, "resnet50.layer4.stride16"),
    ] {
        let network = with_stride(Preset::PaperResnet50, stride);
        let report = load_backbone(&network, &path).unwrap();
        assert_eq!(report.loaded.len(), variables.len(), "{report}");
        assert!(report.folded.is_empty() && report.missing.is_empty(), "{report}");
        // The first pooling reads the backbone's output.
        let nodes = network.graph.nodes();
        let pool = nodes.iter().find(|n| matches!(n.op, Op::AdaptiveAveragePool { .. })).unwrap();
        let found = no_grad(|| network.run(&fixed_image(), pool.inputs[0], false));
        let step = if stride == OutputStride::Four { 2 } else { 1 };
        let found = found.narrow(1, 0, 64).slice(2, 0, None, step).slice(3, 0, None, step);
        let worst = relative(&found, &expected[name]);
        assert!(worst < 1e-5, "{stride:?}: {worst:e}");
    }
}

#[test]
fn the_report_accounts_for_every_variable_and_tensor() {
    let network = network(Preset::EdgeResnet18);
    let mut variables = torchvision(&network, resnet_norm);
    let float = (Kind::Float, Device::Cpu);
    variables.retain(|(name, _)| name != "layer1.0.bn1.running_var");
    variables.retain(|(name, _)| !name.starts_with("layer2.0.conv1."));
    for (name, tensor) in &mut variables {
        if name == "layer3.0.conv1.weight" {
            *tensor = Tensor::zeros([256, 128, 1, 1], float);
        }
    }
    variables.push(("fc.weight".to_owned(), Tensor::zeros([2, 512], float)));
    let (_folder, path) = write(&variables);
    let report = load_backbone(&network, &path).unwrap();
    // A normalisation that is not whole is not folded; the convolution keeps its own bias.
    assert_eq!(
        report.missing,
        [
            "layer1.0.conv1.bias",
            "layer2.0.conv1.weight",
            "layer2.0.conv1.bias",
            "layer3.0.conv1.bias"
        ]
    );
    assert_eq!(report.other_shape.len(), 1);
    assert_eq!(report.other_shape[0].found, [256, 128, 1, 1]);
    let unused = |name: &str| report.unused.iter().any(|n| n == name);
    assert!(unused("fc.weight") && unused("layer1.0.bn1.weight") && unused("layer2.0.bn1.bias"));
    assert!(!report.unused.iter().any(|n| n.ends_with("num_batches_tracked")));
    let first = Folded { batch_norm: "bn1".to_owned(), into: "conv1".to_owned() };
    assert_eq!(report.folded[0], first);
    let text = report.to_string();
    assert!(text.contains("12 batch normalisations folded in (bn1, "), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["folded"][0]["into"], "conv1");
    assert_eq!(json["missing"].as_array().map(Vec::len), Some(4));
}

#[test]
fn a_saved_network_is_loaded_whole_or_not_at_all() {
    let saved = network(Preset::EdgeMobilenetV2);
    let x = image(1, 32, 32);
    let expected = no_grad(|| saved.forward(&x, false));
    for prefix in ["", "network."] {
        let name = |p: &super::super::Parameter| format!("{prefix}{}", p.name);
        let mut variables: Vec<(String, Tensor)> =
            saved.parameters().into_iter().map(|p| (name(&p), p.tensor)).collect();
        variables.push(("momentum.head.local.bias".to_owned(), Tensor::zeros_like(&expected)));
        let (_folder, path) = write(&variables);
        let vs = VarStore::new(Device::Cpu);
        let other = Network::new(&vs, &NetworkConfig::default(), 0).unwrap();
        load_network(&other, &path).unwrap();
        assert_eq!(no_grad(|| difference(&other.forward(&x, false), &expected)), 0.0);

        let _ = variables.remove(3);
        let (_folder, path) = write(&variables);
        let error = load_network(&other, &path).unwrap_err();
        let PretrainedError::Incomplete { report, .. } = &error else { panic!("{error}") };
        assert_eq!(report.missing.len(), 1);
        assert!(error.to_string().contains(&report.missing[0]), "{error}");
    }
}
