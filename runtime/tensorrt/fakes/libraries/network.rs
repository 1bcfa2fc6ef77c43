//! The network that the fake runs for real: one convolution whose windows do not overlap, and unit length over the
//! channels, as an embedder is. It is read from ONNX, with weights in any precision that can be exported.

use std::collections::BTreeMap;

/// A convolution `[n, 3, h, w]` -> `[n, dim, h / stride, w / stride]` and the normalisation.
pub struct Network {
    pub input: String,
    pub output: String,
    /// Sizes of the input as the file declares them, -1 where open.
    pub declared: Vec<i64>,
    pub dim: usize,
    pub stride: usize,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Network {
    /// Reads a model; nothing where it is no such network.
    pub fn read(model: &[u8]) -> Option<Self> {
        let graph = fields(model)?.into_iter().find(|field| field.number == 7)?;
        let mut graph_fields = Graph::default();
        for field in fields(graph.bytes)? {
            match field.number {
                1 => graph_fields.nodes.push(Node::read(field.bytes)?),
                5 => {
                    let (name, tensor) = Tensor::read(field.bytes)?;
                    graph_fields.tensors.insert(name, tensor);
                }
                11 => graph_fields.inputs.push(field.bytes),
                12 => graph_fields.outputs.push(field.bytes),
                _ => {}
            }
        }
        graph_fields.network()
    }

    /// `[n, dim, h / stride, w / stride]` for an input `[n, 3, h, w]`.
    pub fn output_shape(&self, input: &[i64]) -> Vec<i64> {
        let cells = |size: i64| if size < 0 { -1 } else { size / self.stride as i64 };
        vec![input[0], self.dim as i64, cells(input[2]), cells(input[3])]
    }

    /// Computes the output for an input of this shape.
    pub fn run(&self, input: &[f32], shape: &[i64], output: &mut [f32]) {
        let [n, h, w] = [shape[0], shape[2], shape[3]].map(|size| size as usize);
        let (s, dim) = (self.stride, self.dim);
        let (rows, columns) = (h / s, w / s);
        let window = 3 * s * s;
        let mut patch = vec![0.0; window];
        let mut cell = vec![0.0; dim];
        for image in 0..n {
            for row in 0..rows {
                for column in 0..columns {
                    for (i, value) in patch.iter_mut().enumerate() {
                        let (c, y, x) = (i / (s * s), i / s % s, i % s);
                        *value = input[((image * 3 + c) * h + row * s + y) * w + column * s + x];
                    }
                    for d in 0..dim {
                        let weight = &self.weight[d * window..(d + 1) * window];
                        let sum: f32 = weight.iter().zip(&patch).map(|(a, b)| a * b).sum();
                        cell[d] = sum + self.bias[d];
                    }
                    let norm = cell.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
                    for d in 0..dim {
                        output[((image * dim + d) * rows + row) * columns + column] = cell[d] / norm;
                    }
                }
            }
        }
    }
}

#[derive(Default)]
struct Graph<'a> {
    nodes: Vec<Node>,
    tensors: BTreeMap<String, Tensor>,
    inputs: Vec<&'a [u8]>,
    outputs: Vec<&'a [u8]>,
}

impl Graph<'_> {
    fn network(&self) -> Option<Network> {
        let mut convolutions = self.nodes.iter().filter(|node| node.operator == "Conv");
        let (conv, None) = (convolutions.next()?, convolutions.next()) else { return None };
        let weight = self.constant(conv.inputs.get(1)?)?;
        let bias = self.constant(conv.inputs.get(2)?)?;
        let &[dim, 3, stride, other] = weight.dims.as_slice() else { return None };
        if stride != other || bias.values.len() != dim as usize {
            return None;
        }
        // Constants were inputs too once.
        let names = self.inputs.iter().filter_map(|bytes| Some((value_name(bytes)?, *bytes)));
        let (input, bytes) = names.filter(|(name, _)| !self.tensors.contains_key(name)).next()?;
        Some(Network {
            declared: value_shape(bytes)?,
            input,
            output: value_name(self.outputs.first()?)?,
            dim: dim as usize,
            stride: stride as usize,
            weight: weight.values,
            bias: bias.values,
        })
    }

    /// The numbers of a constant, also behind conversions.
    fn constant(&self, name: &str) -> Option<Tensor> {
        if let Some(tensor) = self.tensors.get(name) {
            return Some(Tensor { dims: tensor.dims.clone(), values: tensor.values.clone() });
        }
        let node = self.nodes.iter().find(|node| node.outputs.iter().any(|output| output == name))?;
        let mut tensor = self.constant(node.inputs.first()?)?;
        match node.operator.as_str() {
            "Cast" | "Identity" => {}
            "DequantizeLinear" => {
                let scale = self.constant(node.inputs.get(1)?)?.values;
                let zero = match node.inputs.get(2).filter(|name| !name.is_empty()) {
                    Some(name) => self.constant(name)?.values,
                    None => vec![0.0],
                };
                // By tensor, or by its first axis.
                let row = tensor.values.len() / scale.len().max(1);
                for (i, value) in tensor.values.iter_mut().enumerate() {
                    let at = i / row.max(1);
                    *value = (*value - zero[at.min(zero.len() - 1)]) * scale[at];
                }
            }
            _ => return None,
        }
        Some(tensor)
    }
}

