//! Half precision: FP16 or BF16 weights and maps, with `Cast`s at input and output.
//!
//! Layers that hold up in half precision are listed; every other one stays in float32 between
//! casts, and so do layers whose constants half precision cannot hold. Sums over many numbers
//! (norms, image-wide means, softmax) and what is computed from them before the division are never
//! rounded: squares overflow FP16, and BF16 has eight bits.

use std::collections::{HashMap, HashSet};
use std::fmt;

use half::{bf16, f16};

use super::graph::{
    Index, Names, data_type, drop_unread, float_tensor, floats, int, label, node, plain,
    unsupported, value_types,
};
use super::proto::tensor_proto::DataType;
use super::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto};
use super::{Model, OnnxError, opset};

/// A 16-bit floating point format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Half {
    /// IEEE 754: 11 bits of precision, 6e-5 to 65504.
    F16,
    /// The upper half of a float32: 8 bits of precision, the range of float32.
    Bf16,
}

impl Half {
    pub(super) const fn data_type(self) -> DataType {
        match self {
            Self::F16 => DataType::Float16,
            Self::Bf16 => DataType::Bfloat16,
        }
    }

    /// The nearest number of this format.
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }

    /// Largest relative error of a constant, over each of its output channels, that is accepted:
    /// twice that of a number that is rounded well within the range.
    const fn tolerance(self) -> f64 {
        match self {
            Self::F16 => 1.0 / 1024.0,
            Self::Bf16 => 1.0 / 128.0,
        }
    }
}

impl fmt::Display for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F16 => "fp16",
            Self::Bf16 => "bf16",
        })
    }
}

/// Why a layer stays in float32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The operator is not one of those that hold up in half precision.
    Operator,
    /// It works on a sum or norm that is kept in float32.
    FollowsSum,
    /// A constant has numbers beyond the format's largest one.
    Overflow {
        /// Name of the constant.
        constant: String,
    },
    /// A constant has channels whose numbers are so small that the format loses their digits.
    Underflow {
        /// Name of the constant.
        constant: String,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("the operator needs float32"),
            Self::FollowsSum => f.write_str("it works on a sum in float32"),
            Self::Overflow { constant } => write!(f, "\"{constant}\" has numbers too large"),
            Self::Underflow { constant } => write!(f, "\"{constant}\" has numbers too small"),
        }
    }
}

/// A layer that stays in float32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Name of the node.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// Why.
    pub reason: Reason,
}

/// A network in half precision.
#[derive(Debug, Clone, PartialEq)]
pub struct Halved {
    /// The network; input and output are float32.
    pub model: Model,
    /// The layers that stay in float32, in order.
    pub kept: Vec<Kept>,
}

/// Stores and computes a float32 network in half precision, as far as that is sound.
///
/// Quantised networks keep their 8-bit numbers; what lies between those becomes half precision.
/// The operators are raised to version 19 for that, and to version 22 for BF16.
///
/// # Errors
/// [`OnnxError::Unsupported`] for control flow, operators of other domains and networks that hold
/// half precision already.
pub fn to_half(model: &Model, half: Half) -> Result<Halved, OnnxError> {
    let quantized = model.graph.node.iter().any(|n| n.op_type() == "QuantizeLinear");
    let version = match half {
        Half::Bf16 => 22,
        Half::F16 if quantized => 19,
        Half::F16 => model.opset(),
    };
    let model = opset::raise(model, version)?;
    let graph = plain(&model.graph)?;
    let types = value_types(&graph);
    if let Some(node) = graph.node.iter().find(|n| {
        n.output.iter().any(|o| {
            types.get(o).is_some_and(|&kind| kind.is_fraction() && kind != DataType::Float)
        })
    }) {
        let reason = "computes in half precision already; give the float32 network";
        return Err(unsupported(node, reason));
    }
    let index = Index::new(&graph);
    let choices = choose(&graph, &index, &types, half)?;
    let kept = graph
        .node
        .iter()
        .zip(&choices)
        .filter_map(|(node, choice)| match choice {
            Choice::Single(reason) => Some(Kept {
                node: label(node).to_owned(),
                op: node.op_type().to_owned(),
                reason: reason.clone(),
            }),
            _ => None,
        })
        .collect();
    let emitted = Emitter::new(&graph, &types, half).run(&choices)?;
    Ok(Halved { model: model.with_graph(emitted)?, kept })
}

