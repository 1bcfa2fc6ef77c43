//! The plans of a bundle, in its folder `engines`.
//!
//! A plan `NAME.plan` has a record `NAME.toml` beside it, which says what it was built for and seals its size and
//! hash. Nothing is given to TensorRT whose record does not fit. The timings of kernels are kept there too, for each
//! GPU and version.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use conceptseg_tensorrt::{Plan, Seal, Version};
use serde::{Deserialize, Serialize};

use super::build::BuildOptions;
use super::error::TensorRtError;
use super::key::{Compatible, ComputeCapability, PlanKey, machine};
use crate::files::write_atomic;

/// Name of the folder in a bundle.
pub const FOLDER: &str = "engines";
/// Version of the records that this program writes and reads.
const FORMAT_VERSION: u32 = 1;
/// Largest record that is read, in bytes.
const MAX_RECORD: u64 = 64 << 10;
/// Largest plan that is read, in bytes.
const MAX_PLAN: u64 = 8 << 30;
/// Largest timing cache that is read, in bytes.
const MAX_TIMINGS: u64 = 256 << 20;
/// Files of the folder that are looked at, at most.
const MAX_FILES: usize = 4096;
/// Name of the file that whoever builds holds a lock on.
const LOCK: &str = ".lock";

/// What is known about a plan without TensorRT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanRecord {
    /// Version of this format, [`FORMAT_VERSION`].
    format_version: u32,
    /// When it was built, UTC, RFC 3339.
    pub created: String,
    /// Program and version that built it.
    pub producer: String,
    /// Seconds that it took.
    pub seconds: f64,
    /// Size and hash of the plan.
    pub plan: SealEntry,
    /// What it was built for.
    pub key: PlanKey,
    /// How it was built.
    pub options: BuildOptions,
    /// Where the ranges of 8-bit integers come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationEntry>,
}

/// Size and hash of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealEntry {
    /// Bytes.
    pub size: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

/// What ranges were measured on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationEntry {
    /// Number of frames.
    pub frames: u64,
    /// SHA-256 of the file with the ranges, hexadecimal.
    pub sha256: String,
}

impl PlanRecord {
    /// The record of a plan that was just built.
    pub(super) fn new(
        plan: &Plan,
        key: PlanKey,
        options: BuildOptions,
        calibration: Option<CalibrationEntry>,
        seconds: f64,
    ) -> Self {
        let now = time::OffsetDateTime::now_utc().replace_nanosecond(0);
        let now = now
            .ok()
            .and_then(|now| now.format(&time::format_description::well_known::Rfc3339).ok());
        let seal = plan.seal();
        Self {
            format_version: FORMAT_VERSION,
            created: now.unwrap_or_default(),
            producer: concat!("conceptseg ", env!("CARGO_PKG_VERSION")).to_owned(),
            seconds: (seconds * 1e3).round() / 1e3,
            plan: SealEntry { size: seal.size, sha256: seal.digits() },
            key,
            options,
            calibration,
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let record: Self = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        if record.format_version != FORMAT_VERSION {
            return Err(format!(
                "its format version is {}, this program reads {FORMAT_VERSION}",
                record.format_version
            ));
        }
        if let Some(reason) = record.key.input.refuse() {
            return Err(reason);
        }
        if record.plan.size > MAX_PLAN {
            return Err(format!("a plan of {} bytes is not read", record.plan.size));
        }
        Ok(record)
    }

    /// What the plan was made to stand.
    pub fn compatible(&self) -> Compatible {
        Compatible { gpus: self.options.gpus, versions: self.options.version_compatible }
    }

    /// Reads the plan in the file `path` if its size and hash are the recorded ones.
    ///
    /// # Errors
    /// [`TensorRtError::Sealed`].
    pub fn open(&self, path: &Path) -> Result<Plan, TensorRtError> {
        let seal = Seal::parse(self.plan.size, &self.plan.sha256)?;
        Ok(Plan::open(path, &seal)?)
    }
}

/// A plan of a store.
#[derive(Debug, Clone)]
pub struct StoredPlan {
    /// File of the plan.
    pub path: PathBuf,
    /// Its record, or why there is none that can be read.
    pub record: Result<PlanRecord, String>,
}

/// What was found for a key.
#[derive(Debug)]
pub struct Found {
    /// A plan that fits and is whole, with its file.
    pub plan: Option<(PathBuf, Plan, PlanRecord)>,
    /// Plans that should have fitted, and why they are not used, as sentences.
    pub stale: Vec<String>,
}

/// The folder of a network's plans.
#[derive(Debug, Clone)]
pub struct PlanStore {
    folder: PathBuf,
}

impl PlanStore {
    /// The store beside the network `onnx`: the folder `engines` of the bundle.
    pub fn of_network(onnx: &Path) -> Self {
        Self { folder: onnx.parent().unwrap_or(Path::new("")).join(FOLDER) }
    }

