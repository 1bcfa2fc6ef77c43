//! Rewrites of ONNX networks, so that a backend gets the numbers and the size it computes with.
//!
//! TensorRT takes the type of every number from the network itself. [`half::to_half`] prepares
//! FP16 and BF16, [`quantize::quantize`] INT8 with the ranges from a [`calibrate::Calibrator`],
//! and [`shape::fix_input_shape`] makes a network of any size one of a single size. Input and
//! output stay float32 in every variant. `docs/quantization.md` says what each of them changes.
//!
//! A network is checked when it is read ([`Model::parse`]), and every rewrite gives a new one.

pub mod batch;
mod bounds;
pub mod calibrate;
mod graph;
pub mod half;
mod histogram;
pub mod opset;
mod plan;
pub mod proto;
pub mod quantize;
pub mod shape;

use std::collections::HashSet;

use prost::Message as _;
use sha2::{Digest as _, Sha256};

use self::graph::{data_type, label};
use self::proto::tensor_proto::{DataLocation, DataType};
use self::proto::type_proto;
use crate::backend::BackendError;
use crate::files::hex;

/// Why a network could not be read or rewritten.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// More bytes than an ONNX file can have.
    #[error("the network has {bytes} bytes, more than the {limit} that are read; check the file")]
    TooLarge {
        /// Bytes found, of the file or of its structure.
        bytes: u64,
        /// Most that are read.
        limit: u64,
    },
    /// The bytes are no ONNX file.
    #[error("the network is not a readable ONNX file ({0}); export it again")]
    Decode(#[from] prost::DecodeError),
    /// The graph breaks a rule of the format.
    #[error("the network's graph is broken: {reason}; export it again")]
    Graph {
        /// What is wrong, with names.
        reason: String,
    },
    /// A tensor's type, shape and data do not fit together.
    #[error("the tensor \"{tensor}\" of the network {reason}; export it again")]
    Tensor {
        /// Name of the tensor.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// The network uses something that the rewrites cannot carry over.
    #[error("the network cannot be rewritten: node \"{node}\" ({op}) {reason}")]
    Unsupported {
        /// Name of the node.
        node: String,
        /// Its operator.
        op: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// The network cannot have the input size that was asked for.
    #[error("the network cannot take an input of {wanted}: {reason}")]
    Size {
        /// The size, as `batch x 3 x height x width`.
        wanted: String,
        /// Why not.
        reason: String,
    },
    /// The operators are too old for the rewrite.
    #[error(
        "the network uses version {found} of the ONNX operators, but at least {needed} is needed; export it with a newer one"
    )]
    Opset {
        /// Version of the network.
        found: i64,
        /// Version needed.
        needed: i64,
    },
    /// A calibration cannot be used.
    #[error("the calibration cannot be used: {reason}; calibrate this network again")]
    Calibration {
        /// What is wrong.
        reason: String,
    },
    /// A map has numbers that are not finite.
    #[error(
        "the network gives numbers that are not finite in \"{map}\"; check the image and the network"
    )]
    Infinite {
        /// Name of the map.
        map: String,
    },
    /// The float network did not run.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// A network in memory: one image batch in, one map out, both float32.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    proto: proto::ModelProto,
    /// What [`proto::ModelProto::graph`] holds; apart, so that there always is one.
    graph: proto::GraphProto,
}

