use std::collections::HashSet;

use super::*;
use crate::backend::{BackendKind, BackendOptions};
use crate::onnx::calibrate::{Calibrator, Method};
use crate::onnx::graph::{Index, data_type, ints_of};
use crate::onnx::half::{Half, to_half};
use crate::onnx::proto::NodeProto;
use crate::onnx::shape::fix_input_shape;
use crate::onnx::testing::{
    Builder, PYRAMID, cosine, count, emulated, ints, picture, pyramid, run, starter,
};

const SIZE: (usize, usize) = (192, 128);

fn calibrator(model: &Model, (width, height): (usize, usize), kind: BackendKind) -> Calibrator {
    let options = BackendOptions::new(kind, 1);
    let mut calibrator = Calibrator::new(model, &options).unwrap();
    for seed in 10..14 {
        calibrator.observe(&picture(width, height, seed), width, height).unwrap();
    }
    calibrator
}

fn quantized(model: &Model, size: (usize, usize)) -> Model {
    quantize(model, &calibrator(model, size, BackendKind::Rten).finish()).unwrap()
}

/// The node that gives a value.
fn maker<'a>(model: &'a Model, value: &str) -> Option<&'a NodeProto> {
    model.graph.node.iter().find(|n| n.output.iter().any(|o| o == value))
}

fn is_dequantized(model: &Model, value: &str) -> bool {
    maker(model, value).is_some_and(|n| n.op_type() == "DequantizeLinear")
}

fn scale_of(model: &Model, value: &str) -> Vec<f32> {
    let name = &maker(model, value).unwrap().input[1];
    let tensor = model.graph.initializer.iter().find(|t| t.name() == name.as_str());
    floats(tensor.unwrap()).unwrap()
}

fn convolutions(model: &Model) -> impl Iterator<Item = &NodeProto> {
    model.graph.node.iter().filter(|n| n.op_type() == "Conv")
}

#[test]
fn convolutions_read_integers_except_the_last_and_the_pooled() {
    let model = starter();
    let int8 = quantized(&model, SIZE);
    let mut float: Vec<&str> = Vec::new();
    for (conv, original) in convolutions(&int8).zip(convolutions(&model)) {
        let [map, weight] = [0, 1].map(|place| is_dequantized(&int8, &conv.input[place]));
        assert_eq!(map, weight, "{}", label_of(conv));
        if !map {
            float.push(&original.input[1]);
        }
        // The bias is added in float.
        assert_eq!(conv.input.get(2), original.input.get(2));
    }
    let expected = ["head.projection.weight", "head.context.weight", "head.correction.weight"];
    assert_eq!(HashSet::from_iter(float), HashSet::from(expected));
    assert_eq!((int8.graph.input.len(), &int8.graph.output), (1, &model.graph.output));
    let ratio = int8.to_bytes().len() as f64 / model.to_bytes().len() as f64;
    assert!(ratio < 0.45, "{ratio}");
}

fn label_of(node: &NodeProto) -> &str {
    crate::onnx::graph::label(node)
}

#[test]
fn integers_are_symmetric_and_have_the_types_that_tensorrt_takes() {
    let int8 = quantized(&starter(), SIZE);
    let index = Index::new(&int8.graph);
    for node in int8.graph.node.iter().filter(|n| n.op_type().ends_with("quantizeLinear")) {
        let zero = index.constant(&node.input[2]).unwrap();
        assert_eq!(data_type(zero), DataType::Int8);
        assert!(zero.raw_data.as_ref().unwrap().iter().all(|&b| b == 0));
        let scales = floats(index.constant(&node.input[1]).unwrap()).unwrap();
        assert!(scales.iter().all(|s| s.is_normal() && *s > 0.0));
    }
    for conv in convolutions(&int8) {
        let Some(dequantize) = maker(&int8, &conv.input[1]) else { continue };
        let weights = index.constant(&dequantize.input[0]).unwrap();
        assert_eq!((data_type(weights), ints_of(conv, "kernel_shape").len()), (DataType::Int8, 2));
        assert!(weights.raw_data.as_ref().unwrap().iter().all(|&b| b != 0x80), "-128 is no step");
        assert_eq!(scale_of(&int8, &conv.input[1]).len() as i64, weights.dims[0]);
    }
}

