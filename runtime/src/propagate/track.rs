//! The instance masks of one stream, with all that can happen to them on the way.

use super::{MaskMap, PropagateError, PropagationConfig, Propagator};
use crate::embed::EmbeddingMap;
use crate::labels::LabelMap;

/// What is to happen to the masks at a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MaskChange {
    /// The masks of that frame, from which they are carried on. Those before are forgotten.
    Replace(LabelMap),
    /// The objects of this mask join those that are carried; where they overlap, they are in
    /// front. An object with the id of one that is carried takes its place.
    Join(LabelMap),
    /// The object with this id is carried no longer.
    Drop(u8),
}

impl MaskChange {
    /// Whether the change can be made at a frame of `width` x `height` pixels.
    fn check(&self, width: u32, height: u32) -> Result<(), PropagateError> {
        let (Self::Replace(mask) | Self::Join(mask)) = self else { return Ok(()) };
        if (mask.width, mask.height) != (width, height) {
            return Err(PropagateError::MaskSize {
                mask: (mask.width, mask.height),
                frame: (width, height),
            });
        }
        if mask.data.len() != width as usize * height as usize {
            return Err(PropagateError::Mask { len: mask.data.len(), width, height });
        }
        if mask.instance_ids().is_empty() {
            return Err(PropagateError::EmptyMask);
        }
        Ok(())
    }
}

/// Carries the masks of one stream: starts, steps, and takes changes of the masks and of the
/// frame size on the way.
#[derive(Debug)]
pub struct MaskTrack {
    config: PropagationConfig,
    propagator: Propagator,
    /// What waits for the next frame.
    changes: Vec<MaskChange>,
    /// `None` as long as nothing is carried.
    masks: Option<MaskMap>,
}

impl MaskTrack {
    /// A track without masks.
    pub fn new(config: PropagationConfig) -> Self {
        let propagator = Propagator::new(config.clone());
        Self { config, propagator, changes: Vec::new(), masks: None }
    }

    /// Has something happen at the next frame, after what was asked before. In masks, 0 is
    /// background, and 255 too unless the mask is white on black
    /// ([`LabelMap::with_white_as_instance`]).
    pub fn change(&mut self, change: MaskChange) {
        if matches!(change, MaskChange::Replace(_)) {
            self.changes.clear();
        }
        self.changes.push(match change {
            MaskChange::Replace(mask) => MaskChange::Replace(mask.with_white_as_instance()),
            MaskChange::Join(mask) => MaskChange::Join(mask.with_white_as_instance()),
            drop @ MaskChange::Drop(_) => drop,
        });
    }

    /// Checks the waiting changes against the size of the next frame, so that a mask that
    /// does not fit is known before the network runs.
    ///
    /// # Errors
    /// [`PropagateError::MaskSize`], [`PropagateError::Mask`], [`PropagateError::EmptyMask`]; the
    /// waiting changes are forgotten then, and masks that are carried stay.
    pub fn check(&mut self, width: u32, height: u32) -> Result<(), PropagateError> {
        let checked = self.changes.iter().try_for_each(|change| change.check(width, height));
        if checked.is_err() {
            self.changes.clear();
        }
        checked
    }

    /// Takes the mask that waits for the next frame, for a device that carries masks itself.
    pub(crate) fn take_given(&mut self) -> Option<LabelMap> {
        self.changes.drain(..).find_map(|change| match change {
            MaskChange::Replace(mask) => Some(mask),
            MaskChange::Join(_) | MaskChange::Drop(_) => None,
        })
    }

    /// Whether [`MaskTrack::step`] has something to do at the next frame.
    pub fn is_active(&self) -> bool {
        self.masks.is_some() || !self.changes.is_empty()
    }

    /// The latest masks.
    pub fn masks(&self) -> Option<&MaskMap> {
        self.masks.as_ref()
    }

