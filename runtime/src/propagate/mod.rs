//! Mask propagation: the first frame's instance masks carried along the video.
//!
//! Every grid cell of a new frame looks for the cells that resemble it most in the first
//! frame and in the latest few, within a window around its own place, and takes over the
//! mean of their labels, weighted by `exp(cosine / temperature)`. Labels stay soft on the
//! grid; masks are made from them at the end of each step and never fed back. This is the
//! evaluation protocol of DINO (Caron et al., 2021, "Emerging properties in
//! self-supervised vision transformers", section 4.2.2), with one difference in cost: no
//! affinity matrix is built, and memory is a fixed number of frames. [`Protocol`] has two other
//! published protocols, for comparisons.

mod affinity;
mod coarse;
mod exhaustive;
mod labels;
mod masks;
mod memory;
mod shortlist;
#[cfg(test)]
mod tests;
mod track;
mod window;

pub(crate) use labels::first_labels;
pub(crate) use masks::{FLAT, TRACE};
pub use masks::{InstanceStat, MaskMap};
#[cfg(test)]
pub(crate) use tests::latest_labels;
pub use track::{MaskChange, MaskTrack};

use crate::embed::EmbeddingMap;
use crate::labels::LabelMap;
use crate::memory::OutOfMemory;
use affinity::Affinity;
use masks::MaskWriter;
use memory::{ContextFrame, ContextMemory};

/// How the first mask is brought to the embedding grid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FirstLabels {
    /// Each cell gets the share that each instance has of its area: thin parts survive,
    /// which gains 0.1 to 3.9 points of J over [`FirstLabels::Nearest`] on seven of eight
    /// DAVIS clips.
    #[default]
    Area,
    /// Each cell gets the instance at its centre, as the DINO protocol does.
    Nearest,
    /// Each cell gets the share of the pixels around its centre, as `TimeCycle` and CRW do.
    Bilinear,
}

/// How labels are carried. The published protocols differ in more than numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Variant A, like `TimeCycle` (Wang et al., 2019, "Learning correspondence from the
    /// cycle-consistency of time"): a softmax over the cells of each context frame, of which
    /// the best few give their labels; the mean over the context frames is scaled to 0..1
    /// channel by channel and carried on like that. Before the start, the first frame is
    /// repeated.
    TimeCycle,
    /// Variant B, that of DINO: the best few cells of all context frames together, in a
    /// square window. Labels are scaled for the masks only.
    #[default]
    Dino,
    /// Variant C, that of CRW (Jabri et al., 2020, "Space-time correspondence as a contrastive
    /// random walk"): as [`Protocol::Dino`] with a round window that does not apply to the
    /// first frame, which is also repeated before the start. Labels are never scaled, and are
    /// upsampled to the output's size at once.
    Crw,
}

/// Settings of the propagation; the defaults are those of the DINO protocol but for
/// [`FirstLabels::Area`].
#[derive(Debug, Clone, PartialEq)]
pub struct PropagationConfig {
    /// How labels are carried.
    pub protocol: Protocol,
    /// Latest frames that are kept beside the first one, 0..=64.
    pub context_frames: usize,
    /// Cells that the window reaches to each side, in every context frame. With
    /// [`Protocol::Crw`]: cells at this distance and beyond are outside, except in the first
    /// frame.
    pub radius: usize,
    /// Context cells that vote for a cell, over all context frames together (with
    /// [`Protocol::TimeCycle`] of each context frame), 1..=64.
    pub topk: usize,
    /// A cell's vote is `exp(cosine / temperature)`; above 0.
    pub temperature: f32,
    /// How the first mask is brought to the grid.
    pub first_labels: FirstLabels,
}

impl Default for PropagationConfig {
    fn default() -> Self {
        Self::variant_b()
    }
}

impl PropagationConfig {
    /// The settings of `TimeCycle`: no window. Frames are squashed to 320x320 pixels for it.
    pub fn variant_a() -> Self {
        Self {
            protocol: Protocol::TimeCycle,
            context_frames: 7,
            radius: usize::MAX,
            topk: 5,
            // Cosines are multiplied by the root of the 512 channels of that network.
            temperature: 512f32.sqrt().recip(),
            first_labels: FirstLabels::Bilinear,
        }
    }

