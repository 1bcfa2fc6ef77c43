//! The state of a run in one file, from which the run continues to the bit.
//!
//! The file is a safetensors file. Its tensors are
//!
//! | name | what |
//! |---|---|
//! | `network.<variable>` | every variable, the running statistics of batch norms included |
//! | `teacher.<variable>` | the same of the mean teacher, if there is one |
//! | `momentum.<variable>`, `momentum.dictionary` | the optimiser's momentum |
//! | `dictionary.codebook`, `dictionary.usage` | the concepts and the average use of each |
//! | `memory.<i>.z`, `memory.<i>.image` | the memory's batches, oldest first |
//! | `totals` | total loss of every step |
//!
//! and the rest is one JSON object under the key `conceptseg` of its metadata.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write as _};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use conceptseg::files::write_atomic;
use safetensors::tensor::{TensorView, View};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor, no_grad};

use crate::config::TrainConfig;
use crate::data::Dataset;
use crate::losses::LossError;
use crate::losses::dictionary::Dictionary;
use crate::losses::memory::{MemoryBank, MemoryEntry};
use crate::network::{Network, NetworkError};
use crate::state::TrainState;
use crate::teacher::Teacher;

/// Name of the file in a run's log folder.
pub const FILE_NAME: &str = "checkpoint.safetensors";
/// Largest file that is read, in bytes: ten times that of the paper's network.
const MAX_FILE: u64 = 4 << 30;
/// Raised whenever an older program could not continue from a newer file or the reverse.
const FORMAT: u32 = 1;
/// Key of the metadata.
const KEY: &str = "conceptseg";
/// Parts of the recipe that do not change the run.
const FREE_KEYS: [&str; 6] =
    ["name", "provenance", "export_size", "checkpoint", "data.threads", "data.memory_limit_mb"];
/// Differences between recipes that a message names.
const SHOWN: usize = 6;

/// Why a checkpoint cannot be written or continued from.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// There is none.
    #[error("there is no checkpoint {path}; leave out --resume to start a new run")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error("cannot write the checkpoint {path}: {source}; free space or choose another --log-dir")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("cannot read the checkpoint {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The file is larger than any checkpoint.
    #[error("the checkpoint {path} has {bytes} bytes, more than the {MAX_FILE} that are read")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The file is damaged or none of ours.
    #[error("{path} is no checkpoint that can be used: {reason}; start anew without --resume")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The run had another recipe.
    #[error(
        "the checkpoint {path} belongs to another recipe: {differences}; give the recipe and \
         options it was made with, or start anew without --resume"
    )]
    Recipe {
        /// The file.
        path: PathBuf,
        /// Keys with the value then and now.
        differences: String,
    },
    /// The run had other images.
    #[error(
        "the checkpoint {path} belongs to another list of images: {then} then, {now} now; give \
         the images it was made with, or start anew without --resume"
    )]
    Images {
        /// The file.
        path: PathBuf,
        /// Number and hash of the images then.
        then: ImageList,
        /// Number and hash of the images now.
        now: ImageList,
    },
    /// The network could not be made.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Which images a run learns from, and in which order.
///
/// The hash is over the name (without its folders) and the length of every file, so that a
/// data set that has moved is still the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageList {
    /// Number of images.
    pub count: usize,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

impl ImageList {
    /// The images of a data set.
    pub fn of(dataset: &Dataset) -> Self {
        let mut hash = Sha256::new();
        for path in (0..dataset.len()).filter_map(|i| dataset.path(i)) {
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            // A file that has vanished is reported when it is read.
            let length = fs::metadata(path).map_or(0, |file| file.len());
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name);
            hash.update(length.to_le_bytes());
        }
        let sha256 = hash.finalize().iter().fold(String::new(), |mut text, byte| {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        });
        Self { count: dataset.len(), sha256 }
    }
}

impl fmt::Display for ImageList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = self.sha256.get(..12).unwrap_or(&self.sha256);
        write!(f, "{} images with hash {short}", self.count)
    }
}

/// What is not a tensor.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    format: u32,
    producer: String,
    step: u64,
    next_batch: u64,
    void_batches: u64,
    seconds: f64,
    pretrained: bool,
    revived: u64,
    memory: Vec<MemoryMeta>,
    images: ImageList,
    config: Value,
}