impl Model {
    /// Reads and checks the content of an ONNX file, which must hold its weights itself.
    ///
    /// # Errors
    /// [`OnnxError`] for bytes that are no network, for a graph that is out of order or refers to
    /// what is not there, and for tensors whose data does not fit their shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, OnnxError> {
        bounds::check(bytes)?;
        Self::from_proto(proto::ModelProto::decode(bytes)?)
    }

    /// Checks messages that were built in memory.
    ///
    /// # Errors
    /// See [`Self::parse`].
    pub fn from_proto(mut proto: proto::ModelProto) -> Result<Self, OnnxError> {
        let broken = |reason: &str| OnnxError::Graph { reason: reason.to_owned() };
        let graph = proto.graph.take().ok_or_else(|| broken("there is none"))?;
        let model = Self { proto, graph };
        if model.opset_entry().is_none() {
            return Err(broken("it does not say which version of the operators it uses"));
        }
        model.check_tensors()?;
        model.check_order()?;
        let inputs = model.true_inputs().count();
        if inputs != 1 || model.graph.output.len() != 1 {
            let reason = format!(
                "it has {inputs} inputs and {} outputs; an embedder has one of each",
                model.graph.output.len()
            );
            return Err(OnnxError::Graph { reason });
        }
        for info in model.true_inputs().chain(&model.graph.output) {
            if !matches!(graph::tensor_type(info), Some(t) if t.elem_type() == DataType::Float as i32)
            {
                let reason = format!("\"{}\" is not a float32 tensor", info.name());
                return Err(OnnxError::Graph { reason });
            }
        }
        Ok(model)
    }

    /// The ONNX file of this network.
    pub fn to_bytes(&self) -> Vec<u8> {
        let proto = proto::ModelProto { graph: Some(self.graph.clone()), ..self.proto.clone() };
        proto.encode_to_vec()
    }

    /// The graph.
    pub const fn graph(&self) -> &proto::GraphProto {
        &self.graph
    }

    /// Name of the input, `[N, 3, H, W]`.
    pub fn input(&self) -> &str {
        self.true_inputs().next().map_or("", |info| info.name())
    }

    /// Name of the output, `[N, dim, H / stride, W / stride]`.
    pub fn output(&self) -> &str {
        self.graph.output.first().map_or("", |info| info.name())
    }

    /// Version of the ONNX operators that the network uses.
    pub fn opset(&self) -> i64 {
        self.opset_entry().map_or(0, proto::OperatorSetIdProto::version)
    }

    /// SHA-256 of what the network computes: its nodes and weights, whatever its input size, in
    /// hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        let graph = proto::GraphProto {
            node: self.graph.node.clone(),
            initializer: self.graph.initializer.clone(),
            ..proto::GraphProto::default()
        };
        hex(&Sha256::digest(graph.encode_to_vec()))
    }

    /// The same network with another graph, which is checked.
    fn with_graph(&self, graph: proto::GraphProto) -> Result<Self, OnnxError> {
        Self::from_proto(proto::ModelProto { graph: Some(graph), ..self.proto.clone() })
    }

    fn opset_entry(&self) -> Option<&proto::OperatorSetIdProto> {
        self.proto.opset_import.iter().find(|set| matches!(set.domain(), "" | "ai.onnx"))
    }

    /// Inputs that are no weights: old files list those among the inputs too.
    fn true_inputs(&self) -> impl Iterator<Item = &proto::ValueInfoProto> {
        let weights: HashSet<&str> =
            self.graph.initializer.iter().map(proto::TensorProto::name).collect();
        self.graph.input.iter().filter(move |info| !weights.contains(info.name()))
    }

    fn check_tensors(&self) -> Result<(), OnnxError> {
        for tensor in &self.graph.initializer {
            let bad = |reason: &str| OnnxError::Tensor {
                tensor: tensor.name().to_owned(),
                reason: reason.to_owned(),
            };
            if tensor.data_location() == DataLocation::External {
                return Err(bad("lies in another file; a bundle's network holds its weights"));
            }
            let count = graph::element_count(tensor)
                .ok_or_else(|| bad("has a shape that no data can have"))?;
            if let (Some(width), Some(raw)) = (data_type(tensor).bytes(), &tensor.raw_data)
                && count.checked_mul(width) != Some(raw.len())
            {
                return Err(bad("has more or less data than its shape says"));
            }
        }
        Ok(())
    }

    /// Each value is made once, and before it is read.
    fn check_order(&self) -> Result<(), OnnxError> {
        let broken = |reason: String| OnnxError::Graph { reason };
        let mut known: HashSet<&str> = HashSet::new();
        known.extend(self.graph.initializer.iter().map(proto::TensorProto::name));
        known.extend(self.graph.input.iter().map(proto::ValueInfoProto::name));
        for node in &self.graph.node {
            for input in node.input.iter().filter(|name| !name.is_empty()) {
                if !known.contains(input.as_str()) {
                    let node = label(node);
                    return Err(broken(format!(
                        "node \"{node}\" reads \"{input}\", which nothing before it gives"
                    )));
                }
            }
            for output in node.output.iter().filter(|name| !name.is_empty()) {
                if !known.insert(output) {
                    return Err(broken(format!("two nodes give \"{output}\"")));
                }
            }
        }
        match self.graph.output.iter().find(|info| !known.contains(info.name())) {
            Some(info) => Err(broken(format!("no node gives the output \"{}\"", info.name()))),
            None => Ok(()),
        }
    }
}

impl DataType {
    /// Bytes of a number in `raw_data`, where they are whole.
    const fn bytes(self) -> Option<usize> {
        match self {
            Self::Uint8
            | Self::Int8
            | Self::Bool
            | Self::Float8e4m3fn
            | Self::Float8e4m3fnuz
            | Self::Float8e5m2
            | Self::Float8e5m2fnuz
            | Self::Float8e8m0 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Float16 | Self::Bfloat16 => Some(2),
            Self::Float | Self::Int32 | Self::Uint32 => Some(4),
            Self::Double | Self::Int64 | Self::Uint64 | Self::Complex64 => Some(8),
            Self::Complex128 => Some(16),
            Self::Undefined | Self::String | Self::Uint4 | Self::Int4 | Self::Float4e2m1 => None,
        }
    }

    /// Whether numbers of this type are fractions that a rewrite may store in another type.
    const fn is_fraction(self) -> bool {
        matches!(self, Self::Float | Self::Float16 | Self::Bfloat16)
    }
}

/// Sizes of a declared shape; `None` for a side that is open.
fn declared(tensor: &type_proto::Tensor) -> Option<Vec<Option<i64>>> {
    use proto::tensor_shape_proto::dimension::Value;
    let sides = tensor.shape.as_ref()?.dim.iter();
    Some(
        sides
            .map(|side| match side.value {
                Some(Value::DimValue(n)) => Some(n),
                Some(Value::DimParam(_)) | None => None,
            })
            .collect(),
    )
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
