//! The backbones, with the names of torchvision's state dictionaries.
//!
//! All are brought to output stride 4, 8 or 16: where the original halves the grid once more, the
//! stride becomes 1 and what follows reads every second (fourth) cell. A convolution that
//! itself carried the stride keeps the dilation of the grid that it reads, so that the cells
//! of the original grid come out as the original network computes them.

use super::OutputStride;
use super::graph::{Conv, Graph, NodeId, Op, Part};

/// How a convolution with stride 2 is padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Padding {
    /// Alike on all sides, as torchvision's networks.
    Symmetric,
    /// As TensorFlow's SAME at even sizes.
    Same,
}

/// `MobileNetV2` (Sandler et al., 2018) without batch normalisation: that is folded into the
/// weights and biases. Returns the outputs of the blocks asked for in `taps`, 1 to 17.
///
/// `padding` is that of the strides. `features.14` onwards, which only serve the image-wide
/// context, have twice the output stride.
pub(super) fn mobilenet_v2<const TAPS: usize>(
    g: &mut Graph,
    image: NodeId,
    taps: [usize; TAPS],
    stride: OutputStride,
    padding: Padding,
) -> [NodeId; TAPS] {
    // Table 2 of the paper: expansion, channels, blocks, stride.
    const ROWS: [(i64, i64, usize, i64); 7] = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ];
    let mut found = [image; TAPS];
    let last = taps.iter().copied().max().unwrap_or(0);
    let halved = |conv: Conv| match padding {
        Padding::Symmetric => conv.stride(2),
        Padding::Same => conv.stride_2_same(),
    };
    let mut x = g.conv(image, halved(Conv::new("features.0.0", Part::Stem, 3, 32, 3)));
    x = g.same(Op::Relu6, &[x]);
    let mut index = 0;
    let mut dilation = 1;
    // The first block whose stride gives way to dilation.
    let dense_from = match stride {
        OutputStride::Four => 4,
        OutputStride::Eight => 7,
        OutputStride::Sixteen => usize::MAX,
    };
    for (row, &(expansion, channels, blocks, row_stride)) in ROWS.iter().enumerate() {
        let part = Part::Stage(row as u8 + 1);
        for block in 0..blocks {
            index += 1;
            if index > last {
                return found;
            }
            let input = x;
            let inputs = g.channels(x);
            let hidden = inputs * expansion;
            let block_stride = if block == 0 { row_stride } else { 1 };
            let name = format!("features.{index}.conv");
            // Block 1 does not expand, so its layers are numbered one lower.
            let (depthwise, projection) = if expansion == 1 { ("0.0", "1") } else { ("1.0", "2") };
            if expansion != 1 {
                x = g.conv(x, Conv::new(format!("{name}.0.0"), part, inputs, hidden, 1));
                x = g.same(Op::Relu6, &[x]);
            }
            let conv = Conv::new(format!("{name}.{depthwise}"), part, hidden, hidden, 3)
                .depthwise()
                .dilation(dilation);
            x = g.conv(
                x,
                match (index, block_stride) {
                    // From stride 4 to 8 and from 8 to 16.
                    (4 | 7, _) if block_stride == 2 && index >= dense_from => conv,
                    // From the output stride on, symmetric because the grid may be odd.
                    (14, _) => conv.stride(2),
                    (_, 2) => halved(conv),
                    _ => conv,
                },
            );
            if matches!(index, 4 | 7) && index >= dense_from {
                dilation *= 2;
            }
            x = g.same(Op::Relu6, &[x]);
            x = g.conv(x, Conv::new(format!("{name}.{projection}"), part, hidden, channels, 1));
            if block_stride == 1 && inputs == channels {
                x = g.same(Op::Add, &[input, x]);
            }
            for (slot, _) in found.iter_mut().zip(taps).filter(|(_, tap)| *tap == index) {
                *slot = x;
            }
        }
    }
    found
}

