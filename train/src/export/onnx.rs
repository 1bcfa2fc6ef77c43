//! Writes a network as an ONNX file.
//!
//! Input `image` `[N, 3, H, W]` for any number of images, normalised as the network expects; output `embedding`
//! `[N, dim, H / stride, W / stride]`, unit length over the dimensions. Batch normalisations are folded
//! into the convolutions before them.
//!
//! Input and output are single precision in every variant. Half precision is the runtime's rewrite
//! ([`conceptseg::onnx::half`]), which keeps lengths of vectors in single precision. With 8-bit
//! integers, convolutions read and write quantised maps and weights, written as pairs of
//! `QuantizeLinear` and `DequantizeLinear`, which runtimes merge with the convolution between.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use conceptseg::onnx::half::{Half, to_half};
use conceptseg::onnx::proto;
use conceptseg::onnx::proto::attribute_proto::AttributeType;
use conceptseg::onnx::proto::tensor_proto::DataType;
use conceptseg::onnx::proto::{tensor_shape_proto, type_proto};
use conceptseg::onnx::{Model, OnnxError};
use prost::Message as _;
use tch::{Device, Kind, Tensor, no_grad};
use thiserror::Error;

use super::matrices::{Matrix, pool_matrix, resize_matrix};
use super::quantize::{Calibration, Channels, Scale};
use crate::network::{BatchNorm, Conv, NORM_EPSILON, Network, NodeId, Op};

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
    /// The network cannot be rewritten in half precision.
    #[error(transparent)]
    Half(#[from] OnnxError),
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
    /// Every multiple of the network's stride. Not possible for the paper's pyramid pooling.
    Dynamic,
    /// This size only, in pixels, multiples of the network's stride.
    Fixed {
        /// Height in pixels.
        height: u32,
        /// Width in pixels.
        width: u32,
    },
}

/// Numbers that the exported graph computes with.
#[derive(Debug, Clone, Copy)]
pub enum Numbers<'a> {
    /// Single precision.
    Fp32,
    /// Half precision, at half the size.
    Fp16,
    /// 8-bit integers in the convolutions, at a quarter of the size.
    Int8(&'a Calibration),
}

/// Writes the network in single precision to `path`, under a temporary name first.
///
/// # Errors
/// [`ExportError`].
pub fn export_onnx(network: &Network, path: &Path, size: ExportSize) -> Result<(), ExportError> {
    export_as(network, path, size, Numbers::Fp32)
}

/// Writes the network to `path` with these numbers, under a temporary name first.
///
/// # Errors
/// [`ExportError`].
pub fn export_as(
    network: &Network,
    path: &Path,
    size: ExportSize,
    numbers: Numbers<'_>,
) -> Result<(), ExportError> {
    let model = no_grad(|| build(network, size, numbers))?;
    let bytes = match numbers {
        Numbers::Fp16 => to_half(&Model::from_proto(model)?, Half::F16)?.model.to_bytes(),
        Numbers::Fp32 | Numbers::Int8(_) => model.encode_to_vec(),
    };
    conceptseg::files::write_atomic(path, |w| w.write_all(&bytes))
        .map_err(|source| ExportError::Write { path: path.to_owned(), source })
}

fn build(
    network: &Network,
    size: ExportSize,
    numbers: Numbers<'_>,
) -> Result<proto::ModelProto, ExportError> {
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
    let mut writer = Writer { network, grid, numbers, graph: proto::GraphProto::default() };
    writer.graph.name = Some("conceptseg".to_owned());
    writer.nodes()?;
    let [height, width, grid_height, grid_width] = sides;
    let batch = Side::Named("batch");
    writer.graph.input = vec![value_info(INPUT, [batch, Side::Known(3), height, width])];
    let dim = Side::Known(network.dim());
    writer.graph.output = vec![value_info(OUTPUT, [batch, dim, grid_height, grid_width])];
    Ok(proto::ModelProto {
        ir_version: Some(IR_VERSION),
        opset_import: vec![proto::OperatorSetIdProto {
            domain: Some(String::new()),
            version: Some(OPSET),
        }],
        producer_name: Some("conceptseg-train".to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        graph: Some(writer.graph),
        ..proto::ModelProto::default()
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
        tensor_shape_proto::Dimension { value: Some(value), denotation: None }
    };
    let shape = proto::TensorShapeProto { dim: sides.map(dimension).to_vec() };
    let tensor = type_proto::Tensor { elem_type: Some(DataType::Float as i32), shape: Some(shape) };
    proto::ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(proto::TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..proto::TypeProto::default()
        }),
        ..proto::ValueInfoProto::default()
    }
}