/// How a node computes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    Half,
    Single(Reason),
    /// It reads and gives no fractions.
    Other,
}

/// Operators that hold up in half precision: each number of theirs is a sum of a few products
/// (which runtimes add up in float32), or one of their input's.
fn holds_up(op: &str) -> bool {
    matches!(
        op,
        "Conv"
            | "ConvTranspose"
            | "Gemm"
            | "MatMul"
            | "BatchNormalization"
            | "Relu"
            | "LeakyRelu"
            | "Clip"
            | "Sigmoid"
            | "HardSigmoid"
            | "HardSwish"
            | "Tanh"
            | "Add"
            | "Sub"
            | "Mul"
            | "Max"
            | "Min"
            | "Concat"
            | "Split"
            | "Slice"
            | "Pad"
            | "Gather"
            | "Expand"
            | "MaxPool"
            | "AveragePool"
            | "GlobalMaxPool"
            | "Resize"
            | "Reshape"
            | "Flatten"
            | "Squeeze"
            | "Unsqueeze"
            | "Transpose"
            | "Identity"
            | "Where"
            | "QuantizeLinear"
            | "DequantizeLinear"
    )
}

/// Operators that work on each number of a sum by itself, so that rounding before them is as
/// harmful as rounding the sum.
fn is_elementwise(op: &str) -> bool {
    matches!(op, "Clip" | "Max" | "Min" | "Add" | "Sub" | "Mul" | "Sqrt" | "Pow" | "Reciprocal")
}

fn is_sum(op: &str) -> bool {
    op.starts_with("Reduce") && !matches!(op, "ReduceMax" | "ReduceMin")
}

fn choose(
    graph: &GraphProto,
    index: &Index<'_>,
    types: &HashMap<String, DataType>,
    half: Half,
) -> Result<Vec<Choice>, OnnxError> {
    let is_fraction = |name: &String| types.get(name).is_some_and(|kind| kind.is_fraction());
    // Values that are sums, or computed from one number by number.
    let mut sums: HashSet<&str> = HashSet::new();
    let mut choices = Vec::with_capacity(graph.node.len());
    for node in &graph.node {
        let op = node.op_type();
        if !node.input.iter().chain(&node.output).any(is_fraction) {
            choices.push(Choice::Other);
            continue;
        }
        let follows = node.input.iter().any(|i| sums.contains(i.as_str()));
        if is_sum(op) || (follows && is_elementwise(op)) {
            sums.extend(node.output.iter().map(String::as_str));
        }
        let choice = if !holds_up(op) {
            Choice::Single(Reason::Operator)
        } else if follows && is_elementwise(op) {
            Choice::Single(Reason::FollowsSum)
        } else {
            match unfit(node, index, half)? {
                Some(reason) => Choice::Single(reason),
                None => Choice::Half,
            }
        };
        choices.push(choice);
    }
    Ok(choices)
}

/// The first constant of a node that the format cannot hold.
fn unfit(node: &NodeProto, index: &Index<'_>, half: Half) -> Result<Option<Reason>, OnnxError> {
    for (place, input) in node.input.iter().enumerate() {
        let Some(tensor) = index.constant(input) else { continue };
        if !is_converted(node, place) || !data_type(tensor).is_fraction() {
            continue;
        }
        let values = floats(tensor)?;
        let constant = || input.clone();
        if values.iter().any(|&v| v.is_finite() && !half.round(v).is_finite()) {
            return Ok(Some(Reason::Overflow { constant: constant() }));
        }
        // A bias is added to a map: it is as precise as that, whatever its own size.
        let addend = place == 2 && matches!(node.op_type(), "Conv" | "ConvTranspose" | "Gemm");
        if !addend && loses_digits(tensor, &values, half) {
            return Ok(Some(Reason::Underflow { constant: constant() }));
        }
    }
    Ok(None)
}

