//! What streams keep on a GPU from frame to frame, so that it can be taken from them when the GPU breaks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::gpu::Gpu;

/// Something on the GPU, such as a stream's buffers. It becomes nothing when the GPU is reset, because whatever is
/// on it must go before that; the owner makes it anew then.
#[derive(Debug)]
pub struct Kept<T>(Arc<Mutex<Option<T>>>);

impl<T> Kept<T> {
    /// The thing, for the time of a call of [`TensorRt::with_gpu`](super::TensorRt::with_gpu), which shows that the GPU
    /// is not being reset.
    pub fn of<'a>(&'a self, _gpu: &'a Gpu) -> MutexGuard<'a, Option<T>> {
        self.lock()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Option<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whatever can be emptied.
trait Empty: Send + Sync {
    fn empty(&self);
}

impl<T: Send> Empty for Mutex<Option<T>> {
    fn empty(&self) {
        let kept = self.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(kept);
    }
}

/// All that is kept on one GPU.
#[derive(Default)]
pub(super) struct Registry(Mutex<Vec<Weak<dyn Empty>>>);

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

impl Registry {
    pub(super) fn keep<T: Send + 'static>(&self) -> Kept<T> {
        let kept = Arc::new(Mutex::new(None));
        let weak: Weak<Mutex<Option<T>>> = Arc::downgrade(&kept);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| one.strong_count() > 0);
        all.push(weak);
        Kept(kept)
    }

    pub(super) fn empty(&self) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| one.upgrade().map(|one| one.empty()).is_some());
    }
}
