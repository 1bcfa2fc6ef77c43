//! One GPU in use: its context, and the engines on it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use conceptseg_tensorrt::cuda::{Context, CudaError, Stream};
use conceptseg_tensorrt::{Plan, Runtime};

use super::build::{self, BuildOptions, Built, NetworkFile, Phase};
use super::error::{TensorRtError, megabytes};
use super::find::{Installation, Places};
use super::key::{InputShape, PlanKey, Precision};
use super::loaded::Loaded;
use super::store::{PlanRecord, PlanStore};

/// What does not change when a GPU has to be opened again.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) network: NetworkFile,
    pub(super) store: PlanStore,
    pub(super) places: Places,
    pub(super) device: u32,
    pub(super) precision: Precision,
    pub(super) dla: Option<u32>,
    /// Plans that could not be written to the store.
    unsaved: Mutex<BTreeMap<InputShape, Arc<Plan>>>,
}

impl Setup {
    pub(super) fn new(
        network: NetworkFile,
        places: Places,
        device: u32,
        precision: Precision,
        dla: Option<u32>,
    ) -> Self {
        let store = PlanStore::of_network(&network.path);
        Self { network, store, places, device, precision, dla, unsaved: Mutex::default() }
    }

    /// The key of a plan on this machine.
    pub(super) fn key(&self, installation: &Installation, input: InputShape) -> PlanKey {
        PlanKey {
            gpu: installation.gpu.clone(),
            compute_capability: installation.compute_capability,
            tensorrt: installation.library.version(),
            precision: self.precision,
            dla: self.dla,
            onnx_sha256: self.network.sha256.clone(),
            input,
        }
    }

    /// Why no plan can be built here without more being said, if so.
    pub(super) fn cannot_build(&self, installation: &Installation) -> Option<String> {
        let ranges = self.store.calibration_path(&self.network.sha256);
        if self.precision == Precision::Int8 && !ranges.is_file() {
            return Some(
                "8-bit integers need frames to measure ranges on; run `conceptseg engine build --precision int8 \
                 --frames DIR`"
                    .to_owned(),
            );
        }
        (!installation.library.can_build()).then(|| {
            format!(
                "{} is the lean runtime, which has no builder; install the full TensorRT, or copy a plan from a \
                 machine that has it",
                installation.library.path().display()
            )
        })
    }

    fn no_plan(&self, input: InputShape, reason: String) -> TensorRtError {
        let (precision, folder) = (self.precision, self.store.folder().to_owned());
        TensorRtError::NoPlan { precision, input, folder, reason }
    }
}

/// An engine that is there, or is being loaded by whoever holds the lock.
type Place = Arc<Mutex<Option<Arc<Loaded>>>>;

/// A GPU with its engines. Given by [`TensorRt::with_gpu`](super::TensorRt::with_gpu) for the time of a call: when the
/// GPU breaks, everything on it has to go.
#[derive(Debug)]
pub struct Gpu {
    engines: Mutex<BTreeMap<InputShape, Place>>,
    /// The shape that is run for a number of images and the largest shape that they may come in.
    chosen: Mutex<BTreeMap<(u32, InputShape), InputShape>>,
    /// To ask whether the GPU still works.
    stream: Arc<Stream>,
    runtime: Runtime,
    cuda: Arc<Context>,
    installation: Installation,
    setup: Arc<Setup>,
}

impl Gpu {
    pub(super) fn open(setup: &Arc<Setup>) -> Result<Self, TensorRtError> {
        let (installation, cuda) = Installation::find(&setup.places, setup.device)?;
        let runtime = Runtime::new(&installation.library, &cuda).map_err(|error| {
            // What the CUDA runtime inside TensorRT says where it was made for a newer driver.
            let text = error.to_string();
            let (major, minor) = installation.cuda;
            if text.contains("error: 35") {
                return TensorRtError::Unavailable {
                    reason: format!(
                        "the GPU's driver serves CUDA {major}.{minor}, which is too old for TensorRT {}; install a \
                         newer driver",
                        installation.library.version()
                    ),
                };
            }
            error.into()
        })?;
        if let Some(core) = setup.dla {
            runtime.set_dla_core(core)?;
        }
        let stream = Stream::new(&cuda)?;
        let setup = Arc::clone(setup);
        Ok(Self {
            engines: Mutex::default(),
            chosen: Mutex::default(),
            stream,
            runtime,
            cuda,
            installation,
            setup,
        })
    }

