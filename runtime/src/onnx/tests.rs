use proptest::prelude::*;

use super::graph::{float_tensor, int, node};
use super::proto::tensor_shape_proto::dimension::Value;
use super::shape::fix_input_shape;
use super::testing::{Builder, cosine, ints, picture, pyramid, run, starter, tiny};
use super::*;
use crate::backend::BackendKind;

fn sides(info: &proto::ValueInfoProto) -> Vec<Option<i64>> {
    declared(graph::tensor_type(info).unwrap()).unwrap()
}

fn reason(result: Result<Model, OnnxError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_network_survives_reading_and_writing() {
    for file in ["testdata/tiny.onnx", "../models/starter/embedder.onnx"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let bytes = std::fs::read(path).unwrap();
        let model = Model::parse(&bytes).unwrap();
        assert_eq!((model.input(), model.output(), model.opset()), ("image", "embedding", 17));
        assert_eq!(model.to_bytes().len(), bytes.len(), "{file}: fields were lost");
        assert_eq!(Model::parse(&model.to_bytes()).unwrap(), model);
    }
}

#[test]
fn the_fingerprint_is_that_of_the_computation() {
    let model = tiny();
    let fixed = fix_input_shape(&model, 1, 64, 64).unwrap();
    assert_eq!(model.fingerprint(), fixed.fingerprint());
    assert_eq!(model.fingerprint().len(), 64);
    assert_ne!(model.fingerprint(), starter().fingerprint());
}

#[test]
fn cut_files_are_refused() {
    let bytes = tiny().to_bytes();
    for length in (0..bytes.len()).step_by(97) {
        let result = Model::parse(&bytes[..length]);
        assert!(result.is_err(), "{length} of {} bytes", bytes.len());
    }
}

#[test]
fn bytes_that_would_swell_are_refused() {
    // Empty nodes: two bytes each in the file, more than a hundred in memory.
    let nodes: Vec<u8> = [0x0a, 0x00].repeat(20 << 20);
    let mut bytes = vec![0x3a];
    prost::encoding::encode_varint(nodes.len() as u64, &mut bytes);
    bytes.extend(&nodes);
    assert!(matches!(Model::parse(&bytes), Err(OnnxError::TooLarge { .. })));
}

#[test]
fn graphs_within_graphs_end() {
    let mut graph = proto::GraphProto::default();
    for _ in 0..200 {
        let mut holder = node("If", &[], "y", vec![]);
        holder.attribute = vec![proto::AttributeProto {
            g: Some(Box::new(graph)),
            ..proto::AttributeProto::default()
        }];
        graph = proto::GraphProto { node: vec![holder], ..proto::GraphProto::default() };
    }
    let model = proto::ModelProto { graph: Some(graph), ..proto::ModelProto::default() };
    assert!(matches!(Model::parse(&model.encode_to_vec()), Err(OnnxError::Decode(_))));
}

#[test]
fn broken_graphs_are_refused_with_names() {
    let good = tiny();
    let with = |change: &dyn Fn(&mut proto::GraphProto)| {
        let mut graph = good.graph.clone();
        change(&mut graph);
        reason(good.with_graph(graph))
    };
    let message = with(&|g| g.node[0].input[0] = "nothing".to_owned());
    assert!(message.contains("\"conv\" reads \"nothing\""), "{message}");
    let message = with(&|g| g.node.swap(0, 1));
    assert!(message.contains("reads \"features\""), "{message}");
    let message = with(&|g| g.node[1].output[0] = "features".to_owned());
    assert!(message.contains("two nodes give \"features\""), "{message}");
    let message = with(&|g| g.output.clear());
    assert!(message.contains("1 inputs and 0 outputs"), "{message}");
    let message = with(&|g| g.initializer[0].dims[0] = i64::MAX);
    assert!(message.contains("\"weight\" of the network has a shape"), "{message}");
    let message = with(&|g| g.initializer[0].dims[0] += 1);
    assert!(message.contains("more or less data"), "{message}");
    let message = with(&|g| g.initializer[0].data_location = Some(1));
    assert!(message.contains("another file"), "{message}");
    let mut without = good.proto.clone();
    without.graph = Some(good.graph.clone());
    without.opset_import.clear();
    assert!(reason(Model::from_proto(without)).contains("which version"));
}

proptest! {
    #[test]
    fn damaged_networks_never_panic(place in 0_usize..9000, value: u8, other in 0_usize..400) {
        let mut bytes = tiny().to_bytes();
        let last = bytes.len() - 1;
        bytes[place.min(last)] = value;
        bytes[last - other] ^= value;
        if let Ok(model) = Model::parse(&bytes) {
            let _ = fix_input_shape(&model, 1, 64, 64);
            let _ = half::to_half(&model, half::Half::Bf16);
        }
    }
}

#[test]
fn floats_are_read_from_every_field() {
    use proto::TensorProto;
    use proto::tensor_proto::DataType;
    let values = [1.5, -2.0, 0.25];
    for kind in [DataType::Float, DataType::Float16, DataType::Bfloat16] {
        assert_eq!(graph::floats(&float_tensor("x", &[3], &values, kind)).unwrap(), values);
    }
    let typed = TensorProto {
        dims: vec![3],
        data_type: Some(DataType::Float as i32),
        float_data: values.to_vec(),
        ..TensorProto::default()
    };
    assert_eq!(graph::floats(&typed).unwrap(), values);
    let bits = TensorProto {
        dims: vec![1],
        data_type: Some(DataType::Float16 as i32),
        int32_data: vec![0x3c00],
        ..TensorProto::default()
    };
    assert_eq!(graph::floats(&bits).unwrap(), [1.0]);
    let short = TensorProto { dims: vec![4], ..typed };
    assert!(graph::floats(&short).is_err());
}

#[test]
fn a_network_of_any_size_gets_one() {
    for (model, dim) in [(tiny(), 32), (starter(), 32)] {
        let fixed = fix_input_shape(&model, 4, 480, 832).unwrap();
        assert_eq!(sides(&fixed.graph.input[0]), [4, 3, 480, 832].map(Some));
        assert_eq!(sides(&fixed.graph.output[0]), [4, dim, 60, 104].map(Some));
        assert_eq!(fixed.graph.node, model.graph.node);
    }
    let paper = fix_input_shape(&pyramid(), 2, 64, 80).unwrap();
    assert_eq!(sides(&paper.graph.output[0]), [2, 8, 8, 10].map(Some));
}

#[test]
fn a_network_of_one_size_keeps_it() {
    let message = reason(fix_input_shape(&pyramid(), 1, 64, 96));
    assert!(message.contains("1x3x64x96") && message.contains("1x3x64x80"), "{message}");
}

#[test]
fn impossible_sizes_are_refused() {
    for (batch, height, width) in [(0, 64, 64), (1, 4, 4), (1, 64, 20_000)] {
        assert!(fix_input_shape(&tiny(), batch, height, width).is_err());
    }
}

#[test]
fn a_batch_that_the_operators_do_not_carry_is_refused() {
    let message = reason(fix_input_shape(&testing::for_one_image(), 2, 64, 64));
    assert!(message.contains("Reshape"), "{message}");
}

#[test]
fn a_network_for_one_image_is_opened_for_any_number() {
    for model in [tiny(), starter(), pyramid()] {
        let size = sides(&model.graph.input[0]);
        let opened = batch::open_batch(model.clone()).unwrap().unwrap();
        assert_eq!(sides(&opened.graph.input[0]), [&[None], &size[1..]].concat());
        assert_eq!(sides(&opened.graph.output[0])[0], None);
        assert_eq!(opened.fingerprint(), model.fingerprint());
        assert!(batch::open_batch(opened).unwrap().is_none(), "it is open already");
    }
}

#[test]
fn networks_that_may_mix_images_are_not_opened() {
    let text = |model: Model| batch::open_batch(model).unwrap_err().to_string();
    assert!(text(testing::for_one_image()).contains("(Reshape) may not keep the images"));
    let softmax = |axis| {
        let mut b = Builder::new();
        let x = b.conv("c", "image", [4, 3, 8], 8, 0);
        let x = b.op("Softmax", &[&x], vec![int("axis", axis)]);
        b.finish(&x, [1, 3, 64, 64], [1, 4, 8, 8]).unwrap()
    };
    for axis in [0, -4] {
        assert!(text(softmax(axis)).contains("(Softmax)"));
    }
    assert!(batch::open_batch(softmax(1)).unwrap().is_some());
    let mut b = Builder::new();
    b.constant("two", &[2, 4, 1, 1], &[1.0; 8]);
    let x = b.conv("c", "image", [4, 3, 8], 8, 0);
    let x = b.op("Add", &[&x, "two"], vec![]);
    let x = b.op("ReduceMean", &[&x], vec![ints("axes", &[0])]);
    assert!(text(b.finish(&x, [1, 3, 64, 64], [1, 4, 8, 8]).unwrap()).contains("may not keep"));
    let mut several = tiny();
    several = fix_input_shape(&several, 4, 64, 64).unwrap();
    assert!(text(several).contains("it was exported for 4 at once"));
}

#[test]
fn shapes_are_those_that_the_backend_finds() {
    for (width, height) in [(128, 104), (200, 96)] {
        let model = starter();
        let fixed = fix_input_shape(&model, 1, height as u32, width as u32).unwrap();
        let input = picture(width, height, 1);
        let open = run(&model, BackendKind::Rten, &input, (width, height)).unwrap();
        let one = run(&fixed, BackendKind::Rten, &input, (width, height)).unwrap();
        assert_eq!(open, one);
        let cells: i64 = sides(&fixed.graph.output[0])[2..].iter().flatten().product();
        assert_eq!(one.0.len() as i64, 32 * cells);
    }
}

#[test]
fn newer_operators_compute_the_same() {
    for (model, size) in [(starter(), (96, 64)), (pyramid(), testing::PYRAMID)] {
        let input = picture(size.0, size.1, 2);
        let expected = run(&model, BackendKind::Rten, &input, size).unwrap();
        for version in [18, 19, 22] {
            let raised = opset::raise(&model, version).unwrap();
            assert_eq!(raised.opset(), version);
            for kind in [BackendKind::Rten, BackendKind::Onnxruntime] {
                let Some(found) = run(&raised, kind, &input, size) else { continue };
                assert!(cosine(&expected, &found).1 > 0.99999, "{kind} {version}");
            }
        }
    }
}

#[test]
fn operators_with_unknown_changes_are_not_moved() {
    let mut b = Builder::new();
    let x = b.conv("c", "image", [4, 3, 8], 8, 0);
    let pool = vec![ints("kernel_shape", &[2, 2]), int("ceil_mode", 1)];
    let x = b.op("AveragePool", &[&x], pool);
    let model = b.finish(&x, [1, 3, 64, 64], [1, 4, 4, 4]).unwrap();
    assert!(reason(opset::raise(&model, 22)).contains("AveragePool"));
}

#[test]
fn open_sides_have_names() {
    let model = tiny();
    let shape = graph::tensor_type(&model.graph.input[0]).unwrap().shape.clone().unwrap();
    assert_eq!(shape.dim[2].value, Some(Value::DimParam("height".to_owned())));
}
