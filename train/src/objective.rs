//! The losses of a batch: all its views through the network, and the teacher's part.

use tch::{Device, Tensor};

use crate::config::TrainConfig;
use crate::data::loader::Batch;
use crate::losses::{self, LossError, LossParts, ViewGroup};
use crate::state::{TrainState, ViewTensors};

/// Computes the losses of `batch` with gradient. Further views go through the network by
/// themselves, because they have another size; their pixels are joined with the others before
/// the losses, which know no difference.
///
/// # Errors
/// [`LossError`]; [`LossError::NoSegments`] when no view has a pixel with a segment.
pub fn compute(
    config: &TrainConfig,
    state: &TrainState,
    batch: &Batch,
    device: Device,
) -> Result<LossParts, LossError> {
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
    let mut parts = losses::compute_groups(
        &config.loss,
        &groups(&|images| state.network.forward(images, true)),
        &views.image_ids,
        &state.dictionary,
        &state.memory,
        state.step,
    )?;
    if let Some(teacher) = state.teacher.as_ref().filter(|_| config.teacher.memory) {
        let own = groups(&|images| teacher.forward(images));
        // The same pixels with the same ids: the same segments in the same order.
        parts.entry.z = losses::pool(&config.loss, &own, &views.image_ids)?.z;
    }
    Ok(parts)
}