    /// The folder, which need not exist.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All plans and all records, by name; none where there is no such folder.
    ///
    /// # Errors
    /// [`TensorRtError::Io`].
    pub fn list(&self) -> Result<Vec<StoredPlan>, TensorRtError> {
        let error = |source| TensorRtError::Io { path: self.folder.clone(), source };
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(error(e)),
        };
        let mut paths = Vec::new();
        for entry in entries.take(MAX_FILES) {
            let path = entry.map_err(error)?.path();
            if path.extension().is_some_and(|ending| ending == "plan" || ending == "toml") {
                paths.push(path.with_extension("plan"));
            }
        }
        paths.sort();
        paths.dedup();
        Ok(paths.into_iter().map(|path| StoredPlan { record: read_record(&path), path }).collect())
    }

    /// Looks for a plan that may be run as `wanted`: one for exactly this machine before those that are compatible.
    ///
    /// # Errors
    /// [`TensorRtError::Io`].
    pub fn find(&self, wanted: &PlanKey) -> Result<Found, TensorRtError> {
        let stem = wanted.file_stem();
        let mut found = Found { plan: None, stale: Vec::new() };
        let mut fitting = Vec::new();
        for StoredPlan { path, record } in self.list()? {
            let named = path.file_stem().is_some_and(|name| name == stem.as_str());
            let reason = match record {
                Ok(record) => match record.key.differs(wanted, record.compatible()) {
                    None => {
                        fitting.push((record.key != *wanted, path, record));
                        continue;
                    }
                    Some(reason) => reason,
                },
                Err(reason) => reason,
            };
            if named {
                found.stale.push(format!("the plan {} is not used: {reason}", path.display()));
            }
        }
        fitting.sort_by_key(|(other, _, _)| *other);
        for (_, path, record) in fitting {
            match record.open(&path) {
                Ok(plan) => {
                    found.plan = Some((path, plan, record));
                    break;
                }
                Err(reason) => {
                    found.stale.push(format!("the plan {} is not used: {reason}", path.display()));
                }
            }
        }
        Ok(found)
    }

    /// Whether there is a plan for this key at any size.
    pub(super) fn has_any_size(&self, key: &PlanKey) -> Result<bool, TensorRtError> {
        Ok(self.list()?.into_iter().filter_map(|stored| stored.record.ok()).any(|record| {
            let wanted = PlanKey { input: record.key.input, ..key.clone() };
            record.key.differs(&wanted, record.compatible()).is_none()
        }))
    }

    /// Writes a plan, and its record after it.
    pub(super) fn save(&self, plan: &Plan, record: &PlanRecord) -> Result<PathBuf, TensorRtError> {
        let path = self.folder.join(format!("{}.plan", record.key.file_stem()));
        let sidecar = path.with_extension("toml");
        let text = toml::to_string(record).map_err(io::Error::other);
        self.write(&path, plan.bytes())?;
        let text = text.map_err(|source| TensorRtError::Io { path: sidecar.clone(), source })?;
        self.write(&sidecar, text.as_bytes())?;
        Ok(path)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), TensorRtError> {
        self.create()?;
        write_atomic(path, |file| file.write_all(bytes))
            .map_err(|source| TensorRtError::Io { path: path.to_owned(), source })
    }

    fn timings_path(&self, gpu: &str, capability: ComputeCapability, version: Version) -> PathBuf {
        self.folder.join(format!("timing-{}.cache", machine(gpu, capability, version)))
    }