#[test]
fn sums_read_integers_from_the_branch_that_is_not_fused() {
    let int8 = quantized(&starter(), SIZE);
    let mut residual = 0;
    for add in int8.graph.node.iter().filter(|n| n.op_type() == "Add") {
        let read = [0, 1].map(|place| is_dequantized(&int8, &add.input[place]));
        assert_ne!(read, [true, true]);
        if read != [false, false] {
            residual += 1;
            let fused = usize::from(read[0]);
            assert_eq!(maker(&int8, &add.input[fused]).unwrap().op_type(), "Conv");
        }
    }
    // All of MobileNetV2 up to its block 13; the head adds context and correction in float.
    assert_eq!(residual, 8);

    // With a convolution on either branch, the later one takes the sum.
    let int8 = quantized(&pyramid(), PYRAMID);
    let add = int8.graph.node.iter().find(|n| n.op_type() == "Add").unwrap();
    let read = [0, 1].map(|place| is_dequantized(&int8, &add.input[place]));
    let [main, beside] = [0, 1].map(|place| {
        let value = maker(&int8, &add.input[place]).unwrap();
        let source = if value.op_type() == "Conv" {
            value
        } else {
            let q = maker(&int8, &value.input[0]).unwrap();
            maker(&int8, &q.input[0]).unwrap()
        };
        maker(&int8, &source.input[1]).unwrap().input[0].clone()
    });
    assert_eq!(
        (main.as_str(), beside.as_str()),
        ("block.2.weight.int8", "block.downsample.weight.int8")
    );
    assert_eq!(read, [true, false], "the downsampling comes last in this graph");
}

#[test]
fn pools_and_concatenations_have_one_scale() {
    let int8 = quantized(&pyramid(), PYRAMID);
    let index = Index::new(&int8.graph);
    for op in ["MaxPool", "Concat"] {
        let node = int8.graph.node.iter().find(|n| n.op_type() == op).unwrap();
        let mut scales: Vec<Vec<f32>> = Vec::new();
        for input in &node.input {
            assert!(is_dequantized(&int8, input), "{op} reads {input}");
            scales.push(scale_of(&int8, input));
        }
        let [reader] = index.readers(&node.output[0]) else { panic!("{op} has one reader") };
        let q = &int8.graph.node[*reader];
        assert_eq!(q.op_type(), "QuantizeLinear");
        scales.push(floats(index.constant(&q.input[1]).unwrap()).unwrap());
        assert!(scales.windows(2).all(|pair| pair[0] == pair[1]), "{op}: {scales:?}");
    }
    // Convolutions on a few cells stay in float, and so do the matrices that make those.
    for node in &int8.graph.node {
        if node.op_type() == "MatMul" {
            assert!(node.input.iter().all(|i| !is_dequantized(&int8, i)));
        }
        if node.input.get(1).is_some_and(|w| w.starts_with("level")) {
            assert!(!node.input[1].contains("dequantized"));
        }
    }
}

#[test]
fn a_concatenation_that_floats_read_too_is_rounded_behind() {
    let int8 = quantized(&starter(), SIZE);
    // The projection of the head reads the features as they are.
    let concat = int8.graph.node.iter().find(|n| n.op_type() == "Concat").unwrap();
    assert!(concat.input.iter().all(|i| !is_dequantized(&int8, i)));
    let projection = convolutions(&int8).find(|n| n.input[1] == "head.projection.weight").unwrap();
    assert_eq!(projection.input[0], concat.output[0]);
}