    /// Brings the masks to the next frame, `width` x `height` pixels large. `None` when there are none.
    ///
    /// When the frame size changes in a way that changes the embedding grid, masks are carried on
    /// from the last ones, scaled to the new size; objects out of sight are lost at that point.
    ///
    /// # Errors
    /// [`PropagateError`]; waiting changes are forgotten then, and masks that are carried stay.
    pub fn step(
        &mut self,
        embedding: &EmbeddingMap,
        width: u32,
        height: u32,
    ) -> Result<Option<&MaskMap>, PropagateError> {
        self.check(width, height)?;
        let changes = std::mem::take(&mut self.changes);
        let mut changes = changes.into_iter().peekable();
        if let Some(MaskChange::Replace(mask)) =
            changes.next_if(|change| matches!(change, MaskChange::Replace(_)))
        {
            self.start(embedding, &mask)?;
        } else if self.propagator.is_started() {
            self.carry(embedding, width, height)?;
        }
        if changes.peek().is_some() {
            self.apply(changes, embedding, width, height)?;
        }
        Ok(self.masks.as_ref())
    }

    /// Bytes of memory that grow with grid, context or instances.
    pub fn memory_bytes(&self) -> usize {
        self.propagator.memory_bytes()
    }

    fn start(&mut self, embedding: &EmbeddingMap, mask: &LabelMap) -> Result<(), PropagateError> {
        self.propagator.start(embedding, mask)?;
        self.masks.get_or_insert_default().set_given(mask);
        Ok(())
    }

    fn carry(
        &mut self,
        embedding: &EmbeddingMap,
        width: u32,
        height: u32,
    ) -> Result<(), PropagateError> {
        let masks = self.masks.get_or_insert_default();
        match self.propagator.step(embedding, width, height, masks) {
            Err(PropagateError::Grid { .. }) => {
                let scaled = masks.scaled(width, height);
                if scaled.instance_ids().is_empty() {
                    tracing::warn!(
                        "the frame size changed while no object was in sight; give a new mask to go on"
                    );
                    self.forget();
                    return Ok(());
                }
                tracing::info!(
                    "the frame size changed to {width}x{height}; masks go on from the last ones"
                );
                self.start(embedding, &scaled)
            }
            other => other,
        }
    }

