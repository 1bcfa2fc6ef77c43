//! The context frames: the first one for ever, the latest few in a ring.

use super::affinity::Features;

/// What is kept of one frame.
#[derive(Debug, Default)]
pub(super) struct ContextFrame {
    /// Embeddings, laid out for the affinity search.
    pub(super) features: Features,
    /// Soft labels, `[cells, channels]`; each cell sums to one.
    pub(super) labels: Vec<f32>,
}

/// The first frame, up to `capacity` latest ones and the frame in work. Everything is
/// allocated by [`ContextMemory::reset`]; afterwards frames only change places.
#[derive(Debug, Default)]
pub(super) struct ContextMemory {
    first: ContextFrame,
    recent: Vec<ContextFrame>,
    /// Index of the latest entry of `recent`.
    newest: usize,
    /// Entries of `recent` in use.
    filled: usize,
    /// Whether the first frame stands in for the recent ones that are not there yet.
    repeat_first: bool,
    /// The frame in work; not part of the context until [`ContextMemory::advance`].
    pub(super) current: ContextFrame,
}

impl ContextMemory {
    /// Makes every frame with `make` and forgets all context. With `repeat_first` there are
    /// always `1 + capacity` context frames.
    pub(super) fn reset(
        &mut self,
        capacity: usize,
        repeat_first: bool,
        make: impl Fn() -> ContextFrame,
    ) {
        self.repeat_first = repeat_first;
        self.first = make();
        self.current = make();
        self.recent.clear();
        self.recent.resize_with(capacity, make);
        (self.newest, self.filled) = (0, 0);
    }

    /// Keeps the frame in work as the first frame.
    pub(super) fn keep_as_first(&mut self) {
        std::mem::swap(&mut self.first, &mut self.current);
    }

    /// Takes the frame in work into the context in place of the oldest recent one.
    pub(super) fn advance(&mut self) {
        let capacity = self.recent.len();
        if capacity == 0 {
            return;
        }
        self.newest = (self.newest + 1) % capacity;
        std::mem::swap(&mut self.recent[self.newest], &mut self.current);
        self.filled = (self.filled + 1).min(capacity);
    }

    /// Context frames at present.
    pub(super) fn len(&self) -> usize {
        1 + if self.repeat_first { self.recent.len() } else { self.filled }
    }

    /// Context frame `i`: 0 is the first frame, then from the latest back in time, and before
    /// the first frame itself again.
    pub(super) fn frame(&self, i: usize) -> &ContextFrame {
        let capacity = self.recent.len();
        match i.checked_sub(1) {
            None => &self.first,
            Some(age) if age >= self.filled => &self.first,
            Some(age) => &self.recent[(self.newest + capacity - age) % capacity],
        }
    }

    /// The frame in work, to be written, beside the context, to be read.
    pub(super) fn take_current(&mut self) -> ContextFrame {
        std::mem::take(&mut self.current)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.recent
            .iter()
            .chain([&self.first, &self.current])
            .map(|f| f.features.memory_bytes() + size_of_val(f.labels.as_slice()))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(capacity: usize, frames: usize, repeat_first: bool) -> ContextMemory {
        let mut memory = ContextMemory::default();
        memory.reset(capacity, repeat_first, || ContextFrame {
            labels: vec![-1.0],
            ..ContextFrame::default()
        });
        memory.current.labels[0] = 0.0;
        memory.keep_as_first();
        for i in 1..frames {
            memory.current.labels[0] = i as f32;
            memory.advance();
        }
        memory
    }

    fn order(memory: &ContextMemory) -> Vec<f32> {
        (0..memory.len()).map(|i| memory.frame(i).labels[0]).collect()
    }

    #[test]
    fn the_first_frame_stays_and_the_latest_follow() {
        assert_eq!(order(&memory(3, 1, false)), [0.0]);
        assert_eq!(order(&memory(3, 3, false)), [0.0, 2.0, 1.0]);
        assert_eq!(order(&memory(3, 9, false)), [0.0, 8.0, 7.0, 6.0]);
        assert_eq!(order(&memory(1, 9, false)), [0.0, 8.0]);
        assert_eq!(order(&memory(0, 9, false)), [0.0]);
    }
    #[test]
    fn the_first_frame_can_stand_in_for_what_came_before_it() {
        assert_eq!(order(&memory(3, 1, true)), [0.0, 0.0, 0.0, 0.0]);
        assert_eq!(order(&memory(3, 3, true)), [0.0, 2.0, 1.0, 0.0]);
        assert_eq!(order(&memory(3, 9, true)), [0.0, 8.0, 7.0, 6.0]);
        assert_eq!(order(&memory(0, 9, true)), [0.0]);
    }
}
