//! The losses of the joint batch, and their gradient by halves.
//!
//! Process `r` has the pixels of its images and thereby their segments `Z_r`; the segments of
//! all processes, `Z = [Z_0; Z_1; …]`, are gathered. With `P_r` of the `P` pixels and `W`
//! processes it computes
//!
//! `L_r = P_r/P (L_s + λ_c L_c)(its pixels, Z) + λ_v L_v(Z) / W`,  `Σ_r L_r = L`
//!
//! with its pixels and `Z` as leaves. `∂L/∂Z` is the sum of `∂L_r/∂Z` over all processes; of
//! it, process `r` sends the rows of `Z_r`, with the gradient of its pixels, back through its
//! network. The sum of the networks' gradients over all processes is that of one process which
//! has the joint batch.

use tch::{Device, Kind, Tensor};

use super::{Communicator, DistributedError};
use crate::losses::dictionary::Dictionary;
use crate::losses::memory::MemoryBank;
use crate::losses::segments::{self, Pixels, Segments};
use crate::losses::{self, LossConfig, LossError, LossParts, ViewGroup};

/// The part of the graph that a process holds.
#[derive(Debug)]
pub struct JointGraph {
    /// `L_r`.
    loss: Tensor,
    /// The network's outputs; they take a gradient of 0 where this process has no pixel.
    embeddings: Vec<Tensor>,
    /// Own pixels and segments, with their history.
    own: Option<(Tensor, Tensor)>,
    /// The pixels as a leaf.
    pixels: Tensor,
    /// All segments as a leaf.
    gathered: Tensor,
    /// Row of the first own segment.
    first: i64,
}

impl JointGraph {
    /// Adds the gradient of `factor L`, as far as it passes through this process.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_sum`].
    pub fn backward(&self, all: &dyn Communicator, factor: f64) -> Result<(), DistributedError> {
        (&self.loss * factor).backward();
        let mut of_segments = self.gathered.grad();
        all.all_reduce_sum(&mut of_segments)?;
        // The scalar with the given gradients: libtorch then passes the network once.
        if let Some((pixels, segments)) = &self.own {
            let rows = of_segments.narrow(0, self.first, segments.size()[0]);
            let through_pixels = (pixels * self.pixels.grad()).sum(None::<Kind>);
            (through_pixels + (segments * rows).sum(None::<Kind>)).backward();
        } else {
            let sums = self.embeddings.iter().map(|maps| maps.sum(Kind::Float));
            (sums.sum::<Tensor>() * 0.0).backward();
        }
        Ok(())
    }
}

/// Losses of the joint batch. The arguments are those of [`losses::compute`] for the images of
/// this process, which no other process has; the parts are those of the joint batch, without
/// history: call [`JointGraph::backward`].
///
/// # Errors
/// [`DistributedError::Loss`] with [`LossError::NoSegments`], in every process, when no pixel of
/// the joint batch belongs to a segment; whatever else the losses and the communicator refuse.
pub fn compute(
    all: &dyn Communicator,
    config: &LossConfig,
    groups: &[ViewGroup],
    image_ids: &[i64],
    dictionary: &Dictionary,
    memory: &MemoryBank,
    step: u64,
) -> Result<(LossParts, JointGraph), DistributedError> {
    losses::check_input(config, groups, image_ids, dictionary, memory)?;
    let (own, images) = match losses::joined_pixels(config, groups, image_ids) {
        Ok((pixels, images, view_image)) => {
            let segments = Segments::pool(&pixels, &view_image);
            (Some((pixels, segments)), images)
        }
        Err(LossError::NoSegments) => (None, segments::distinct_images(image_ids).0),
        Err(error) => return Err(error.into()),
    };
    let device = dictionary.codebook.device();
    let dim = dictionary.codebook.size()[1];
    let message = Share::of(own.as_ref(), &images).to_bytes();
    let mut gathered = Vec::new();
    for (rank, bytes) in all.all_gather(&message)?.iter().enumerate() {
        let share = Share::from_bytes(bytes, dim).ok_or_else(|| {
            let what = "sends segments of another form".to_owned();
            DistributedError::Disagreement { rank, what }
        })?;
        gathered.push(share);
    }
    let count: u64 = gathered.iter().map(|share| share.pixels).sum();
    if count == 0 {
        return Err(LossError::NoSegments.into());
    }
    let first: i64 = gathered[..all.rank()].iter().map(|share| share.area.len() as i64).sum();
    let joint = Share::join(&gathered);
    let rows = joint.area.len() as i64;
    let z = Tensor::from_slice(&joint.z).reshape([rows, dim]).to_device(device);
    let z = z.set_requires_grad(true);
    let (pixels, of_pixel) = if let Some((pixels, segments)) = &own {
        (pixels.z.detach(), &segments.of_pixel + first)
    } else {
        let none = Tensor::zeros([0, dim], (Kind::Float, Device::Cpu)).to_device(device);
        (none, Tensor::zeros([0], (Kind::Int64, device)))
    };
    let pixels = pixels.set_requires_grad(true);
    let segments = Segments {
        z: z.shallow_clone(),
        image: Tensor::from_slice(&joint.image).to_device(device),
        of_pixel,
        area: Tensor::from_slice(&joint.area).to_device(device),
    };
    let mut parts =
        losses::evaluate(config, &pixels, &segments, joint.images, dictionary, memory, step);

    let share = pixels.size()[0] as f64 / count as f64;
    if own.is_none() {
        parts.local = Tensor::from(0f32).to_device(device);
        parts.cooccurrence = parts.local.shallow_clone();
    }
    let counts = step >= config.cooc_start;
    let by_pixel = if counts {
        &parts.local + &parts.cooccurrence * config.lambda_c
    } else {
        parts.local.shallow_clone()
    };
    let loss = by_pixel * share + &parts.quantization * (config.lambda_v / all.size() as f64);

    let mut means = (Tensor::stack(&[&parts.local, &parts.cooccurrence], 0) * share).detach();
    all.all_reduce_sum(&mut means)?;
    parts.local = means.get(0);
    parts.cooccurrence = means.get(1);
    parts.quantization = parts.quantization.detach();
    parts.total = &parts.local + &parts.quantization * config.lambda_v;
    if counts {
        parts.total += &parts.cooccurrence * config.lambda_c;
    }
    parts.stats.pixels = count as i64;
    let own = own.map(|(pixels, segments)| (pixels.z, segments.z));
    let embeddings = groups.iter().map(|group| group.embeddings.shallow_clone()).collect();
    let graph = JointGraph { loss, embeddings, own, pixels, gathered: z, first };
    Ok((parts, graph))
}