    /// Joins and drops objects at the present frame, whose other masks have been carried.
    fn apply(
        &mut self,
        changes: impl Iterator<Item = MaskChange>,
        embedding: &EmbeddingMap,
        width: u32,
        height: u32,
    ) -> Result<(), PropagateError> {
        let before = self.masks.take().unwrap_or_default();
        let mut now = LabelMap::background(width, height);
        if before.labels.len() == now.data.len() {
            now.data.copy_from_slice(&before.labels);
        }
        let mut given = [false; 256];
        for change in changes {
            match change {
                MaskChange::Replace(mask) => {
                    now = mask;
                    given = [true; 256];
                }
                MaskChange::Join(mask) => {
                    for id in mask.instance_ids() {
                        given[usize::from(id)] = true;
                        clear(&mut now, id);
                    }
                    let drawn = mask.data.iter().map(|&id| if id == 255 { 0 } else { id });
                    for (target, id) in now.data.iter_mut().zip(drawn).filter(|(_, id)| *id != 0) {
                        *target = id;
                    }
                }
                MaskChange::Drop(id) => clear(&mut now, id),
            }
        }
        if now.instance_ids().is_empty() {
            self.forget();
            return Ok(());
        }
        self.start(embedding, &now)?;
        // Nobody drew those that were carried; they are as uncertain as before.
        let instances = self.masks.iter_mut().flat_map(|masks| &mut masks.instances);
        for instance in instances.filter(|i| !given[usize::from(i.id)]) {
            if let Some(old) = before.instances.iter().find(|old| old.id == instance.id) {
                instance.confidence = old.confidence;
            }
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.propagator = Propagator::new(self.config.clone());
        self.masks = None;
    }
}

fn clear(map: &mut LabelMap, id: u8) {
    map.data.iter_mut().filter(|label| **label == id).for_each(|label| *label = 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four by four cells of stride 8, each unlike all others.
    fn embedding() -> EmbeddingMap {
        let mut data = vec![0.0; 16 * 16];
        (0..16).for_each(|i| data[i * 17] = 1.0);
        EmbeddingMap { height: 4, width: 4, dim: 16, stride: 8, data }
    }

    /// A mask of 32 x 32 pixels with these ids in its 8 x 8 blocks.
    fn mask(blocks: &[(usize, u8)]) -> LabelMap {
        let mut mask = LabelMap::background(32, 32);
        for (i, label) in mask.data.iter_mut().enumerate() {
            let block = (i / 32 / 8) * 4 + i % 32 / 8;
            *label = blocks.iter().find(|(b, _)| *b == block).map_or(0, |(_, id)| *id);
        }
        mask
    }

    /// Ids and how many blocks each covers; carried masks lose corners.
    fn ids(track: &mut MaskTrack) -> Vec<(u8, u32)> {
        let masks = track.step(&embedding(), 32, 32).unwrap();
        let blocks = |area: u32| area.div_ceil(64);
        masks
            .map_or_else(Vec::new, |m| m.instances.iter().map(|i| (i.id, blocks(i.area))).collect())
    }

    #[test]
    fn objects_join_and_are_dropped_on_the_way() {
        let mut track = MaskTrack::new(PropagationConfig::default());
        assert!(!track.is_active());
        assert_eq!(ids(&mut track), []);
        track.change(MaskChange::Replace(mask(&[(0, 1), (3, 2)])));
        assert!(track.is_active());
        assert_eq!(ids(&mut track), [(1, 1), (2, 1)]);
        assert_eq!(ids(&mut track), [(1, 1), (2, 1)]);
        track.change(MaskChange::Join(mask(&[(12, 7), (15, 7)])));
        assert_eq!(ids(&mut track), [(1, 1), (2, 1), (7, 2)]);
        assert_eq!(ids(&mut track), [(1, 1), (2, 1), (7, 2)]);
        // An id that is there moves to where it is given now, in front of others.
        track.change(MaskChange::Join(mask(&[(3, 1)])));
        assert_eq!(ids(&mut track), [(1, 1), (7, 2)]);
        track.change(MaskChange::Drop(7));
        assert_eq!(ids(&mut track), [(1, 1)]);
        track.change(MaskChange::Drop(9));
        assert_eq!(ids(&mut track), [(1, 1)]);
        track.change(MaskChange::Drop(1));
        assert_eq!(ids(&mut track), []);
        assert!(!track.is_active());
        track.change(MaskChange::Join(mask(&[(5, 4)])));
        assert_eq!(ids(&mut track), [(4, 1)]);
    }

    #[test]
    fn carried_objects_keep_their_confidence_when_others_join() {
        let mut track = MaskTrack::new(PropagationConfig::default());
        track.change(MaskChange::Replace(mask(&[(0, 1)])));
        ids(&mut track);
        ids(&mut track);
        let carried = track.masks().unwrap().instances[0].confidence;
        assert!(carried < 1.0);
        track.change(MaskChange::Join(mask(&[(10, 2)])));
        ids(&mut track);
        let instances = &track.masks().unwrap().instances;
        assert_eq!(instances[1].confidence, 1.0);
        assert!((instances[0].confidence - carried).abs() < 0.2 && instances[0].confidence < 1.0);
    }

    #[test]
    fn a_mask_that_does_not_fit_is_refused_and_the_others_stay() {
        let mut track = MaskTrack::new(PropagationConfig::default());
        track.change(MaskChange::Replace(mask(&[(0, 1)])));
        ids(&mut track);
        track.change(MaskChange::Join(LabelMap::background(31, 32)));
        assert!(matches!(
            track.step(&embedding(), 32, 32),
            Err(PropagateError::MaskSize { mask: (31, 32), frame: (32, 32) })
        ));
        track.change(MaskChange::Join(LabelMap::background(32, 32)));
        assert!(matches!(track.step(&embedding(), 32, 32), Err(PropagateError::EmptyMask)));
        assert_eq!(ids(&mut track), [(1, 1)]);
    }
}
