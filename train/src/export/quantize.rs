//! 8-bit numbers for the convolutions: which maps are rounded, and to which steps.
//!
//! Maps have one step each and a zero point, weights one step per output channel and none. The
//! range of a map is that which rounds the maps of real images with the least squared error,
//! which cuts off a few outliers where that refines the rest.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use tch::{Device, Kind, TchError, Tensor, no_grad};

use crate::network::{Graph, Network, NodeId, Op};

/// Bins of the histogram of a map's values.
const BINS: i64 = 2048;
/// Ranges tried per end: the whole one, and each time this share less.
const TRIALS: u32 = 20;
const SHRINK: f64 = 0.04;
/// Steps between the smallest and the largest 8-bit integer.
const STEPS: f64 = 255.0;
/// A bias in 32 bits is to leave room for the sum that it is added to.
const LARGEST_BIAS: f32 = (1 << 30) as f32;

/// Meaning of an 8-bit integer q: `step * (q - zero_point)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scale {
    pub step: f32,
    pub zero_point: i8,
}

impl Scale {
    /// For values from `low` to `high`, and for 0, which must be met exactly because
    /// convolutions pad with it.
    fn of_range(low: f64, high: f64) -> Self {
        let (low, high) = (low.min(0.0), high.max(0.0));
        if high - low <= 0.0 {
            return Self { step: 1.0, zero_point: 0 };
        }
        let step = (high - low) / STEPS;
        let zero_point = (f64::from(i8::MIN) - low / step).round();
        Self { step: step as f32, zero_point: zero_point as i8 }
    }
}

/// Steps of a network's maps, from [`Calibrator`].
#[derive(Debug, Clone)]
pub struct Calibration {
    convolutions: HashSet<NodeId>,
    scales: HashMap<NodeId, Scale>,
}

impl Calibration {
    /// Scale of a node's output, if that is rounded.
    pub(crate) fn scale(&self, node: NodeId) -> Option<Scale> {
        self.scales.get(&node).copied()
    }

    /// Whether a convolution computes with integers.
    pub(crate) fn is_integer(&self, convolution: NodeId) -> bool {
        self.convolutions.contains(&convolution)
    }
}

/// What is known of a map's values.
#[derive(Debug, Clone)]
struct Observed {
    low: f64,
    high: f64,
    /// Values per bin from `low` to `high`.
    counts: Vec<f64>,
}

/// Gathers the values of a network's maps on images, which are to be shown twice: all of them
/// to [`Self::add_range`], then all of them to [`Self::add_counts`].
#[derive(Debug)]
pub struct Calibrator<'a> {
    network: &'a Network,
    convolutions: HashSet<NodeId>,
    observed: BTreeMap<NodeId, Observed>,
}

impl<'a> Calibrator<'a> {
    /// For this network, without images so far.
    pub fn new(network: &'a Network) -> Self {
        let (convolutions, maps) = plan(&network.graph, network.output());
        let none = Observed { low: f64::INFINITY, high: f64::NEG_INFINITY, counts: Vec::new() };
        let observed = maps.into_iter().map(|map| (map, none.clone())).collect();
        Self { network, convolutions, observed }
    }

    /// Widens the ranges to what the maps of these images `[N, 3, H, W]` have.
    pub fn add_range(&mut self, images: &Tensor) {
        self.observe(images, |observed, map| {
            observed.low = observed.low.min(map.min().double_value(&[]));
            observed.high = observed.high.max(map.max().double_value(&[]));
        });
    }

