//! What rewriting a graph needs: constants, readers, new names, new nodes.

use std::collections::{HashMap, HashSet};

use half::{bf16, f16};

use super::OnnxError;
use super::proto::attribute_proto::AttributeType;
use super::proto::tensor_proto::DataType;
use super::proto::{
    AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, type_proto,
};

/// What a node is called in messages: its name, else its first output.
pub fn label(node: &NodeProto) -> &str {
    match node.name() {
        "" => node.output.first().map_or("", String::as_str),
        name => name,
    }
}

/// Error for a node that a rewrite cannot carry over.
pub(super) fn unsupported(node: &NodeProto, reason: impl Into<String>) -> OnnxError {
    OnnxError::Unsupported {
        node: label(node).to_owned(),
        op: node.op_type().to_owned(),
        reason: reason.into(),
    }
}

/// Type of a tensor's numbers.
pub fn data_type(tensor: &TensorProto) -> DataType {
    DataType::try_from(tensor.data_type()).unwrap_or(DataType::Undefined)
}

/// Type of a value, if it is a tensor.
pub(super) fn tensor_type(info: &ValueInfoProto) -> Option<&type_proto::Tensor> {
    match info.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => Some(tensor),
        _ => None,
    }
}

/// Like [`tensor_type`], to change it.
pub(super) fn tensor_type_mut(info: &mut ValueInfoProto) -> Option<&mut type_proto::Tensor> {
    match info.r#type.as_mut()?.value.as_mut()? {
        type_proto::Value::TensorType(tensor) => Some(tensor),
        _ => None,
    }
}

/// Numbers in a tensor of this shape; `None` for a negative side or a count beyond memory.
pub(super) fn element_count(tensor: &TensorProto) -> Option<usize> {
    tensor.dims.iter().try_fold(1_usize, |count, &side| {
        count.checked_mul(usize::try_from(side).ok()?).filter(|&n| n <= isize::MAX as usize / 16)
    })
}

/// Numbers of a tensor of floats, whichever field holds them, as float32.
///
/// # Errors
/// For other types, and for fewer or more numbers than the shape has.
pub fn floats(tensor: &TensorProto) -> Result<Vec<f32>, OnnxError> {
    let bad = |reason: &str| OnnxError::Tensor {
        tensor: tensor.name().to_owned(),
        reason: reason.to_owned(),
    };
    let kind = data_type(tensor);
    let raw = tensor.raw_data.as_deref();
    // Half precision outside of the raw field: the bits, one number each.
    let bits = || tensor.int32_data.iter().map(|&bits| bits as u16);
    let values: Vec<f32> = match (kind, raw) {
        (DataType::Float, Some(raw)) => {
            raw.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
        }
        (DataType::Float, None) => tensor.float_data.clone(),
        (DataType::Float16, Some(raw)) => {
            raw.as_chunks::<2>().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect()
        }
        (DataType::Float16, None) => bits().map(|b| f16::from_bits(b).to_f32()).collect(),
        (DataType::Bfloat16, Some(raw)) => {
            raw.as_chunks::<2>().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect()
        }
        (DataType::Bfloat16, None) => bits().map(|b| bf16::from_bits(b).to_f32()).collect(),
        _ => return Err(bad("does not hold floats")),
    };
    if Some(values.len()) != element_count(tensor) {
        return Err(bad("has more or less data than its shape says"));
    }
    Ok(values)
}

