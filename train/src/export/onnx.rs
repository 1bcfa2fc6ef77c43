//! Writes a network as an ONNX file.
//!
//! Input `image` `[1, 3, H, W]`, normalised as the network expects; output `embedding`
//! `[1, dim, H / 8, W / 8]`, unit length over the dimensions. Batch normalisations are folded
//! into the convolutions before them.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use prost::Message as _;
use tch::{Device, Kind, Tensor, no_grad};
use thiserror::Error;

use super::onnx_proto as proto;
use super::onnx_proto::attribute_proto::AttributeType;
use super::onnx_proto::{tensor_shape_proto, type_proto};
use crate::network::{BATCH_NORM_EPSILON, Conv, NORM_EPSILON, Network, NodeId, Op};

/// Name of the graph's input.
pub const INPUT: &str = "image";
/// Name of the graph's output.
pub const OUTPUT: &str = "embedding";
/// Version of the operators; 17 is understood by every runtime since 2022.
const OPSET: i64 = 17;
/// Version of the file format that came with [`OPSET`].
const IR_VERSION: i64 = 8;

/// Why a network could not be exported.
#[derive(Debug, Error)]
pub enum ExportError {
    /// Pyramid pooling depends on the size of the image.
    #[error(
        "the pyramid pooling of this network cannot be exported for every image size; give height and width"
    )]
    NeedsFixedSize,
    /// The size is no multiple of the stride.
    #[error("export size {width}x{height} is not made of positive multiples of {stride}; round it")]
    Size {
        /// Height in pixels.
        height: u32,
        /// Width in pixels.
        width: u32,
        /// Side of an embedding's cell in pixels.
        stride: u32,
    },
    /// A variable could not be read.
    #[error("cannot read the weights of `{name}`: {source}")]
    Weights {
        /// The layer.
        name: String,
        /// What libtorch says.
        source: tch::TchError,
    },
    /// The file could not be written.
    #[error("cannot write {path}: {source}; check the folder and its free space")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// Image sizes that the exported graph takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportSize {
    /// Every multiple of 8. Not possible for the paper's pyramid pooling.
    Dynamic,
    /// This size only, in pixels, multiples of 8.
    Fixed {
        /// Height in pixels.
        height: u32,
        /// Width in pixels.
        width: u32,
    },
}

/// Writes the network to `path`, under a temporary name first.
///
/// # Errors
/// [`ExportError`].
pub fn export_onnx(network: &Network, path: &Path, size: ExportSize) -> Result<(), ExportError> {
    let model = no_grad(|| build(network, size))?;
    let bytes = model.encode_to_vec();
    conceptseg::files::write_atomic(path, |w| w.write_all(&bytes))
        .map_err(|source| ExportError::Write { path: path.to_owned(), source })
}

fn build(network: &Network, size: ExportSize) -> Result<proto::ModelProto, ExportError> {
    let stride = network.stride() as u32;
    let (grid, sides) = match size {
        ExportSize::Dynamic => {
            (None, ["height", "width", "grid_height", "grid_width"].map(Side::Named))
        }
        ExportSize::Fixed { height, width } => {
            let whole = |side: u32| side > 0 && side.is_multiple_of(stride);
            if !whole(height) || !whole(width) {
                return Err(ExportError::Size { height, width, stride });
            }
            let [h, w] = [i64::from(height), i64::from(width)];
            let [gh, gw] = [height / stride, width / stride].map(i64::from);
            (Some([gh, gw]), [h, w, gh, gw].map(Side::Known))
        }
    };
    let mut writer = Writer { network, grid, graph: proto::GraphProto::default() };
    writer.graph.name = Some("conceptseg".to_owned());
    writer.nodes()?;
    let [height, width, grid_height, grid_width] = sides;
    let one = Side::Known(1);
    writer.graph.input = vec![value_info(INPUT, [one, Side::Known(3), height, width])];
    let dim = Side::Known(network.dim());
    writer.graph.output = vec![value_info(OUTPUT, [one, dim, grid_height, grid_width])];
    Ok(proto::ModelProto {
        ir_version: Some(IR_VERSION),
        opset_import: vec![proto::OperatorSetIdProto {
            domain: Some(String::new()),
            version: Some(OPSET),
        }],
        producer_name: Some("conceptseg-train".to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        graph: Some(writer.graph),
    })
}

/// A side of a tensor.
#[derive(Debug, Clone, Copy)]
enum Side {
    Known(i64),
    Named(&'static str),
}

fn value_info(name: &str, sides: [Side; 4]) -> proto::ValueInfoProto {
    let dimension = |side| {
        let value = match side {
            Side::Known(n) => tensor_shape_proto::dimension::Value::DimValue(n),
            Side::Named(name) => tensor_shape_proto::dimension::Value::DimParam(name.to_owned()),
        };
        tensor_shape_proto::Dimension { value: Some(value) }
    };
    let shape = proto::TensorShapeProto { dim: sides.map(dimension).to_vec() };
    let tensor = type_proto::Tensor {
        elem_type: Some(proto::tensor_proto::DataType::Float as i32),
        shape: Some(shape),
    };
    proto::ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(proto::TypeProto { value: Some(type_proto::Value::TensorType(tensor)) }),
    }
}

/// Builds the graph; node `i` of the layer graph has the output `n{i}`.
struct Writer<'a> {
    network: &'a Network,
    /// Height and width of the embedding's grid, if they are fixed.
    grid: Option<[i64; 2]>,
    graph: proto::GraphProto,
}

