//! Loaded models, shared between the elements of one process.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use conceptseg::backend::BackendOptions;
use conceptseg::embed::{EmbedError, Model};

use crate::lock;

/// Why an element got no model.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The bundle or its network.
    #[error(transparent)]
    Model(#[from] EmbedError),
    /// Neither a bundle nor an engine that is loaded.
    #[error("No model bundle is given: set the property bundle to the folder of a trained model")]
    NoBundle,
    /// Only an engine id, and nobody holds it.
    #[error(
        "No model bundle is given, and no running element has loaded one under the engine-id \
         {0:?}: set the property bundle on one of them and start that one first"
    )]
    NoEngine(String),
    /// The engine holds another model.
    #[error(
        "The engine-id {engine:?} already holds {loaded} with other settings: give this element \
         another engine-id, or the same bundle and the same backend settings"
    )]
    OtherModel {
        /// The id.
        engine: String,
        /// What it holds.
        loaded: PathBuf,
    },
}

/// A model and its number in this process.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Never given twice.
    pub id: u64,
    /// The model.
    pub model: Arc<Model>,
    /// Held while the network runs. One run takes all threads of the backend, so that two at once
    /// would take as long as one after the other, but memory for both. Fair: a lock that is held
    /// for longer than a millisecond goes to the stream that has waited longest.
    pub turn: Arc<parking_lot::Mutex<()>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    path: PathBuf,
    options: BackendOptions,
}

/// Weak, so that a model is freed with its last element.
struct Entry {
    id: u64,
    key: Key,
    /// The ids of engines that hold it.
    engines: Vec<String>,
    model: Weak<Model>,
    turn: Arc<parking_lot::Mutex<()>>,
}

impl Entry {
    fn loaded(&self) -> Option<Loaded> {
        let model = self.model.upgrade()?;
        Some(Loaded { id: self.id, model, turn: Arc::clone(&self.turn) })
    }
}

static MODELS: Mutex<Vec<Entry>> = Mutex::new(Vec::new());
/// Held while loading, so that elements that start together load a model once, and others can
/// look theirs up meanwhile.
static LOADING: Mutex<()> = Mutex::new(());
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The model in `bundle`, loaded with `options`: the one that another element of this process
/// holds, else a new one. Without a bundle, the one that `engine` holds. `renew` lets the engine
/// take another model in place of the one that it holds.
pub fn open(
    bundle: Option<&Path>,
    options: &BackendOptions,
    engine: Option<&str>,
    renew: bool,
) -> Result<Loaded, OpenError> {
    let _loading = lock(&LOADING);
    let held = engine.and_then(of_engine);
    let Some(bundle) = bundle else {
        return match (held, engine) {
            (Some((loaded, _)), _) => Ok(loaded),
            (None, Some(engine)) => Err(OpenError::NoEngine(engine.to_owned())),
            (None, None) => Err(OpenError::NoBundle),
        };
    };
    let path = bundle.canonicalize().unwrap_or_else(|_| bundle.to_owned());
    let key = Key { path, options: *options };
    if let (Some((_, loaded)), Some(engine), false) = (&held, engine, renew)
        && *loaded != key
    {
        let (engine, loaded) = (engine.to_owned(), loaded.path.clone());
        return Err(OpenError::OtherModel { engine, loaded });
    }
    let known = lock(&MODELS).iter().find(|entry| entry.key == key).and_then(Entry::loaded);
    let loaded = match known {
        // A bundle that is set again was exported again.
        Some(loaded) if !renew => loaded,
        _ => {
            let model = Model::open(bundle, options)?;
            let id = NEXT.fetch_add(1, Ordering::Relaxed);
            let weak = Arc::downgrade(&model);
            let mut models = lock(&MODELS);
            models.retain(|entry| entry.model.strong_count() > 0);
            let turn = Arc::default();
            let loaded = Loaded { id, model, turn: Arc::clone(&turn) };
            models.insert(0, Entry { id, key, engines: Vec::new(), model: weak, turn });
            loaded
        }
    };
    if let Some(engine) = engine {
        for entry in lock(&MODELS).iter_mut() {
            entry.engines.retain(|name| name != engine);
            if entry.id == loaded.id {
                entry.engines.push(engine.to_owned());
            }
        }
    }
    Ok(loaded)
}

/// The model that the engine holds, and what it is.
fn of_engine(engine: &str) -> Option<(Loaded, Key)> {
    let models = lock(&MODELS);
    let entry = models.iter().find(|entry| entry.engines.iter().any(|name| name == engine))?;
    Some((entry.loaded()?, entry.key.clone()))
}

/// The model that the engine holds now.
pub fn engine(name: &str) -> Option<Loaded> {
    of_engine(name).map(|(loaded, _)| loaded)
}

/// The model with this number, as long as an element holds it.
pub fn find(id: u64) -> Option<Arc<Model>> {
    lock(&MODELS).iter().find(|entry| entry.id == id)?.model.upgrade()
}