    /// The settings of DINO but for [`FirstLabels::Area`]. Frames have a short side of 480
    /// pixels for it.
    pub fn variant_b() -> Self {
        Self {
            protocol: Protocol::Dino,
            context_frames: 7,
            radius: 12,
            topk: 5,
            temperature: 0.1,
            first_labels: FirstLabels::Area,
        }
    }

    /// The settings of CRW. Frames keep their size for it.
    pub fn variant_c() -> Self {
        Self {
            protocol: Protocol::Crw,
            context_frames: 20,
            radius: 12,
            topk: 10,
            temperature: 0.05,
            first_labels: FirstLabels::Bilinear,
        }
    }

    /// The settings of a protocol.
    pub fn of(protocol: Protocol) -> Self {
        match protocol {
            Protocol::TimeCycle => Self::variant_a(),
            Protocol::Dino => Self::variant_b(),
            Protocol::Crw => Self::variant_c(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), PropagateError> {
        let PropagationConfig { context_frames, topk, temperature, .. } = *self;
        // The bounds keep a slip in a configuration from asking for gigabytes.
        let refuse =
            |setting, value, allowed| Err(PropagateError::Setting { setting, value, allowed });
        if context_frames > 64 {
            return refuse("context_frames", context_frames as f64, "0 to 64");
        }
        if !(1..=64).contains(&topk) {
            return refuse("topk", topk as f64, "1 to 64");
        }
        if !(temperature > 0.0 && temperature.is_finite()) {
            return refuse("temperature", f64::from(temperature), "above 0 and finite");
        }
        Ok(())
    }
}

/// Why masks could not be propagated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PropagateError {
    /// A setting is out of range.
    #[error("the propagation setting {setting} is {value}; it must be {allowed}")]
    Setting {
        /// Name of the field of [`PropagationConfig`].
        setting: &'static str,
        /// Its value.
        value: f64,
        /// The allowed values.
        allowed: &'static str,
    },
    /// The embedding map contradicts itself.
    #[error(
        "the embedding map holds {len} values but claims to be {height}x{width}x{dim} at stride \
         {stride}; all of these must be above 0 and their product must match"
    )]
    Embedding {
        /// Values present.
        len: usize,
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
        /// Channels.
        dim: usize,
        /// Input pixels per cell.
        stride: usize,
    },
    /// The grid is not the one that the propagation was started with.
    #[error(
        "the embedding grid changed from {expected:?} to {got:?} (height, width, dim, stride); \
         start again with a mask at the new size"
    )]
    Grid {
        /// Grid at the start.
        expected: (usize, usize, usize, usize),
        /// Grid now.
        got: (usize, usize, usize, usize),
    },
    /// The first mask's size does not match its data.
    #[error("the mask holds {len} labels but claims to be {width}x{height} pixels")]
    Mask {
        /// Labels present.
        len: usize,
        /// Claimed width.
        width: u32,
        /// Claimed height.
        height: u32,
    },
    /// A mask is not of the frame's size.
    #[error(
        "the mask has {mask:?} pixels, but the frame {frame:?} (width, height); give one of the frame's size"
    )]
    MaskSize {
        /// Width and height of the mask.
        mask: (u32, u32),
        /// Width and height of the frame.
        frame: (u32, u32),
    },
    /// The first mask has no instance.
    #[error("the mask holds no object; mark each object's pixels with an id of 1 to 254")]
    EmptyMask,
    /// A frame came before the first mask.
    #[error("no mask was given yet; start the propagation with the first frame and its mask")]
    NotStarted,
    /// There is no memory for the masks.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
}

/// Carries instance masks from frame to frame.
///
/// Memory is allocated by [`Propagator::start`] and stays the same afterwards, however
/// long the video; cost per frame hardly depends on the number of instances, because the
/// search for similar cells is done once for all of them.
#[derive(Debug)]
pub struct Propagator {
    config: PropagationConfig,
    state: Option<State>,
}

/// What exists once a first mask was given.
#[derive(Debug)]
struct State {
    height: usize,
    width: usize,
    dim: usize,
    stride: usize,
    /// Instance of each label channel behind background, rising.
    ids: Vec<u8>,
    memory: ContextMemory,
    affinity: Affinity,
    writer: MaskWriter,
}

impl Propagator {
    /// A propagator that waits for a first mask.
    pub fn new(config: PropagationConfig) -> Self {
        Self { config, state: None }
    }

    /// Whether [`Propagator::start`] succeeded before.
    pub fn is_started(&self) -> bool {
        self.state.is_some()
    }

