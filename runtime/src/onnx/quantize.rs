//! 8-bit integers, as pairs of `QuantizeLinear` and `DequantizeLinear`.
//!
//! An integer `q` from -127 to 127 stands for `scale * q`. Maps have one scale, weights one for
//! each output channel; biases stay floats. Runtimes merge the pairs with the layers between them.

use std::collections::HashMap;

use super::calibrate::Calibration;
use super::graph::{
    Names, drop_unread, float_tensor, floats, int, node, plain, raw_tensor, unsupported,
};
use super::plan::Plan;
use super::proto::tensor_proto::DataType;
use super::proto::{GraphProto, TensorProto};
use super::{Model, OnnxError};

/// The largest integer; -128 is left out, so that the range is even.
const LARGEST: f32 = 127.0;
/// Smallest scale of a map: the smallest normal number of FP16.
const SMALLEST: f32 = 1.0 / 16_384.0;
/// Oldest operators with a scale for each channel.
const OLDEST: i64 = 13;

/// The network with 8-bit integers in its layers, as far as the calibration knows their ranges
/// and [`docs/quantization.md`](https://github.com/conceptseg/conceptseg) says.
///
/// Input and output stay float32. The network may have been given a fixed size since it was
/// calibrated. Follow with [`super::half::to_half`] for half precision between the integers.
///
/// # Errors
/// [`OnnxError::Calibration`] for a calibration of another network, [`OnnxError::Opset`] for
/// operators older than version 13, [`OnnxError::Unsupported`] for networks that cannot be
/// rewritten.
pub fn quantize(model: &Model, calibration: &Calibration) -> Result<Model, OnnxError> {
    if model.opset() < OLDEST {
        return Err(OnnxError::Opset { found: model.opset(), needed: OLDEST });
    }
    if calibration.network != model.fingerprint() {
        let reason = "it was made for another network".to_owned();
        return Err(OnnxError::Calibration { reason });
    }
    if calibration.frames == 0 {
        let reason = "it has seen no images".to_owned();
        return Err(OnnxError::Calibration { reason });
    }
    let graph = plain(&model.graph)?;
    let plan = Plan::new(&graph, model.output())?;
    if plan.places.iter().all(Vec::is_empty) {
        let reason = "there is no layer that could compute with integers".to_owned();
        return Err(OnnxError::Graph { reason });
    }
    let scales = scales(&plan, calibration)?;
    let emitted = Emitter {
        names: Names::of(&graph),
        constants: graph.initializer.iter().map(|t| (t.name(), t)).collect(),
        plan: &plan,
        scales: &scales,
        rounded: HashMap::new(),
        out: GraphProto {
            node: Vec::with_capacity(2 * graph.node.len()),
            value_info: Vec::new(),
            ..graph.clone()
        },
    };
    model.with_graph(emitted.run(&graph)?)
}

/// Scale of each group of maps, by its representative.
fn scales(plan: &Plan, calibration: &Calibration) -> Result<HashMap<String, f32>, OnnxError> {
    let mut scales: HashMap<String, f32> = HashMap::new();
    for map in plan.maps() {
        let Some(&largest) = calibration.largest.get(&map) else {
            let reason = format!("it has no range for the map \"{map}\"");
            return Err(OnnxError::Calibration { reason });
        };
        let scale = scales.entry(plan.representative(&map).to_owned()).or_default();
        *scale = scale.max(largest / LARGEST);
    }
    for scale in scales.values_mut() {
        // A map of zeros, or nearly so.
        *scale = scale.max(SMALLEST);
    }
    Ok(scales)
}

struct Emitter<'a> {
    names: Names,
    constants: HashMap<&'a str, &'a TensorProto>,
    plan: &'a Plan,
    scales: &'a HashMap<String, f32>,
    /// Name of a map after rounding.
    rounded: HashMap<&'a str, String>,
    out: GraphProto,
}