    /// Counts the values of the maps of these images, whose range is known.
    ///
    /// # Errors
    /// When libtorch cannot make a histogram.
    pub fn add_counts(&mut self, images: &Tensor) -> Result<(), TchError> {
        let mut result = Ok(());
        self.observe(images, |observed, map| {
            // libtorch's histogram runs from the smallest to the largest value that it is given.
            let ends = Tensor::from_slice(&[observed.low as f32, observed.high as f32]);
            let all = Tensor::cat(&[map.to_device(Device::Cpu).flatten(0, -1), ends], 0);
            let counts = all.f_histc(BINS).and_then(Vec::<f32>::try_from);
            observed.counts.resize(BINS as usize, 0.0);
            match counts {
                Ok(counts) => {
                    for (sum, count) in observed.counts.iter_mut().zip(counts) {
                        *sum += f64::from(count);
                    }
                }
                Err(error) => result = Err(error),
            }
        });
        result
    }

    fn observe(&mut self, images: &Tensor, mut see: impl FnMut(&mut Observed, &Tensor)) {
        let Self { network, observed, .. } = self;
        no_grad(|| {
            let mut show = |node: NodeId, map: &Tensor| {
                if let Some(observed) = observed.get_mut(&node) {
                    see(observed, &map.to_kind(Kind::Float));
                }
            };
            let (graph, output) = (&network.graph, network.output());
            let _ = network.variables.run_observed(graph, images, output, false, &mut show);
        });
    }

    /// The steps for what has been observed.
    pub fn finish(self) -> Calibration {
        let nodes = self.network.graph.nodes();
        let mut scales: HashMap<NodeId, Scale> = HashMap::new();
        for (&node, observed) in &self.observed {
            let scale = match nodes[node].op {
                // Every colour can occur, also where these images lack it.
                Op::Input => {
                    let (mean, std) = self.network.normalization();
                    let ends = |value: f32| {
                        mean.into_iter().zip(std).map(move |(m, s)| f64::from((value - m) / s))
                    };
                    let low = ends(0.0).fold(f64::INFINITY, f64::min);
                    Scale::of_range(low, ends(1.0).fold(f64::NEG_INFINITY, f64::max))
                }
                // Its values are those of its input, so that nothing is rounded anew.
                Op::MaxPool { .. } if scales.contains_key(&nodes[node].inputs[0]) => {
                    scales[&nodes[node].inputs[0]]
                }
                _ => {
                    let (low, high) = best_range(observed);
                    Scale::of_range(low, high)
                }
            };
            scales.insert(node, scale);
        }
        Calibration { convolutions: self.convolutions, scales }
    }
}

/// The convolutions that compute with integers, and the nodes whose output is rounded: what
/// these convolutions read and, after normalisation and `Relu`, write.
///
/// Convolutions on pooled maps cost nothing and stay as they are; what is only summed up to the
/// embedding is not rounded.
fn plan(graph: &Graph, output: NodeId) -> (HashSet<NodeId>, BTreeSet<NodeId>) {
    let nodes = graph.nodes();
    let mut readers: Vec<Vec<NodeId>> = vec![Vec::new(); nodes.len()];
    let mut pooled = vec![false; nodes.len()];
    for (id, node) in nodes.iter().enumerate() {
        for &input in &node.inputs {
            readers[input].push(id);
        }
        pooled[id] = match node.op {
            Op::GlobalAveragePool | Op::AdaptiveAveragePool { .. } => true,
            Op::Input | Op::ResizeLike => false,
            _ => node.inputs.iter().all(|&input| pooled[input]),
        };
    }
    let mut ends = vec![output];
    let mut next = 0;
    while let Some(&end) = ends.get(next) {
        next += 1;
        if nodes[end].op == Op::Add {
            ends.extend(&nodes[end].inputs);
        }
    }
    let (mut convolutions, mut maps) = (HashSet::new(), BTreeSet::new());
    for (id, node) in nodes.iter().enumerate() {
        if !matches!(node.op, Op::Conv(_)) || pooled[node.inputs[0]] {
            continue;
        }
        convolutions.insert(id);
        maps.insert(node.inputs[0]);
        let mut last = id;
        while let &[reader] = readers[last].as_slice()
            && matches!(nodes[reader].op, Op::BatchNorm { .. } | Op::Relu | Op::Relu6)
        {
            last = reader;
        }
        if !ends.contains(&last) {
            maps.insert(last);
        }
    }
    (convolutions, maps)
}

