use super::*;
use crate::backend::BackendKind;
use crate::onnx::graph::ints_of;
use crate::onnx::shape::fix_input_shape;
use crate::onnx::testing::{
    Builder, PYRAMID, cosine, count, emulated, picture, pyramid, run, starter, tiny,
};

const SIZE: (usize, usize) = (192, 128);

fn constant(model: &Model, name: &str) -> TensorProto {
    model.graph.initializer.iter().find(|t| t.name().starts_with(name)).unwrap().clone()
}

#[test]
fn weights_are_halved_and_the_interface_stays() {
    for half in [Half::F16, Half::Bf16] {
        for model in [tiny(), starter(), pyramid()] {
            let halved = to_half(&model, half).unwrap().model;
            let ratio = halved.to_bytes().len() as f64 / model.to_bytes().len() as f64;
            assert!(ratio < 0.75, "{half}: {ratio}");
            assert_eq!(halved.graph.input, model.graph.input);
            assert_eq!(halved.graph.output, model.graph.output);
            for tensor in &halved.graph.initializer {
                let large = tensor.dims.iter().product::<i64>() > 1;
                assert!(!large || data_type(tensor) != DataType::Float, "{}", tensor.name());
            }
        }
    }
}

#[test]
fn lengths_are_computed_in_float32() {
    for half in [Half::F16, Half::Bf16] {
        for model in [tiny(), starter(), pyramid()] {
            let halved = to_half(&model, half).unwrap();
            let types = value_types(&halved.model.graph);
            for node in &halved.model.graph.node {
                if matches!(node.op_type(), "ReduceL2" | "Div" | "GlobalAveragePool") {
                    assert_eq!(types[&node.input[0]], DataType::Float, "{}", label(node));
                }
                if matches!(node.op_type(), "Conv" | "Relu" | "Concat" | "MatMul" | "MaxPool") {
                    assert_eq!(types[&node.input[0]], half.data_type(), "{}", label(node));
                }
            }
            // The smallest length is no number of FP16, and BF16 holds it: the clip follows the
            // sum in both.
            let clips = halved.kept.iter().filter(|k| k.op == "Clip");
            assert!(clips.clone().count() >= 1);
            for kept in clips {
                assert_eq!(kept.reason, Reason::FollowsSum);
            }
        }
    }
}

#[test]
fn a_value_is_cast_once_for_all_its_readers() {
    let halved = to_half(&pyramid(), Half::F16).unwrap().model;
    // The image to half precision, the embedding to float32; nothing else changes its type.
    assert_eq!(count(&halved, "Cast"), 2);
    let casts = halved.graph.node.iter().filter(|n| n.op_type() == "Cast");
    let inputs: HashSet<&String> = casts.clone().map(|n| &n.input[0]).collect();
    assert_eq!(inputs.len(), casts.count());
}

#[test]
fn an_output_in_half_precision_is_cast() {
    let mut b = Builder::new();
    let x = b.conv("c", "image", [4, 3, 8], 8, 0);
    let mut model = b.finish(&x, [1, 3, 64, 64], [1, 4, 8, 8]).unwrap();
    model.graph.output[0].name = Some(x.clone());
    let halved = to_half(&model, Half::F16).unwrap().model;
    let maker = halved.graph.node.iter().find(|n| n.output[0] == x).unwrap();
    assert_eq!(maker.op_type(), "Cast");
    // The length of the vectors is computed from the same cast.
    assert_eq!(count(&halved, "Cast"), 2);
}

#[test]
fn constants_beyond_the_format_keep_their_layer_in_float32() {
    let with = |value: f32| {
        let mut b = Builder::new();
        let x = b.conv("c", "image", [4, 3, 8], 8, 0);
        b.constant("factor", &[], &[value]);
        let x = b.op("Mul", &[&x, "factor"], vec![]);
        b.finish(&x, [1, 3, 64, 64], [1, 4, 8, 8]).unwrap()
    };
    let kept = |value, half| {
        let all = to_half(&with(value), half).unwrap().kept;
        all.into_iter().find(|k| k.op == "Mul").map(|k| k.reason)
    };
    let constant = || "factor".to_owned();
    assert_eq!(kept(1e5, Half::F16), Some(Reason::Overflow { constant: constant() }));
    assert_eq!(kept(1e-7, Half::F16), Some(Reason::Underflow { constant: constant() }));
    for fine in [0.0, 1.0, 6e4, -1e-3] {
        assert_eq!(kept(fine, Half::F16), None, "{fine}");
    }
    for fine in [1e5, 1e-7] {
        assert_eq!(kept(fine, Half::Bf16), None, "{fine}");
    }
}