#[derive(Debug, Serialize, Deserialize)]
struct MemoryMeta {
    step: u64,
    image_ids: Vec<i64>,
}

/// Writes `state` to `path`, so that a reader finds either the old file or the new one.
///
/// # Errors
/// [`CheckpointError::Write`].
pub fn save(
    path: &Path,
    state: &TrainState,
    config: &TrainConfig,
    images: &ImageList,
) -> Result<(), CheckpointError> {
    let failed = |source| CheckpointError::Write { path: path.to_owned(), source };
    let mut tensors = Vec::new();
    let mut add = |name: String, tensor: &Tensor| tensors.push((name, Stored::new(tensor)));
    for parameter in state.network.parameters() {
        add(format!("network.{}", parameter.name), &parameter.tensor);
    }
    for parameter in state.teacher.iter().flat_map(|teacher| teacher.network.parameters()) {
        add(format!("teacher.{}", parameter.name), &parameter.tensor);
    }
    for (name, momentum) in state.sgd.momenta() {
        add(format!("momentum.{name}"), momentum);
    }
    add("dictionary.codebook".into(), &state.dictionary.codebook);
    add("dictionary.usage".into(), &Tensor::from_slice(&state.dictionary.usage));
    for (i, entry) in state.memory.entries.iter().enumerate() {
        add(format!("memory.{i}.z"), &entry.z);
        add(format!("memory.{i}.image"), &entry.image);
    }
    add("totals".into(), &Tensor::from_slice(&state.totals));
    let memory = state.memory.entries.iter();
    let meta = Meta {
        format: FORMAT,
        producer: format!("conceptseg-train {}", env!("CARGO_PKG_VERSION")),
        step: state.step,
        next_batch: state.next_batch,
        void_batches: state.void_batches,
        seconds: state.seconds,
        pretrained: state.pretrained,
        revived: state.dictionary.revived,
        memory: memory
            .map(|entry| MemoryMeta { step: entry.step, image_ids: entry.image_ids.clone() })
            .collect(),
        images: images.clone(),
        config: recipe(config).map_err(|e| failed(e.into()))?,
    };
    let meta = serde_json::to_string(&meta).map_err(|e| failed(e.into()))?;
    let bytes = safetensors::serialize(tensors, Some(HashMap::from([(KEY.to_owned(), meta)])))
        .map_err(|e| failed(io::Error::other(e)))?;
    write_atomic(path, |file| {
        file.write_all(&bytes)?;
        file.flush()?;
        // The old checkpoint goes only when the new one would survive a power cut.
        file.get_ref().sync_all()
    })
    .map_err(failed)
}

/// Reads the state in `path`, which a run with `config` over `images` has written.
///
/// # Errors
/// [`CheckpointError`]; a recipe or list of images other than the run's is named.
pub fn load(
    path: &Path,
    config: &TrainConfig,
    images: &ImageList,
    device: Device,
) -> Result<TrainState, CheckpointError> {
    let read = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => CheckpointError::Missing { path: path.to_owned() },
        _ => CheckpointError::Read { path: path.to_owned(), source },
    };
    let bytes = fs::metadata(path).map_err(read)?.len();
    if bytes > MAX_FILE {
        return Err(CheckpointError::TooLarge { path: path.to_owned(), bytes });
    }
    let data = fs::read(path).map_err(read)?;
    let file = Reader::open(path, &data)?;
    file.check(config, images)?;
    file.state(config, device)
}

/// A checkpoint in memory.
struct Reader<'a> {
    path: &'a Path,
    tensors: SafeTensors<'a>,
    meta: Meta,
}

