//! From backbone features to embeddings.

use super::graph::{Conv, Graph, Init, NodeId, Op, Part};

/// Name of the linear projection of the edge head.
pub(super) const PROJECTION: &str = "head.projection";
/// Name of the last convolution of the PSP head.
pub(super) const EMBEDDING: &str = "head.embedding";

/// Batch normalisation of the head: `PyTorch`'s default momentum (method section 1).
const HEAD_MOMENTUM: f64 = 0.1;
/// Channels of each pyramid level and of the 3x3 convolution (SPML, method section 1).
const PSP_CHANNELS: i64 = 512;

/// Nodes of the edge head.
pub(super) struct EdgeHead {
    /// The taps, each of unit length, one after the other: the projection's input.
    pub features: NodeId,
    /// `dim` channels.
    pub output: NodeId,
}

/// Sizes of the edge head.
#[derive(Debug, Clone, Copy)]
pub(super) struct EdgeHeadSettings {
    /// Channels of the correction's hidden layer.
    pub width: i64,
    /// Dimensions of the embedding.
    pub dim: i64,
    /// Spread of the correction's 3x3 cells, so that they see the same pixels at any stride.
    pub dilation: i64,
}

/// A linear projection of the `taps`, each scaled to unit length, plus a correction that sees 3x3 cells and
/// the image as a whole.
///
/// The correction's last layer starts at zero: training starts from the projection alone,
/// which may be a principal component analysis. `deepest` gives the image-wide context.
pub(super) fn edge(
    g: &mut Graph,
    taps: &[NodeId],
    deepest: NodeId,
    EdgeHeadSettings { width, dim, dilation }: EdgeHeadSettings,
) -> EdgeHead {
    let normalized: Vec<NodeId> = taps.iter().map(|&t| g.same(Op::L2Normalize, &[t])).collect();
    let features = g.concat(&normalized);
    let channels = g.channels(features);
    // A cell of `features` has as much energy as there are taps, whatever its channels, so
    // these scales (and not the fan-in) give outputs of variance about 1 and 2.
    let energy = taps.len() as f64;
    let linear = Conv::new(PROJECTION, Part::Head, channels, dim, 1)
        .init(Init::Normal((1.0 / energy).sqrt()));
    let projected = g.conv(features, linear);

    let local = Conv::new("head.local", Part::Head, channels, width, 3)
        .dilation(dilation)
        .init(Init::Normal((2.0 / (9.0 * energy)).sqrt()));
    let local = g.conv(features, local);
    let pooled = g.same(Op::GlobalAveragePool, &[deepest]);
    let pooled = g.same(Op::L2Normalize, &[pooled]);
    let context = Conv::new("head.context", Part::Head, g.channels(deepest), width, 1)
        .init(Init::Normal(std::f64::consts::SQRT_2));
    let context = g.conv(pooled, context);
    let context = g.relu(context);
    // Added before the ReLU: after it, the context could only shift the whole image.
    let hidden = g.same(Op::Add, &[local, context]);
    let hidden = g.relu(hidden);
    let correction = Conv::new("head.correction", Part::Head, width, dim, 1).init(Init::Zero);
    let correction = g.conv(hidden, correction);
    let output = g.same(Op::Add, &[projected, correction]);
    EdgeHead { features, output }
}

/// Pyramid pooling over 1, 2, 3 and 6 bins, a 3x3 convolution and the embedding (`PSPNet` as
/// SPML has it; no dropout). Returns the input of the last convolution and its output.
pub(super) fn psp(g: &mut Graph, features: NodeId, dim: i64) -> (NodeId, NodeId) {
    let channels = g.channels(features);
    let mut levels = vec![features];
    for bins in [1, 2, 3, 6] {
        let x = g.same(Op::AdaptiveAveragePool { bins }, &[features]);
        let name = format!("head.psp{bins}");
        let conv = Conv::new(format!("{name}.conv"), Part::Head, channels, PSP_CHANNELS, 1);
        let x = g.conv(x, conv.without_bias());
        let x = g.batch_norm(x, format!("{name}.bn"), Part::Head, HEAD_MOMENTUM);
        let x = g.relu(x);
        levels.push(g.same(Op::ResizeLike, &[x, features]));
    }
    let x = g.concat(&levels);
    let conv = Conv::new("head.conv", Part::Head, g.channels(x), PSP_CHANNELS, 3);
    let x = g.conv(x, conv.without_bias());
    let x = g.batch_norm(x, "head.bn", Part::Head, HEAD_MOMENTUM);
    let hidden = g.relu(x);
    let embedding = Conv::new(EMBEDDING, Part::Head, PSP_CHANNELS, dim, 1);
    let output = g.conv(hidden, embedding);
    (hidden, output)
}
