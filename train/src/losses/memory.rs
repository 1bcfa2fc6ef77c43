//! The memory bank: segments of the last batches, as further negatives and positives.
//!
//! Entries keep embeddings, not concepts: which concept a segment belongs to is decided anew at
//! every step with the current dictionary.

use std::collections::VecDeque;

use tch::{Kind, Tensor};

use super::LossError;

/// The segments of one batch.
#[derive(Debug)]
pub struct MemoryEntry {
    /// `[S, D]` unit embeddings without gradient.
    pub z: Tensor,
    /// `[S]` image of each segment, an index into `image_ids`.
    pub image: Tensor,
    /// Data-set ids of the batch's distinct images.
    pub image_ids: Vec<i64>,
    /// Step at which the batch was seen; the entry's age is the current step less this.
    pub step: u64,
}

impl MemoryEntry {
    /// Puts an entry together from parts that come from outside, such as a checkpoint.
    ///
    /// # Errors
    /// [`LossError::Shape`] when the parts do not belong together.
    pub fn new(
        z: &Tensor,
        image: &Tensor,
        image_ids: Vec<i64>,
        step: u64,
    ) -> Result<Self, LossError> {
        let bad = |what, tensor: &Tensor, expected: String| {
            Err(LossError::Shape { what, found: tensor.size(), expected })
        };
        if z.size().len() != 2 {
            return bad("a memory entry", z, "[S, D]".into());
        }
        let segments = z.size()[0];
        let known = image.size() == [segments]
            && image.kind() == Kind::Int64
            && (segments == 0
                || (image.min().int64_value(&[]) >= 0
                    && image.max().int64_value(&[]) < image_ids.len() as i64));
        if !known {
            let expected =
                format!("[{segments}] with 64-bit indices into its {} images", image_ids.len());
            return bad("the image list of a memory entry", image, expected);
        }
        Ok(Self { z: z.detach(), image: image.shallow_clone(), image_ids, step })
    }
}

/// First in, first out, over whole batches.
#[derive(Debug)]
pub struct MemoryBank {
    /// Number of batches kept; 0 switches the memory off.
    pub capacity: usize,
    /// The batches, oldest first.
    pub entries: VecDeque<MemoryEntry>,
}

impl MemoryBank {
    /// Number of batches the method keeps.
    pub const DEFAULT_CAPACITY: usize = 2;

    /// An empty bank for `capacity` batches.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, entries: VecDeque::new() }
    }

    /// Takes in a batch and lets go of the oldest ones beyond the capacity.
    pub fn push(&mut self, entry: MemoryEntry) {
        self.entries.push_back(entry);
        while self.entries.len() > self.capacity {
            self.entries.pop_front();
        }
    }

    /// Number of segments held.
    pub fn segments(&self) -> i64 {
        self.entries.iter().map(|entry| entry.z.size()[0]).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn entry(step: u64) -> MemoryEntry {
        let z = Tensor::ones([3, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        MemoryEntry::new(&z, &Tensor::from_slice(&[0i64, 1, 1]), vec![5, 9], step).unwrap()
    }

    #[test]
    fn the_oldest_batch_leaves_first() {
        let mut bank = MemoryBank::new(MemoryBank::DEFAULT_CAPACITY);
        let mut kept = Vec::new();
        for step in 0..4 {
            bank.push(entry(step));
            kept.push(bank.entries.iter().map(|e| e.step).collect::<Vec<_>>());
        }
        assert_eq!(kept, [vec![0], vec![0, 1], vec![1, 2], vec![2, 3]]);
        assert_eq!(bank.segments(), 6);
    }

    #[test]
    fn a_long_memory_is_bounded_too() {
        let mut bank = MemoryBank::new(64);
        for step in 0..200 {
            bank.push(entry(step));
            assert!(bank.segments() <= 64 * 3);
        }
        assert_eq!((bank.entries.len(), bank.entries[0].step), (64, 136));
    }

    #[test]
    fn a_bank_without_capacity_keeps_nothing() {
        let mut bank = MemoryBank::new(0);
        bank.push(entry(0));
        assert!(bank.entries.is_empty());
    }

    #[test]
    fn entries_are_cut_off_from_the_gradient() {
        assert!(!entry(0).z.requires_grad());
    }

    #[test]
    fn an_entry_that_names_an_unknown_image_is_refused() {
        let z = Tensor::ones([2, 2], (Kind::Float, Device::Cpu));
        for image in [vec![0i64, 1], vec![-1, 0], vec![0]] {
            let image = Tensor::from_slice(&image);
            let result = MemoryEntry::new(&z, &image, vec![5], 0);
            assert!(matches!(result, Err(LossError::Shape { .. })), "{image:?}");
        }
    }
}
