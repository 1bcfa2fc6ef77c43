//! Which maps and layers of a network become 8-bit.
//!
//! The rules are those of `TensorRT`'s explicit quantisation: a layer computes with integers when
//! its input and its weights come out of `DequantizeLinear`; a sum is done by the convolution
//! before it when its other summand is quantised; pools and concatenations stay integer when what
//! goes in and comes out has one scale.
//!
//! Left in float are the layers whose results are only summed up to the embedding, and layers on
//! pooled maps, which cost nothing and are seen by the whole image.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::OnnxError;
use super::graph::{Index, data_type, int_of, unsupported};
use super::proto::tensor_proto::DataType;
use super::proto::{GraphProto, NodeProto};
use super::shape::{Shape, infer};

/// What is quantised.
pub(super) struct Plan {
    /// For each node, the places of the inputs that read a quantised map.
    pub(super) places: Vec<Vec<usize>>,
    /// For each node, the place of its weights and their axis of output channels, if those
    /// become 8-bit.
    pub(super) weights: Vec<Option<(usize, usize)>>,
    /// A map to another one that has the same scale, or to itself.
    same: HashMap<String, String>,
}

impl Plan {
    /// For a graph of plain operators ([`super::graph::plain`]).
    ///
    /// # Errors
    /// For a network that is quantised already.
    pub(super) fn new(graph: &GraphProto, output: &str) -> Result<Self, OnnxError> {
        if let Some(node) = graph.node.iter().find(|n| n.op_type() == "QuantizeLinear") {
            return Err(unsupported(node, "quantises already; give the float32 network"));
        }
        let index = Index::new(graph);
        let shapes = infer(graph);
        let pooled = pooled(graph, &index, &shapes);
        let tail = tail(graph, &index, output);
        let count = graph.node.len();
        let mut this = Self {
            places: vec![Vec::new(); count],
            weights: vec![None; count],
            same: HashMap::new(),
        };
        for (id, node) in graph.node.iter().enumerate() {
            let Some(input) = node.input.first() else { continue };
            if !tail.contains(&id) && !pooled.contains(input.as_str()) {
                this.weights[id] = weights(node, &index, &shapes);
            }
            if this.weights[id].is_some() {
                this.places[id].push(0);
            }
        }
        for (id, node) in graph.node.iter().enumerate() {
            if node.op_type() == "Add" && !tail.contains(&id) {
                this.places[id] = this.residual(graph, id, &index, &pooled);
            }
        }
        // From the end, because a pool can follow a concatenation and the other way round.
        for (id, node) in graph.node.iter().enumerate().rev() {
            let Some(result) = node.output.first() else { continue };
            if !matches!(node.op_type(), "MaxPool" | "AveragePool" | "Concat")
                || !this.is_read_in_integers(graph, result, &index)
            {
                continue;
            }
            this.places[id] = (0..node.input.len()).collect();
            if node.op_type() != "AveragePool" {
                for input in &node.input {
                    this.unite(input, result);
                }
            }
        }
        for (node, places) in graph.node.iter().zip(&this.places) {
            for map in places.iter().filter_map(|&place| node.input.get(place)) {
                this.same.entry(map.clone()).or_insert_with(|| map.clone());
            }
        }
        Ok(this)
    }

    /// Names of the maps that are quantised or share the scale of one that is.
    pub(super) fn maps(&self) -> BTreeSet<String> {
        self.same.keys().cloned().collect()
    }

    /// The map that stands for all that have one scale.
    pub(super) fn representative<'a>(&'a self, map: &'a str) -> &'a str {
        let mut map = map;
        while let Some(next) = self.same.get(map)
            && next != map
        {
            map = next;
        }
        map
    }

    fn unite(&mut self, a: &str, b: &str) {
        let [a, b] = [a, b].map(|map| self.representative(map).to_owned());
        self.same.insert(b.clone(), a.clone());
        self.same.entry(a.clone()).or_insert(a);
    }

