//! Networks and comparisons for the tests of the rewrites.

use std::path::Path;

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;

use super::graph::{data_type, float_tensor, floats, int, node, raw_tensor, value_types};
use super::half::Half;
use super::proto::attribute_proto::AttributeType;
use super::proto::tensor_proto::DataType;
use super::proto::tensor_shape_proto::{Dimension, dimension};
use super::proto::{
    AttributeProto, GraphProto, ModelProto, OperatorSetIdProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};
use super::{Model, OnnxError};
use crate::backend::{self, BackendKind, BackendOptions, Images};
use crate::frame::{FrameView, Normalization, Preprocessor};
use crate::scene::{Scene, SceneConfig};

/// The smallest network that has the form of an embedder.
pub fn tiny() -> Model {
    read("testdata/tiny.onnx")
}

/// A trained MobileNetV2 with the edge head, as the exporter writes it.
pub fn starter() -> Model {
    read("../models/starter/embedder.onnx")
}

fn read(relative: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(relative);
    Model::parse(&std::fs::read(path).unwrap()).unwrap()
}

/// Size of [`pyramid`]'s input.
pub const PYRAMID: (usize, usize) = (80, 64);

/// A network of one size with what the paper's networks have beyond the starter's: max pooling, a
/// residual block with a convolution beside it, and pyramid pooling by matrices. Random weights.
pub fn pyramid() -> Model {
    let mut b = Builder::new();
    let x = b.conv("stem", "image", [12, 3, 4], 4, 0);
    let x = b.op("Relu", &[&x], vec![]);
    let pool =
        vec![ints("kernel_shape", &[3, 3]), ints("strides", &[2, 2]), ints("pads", &[1, 1, 1, 1])];
    let x = b.op("MaxPool", &[&x], pool);
    let main = b.conv("block.1", &x, [16, 12, 3], 1, 1);
    let main = b.op("Relu", &[&main], vec![]);
    let main = b.conv("block.2", &main, [16, 16, 3], 1, 1);
    let beside = b.conv("block.downsample", &x, [16, 12, 1], 1, 0);
    let x = b.op("Add", &[&main, &beside], vec![]);
    let features = b.op("Relu", &[&x], vec![]);
    let (width, height) = (PYRAMID.0 as i64 / 8, PYRAMID.1 as i64 / 8);
    let mut levels = vec![features.clone()];
    for bins in [1, 2] {
        let x = b.sandwich(&features, [bins, height], [bins, width]);
        let x = b.conv(&format!("level{bins}"), &x, [8, 16, 1], 1, 0);
        let x = b.op("Relu", &[&x], vec![]);
        levels.push(b.sandwich(&x, [height, bins], [width, bins]));
    }
    let levels: Vec<&str> = levels.iter().map(String::as_str).collect();
    let x = b.op("Concat", &levels, vec![int("axis", 1)]);
    let x = b.conv("head.conv", &x, [16, 32, 3], 1, 1);
    let x = b.op("Relu", &[&x], vec![]);
    let x = b.conv("head.embedding", &x, [8, 16, 1], 1, 0);
    b.finish(&x, [1, 3, PYRAMID.1 as i64, PYRAMID.0 as i64], [1, 8, height, width]).unwrap()
}

/// A network whose operators work for one image only.
pub fn for_one_image() -> Model {
    let mut b = Builder::new();
    let x = b.conv("c", "image", [4, 3, 8], 8, 0);
    let shape = [1_i64, 4, 8, 8].iter().flat_map(|n| n.to_le_bytes()).collect();
    b.graph.initializer.push(raw_tensor("dims", &[4], DataType::Int64, shape));
    let x = b.op("Reshape", &[&x, "dims"], vec![]);
    b.finish(&x, [1, 3, 64, 64], [1, 4, 8, 8]).unwrap()
}

pub fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::Ints as i32),
        ints: values.to_vec(),
        ..AttributeProto::default()
    }
}

/// Builds small graphs; values have the names of their operators and a number.
pub struct Builder {
    pub graph: GraphProto,
    rng: Pcg64,
}

impl Builder {
    pub fn new() -> Self {
        let graph = GraphProto { name: Some("test".to_owned()), ..GraphProto::default() };
        Self { graph, rng: Pcg64::seed_from_u64(7) }
    }

    pub fn op(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let out = format!("{}{}", op.to_lowercase(), self.graph.node.len());
        self.graph.node.push(node(op, inputs, &out, attributes));
        out
    }

    pub fn constant(&mut self, name: &str, dims: &[i64], values: &[f32]) {
        self.graph.initializer.push(float_tensor(name, dims, values, DataType::Float));
    }

    /// `[outputs, inputs, kernel]`.
    pub fn conv(
        &mut self,
        name: &str,
        x: &str,
        [outputs, inputs, kernel]: [i64; 3],
        stride: i64,
        pad: i64,
    ) -> String {
        let bound = (6.0 / (inputs * kernel * kernel) as f32).sqrt();
        let count = outputs * inputs * kernel * kernel;
        let weights: Vec<f32> = (0..count).map(|_| self.rng.random_range(-bound..bound)).collect();
        let bias: Vec<f32> = (0..outputs).map(|_| self.rng.random_range(-0.2..0.2)).collect();
        let names = [format!("{name}.weight"), format!("{name}.bias")];
        self.constant(&names[0], &[outputs, inputs, kernel, kernel], &weights);
        self.constant(&names[1], &[outputs], &bias);
        let attributes = vec![
            ints("kernel_shape", &[kernel; 2]),
            ints("strides", &[stride; 2]),
            ints("pads", &[pad; 4]),
        ];
        self.op("Conv", &[x, &names[0], &names[1]], attributes)
    }