    /// File with the ranges of 8-bit integers that were measured on the network of this hash. It serves all sizes.
    pub fn calibration_path(&self, onnx_sha256: &str) -> PathBuf {
        let digits: String = onnx_sha256.chars().take(8).collect();
        self.folder.join(format!("calibration-{digits}.json"))
    }

    /// Makes the folder, so that files can be written to it.
    ///
    /// # Errors
    /// [`TensorRtError::Io`].
    pub fn create(&self) -> Result<(), TensorRtError> {
        fs::create_dir_all(&self.folder)
            .map_err(|source| TensorRtError::Io { path: self.folder.clone(), source })
    }

    /// The timings of earlier builds for this GPU and version; empty where there are none that can be read.
    pub(super) fn timings(&self, key: &PlanKey) -> Vec<u8> {
        let path = self.timings_path(&key.gpu, key.compute_capability, key.tensorrt);
        match read_bounded(&path, MAX_TIMINGS) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                tracing::warn!("the timing cache {} is not used: {error}", path.display());
                Vec::new()
            }
        }
    }

    /// Writes the timings for later builds.
    pub(super) fn save_timings(&self, key: &PlanKey, bytes: &[u8]) -> Result<(), TensorRtError> {
        self.write(&self.timings_path(&key.gpu, key.compute_capability, key.tensorrt), bytes)
    }

    /// Waits until no other program builds in this folder, and holds others off until the file is dropped. `waiting`
    /// is called where there is something to wait for.
    pub(super) fn lock(&self, waiting: impl FnOnce()) -> Result<File, TensorRtError> {
        let path = self.folder.join(LOCK);
        self.create()?;
        let take = || {
            let file = File::options().create(true).append(true).open(&path)?;
            if file.try_lock().is_err() {
                waiting();
                file.lock()?;
            }
            Ok(file)
        };
        take().map_err(|source| TensorRtError::Io { path: path.clone(), source })
    }
}

fn read_record(plan: &Path) -> Result<PlanRecord, String> {
    let path = plan.with_extension("toml");
    let bytes = read_bounded(&path, MAX_RECORD).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "it has no record".to_owned(),
        _ => format!("its record cannot be read: {error}"),
    })?;
    let text = String::from_utf8(bytes).map_err(|_| "its record is no text".to_owned())?;
    PlanRecord::parse(&text).map_err(|reason| format!("its record does not parse: {reason}"))
}