struct Node {
    operator: String,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl Node {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut node = Self { operator: String::new(), inputs: Vec::new(), outputs: Vec::new() };
        for field in fields(bytes)? {
            match field.number {
                1 => node.inputs.push(field.text()?),
                2 => node.outputs.push(field.text()?),
                4 => node.operator = field.text()?,
                _ => {}
            }
        }
        Some(node)
    }
}

struct Tensor {
    dims: Vec<i64>,
    values: Vec<f32>,
}

impl Tensor {
    fn read(bytes: &[u8]) -> Option<(String, Self)> {
        let (mut name, mut dims, mut kind) = (String::new(), Vec::new(), 0);
        let (mut raw, mut floats, mut ints): (&[u8], Vec<f32>, Vec<i64>) = (&[], Vec::new(), Vec::new());
        for field in fields(bytes)? {
            match field.number {
                1 => dims.extend(field.integers()?),
                2 => kind = field.value,
                4 => floats.extend(field.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()))),
                5 => ints.extend(field.integers()?),
                8 => name = field.text()?,
                9 => raw = field.bytes,
                _ => {}
            }
        }
        let pairs = || raw.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        let words = |values: Vec<i64>| values.into_iter().map(|v| v as u16).collect::<Vec<_>>();
        let values: Vec<f32> = match kind {
            1 if raw.is_empty() => floats,
            1 => raw.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            2 if !raw.is_empty() => raw.iter().map(|&b| f32::from(b)).collect(),
            3 if !raw.is_empty() => raw.iter().map(|&b| f32::from(b as i8)).collect(),
            2 | 3 => ints.into_iter().map(|v| v as f32).collect(),
            10 if raw.is_empty() => words(ints).into_iter().map(half).collect(),
            10 => pairs().map(half).collect(),
            16 if raw.is_empty() => words(ints).into_iter().map(brain).collect(),
            16 => pairs().map(brain).collect(),
            // What only shapes are made of.
            _ => Vec::new(),
        };
        Some((name, Self { dims, values }))
    }
}

fn brain(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

fn half(bits: u16) -> f32 {
    let (sign, exponent, mantissa) = (bits >> 15, i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let size = match exponent {
        0 => mantissa * 2_f32.powi(-24),
        31 => f32::INFINITY,
        _ => (1.0 + mantissa / 1024.0) * 2_f32.powi(exponent - 15),
    };
    if sign == 1 { -size } else { size }
}

fn value_name(bytes: &[u8]) -> Option<String> {
    fields(bytes)?.into_iter().find(|field| field.number == 1)?.text()
}

fn value_shape(bytes: &[u8]) -> Option<Vec<i64>> {
    let inner = |bytes, number| Some(fields(bytes)?.into_iter().find(|f: &Field<'_>| f.number == number)?.bytes);
    let shape = inner(inner(inner(bytes, 2)?, 1)?, 2)?;
    let dims = fields(shape)?.into_iter().filter(|field| field.number == 1);
    dims.map(|dim| Some(fields(dim.bytes)?.iter().find(|f| f.number == 1).map_or(-1, |f| f.value as i64))).collect()
}

/// A field of a protobuf message: a number, or bytes.
struct Field<'a> {
    number: u64,
    value: u64,
    bytes: &'a [u8],
    packed: bool,
}

impl Field<'_> {
    fn text(&self) -> Option<String> {
        String::from_utf8(self.bytes.to_vec()).ok()
    }

    /// A repeated integer, packed or not.
    fn integers(&self) -> Option<Vec<i64>> {
        if !self.packed {
            return Some(vec![self.value as i64]);
        }
        let (mut rest, mut values) = (self.bytes, Vec::new());
        while !rest.is_empty() {
            values.push(varint(&mut rest)? as i64);
        }
        Some(values)
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Some(value);
        }
    }
    None
}

fn fields(mut bytes: &[u8]) -> Option<Vec<Field<'_>>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let mut field = Field { number: key >> 3, value: 0, bytes: &[], packed: false };
        let length = match key & 7 {
            0 => {
                field.value = varint(&mut bytes)?;
                0
            }
            1 => 8,
            2 => {
                field.packed = true;
                usize::try_from(varint(&mut bytes)?).ok()?
            }
            5 => 4,
            _ => return None,
        };
        (field.bytes, bytes) = bytes.split_at_checked(length)?;
        all.push(field);
    }
    Some(all)
}
