//! The layer graph: one description of a network that is both run and exported.

/// Index of a node in its [`Graph`].
pub(crate) type NodeId = usize;

/// Where a layer belongs, for freezing and for learning rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// First convolution of the backbone.
    Stem,
    /// Stage of the backbone, from 1: `layer1..4` of a `ResNet`, the rows of the block table
    /// of `MobileNetV2` (features 1, 2..3, 4..6, 7..10, 11..13, 14..16, 17).
    Stage(u8),
    /// Everything after the backbone.
    Head,
}

/// How the weights of a convolution start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Init {
    /// Normal with variance 2 / fan-in (He et al., 2015): keeps the scale through `Relu`.
    Kaiming,
    /// Normal with this standard deviation.
    Normal(f64),
    /// All zero.
    Zero,
}

/// A two-dimensional convolution with a square kernel.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Conv {
    /// Name of its variables without `.weight` and `.bias`.
    pub name: String,
    pub part: Part,
    pub inputs: i64,
    pub outputs: i64,
    pub kernel: i64,
    pub stride: i64,
    pub dilation: i64,
    pub groups: i64,
    /// Zeros added before the first row and column.
    pub pad_before: i64,
    /// Zeros added after the last row and column.
    pub pad_after: i64,
    pub bias: bool,
    pub init: Init,
}

impl Conv {
    /// A dense convolution with bias, padded so that stride 1 keeps the size.
    pub fn new(
        name: impl Into<String>,
        part: Part,
        inputs: i64,
        outputs: i64,
        kernel: i64,
    ) -> Self {
        Self {
            name: name.into(),
            part,
            inputs,
            outputs,
            kernel,
            stride: 1,
            dilation: 1,
            groups: 1,
            pad_before: kernel / 2,
            pad_after: kernel / 2,
            bias: true,
            init: Init::Kaiming,
        }
    }

    /// One filter per channel.
    pub fn depthwise(mut self) -> Self {
        self.groups = self.inputs;
        self
    }

    /// Reads every `dilation`-th cell; the padding grows with it.
    pub fn dilation(mut self, dilation: i64) -> Self {
        self.dilation = dilation;
        self.pad_before = dilation * (self.kernel / 2);
        self.pad_after = self.pad_before;
        self
    }

    /// Moves by `stride` cells, padded alike on all sides (`PyTorch`).
    pub fn stride(mut self, stride: i64) -> Self {
        self.stride = stride;
        self
    }

    /// Moves by two cells, padded as TensorFlow's SAME does at even sizes: one row and column
    /// fewer before the image than after it.
    pub fn stride_2_same(mut self) -> Self {
        self.stride = 2;
        self.pad_before -= 1;
        self
    }

    /// Leaves the bias to the batch normalisation that follows.
    pub fn without_bias(mut self) -> Self {
        self.bias = false;
        self
    }

    /// Starts the weights in this way.
    pub fn init(mut self, init: Init) -> Self {
        self.init = init;
        self
    }

    /// Shape of the weights, `[outputs, inputs / groups, kernel, kernel]`.
    pub fn weight_shape(&self) -> [i64; 4] {
        [self.outputs, self.inputs / self.groups, self.kernel, self.kernel]
    }
}

/// What a node computes from its inputs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Op {
    /// The image, `[N, 3, H, W]`.
    Input,
    /// Convolution.
    Conv(Conv),
    /// Batch normalisation with this name; `momentum` is the share of the new batch in the
    /// running statistics.
    BatchNorm { name: String, part: Part, momentum: f64 },
    /// max(x, 0).
    Relu,
    /// min(max(x, 0), 6).
    Relu6,
    /// Sum of two nodes; a side of one cell is spread over the other's grid.
    Add,
    /// Concatenation over channels.
    Concat,
    /// Largest of 3x3 cells, every second cell. With `end_padding` the window starts at the
    /// even cells and only the end is padded (Caffe), else it is centred on them.
    MaxPool { end_padding: bool },
    /// Means over 2x2 cells, every second cell.
    HalvingAveragePool,
    /// Mean over all cells, `[N, C, 1, 1]`.
    GlobalAveragePool,
    /// Means over a grid of `bins` by `bins` windows that cover the map.
    AdaptiveAveragePool { bins: i64 },
    /// Bilinear enlargement of the first input to the grid of the second, the corners of the
    /// cells (not their centres) aligned.
    ResizeLike,
    /// Each cell's vector scaled to length 1.
    L2Normalize,
}

/// Batch normalisation's guard against a variance of zero (torchvision).
pub(crate) const BATCH_NORM_EPSILON: f64 = 1e-5;
/// Smallest length by which a vector is divided (method section 1).
pub(crate) const NORM_EPSILON: f64 = 1e-12;

/// One layer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub op: Op,
    pub inputs: Vec<NodeId>,
    /// Channels of the output.
    pub channels: i64,
}

/// The layers of a network; every node comes after its inputs.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Graph {
    nodes: Vec<Node>,
}

impl Graph {
    /// All nodes in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Channels of a node's output.
    pub fn channels(&self, node: NodeId) -> i64 {
        self.nodes[node].channels
    }

    /// Changes every convolution, for comparisons with the original networks.
    #[cfg(test)]
    pub fn for_each_conv(&mut self, mut change: impl FnMut(&mut Conv)) {
        for node in &mut self.nodes {
            if let Op::Conv(conv) = &mut node.op {
                change(conv);
            }
        }
    }

    fn push(&mut self, op: Op, inputs: &[NodeId], channels: i64) -> NodeId {
        debug_assert!(inputs.iter().all(|&i| i < self.nodes.len()));
        self.nodes.push(Node { op, inputs: inputs.to_vec(), channels });
        self.nodes.len() - 1
    }

    /// Adds the image of 3 channels.
    pub fn input(&mut self) -> NodeId {
        self.push(Op::Input, &[], 3)
    }

    /// Adds a convolution.
    pub fn conv(&mut self, x: NodeId, conv: Conv) -> NodeId {
        debug_assert_eq!(conv.inputs, self.channels(x), "{}", conv.name);
        let channels = conv.outputs;
        self.push(Op::Conv(conv), &[x], channels)
    }

    /// Adds a batch normalisation.
    pub fn batch_norm(
        &mut self,
        x: NodeId,
        name: impl Into<String>,
        part: Part,
        momentum: f64,
    ) -> NodeId {
        let op = Op::BatchNorm { name: name.into(), part, momentum };
        self.push(op, &[x], self.channels(x))
    }

    /// Adds an operation that keeps the number of channels of its first input.
    pub fn same(&mut self, op: Op, inputs: &[NodeId]) -> NodeId {
        let channels = self.channels(inputs[0]);
        self.push(op, inputs, channels)
    }

    /// Adds a `Relu`.
    pub fn relu(&mut self, x: NodeId) -> NodeId {
        self.same(Op::Relu, &[x])
    }

    /// Adds a concatenation.
    pub fn concat(&mut self, inputs: &[NodeId]) -> NodeId {
        let channels = inputs.iter().map(|&i| self.channels(i)).sum();
        self.push(Op::Concat, inputs, channels)
    }
}