/// The bytes of a file that has at most `limit`.
fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    if size > limit {
        return Err(io::Error::other(format!("{size} bytes are more than the {limit} allowed")));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::key::tests::key;
    use super::super::key::{Gpus, InputShape};
    use super::*;

    fn plan(weights: &[u8]) -> Plan {
        let mut bytes = b"ftrt".to_vec();
        bytes.resize(28, 0);
        bytes.extend(weights);
        let seal = Seal::of(&bytes);
        Plan::new(bytes, &seal).unwrap()
    }

    fn store() -> (tempfile::TempDir, PlanStore) {
        let bundle = tempfile::tempdir().unwrap();
        let store = PlanStore::of_network(&bundle.path().join("embedder.onnx"));
        (bundle, store)
    }

    fn save(store: &PlanStore, key: &PlanKey, options: BuildOptions) -> PathBuf {
        let plan = plan(b"weights");
        let record = PlanRecord::new(&plan, key.clone(), options, None, 1.5);
        store.save(&plan, &record).unwrap()
    }

    fn stale(store: &PlanStore, key: &PlanKey) -> String {
        let found = store.find(key).unwrap();
        assert!(found.plan.is_none());
        found.stale.join("; ")
    }

    #[test]
    fn a_saved_plan_is_found_again_with_its_record() {
        let (bundle, store) = store();
        assert!(store.find(&key()).unwrap().plan.is_none(), "there is no folder yet");
        let path = save(&store, &key(), BuildOptions::default());
        assert_eq!(path.parent().unwrap(), bundle.path().join("engines"));
        let (found, plan, record) = store.find(&key()).unwrap().plan.unwrap();
        assert_eq!((found, plan.bytes().len()), (path, 35));
        assert_eq!((record.key, record.seconds), (key(), 1.5));
        assert!(record.created.ends_with('Z'), "{}", record.created);
        assert!(store.has_any_size(&PlanKey { input: InputShape::one(64, 64), ..key() }).unwrap());
        assert!(!store.has_any_size(&PlanKey { gpu: "other".to_owned(), ..key() }).unwrap());
    }

    #[test]
    fn a_cut_or_altered_plan_is_not_used() {
        let (_bundle, store) = store();
        let path = save(&store, &key(), BuildOptions::default());
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..30]).unwrap();
        assert!(stale(&store, &key()).contains("has 30 bytes instead of 35"));
        let mut altered = whole.clone();
        altered[30] ^= 1;
        fs::write(&path, &altered).unwrap();
        assert!(stale(&store, &key()).contains("has changed since it was built"));
        fs::remove_file(&path).unwrap();
        assert!(stale(&store, &key()).contains("cannot be read"));
        fs::write(&path, &whole).unwrap();
        assert!(store.find(&key()).unwrap().plan.is_some());
    }

    #[test]
    fn a_damaged_record_is_not_trusted() {
        let (_bundle, store) = store();
        let sidecar = save(&store, &key(), BuildOptions::default()).with_extension("toml");
        let text = fs::read_to_string(&sidecar).unwrap();
        for (from, to, word) in [
            ("format_version = 1", "format_version = 9", "format version is 9"),
            ("size = 35", "size = 99999999999", "is not read"),
            ("height = 480", "height = 0", "sides of 1 to"),
            ("seconds = 1.5", "seconds = \"long\"", "does not parse"),
            ("seconds = 1.5", "seconds = 1.5\nmore = 1", "unknown field"),
            ("sha256 = \"", "sha256 = \"zz", "is no SHA-256"),
        ] {
            assert!(text.contains(from), "{from} in {text}");
            fs::write(&sidecar, text.replacen(from, to, 1)).unwrap();
            let reason = stale(&store, &key());
            assert!(reason.contains(word), "{to}: {reason}");
        }
        fs::write(&sidecar, vec![b' '; (64 << 10) + 1]).unwrap();
        assert!(stale(&store, &key()).contains("more than the 65536 allowed"));
        fs::write(&sidecar, [0xFF]).unwrap();
        assert!(stale(&store, &key()).contains("is no text"));
        fs::remove_file(&sidecar).unwrap();
        assert!(stale(&store, &key()).contains("has no record"));
    }

    #[test]
    fn a_plan_of_another_gpu_under_the_right_name_is_not_used() {
        let (_bundle, store) = store();
        let path = save(
            &store,
            &PlanKey { gpu: "Orin-nvgpu".to_owned(), ..key() },
            BuildOptions::default(),
        );
        assert_eq!(path.file_stem().unwrap().to_str().unwrap(), key().file_stem());
        assert!(stale(&store, &key()).contains("built for the GPU Orin-nvgpu (8.7)"));
    }

    #[test]
    fn a_plan_of_this_machine_comes_before_a_compatible_one() {
        let (_bundle, store) = store();
        let options = BuildOptions {
            gpus: Gpus::AmperePlus,
            version_compatible: true,
            ..BuildOptions::default()
        };
        let old = conceptseg_tensorrt::Version { major: 8, minor: 6, patch: 0 };
        save(&store, &PlanKey { gpu: "a".to_owned(), tensorrt: old, ..key() }, options);
        let (_, _, record) = store.find(&key()).unwrap().plan.unwrap();
        assert_eq!(record.key.gpu, "a");
        save(&store, &key(), BuildOptions::default());
        let (_, _, record) = store.find(&key()).unwrap().plan.unwrap();
        assert_eq!(record.key, key());
    }

    #[test]
    fn timings_are_kept_for_each_gpu_and_version() {
        let (_bundle, store) = store();
        assert_eq!(store.timings(&key()), b"");
        store.save_timings(&key(), b"timings").unwrap();
        assert_eq!(store.timings(&key()), b"timings");
        assert_eq!(store.timings(&PlanKey { gpu: "other".to_owned(), ..key() }), b"");
    }

    #[test]
    fn builders_wait_for_each_other() {
        let (_bundle, store) = store();
        let held = store.lock(|| panic!("nobody else builds")).unwrap();
        let (told, waits) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| drop(store.lock(move || told.send(()).unwrap()).unwrap()));
            waits.recv().unwrap();
            drop(held);
            other.join().unwrap();
        });
    }
}