    /// Driver, GPU and library.
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// The context of the GPU, in which everything is made.
    pub fn cuda(&self) -> &Arc<Context> {
        &self.cuda
    }

    /// The error after which nothing works on this GPU any more, if there was one.
    pub(super) fn broken(&self) -> Option<CudaError> {
        self.stream.synchronize().err().filter(CudaError::is_sticky)
    }

    /// The engine for images of this shape: loaded, from its plan, or from a plan that is built now, which takes
    /// minutes.
    ///
    /// # Errors
    /// [`TensorRtError`].
    pub fn engine(&self, input: InputShape) -> Result<Arc<Loaded>, TensorRtError> {
        let place = Arc::clone(lock(&self.engines).entry(input).or_default());
        let mut place = lock(&place);
        if let Some(engine) = &*place {
            return Ok(Arc::clone(engine));
        }
        let engine = Arc::new(self.load(input)?);
        *place = Some(Arc::clone(&engine));
        Ok(engine)
    }

    /// The engine for so many images, `most.batch` at most: that for the fewest which is there already and takes them,
    /// else that for `most`.
    ///
    /// # Errors
    /// [`TensorRtError`].
    pub fn engine_for(&self, count: u32, most: InputShape) -> Result<Arc<Loaded>, TensorRtError> {
        let known = lock(&self.chosen).get(&(count, most)).copied();
        if let Some(shape) = known {
            return self.engine(shape);
        }
        let smaller = (count..most.batch).map(|batch| InputShape { batch, ..most });
        for shape in smaller.filter(|shape| shape.refuse().is_none()) {
            let place = Arc::clone(lock(&self.engines).entry(shape).or_default());
            let mut place = lock(&place);
            if place.is_none() {
                *place = self.load_present(shape)?.map(Arc::new);
            }
            if let Some(engine) = &*place {
                lock(&self.chosen).insert((count, most), shape);
                return Ok(Arc::clone(engine));
            }
        }
        let engine = self.engine(most)?;
        lock(&self.chosen).insert((count, most), most);
        Ok(engine)
    }

    /// The engine whose plan need not be built, where there is one.
    fn load_present(&self, input: InputShape) -> Result<Option<Loaded>, TensorRtError> {
        let unsaved = lock(&self.setup.unsaved).get(&input).cloned();
        match unsaved {
            Some(plan) => self.start(&plan, false, input).map(Some),
            None => self.load_stored(&self.setup.key(&self.installation, input)),
        }
    }

    fn load(&self, input: InputShape) -> Result<Loaded, TensorRtError> {
        let setup = &self.setup;
        if let Some(reason) = input.refuse() {
            return Err(TensorRtError::Options { what: reason });
        }
        if let Some(engine) = self.load_present(input)? {
            return Ok(engine);
        }
        let key = setup.key(&self.installation, input);
        if let Some(reason) = setup.cannot_build(&self.installation) {
            return Err(setup.no_plan(input, reason));
        }
        // In a folder that cannot be written to nobody else builds either.
        let mut waited = false;
        let building = setup.store.lock(|| waited = true).ok();
        if waited && let Some(engine) = self.load_stored(&key)? {
            return Ok(engine);
        }
        tracing::warn!(
            "building the {} plan for {input} on {}; this takes minutes, once",
            key.precision,
            self.installation.gpu
        );
        let Built { plan, record, saved } = self
            .build(&key, BuildOptions::default(), &mut |_| {})
            .map_err(|error| self.explained(error, input, None))?;
        drop(building);
        let plan = Arc::new(plan);
        match saved {
            Ok(path) => tracing::info!("built {} in {:.0} s", path.display(), record.seconds),
            Err(error) => {
                tracing::warn!("the plan will have to be built again at the next start: {error}");
                lock(&setup.unsaved).insert(input, Arc::clone(&plan));
            }
        }
        self.start(&plan, false, input)
    }

