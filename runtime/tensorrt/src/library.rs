//! Finding and opening TensorRT, and its version.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::abi::{self, Abi};
use crate::error::Error;
use crate::logger::{Logger, LoggerObject};

/// Version of a TensorRT library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Major version, which decides the interface.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
    /// Patch.
    pub patch: u32,
}

impl Version {
    /// From the number that the library reports: 8601 for 8.6.1, and since 10 101501 for 10.15.1.
    #[must_use]
    pub fn from_number(number: i32) -> Self {
        let number = u32::try_from(number).unwrap_or(0);
        if number < 10_000 {
            return Self { major: number / 1000, minor: number / 100 % 10, patch: number % 100 };
        }
        Self { major: number / 10_000, minor: number / 100 % 100, patch: number % 100 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Where to look for TensorRT, and which major versions to take.
#[derive(Clone, Debug)]
pub struct Search {
    /// Folders to look in, in this order, before the loader's own path (`LD_LIBRARY_PATH`, `ld.so.conf`).
    pub folders: Vec<PathBuf>,
    /// Whether the loader's own path is used where no folder has a library.
    pub loader_path: bool,
    /// Major versions, the preferred one first. 8 is served (8.6), but only taken when it is named here.
    pub majors: Vec<u32>,
}

impl Default for Search {
    /// The loader's path only, 11 before 10.
    fn default() -> Self {
        Self { folders: Vec::new(), loader_path: true, majors: vec![11, 10] }
    }
}

impl Search {
    /// One folder only, all known major versions.
    #[must_use]
    pub fn folder(folder: impl Into<PathBuf>) -> Self {
        Self { folders: vec![folder.into()], loader_path: false, majors: vec![11, 10, 8] }
    }

    /// Paths to try for libraries called `stem` (`libnvinfer`), as the loader takes them.
    fn candidates(&self, stem: &str, major: u32) -> impl Iterator<Item = PathBuf> {
        let file = format!("{stem}.so.{major}");
        let own = self.loader_path.then(|| PathBuf::from(&file));
        self.folders
            .iter()
            .map(move |folder| folder.join(&file))
            .chain(own)
            .collect::<Vec<_>>()
            .into_iter()
    }
}

type CreateObject = unsafe extern "C" fn(*mut c_void, i32) -> *mut c_void;
type CreateParser = unsafe extern "C" fn(*mut c_void, *mut c_void, c_int) -> *mut c_void;

/// An opened shared library that is never closed: TensorRT keeps threads and exit handlers that would outlive it.
#[derive(Debug)]
struct Opened(ManuallyDrop<libloading::Library>);

impl Opened {
    fn open(path: &Path) -> Result<Self, String> {
        // SAFETY: loading runs the initializers of the file. It was named for this purpose, and TensorRT's do no more
        // than set up their own statics.
        let library = unsafe { libloading::Library::new(path) };
        library
            .map(|library| Self(ManuallyDrop::new(library)))
            .map_err(|error| not_opened(path, &error))
    }

    /// A function of the library.
    ///
    /// # Safety
    /// `F` is the C function pointer type of `name`.
    unsafe fn function<F: Copy>(&self, name: &str) -> Option<F> {
        // SAFETY: the type fits (caller), and the library is never closed, so the copy stays valid.
        unsafe { self.0.get::<F>(name.as_bytes()) }.ok().map(|function| *function)
    }
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    version: Version,
    /// As the library counts it, and as its create functions want to see it.
    number: i32,
    abi: &'static Abi,
    logger: &'static LoggerObject,
    search: Search,
    create_runtime: CreateObject,
    create_builder: Option<CreateObject>,
}

/// An opened TensorRT: the full library or the lean runtime.
///
/// Stays loaded until the process ends. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Library(Arc<Inner>);

impl Library {
    /// Opens the first library that the search finds. The order of major versions counts first, then
    /// that the full library is preferred to the lean runtime, then the order of folders.
    ///
    /// # Errors
    /// [`Error::NotFound`] with all that was tried, [`Error::UnknownVersion`] if the first that opens is of a version
    /// without an interface table, [`Error::MissingSymbol`].
    pub fn open(search: &Search) -> Result<Self, Error> {
        let mut tried = Vec::new();
        for &major in &search.majors {
            for stem in ["libnvinfer", "libnvinfer_lean"] {
                for path in search.candidates(stem, major) {
                    match Opened::open(&path) {
                        Ok(opened) => return Self::check(&opened, path, search.clone()),
                        Err(reason) => tried.push(reason),
                    }
                }
            }
        }
        if let Some(path) =
            search.folders.iter().find_map(|folder| other_major(folder, &search.majors))
        {
            let majors: Vec<String> = search.majors.iter().map(u32::to_string).collect();
            let majors = majors.join(" or ");
            tried.push(format!("{} is there, but version {majors} is needed", path.display()));
        }
        Err(Error::NotFound { tried: tried.join("; ") })
    }

    /// Opens one file.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the loader does not take it, [`Error::UnknownVersion`] and [`Error::MissingSymbol`].
    pub fn open_file(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
        match Opened::open(&path) {
            Ok(opened) => Self::check(&opened, path, Search::folder(folder)),
            Err(reason) => Err(Error::NotFound { tried: reason }),
        }
    }

    fn check(opened: &Opened, path: PathBuf, search: Search) -> Result<Self, Error> {
        const VERSION: &str = "getInferLibVersion";
        const RUNTIME: &str = "createInferRuntime_INTERNAL";
        // On other systems C++ compilers lay out tables and pass arguments in other ways.
        if cfg!(not(all(target_os = "linux", target_pointer_width = "64"))) {
            return Err(Error::Platform { path });
        }
        // SAFETY: `int32_t getInferLibVersion()` in all versions.
        let version = unsafe { opened.function::<unsafe extern "C" fn() -> i32>(VERSION) };
        let Some(version) = version else {
            return Err(Error::MissingSymbol { path, symbol: VERSION });
        };
        // SAFETY: it takes nothing and only returns a constant.
        let number = unsafe { version() };
        let version = Version::from_number(number);
        let Some(abi) = abi::of(version) else {
            return Err(Error::UnknownVersion { path, version });
        };
        // SAFETY: `void* create…_INTERNAL(void* logger, int32_t version)` in all versions with a table.
        let (create_runtime, create_builder) =
            unsafe { (opened.function(RUNTIME), opened.function("createInferBuilder_INTERNAL")) };
        let Some(create_runtime) = create_runtime else {
            return Err(Error::MissingSymbol { path, symbol: RUNTIME });
        };
        tracing::debug!(path = %path.display(), %version, builder = create_builder.is_some(), "TensorRT is loaded");
        let logger = LoggerObject::leaked(abi.generation);
        Ok(Self(Arc::new(Inner {
            path,
            version,
            number,
            abi,
            logger,
            search,
            create_runtime,
            create_builder,
        })))
    }

    /// Version of the library.
    pub fn version(&self) -> Version {
        self.0.version
    }

    /// The file it was loaded from, as it was given to the loader.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Whether plans can be built, which the lean runtime cannot.
    pub fn can_build(&self) -> bool {
        self.0.create_builder.is_some()
    }

    /// Sets where the library's messages go; to `tracing` unless set. It holds for all that is made with this library.
    pub fn set_logger(&self, logger: Logger) {
        self.0.logger.set(logger);
    }

    pub(crate) fn abi(&self) -> &'static Abi {
        self.0.abi
    }

    pub(crate) fn logger(&self) -> &'static LoggerObject {
        self.0.logger
    }

    /// # Safety
    /// CUDA is initialised: without, TensorRT 8 crashes and later ones answer something that is no object.
    pub(crate) unsafe fn create_runtime(&self) -> *mut c_void {
        // SAFETY: the logger has the table of this version's `ILogger` and is never freed; the number is the library's.
        unsafe { (self.0.create_runtime)(self.0.logger.address(), self.0.number) }
    }

    /// # Safety
    /// As for [`Library::create_runtime`].
    pub(crate) unsafe fn create_builder(&self) -> Result<*mut c_void, Error> {
        let Some(create) = self.0.create_builder else {
            return Err(Error::NoBuilder { path: self.0.path.clone() });
        };
        // SAFETY: as in `create_runtime`.
        Ok(unsafe { create(self.0.logger.address(), self.0.number) })
    }

    /// Opens the ONNX parser that belongs to this library, from the same places.
    ///
    /// # Errors
    /// [`Error::ParserNotFound`], [`Error::ParserInterface`] and [`Error::MissingSymbol`].
    pub fn onnx_parser(&self) -> Result<OnnxParserLibrary, Error> {
        let mut tried = Vec::new();
        for path in self.0.search.candidates("libnvonnxparser", self.0.version.major) {
            match Opened::open(&path) {
                Ok(opened) => return self.check_parser(&opened, path),
                Err(reason) => tried.push(reason),
            }
        }
        Err(Error::ParserNotFound { tried: tried.join("; ") })
    }

    fn check_parser(&self, opened: &Opened, path: PathBuf) -> Result<OnnxParserLibrary, Error> {
        const VERSION: &str = "getNvOnnxParserVersion";
        const CREATE: &str = "createNvOnnxParser_INTERNAL";
        // SAFETY: `int getNvOnnxParserVersion()` in all versions.
        let version = unsafe { opened.function::<unsafe extern "C" fn() -> c_int>(VERSION) };
        let Some(version) = version else {
            return Err(Error::MissingSymbol { path, symbol: VERSION });
        };
        // SAFETY: it takes nothing and only returns a constant.
        let number = unsafe { version() };
        let interface = Version::from_number(number);
        if !PARSER_INTERFACES.contains(&(interface.major, interface.minor)) {
            return Err(Error::ParserInterface { path, interface, library: self.0.version });
        }
        // SAFETY: `void* createNvOnnxParser_INTERNAL(void* network, void* logger, int version)` in these versions.
        let create = unsafe { opened.function(CREATE) };
        let Some(create) = create else {
            return Err(Error::MissingSymbol { path, symbol: CREATE });
        };
        Ok(OnnxParserLibrary { library: self.0.version, interface, number, create })
    }
}

/// Versions of the parser's own interface, major and minor. They say nothing about the version of TensorRT, which is
/// known by the name of the file alone: 0.1 up to TensorRT 10, 0.2 with 11.
const PARSER_INTERFACES: [(u32, u32); 2] = [(0, 1), (0, 2)];

/// An opened `libnvonnxparser` of the same major version as the [`Library`] it was opened from.
#[derive(Clone, Debug)]
pub struct OnnxParserLibrary {
    library: Version,
    interface: Version,
    number: i32,
    create: CreateParser,
}

impl OnnxParserLibrary {
    /// Version of TensorRT that the parser was opened for.
    pub fn library_version(&self) -> Version {
        self.library
    }