    /// The summand that a sum reads in integers: the one that the convolution before it does not
    /// give, because that one can add it to its own result.
    fn residual(
        &self,
        graph: &GraphProto,
        id: usize,
        index: &Index<'_>,
        pooled: &HashSet<&str>,
    ) -> Vec<usize> {
        let [a, b] = graph.node[id].input.as_slice() else { return Vec::new() };
        if [a, b].iter().any(|s| index.constant(s).is_some() || pooled.contains(s.as_str())) {
            return Vec::new();
        }
        let convolution = |summand: &str| {
            let maker = index.producer(summand)?;
            let own = self.weights[maker].is_some() && index.readers(summand).len() == 1;
            own.then_some(maker)
        };
        match (convolution(a), convolution(b)) {
            // The later one is computed last and finds the other's result ready.
            (Some(first), Some(second)) if first > second => vec![1],
            (Some(_), None) => vec![1],
            (_, Some(_)) => vec![0],
            (None, None) => Vec::new(),
        }
    }

    /// Whether all readers of a map read it in integers.
    fn is_read_in_integers(&self, graph: &GraphProto, map: &str, index: &Index<'_>) -> bool {
        let readers = index.readers(map);
        let reads = |&id: &usize| {
            let inputs = graph.node[id].input.iter().enumerate();
            inputs.filter(|(_, i)| *i == map).all(|(place, _)| self.places[id].contains(&place))
        };
        !readers.is_empty() && readers.iter().all(reads)
    }
}

/// The place and channel axis of a layer's weights, if they can be 8-bit.
fn weights(
    node: &NodeProto,
    index: &Index<'_>,
    shapes: &HashMap<String, Shape>,
) -> Option<(usize, usize)> {
    let weight = index.constant(node.input.get(1)?)?;
    if data_type(weight) != DataType::Float || index.constant(&node.input[0]).is_some() {
        return None;
    }
    match (node.op_type(), weight.dims.len()) {
        ("Conv", 3..) => Some((1, 0)),
        ("Gemm", 2) => Some((1, usize::from(int_of(node, "transB", 0) == 0))),
        // On maps, matrices resample; those stay as exact as they are.
        ("MatMul", 2) if shapes.get(&node.input[0]).is_none_or(|s| s.len() < 4) => Some((1, 1)),
        _ => None,
    }
}

/// Maps that the whole image has been pooled to, or a few cells.
fn pooled<'a>(
    graph: &'a GraphProto,
    index: &Index<'_>,
    shapes: &HashMap<String, Shape>,
) -> HashSet<&'a str> {
    let mut pooled: HashSet<&str> = HashSet::new();
    for node in &graph.node {
        let mut maps = node.input.iter().filter(|i| index.constant(i).is_none()).peekable();
        let inherited = maps.peek().is_some() && maps.all(|i| pooled.contains(i.as_str()));
        let is_pooled = match node.op_type() {
            "GlobalAveragePool" | "GlobalMaxPool" => true,
            "MatMul" => match resampling(node, index, shapes) {
                Some((from, to)) if to < from => true,
                Some((from, to)) if to > from => false,
                _ => inherited,
            },
            _ => inherited,
        };
        if is_pooled {
            pooled.extend(node.output.iter().map(String::as_str));
        }
    }
    pooled
}

/// Cells of a side before and after a matrix is applied to a map.
fn resampling(
    node: &NodeProto,
    index: &Index<'_>,
    shapes: &HashMap<String, Shape>,
) -> Option<(i64, i64)> {
    let [a, b] = node.input.as_slice() else { return None };
    let is_map = |name: &String| shapes.get(name).is_some_and(|s| s.len() == 4);
    let (matrix, from) = match (index.constant(a), index.constant(b)) {
        (Some(rows), None) if is_map(b) => (rows, 1),
        (None, Some(columns)) if is_map(a) => (columns, 0),
        _ => return None,
    };
    let &[first, second] = matrix.dims.as_slice() else { return None };
    Some(if from == 0 { (first, second) } else { (second, first) })
}

/// The nodes from the layers whose results are only summed up and normalised to the output.
fn tail(graph: &GraphProto, index: &Index<'_>, output: &str) -> HashSet<usize> {
    let mut found = HashSet::new();
    let mut values = vec![output];
    while let Some(value) = values.pop() {
        let Some(id) = index.producer(value) else { continue };
        let node = &graph.node[id];
        if !found.insert(id) {
            continue;
        }
        let op = node.op_type();
        let passes = op.starts_with("Reduce")
            || matches!(
                op,
                "Div"
                    | "Mul"
                    | "Add"
                    | "Sub"
                    | "Clip"
                    | "Max"
                    | "Sqrt"
                    | "Pow"
                    | "Cast"
                    | "Identity"
                    | "Reshape"
                    | "Transpose"
            );
        if passes {
            values.extend(node.input.iter().map(String::as_str));
        }
    }
    found
}