/// A tensor of floats in the type `kind`: `Float`, `Float16` or `Bfloat16`.
pub(super) fn float_tensor(
    name: &str,
    dims: &[i64],
    values: &[f32],
    kind: DataType,
) -> TensorProto {
    let bytes = match kind {
        DataType::Float16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        DataType::Bfloat16 => {
            values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect()
        }
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    raw_tensor(name, dims, kind, bytes)
}

/// A tensor of the numbers in `bytes`.
pub(super) fn raw_tensor(name: &str, dims: &[i64], kind: DataType, bytes: Vec<u8>) -> TensorProto {
    TensorProto {
        dims: dims.to_vec(),
        data_type: Some(kind as i32),
        name: Some(name.to_owned()),
        raw_data: Some(bytes),
        ..TensorProto::default()
    }
}

/// A node with one output, named after it.
pub(super) fn node(
    op: &str,
    inputs: &[&str],
    output: &str,
    attribute: Vec<AttributeProto>,
) -> NodeProto {
    NodeProto {
        input: inputs.iter().map(ToString::to_string).collect(),
        output: vec![output.to_owned()],
        name: Some(format!("{op}_{output}")),
        op_type: Some(op.to_owned()),
        attribute,
        ..NodeProto::default()
    }
}

/// An attribute that is one integer.
pub(super) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::Int as i32),
        i: Some(value),
        ..AttributeProto::default()
    }
}

/// The node's attribute of that name.
pub(super) fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|a| a.name() == name)
}

/// The node's integer attribute of that name, or what holds without it.
pub(super) fn int_of(node: &NodeProto, name: &str, default: i64) -> i64 {
    attribute(node, name).map_or(default, AttributeProto::i)
}

/// The node's list of integers of that name; empty without it.
pub(super) fn ints_of<'a>(node: &'a NodeProto, name: &str) -> &'a [i64] {
    attribute(node, name).map_or(&[], |a| &a.ints)
}

/// Whether the operator is one of ONNX itself.
pub(super) fn is_standard(node: &NodeProto) -> bool {
    matches!(node.domain(), "" | "ai.onnx")
}

/// Who reads and who makes each value.
pub(super) struct Index<'a> {
    constants: HashMap<&'a str, &'a TensorProto>,
    producers: HashMap<&'a str, usize>,
    readers: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Index<'a> {
    pub(super) fn new(graph: &'a GraphProto) -> Self {
        let mut this = Self {
            constants: graph.initializer.iter().map(|t| (t.name(), t)).collect(),
            producers: HashMap::new(),
            readers: HashMap::new(),
        };
        for (id, node) in graph.node.iter().enumerate() {
            for input in node.input.iter().filter(|name| !name.is_empty()) {
                let readers = this.readers.entry(input).or_default();
                // A node that reads a value twice is one reader.
                if readers.last() != Some(&id) {
                    readers.push(id);
                }
            }
            for output in &node.output {
                this.producers.insert(output, id);
            }
        }
        this
    }

    /// The constant of that name.
    pub(super) fn constant(&self, name: &str) -> Option<&'a TensorProto> {
        self.constants.get(name).copied()
    }

    /// The node that makes a value; `None` for inputs and constants.
    pub(super) fn producer(&self, name: &str) -> Option<usize> {
        self.producers.get(name).copied()
    }

    /// The nodes that read a value, in order.
    pub(super) fn readers(&self, name: &str) -> &[usize] {
        self.readers.get(name).map_or(&[], Vec::as_slice)
    }
}

/// Names in use, to find new ones.
pub(super) struct Names(HashSet<String>);

impl Names {
    pub(super) fn of(graph: &GraphProto) -> Self {
        let values = graph.node.iter().flat_map(|n| n.input.iter().chain(&n.output)).cloned();
        let constants = graph.initializer.iter().map(|t| t.name().to_owned());
        let ends = graph.input.iter().chain(&graph.output).map(|info| info.name().to_owned());
        Self(values.chain(constants).chain(ends).collect())
    }

    /// `stem` itself, or with a number behind it if it is taken.
    pub(super) fn fresh(&mut self, stem: &str) -> String {
        let mut name = stem.to_owned();
        let mut count = 2;
        while !self.0.insert(name.clone()) {
            name = format!("{stem}.{count}");
            count += 1;
        }
        name
    }
}