#[test]
fn matrices_of_tokens_are_quantised_by_column() {
    let (values, dims) = ([1.0, 10.0, -2.0, 5.0, 0.5, -20.0], [3, 2]);
    let (integers, scales) = round_channels(&values, &dims, 1).unwrap();
    assert_eq!(scales, [2.0 / 127.0, 20.0 / 127.0]);
    assert_eq!(integers, [64, 64, -127, 32, 32, -127]);
    let (integers, scales) = round_channels(&values, &dims, 0).unwrap();
    assert_eq!(integers, [13, 127, -51, 127, 3, -127]);
    assert_eq!(scales.len(), 3);
    assert_eq!(round_channels(&[0.0; 2], &[2], 0), Some((vec![0, 0], vec![1.0, 1.0])));
    assert_eq!(round_channels(&[f32::NAN], &[1], 0), None);
    assert_eq!(round_channels(&[1.0], &[1], 1), None);
}

#[test]
fn layers_beyond_convolutions() {
    let mut b = Builder::new();
    let x = b.conv("c", "image", [4, 3, 8], 8, 0);
    let x = b.op("Relu", &[&x], vec![]);
    let pool = vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])];
    let x = b.op("AveragePool", &[&x], pool);
    let x = b.conv("d", &x, [4, 4, 1], 1, 0);
    let x = b.op("Sigmoid", &[&x], vec![]);
    let x = b.conv("e", &x, [4, 4, 1], 1, 0);
    let model = b.finish(&x, [1, 3, 64, 64], [1, 4, 4, 4]).unwrap();
    let int8 = quantized(&model, (64, 64));
    let pool = int8.graph.node.iter().find(|n| n.op_type() == "AveragePool").unwrap();
    assert!(is_dequantized(&int8, &pool.input[0]));
    assert_eq!(count(&int8, "QuantizeLinear"), 3);
    // Averages have a scale of their own.
    let conv = convolutions(&int8).nth(1).unwrap();
    assert_ne!(scale_of(&int8, &pool.input[0]), scale_of(&int8, &conv.input[0]));
}

#[test]
fn int8_embeddings_are_near_those_of_float32() {
    for (name, model, size, least_mean) in
        [("starter", starter(), SIZE, 0.95), ("pyramid", pyramid(), PYRAMID, 0.999)]
    {
        let input = picture(size.0, size.1, 3);
        let expected = run(&model, BackendKind::Rten, &input, size).unwrap();
        let calibrator = calibrator(&model, size, BackendKind::Rten);
        for method in [Method::Percentile, Method::Entropy, Method::SquaredError] {
            let int8 = quantize(&model, &calibrator.finish_by(method)).unwrap();
            for kind in [BackendKind::Onnxruntime, BackendKind::Rten] {
                let Some(found) = run(&int8, kind, &input, size) else { continue };
                let (mean, least) = cosine(&expected, &found);
                println!("{name}, {method:?} on {kind}: mean cosine {mean:.5}, least {least:.5}");
                assert!(mean > least_mean || method != Method::default(), "{kind}: {mean}");
            }
        }
    }
}

#[test]
fn integers_and_half_precision_go_together() {
    for half in [Half::F16, Half::Bf16] {
        for (model, size) in [(starter(), SIZE), (pyramid(), PYRAMID)] {
            let calibration = calibrator(&model, size, BackendKind::Rten).finish();
            let fixed = fix_input_shape(&model, 1, size.1 as u32, size.0 as u32).unwrap();
            let int8 = quantize(&fixed, &calibration).unwrap();
            let both = to_half(&int8, half).unwrap().model;
            // Between integers and layers there is no change of type.
            let index = Index::new(&both.graph);
            for node in both.graph.node.iter().filter(|n| n.op_type() == "DequantizeLinear") {
                for &reader in index.readers(&node.output[0]) {
                    assert_ne!(both.graph.node[reader].op_type(), "Cast");
                }
            }
            // ONNX Runtime takes the file, but its processor kernels give other numbers than the
            // operators say; so the rounding is emulated.
            let input = picture(size.0, size.1, 3);
            let expected = run(&int8, BackendKind::Rten, &input, size).unwrap();
            let emulated = emulated(&both, half);
            let Some(found) = run(&emulated, BackendKind::Onnxruntime, &input, size) else {
                return;
            };
            let (mean, least) = cosine(&expected, &found);
            println!("int8 with {half} against int8 with fp32: {mean:.5}, least {least:.5}");
            assert!(mean > 0.98, "{half}: {mean}");
        }
    }
}

