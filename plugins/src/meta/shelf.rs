//! Memory of maps, which comes back when the last buffer that holds a map is gone.
//!
//! Fresh memory for each frame would cost more than what is written to it: the system hands it out page by page.

use std::sync::{Arc, Mutex, Weak};

use bytemuck::Pod;

use crate::lock;

/// Pieces that are kept while nobody uses them. A stream has one that is made, one that is the
/// latest, and at times one that a frame further down still holds.
const SPARE: usize = 3;

type Spare<T> = Mutex<Vec<Vec<T>>>;

/// Lends memory for values of one type. Clones share it.
#[derive(Debug)]
pub struct Shelf<T>(Arc<Spare<T>>);

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Pod + Send + Sync> Shelf<T> {
    /// Empty memory, if possible with room from before.
    pub fn take(&self) -> Vec<T> {
        lock(&self.0).pop().unwrap_or_default()
    }

    /// A buffer that holds `values` without a copy; its memory comes back when the buffer is gone.
    pub fn buffer(&self, values: Vec<T>) -> gst::Buffer {
        gst::Buffer::from_slice(Lent { values, shelf: Arc::downgrade(&self.0) })
    }
}

/// What a buffer holds.
struct Lent<T> {
    values: Vec<T>,
    shelf: Weak<Spare<T>>,
}

impl<T: Pod> AsRef<[u8]> for Lent<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.values)
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        let Some(shelf) = self.shelf.upgrade() else { return };
        let mut spare = lock(&shelf);
        if spare.len() < SPARE {
            self.values.clear();
            spare.push(std::mem::take(&mut self.values));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_with_the_last_holder_up_to_a_few_pieces() {
        gst::init().unwrap();
        let shelf = Shelf::<u16>::default();
        let mut values = shelf.take();
        values.extend([1, 2, 3]);
        let place = values.as_ptr();
        let buffer = shelf.buffer(values);
        let other = buffer.clone();
        drop(buffer);
        assert_eq!(shelf.take().capacity(), 0, "it is still in use");
        assert_eq!(*other.map_readable().unwrap(), *bytemuck::cast_slice::<u16, u8>(&[1, 2, 3]));
        drop(other);
        let again = shelf.take();
        assert_eq!((again.as_ptr(), again.len()), (place, 0));

        let many: Vec<_> = (0..10).map(|_| shelf.buffer(vec![0; 8])).collect();
        drop(many);
        assert_eq!(lock(&shelf.0).len(), SPARE);
    }

    #[test]
    fn a_buffer_may_outlive_the_shelf() {
        gst::init().unwrap();
        let buffer = Shelf::default().buffer(vec![7u8; 5]);
        assert_eq!(*buffer.map_readable().unwrap(), [7; 5]);
    }
}