    /// Bytes of the buffers that grow with grid, context or instances; constant between two starts once the first mask
    /// of the present output size was written.
    pub fn memory_bytes(&self) -> usize {
        self.state.as_ref().map_or(0, |s| {
            s.memory.memory_bytes() + s.affinity.memory_bytes() + s.writer.memory_bytes()
        })
    }

    /// Starts, or starts anew, with a frame whose masks are known.
    ///
    /// `mask` is at any size, usually the frame's. Void (255) is taken as background.
    ///
    /// # Errors
    /// [`PropagateError`] when a setting, the map or the mask cannot be used; a
    /// propagation that was under way then goes on as before.
    pub fn start(
        &mut self,
        embedding: &EmbeddingMap,
        mask: &LabelMap,
    ) -> Result<(), PropagateError> {
        self.config.check()?;
        check_embedding(embedding)?;
        let EmbeddingMap { height, width, dim, stride, .. } = *embedding;
        let ids = instances_of(mask)?;
        let channels = ids.len() + 1;
        let affinity = Affinity::new(height, width, dim, &self.config);
        let mut memory = ContextMemory::default();
        let repeat_first = self.config.protocol != Protocol::Dino;
        memory.reset(self.config.context_frames, repeat_first, || ContextFrame {
            features: affinity.features(),
            labels: vec![0.0; height * width * channels],
        });
        let ContextFrame { features, labels } = &mut memory.current;
        features.fill(&embedding.data, width, dim);
        let grid = (height, width, stride);
        first_labels(mask, grid, &ids, self.config.first_labels, labels);
        memory.keep_as_first();
        let writer = MaskWriter::default();
        self.state = Some(State { height, width, dim, stride, ids, memory, affinity, writer });
        Ok(())
    }

    /// Carries the masks to the next frame and writes them at `out_w` x `out_h` pixels.
    ///
    /// # Errors
    /// [`PropagateError::NotStarted`], or [`PropagateError::Grid`] when the frame size
    /// changed; the state is as before then. [`PropagateError::Memory`] when there is no memory for
    /// the masks, and the frame is left out.
    pub fn step(
        &mut self,
        embedding: &EmbeddingMap,
        out_w: u32,
        out_h: u32,
        out: &mut MaskMap,
    ) -> Result<(), PropagateError> {
        let state = self.state.as_mut().ok_or(PropagateError::NotStarted)?;
        check_embedding(embedding)?;
        let expected = (state.height, state.width, state.dim, state.stride);
        let got = (embedding.height, embedding.width, embedding.dim, embedding.stride);
        if got != expected {
            return Err(PropagateError::Grid { expected, got });
        }
        let neighbours = state.affinity.search(&embedding.data, &state.memory);
        let mut current = state.memory.take_current();
        current.features.fill(&embedding.data, state.width, state.dim);
        let carry_labels = match self.config.protocol {
            Protocol::TimeCycle => labels::carry_scaled_labels,
            Protocol::Dino | Protocol::Crw => labels::carry_labels,
        };
        carry_labels(
            neighbours,
            &state.memory,
            (state.height * state.width, state.ids.len() + 1, state.width),
            self.config.temperature,
            &mut current.labels,
        );
        let grid = (state.height, state.width, state.stride);
        let (protocol, size) = (self.config.protocol, (out_w, out_h));
        let written = state.writer.write(&current.labels, grid, &state.ids, protocol, size, out);
        state.memory.current = current;
        written?;
        state.memory.advance();
        Ok(())
    }
}

/// The instances of a first mask, rising.
pub(crate) fn instances_of(mask: &LabelMap) -> Result<Vec<u8>, PropagateError> {
    if mask.data.len() != mask.width as usize * mask.height as usize {
        return Err(PropagateError::Mask {
            len: mask.data.len(),
            width: mask.width,
            height: mask.height,
        });
    }
    let ids = mask.instance_ids();
    if ids.is_empty() {
        return Err(PropagateError::EmptyMask);
    }
    Ok(ids)
}

fn check_embedding(embedding: &EmbeddingMap) -> Result<(), PropagateError> {
    let EmbeddingMap { height, width, dim, stride, ref data } = *embedding;
    let expected = height.checked_mul(width).and_then(|cells| cells.checked_mul(dim));
    if data.is_empty() || stride == 0 || expected != Some(data.len()) {
        return Err(PropagateError::Embedding { len: data.len(), height, width, dim, stride });
    }
    Ok(())
}