impl Writer<'_> {
    fn nodes(&mut self) -> Result<(), ExportError> {
        let graph = &self.network.graph;
        let nodes = graph.nodes();
        // Names of the outputs; a folded normalisation has that of its convolution.
        let mut names: Vec<String> = Vec::with_capacity(nodes.len());
        // Side of the map in bins, for what follows an adaptive pool.
        let mut pooled: Vec<Option<i64>> = Vec::with_capacity(nodes.len());
        for (id, node) in nodes.iter().enumerate() {
            let inputs: Vec<&str> = node.inputs.iter().map(|&i| names[i].as_str()).collect();
            let mut bins = node.inputs.first().and_then(|&i| pooled[i]);
            let mut out = format!("n{id}");
            match &node.op {
                Op::Input => INPUT.clone_into(&mut out),
                Op::Conv(conv) => self.conv(id, conv, inputs[0], &out)?,
                Op::BatchNorm { .. } => inputs[0].clone_into(&mut out),
                Op::Relu => self.node("Relu", &inputs, &out, vec![]),
                Op::Relu6 => {
                    let low = self.scalar("zero", 0.0);
                    let high = self.scalar("six", 6.0);
                    self.node("Clip", &[inputs[0], &low, &high], &out, vec![]);
                }
                Op::Add => self.node("Add", &inputs, &out, vec![]),
                Op::Concat => self.node("Concat", &inputs, &out, vec![int("axis", 1)]),
                Op::MaxPool { end_padding } => {
                    let before = i64::from(!end_padding);
                    let attributes = vec![
                        ints("kernel_shape", &[3, 3]),
                        ints("strides", &[2, 2]),
                        ints("pads", &[before, before, 1, 1]),
                    ];
                    self.node("MaxPool", &inputs, &out, attributes);
                }
                Op::GlobalAveragePool => self.node("GlobalAveragePool", &inputs, &out, vec![]),
                Op::AdaptiveAveragePool { bins: count } => {
                    let grid = self.grid.ok_or(ExportError::NeedsFixedSize)?;
                    let [rows, columns] = grid.map(|cells| pool_matrix(*count, cells));
                    self.sandwich(inputs[0], &rows, &columns, &out);
                    bins = Some(*count);
                }
                Op::ResizeLike => {
                    let (Some([h, w]), Some(from)) = (self.grid, bins) else {
                        return Err(ExportError::NeedsFixedSize);
                    };
                    let [rows, columns] = [h, w].map(|cells| resize_matrix(cells, from));
                    self.sandwich(inputs[0], &rows, &columns, &out);
                    bins = None;
                }
                Op::L2Normalize => self.normalize(inputs[0], &out),
            }
            names.push(out);
            pooled.push(bins);
        }
        self.normalize(&names[self.network.output()], OUTPUT);
        Ok(())
    }

    /// A convolution, with the batch normalisation that is its only reader, if there is one.
    fn conv(&mut self, id: NodeId, conv: &Conv, input: &str, out: &str) -> Result<(), ExportError> {
        let variables = &self.network.variables;
        let mut weight = variables.tensor(&conv.name, "weight").detach();
        let mut bias = conv.bias.then(|| variables.tensor(&conv.name, "bias").detach());
        let follower = self.network.graph.nodes().iter().find_map(|node| match &node.op {
            Op::BatchNorm { name, .. } if node.inputs == [id] => Some(name),
            _ => None,
        });
        if let Some(name) = follower {
            let [gamma, beta, mean, variance] = ["weight", "bias", "running_mean", "running_var"]
                .map(|suffix| variables.tensor(name, suffix).detach().to_kind(Kind::Double));
            let scale = gamma / (variance + BATCH_NORM_EPSILON).sqrt();
            weight = weight.to_kind(Kind::Double) * scale.view([-1, 1, 1, 1]);
            let shift = match bias {
                Some(bias) => bias.to_kind(Kind::Double) - mean,
                None => -mean,
            };
            bias = Some(beta + shift * scale);
        }
        let weight_name = format!("{}.weight", conv.name);
        self.variable(&weight_name, &weight)?;
        let mut inputs = vec![input, &weight_name];
        let bias_name = format!("{}.bias", conv.name);
        if let Some(bias) = bias {
            self.variable(&bias_name, &bias)?;
            inputs.push(&bias_name);
        }
        let (before, after) = (conv.pad_before, conv.pad_after);
        let attributes = vec![
            ints("kernel_shape", &[conv.kernel; 2]),
            ints("strides", &[conv.stride; 2]),
            ints("dilations", &[conv.dilation; 2]),
            ints("pads", &[before, before, after, after]),
            int("group", conv.groups),
        ];
        self.node("Conv", &inputs, out, attributes);
        Ok(())
    }

    /// `rows · x · columnsᵀ` for each channel, both given as `[out, in]` row-major.
    fn sandwich(&mut self, x: &str, rows: &Matrix, columns: &Matrix, out: &str) {
        let columns_name = format!("{out}.columns");
        let rows_name = format!("{out}.rows");
        let half = format!("{out}.half");
        let mut transposed = Vec::with_capacity(columns.values.len());
        for i in 0..columns.inputs {
            transposed.extend((0..columns.outputs).map(|o| columns.values[o * columns.inputs + i]));
        }
        self.constant(&columns_name, &[columns.inputs as i64, columns.outputs as i64], &transposed);
        self.constant(&rows_name, &[rows.outputs as i64, rows.inputs as i64], &rows.values);
        self.node("MatMul", &[x, &columns_name], &half, vec![]);
        self.node("MatMul", &[&rows_name, &half], out, vec![]);
    }

    /// Each cell's vector divided by its length.
    fn normalize(&mut self, x: &str, out: &str) {
        let length = format!("{out}.length");
        let bounded = format!("{out}.divisor");
        let smallest = self.scalar("norm_epsilon", NORM_EPSILON as f32);
        self.node("ReduceL2", &[x], &length, vec![ints("axes", &[1]), int("keepdims", 1)]);
        self.node("Clip", &[&length, &smallest], &bounded, vec![]);
        self.node("Div", &[x, &bounded], out, vec![]);
    }

    fn node(
        &mut self,
        op: &str,
        inputs: &[&str],
        out: &str,
        attribute: Vec<proto::AttributeProto>,
    ) {
        self.graph.node.push(proto::NodeProto {
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec![out.to_owned()],
            name: Some(format!("{op}_{out}")),
            op_type: Some(op.to_owned()),
            attribute,
        });
    }

    /// A number that several nodes may share.
    fn scalar(&mut self, name: &str, value: f32) -> String {
        if !self.graph.initializer.iter().any(|t| t.name.as_deref() == Some(name)) {
            self.constant(name, &[], &[value]);
        }
        name.to_owned()
    }

    fn variable(&mut self, name: &str, tensor: &Tensor) -> Result<(), ExportError> {
        let flat = tensor.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view([-1]);
        let values = Vec::<f32>::try_from(flat)
            .map_err(|source| ExportError::Weights { name: name.to_owned(), source })?;
        self.constant(name, &tensor.size(), &values);
        Ok(())
    }

    fn constant(&mut self, name: &str, dims: &[i64], values: &[f32]) {
        self.graph.initializer.push(proto::TensorProto {
            dims: dims.to_vec(),
            data_type: Some(proto::tensor_proto::DataType::Float as i32),
            name: Some(name.to_owned()),
            raw_data: Some(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        });
    }
}