#[test]
fn a_few_small_weights_do_no_harm() {
    let mut model = tiny();
    let weights = model.graph.initializer.iter_mut().find(|t| t.name() == "weight").unwrap();
    let mut values = floats(weights).unwrap();
    for value in values.iter_mut().step_by(9) {
        *value = 1e-8;
    }
    *weights = float_tensor("weight", &weights.dims, &values, DataType::Float);
    let halved = to_half(&model, Half::F16).unwrap();
    assert!(halved.kept.iter().all(|k| k.op != "Conv"));
    let held = floats(&constant(&halved.model, "weight")).unwrap();
    assert!(held.iter().step_by(9).all(|v| v.abs() < 1e-7));
}

#[test]
fn the_sizes_of_resize_stay_in_float32() {
    let mut b = Builder::new();
    let x = b.conv("c", "image", [4, 3, 8], 8, 0);
    b.constant("scales", &[4], &[1.0, 1.0, 2.0, 2.0]);
    let x = b.op("Resize", &[&x, "", "scales"], vec![]);
    let model = b.finish(&x, [1, 3, 64, 64], [1, 4, 16, 16]).unwrap();
    let halved = to_half(&model, Half::F16).unwrap().model;
    assert_eq!(data_type(&constant(&halved, "scales")), DataType::Float);
    let types = value_types(&halved.graph);
    assert_eq!(types[&x], DataType::Float16);
}

#[test]
fn half_networks_and_control_flow_are_refused() {
    let once = to_half(&tiny(), Half::F16).unwrap().model;
    assert!(to_half(&once, Half::F16).unwrap_err().to_string().contains("already"));
    let mut model = tiny();
    model.graph.node[0].domain = Some("com.example".to_owned());
    assert!(to_half(&model, Half::F16).unwrap_err().to_string().contains("com.example"));
}

#[test]
fn fp16_embeddings_are_those_of_float32() {
    let shown = [(tiny(), SIZE), (starter(), SIZE), (pyramid(), PYRAMID)];
    for (model, size) in shown {
        let input = picture(size.0, size.1, 3);
        let expected = run(&model, BackendKind::Rten, &input, size).unwrap();
        let halved = to_half(&model, Half::F16).unwrap().model;
        for kind in [BackendKind::Onnxruntime, BackendKind::Rten] {
            let Some(found) = run(&halved, kind, &input, size) else { continue };
            let (mean, least) = cosine(&expected, &found);
            println!("fp16 on {kind}: mean cosine {mean:.6}, least {least:.6}");
            assert!(mean > 0.9999 && least > 0.998, "{kind}: {mean} {least}");
        }
    }
}

#[test]
fn rounding_to_half_precision_changes_little() {
    let shown = [(starter(), SIZE), (pyramid(), PYRAMID)];
    for (half, least_mean) in [(Half::F16, 0.9999), (Half::Bf16, 0.998)] {
        for (model, size) in &shown {
            let input = picture(size.0, size.1, 3);
            let expected = run(model, BackendKind::Rten, &input, *size).unwrap();
            let halved = to_half(model, half).unwrap().model;
            let emulated = emulated(&halved, half);
            let Some(found) = run(&emulated, BackendKind::Onnxruntime, &input, *size) else {
                return;
            };
            let (mean, least) = cosine(&expected, &found);
            println!("{half}, emulated: mean cosine {mean:.6}, least {least:.6}");
            assert!(mean > least_mean, "{half}: {mean} {least}");
        }
    }
}

#[test]
fn fixed_sizes_and_half_precision_go_together() {
    let fixed = fix_input_shape(&starter(), 1, 128, 192).unwrap();
    let halved = to_half(&fixed, Half::Bf16).unwrap().model;
    assert_eq!(halved.opset(), 22);
    let reduce = halved.graph.node.iter().find(|n| n.op_type() == "ReduceL2").unwrap();
    assert!(reduce.input.len() == 2 && ints_of(reduce, "axes").is_empty());
}