    /// The engine of one plan, which must have been built for this GPU; nothing is built.
    ///
    /// # Errors
    /// [`TensorRtError`].
    pub fn load_plan(&self, path: &Path, record: &PlanRecord) -> Result<Loaded, TensorRtError> {
        let input = record.key.input;
        let wanted = self.setup.key(&self.installation, input);
        if let Some(reason) = record.key.differs(&wanted, record.compatible()) {
            return Err(TensorRtError::Plan { path: path.to_owned(), reason });
        }
        self.start(&record.open(path)?, record.options.version_compatible, input)
            .map_err(|error| refused(path, &error))
    }

    /// The engine of a stored plan. A plan that is not trusted, or that TensorRT refuses, is none.
    fn load_stored(&self, key: &PlanKey) -> Result<Option<Loaded>, TensorRtError> {
        let found = self.setup.store.find(key)?;
        for reason in &found.stale {
            tracing::warn!("{reason}");
        }
        let Some((path, plan, record)) = found.plan else { return Ok(None) };
        match self.start(&plan, record.options.version_compatible, key.input) {
            Ok(engine) => Ok(Some(engine)),
            Err(error) if error.is_out_of_memory() || self.broken().is_some() => Err(error),
            Err(error) if self.setup.cannot_build(&self.installation).is_some() => {
                Err(refused(&path, &error))
            }
            Err(error) => {
                tracing::warn!("{}", refused(&path, &error));
                Ok(None)
            }
        }
    }

    /// Makes an engine of a plan.
    ///
    /// A version-compatible plan brings a runtime of its own, as host code. It is as trusted as any plan: those are
    /// programs for the GPU, and this one's hash is the recorded one.
    fn start(
        &self,
        plan: &Plan,
        host_code: bool,
        input: InputShape,
    ) -> Result<Loaded, TensorRtError> {
        let weights = plan.bytes().len() as u64;
        self.runtime.set_host_code_allowed(host_code);
        let engine = self
            .runtime
            .deserialize(plan)
            .map_err(|error| self.explained(error.into(), input, Some(weights)))?;
        let needed = weights.saturating_add(engine.device_memory());
        let names = (self.setup.network.input.as_str(), self.setup.network.output.as_str());
        Loaded::new(engine, &self.cuda, names, input)
            .map_err(|error| self.explained(error, input, Some(needed)))
    }

    /// Says how much memory was needed where there was too little.
    pub(super) fn explained(
        &self,
        error: TensorRtError,
        input: InputShape,
        needed: Option<u64>,
    ) -> TensorRtError {
        if !error.is_out_of_memory() || matches!(error, TensorRtError::OutOfMemory { .. }) {
            return error;
        }
        TensorRtError::OutOfMemory {
            gpu: self.installation.gpu.clone(),
            input,
            needed: needed.map_or("more than is free".to_owned(), |bytes| {
                format!("about {}", megabytes(bytes))
            }),
            total: megabytes(self.installation.memory),
        }
    }

    /// Builds a plan on this GPU and writes it to the store. No other program should be doing so: see
    /// [`PlanStore`].
    pub(super) fn build(
        &self,
        key: &PlanKey,
        options: BuildOptions,
        report: &mut dyn FnMut(Phase),
    ) -> Result<Built, TensorRtError> {
        let Setup { network, store, .. } = &*self.setup;
        build::build(&self.installation, &self.cuda, network, store, key, options, report)
    }
}

fn refused(path: &Path, error: &TensorRtError) -> TensorRtError {
    TensorRtError::Plan { path: path.to_owned(), reason: crate::backend::one_line(error) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