/// ResNet-18 or ResNet-34 (He et al., 2016) without batch normalisation, which is folded into
/// the weights and biases, up to `layer3`; `blocks` are those of its layers (2, 2, 2 or
/// 3, 4, 6). Returns the outputs of `layer2` and `layer3`.
pub(super) fn basic_resnet(
    g: &mut Graph,
    image: NodeId,
    blocks: [usize; 3],
    stride: OutputStride,
) -> [NodeId; 2] {
    let mut x = g.conv(image, Conv::new("conv1", Part::Stem, 3, 64, 7).stride(2));
    x = g.relu(x);
    x = g.same(Op::MaxPool { end_padding: false }, &[x]);
    let mut layer2 = x;
    let ((stride2, dilation2), (stride3, dilation3)) = match stride {
        OutputStride::Four => ((1, 2), (1, 4)),
        OutputStride::Eight => ((2, 1), (1, 2)),
        OutputStride::Sixteen => ((2, 1), (2, 1)),
    };
    let mut previous = 1;
    let [blocks1, blocks2, blocks3] = blocks;
    for (layer, channels, blocks, stride, dilation) in [
        (1, 64, blocks1, 1, 1),
        (2, 128, blocks2, stride2, dilation2),
        (3, 256, blocks3, stride3, dilation3),
    ] {
        let part = Part::Stage(layer);
        for block in 0..blocks {
            let input = x;
            let inputs = g.channels(x);
            let first = block == 0;
            let name = format!("layer{layer}.{block}");
            let conv1 = Conv::new(format!("{name}.conv1"), part, inputs, channels, 3)
                .dilation(if first { previous } else { dilation })
                .stride(if first { stride } else { 1 });
            x = g.conv(x, conv1);
            x = g.relu(x);
            let conv2 = Conv::new(format!("{name}.conv2"), part, channels, channels, 3);
            x = g.conv(x, conv2.dilation(dilation));
            let shortcut = if first && layer > 1 {
                let name = format!("{name}.downsample.0");
                g.conv(input, Conv::new(name, part, inputs, channels, 1).stride(stride))
            } else {
                input
            };
            x = g.same(Op::Add, &[x, shortcut]);
            x = g.relu(x);
        }
        if layer == 2 {
            layer2 = x;
        }
        previous = dilation;
    }
    [layer2, x]
}

/// ResNet-50 (He et al., 2016) with batch normalisation, strides 1, 2, 1, 1 and dilations
/// 1, 1, 2, 4 (output stride 16: strides 1, 2, 2, 1 and dilations 1, 1, 1, 2; output stride 4:
/// strides 1 and dilations 1, 2, 4, 8). Returns the output of `layer4`, 2048 channels.
///
/// `caffe` places strides and the window of the max pool as the original Caffe model does,
/// for weights that come from there; else as torchvision. `momentum` is that of the batch
/// normalisations.
pub(super) fn resnet50(
    g: &mut Graph,
    image: NodeId,
    stride: OutputStride,
    caffe: bool,
    momentum: f64,
) -> NodeId {
    let norm = |g: &mut Graph, x, conv: Conv, name: String| {
        let part = conv.part;
        let x = g.conv(x, conv.without_bias());
        g.batch_norm(x, name, part, momentum)
    };
    let stem = Conv::new("conv1", Part::Stem, 3, 64, 7).stride(2);
    let mut x = norm(g, image, stem, "bn1".to_owned());
    x = g.relu(x);
    x = g.same(Op::MaxPool { end_padding: caffe }, &[x]);
    let mut previous = 1;
    let (stride2, dilation2, stride3, dilation3, dilation4) = match stride {
        OutputStride::Four => (1, 2, 1, 4, 8),
        OutputStride::Eight => (2, 1, 1, 2, 4),
        OutputStride::Sixteen => (2, 1, 2, 1, 2),
    };
    for (layer, width, blocks, stride, dilation) in [
        (1, 64, 3, 1, 1),
        (2, 128, 4, stride2, dilation2),
        (3, 256, 6, stride3, dilation3),
        (4, 512, 3, 1, dilation4),
    ] {
        let part = Part::Stage(layer);
        let outputs = 4 * width;
        for block in 0..blocks {
            let input = x;
            let inputs = g.channels(x);
            let name = format!("layer{layer}.{block}");
            let first = block == 0;
            let stride = if first { stride } else { 1 };
            let (stride1, stride2) = if caffe { (stride, 1) } else { (1, stride) };
            // The Caffe model strides before the 3x3 convolution, which then reads the new
            // grid; torchvision strides in it, so that it reads the old one.
            let spread = if first && !caffe { previous } else { dilation };
            let conv1 = Conv::new(format!("{name}.conv1"), part, inputs, width, 1).stride(stride1);
            x = norm(g, x, conv1, format!("{name}.bn1"));
            x = g.relu(x);
            let conv2 = Conv::new(format!("{name}.conv2"), part, width, width, 3)
                .dilation(spread)
                .stride(stride2);
            x = norm(g, x, conv2, format!("{name}.bn2"));
            x = g.relu(x);
            let conv3 = Conv::new(format!("{name}.conv3"), part, width, outputs, 1);
            x = norm(g, x, conv3, format!("{name}.bn3"));
            let shortcut = if first {
                let conv = Conv::new(format!("{name}.downsample.0"), part, inputs, outputs, 1);
                norm(g, input, conv.stride(stride), format!("{name}.downsample.1"))
            } else {
                input
            };
            x = g.same(Op::Add, &[x, shortcut]);
            x = g.relu(x);
        }
        previous = dilation;
    }
    x
}