/// Turns `Constant` nodes that hold a tensor or a float into initializers, so that a rewrite
/// finds constants in one place; refuses nodes that hold graphs and operators that are not ONNX's.
pub(super) fn plain(graph: &GraphProto) -> Result<GraphProto, OnnxError> {
    let mut plain = GraphProto { node: Vec::new(), ..graph.clone() };
    for node in &graph.node {
        if !is_standard(node) {
            let reason = format!("is of the domain \"{}\", which is not known here", node.domain());
            return Err(unsupported(node, reason));
        }
        if node.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty()) {
            return Err(unsupported(node, "holds a graph of its own; export without control flow"));
        }
        let tensor = match (node.op_type(), node.output.as_slice(), node.attribute.as_slice()) {
            ("Constant", [output], [value]) => match (value.name(), &value.t) {
                ("value", Some(tensor)) => {
                    Some(TensorProto { name: Some(output.clone()), ..(**tensor).clone() })
                }
                ("value_float", _) => {
                    Some(float_tensor(output, &[], &[value.f()], DataType::Float))
                }
                _ => None,
            },
            _ => None,
        };
        match tensor {
            Some(tensor) => plain.initializer.push(tensor),
            None => plain.node.push(node.clone()),
        }
    }
    Ok(plain)
}

/// Removes constants that no node reads.
pub(super) fn drop_unread(graph: &mut GraphProto) {
    let read: HashSet<&str> =
        graph.node.iter().flat_map(|n| &n.input).map(String::as_str).collect();
    let ends: HashSet<&str> = graph.output.iter().map(ValueInfoProto::name).collect();
    let kept = |t: &TensorProto| read.contains(t.name()) || ends.contains(t.name());
    let keep: Vec<bool> = graph.initializer.iter().map(kept).collect();
    let mut keep = keep.into_iter();
    graph.initializer.retain(|_| keep.next().unwrap_or(true));
}

/// Types of the values of a graph without control flow, as far as they are known.
pub(super) fn value_types(graph: &GraphProto) -> HashMap<String, DataType> {
    let mut types: HashMap<String, DataType> = HashMap::new();
    for info in &graph.input {
        if let Some(tensor) = tensor_type(info) {
            let kind = DataType::try_from(tensor.elem_type()).unwrap_or(DataType::Undefined);
            types.insert(info.name().to_owned(), kind);
        }
    }
    for tensor in &graph.initializer {
        types.insert(tensor.name().to_owned(), data_type(tensor));
    }
    for node in &graph.node {
        let of = |place: usize| {
            node.input
                .get(place)
                .and_then(|name| types.get(name))
                .copied()
                .unwrap_or(DataType::Undefined)
        };
        let kind = match node.op_type() {
            "Shape" | "Size" | "ArgMax" | "ArgMin" | "NonZero" => DataType::Int64,
            "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "Not" | "And"
            | "Or" | "Xor" | "IsNaN" | "IsInf" => DataType::Bool,
            "Cast" => {
                DataType::try_from(int_of(node, "to", 0) as i32).unwrap_or(DataType::Undefined)
            }
            "ConstantOfShape" => attribute(node, "value")
                .and_then(|a| a.t.as_deref())
                .map_or(DataType::Float, data_type),
            "QuantizeLinear" if node.input.len() > 2 => of(2),
            "QuantizeLinear" => DataType::Uint8,
            "DequantizeLinear" | "Where" => of(1),
            "Constant" => match node.attribute.first().map(AttributeProto::name) {
                Some("value_int" | "value_ints") => DataType::Int64,
                Some("value_floats") => DataType::Float,
                _ => DataType::Undefined,
            },
            _ => of(0),
        };
        for (place, output) in node.output.iter().enumerate() {
            let kind = match (node.op_type(), place) {
                ("MaxPool" | "TopK", 1) => DataType::Int64,
                ("Dropout", 1) => DataType::Bool,
                _ => kind,
            };
            types.insert(output.clone(), kind);
        }
    }
    types
}