    /// Resamples a map by matrices of rows and columns, each `[out, in]`.
    fn sandwich(&mut self, x: &str, rows: [i64; 2], columns: [i64; 2]) -> String {
        // Averages over the input: resampling whose weights do not matter here.
        let [r, c] = [format!("{x}.rows{}", rows[0]), format!("{x}.columns{}", columns[0])];
        self.constant(&r, &rows, &vec![1.0 / rows[1] as f32; (rows[0] * rows[1]) as usize]);
        let count = (columns[0] * columns[1]) as usize;
        self.constant(&c, &[columns[1], columns[0]], &vec![1.0 / columns[1] as f32; count]);
        let half = self.op("MatMul", &[x, &c], vec![]);
        self.op("MatMul", &[&r, &half], vec![])
    }

    /// Adds the normalisation to unit length.
    pub fn finish(
        mut self,
        x: &str,
        input: [i64; 4],
        output: [i64; 4],
    ) -> Result<Model, OnnxError> {
        self.constant("tiny", &[], &[1e-12]);
        let length = self.op("ReduceL2", &[x], vec![ints("axes", &[1]), int("keepdims", 1)]);
        let length = self.op("Clip", &[&length, "tiny"], vec![]);
        self.graph.node.push(node("Div", &[x, &length], "embedding", vec![]));
        self.graph.input.push(info("image", input));
        self.graph.output.push(info("embedding", output));
        Model::from_proto(ModelProto {
            ir_version: Some(8),
            opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
            graph: Some(self.graph),
            ..ModelProto::default()
        })
    }
}

fn info(name: &str, sides: [i64; 4]) -> ValueInfoProto {
    let dim = sides
        .map(|n| Dimension { value: Some(dimension::Value::DimValue(n)), ..Dimension::default() });
    let tensor = type_proto::Tensor {
        elem_type: Some(DataType::Float as i32),
        shape: Some(TensorShapeProto { dim: dim.to_vec() }),
    };
    let value = Some(type_proto::Value::TensorType(tensor));
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto { value, ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }
}

/// A picture as a network takes it, `[3, height, width]`.
pub fn picture(width: usize, height: usize, seed: u32) -> Vec<f32> {
    let config = SceneConfig { width: width as u32, height: height as u32, frames: 2, seed };
    let image = Scene::new(config).unwrap().frame(0).image;
    let view = FrameView::rgb(config.width, config.height, image.as_raw()).unwrap();
    let mut out = Vec::new();
    Preprocessor::new(Normalization { mean: [0.5; 3], std: [0.5; 3] })
        .run(&view, config.width, config.height, &mut out)
        .unwrap();
    out
}

/// The network's map of a picture, `[dim, rows, columns]`, and `dim`; `None`, with a printed
/// reason, where the backend is not there or does not take the network.
pub fn run(
    model: &Model,
    kind: BackendKind,
    input: &[f32],
    (width, height): (usize, usize),
) -> Option<(Vec<f32>, usize)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("network.onnx");
    std::fs::write(&path, model.to_bytes()).unwrap();
    let options = BackendOptions::new(kind, 1);
    let opened = backend::open(&path, model.input(), model.output(), &options);
    let mut out = Vec::new();
    match opened.and_then(|backend| backend.run(Images::one(input, width, height), &mut out)) {
        Ok(shape) => Some((out, shape.dim)),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

/// The network in float32 whose values are rounded to the half format wherever the half network
/// rounds them. For backends that do not compute in that format.
pub fn emulated(model: &Model, half: Half) -> Model {
    let mut graph = model.graph.clone();
    for tensor in &mut graph.initializer {
        if data_type(tensor) == half.data_type() {
            let values = floats(tensor).unwrap();
            *tensor = float_tensor(tensor.name(), &tensor.dims, &values, DataType::Float);
        }
    }
    let types = value_types(&model.graph);
    let mut nodes = Vec::new();
    for mut node in std::mem::take(&mut graph.node) {
        let output = node.output[0].clone();
        let rounds = types[&output] == half.data_type();
        if rounds && node.op_type() != "Cast" {
            node.output[0] = format!("{output}.exact");
        }
        // A cast is between the types, which are both float32 here.
        let exact = if node.op_type() == "Cast" {
            let exact = node.input[0].clone();
            if !rounds {
                node.op_type = Some("Identity".to_owned());
                node.attribute.clear();
                nodes.push(node);
            }
            exact
        } else {
            nodes.push(node.clone());
            node.output[0].clone()
        };
        if rounds {
            let (low, to) = (format!("{output}.low"), |k: DataType| vec![int("to", k as i64)]);
            nodes.push(super::graph::node("Cast", &[&exact], &low, to(half.data_type())));
            nodes.push(super::graph::node("Cast", &[&low], &output, to(DataType::Float)));
        }
    }
    graph.node = nodes;
    model.with_graph(graph).unwrap()
}

/// Mean and smallest cosine between the vectors of two maps of unit vectors.
pub fn cosine((a, dim): &(Vec<f32>, usize), (b, other): &(Vec<f32>, usize)) -> (f64, f64) {
    assert_eq!((dim, a.len()), (other, b.len()));
    let cells = a.len() / dim;
    let of = |cell: usize| -> f64 {
        let at = |m: &[f32], d: usize| f64::from(m[d * cells + cell]);
        let dot = |x: &[f32], y: &[f32]| -> f64 { (0..*dim).map(|d| at(x, d) * at(y, d)).sum() };
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    let all: Vec<f64> = (0..cells).map(of).collect();
    (all.iter().sum::<f64>() / cells as f64, all.into_iter().fold(1.0, f64::min))
}

/// Nodes with that operator.
pub fn count(model: &Model, op: &str) -> usize {
    model.graph().node.iter().filter(|n| n.op_type() == op).count()
}