impl<'a> Emitter<'a> {
    fn run(mut self, graph: &'a GraphProto) -> Result<GraphProto, OnnxError> {
        for (id, original) in graph.node.iter().enumerate() {
            let mut emitted = original.clone();
            for &place in &self.plan.places[id] {
                emitted.input[place] = self.map(&original.input[place]);
            }
            if let Some((place, axis)) = self.plan.weights[id] {
                emitted.input[place] =
                    self.weights(&original.input[place], axis).map_err(|error| match error {
                        Some(error) => error,
                        None => unsupported(original, "has weights that are not finite"),
                    })?;
            }
            self.out.node.push(emitted);
        }
        drop_unread(&mut self.out);
        Ok(self.out)
    }

    /// Rounds a map before its first reader; gives the name of the result.
    fn map(&mut self, name: &'a str) -> String {
        if let Some(rounded) = self.rounded.get(name) {
            return rounded.clone();
        }
        let scale = self.scales.get(self.plan.representative(name)).copied().unwrap_or(1.0);
        let [scale_name, zero, integers, out] = ["scale", "zero", "int8", "dequantized"]
            .map(|part| self.names.fresh(&format!("{name}.{part}")));
        self.out.initializer.push(float_tensor(&scale_name, &[], &[scale], DataType::Float));
        self.out.initializer.push(raw_tensor(&zero, &[], DataType::Int8, vec![0]));
        let q = node("QuantizeLinear", &[name, &scale_name, &zero], &integers, vec![]);
        let dq = node("DequantizeLinear", &[&integers, &scale_name, &zero], &out, vec![]);
        self.out.node.extend([q, dq]);
        self.rounded.insert(name, out.clone());
        out
    }

    /// Stores weights as integers; gives the name of what they stand for. `Err(None)` for
    /// weights that are not finite.
    fn weights(&mut self, name: &'a str, axis: usize) -> Result<String, Option<OnnxError>> {
        if let Some(rounded) = self.rounded.get(name) {
            return Ok(rounded.clone());
        }
        let tensor = self.constants.get(name).copied().ok_or(None)?;
        let values = floats(tensor)?;
        let (integers, scales) = round_channels(&values, &tensor.dims, axis).ok_or(None)?;
        let count = scales.len() as i64;
        let [integers_name, scale, zero, out] = ["int8", "scale", "zero", "dequantized"]
            .map(|part| self.names.fresh(&format!("{name}.{part}")));
        let bytes = integers.iter().map(|q| q.cast_unsigned()).collect();
        let zeros = vec![0; scales.len()];
        self.out.initializer.extend([
            raw_tensor(&integers_name, &tensor.dims, DataType::Int8, bytes),
            float_tensor(&scale, &[count], &scales, DataType::Float),
            raw_tensor(&zero, &[count], DataType::Int8, zeros),
        ]);
        let inputs = [integers_name.as_str(), &scale, &zero];
        let attributes = vec![int("axis", axis as i64)];
        self.out.node.push(node("DequantizeLinear", &inputs, &out, attributes));
        self.rounded.insert(name, out.clone());
        Ok(out)
    }
}

/// Weights as integers, and the scale of each channel along `axis`; `None` if some are not finite.
fn round_channels(values: &[f32], dims: &[i64], axis: usize) -> Option<(Vec<i8>, Vec<f32>)> {
    let channels = usize::try_from(*dims.get(axis)?).ok()?;
    let inner: usize = dims.get(axis + 1..)?.iter().map(|&n| n as usize).product();
    let channel = |place: usize| place / inner.max(1) % channels.max(1);
    let mut scales = vec![0.0_f32; channels];
    for (place, value) in values.iter().enumerate() {
        if !value.is_finite() {
            return None;
        }
        let scale = &mut scales[channel(place)];
        *scale = scale.max(value.abs() / LARGEST);
    }
    for scale in &mut scales {
        if *scale < f32::MIN_POSITIVE {
            // Only zeros, to which every scale does.
            *scale = 1.0;
        }
    }
    let round = |(place, value): (usize, &f32)| (value / scales[channel(place)]).round() as i8;
    let integers = values.iter().enumerate().map(round).collect();
    Some((integers, scales))
}

#[cfg(test)]
mod tests;