#[test]
fn both_backends_calibrate_alike() {
    if crate::backend::probe()[0].available.is_err() {
        println!("skipped: onnxruntime is absent");
        return;
    }
    let [one, other] = [BackendKind::Rten, BackendKind::Onnxruntime]
        .map(|kind| calibrator(&starter(), SIZE, kind).finish());
    assert_eq!(one.largest.keys().collect::<Vec<_>>(), other.largest.keys().collect::<Vec<_>>());
    for (name, value) in &one.largest {
        let apart = (value - other.largest[name]).abs() / value.max(1e-6);
        assert!(apart < 0.02, "{name}: {value} {}", other.largest[name]);
    }
}

#[test]
fn a_calibration_survives_a_file() {
    let model = pyramid();
    let calibration = calibrator(&model, PYRAMID, BackendKind::Rten).finish();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("calibration.json");
    calibration.write(&path).unwrap();
    assert_eq!(Calibration::read(&path).unwrap(), calibration);
    for bad in ["", "{}", r#"{"network":"","frames":1,"method":"entropy","largest":{"x":-1.0}}"#] {
        std::fs::write(&path, bad).unwrap();
        let message = Calibration::read(&path).unwrap_err().to_string();
        assert!(message.contains("calibration.json"), "{message}");
    }
    assert!(Calibration::read(&dir.path().join("absent")).is_err());
}

#[test]
fn a_wrong_calibration_is_refused() {
    let model = pyramid();
    let good = calibrator(&model, PYRAMID, BackendKind::Rten).finish();
    let message =
        |calibration: &Calibration| quantize(&model, calibration).unwrap_err().to_string();
    let other = Calibration { network: String::new(), ..good.clone() };
    assert!(message(&other).contains("another network"));
    let unseen = Calibration { frames: 0, ..good.clone() };
    assert!(message(&unseen).contains("no images"));
    let mut short = good.clone();
    short.largest.remove("image");
    assert!(message(&short).contains("\"image\""));
}

#[test]
fn networks_that_cannot_be_quantised_are_refused() {
    let model = pyramid();
    let int8 = quantized(&model, PYRAMID);
    let options = BackendOptions::new(BackendKind::Rten, 1);
    let twice = Calibrator::new(&int8, &options).unwrap_err();
    assert!(twice.to_string().contains("quantises already"), "{twice}");
    // A single layer is the last one, which stays in float.
    let tiny = crate::onnx::testing::tiny();
    let calibration = calibrator(&tiny, SIZE, BackendKind::Rten).finish();
    let none = quantize(&tiny, &calibration).unwrap_err();
    assert!(none.to_string().contains("no layer"), "{none}");
}

#[test]
fn images_that_are_not_finite_are_refused() {
    let options = BackendOptions::new(BackendKind::Rten, 1);
    let mut calibrator = Calibrator::new(&pyramid(), &options).unwrap();
    let mut image = picture(PYRAMID.0, PYRAMID.1, 1);
    image[5] = f32::NAN;
    let error = calibrator.observe(&image, PYRAMID.0, PYRAMID.1).unwrap_err();
    assert!(matches!(error, OnnxError::Infinite { .. }), "{error}");
    assert_eq!(calibrator.frames(), 0);
}
