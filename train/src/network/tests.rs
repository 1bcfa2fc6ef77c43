//! What the networks compute, in small.

use std::collections::HashSet;

use tch::nn::VarStore;
use tch::{Device, Kind, Tensor, no_grad};

use super::pretrained::{PretrainedError, load_backbone};
use super::weights::WeightError;
use super::*;

mod pretrained;

const ALL: [Preset; 7] = [
    Preset::EdgeMobilenetV2,
    Preset::EdgeMobilenetV2Deep,
    Preset::EdgeMobilenetV2Torchvision,
    Preset::EdgeResnet18,
    Preset::EdgeResnet34,
    Preset::PaperResnet50,
    Preset::PaperResnet50Caffe,
];

fn network(preset: Preset) -> Network {
    with_stride(preset, OutputStride::Eight)
}

fn with_stride(preset: Preset, output_stride: OutputStride) -> Network {
    let vs = VarStore::new(Device::Cpu);
    let config = NetworkConfig { preset, output_stride, ..NetworkConfig::default() };
    Network::new(&vs, &config, 3).unwrap()
}

fn image(n: i64, h: i64, w: i64) -> Tensor {
    Tensor::randn([n, 3, h, w], (Kind::Float, Device::Cpu))
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

#[test]
fn every_preset_gives_one_embedding_per_8_by_8_pixels() {
    for preset in ALL {
        let network = network(preset);
        let out = no_grad(|| network.forward(&image(2, 48, 72), false));
        assert_eq!(out.size(), [2, 32, 6, 9], "{preset:?}");
        assert!(out.isfinite().all().int64_value(&[]) == 1, "{preset:?}");
    }
}

#[test]
fn every_preset_has_variants_with_half_and_with_twice_the_grid() {
    for preset in ALL {
        for (stride, pixels) in [(OutputStride::Sixteen, 16), (OutputStride::Four, 4)] {
            let network = with_stride(preset, stride);
            assert_eq!(network.stride(), pixels as usize);
            let out = no_grad(|| network.forward(&image(2, 48, 80), false));
            assert_eq!(out.size(), [2, 32, 48 / pixels, 80 / pixels], "{preset:?}");
            assert!(out.isfinite().all().int64_value(&[]) == 1, "{preset:?}");
        }
    }
}

#[test]
fn an_odd_number_of_cells_is_no_obstacle() {
    for preset in [Preset::EdgeMobilenetV2, Preset::EdgeMobilenetV2Deep, Preset::EdgeResnet18] {
        let out = no_grad(|| network(preset).forward(&image(1, 40, 56), false));
        assert_eq!(out.size(), [1, 32, 5, 7], "{preset:?}");
    }
}

#[test]
fn the_output_stride_is_a_number_in_the_recipe() {
    let read = |text: &str| toml::from_str::<NetworkConfig>(text);
    assert_eq!(read("output_stride = 16").unwrap().output_stride, OutputStride::Sixteen);
    assert_eq!(read("").unwrap().output_stride, OutputStride::Eight);
    let error = read("output_stride = 6").unwrap_err().to_string();
    assert!(error.contains("must be 4, 8 or 16"), "{error}");
    let text = toml::to_string(&NetworkConfig::default()).unwrap();
    assert!(text.contains("output_stride = 8"), "{text}");
}

#[test]
fn the_edge_heads_taps_have_unit_length() {
    for (preset, channels) in
        [(Preset::EdgeMobilenetV2, [32, 96]), (Preset::EdgeResnet18, [128, 256])]
    {
        let taps = no_grad(|| network(preset).head_input(&image(1, 32, 32)));
        assert_eq!(taps.size()[1], channels.iter().sum::<i64>());
        for tap in taps.split_with_sizes(channels, 1) {
            let length = tap.norm_scalaropt_dim(2, [1], false);
            assert!(difference(&length, &length.ones_like()) < 1e-5, "{preset:?}");
        }
    }
}

#[test]
fn an_edge_network_starts_as_its_linear_projection() {
    let network = network(Preset::EdgeMobilenetV2Deep);
    let x = image(1, 32, 48);
    let weight = Tensor::randn([32, 128], (Kind::Float, Device::Cpu));
    let bias = Tensor::randn([32], (Kind::Float, Device::Cpu));
    network.set_projection(&weight, &bias);
    no_grad(|| {
        let features = network.head_input(&x);
        let linear =
            features.conv2d(&weight.view([32, 128, 1, 1]), Some(&bias), [1, 1], [0, 0], [1, 1], 1);
        assert!(difference(&network.forward(&x, false), &linear) < 1e-5);
    });
}

#[test]
fn a_projection_with_fewer_rows_leaves_the_other_dimensions_at_zero() {
    let network = network(Preset::EdgeMobilenetV2);
    let options = (Kind::Float, Device::Cpu);
    network.set_projection(&Tensor::ones([4, 128], options), &Tensor::ones([4], options));
    let out = no_grad(|| network.forward(&image(1, 32, 32), false));
    assert!(out.narrow(1, 0, 4).abs().min().double_value(&[]) > 0.0);
    assert_eq!(out.narrow(1, 4, 28).abs().max().double_value(&[]), 0.0);
}

#[test]
fn every_trainable_variable_gets_a_gradient() {
    for preset in [Preset::EdgeMobilenetV2Deep, Preset::EdgeResnet18, Preset::PaperResnet50] {
        let network = network(preset);
        // The correction starts at zero, which cuts its branch off from the gradient.
        no_grad(|| {
            for p in network.parameters().iter().filter(|p| p.name == "head.correction.weight") {
                let _ = p.tensor.detach().fill_(0.1);
            }
        });
        network.forward(&image(2, 32, 32), true).square().sum(Kind::Float).backward();
        for p in network.parameters() {
            assert_eq!(p.trainable, p.tensor.requires_grad(), "{}", p.name);
            if p.trainable {
                assert!(p.tensor.grad().defined(), "{preset:?} {}", p.name);
                assert!(p.tensor.grad().isfinite().all().int64_value(&[]) == 1, "{}", p.name);
            }
        }
    }
}

#[test]
fn parameters_are_the_variables_of_the_store_by_the_same_names() {
    for preset in ALL {
        let vs = VarStore::new(Device::Cpu);
        let network =
            Network::new(&vs, &NetworkConfig { preset, ..NetworkConfig::default() }, 3).unwrap();
        let own: HashSet<String> = network.parameters().into_iter().map(|p| p.name).collect();
        let stored: HashSet<String> = vs.variables().into_keys().collect();
        assert_eq!(own, stored, "{preset:?}");
    }
}

#[test]
fn batch_statistics_are_recorded_in_training_only() {
    let network = network(Preset::PaperResnet50);
    let mean =
        |name: &str| network.variables.get(name).unwrap().tensor.abs().max().double_value(&[]);
    let _ = no_grad(|| network.forward(&image(2, 32, 32), false));
    assert_eq!((mean("bn1.running_mean"), mean("head.bn.running_mean")), (0.0, 0.0));
    let _ = no_grad(|| network.forward(&image(2, 32, 32), true));
    assert!(mean("bn1.running_mean") > 0.0 && mean("head.bn.running_mean") > 0.0);
}

/// The dilated network, at every fourth cell, is the original one with its stride.
#[test]
fn dilation_keeps_the_cells_of_the_strided_network() {
    for caffe in [false, true] {
        let mut g = Graph::default();
        let input = g.input();
        let deep = backbones::resnet50(&mut g, input, OutputStride::Eight, caffe, 0.1);
        // The same layers with the strides put back, dilation as in the original.
        let mut strided = g.clone();
        strided.for_each_conv(|conv| {
            let Some((layer, rest)) = conv.name.split_once('.') else { return };
            let carries = matches!(
                (rest, caffe),
                ("0.conv1", true) | ("0.conv2", false) | ("0.downsample.0", _)
            );
            let stride =
                if carries && ["layer3", "layer4"].contains(&layer) { 2 } else { conv.stride };
            *conv = conv.clone().dilation(1).stride(stride);
        });
        let vs = VarStore::new(Device::Cpu);
        let variables = Variables::new(&g, &vs, 3).unwrap();
        let x = image(1, 64, 96);
        no_grad(|| {
            let dilated = variables.run(&g, &x, deep, false);
            let original = variables.run(&strided, &x, deep, false);
            let picked = dilated.slice(2, 0, None, 4).slice(3, 0, None, 4);
            let scale = original.abs().max().double_value(&[]);
            assert!(difference(&picked, &original) / scale < 1e-5, "caffe {caffe}");
        });
    }
}

#[test]
fn strides_of_mobilenet_read_as_tensorflows_same_padding() {
    // A filter that copies its top left cell: output (i, j) must be input (2i, 2j).
    let conv = Conv::new("c", Part::Stem, 3, 1, 3).stride_2_same();
    let mut g = Graph::default();
    let input = g.input();
    let node = g.conv(input, conv);
    let vs = VarStore::new(Device::Cpu);
    let variables = Variables::new(&g, &vs, 3).unwrap();
    no_grad(|| {
        let mut weight = variables.tensor("c", "weight").detach();
        let _ = weight.zero_();
        let _ = weight.narrow(1, 0, 1).narrow(2, 0, 1).narrow(3, 0, 1).fill_(1.0);
        let x = image(1, 8, 12);
        let expected = x.narrow(1, 0, 1).slice(2, 0, None, 2).slice(3, 0, None, 2);
        assert_eq!(difference(&variables.run(&g, &x, node, false), &expected), 0.0);
    });
}

#[test]
fn settings_out_of_range_are_refused() {
    let vs = VarStore::new(Device::Cpu);
    for config in [
        NetworkConfig { dim: 0, ..NetworkConfig::default() },
        NetworkConfig { head_channels: 1 << 40, ..NetworkConfig::default() },
    ] {
        assert!(matches!(Network::new(&vs, &config, 0), Err(NetworkError::Setting { .. })));
    }
}

#[test]
fn presets_have_the_names_of_the_recipes() {
    let name = |preset: Preset| serde_json::to_string(&preset).unwrap();
    let names = ALL.map(name).map(|n| n.trim_matches('"').to_owned());
    assert_eq!(
        names,
        [
            "edge-mobilenet-v2",
            "edge-mobilenet-v2-deep",
            "edge-mobilenet-v2-torchvision",
            "edge-resnet18",
            "edge-resnet34",
            "paper-resnet50",
            "paper-resnet50-caffe"
        ]
    );
}

#[test]
fn the_given_backbones_fill_every_layer_that_they_have() {
    for (preset, file) in [
        (Preset::EdgeMobilenetV2, "mobilenet_v2_imagenet_dequantized"),
        (Preset::EdgeMobilenetV2Deep, "mobilenet_v2_imagenet_dequantized"),
        (Preset::EdgeResnet18, "resnet18_folded_conv1_to_layer3"),
        (Preset::PaperResnet50Caffe, "resnet50_caffe_conv1_to_layer3"),
    ] {
        let Some(path) = conceptseg::testdata::shared(&format!("data/backbone/{file}.safetensors"))
        else {
            println!("skipped: {file} is not there");
            return;
        };
        let network = network(preset);
        let report = load_backbone(&network, &path).unwrap();
        assert!(report.other_shape.is_empty(), "{report}");
        // The ResNet-50 file ends after the first convolution of layer4.
        assert!(report.missing.iter().all(|n| n.starts_with("layer4.")), "{report}");
        let later = |n: &String| n.starts_with("features.1") || n.starts_with("classifier");
        assert!(report.unused.iter().all(later), "{report}");
        let out = no_grad(|| network.head_input(&image(1, 32, 32)));
        assert!(out.isfinite().all().int64_value(&[]) == 1);
    }
}

#[test]
fn a_file_that_is_no_backbone_is_refused() {
    let network = network(Preset::EdgeMobilenetV2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let file_error = |path| match load_backbone(&network, path) {
        Err(PretrainedError::File(error)) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(file_error(&path), WeightError::Read { .. }));
    std::fs::write(&path, b"not a tensor file").unwrap();
    assert!(matches!(file_error(&path), WeightError::Format { .. }));
    Tensor::write_safetensors(&[("other", Tensor::zeros([2], (Kind::Float, Device::Cpu)))], &path)
        .unwrap();
    assert!(matches!(load_backbone(&network, &path), Err(PretrainedError::NothingFits { .. })));
}

/// Values of a graph that was written by hand with the `onnx` package from the file's own
/// description (the stride of `features.7` replaced by dilation after it) and run by ONNX
/// Runtime, on the image sin(0.37 (c + 1) y + 0.11 (c + 2) x).
#[test]
fn mobilenet_taps_agree_with_an_independent_graph() {
    let file = "data/backbone/mobilenet_v2_imagenet_dequantized.safetensors";
    let Some(path) = conceptseg::testdata::shared(file) else {
        println!("skipped: {file} is not there");
        return;
    };
    let network = network(Preset::EdgeMobilenetV2);
    load_backbone(&network, &path).unwrap();
    let (height, width) = (64, 96);
    let mut values = Vec::new();
    for (c, y, x) in
        (0..3 * height * width).map(|i| (i / (height * width), i / width % height, i % width))
    {
        let (c, y, x) = (f64::from(c), f64::from(y), f64::from(x));
        values.push((0.37 * (c + 1.0) * y + 0.11 * (c + 2.0) * x).sin() as f32);
    }
    let image = Tensor::from_slice(&values).view([1, 3, i64::from(height), i64::from(width)]);
    let taps = no_grad(|| network.head_input(&image));
    for (channel, row, column, expected) in [
        (0, 0, 0, 0.053_698_53),
        (5, 3, 7, 0.091_285_01),
        (31, 7, 11, -0.036_263_23),
        (32, 0, 0, 0.039_583_89),
        (60, 4, 5, 0.153_114_45),
        (127, 7, 11, -0.019_667_63),
    ] {
        let found = taps.double_value(&[0, channel, row, column]);
        assert!((found - expected).abs() < 1e-5, "{channel} {row} {column}: {found}");
    }
}
