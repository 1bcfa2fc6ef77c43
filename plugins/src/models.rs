//! Loaded models, shared between the elements of one process.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, Weak};

use conceptseg::backend::{BackendKind, BackendOptions};
use conceptseg::embed::{EmbedError, Model};

use crate::lock;

type Key = (PathBuf, BackendKind, usize);

/// Weak, so that a model is freed with its last element.
static MODELS: LazyLock<Mutex<HashMap<Key, Weak<Model>>>> = LazyLock::new(Mutex::default);

/// The model in `bundle`, loaded with `options`: the one that another element of this process
/// holds, else a new one. The lock is held while loading, so that elements that start
/// together load it once.
pub fn open(bundle: &Path, options: &BackendOptions) -> Result<Arc<Model>, EmbedError> {
    let path = bundle.canonicalize().unwrap_or_else(|_| bundle.to_owned());
    let key = (path, options.kind, options.threads);
    let mut models = lock(&MODELS);
    if let Some(model) = models.get(&key).and_then(Weak::upgrade) {
        return Ok(model);
    }
    models.retain(|_, model| model.strong_count() > 0);
    let model = Model::open(bundle, options)?;
    models.insert(key, Arc::downgrade(&model));
    Ok(model)
}
