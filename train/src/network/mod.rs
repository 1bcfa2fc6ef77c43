//! The networks that embed pixels.
//!
//! Each is described once as a layer graph. [`Network`] runs that graph with libtorch;
//! [`crate::export::onnx`] writes the same graph as an ONNX file.

mod backbones;
mod fold;
mod graph;
mod heads;
mod pickle;
pub mod pretrained;
mod run;
pub mod weights;

use serde::{Deserialize, Serialize};
use tch::nn::VarStore;
use tch::{Tensor, no_grad};
use thiserror::Error;

use backbones::Padding;
pub(crate) use fold::BatchNorm;
pub use graph::Part;
pub(crate) use graph::{Conv, Graph, NORM_EPSILON, NodeId, Op};
pub(crate) use run::Variables;

/// Most dimensions of an embedding and most channels of the edge head's correction.
const MAX_CHANNELS: i64 = 4096;

/// Why a network could not be made.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// A setting is out of its range.
    #[error("network setting `{key}` is {value}; give a value from 1 to {MAX_CHANNELS}")]
    Setting {
        /// Name of the setting.
        key: &'static str,
        /// Its value.
        value: i64,
    },
    /// libtorch could not allocate or initialise a variable.
    #[error("libtorch could not make variable `{name}`: {source}")]
    Variable {
        /// Name of the variable.
        name: String,
        /// What libtorch says.
        source: tch::TchError,
    },
}

/// The networks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// `MobileNetV2` up to `features.13`, which is both the second tap (the first is
    /// `features.6`) and the source of the context.
    #[default]
    EdgeMobilenetV2,
    /// The same taps, and the context from `features.17`.
    EdgeMobilenetV2Deep,
    /// [`Self::EdgeMobilenetV2`] for torchvision's weights, which expect other padding and
    /// other colours than those from TensorFlow.
    EdgeMobilenetV2Torchvision,
    /// ResNet-18 up to `layer3`, taps `layer2` and `layer3`.
    #[serde(rename = "edge-resnet18")]
    EdgeResnet18,
    /// The same with ResNet-34.
    #[serde(rename = "edge-resnet34")]
    EdgeResnet34,
    /// `PSPNet` on ResNet-50 as in the paper, in torchvision's variant.
    #[serde(rename = "paper-resnet50")]
    PaperResnet50,
    /// The same on the original Caffe ResNet-50: strides in the 1x1 convolutions, another
    /// max pool, input in 0..255 less the mean.
    #[serde(rename = "paper-resnet50-caffe")]
    PaperResnet50Caffe,
}

impl Preset {
    /// Mean and standard deviation of the input's channels (RGB, values in 0..1) that the
    /// backbone's published weights expect.
    pub fn normalization(self) -> ([f32; 3], [f32; 3]) {
        match self {
            Self::EdgeMobilenetV2 | Self::EdgeMobilenetV2Deep => ([0.5; 3], [0.5; 3]),
            Self::EdgeMobilenetV2Torchvision
            | Self::EdgeResnet18
            | Self::EdgeResnet34
            | Self::PaperResnet50 => ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            Self::PaperResnet50Caffe => {
                ([123.68 / 255.0, 116.78 / 255.0, 103.94 / 255.0], [1.0 / 255.0; 3])
            }
        }
    }
}

/// Side of an embedding's cell in pixels, written as a number in recipes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum OutputStride {
    /// 4: four times the cells of 8 and nearly three times the computation; thin things keep
    /// their shape. Set `loss.upsample` to 1 with it.
    Four,
    /// 8, the paper's.
    #[default]
    Eight,
    /// 16: a quarter of the cells, at less than half of the computation.
    Sixteen,
}

impl OutputStride {
    /// The side in pixels.
    pub fn pixels(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
            Self::Sixteen => 16,
        }
    }
}

impl TryFrom<u8> for OutputStride {
    type Error = String;

    fn try_from(pixels: u8) -> Result<Self, String> {
        match pixels {
            4 => Ok(Self::Four),
            8 => Ok(Self::Eight),
            16 => Ok(Self::Sixteen),
            other => Err(format!("the output stride is {other}; it must be 4, 8 or 16")),
        }
    }
}

impl From<OutputStride> for u8 {
    fn from(stride: OutputStride) -> Self {
        stride.pixels() as Self
    }
}

/// Settings of a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// Which network.
    pub preset: Preset,
    /// Pixels from one embedding to the next, 8 (paper) or 16.
    pub output_stride: OutputStride,
    /// Dimensions of the embedding (paper: 32).
    pub dim: i64,
    /// Edge presets: channels of the head's non-linear correction.
    pub head_channels: i64,
    /// Paper presets: share of each batch in the running statistics of the backbone's batch
    /// normalisations (SPML: 3e-4; the head's is 0.1).
    pub backbone_bn_momentum: f64,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            preset: Preset::default(),
            output_stride: OutputStride::default(),
            dim: 32,
            head_channels: 96,
            backbone_bn_momentum: 3e-4,
        }
    }
}

/// A variable of a network.
#[derive(Debug)]
pub struct Parameter {
    /// Name as in torchvision's state dictionaries; the head's start with `head.`.
    pub name: String,
    /// The variable itself, not a copy.
    pub tensor: Tensor,
    /// Where it belongs.
    pub part: Part,
    /// Whether it is a bias, the shift of a batch normalisation included.
    pub bias: bool,
    /// Whether it is learned: running statistics of batch normalisations are not.
    pub trainable: bool,
}

/// A network with its variables.
#[derive(Debug)]
pub struct Network {
    pub(crate) graph: Graph,
    pub(crate) variables: Variables,
    config: NetworkConfig,
    features: NodeId,
    output: NodeId,
    projection: &'static str,
}