/// The range, within the observed one, that gives the least squared error.
fn best_range(observed: &Observed) -> (f64, f64) {
    let (low, high) = (observed.low.min(0.0), observed.high.max(0.0));
    let width = (observed.high - observed.low) / observed.counts.len().max(1) as f64;
    let error = |low: f64, high: f64| {
        // A value within the range is off by up to half a step, evenly spread.
        let inside = ((high - low) / STEPS).powi(2) / 12.0;
        let bins = observed.counts.iter().enumerate();
        bins.map(|(bin, &count)| {
            let value = observed.low + (bin as f64 + 0.5) * width;
            let beyond = (low - value).max(value - high).max(0.0);
            count * if beyond > 0.0 { beyond.powi(2) } else { inside }
        })
        .sum::<f64>()
    };
    let trials = |end: f64| {
        let count = if end == 0.0 { 1 } else { TRIALS };
        (0..count).map(move |i| end * (1.0 - SHRINK * f64::from(i)))
    };
    let mut best = (low, high);
    let mut least = f64::INFINITY;
    for low in trials(low) {
        for high in trials(high) {
            let found = error(low, high);
            if found < least {
                least = found;
                best = (low, high);
            }
        }
    }
    best
}

/// Weights and biases of a convolution as integers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Channels {
    /// In the order of the weights given.
    pub weights: Vec<i8>,
    /// Step of each output channel's weights.
    pub weight_steps: Vec<f32>,
    pub biases: Vec<i32>,
    /// The step of the sums of products: that of the input by that of the weights.
    pub bias_steps: Vec<f32>,
}

impl Channels {
    /// For `weights`, output channel by output channel, and one bias for each of those.
    pub fn new(weights: &[f32], bias: &[f32], input: Scale) -> Self {
        let per_channel = (weights.len() / bias.len().max(1)).max(1);
        let mut this = Self {
            weights: Vec::with_capacity(weights.len()),
            weight_steps: Vec::with_capacity(bias.len()),
            biases: Vec::with_capacity(bias.len()),
            bias_steps: Vec::with_capacity(bias.len()),
        };
        for (channel, &b) in weights.chunks_exact(per_channel).zip(bias) {
            let largest = channel.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
            let mut step = (largest / 127.0).max(b.abs() / LARGEST_BIAS / input.step);
            if step <= 0.0 {
                step = 1.0;
            }
            let bias_step = input.step * step;
            this.weights.extend(channel.iter().map(|w| (w / step).round() as i8));
            this.weight_steps.push(step);
            this.biases.push((b / bias_step).round() as i32);
            this.bias_steps.push(bias_step);
        }
        this
    }
}

#[cfg(test)]
mod tests {
    use tch::nn::VarStore;

    use super::*;
    use crate::network::{NetworkConfig, Preset};

    fn network(preset: Preset) -> Network {
        let vs = VarStore::new(Device::Cpu);
        Network::new(&vs, &NetworkConfig { preset, ..NetworkConfig::default() }, 4).unwrap()
    }

    #[test]
    fn zero_is_always_an_integer() {
        for (low, high) in [(-1.0, 1.0), (0.0, 6.0), (2.0, 3.0), (-3.0, -2.0), (-0.01, 7.0)] {
            let scale = Scale::of_range(low, high);
            let value =
                |q: i8| f64::from(scale.step) * (f64::from(q) - f64::from(scale.zero_point));
            let half = f64::from(scale.step) * 0.501;
            assert!((value(i8::MIN) - f64::min(low, 0.0)).abs() < half, "{low} {high}");
            assert!((value(i8::MAX) - f64::max(high, 0.0)).abs() < half, "{low} {high}");
        }
        assert_eq!(Scale::of_range(0.0, 0.0), Scale { step: 1.0, zero_point: 0 });
    }