fn int(name: &str, value: i64) -> proto::AttributeProto {
    proto::AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::Int as i32),
        i: Some(value),
        ..proto::AttributeProto::default()
    }
}

fn ints(name: &str, values: &[i64]) -> proto::AttributeProto {
    proto::AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::Ints as i32),
        ints: values.to_vec(),
        ..proto::AttributeProto::default()
    }
}

/// A linear map of one axis, `[outputs, inputs]` row-major.
struct Matrix {
    outputs: usize,
    inputs: usize,
    values: Vec<f32>,
}

/// Means over `bins` windows of `cells` cells; window `i` runs from `floor(i·cells / bins)`
/// to `ceil((i + 1)·cells / bins)` (`PyTorch`'s adaptive pooling), so that they may overlap.
fn pool_matrix(bins: i64, cells: i64) -> Matrix {
    let (outputs, inputs) = (bins as usize, cells as usize);
    let mut values = vec![0.0; outputs * inputs];
    for (i, row) in values.chunks_exact_mut(inputs).enumerate() {
        let start = i * inputs / outputs;
        let end = ((i + 1) * inputs).div_ceil(outputs);
        row[start..end].fill(1.0 / (end - start) as f32);
    }
    Matrix { outputs, inputs, values }
}

/// Bilinear interpolation of `bins` values to `cells` (`align_corners = false`): the position
/// of cell `i` is `(i + 0.5) · bins / cells - 0.5`, clamped at 0, the last value repeats.
fn resize_matrix(cells: i64, bins: i64) -> Matrix {
    let (outputs, inputs) = (cells as usize, bins as usize);
    let mut values = vec![0.0; outputs * inputs];
    for (i, row) in values.chunks_exact_mut(inputs).enumerate() {
        let position = ((i as f64 + 0.5) * bins as f64 / cells as f64 - 0.5).max(0.0);
        let low = (position.floor() as usize).min(inputs - 1);
        let high = (low + 1).min(inputs - 1);
        let share = position - low as f64;
        row[low] += (1.0 - share) as f32;
        row[high] += share as f32;
    }
    Matrix { outputs, inputs, values }
}

#[cfg(test)]
mod tests;
