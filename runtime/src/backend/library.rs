//! Finding the shared library of ONNX Runtime.
//!
//! The `ort` crate panics on a library that answers its first calls with null. So each candidate
//! is opened and asked here before `ort` sees it.
#![allow(unsafe_code)] // The library's entry point is a C function.

use std::cmp::Reverse;
use std::env::consts::{ARCH, DLL_PREFIX, DLL_SUFFIX};
use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::{env, fs, mem};

use ort::sys::{ORT_API_VERSION, OrtApiBase};

/// Where `scripts/install` puts the library, below a prefix.
const INSTALLED: &str = "lib/conceptseg";

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
    /// `ORT_DYLIB_PATH`; else beside the program, `lib/conceptseg` where the program, the user or
    /// the system has it installed, the repository's `third_party/onnxruntime` (where the set-up
    /// script puts it), the system's folders, and an active Python environment with the
    /// `onnxruntime` package.
    pub(super) fn of_process() -> Self {
        let chosen = env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()).map(PathBuf::from);
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
            folders.push(workspace.join("third_party/onnxruntime"));
        }
        folders.extend(["/usr/lib", "/usr/local/lib"].map(PathBuf::from));
        folders.push(PathBuf::from(format!("/usr/lib/{ARCH}-linux-gnu")));
        if let Some(python) = env::var_os("VIRTUAL_ENV").filter(|p| !p.is_empty()) {
            let versions =
                fs::read_dir(Path::new(&python).join("lib")).into_iter().flatten().flatten();
            folders.extend(versions.map(|v| v.path().join("site-packages/onnxruntime/capi")));
        }
        Self { chosen, folders }
    }
}

/// The first library that can be used, or why there is none.
pub(super) fn find(paths: &SearchPaths) -> Result<Found, String> {
    if let Some(chosen) = &paths.chosen {
        let candidates = if chosen.is_dir() { candidates(chosen) } else { vec![chosen.clone()] };
        return first_usable(&candidates).unwrap_or_else(|| {
            Err(format!(
                "ORT_DYLIB_PATH names the folder {}, which holds no {}",
                chosen.display(),
                file_name()
            ))
        });
    }
    let all: Vec<PathBuf> = paths.folders.iter().flat_map(|f| candidates(f)).collect();
    first_usable(&all).unwrap_or_else(|| {
        Err(format!(
            "no {} was found (looked in {}); take it out of the PyPI package onnxruntime and set ORT_DYLIB_PATH to it",
            file_name(),
            paths.folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "),
        ))
    })
}

/// `None` without candidates; otherwise the first that works, or all reasons.
fn first_usable(candidates: &[PathBuf]) -> Option<Result<Found, String>> {
    let mut reasons = Vec::new();
    for path in candidates {
        match inspect(path) {
            Ok(version) => return Some(Ok(Found { path: path.clone(), version })),
            Err(reason) => reasons.push(format!("{}: {reason}", path.display())),
        }
    }
    (!reasons.is_empty()).then(|| Err(reasons.join("; ")))
}

fn file_name() -> String {
    format!("{DLL_PREFIX}onnxruntime{DLL_SUFFIX}")
}

/// Libraries in a folder: the plain name first, then the names with a version, newest first.
fn candidates(folder: &Path) -> Vec<PathBuf> {
    let plain = file_name();
    let mut named: Vec<(Option<Reverse<Vec<u32>>>, PathBuf)> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let rest = name.strip_prefix(&plain)?;
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

/// Loads the library and asks for its version.
fn inspect(path: &Path) -> Result<String, String> {
    if !path.is_file() {
        return Err("there is no such file".to_owned());
    }
    let path = path.canonicalize().map_err(|e| e.to_string())?;
    // SAFETY: loading runs the library's initialisers. The file lies where administrators and the
    // set-up script put ONNX Runtime, or was named by whoever started the program.
    let library = unsafe { libloading::Library::new(&path) }.map_err(with_cause)?;
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
        let reason = find(&only(dir.path())).unwrap_err();
        assert!(
            reason.contains("ORT_DYLIB_PATH") && reason.contains(dir.path().to_str().unwrap()),
            "{reason}"
        );
    }

    #[test]
    fn a_broken_library_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(file_name());
        fs::write(&path, b"not a library").unwrap();
        let reason = find(&only(dir.path())).unwrap_err();
        let named = format!("{}: it does not load: ", path.display());
        assert!(reason.starts_with(&named) && reason.len() > named.len(), "{reason}");
    }

    #[test]
    fn another_library_is_not_onnxruntime() {
        let libc = [
            "/lib/x86_64-linux-gnu/libm.so.6",
            "/lib/aarch64-linux-gnu/libm.so.6",
            "/lib64/libm.so.6",
        ];
        let Some(libc) = libc.into_iter().map(Path::new).find(|p| p.is_file()) else {
            eprintln!("skipped: no libm.so.6 on this machine");
            return;
        };
        let reason =
            find(&SearchPaths { chosen: Some(libc.to_owned()), folders: Vec::new() }).unwrap_err();
        assert!(reason.contains("OrtGetApiBase"), "{reason}");
    }

    #[test]
    fn a_chosen_path_is_the_only_one() {
        let paths = SearchPaths {
            chosen: Some("/nonexistent/libonnxruntime.so".into()),
            ..SearchPaths::of_process()
        };
        assert_eq!(
            find(&paths).unwrap_err(),
            "/nonexistent/libonnxruntime.so: there is no such file"
        );
    }

    #[test]
    fn the_plain_name_comes_first_then_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let plain = file_name();
        for suffix in ["", ".1", ".1.9.0", ".1.32.0", ".bak", "x"] {
            fs::write(dir.path().join(format!("{plain}{suffix}")), []).unwrap();
        }
        let names: Vec<_> = candidates(dir.path())
            .iter()
            .map(|p| p.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["", ".1.32.0", ".1.9.0", ".1"].map(|suffix| format!("{plain}{suffix}")));
    }
}