/// The rows of all processes, each of length `dim`, one process after the other.
///
/// # Errors
/// As [`Communicator::all_gather`], and when a process sends no whole rows.
pub fn gather_rows(
    all: &dyn Communicator,
    rows: &Tensor,
    dim: i64,
) -> Result<Tensor, DistributedError> {
    let bytes: Vec<u8> = floats(rows).iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut values: Vec<f32> = Vec::new();
    for (rank, part) in all.all_gather(&bytes)?.iter().enumerate() {
        let (numbers, rest) = part.as_chunks::<4>();
        if !rest.is_empty() || !numbers.len().is_multiple_of(dim as usize) {
            let what = "sends segments of another form".to_owned();
            return Err(DistributedError::Disagreement { rank, what });
        }
        values.extend(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)));
    }
    Ok(Tensor::from_slice(&values).view([-1, dim]).to_device(rows.device()))
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    let mut values = vec![0f32; tensor.numel()];
    let tensor = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float);
    tensor.contiguous().copy_data(&mut values, tensor.numel());
    values
}

/// What a process tells the others about its batch.
#[derive(Debug, Default)]
struct Share {
    pixels: u64,
    /// `[S, D]`.
    z: Vec<f32>,
    /// `[S]`.
    area: Vec<f32>,
    /// `[S]` indices into `images`.
    image: Vec<i64>,
    images: Vec<i64>,
}

impl Share {
    fn of(own: Option<&(Pixels, Segments)>, images: &[i64]) -> Self {
        let Some((pixels, segments)) = own else {
            return Self { images: images.to_vec(), ..Self::default() };
        };
        let mut image = vec![0i64; segments.image.numel()];
        segments.image.to_device(Device::Cpu).copy_data(&mut image, segments.image.numel());
        Self {
            pixels: pixels.z.size()[0] as u64,
            z: floats(&segments.z),
            area: floats(&segments.area),
            image,
            images: images.to_vec(),
        }
    }

    /// The shares one after the other, images numbered through.
    fn join(shares: &[Self]) -> Self {
        let mut joint = Self::default();
        for share in shares {
            let images = joint.images.len() as i64;
            joint.pixels += share.pixels;
            joint.z.extend_from_slice(&share.z);
            joint.area.extend_from_slice(&share.area);
            joint.image.extend(share.image.iter().map(|image| image + images));
            joint.images.extend_from_slice(&share.images);
        }
        joint
    }

    fn to_bytes(&self) -> Vec<u8> {
        let counts = [self.pixels, self.area.len() as u64, self.images.len() as u64];
        let mut bytes: Vec<u8> = counts.iter().flat_map(|n| n.to_le_bytes()).collect();
        bytes.extend(self.z.iter().chain(&self.area).flat_map(|value| value.to_le_bytes()));
        bytes.extend(self.image.iter().chain(&self.images).flat_map(|id| id.to_le_bytes()));
        bytes
    }

    /// `None` when the bytes are none of [`Self::to_bytes`] for dimension `dim`.
    fn from_bytes(bytes: &[u8], dim: i64) -> Option<Self> {
        let (counts, rest) = bytes.split_at_checked(24)?;
        let count = |i: usize| Some(u64::from_le_bytes(*counts.as_chunks::<8>().0.get(i)?));
        let (pixels, rows, images) = (count(0)?, count(1)?, count(2)?);
        let rows = usize::try_from(rows).ok()?;
        let images = usize::try_from(images).ok()?;
        let dim = usize::try_from(dim).ok()?;
        let (z, rest) = rest.split_at_checked(rows.checked_mul(dim)?.checked_mul(4)?)?;
        let (area, rest) = rest.split_at_checked(rows.checked_mul(4)?)?;
        let (image, rest) = rest.split_at_checked(rows.checked_mul(8)?)?;
        if rest.len() != images.checked_mul(8)? {
            return None;
        }
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let integers = |bytes: &[u8]| -> Vec<i64> {
            bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
        };
        let image = integers(image);
        if image.iter().any(|&i| usize::try_from(i).map_or(true, |i| i >= images)) {
            return None;
        }
        Some(Self { pixels, z: floats(z), area: floats(area), image, images: integers(rest) })
    }
}