    /// Version of the parser's own interface, 0.1.0 or 0.2.0; not the version of TensorRT.
    pub fn interface_version(&self) -> Version {
        self.interface
    }

    /// # Safety
    /// `network` is a network of the same major version as `logger`, and outlives the result.
    pub(crate) unsafe fn create(
        &self,
        network: *mut c_void,
        logger: &'static LoggerObject,
    ) -> *mut c_void {
        // SAFETY: both objects fit (caller), the logger is never freed, and the number is the library's own.
        unsafe { (self.create)(network, logger.address(), self.number) }
    }
}

/// A `libnvinfer.so.N` in `folder` whose N is not among `majors`.
fn other_major(folder: &Path, majors: &[u32]) -> Option<PathBuf> {
    std::fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        let name = entry.file_name();
        let name = name.to_str()?;
        let rest = name
            .strip_prefix("libnvinfer.so.")
            .or_else(|| name.strip_prefix("libnvinfer_lean.so."))?;
        let major = rest.split('.').next()?.parse().ok()?;
        (!majors.contains(&major)).then(|| entry.path())
    })
}

/// What the loader says about a file that it does not take.
pub(crate) fn not_opened(path: &Path, error: &libloading::Error) -> String {
    use std::error::Error as _;
    let path = path.display().to_string();
    let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    if reason.contains(&path) { reason } else { format!("{path}: {reason}") }
}

/// A C string as the library wants it.
pub(crate) fn c_string(text: &str, what: &'static str) -> Result<std::ffi::CString, Error> {
    std::ffi::CString::new(text).map_err(|_| Error::Text { what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_count_versions_are_read() {
        for (number, text) in [
            (7130, "7.1.30"),
            (8601, "8.6.1"),
            (9200, "9.2.0"),
            (100_300, "10.3.0"),
            (101_501, "10.15.1"),
            (110_400, "11.4.0"),
            (-1, "0.0.0"),
        ] {
            assert_eq!(Version::from_number(number).to_string(), text, "{number}");
        }
    }
}
