//! Runs a layer graph with libtorch.

use std::collections::HashMap;

use rand::{RngExt as _, SeedableRng as _};
use rand_distr::StandardNormal;
use rand_pcg::Pcg64;
use tch::nn::VarStore;
use tch::{Device, Kind, TchError, Tensor};

use super::graph::{BATCH_NORM_EPSILON, Conv, Graph, Init, NORM_EPSILON, NodeId, Op, Part};
use super::{NetworkError, Parameter};

/// Variables of a graph.
#[derive(Debug)]
pub(crate) struct Variables {
    all: Vec<Parameter>,
    index: HashMap<String, usize>,
}

impl Variables {
    /// Makes the variables of all layers with their starting values.
    pub fn new(graph: &Graph, vs: &VarStore, seed: u64) -> Result<Self, NetworkError> {
        // Not libtorch's generator: all threads of a program share that one.
        let mut rng = Pcg64::seed_from_u64(seed);
        let mut variables = Self { all: Vec::new(), index: HashMap::new() };
        for node in graph.nodes() {
            match &node.op {
                Op::Conv(conv) => {
                    let name = format!("{}.weight", conv.name);
                    let weight = weights(conv, &mut rng, vs.device());
                    variables.add(vs, name, conv.part, weight, true)?;
                    if conv.bias {
                        let name = format!("{}.bias", conv.name);
                        let bias = constant(conv.outputs, 0.0, vs.device());
                        variables.add(vs, name, conv.part, bias, true)?;
                    }
                }
                Op::BatchNorm { name, part, .. } => {
                    for (suffix, value, trainable) in [
                        ("weight", 1.0, true),
                        ("bias", 0.0, true),
                        ("running_mean", 0.0, false),
                        ("running_var", 1.0, false),
                    ] {
                        let name = format!("{name}.{suffix}");
                        let tensor = constant(node.channels, value, vs.device());
                        variables.add(vs, name, *part, tensor, trainable)?;
                    }
                }
                _ => {}
            }
        }
        Ok(variables)
    }

    fn add(
        &mut self,
        vs: &VarStore,
        name: String,
        part: Part,
        tensor: Result<Tensor, TchError>,
        trainable: bool,
    ) -> Result<(), NetworkError> {
        let mut path = vs.root();
        let mut steps = name.split('.').peekable();
        let mut last = "";
        while let Some(step) = steps.next() {
            if steps.peek().is_some() {
                path = path.sub(step);
            } else {
                last = step;
            }
        }
        let tensor =
            tensor.map_err(|source| NetworkError::Variable { name: name.clone(), source })?;
        let tensor = path.add(last, tensor, trainable);
        self.index.insert(name.clone(), self.all.len());
        let bias = last == "bias";
        self.all.push(Parameter { name, tensor, part, bias, trainable });
        Ok(())
    }