/// Whether an output channel of the constant loses more than the format's precision.
fn loses_digits(tensor: &TensorProto, values: &[f32], half: Half) -> bool {
    let channels = match tensor.dims.as_slice() {
        // The channels of a convolution; a matrix or vector is looked at as a whole.
        [channels, _, _, _] => (*channels as usize).max(1),
        _ => 1,
    };
    let per_channel = (values.len() / channels).max(1);
    values.chunks(per_channel).any(|channel| {
        let energy: f64 = channel.iter().map(|&v| f64::from(v).powi(2)).sum();
        let lost: f64 = channel.iter().map(|&v| f64::from(v - half.round(v)).powi(2)).sum();
        lost > energy * half.tolerance().powi(2)
    })
}

/// Whether an input takes the type of the node: the sizes and scales of `Resize` and the zero
/// points of quantisation have types of their own.
fn is_converted(node: &NodeProto, place: usize) -> bool {
    node.op_type() != "Resize" || place == 0
}

/// Writes the graph anew, node by node, with casts where the types of maker and reader differ.
struct Emitter<'a> {
    graph: &'a GraphProto,
    types: &'a HashMap<String, DataType>,
    half: Half,
    names: Names,
    /// The network's outputs.
    ends: HashSet<&'a str>,
    constants: HashMap<&'a str, &'a TensorProto>,
    /// Name of a value in each of the two types, once it has one.
    made: HashMap<(&'a str, bool), String>,
    out: GraphProto,
}

impl<'a> Emitter<'a> {
    fn new(graph: &'a GraphProto, types: &'a HashMap<String, DataType>, half: Half) -> Self {
        let out = GraphProto {
            node: Vec::with_capacity(graph.node.len()),
            // Types of inner values that may change.
            value_info: Vec::new(),
            ..graph.clone()
        };
        let constants = graph.initializer.iter().map(|t| (t.name(), t)).collect();
        Self {
            graph,
            types,
            half,
            names: Names::of(graph),
            ends: graph.output.iter().map(ValueInfoProto::name).collect(),
            constants,
            made: HashMap::new(),
            out,
        }
    }

    fn run(mut self, choices: &[Choice]) -> Result<GraphProto, OnnxError> {
        let graph = self.graph;
        for (node, choice) in graph.node.iter().zip(choices) {
            let in_half = *choice == Choice::Half;
            let mut emitted = node.clone();
            for (place, (input, new)) in node.input.iter().zip(&mut emitted.input).enumerate() {
                if self.is_fraction(input) {
                    *new = self.value(input, in_half && is_converted(node, place))?;
                }
            }
            for (output, new) in node.output.iter().zip(&mut emitted.output) {
                if in_half && self.is_fraction(output) && self.ends.contains(output.as_str()) {
                    *new = self.names.fresh(&format!("{output}.{}", self.half));
                }
                self.made.insert((output, in_half), new.clone());
            }
            self.out.node.push(emitted);
        }
        for info in &graph.output {
            if self.is_fraction(info.name()) {
                self.value(info.name(), false)?;
            }
        }
        drop_unread(&mut self.out);
        Ok(self.out)
    }

    fn is_fraction(&self, name: &str) -> bool {
        self.types.get(name).is_some_and(|kind| kind.is_fraction())
    }

    /// Name of a value in the wanted type; a cast or a converted constant is added on first use.
    fn value(&mut self, name: &'a str, in_half: bool) -> Result<String, OnnxError> {
        if let Some(made) = self.made.get(&(name, in_half)) {
            return Ok(made.clone());
        }
        if !in_half && !self.made.contains_key(&(name, true)) {
            // Constants and inputs are float32 from the start.
            return Ok(name.to_owned());
        }
        let kind = if in_half { self.half.data_type() } else { DataType::Float };
        let stem = if in_half { self.half.to_string() } else { "fp32".to_owned() };
        // The interface keeps its names for float32.
        let made = if !in_half && self.ends.contains(name) {
            name.to_owned()
        } else {
            self.names.fresh(&format!("{name}.{stem}"))
        };
        if let Some(tensor) = self.constants.get(name) {
            let values = floats(tensor)?;
            self.out.initializer.push(float_tensor(&made, &tensor.dims, &values, kind));
        } else {
            let source = self.made.get(&(name, !in_half)).map_or(name, String::as_str);
            let to = vec![int("to", i64::from(kind as i32))];
            self.out.node.push(node("Cast", &[source], &made, to));
        }
        self.made.insert((name, in_half), made.clone());
        Ok(made)
    }
}

#[cfg(test)]
mod tests;
