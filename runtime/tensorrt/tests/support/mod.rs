//! Builds the fake libraries with plain `rustc`, and gives each test copies of its own.
#![allow(dead_code, reason = "not every test file uses all of it")]

use std::collections::hash_map::DefaultHasher;
use std::ffi::{CStr, CString, c_char};
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use conceptseg_tensorrt::cuda::{Context, Driver};
use conceptseg_tensorrt::{Library, Search};

/// Interfaces that fakes are built for.
pub const VERSIONS: [&str; 5] = ["8.6", "10.3", "10.15", "11.1", "11.4"];

/// Compiles a fake unless that has been done for these sources, and answers its path.
fn compile(source: &str, version: Option<&str>, lean: bool) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake");
    let table =
        version.map(|version| sources.join(format!("abi_{}.rs", version.replace('.', "_"))));
    let source = sources.join(source);
    let mut hasher = DefaultHasher::new();
    for path in std::iter::once(&source).chain(&table) {
        fs::read(path).unwrap().hash(&mut hasher);
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let name = format!("fake-{}-{lean}-{:016x}.so", version.unwrap_or("cuda"), hasher.finish());
    let finished = folder.join(&name);
    if finished.exists() {
        return finished;
    }
    // Several tests may compile the same fake: each under its own name, renamed when it is whole.
    let unfinished = tempfile::tempdir_in(&folder).unwrap();
    let output = unfinished.path().join("fake.so");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args([
        "--edition",
        "2024",
        "--crate-type",
        "cdylib",
        "--crate-name",
        "fake",
        "-Awarnings",
        "-o",
    ]);
    rustc.arg(&output).arg(&source).current_dir(unfinished.path());
    if let (Some(table), Some(version)) = (table, version) {
        let major = version.split('.').next().unwrap();
        rustc.env("FAKE_ABI", table).args(["--cfg", &format!("fake_v{major}")]);
    }
    if lean {
        rustc.args(["--cfg", "fake_lean"]);
    }
    let result = rustc.output().unwrap();
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    fs::rename(output, &finished).unwrap();
    finished
}

/// The controls of one loaded copy of a fake.
pub struct Fake(libloading::Library);

impl Fake {
    fn load(path: &Path) -> Self {
        // SAFETY: a fake made here, without initializers.
        Self(unsafe { libloading::Library::new(path) }.unwrap())
    }

    pub fn set(&self, name: &str, value: i64) {
        let name = CString::new(name).unwrap();
        // SAFETY: the signature is that in the fake's source; the name lives during the call.
        unsafe {
            self.0.get::<unsafe extern "C" fn(*const c_char, i64)>("fake_set").unwrap()(
                name.as_ptr(),
                value,
            );
        }
    }

    /// The calls since this was asked for.
    pub fn take_calls(&self) -> Vec<String> {
        // SAFETY: the signature is that in the fake's source; the string is given away by it (and leaked here).
        let calls = unsafe {
            CStr::from_ptr(
                self.0.get::<extern "C" fn() -> *mut c_char>("fake_take_calls").unwrap()(),
            )
        };
        calls.to_str().unwrap().lines().map(str::to_owned).collect()
    }

    pub fn live_objects(&self) -> i64 {
        // SAFETY: the signature is that in the fake's source.
        unsafe { self.0.get::<extern "C" fn() -> i64>("fake_live_objects").unwrap()() }
    }
}

/// A folder with fakes of one version, none of which another test uses.
pub struct Fakes {
    pub folder: tempfile::TempDir,
    pub major: u32,
    pub nvinfer: Fake,
    pub parser: Fake,
    pub cuda: Fake,
}

impl Fakes {
    pub fn new(version: &str) -> Self {
        Self::of(version, false)
    }

    pub fn lean(version: &str) -> Self {
        Self::of(version, true)
    }

    fn of(version: &str, lean: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let major = version.split('.').next().unwrap().parse().unwrap();
        let copy = |from: &Path, to: String| {
            let to = folder.path().join(to);
            fs::copy(from, &to).unwrap();
            Fake::load(&to)
        };
        let library = compile("nvinfer.rs", Some(version), lean);
        let stem = if lean { "libnvinfer_lean" } else { "libnvinfer" };
        let nvinfer = copy(&library, format!("{stem}.so.{major}"));
        let parser = copy(&library, format!("libnvonnxparser.so.{major}"));
        let cuda = copy(&compile("cuda.rs", None, false), "libcuda.so.1".to_owned());
        Self { folder, major, nvinfer, parser, cuda }
    }

    pub fn search(&self) -> Search {
        Search::folder(self.folder.path())
    }

    pub fn library(&self) -> Library {
        Library::open(&self.search()).unwrap()
    }

    pub fn driver(&self) -> Driver {
        Driver::open_file(self.folder.path().join("libcuda.so.1")).unwrap()
    }

    pub fn context(&self) -> Arc<Context> {
        Context::new(&self.driver(), 0).unwrap()
    }

    /// Checks that all objects were given back, none before what needs it.
    pub fn check_all_destroyed(&self) {
        assert_eq!(self.nvinfer.live_objects(), 0);
        assert_eq!(self.parser.live_objects(), 0);
        assert_eq!(self.cuda.live_objects(), 0);
        let calls = self.nvinfer.take_calls();
        assert!(!calls.iter().any(|call| call.contains("VIOLATION")), "{calls:?}");
    }
}
