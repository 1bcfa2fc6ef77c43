//! Shapes: a network of any input size becomes one of a single size.

use std::collections::HashMap;

use super::graph::{
    Index, attribute, int_of, ints_of, is_standard, label, tensor_type, tensor_type_mut,
};
use super::proto::tensor_shape_proto::{Dimension, dimension};
use super::proto::{AttributeProto, GraphProto, NodeProto, TensorShapeProto, ValueInfoProto};
use super::{Model, OnnxError, declared};

/// Largest side of an input in pixels, and largest batch.
const MAX_SIDE: u32 = 16_384;

/// The network for inputs `[batch, 3, height, width]` only, its output's shape included.
///
/// # Errors
/// [`OnnxError::Size`] where the network is made for another size already, where its output's
/// shape does not follow from the operators, or where it would be empty.
pub fn fix_input_shape(
    model: &Model,
    batch: u32,
    height: u32,
    width: u32,
) -> Result<Model, OnnxError> {
    let bad =
        |reason: String| OnnxError::Size { wanted: format!("{batch}x3x{height}x{width}"), reason };
    if [batch, height, width].iter().any(|&side| side == 0 || side > MAX_SIDE) {
        return Err(bad(format!("each side must be 1 to {MAX_SIDE}")));
    }
    let wanted = [batch, 3, height, width].map(i64::from);
    let mut graph = model.graph.clone();
    let (input, output) = (model.input().to_owned(), model.output().to_owned());
    let Some(info) = graph.input.iter_mut().find(|info| info.name() == input) else {
        return Err(bad("it has no input".to_owned()));
    };
    let found = tensor_type(info).and_then(declared);
    // A batch of one is what exporters write; the operators say below whether others work.
    for (axis, side) in found.iter().flatten().enumerate() {
        if let (Some(side), Some(&want)) = (side, wanted.get(axis))
            && *side != want
            && axis != 0
        {
            return Err(bad(format!(
                "it was exported for {}; export it for the other size",
                describe(found.as_deref().unwrap_or(&[]))
            )));
        }
    }
    set_shape(info, &wanted);
    let shapes = infer(&graph);
    let shape = shapes.get(&output).filter(|shape| shape.len() == 4);
    let sides: Option<Vec<i64>> = shape.and_then(|shape| shape.iter().copied().collect());
    let Some(sides) = sides else {
        let node = graph
            .node
            .iter()
            .find(|n| n.output.iter().any(|o| shapes.get(o).is_none_or(|s| s.contains(&None))));
        let node = node.map_or(String::new(), |n| {
            format!(" (not known after node \"{}\", {})", label(n), n.op_type())
        });
        return Err(bad(format!("the shape of its output does not follow from that{node}")));
    };
    if sides[0] != wanted[0] || sides.contains(&0) {
        return Err(bad(format!(
            "the output would be {}",
            describe(&sides.iter().map(|&s| Some(s)).collect::<Vec<_>>())
        )));
    }
    for info in &mut graph.output {
        set_shape(info, &sides);
    }
    // Shapes of inner values that may have been open.
    graph.value_info.clear();
    model.with_graph(graph)
}

fn describe(sides: &[Option<i64>]) -> String {
    let side = |s: &Option<i64>| s.map_or("?".to_owned(), |n| n.to_string());
    sides.iter().map(side).collect::<Vec<_>>().join("x")
}

fn set_shape(info: &mut ValueInfoProto, sides: &[i64]) {
    if let Some(tensor) = tensor_type_mut(info) {
        let side = |&n: &i64| Dimension {
            value: Some(dimension::Value::DimValue(n)),
            ..Dimension::default()
        };
        tensor.shape = Some(TensorShapeProto { dim: sides.iter().map(side).collect() });
    }
}

/// Sides of a value; `None` for one that is not known.
pub(super) type Shape = Vec<Option<i64>>;

/// Shapes of the values, as far as they follow from the inputs through operators that are known.
pub(super) fn infer(graph: &GraphProto) -> HashMap<String, Shape> {
    let mut shapes: HashMap<String, Shape> = HashMap::new();
    for info in &graph.input {
        if let Some(shape) = tensor_type(info).and_then(declared) {
            shapes.insert(info.name().to_owned(), shape);
        }
    }
    for tensor in &graph.initializer {
        let sides = tensor.dims.iter().map(|&n| Some(n)).collect();
        shapes.insert(tensor.name().to_owned(), sides);
    }
    let index = Index::new(graph);
    for node in graph.node.iter().filter(|n| is_standard(n)) {
        let inputs: Vec<Option<&Shape>> = node.input.iter().map(|i| shapes.get(i)).collect();
        if let (Some(shape), Some(output)) = (after(node, &inputs, &index), node.output.first()) {
            shapes.insert(output.clone(), shape);
        }
    }
    shapes
}