    #[test]
    fn rare_outliers_are_cut_off_and_common_values_are_not() {
        let mut counts = vec![1e6; BINS as usize];
        let even = Observed { low: -1.0, high: 1.0, counts: counts.clone() };
        assert_eq!(best_range(&even), (-1.0, 1.0));
        // Nearly all values lie in the lowest tenth, one at the upper end.
        counts[BINS as usize / 10..].fill(0.0);
        counts[BINS as usize - 1] = 1.0;
        let (low, high) = best_range(&Observed { low: 0.0, high: 10.0, counts });
        assert!(low == 0.0 && (1.0..3.0).contains(&high), "{high}");
    }

    #[test]
    fn weights_are_rounded_within_their_channel() {
        let input = Scale { step: 0.5, zero_point: 0 };
        let channels = Channels::new(&[1.27, -0.64, 0.0, 0.0, 12.7, 0.1], &[2.0, 0.3, 0.0], input);
        assert_eq!(channels.weights, [127, -64, 0, 0, 127, 1]);
        assert!((channels.weight_steps[0] - 0.01).abs() < 1e-8);
        for (channel, expected) in [2.0, 0.3, 0.0].into_iter().enumerate() {
            let found = channels.biases[channel] as f32 * channels.bias_steps[channel];
            assert!((found - expected).abs() < 0.003, "{channel}: {found}");
        }
        // Without weights, and with a bias that would not fit beside tiny ones.
        assert_eq!(Channels::new(&[0.0], &[0.0], input).weight_steps, [1.0]);
        let large = Channels::new(&[1e-20], &[1e6], input);
        assert!((large.biases[0] as f32 * large.bias_steps[0] - 1e6).abs() < 1.0);
    }

    #[test]
    fn every_convolution_on_the_grid_reads_and_writes_integers() {
        for preset in [Preset::EdgeMobilenetV2, Preset::EdgeResnet18, Preset::PaperResnet50] {
            let network = network(preset);
            let nodes = network.graph.nodes();
            let (convolutions, maps) = plan(&network.graph, network.output());
            for (id, node) in nodes.iter().enumerate() {
                let Op::Conv(conv) = &node.op else { continue };
                let pooled = conv.name == "head.context" || conv.name.starts_with("head.psp");
                assert_eq!(convolutions.contains(&id), !pooled, "{}", conv.name);
                assert!(pooled || maps.contains(&node.inputs[0]), "{}", conv.name);
                let last = ["head.projection", "head.correction", "head.embedding"];
                if last.contains(&conv.name.as_str()) {
                    assert!(!maps.contains(&id), "{}", conv.name);
                }
            }
            assert!(maps.contains(&0));
        }
    }

    #[test]
    fn observed_maps_lie_within_their_range() {
        let network = network(Preset::EdgeResnet18);
        let images = Tensor::randn([2, 3, 32, 48], (Kind::Float, Device::Cpu));
        let mut calibrator = Calibrator::new(&network);
        calibrator.add_range(&images);
        calibrator.add_counts(&images).unwrap();
        for (&node, observed) in &calibrator.observed {
            let values = observed.counts.iter().sum::<f64>();
            let channels = network.graph.channels(node) as f64;
            assert!(observed.low <= observed.high && values >= 2.0 * channels, "{node}");
        }
        let calibration = calibrator.finish();
        // After a ReLU all integers serve the positive side.
        let nodes = network.graph.nodes();
        let (relu, _) = nodes.iter().enumerate().find(|(_, n)| n.op == Op::Relu).unwrap();
        assert_eq!(calibration.scale(relu).unwrap().zero_point, i8::MIN);
        // The pooling after it keeps the integers as they are.
        assert_eq!(calibration.scale(relu + 1), calibration.scale(relu));
        // Black in the brightest and white in the darkest channel of torchvision's colours.
        let found = calibration.scale(0).unwrap();
        let expected = Scale::of_range(-2.117_904, 2.64);
        assert!((found.step - expected.step).abs() < 1e-6);
        assert_eq!(found.zero_point, expected.zero_point);
    }
}
