//! Finding the shared libraries of ONNX Runtime and OpenVINO.
//!
//! The `ort` crate panics on a library that answers its first calls with null. So each candidate
//! is opened and asked here before `ort` sees it.
#![allow(unsafe_code)] // A library's entry points are C functions.

use std::cmp::Reverse;
use std::env::consts::{ARCH, DLL_PREFIX, DLL_SUFFIX};
use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::{env, fs, mem};

use ort::sys::{ORT_API_VERSION, OrtApiBase};

/// Where `scripts/install` puts the library, below a prefix.
const INSTALLED: &str = "lib/conceptseg";

/// What is looked for.
pub(super) struct Wanted {
    /// Name of the file between `lib` and `.so`.
    stem: &'static str,
    /// Environment variable with its path.
    variable: &'static str,
    /// Package on PyPI that holds it, and folder of it in the repository's `third_party`.
    package: &'static str,
    /// Its folder inside that package.
    inside: &'static str,
    /// Folder of its maker's own installer.
    installed: Option<&'static str>,
    /// Its version, or why a file cannot be used.
    inspect: fn(&Path) -> Result<String, String>,
}

pub(super) const ONNX_RUNTIME: Wanted = Wanted {
    stem: "onnxruntime",
    variable: "ORT_DYLIB_PATH",
    package: "onnxruntime",
    inside: "capi",
    installed: None,
    inspect: inspect_onnxruntime,
};

pub(super) const OPENVINO: Wanted = Wanted {
    stem: "openvino_c",
    variable: "OPENVINO_DYLIB_PATH",
    package: "openvino",
    inside: "libs",
    installed: Some("/opt/intel/openvino/runtime/lib/intel64"),
    inspect: super::openvino::inspect,
};

impl Wanted {
    fn file_name(&self) -> String {
        format!("{DLL_PREFIX}{}{DLL_SUFFIX}", self.stem)
    }
}

/// A library that loads, answers and is new enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) version: String,
}

/// Where to look.
#[derive(Debug, Clone, Default)]
pub(super) struct SearchPaths {
    /// A file, or a folder that holds it, that somebody chose: nothing else is tried then.
    pub(super) chosen: Option<PathBuf>,
    /// Folders in the order of preference.
    pub(super) folders: Vec<PathBuf>,
}

impl SearchPaths {
    /// The path in the environment variable; else beside the program, `lib/conceptseg` where the program, the
    /// user or the system has it installed, the repository's `third_party` (where the set-up script puts
    /// it), the system's folders, and an active Python environment with the package.
    pub(super) fn of_process(wanted: &Wanted) -> Self {
        let chosen = env::var_os(wanted.variable).filter(|p| !p.is_empty()).map(PathBuf::from);
        let mut folders = Vec::new();
        if let Some(folder) = env::current_exe().ok().as_deref().and_then(Path::parent) {
            folders.push(folder.to_owned());
            folders.extend(folder.parent().map(|prefix| prefix.join(INSTALLED)));
        }
        // A plugin is part of a program that lies elsewhere.
        if let Some(home) = env::var_os("HOME").filter(|p| !p.is_empty()) {
            folders.push(Path::new(&home).join(".local").join(INSTALLED));
        }
        folders.push(Path::new("/usr/local").join(INSTALLED));
        if let Some(workspace) = Path::new(env!("CARGO_MANIFEST_DIR")).parent() {
            folders.push(workspace.join("third_party").join(wanted.package));
        }
        folders.extend(["/usr/lib", "/usr/local/lib"].map(PathBuf::from));
        folders.push(PathBuf::from(format!("/usr/lib/{ARCH}-linux-gnu")));
        folders.extend(wanted.installed.map(PathBuf::from));
        if let Some(python) = env::var_os("VIRTUAL_ENV").filter(|p| !p.is_empty()) {
            let versions =
                fs::read_dir(Path::new(&python).join("lib")).into_iter().flatten().flatten();
            let inside = Path::new("site-packages").join(wanted.package).join(wanted.inside);
            folders.extend(versions.map(|v| v.path().join(&inside)));
        }
        Self { chosen, folders }
    }
}

/// The first library that can be used, or why there is none.
pub(super) fn find(wanted: &Wanted, paths: &SearchPaths) -> Result<Found, String> {
    let (file, variable) = (wanted.file_name(), wanted.variable);
    if let Some(chosen) = &paths.chosen {
        let candidates =
            if chosen.is_dir() { candidates(chosen, &file) } else { vec![chosen.clone()] };
        return first_usable(wanted, &candidates).unwrap_or_else(|| {
            Err(format!("{variable} names the folder {}, which holds no {file}", chosen.display()))
        });
    }
    let all: Vec<PathBuf> = paths.folders.iter().flat_map(|f| candidates(f, &file)).collect();
    first_usable(wanted, &all).unwrap_or_else(|| {
        Err(format!(
            "no {file} was found (looked in {}); take it out of the PyPI package {} and set {variable} to it",
            paths.folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "),
            wanted.package,
        ))
    })
}

/// `None` without candidates; otherwise the first that works, or all reasons.
fn first_usable(wanted: &Wanted, candidates: &[PathBuf]) -> Option<Result<Found, String>> {
    let mut reasons = Vec::new();
    for path in candidates {
        match (wanted.inspect)(path) {
            Ok(version) => return Some(Ok(Found { path: path.clone(), version })),
            Err(reason) => reasons.push(format!("{}: {reason}", path.display())),
        }
    }
    (!reasons.is_empty()).then(|| Err(reasons.join("; ")))
}