fn after(node: &NodeProto, inputs: &[Option<&Shape>], index: &Index<'_>) -> Option<Shape> {
    let first = *inputs.first()?;
    match node.op_type() {
        "Relu" | "Clip" | "LeakyRelu" | "Sigmoid" | "HardSigmoid" | "HardSwish" | "Tanh"
        | "Sqrt" | "Erf" | "Cast" | "Identity" | "Softmax" | "BatchNormalization"
        | "QuantizeLinear" | "DequantizeLinear" => first.cloned(),
        "Add" | "Sub" | "Mul" | "Div" | "Max" | "Min" | "Pow" => {
            let all: Option<Vec<&Shape>> = inputs.iter().copied().collect();
            broadcast(&all?)
        }
        "Constant" => {
            let tensor = attribute(node, "value")?.t.as_deref()?;
            Some(tensor.dims.iter().map(|&n| Some(n)).collect())
        }
        "Conv" => {
            let weight = (*inputs.get(1)?)?;
            let kernel: Vec<i64> = weight.get(2..)?.iter().copied().collect::<Option<_>>()?;
            windows(node, first?, *weight.first()?, &kernel)
        }
        "MaxPool" | "AveragePool" => {
            let shape = first?;
            windows(node, shape, *shape.get(1)?, ints_of(node, "kernel_shape"))
        }
        "GlobalAveragePool" | "GlobalMaxPool" => {
            let shape = first?;
            Some(shape.iter().enumerate().map(|(i, &s)| if i < 2 { s } else { Some(1) }).collect())
        }
        "MatMul" => matmul(first?, (*inputs.get(1)?)?),
        "Concat" => {
            let all: Option<Vec<&Shape>> = inputs.iter().copied().collect();
            let all = all?;
            let mut shape = (*all.first()?).clone();
            let axis = place(int_of(node, "axis", 0), shape.len())?;
            shape[axis] = all.iter().map(|s| *s.get(axis)?).sum();
            Some(shape)
        }
        op if op.starts_with("Reduce") => {
            let mut shape = first?.clone();
            let axes = match (attribute(node, "axes"), node.input.get(1)) {
                (Some(axes), _) => axes.ints.clone(),
                (None, Some(name)) => int64s(index.constant(name)?),
                (None, None) => (0..shape.len() as i64).collect(),
            };
            if int_of(node, "keepdims", 1) != 1 {
                return None;
            }
            for axis in axes {
                let axis = place(axis, shape.len())?;
                shape[axis] = Some(1);
            }
            Some(shape)
        }
        _ => None,
    }
}

/// Axes count from the end when they are negative.
pub(super) fn place(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 { axis.checked_add(rank as i64)? } else { axis };
    usize::try_from(axis).ok().filter(|&a| a < rank)
}

fn int64s(tensor: &super::proto::TensorProto) -> Vec<i64> {
    match &tensor.raw_data {
        Some(raw) => raw.as_chunks::<8>().0.iter().map(|&b| i64::from_le_bytes(b)).collect(),
        None => tensor.int64_data.clone(),
    }
}

fn broadcast(shapes: &[&Shape]) -> Option<Shape> {
    let rank = shapes.iter().map(|s| s.len()).max()?;
    let mut out = vec![Some(1); rank];
    for shape in shapes {
        for (side, out) in shape.iter().rev().zip(out.iter_mut().rev()) {
            *out = match (*out, *side) {
                (a, Some(1)) => a,
                (Some(1), b) => b,
                (Some(a), Some(b)) if a == b => Some(a),
                (Some(_), Some(_)) => return None,
                (a, b) => a.or(b),
            };
        }
    }
    Some(out)
}

/// `[.., n, k]` by `[.., k, m]`; both have at least two sides.
fn matmul(a: &Shape, b: &Shape) -> Option<Shape> {
    let (&[rows, inner], &[other, columns]) = (a.last_chunk::<2>()?, b.last_chunk::<2>()?);
    if let (Some(inner), Some(other)) = (inner, other)
        && inner != other
    {
        return None;
    }
    let outer = [&a[..a.len() - 2], &b[..b.len() - 2]].map(<[_]>::to_vec);
    let mut out = broadcast(&[&outer[0], &outer[1]])?;
    out.extend([rows, columns]);
    Some(out)
}

/// The map after a kernel has gone over another one.
fn windows(
    node: &NodeProto,
    input: &Shape,
    channels: Option<i64>,
    kernel: &[i64],
) -> Option<Shape> {
    let spatial = input.get(2..)?;
    let text = |name| attribute(node, name).map_or(&[][..], AttributeProto::s);
    if spatial.len() != kernel.len()
        || !matches!(text("auto_pad"), b"" | b"NOTSET" | b"VALID")
        || int_of(node, "ceil_mode", 0) != 0
    {
        return None;
    }
    let of = |name: &str, axis: usize, default: i64| {
        ints_of(node, name).get(axis).copied().unwrap_or(default)
    };
    let mut out = vec![input[0], channels];
    for (axis, (&side, &kernel)) in spatial.iter().zip(kernel).enumerate() {
        let stride = of("strides", axis, 1);
        if stride < 1 || kernel < 1 {
            return None;
        }
        let pads = of("pads", axis, 0).checked_add(of("pads", axis + spatial.len(), 0))?;
        let reach = of("dilations", axis, 1).checked_mul(kernel - 1)?.checked_add(1)?;
        out.push(match side {
            Some(side) => {
                let room = side.checked_add(pads)?.checked_sub(reach)?;
                if room < 0 {
                    return None;
                }
                Some(room / stride + 1)
            }
            None => None,
        });
    }
    Some(out)
}
