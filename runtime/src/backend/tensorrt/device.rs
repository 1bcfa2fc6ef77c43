//! A GPU of this process, which all of its users must leave before it is reset.
#![allow(unsafe_code)] // A reset is unsafe: what other libraries have on the GPU is gone after it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::Duration;

use conceptseg_tensorrt::cuda::{Context, CudaError};

use super::error::TensorRtError;
use super::find::{Installation, Places};
use super::kept::{Kept, Registry};

/// File of the driver, where one was chosen, and number of the GPU.
type Id = (Option<PathBuf>, u32);

/// A reset hits every network and every stream of the process on that GPU, and so did the error before it: they share
/// its primary context.
static DEVICES: LazyLock<Mutex<BTreeMap<Id, Weak<Device>>>> = LazyLock::new(Mutex::default);

/// How often a reset is tried, and what is waited between.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// A GPU of this process.
#[derive(Debug, Default)]
pub(super) struct Device {
    /// How often it was reset. Read while it is used, written while it is reset.
    resets: RwLock<u64>,
    registry: Registry,
}

impl Device {
    pub(super) fn of(places: &Places, ordinal: u32) -> Arc<Self> {
        let id = (places.driver.clone(), ordinal);
        let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = devices.get(&id).and_then(Weak::upgrade) {
            return device;
        }
        let device = Arc::new(Self::default());
        devices.insert(id, Arc::downgrade(&device));
        device
    }

    /// Keeps it from being reset as long as the guard lives.
    pub(super) fn enter(&self) -> RwLockReadGuard<'_, u64> {
        self.resets.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn keep<T: Send + 'static>(&self) -> Kept<T> {
        self.registry.keep()
    }

    /// Takes everything from it and resets it, unless that was done since `seen` resets. Waits until nobody uses it.
    pub(super) fn reset(
        &self,
        seen: u64,
        installation: &Installation,
        reason: &dyn std::fmt::Display,
    ) -> Result<(), TensorRtError> {
        let mut resets = self.resets.write().unwrap_or_else(PoisonError::into_inner);
        if *resets != seen {
            return Ok(());
        }
        tracing::warn!("the GPU {} failed ({reason}); it is reset", installation.gpu);
        self.registry.empty();
        let mut tries = 0;
        loop {
            // SAFETY: the context is broken, so that nothing which another library has on the GPU can be used any more.
            match unsafe { Context::reset(&installation.driver, installation.device) } {
                // Somebody is just looking what GPUs there are.
                Err(CudaError::InUse { .. }) if tries < TRIES => {
                    tries += 1;
                    std::thread::sleep(PAUSE);
                }
                Err(error) => return Err(error.into()),
                Ok(()) => break,
            }
        }
        *resets += 1;
        Ok(())
    }
}