/// Libraries in a folder: the plain name first, then the names with a version, newest first.
fn candidates(folder: &Path, plain: &str) -> Vec<PathBuf> {
    let mut named: Vec<(Option<Reverse<Vec<u32>>>, PathBuf)> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let rest = name.strip_prefix(plain)?;
            let version = match rest.strip_prefix('.') {
                Some(version) => {
                    let numbers: Result<Vec<u32>, _> = version.split('.').map(str::parse).collect();
                    Some(Reverse(numbers.ok()?))
                }
                None if rest.is_empty() => None,
                None => return None,
            };
            Some((version, entry.path()))
        })
        .collect();
    named.sort();
    named.into_iter().map(|(_, path)| path).collect()
}

/// The loader's own words are the cause of the error that `libloading` gives.
#[allow(clippy::needless_pass_by_value)] // the shape of `map_err`
fn with_cause(error: libloading::Error) -> String {
    match std::error::Error::source(&error) {
        Some(cause) => super::one_line(format_args!("it does not load: {cause}")),
        None => super::one_line(error),
    }
}

/// Loads a library.
pub(super) fn open_library(path: &Path) -> Result<libloading::Library, String> {
    if !path.is_file() {
        return Err("there is no such file".to_owned());
    }
    let path = path.canonicalize().map_err(|e| e.to_string())?;
    // SAFETY: loading runs the library's initialisers. The file lies where administrators and the
    // set-up script put it, or was named by whoever started the program.
    unsafe { libloading::Library::new(&path) }.map_err(with_cause)
}

/// Loads ONNX Runtime and asks for its version.
fn inspect_onnxruntime(path: &Path) -> Result<String, String> {
    let library = open_library(path)?;
    // SAFETY: the C interface of ONNX Runtime declares the function with exactly this type.
    let entry =
        unsafe { library.get::<unsafe extern "C" fn() -> *const OrtApiBase>(c"OrtGetApiBase") }
            .map_err(|_| {
                "it is not an ONNX Runtime library (it has no OrtGetApiBase)".to_owned()
            })?;
    // SAFETY: the function takes nothing and returns a pointer to a constant, or null.
    let base = unsafe { entry().as_ref() }.ok_or("it is damaged (OrtGetApiBase answers null)")?;
    // SAFETY: the two functions of the base never changed; the version is a C string constant.
    let (version, api) = unsafe {
        let version = (base.GetVersionString)();
        let version = if version.is_null() {
            String::new()
        } else {
            CStr::from_ptr(version).to_string_lossy().into_owned()
        };
        (version, (base.GetApi)(ORT_API_VERSION))
    };
    if api.is_null() {
        return Err(format!(
            "version {version} is too old, 1.{ORT_API_VERSION} or newer is needed"
        ));
    }
    // It is about to be used until the process ends; unloading it in between would run its
    // destructors for nothing.
    mem::forget(library);
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(folder: &Path) -> SearchPaths {
        SearchPaths { chosen: None, folders: vec![folder.to_owned()] }
    }

    #[test]
    fn an_absent_library_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        for wanted in [&ONNX_RUNTIME, &OPENVINO] {
            let reason = find(wanted, &only(dir.path())).unwrap_err();
            for part in [&wanted.file_name(), wanted.variable, dir.path().to_str().unwrap()] {
                assert!(reason.contains(part), "{reason}");
            }
        }
    }

    #[test]
    fn a_broken_library_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(ONNX_RUNTIME.file_name());
        fs::write(&path, b"not a library").unwrap();
        let reason = find(&ONNX_RUNTIME, &only(dir.path())).unwrap_err();
        let named = format!("{}: it does not load: ", path.display());
        assert!(reason.starts_with(&named) && reason.len() > named.len(), "{reason}");
    }

    #[test]
    fn another_library_is_refused() {
        let libc = [
            "/lib/x86_64-linux-gnu/libm.so.6",
            "/lib/aarch64-linux-gnu/libm.so.6",
            "/lib64/libm.so.6",
        ];
        let Some(libc) = libc.into_iter().map(Path::new).find(|p| p.is_file()) else {
            eprintln!("skipped: no libm.so.6 on this machine");
            return;
        };
        let reason = find(
            &ONNX_RUNTIME,
            &SearchPaths { chosen: Some(libc.to_owned()), folders: Vec::new() },
        )
        .unwrap_err();
        assert!(reason.contains("OrtGetApiBase"), "{reason}");
        let reason =
            find(&OPENVINO, &SearchPaths { chosen: Some(libc.to_owned()), folders: Vec::new() })
                .unwrap_err();
        assert!(reason.contains("not a complete OpenVINO library (it has no ov_"), "{reason}");
    }

    #[test]
    fn a_chosen_path_is_the_only_one() {
        let paths = SearchPaths {
            chosen: Some("/nonexistent/libonnxruntime.so".into()),
            ..SearchPaths::of_process(&ONNX_RUNTIME)
        };
        assert_eq!(
            find(&ONNX_RUNTIME, &paths).unwrap_err(),
            "/nonexistent/libonnxruntime.so: there is no such file"
        );
    }

    #[test]
    fn the_plain_name_comes_first_then_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let plain = ONNX_RUNTIME.file_name();
        for suffix in ["", ".1", ".1.9.0", ".1.32.0", ".bak", "x"] {
            fs::write(dir.path().join(format!("{plain}{suffix}")), []).unwrap();
        }
        let names: Vec<_> = candidates(dir.path(), &plain)
            .iter()
            .map(|p| p.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["", ".1.32.0", ".1.9.0", ".1"].map(|suffix| format!("{plain}{suffix}")));
    }
}