    /// The variable of that name.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.index.get(name).and_then(|&i| self.all.get(i))
    }

    /// All of them, sharing their storage.
    pub fn parameters(&self) -> Vec<Parameter> {
        let share = |p: &Parameter| Parameter {
            name: p.name.clone(),
            tensor: p.tensor.shallow_clone(),
            ..*p
        };
        self.all.iter().map(share).collect()
    }

    /// Tensor of a layer's variable, which [`Self::new`] has made from the same graph.
    pub fn tensor(&self, layer: &str, suffix: &str) -> &Tensor {
        match self.get(&format!("{layer}.{suffix}")) {
            Some(parameter) => &parameter.tensor,
            None => unreachable!("the graph that made the variables has {layer}.{suffix}"),
        }
    }

    /// Computes `output` from the images. A map is dropped after its last reader, and
    /// layers without a use for `output` are left out.
    pub fn run(&self, graph: &Graph, images: &Tensor, output: NodeId, train: bool) -> Tensor {
        self.run_observed(graph, images, output, train, &mut |_, _| {})
    }

    /// [`Self::run`], showing every map to `observe` as soon as it is computed; its memory may
    /// be overwritten later.
    pub fn run_observed(
        &self,
        graph: &Graph,
        images: &Tensor,
        output: NodeId,
        train: bool,
        observe: &mut dyn FnMut(NodeId, &Tensor),
    ) -> Tensor {
        let nodes = graph.nodes();
        let mut readers = vec![0_usize; nodes.len()];
        readers[output] = 1;
        for id in (0..=output).rev() {
            if readers[id] > 0 {
                for &input in &nodes[id].inputs {
                    readers[input] += 1;
                }
            }
        }
        // Overwriting is safe for what nobody else reads and no gradient needs: the results
        // of convolutions, normalisations and sums.
        let sole: Vec<usize> = readers.clone();
        let overwritable = |id: NodeId| {
            sole[id] == 1 && matches!(nodes[id].op, Op::Conv(_) | Op::BatchNorm { .. } | Op::Add)
        };
        let mut values: Vec<Option<Tensor>> = (0..nodes.len()).map(|_| None).collect();
        for id in 0..=output {
            if readers[id] == 0 {
                continue;
            }
            let node = &nodes[id];
            let inputs: Vec<Tensor> = node
                .inputs
                .iter()
                .filter_map(|&input| {
                    readers[input] -= 1;
                    if readers[input] == 0 {
                        values[input].take()
                    } else {
                        values[input].as_ref().map(Tensor::shallow_clone)
                    }
                })
                .collect();
            let own = |i: usize| overwritable(node.inputs[i]);
            let value = match (&node.op, inputs.as_slice()) {
                (Op::Conv(conv), [x]) => self.conv(conv, x),
                (Op::BatchNorm { name, momentum, .. }, [x]) => {
                    self.batch_norm(name, *momentum, x, train)
                }
                (Op::Relu, [x]) if own(0) => x.shallow_clone().relu_(),
                (Op::Relu, [x]) => x.relu(),
                (Op::Relu6, [x]) if own(0) => x.shallow_clone().relu6_(),
                (Op::Relu6, [x]) => x.relu6(),
                (Op::Add, [a, b]) if own(0) && a.size() == b.size() => a.shallow_clone().g_add_(b),
                (Op::Add, [a, b]) if own(1) && a.size() == b.size() => b.shallow_clone().g_add_(a),
                (Op::Add, [a, b]) => a + b,
                (Op::Concat, maps) => Tensor::cat(maps, 1),
                (Op::MaxPool { end_padding: true }, [x]) => {
                    x.max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], true)
                }
                (Op::MaxPool { end_padding: false }, [x]) => {
                    x.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false)
                }
                (Op::HalvingAveragePool, [x]) => {
                    x.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>)
                }
                (Op::GlobalAveragePool, [x]) => x.mean_dim([2_i64, 3].as_slice(), true, None),
                (Op::AdaptiveAveragePool { bins }, [x]) => x.adaptive_avg_pool2d([*bins, *bins]),
                (Op::ResizeLike, [x, like]) => {
                    let size = like.size();
                    x.upsample_bilinear2d([size[2], size[3]], false, None, None)
                }
                (Op::L2Normalize, [x]) => {
                    // The gradient of libtorch's own norm is 0 at 0, not NaN.
                    x / x.norm_scalaropt_dim(2, [1], true).clamp_min(NORM_EPSILON)
                }
                _ => images.shallow_clone(),
            };
            observe(id, &value);
            values[id] = Some(value);
        }
        match values[output].take() {
            Some(value) => value,
            None => unreachable!("the output is the last node computed"),
        }
    }

    /// The weights are brought to the kind of the maps, so that images in `bfloat16` make a
    /// pass in `bfloat16` whose gradients reach single-precision variables. (For an equal kind
    /// this shares the tensor. Batch normalisation takes mixed kinds as it is.)
    fn conv(&self, conv: &Conv, x: &Tensor) -> Tensor {
        let weight = self.tensor(&conv.name, "weight").to_kind(x.kind());
        let bias = conv.bias.then(|| self.tensor(&conv.name, "bias").to_kind(x.kind()));
        let (before, after) = (conv.pad_before, conv.pad_after);
        let (stride, dilation) = ([conv.stride; 2], [conv.dilation; 2]);
        if before == after {
            return x.conv2d(&weight, bias, stride, [before; 2], dilation, conv.groups);
        }
        let padded = x.constant_pad_nd([before, after, before, after]);
        padded.conv2d(&weight, bias, stride, [0, 0], dilation, conv.groups)
    }

    fn batch_norm(&self, name: &str, momentum: f64, x: &Tensor, train: bool) -> Tensor {
        x.batch_norm(
            Some(self.tensor(name, "weight")),
            Some(self.tensor(name, "bias")),
            Some(self.tensor(name, "running_mean")),
            Some(self.tensor(name, "running_var")),
            train,
            momentum,
            BATCH_NORM_EPSILON,
            true,
        )
    }
}

fn constant(channels: i64, value: f64, device: Device) -> Result<Tensor, TchError> {
    Tensor::f_full([channels], value, (Kind::Float, device))
}

/// First weights of a convolution.
fn weights(conv: &Conv, rng: &mut Pcg64, device: Device) -> Result<Tensor, TchError> {
    let shape = conv.weight_shape();
    let deviation = match conv.init {
        Init::Kaiming => (2.0 / shape[1..].iter().product::<i64>() as f64).sqrt(),
        Init::Normal(deviation) => deviation,
        Init::Zero => return Tensor::f_zeros(shape, (Kind::Float, device)),
    };
    let count = shape.iter().product::<i64>();
    let values: Vec<f32> =
        (0..count).map(|_| (deviation * rng.sample::<f64, _>(StandardNormal)) as f32).collect();
    Tensor::f_from_slice(&values)?.f_view(shape)?.f_to_device(device)
}