/// Builds the graph; node `i` of the layer graph has the output `n{i}`.
struct Writer<'a> {
    network: &'a Network,
    /// Height and width of the embedding's grid, if they are fixed.
    grid: Option<[i64; 2]>,
    numbers: Numbers<'a>,
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
                Op::HalvingAveragePool => {
                    let attributes = vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])];
                    self.node("AveragePool", &inputs, &out, attributes);
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
            if let Numbers::Int8(calibration) = self.numbers
                && let Some(scale) = calibration.scale(id)
            {
                out = self.quantized(&out, scale);
            }
            names.push(out);
            pooled.push(bins);
        }
        self.normalize(&names[self.network.output()], OUTPUT);
        Ok(())
    }

    /// Rounds a map to 8 bits and back; gives the name of the result.
    fn quantized(&mut self, x: &str, scale: Scale) -> String {
        let [scale_name, zero_name, rounded, out] =
            ["scale", "zero_point", "int8", "dequantized"].map(|part| format!("{x}.{part}"));
        self.constant(&scale_name, &[], &[scale.step]);
        self.bytes(&zero_name, &[], DataType::Int8, scale.zero_point.to_le_bytes().to_vec());
        self.node("QuantizeLinear", &[x, &scale_name, &zero_name], &rounded, vec![]);
        self.node("DequantizeLinear", &[&rounded, &scale_name, &zero_name], &out, vec![]);
        out
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
            let norm = BatchNorm::new(
                BatchNorm::SUFFIXES.map(|suffix| variables.tensor(name, suffix).shallow_clone()),
            );
            let folded = norm.fold(&weight, bias.as_ref());
            weight = folded.0;
            bias = Some(folded.1);
        }
        let mut weight_name = format!("{}.weight", conv.name);
        let mut bias_name = format!("{}.bias", conv.name);
        let weight_values = values(&weight_name, &weight)?;
        let bias_values = bias.map(|bias| values(&bias_name, &bias)).transpose()?;
        let source = self.network.graph.nodes()[id].inputs[0];
        let input_scale = match self.numbers {
            Numbers::Int8(calibration) if calibration.is_integer(id) => calibration.scale(source),
            _ => None,
        };
        if let Some(input_scale) = input_scale {
            let count = conv.outputs as usize;
            let no_bias = vec![0.0; count];
            let bias = bias_values.as_deref().unwrap_or(&no_bias);
            let channels = Channels::new(&weight_values, bias, input_scale);
            let shape = conv.weight_shape();
            weight_name = self.integers(&weight_name, &shape, DataType::Int8, &channels);
            if bias_values.is_some() {
                bias_name = self.integers(&bias_name, &shape[..1], DataType::Int32, &channels);
            }
        } else {
            self.constant(&weight_name, &conv.weight_shape(), &weight_values);
            if let Some(bias) = &bias_values {
                self.constant(&bias_name, &[conv.outputs], bias);
            }
        }
        let mut inputs = vec![input, &weight_name];
        if bias_values.is_some() {
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

    /// Weights (`Int8`) or bias (`Int32`) of a quantised convolution; gives the name of what
    /// they stand for.
    fn integers(&mut self, name: &str, dims: &[i64], kind: DataType, of: &Channels) -> String {
        let [integers, scales, zeros, out] = ["integers", "scales", "zero_points", "dequantized"]
            .map(|part| format!("{name}.{part}"));
        let axis = vec![int("axis", 0)];
        if kind == DataType::Int8 {
            self.constant(&scales, &dims[..1], &of.weight_steps);
            let bytes = of.weights.iter().map(|w| w.cast_unsigned()).collect();
            self.bytes(&integers, dims, kind, bytes);
            self.bytes(&zeros, &dims[..1], kind, vec![0; of.weight_steps.len()]);
            self.node("DequantizeLinear", &[&integers, &scales, &zeros], &out, axis);
        } else {
            self.constant(&scales, dims, &of.bias_steps);
            let bytes = of.biases.iter().flat_map(|b| b.to_le_bytes()).collect();
            self.bytes(&integers, dims, kind, bytes);
            self.node("DequantizeLinear", &[&integers, &scales], &out, axis);
        }
        out
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
        let sides = [columns.inputs as i64, columns.outputs as i64];
        self.constant(&columns_name, &sides, &transposed);
        let sides = [rows.outputs as i64, rows.inputs as i64];
        self.constant(&rows_name, &sides, &rows.values);
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
            ..proto::NodeProto::default()
        });
    }

    /// A number that several nodes may share.
    fn scalar(&mut self, name: &str, value: f32) -> String {
        if !self.graph.initializer.iter().any(|t| t.name.as_deref() == Some(name)) {
            self.constant(name, &[], &[value]);
        }
        name.to_owned()
    }

    fn constant(&mut self, name: &str, dims: &[i64], values: &[f32]) {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.bytes(name, dims, DataType::Float, bytes);
    }

    fn bytes(&mut self, name: &str, dims: &[i64], kind: DataType, bytes: Vec<u8>) {
        self.graph.initializer.push(proto::TensorProto {
            dims: dims.to_vec(),
            data_type: Some(kind as i32),
            name: Some(name.to_owned()),
            raw_data: Some(bytes),
            ..proto::TensorProto::default()
        });
    }
}

/// Values of a variable, row-major.
fn values(name: &str, tensor: &Tensor) -> Result<Vec<f32>, ExportError> {
    let flat = tensor.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view([-1]);
    Vec::<f32>::try_from(flat)
        .map_err(|source| ExportError::Weights { name: name.to_owned(), source })
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

#[cfg(test)]
mod tests;
