//! The losses of a batch: all its views through the network, and the teacher's part.

use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use crate::config::TrainConfig;
use crate::data::loader::Batch;
use crate::distributed::joint::{self, JointGraph};
use crate::distributed::{Communicator, DistributedError};
use crate::losses::{self, LossError, LossParts, ViewGroup};
use crate::state::{TrainState, ViewTensors};

/// What [`compute`] found.
pub struct Objective {
    /// The losses, of the joint batch where several processes train.
    pub parts: LossParts,
    /// Where several processes train: what takes the place of the backward pass from the total.
    pub joint: Option<JointGraph>,
    /// Wall time of the network; what else the losses took is not in it.
    pub forward: Duration,
}

/// Computes the losses of `batch` with gradient; with `processes`, of the joint batch. Further
/// views go through the network by themselves, because they have another size; their pixels are
/// joined with the others before the losses, which know no difference.
///
/// # Errors
/// [`DistributedError::Loss`] with [`LossError::NoSegments`] when no view has a pixel with a
/// segment; whatever else the losses or the communicator refuse.
pub fn compute(
    config: &TrainConfig,
    state: &TrainState,
    batch: &Batch,
    device: Device,
    processes: Option<&dyn Communicator>,
) -> Result<Objective, DistributedError> {
    let begun = Instant::now();
    let views = ViewTensors::new(batch, device);
    let kind = config.precision.kind();
    let mut inputs = vec![(views.images.to_kind(kind), views.ids.shallow_clone(), 2)];
    if batch.extra.count > 0 {
        let (images, ids) = ViewTensors::of_extra(batch, device);
        inputs.push((images.to_kind(kind), ids, batch.extra.count));
    }
    let groups = |forward: &dyn Fn(&Tensor) -> Tensor| -> Vec<ViewGroup> {
        let embed = |(images, ids, per_image): &(Tensor, Tensor, usize)| ViewGroup {
            embeddings: forward(images),
            ids: ids.shallow_clone(),
            per_image: *per_image,
        };
        inputs.iter().map(embed).collect()
    };
    let own = groups(&|images| state.network.forward(images, true));
    let forward = begun.elapsed();
    let TrainState { dictionary, memory, step, .. } = state;
    let (loss, images) = (&config.loss, &views.image_ids);
    let (mut parts, joint) = match processes {
        Some(all) => {
            let (parts, joint) =
                joint::compute(all, loss, &own, images, dictionary, memory, *step)?;
            (parts, Some(joint))
        }
        None => (losses::compute(loss, &own, images, dictionary, memory, *step)?, None),
    };
    if let Some(teacher) = state.teacher.as_ref().filter(|_| config.teacher.memory) {
        // The same pixels with the same ids: the same segments in the same order.
        let segments = losses::pool(loss, &groups(&|images| teacher.forward(images)), images);
        let dim = config.network.dim;
        parts.entry.z = match (segments, processes) {
            (Ok(segments), None) => segments.z,
            (Ok(segments), Some(all)) => joint::gather_rows(all, &segments.z, dim)?,
            (Err(LossError::NoSegments), Some(all)) => {
                joint::gather_rows(all, &Tensor::zeros([0, dim], (Kind::Float, device)), dim)?
            }
            (Err(error), _) => return Err(error.into()),
        };
    }
    Ok(Objective { parts, joint, forward })
}