impl Network {
    /// Makes a network with random weights, a function of `seed`, whose variables live in
    /// `vs`, on its device.
    ///
    /// # Errors
    /// [`NetworkError`] for a setting out of range or when memory runs out.
    pub fn new(vs: &VarStore, config: &NetworkConfig, seed: u64) -> Result<Self, NetworkError> {
        for (key, value) in [("dim", config.dim), ("head_channels", config.head_channels)] {
            if !(1..=MAX_CHANNELS).contains(&value) {
                return Err(NetworkError::Setting { key, value });
            }
        }
        let mut graph = Graph::default();
        let g = &mut graph;
        let image = g.input();
        let stride = config.output_stride;
        // The first tap has stride 8 at most.
        let edge = |g: &mut Graph, [middle, deep]: [NodeId; 2], deepest| {
            let middle = match stride {
                OutputStride::Four | OutputStride::Eight => middle,
                OutputStride::Sixteen => g.same(Op::HalvingAveragePool, &[middle]),
            };
            let settings = heads::EdgeHeadSettings {
                width: config.head_channels,
                dim: config.dim,
                dilation: if stride == OutputStride::Four { 2 } else { 1 },
            };
            let head = heads::edge(g, &[middle, deep], deepest, settings);
            (head.features, head.output, heads::PROJECTION)
        };
        let (features, output, projection) = match config.preset {
            Preset::EdgeMobilenetV2 => {
                let taps = backbones::mobilenet_v2(g, image, [6, 13], stride, Padding::Same);
                edge(g, taps, taps[1])
            }
            Preset::EdgeMobilenetV2Deep => {
                let [middle, deep, deepest] =
                    backbones::mobilenet_v2(g, image, [6, 13, 17], stride, Padding::Same);
                edge(g, [middle, deep], deepest)
            }
            Preset::EdgeMobilenetV2Torchvision => {
                let taps = backbones::mobilenet_v2(g, image, [6, 13], stride, Padding::Symmetric);
                edge(g, taps, taps[1])
            }
            Preset::EdgeResnet18 => {
                let taps = backbones::basic_resnet(g, image, [2, 2, 2], stride);
                edge(g, taps, taps[1])
            }
            Preset::EdgeResnet34 => {
                let taps = backbones::basic_resnet(g, image, [3, 4, 6], stride);
                edge(g, taps, taps[1])
            }
            Preset::PaperResnet50 | Preset::PaperResnet50Caffe => {
                let caffe = config.preset == Preset::PaperResnet50Caffe;
                let momentum = config.backbone_bn_momentum;
                let deep = backbones::resnet50(g, image, stride, caffe, momentum);
                let (features, output) = heads::psp(g, deep, config.dim);
                (features, output, heads::EMBEDDING)
            }
        };
        let variables = Variables::new(&graph, vs, seed)?;
        Ok(Self { graph, variables, config: config.clone(), features, output, projection })
    }

    /// Embeds images `[N, 3, H, W]`, normalised as [`Self::normalization`] says, H and W
    /// multiples of [`Self::stride`]: `[N, dim, H / stride, W / stride]`, not scaled to unit
    /// length.
    ///
    /// With `train` batch normalisations use and record the statistics of the batch, which
    /// takes at least two images; without, the recorded ones. Gradients are recorded in both
    /// cases, unless this runs inside `tch::no_grad`.
    pub fn forward(&self, images: &Tensor, train: bool) -> Tensor {
        self.run(images, self.output, train)
    }

    /// Input of the last linear layer, `[N, C, H / stride, W / stride]`, for images as in
    /// [`Self::forward`]. For edge presets these are the backbone's taps, each of unit length
    /// over its channels, one after the other.
    pub fn head_input(&self, images: &Tensor) -> Tensor {
        self.run(images, self.features, false)
    }

    fn run(&self, images: &Tensor, node: NodeId, train: bool) -> Tensor {
        self.variables.run(&self.graph, images, node, train)
    }

    /// Sets the linear layer that reads [`Self::head_input`]: `weight` `[dim, C]`, `bias`
    /// `[dim]`. If they have fewer rows than the network has dimensions, the others become 0.
    ///
    /// # Panics
    /// When `weight` has another number of columns, or either more rows, than the layer.
    pub fn set_projection(&self, weight: &Tensor, bias: &Tensor) {
        no_grad(|| {
            for (suffix, value) in [("weight", weight), ("bias", bias)] {
                let Some(variable) = self.variables.get(&format!("{}.{suffix}", self.projection))
                else {
                    continue;
                };
                let mut target = variable.tensor.detach();
                let _ = target.zero_();
                let rows = value.size()[0];
                let mut shape = target.size();
                shape[0] = rows;
                target.narrow(0, 0, rows).copy_(&value.reshape(shape));
            }
        });
    }

    /// Every variable, running statistics included, in the order of the layers.
    pub fn parameters(&self) -> Vec<Parameter> {
        self.variables.parameters()
    }

    /// Mean and standard deviation of the input, see [`Preset::normalization`].
    pub fn normalization(&self) -> ([f32; 3], [f32; 3]) {
        self.config.preset.normalization()
    }

    /// Dimensions of the embedding.
    pub fn dim(&self) -> i64 {
        self.config.dim
    }

    /// Side of an embedding's cell in pixels.
    pub fn stride(&self) -> usize {
        self.config.output_stride.pixels()
    }

    /// Settings that it was made with.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// Node of the embedding, for the export.
    pub(crate) fn output(&self) -> NodeId {
        self.output
    }
}

#[cfg(test)]
mod tests;
