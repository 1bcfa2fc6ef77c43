//! Moves a network to a newer version of the ONNX operators.
//!
//! Quantised values in half precision need version 19, convolutions in BF16 version 22. Between 13
//! and 22 the operators of an embedder changed in two ways that matter: reductions take their
//! axes as an input since 18, and types were added. Other operators are refused, not guessed.

use super::graph::{Names, attribute, drop_unread, raw_tensor, unsupported};
use super::proto::GraphProto;
use super::proto::tensor_proto::DataType;
use super::{Model, OnnxError};

/// Oldest version that is moved: the first with per-channel quantisation.
const OLDEST: i64 = 13;
/// Newest version to which networks are moved.
const NEWEST: i64 = 22;
/// Since this version, reductions take their axes as an input.
const AXES_AS_INPUT: i64 = 18;

/// The network with at least this version of the operators, up to 22.
///
/// # Errors
/// [`OnnxError::Opset`] below version 13, [`OnnxError::Unsupported`] for operators whose changes
/// are not known here.
pub fn raise(model: &Model, version: i64) -> Result<Model, OnnxError> {
    let (found, version) = (model.opset(), version.min(NEWEST));
    if found >= version {
        return Ok(model.clone());
    }
    if found < OLDEST {
        return Err(OnnxError::Opset { found, needed: OLDEST });
    }
    let mut graph = model.graph.clone();
    rewrite(&mut graph, found, version)?;
    let mut raised = model.clone();
    for set in &mut raised.proto.opset_import {
        if matches!(set.domain(), "" | "ai.onnx") {
            set.version = Some(version);
        }
    }
    // The file format grows with the operators: a reader checks that the pair can exist.
    let format = if version >= 21 { 10 } else { 9 };
    raised.proto.ir_version = Some(raised.proto.ir_version().max(format));
    raised.with_graph(graph)
}

fn rewrite(graph: &mut GraphProto, from: i64, to: i64) -> Result<(), OnnxError> {
    let mut names = Names::of(graph);
    let mut constants = Vec::new();
    for node in &mut graph.node {
        match node.op_type() {
            "ReduceL2" | "ReduceL1" | "ReduceMean" | "ReduceMax" | "ReduceMin"
            | "ReduceSumSquare"
                if from < AXES_AS_INPUT && to >= AXES_AS_INPUT =>
            {
                if let Some(axes) = attribute(node, "axes") {
                    let name = names.fresh(&format!("{}.axes", super::label(node)));
                    let bytes = axes.ints.iter().flat_map(|axis| axis.to_le_bytes()).collect();
                    let sides = [axes.ints.len() as i64];
                    constants.push(raw_tensor(&name, &sides, DataType::Int64, bytes));
                    node.input.push(name);
                    node.attribute.retain(|a| a.name() != "axes");
                }
            }
            "Conv" | "ConvTranspose" | "Relu" | "Clip" | "LeakyRelu" | "Sigmoid"
            | "HardSigmoid" | "HardSwish" | "Tanh" | "Add" | "Sub" | "Mul" | "Div" | "Sqrt"
            | "Max" | "Min" | "Concat" | "MaxPool" | "GlobalAveragePool" | "GlobalMaxPool"
            | "MatMul" | "Gemm" | "Cast" | "QuantizeLinear" | "DequantizeLinear" | "ReduceSum"
            | "ReduceL2" | "ReduceMean" | "Softmax" | "Reshape" | "Transpose" | "Flatten"
            | "Identity" | "Squeeze" | "Unsqueeze" | "Shape" | "Erf" => {}
            // Version 19 rounds the last window of a pool differently when sizes are rounded up.
            "AveragePool" if attribute(node, "ceil_mode").is_none() => {}
            op => {
                let reason = format!(
                    "cannot be moved from version {from} of the operators to {to}; \
                     export with version {to}, or choose FP16 if {op} is needed"
                );
                return Err(unsupported(node, reason));
            }
        }
    }
    graph.initializer.extend(constants);
    drop_unread(graph);
    Ok(())
}