impl<'a> Reader<'a> {
    fn open(path: &'a Path, data: &'a [u8]) -> Result<Self, CheckpointError> {
        let bad = |reason: String| CheckpointError::Format { path: path.to_owned(), reason };
        let tensors = SafeTensors::deserialize(data).map_err(|e| bad(e.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(data).map_err(|e| bad(e.to_string()))?;
        let meta = header.metadata().as_ref().and_then(|map| map.get(KEY));
        let meta = meta.ok_or_else(|| bad(format!("it has no metadata under `{KEY}`")))?;
        // The format first: another one may have other keys.
        let value: Value = serde_json::from_str(meta).map_err(|e| bad(e.to_string()))?;
        if value.get("format") != Some(&Value::from(FORMAT)) {
            let found = value.get("format").unwrap_or(&Value::Null);
            return Err(bad(format!("its format is {found}, this program has {FORMAT}")));
        }
        let meta = serde_json::from_value(value).map_err(|e| bad(e.to_string()))?;
        Ok(Self { path, tensors, meta })
    }

    fn bad(&self, reason: String) -> CheckpointError {
        CheckpointError::Format { path: self.path.to_owned(), reason }
    }

    fn check(&self, config: &TrainConfig, images: &ImageList) -> Result<(), CheckpointError> {
        let path = self.path.to_owned();
        let now = recipe(config).map_err(|e| self.bad(e.to_string()))?;
        // Keys that the file does not know yet had their defaults.
        let then = TrainConfig::deserialize(&self.meta.config).and_then(|then| recipe(&then));
        let differences = differences(then.as_ref().unwrap_or(&self.meta.config), &now);
        if !differences.is_empty() {
            let shown = differences.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
            let differences = match differences.len().saturating_sub(SHOWN) {
                0 => shown,
                more => format!("{shown} and {more} more"),
            };
            return Err(CheckpointError::Recipe { path, differences });
        }
        if self.meta.images != *images {
            let then = self.meta.images.clone();
            return Err(CheckpointError::Images { path, then, now: images.clone() });
        }
        Ok(())
    }

    fn state(&self, config: &TrainConfig, device: Device) -> Result<TrainState, CheckpointError> {
        let meta = &self.meta;
        let network = Network::new(&VarStore::new(device), &config.network, config.seed)?;
        for parameter in network.parameters() {
            self.fill(&format!("network.{}", parameter.name), &parameter.tensor)?;
        }
        let codebook = self.tensor("dictionary.codebook", Kind::Float)?.to_device(device);
        if codebook.size() != [config.dictionary.concepts, network.dim()] {
            return Err(self.bad(format!("`dictionary.codebook` is {:?}", codebook.size())));
        }
        let loss = |e: LossError| self.bad(e.to_string());
        let settings = config.dictionary.clone();
        let usage = self.doubles("dictionary.usage")?;
        let dictionary = Dictionary::restore(&codebook, usage, meta.revived, settings, config.seed)
            .map_err(loss)?;
        let mut memory = MemoryBank::new(config.memory_batches);
        for (i, entry) in meta.memory.iter().enumerate() {
            let z = self.tensor(&format!("memory.{i}.z"), Kind::Float)?;
            let image = self.tensor(&format!("memory.{i}.image"), Kind::Int64)?;
            if z.size().get(1) != Some(&network.dim()) {
                return Err(self.bad(format!("`memory.{i}.z` is {:?}", z.size())));
            }
            let (z, image) = (z.to_device(device), image.to_device(device));
            memory.push(
                MemoryEntry::new(&z, &image, entry.image_ids.clone(), entry.step).map_err(loss)?,
            );
        }
        let mut state = TrainState::assemble(config, network, dictionary, memory);
        state.teacher = Teacher::start(&config.teacher, &state.network)?;
        for parameter in state.teacher.iter().flat_map(|teacher| teacher.network.parameters()) {
            self.fill(&format!("teacher.{}", parameter.name), &parameter.tensor)?;
        }
        for (name, momentum) in state.sgd.momenta() {
            self.fill(&format!("momentum.{name}"), momentum)?;
        }
        state.totals = self.doubles("totals")?;
        if state.totals.len() as u64 != meta.step || meta.step > config.optimizer.iterations {
            let losses = state.totals.len();
            return Err(self.bad(format!("it holds {losses} losses of {} steps", meta.step)));
        }
        state.step = meta.step;
        state.next_batch = meta.next_batch;
        state.void_batches = meta.void_batches;
        state.seconds = meta.seconds;
        state.pretrained = meta.pretrained;
        Ok(state)
    }

    /// Copies a tensor of the file into one of the same shape.
    fn fill(&self, name: &str, target: &Tensor) -> Result<(), CheckpointError> {
        let value = self.tensor(name, target.kind())?;
        if value.size() != target.size() {
            let (found, expected) = (value.size(), target.size());
            return Err(self.bad(format!("`{name}` is {found:?} instead of {expected:?}")));
        }
        no_grad(|| target.detach().copy_(&value));
        Ok(())
    }

    fn doubles(&self, name: &str) -> Result<Vec<f64>, CheckpointError> {
        let tensor = self.tensor(name, Kind::Double)?;
        Vec::try_from(tensor).map_err(|e| self.bad(format!("`{name}`: {e}")))
    }

    fn tensor(&self, name: &str, kind: Kind) -> Result<Tensor, CheckpointError> {
        let view: TensorView<'_> =
            self.tensors.tensor(name).map_err(|_| self.bad(format!("it has no `{name}`")))?;
        if Some(view.dtype()) != dtype(kind) {
            return Err(self.bad(format!("`{name}` has numbers of type {:?}", view.dtype())));
        }
        let shape: Vec<i64> = view.shape().iter().map(|&side| side as i64).collect();
        Tensor::f_from_data_size(view.data(), &shape, kind)
            .map_err(|e| self.bad(format!("`{name}`: {e}")))
    }
}

/// Hash of all that processes of one run have to have in common.
pub(crate) fn fingerprint(
    config: &TrainConfig,
    images: &ImageList,
    state: &TrainState,
) -> Result<Vec<u8>, serde_json::Error> {
    let mut recipe = recipe(config)?;
    for key in FREE_KEYS {
        let mut value = Some(&mut recipe);
        let mut parts = key.split('.').peekable();
        while let (Some(part), Some(Value::Object(map))) = (parts.next(), value) {
            if parts.peek().is_none() {
                map.remove(part);
                break;
            }
            value = map.get_mut(part);
        }
    }
    let (version, images) = (env!("CARGO_PKG_VERSION"), &images.sha256);
    let text = format!("{version} {images} {} {} {recipe}", state.step, state.next_batch);
    Ok(Sha256::digest(text).to_vec())
}

/// The types of number in a checkpoint.
fn dtype(kind: Kind) -> Option<Dtype> {
    match kind {
        Kind::Float => Some(Dtype::F32),
        Kind::Double => Some(Dtype::F64),
        Kind::Int64 => Some(Dtype::I64),
        _ => None,
    }
}

/// A tensor on its way to the file; its bytes are copied only when it is written.
struct Stored {
    tensor: Tensor,
    shape: Vec<usize>,
}

impl Stored {
    fn new(tensor: &Tensor) -> Self {
        let shape = tensor.size().iter().map(|&side| side as usize).collect();
        Self { tensor: tensor.detach(), shape }
    }
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        match dtype(self.tensor.kind()) {
            Some(dtype) => dtype,
            None => unreachable!("a run has no tensors of {:?}", self.tensor.kind()),
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        let tensor = self.tensor.to_device(Device::Cpu).contiguous();
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

/// The recipe as the file keeps it. Through text, so that a number that was read from a file
/// and one that was not are rounded alike.
fn recipe(config: &TrainConfig) -> serde_json::Result<Value> {
    serde_json::from_str(&serde_json::to_string(config)?)
}

/// `key was A, is B` for every key that matters to the run.
fn differences(then: &Value, now: &Value) -> Vec<String> {
    let mut keys: BTreeMap<String, [Option<&Value>; 2]> = BTreeMap::new();
    flatten(String::new(), then, 0, &mut keys);
    flatten(String::new(), now, 1, &mut keys);
    let free = |key: &str| {
        FREE_KEYS.iter().any(|free| {
            key.strip_prefix(free).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    };
    let text = |value: Option<&Value>| value.map_or("absent".to_owned(), Value::to_string);
    keys.iter()
        .filter(|(key, [then, now])| then != now && !free(key))
        .map(|(key, [then, now])| format!("{key} was {}, is {}", text(*then), text(*now)))
        .collect()
}

fn flatten<'v>(
    prefix: String,
    value: &'v Value,
    side: usize,
    keys: &mut BTreeMap<String, [Option<&'v Value>; 2]>,
) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let dot = if prefix.is_empty() { "" } else { "." };
                flatten(format!("{prefix}{dot}{key}"), value, side, keys);
            }
        }
        _ => keys.entry(prefix).or_default()[side] = Some(value),
    }
}
