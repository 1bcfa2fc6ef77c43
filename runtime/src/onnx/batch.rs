//! The batch: a network exported for one image becomes one for any number.

use std::collections::HashSet;

use super::graph::{int_of, label, tensor_type, tensor_type_mut};
use super::proto::tensor_shape_proto::{Dimension, dimension};
use super::proto::{GraphProto, NodeProto, ValueInfoProto};
use super::shape::{Shape, infer, place};
use super::{Model, OnnxError, declared};

/// What the open side is called in the graph.
const NAME: &str = "batch";

/// The network for any number of images at once; `None` where it is that already.
///
/// # Errors
/// [`OnnxError::Size`] for a network that was exported for a fixed number of several images, and
/// [`OnnxError::Unsupported`] where it does not follow from the operators that every image is computed alone.
pub fn open_batch(mut model: Model) -> Result<Option<Model>, OnnxError> {
    let input = model.input().to_owned();
    let shape = model.true_inputs().find_map(|info| tensor_type(info).and_then(declared));
    match shape.as_ref().and_then(|sides| *sides.first()?) {
        None => return Ok(None),
        Some(1) => {}
        Some(images) => {
            return Err(OnnxError::Size {
                wanted: "any number of images".to_owned(),
                reason: format!("it was exported for {images} at once"),
            });
        }
    }
    // Two numbers, because one of them may happen to be a side of a weight.
    for images in [2, 3] {
        check(&mut model.graph, &input, images)?;
    }
    let open = dimension::Value::DimParam(NAME.to_owned());
    let graph = &mut model.graph;
    for info in graph.input.iter_mut().filter(|info| info.name() == input) {
        set_first(info, open.clone());
    }
    for info in &mut graph.output {
        set_first(info, open.clone());
    }
    // Shapes of inner values, for one image.
    graph.value_info.clear();
    Ok(Some(model))
}

/// Every value that comes from the images must have one part for each of them, in front.
fn check(graph: &mut GraphProto, input: &str, images: i64) -> Result<(), OnnxError> {
    for info in graph.input.iter_mut().filter(|info| info.name() == input) {
        set_first(info, dimension::Value::DimValue(images));
    }
    let shapes = infer(graph);
    let mut of_images = HashSet::from([input]);
    for node in &graph.node {
        if !node.input.iter().any(|name| of_images.contains(name.as_str())) {
            continue;
        }
        let apart = |shape: &Shape| {
            shape.first() == Some(&Some(images)) && !works_along_the_batch(node, shape.len())
        };
        if !node.output.first().and_then(|name| shapes.get(name)).is_some_and(apart) {
            return Err(OnnxError::Unsupported {
                node: label(node).to_owned(),
                op: node.op_type().to_owned(),
                reason: "may not keep the images of a batch apart".to_owned(),
            });
        }
        of_images.extend(node.output.iter().map(String::as_str));
    }
    Ok(())
}

/// Operators whose result has the shape of their input, but mixes it along an axis.
fn works_along_the_batch(node: &NodeProto, rank: usize) -> bool {
    matches!(node.op_type(), "Softmax" | "QuantizeLinear" | "DequantizeLinear")
        && place(int_of(node, "axis", 1), rank) == Some(0)
}

fn set_first(info: &mut ValueInfoProto, value: dimension::Value) {
    let shape = tensor_type_mut(info).and_then(|tensor| tensor.shape.as_mut());
    if let Some(first) = shape.and_then(|shape| shape.dim.first_mut()) {
        *first = Dimension { value: Some(value), ..Dimension::default() };
    }
}
