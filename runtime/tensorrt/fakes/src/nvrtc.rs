//! The real NVRTC, from PyPI.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// Takes the libraries out of a wheel, without the second copy for old systems that some have.
const EXTRACT: &str = "
import pathlib, sys, zipfile
wheel = zipfile.ZipFile(next(pathlib.Path(sys.argv[1]).glob('*.whl')))
for name in wheel.namelist():
    if '.so' in name and '.alt.' not in name:
        pathlib.Path(sys.argv[2], pathlib.Path(name).name).write_bytes(wheel.read(name))
";

/// `libnvrtc.so.N` of a version (`12.6.85`: 24 MB to load, `13.0.88`: 90 MB), loaded once and kept beside what cargo
/// builds. Nothing, with a printed reason, where PyPI cannot be reached.
pub fn nvrtc(version: &str) -> Option<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let major = version.split('.').next().unwrap_or_default();
    let folder = Path::new(env!("OUT_DIR")).join(format!("nvrtc-{version}"));
    let library = folder.join(format!("libnvrtc.so.{major}"));
    if library.exists() {
        return Some(library);
    }
    // CUDA 13 dropped the number from the package's name.
    let package = if major == "12" { "nvidia-cuda-nvrtc-cu12" } else { "nvidia-cuda-nvrtc" };
    match load(&format!("{package}=={version}"), &folder) {
        Ok(()) if library.exists() => Some(library),
        Ok(()) => panic!("{package} {version} has no libnvrtc.so.{major}"),
        Err(error) => {
            println!("skipped: NVRTC {version} cannot be had from PyPI ({error})");
            None
        }
    }
}

fn load(requirement: &str, folder: &Path) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    std::fs::create_dir_all(env!("OUT_DIR")).map_err(text)?;
    let temporary = tempfile::tempdir_in(env!("OUT_DIR")).map_err(text)?;
    let (wheels, libraries) = (temporary.path().join("wheels"), temporary.path().join("libraries"));
    std::fs::create_dir(&libraries).map_err(text)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]);
    pip.args(["--timeout", "15", "--retries", "1", "-d"]).arg(&wheels).arg(requirement);
    let mut extract = Command::new("python3");
    extract.arg("-c").arg(EXTRACT).args([&wheels, &libraries]);
    for mut command in [pip, extract] {
        let output = command.output().map_err(text)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(said.trim().lines().last().unwrap_or("it gave no reason").to_owned());
        }
    }
    // Another process may have been faster: what it has put there is the same.
    std::fs::rename(&libraries, folder)
        .or_else(|error| if folder.exists() { Ok(()) } else { Err(error.to_string()) })
}
